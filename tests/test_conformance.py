"""The conformance suite finds every kind of fault, names it, and finds nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest

from prunebench import samples
from prunebench.conformance import check_method, check_method_file, load_method_file
from prunebench.errors import ConfigError
from prunebench.method import Capability, PathGroup, SignalGenerator, SignalType
from prunebench.methods.entropy import Entropy

BAD = FilePath(__file__).parent / "bad_methods"

# file -> the one check that must fail, and words that its message must hold
EXPECTED = {
    "construction": ("construction", "touched the file"),
    "declaration": ("declaration", "'requires' must be a frozenset of Capability"),
    "declares_too_much": ("declares_too_much", "requires Capability.LOGPROBS but never reads it"),
    "docstring": ("docstring", "Higher = keep"),
    "group_dependent": ("group_dependent", "depends on the other paths, but joint is False"),
    "heavy_import": ("heavy_import", "imports pandas when it is loaded"),
    "keeps_state": ("not_deterministic", "keep nothing between calls"),
    "mutates_input": ("mutates_input", "mutates its input"),
    "mutates_input_notes": ("mutates_input", "mutates its input"),
    "mutates_input_quietly": ("mutates_input", "mutates its input"),
    "not_deterministic": ("not_deterministic", "not deterministic"),
    "options": ("options", "Literal"),
    "order_dependent": ("order_dependent", "depend on the order of the paths"),
    "paper": ("paper", "with a URL. Got 'Somebody et al. 2025'"),
    "past_checkpoint": ("past_checkpoint", "looks past the checkpoint: it read path.correct"),
    "past_checkpoint_declared": ("past_checkpoint", "looks past the checkpoint: it requires OUT"),
    "raises": ("raises", "ValueError: max() arg is an empty sequence on a group with an empty"),
    "scores_nothing": ("scores_nothing", "NaN for all of twelve varied paths"),
    "swallows_refusal": ("undeclared_read", "read path.entropy without declaring it"),
    "type_mismatch": ("type_mismatch", "Type I reads no internals"),
    "type_mismatch_internal": ("type_mismatch", "Type III reads the generating model"),
    "undeclared_read": ("undeclared_read", "read path.entropy without declaring it: add Capabi"),
    "undecorated": ("declaration", "limit of Undecorated would be no option"),
    "wrong_dtype": ("wrong_dtype", "dtype float32; it must be float64"),
    "wrong_shape": ("wrong_shape", "wrong shape on twelve varied paths: (12, 1). It must be (12,)"),
    "wrong_type": ("wrong_type", "returned a list"),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    """Tiny products are slower on many threads, most of all beside other work."""
    import torch

    torch.set_num_threads(1)


def test_every_faulty_example_is_expected_to_fail() -> None:
    assert {file.stem for file in BAD.glob("*.py")} == {*EXPECTED, "hash_dependent", "learnt"}


@pytest.mark.parametrize("stem", EXPECTED)
def test_a_faulty_method_is_told_its_one_fault(stem: str) -> None:
    faults = check_method(load_method_file(BAD / f"{stem}.py"), name=stem)
    check, words = EXPECTED[stem]
    assert [fault.check for fault in faults] == [check]
    assert words in faults[0].message


def test_scores_that_differ_between_processes_are_a_fault() -> None:
    (fault,) = check_method_file(BAD / "hash_dependent.py")
    assert fault.check == "not_deterministic"
    assert "another Python process" in fault.message


def faults_of(cls: type[SignalGenerator], name: str = "mine") -> dict[str, str]:
    return {fault.check: fault.message for fault in check_method(cls, name=name)}


@pytest.mark.parametrize("name", ["my-method", "2nd", "class", "_hidden", ""])
def test_a_name_that_cannot_be_imported_is_a_fault(name: str) -> None:
    assert faults_of(Entropy, name).keys() == {"name"}


def test_a_field_without_default_is_a_fault() -> None:
    @dataclass(kw_only=True)
    class Needy(Entropy):
        """Higher = keep."""

        window: int

    assert "Every field needs a default" in faults_of(Needy)["construction"]


def test_an_exception_in_setup_is_a_fault() -> None:
    @dataclass(kw_only=True)
    class NoWeights(Entropy):
        """Higher = keep."""

        def setup(self, context: Any) -> None:
            raise FileNotFoundError("weights.safetensors")

    assert "FileNotFoundError: weights.safetensors" in faults_of(NoWeights)["setup"]


def test_a_leak_of_the_continuation_is_found_by_the_scores_alone(monkeypatch) -> None:
    """A method that gets at the future by no door that is watched still scores differently."""
    future: dict[bytes, float] = {}
    make_group = samples.group

    def leaking_group(traces: Sequence[Any], *args: Any) -> PathGroup:
        group = make_group(traces, *args)
        future.update(
            {p.token_ids.tobytes(): t.n_tokens for p, t in zip(group.paths, traces, strict=True)}
        )
        return group

    @dataclass(kw_only=True)
    class Prophet(SignalGenerator):
        """Higher = keep: paths that will be short."""

        type = SignalType.I
        paper = "https://arxiv.org/abs/2505.17813"
        joint = False

        def score(self, group: PathGroup) -> np.ndarray:
            return np.array([-float(future[p.token_ids.tobytes()]) for p in group.paths])

    monkeypatch.setattr(samples, "group", leaking_group)
    assert "went on differently" in faults_of(Prophet)["past_checkpoint"]


def test_all_faults_of_a_method_are_reported_together() -> None:
    @dataclass(kw_only=True)
    class Sloppy(SignalGenerator):
        """No direction."""

        type = SignalType.II
        paper = ""
        requires = frozenset({Capability.ENTROPY})

        def score(self, group: PathGroup) -> np.ndarray:
            return np.array([path.n_tokens for path in group.paths])

    assert faults_of(Sloppy).keys() == {
        "paper",
        "docstring",
        "type_mismatch",
        "wrong_dtype",
        "declares_too_much",
    }


# --- learnable methods on the fake backend ----------------------------------------------------

Learnt: Any = load_method_file(BAD / "learnt.py")


def test_a_learnable_method_is_fitted_saved_loaded_and_scored() -> None:
    assert check_method(Learnt, name="learnt") == []


def test_scoring_before_fit_must_raise_not_trained() -> None:
    @dataclass(kw_only=True)
    class Hasty(Learnt):
        """Higher = keep."""

        def check_fitted(self) -> None:
            self.weights_ = 1.0 if self.weights_ is None else self.weights_

        def score(self, group: PathGroup) -> np.ndarray:
            if self.weights_ is None:
                return np.zeros(len(group))
            return super().score(group)

    assert "score worked before fit" in faults_of(Hasty)["unfitted_use"]


def test_learned_state_that_is_not_saved_is_a_fault() -> None:
    @dataclass(kw_only=True)
    class Forgetful(Learnt):
        """Higher = keep."""

        bias_: Any = field(default=0.0, init=False)

        def fit(self, train: Any, valid: Any, context: Any) -> Any:
            self.bias_ = 3.0
            return super().fit(train, valid, context)

        def score(self, group: PathGroup) -> np.ndarray:
            return super().score(group) + self.bias_

    assert "After save and load the scores differ" in faults_of(Forgetful)["save_load"]


def test_an_exception_in_fit_is_a_fault() -> None:
    @dataclass(kw_only=True)
    class Broken(Learnt):
        """Higher = keep."""

        def fit(self, train: Any, valid: Any, context: Any) -> Any:
            raise RuntimeError("no gradient")

    assert "RuntimeError: no gradient" in faults_of(Broken)["fit"]


def test_reading_the_cache_under_the_wrong_capability_is_an_undeclared_read() -> None:
    @dataclass(kw_only=True)
    class WrongDoor(Learnt):
        """Higher = keep."""

        requires = frozenset({Capability.KV_CACHE})

    assert "Capability.HIDDEN_STATES" in faults_of(WrongDoor)["undeclared_read"]


# --- loading a file ---------------------------------------------------------------------------

METHOD = """
from dataclasses import dataclass
from prunebench.method import PathSignal, SignalType

@dataclass(kw_only=True)
class {name}(PathSignal):
    '''Higher = keep.'''
    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"
    def score_path(self, path):
        return {value}
"""


def test_files_with_one_stem_do_not_replace_each_other(tmp_path: FilePath) -> None:
    classes = []
    for folder, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "mine.py"
        file.write_text(METHOD.format(name="Mine", value=value))
        classes.append(load_method_file(file))
    group = samples.group(samples.varied()[:1], frozenset())
    assert [cls().score(group).tolist() for cls in classes] == [[1.0], [2.0]]


def test_a_file_of_the_package_loads_as_the_registered_class() -> None:
    import prunebench.methods.entropy as module

    assert module.__file__ is not None
    assert load_method_file(module.__file__) is Entropy


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "exactly one SignalGenerator.* Found: none"),
        (METHOD.format(name="A", value=1) + METHOD.format(name="B", value=1), "Found: A, B"),
        ("from prunebench.methods.entropy import Entropy", "Found: none"),
        ("import no_such_package", "cannot be imported: ModuleNotFoundError: .*no_such_package"),
        ("def (", "cannot be imported: SyntaxError"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        (METHOD.format(name="A", value=1).replace("score_path", "score_paths"), "score_path"),
    ],
)
def test_a_file_without_one_method_says_why(tmp_path: FilePath, source: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(ConfigError, match=message) as caught:
        load_method_file(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["absent.py", "notes.txt"])
def test_a_path_that_is_no_python_file_says_so(tmp_path: FilePath, name: str) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=name):
        load_method_file(tmp_path / name)

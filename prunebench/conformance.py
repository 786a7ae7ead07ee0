"""Checks that a method keeps the contract of `prunebench.method`, on made-up paths.

The same checks run over every registered method in the tests and over one file in
`python -m prunebench check methods/my_method.py`. Each fault says what was seen and what to do.
This module knows no method by name and needs no model: groups are cut from made-up traces, and
only methods that read the model's states, or train on it, meet the fake backend. It cannot tell
whether a formula is right, only whether its scores can be compared fairly.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench import samples
from prunebench.backend import Backend, Internals, ModelSpec
from prunebench.declaration import Report, check_declaration
from prunebench.errors import ContractViolation, NotTrained, UndeclaredCapability
from prunebench.fakeendpoint import FakeEndpoint
from prunebench.granted import GrantedInternals
from prunebench.loading import load_method_file
from prunebench.method import Context, PathGroup, SignalGenerator, SignalType, Trainable
from prunebench.types import INTERNAL, STATES, Capability, Trace, granting

if TYPE_CHECKING:
    pass

__all__ = ["Fault", "check_method", "load_method_file"]

_READABLE = INTERNAL | {
    Capability.PROBE,
    Capability.STEP_CHECK,
    Capability.EARLY_ANSWERS,
    Capability.OUTCOME,
}
_SHORT_FIT = {"epochs": 1, "max_steps": 2, "batch_size": 4}  # used where a method has the field

_SAMPLES: dict[str, Callable[[], list[Trace]]] = {
    "twelve varied paths": samples.varied,
    "a single path": lambda: samples.varied()[:1],
    "four identical paths": samples.identical,
    "a group with an empty prefix": samples.with_empty_prefix,
    "64 paths": samples.many,
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One broken promise.

    Attributes
    ----------
    check : short name of the promise, such as `order_dependent`.
    message : what was seen and what to do about it.
    """

    check: str
    message: str


def check_method(cls: type[SignalGenerator], *, name: str) -> list[Fault]:
    """Every fault of a method, the first of each kind; empty when it keeps the contract.

    Parameters
    ----------
    cls : a concrete `SignalGenerator`; a `Trainable` is fitted on a few made-up prefixes.
    name : its registry name, the stem of its file.
    """
    faults: dict[str, Fault] = {}

    def report(check: str, message: str) -> None:
        faults.setdefault(check, Fault(check=check, message=message))

    check_declaration(cls, name, report)
    if not {"declaration", "construction"} & faults.keys():
        with tempfile.TemporaryDirectory() as folder:
            _Examination(cls, report, FilePath(folder)).run()
    return list(faults.values())


def check_method_file(path: FilePath) -> list[Fault]:
    """`check_method` for a file, and whether its scores are the same in another process.

    Python hashes strings differently in every process, so a method that uses `hash` or the order
    of a set of strings is deterministic in one process and not from run to run.
    """
    cls = load_method_file(path)
    faults = check_method(cls, name=path.stem)
    if faults or cls.requires & STATES or issubclass(cls, Trainable):
        return faults
    scores = {_scores_in_a_process(path, hash_seed) for hash_seed in ("1", "2")}
    if len(scores) > 1:
        message = (
            "score is not deterministic: another Python process gave other scores. Do not use "
            "hash() of text or the order of a set; sort first, or use zlib.crc32."
        )
        faults.append(Fault(check="not_deterministic", message=message))
    return faults


def _scores_in_a_process(path: FilePath, hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prunebench.conformance", str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )
    return done.stdout or done.stderr


class _Examination:
    """Runs one method over made-up groups and reports what it does wrong."""

    def __init__(self, cls: type[SignalGenerator], report: Report, folder: FilePath) -> None:
        self.cls = cls
        self.report = report
        self.folder = folder
        # Batched matrix products differ in the last bits of float32 with the shape of the batch.
        self.tolerance = 1e-4 if cls.requires & STATES else 1e-10
        self._backend: Backend | None = None

    def run(self) -> None:
        if issubclass(self.cls, Trainable) and not self.train():
            return
        method = self.ready()
        if method is None:
            return
        for where, traces in _SAMPLES.items():
            scores = self.score(method, self.group(traces()), where)
            if scores is None:
                continue
            if len(scores) > 1 and np.isnan(scores).all():
                self.report(
                    "scores_nothing",
                    f"score returned NaN for all of {where}. NaN means 'could not be scored' and "
                    "is for paths such as empty prefixes.",
                )
            # Two calls of a method that is not deterministic differ anyway.
            if self.check_repeats(method, where, traces(), scores):
                self.check_order(method, where, traces(), scores)
                self.check_continuation(method)
        self.check_needed(method)
        method.close()

    # --- making methods and groups -----------------------------------------------------------

    def ready(self) -> SignalGenerator | None:
        """A fresh method that can score, or None after a report."""
        try:
            if issubclass(self.cls, Trainable):
                return self.cls().load(self.folder, self.context())  # type: ignore[return-value]  # both
            method = self.cls()
            if self.cls.setup is not SignalGenerator.setup:
                method.setup(self.context())
            return method
        except Exception as error:
            self.report("setup", f"Getting ready to score raised {_describe(error)}.")
            return None

    def context(self) -> Context:
        return Context(
            model_name="fake",
            backend=self.backend(),
            work_dir=self.folder,
            endpoint=FakeEndpoint(),
        )

    def backend(self) -> Backend:
        from prunebench.backends.fake import FakeBackend  # imports torch

        if self._backend is None:
            self._backend = FakeBackend()
            self._backend.bind(ModelSpec(name="fake", id="fake"), 0)
        return self._backend

    def group(
        self, traces: Sequence[Trace], granted: frozenset[Capability] | None = None
    ) -> PathGroup:
        granted = self.cls.requires if granted is None else granted

        def internals(prefixes: Sequence[np.ndarray]) -> Internals:
            return GrantedInternals(
                self.backend().encode(samples.PROMPT_IDS, prefixes), granting(granted)
            )

        return samples.group(traces, granted, internals if granted & STATES else None)

    # --- one call of score -------------------------------------------------------------------

    def score(self, method: SignalGenerator, group: PathGroup, where: str) -> np.ndarray | None:
        """`(n_paths,)` float64, or None after a report."""
        before = _fingerprint(group)
        scores: Any = None
        try:
            scores = method.score(group)
        except UndeclaredCapability as error:
            self.report_undeclared(str(error))
            return None
        except Exception as error:
            if not group.refused:
                self.report_exception(error, where)
                return None
        if group.refused:  # the method swallowed the error
            for message in sorted(group.refused):
                self.report_undeclared(message)
            return None
        if _fingerprint(group) != before:
            self.report(
                "mutates_input",
                f"score mutates its input: {where} were not the same after the call. Other methods "
                "read the same paths: copy what you change, keep notes on self.",
            )
        return self.checked(scores, len(group), where)

    def report_undeclared(self, message: str) -> None:
        if "path.correct" in message:
            self.report(
                "past_checkpoint",
                "The method looks past the checkpoint: it read path.correct, which tells how a "
                "path ends. Score from the prefix only.",
            )
        else:
            self.report("undeclared_read", message)

    def report_exception(self, error: Exception, where: str) -> None:
        text = str(error)
        if (
            isinstance(error, FrozenInstanceError)
            or "read-only" in text
            or "does not support item assignment" in text
            or "'tuple' object has no attribute" in text
        ):
            self.report(
                "mutates_input",
                f"score mutates its input ({_describe(error)}). Other methods read the same "
                "paths, so they are read-only: change a copy, e.g. path.token_ids.copy().",
            )
        else:
            self.report(
                "wrong_shape" if isinstance(error, ContractViolation) else "raises",
                f"score raised {_describe(error)} on {where}. It must score every group of "
                "paths: NaN for one that cannot be scored, such as an empty prefix.",
            )

    def checked(self, scores: Any, n: int, where: str) -> np.ndarray | None:
        if not isinstance(scores, np.ndarray):
            self.report(
                "wrong_type",
                f"score returned a {type(scores).__name__} on {where}; return a NumPy array of "
                f"shape ({n},) and dtype float64.",
            )
            return None
        if scores.shape != (n,):
            self.report(
                "wrong_shape",
                f"score returned an array of the wrong shape on {where}: {scores.shape}. It must "
                f"be ({n},), one number per path.",
            )
            return None
        if scores.dtype != np.float64:
            self.report(
                "wrong_dtype",
                f"score returned dtype {scores.dtype}; it must be float64: "
                "np.array(..., dtype=np.float64).",
            )
            return None
        return scores.copy()

    # --- comparing calls ---------------------------------------------------------------------

    def check_repeats(
        self, method: SignalGenerator, where: str, traces: list[Trace], first: np.ndarray
    ) -> bool:
        """The same method again, after it scored something else, and a fresh one."""
        self.score(method, self.group(samples.unfinished()), "eight unfinished paths")
        fresh = self.ready()
        for who, other in (("the same method", method), ("a fresh instance", fresh)):
            again = other and self.score(other, self.group(traces), where)
            if again is not None and not self.same(first, again):
                self.report(
                    "not_deterministic",
                    f"score is not deterministic: {who} gave other scores for {where} "
                    f"({_difference(first, again)}). Draw random numbers from group.rng() or "
                    "group.rng(path) only, and keep nothing between calls.",
                )
                return False
        return True

    def check_order(
        self, method: SignalGenerator, where: str, traces: list[Trace], scores: np.ndarray
    ) -> None:
        n = len(traces)
        rng = np.random.default_rng(0)
        for order in (np.arange(n)[::-1], rng.permutation(n), rng.permutation(n)):
            moved = self.score(method, self.group(traces).subset(order), where)
            if moved is not None and not self.same(scores[order], moved):
                self.report(
                    "order_dependent",
                    f"The scores depend on the order of the paths: {where} in another order got "
                    f"other scores ({_difference(scores[order], moved)}). Treat group.paths as a "
                    "set; break ties by path.index.",
                )
        some = np.arange(0, n, 2)
        alone = (
            None if self.cls.joint else self.score(method, self.group(traces).subset(some), where)
        )
        if alone is not None and not self.same(scores[some], alone):
            self.report(
                "group_dependent",
                f"The score of a path depends on the other paths, but joint is False: half of "
                f"{where} got other scores ({_difference(scores[some], alone)}). Set joint = True "
                "and inherit SignalGenerator.",
            )

    def check_continuation(self, method: SignalGenerator) -> None:
        """Equal prefixes must get equal scores, however the paths go on."""
        if self.cls.type is SignalType.CONTROL and Capability.OUTCOME in self.cls.requires:
            return
        traces = samples.unfinished()
        scores = self.score(method, self.group(traces), "eight unfinished paths")
        others = self.group(samples.with_another_ending(traces))
        changed = self.score(method, others, "eight unfinished paths")
        if scores is not None and changed is not None and not self.same(scores, changed):
            self.report(
                "past_checkpoint",
                "The method looks past the checkpoint: paths with equal prefixes got other scores "
                f"when they went on differently ({_difference(scores, changed)}). Score from the "
                "prefix only.",
            )

    def check_needed(self, method: SignalGenerator) -> None:
        """Whatever is declared must be read somewhere in the samples."""
        for capability in sorted(self.cls.requires & _READABLE):
            fewer = self.cls.requires - {capability}
            groups = [self.group(traces(), fewer) for traces in _SAMPLES.values()]
            try:
                for group in groups:
                    method.score(group)
            except UndeclaredCapability:
                continue
            except Exception as error:
                self.report_exception(error, "a group without " + capability.value)
                continue
            self.report(
                "declares_too_much",
                f"The method requires Capability.{capability.name} but never reads it, which "
                "excludes engines for nothing: remove it from 'requires'.",
            )

    def same(self, a: np.ndarray, b: np.ndarray) -> bool:
        return np.allclose(a, b, rtol=self.tolerance, atol=self.tolerance, equal_nan=True)

    # --- learnable methods -------------------------------------------------------------------

    def train(self) -> bool:
        """Fit on a few prefixes and save to the folder; False when that does not work."""
        cls: Any = self.cls
        group = self.group(samples.varied())
        try:
            cls().score(group)
            self.report("unfitted_use", "score worked before fit: call self.check_fitted() in it.")
        except NotTrained:
            pass
        except Exception as error:
            self.report(
                "unfitted_use",
                f"score before fit raised {_describe(error)}: call self.check_fitted() first.",
            )
        options = {k: v for k, v in _SHORT_FIT.items() if k in {f.name for f in fields(cls)}}
        train, valid = (
            samples.labelled_prefixes(6, 4, seed=1),
            samples.labelled_prefixes(3, 4, seed=2),
        )
        try:
            method = cls(**options).fit(train, valid, self.context())
            method.save(self.folder)
        except Exception as error:
            self.report("fit", f"fit and save on 24 made-up prefixes raised {_describe(error)}.")
            return False
        loaded = self.ready()  # first, since it may give the backend what both need: an adapter
        if loaded is None:
            return False
        scores, reloaded = (self.score(m, group, "twelve varied paths") for m in (method, loaded))
        if scores is not None and reloaded is not None and not self.same(scores, reloaded):
            self.report(
                "save_load",
                "After save and load the scores differ from those after fit "
                f"({_difference(scores, reloaded)}): write and read all of the learned state.",
            )
        return True


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _difference(a: np.ndarray, b: np.ndarray) -> str:
    """The path whose score changed most."""
    with np.errstate(invalid="ignore"):  # inf - inf
        change = np.nan_to_num(np.abs(a - b))
    i = int(np.argmax(np.where(np.isnan(a) != np.isnan(b), np.inf, change)))
    return f"path {i}: {a[i]:.6g}, then {b[i]:.6g}"


def _fingerprint(group: PathGroup) -> object:
    """Everything a method can reach, as a value to compare."""

    def freeze(value: object) -> object:
        if isinstance(value, np.ndarray):
            return (value.dtype.str, value.shape, value.tobytes())
        if isinstance(value, dict):
            return tuple((str(k), freeze(v)) for k, v in value.items())
        if isinstance(value, str | int | float | bool | None):
            return value
        return id(value)

    paths = [tuple((k, freeze(v)) for k, v in vars(path).items()) for path in group.paths]
    return [tuple((k, freeze(v)) for k, v in vars(group).items()), paths]


if __name__ == "__main__":  # see check_method_file
    _cls = load_method_file(FilePath(sys.argv[1]))
    with tempfile.TemporaryDirectory() as _folder:
        _method = _Examination(_cls, print, FilePath(_folder)).ready()
        assert _method is not None, "check_method has got it ready before"
        print(_method.score(samples.group(samples.varied(), _cls.requires)).tolist())

"""Rules that the repository keeps: the direction of imports, and a README that is true."""

import ast
from pathlib import Path

import pytest

from prunebench import backend as contract
from prunebench import readme, registry
from prunebench.backends._internals import CachedInternals
from prunebench.backends._openaireader import ReaderInternals
from prunebench.backends._vllm_session import VllmInternals

ROOT = Path(__file__).parent.parent
LEAVES_ONLY = {"torch", "transformers", "vllm", "openai", "peft", "tenacity"}
TRAINERS = {"train", "cachereader", "prefixstore", "rmtrain"}
"""Files that only `fit` imports."""
LEVELS = [
    {"types", "traces", "errors", "cost", "endpoint"},
    {"method", "backend", "metrics", "stats", "select", "vote", "storage", "modes", "grading"}
    | {"pruning"}
    | {"mathequal", "tablefile", "calibration", "stopping", "guideline"},
    {
        "granted",
        "readerfiles",
        "prmformats",
        "openaiformat",
        "replycache",
        "fakeendpoint",
        "sandbox",
    },
    {"endpointclient", "rewardmodel", "rewardserver", "rewardvllm"},
    {
        "registry",
        "compat",
        "datasets",
        "labels",
        "evaluate",
        "references",
        "drawn",
        "cells",
        "bankfile",
        "checkpoints",
    },
    {"bank", "scores"},
    {"imported", "traceformats"},
    {"tracereader"},
    {"importing"},
    {"filling"},
    {"engine", "config", "loading", "samples", "declaration", "conformance", "prefixstore"},
    {"cachereader", "statestore", "rmtrain"},
    {"members"},
    {"lab", "report", "environment"},
    {"protocols", "scoring", "trainfirst", "probing", "plans"},
    {"execution"},
    {"online"},
    {"runner", "dryrun"},
    {"train", "sweep", "job", "compose", "cli", "readme", "doctor", "export"} | {"advice"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Modules a file imports, and whether it does so when it is loaded."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        at_load = node in tree.body
        if isinstance(node, ast.Import):
            found += [(alias.name, at_load) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "prunebench":
                found += [(f"prunebench.{alias.name}", at_load) for alias in node.names]
            else:
                found.append((node.module, at_load))
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "prunebench").glob("*.py")), ids=lambda p: p.stem)
def test_the_core_imports_one_way_and_no_heavy_library(path):
    own = LEVEL.get(path.stem)
    if path.stem in ("__init__", "__main__"):
        return
    assert own is not None, f"{path.stem} has no place in the order of imports"
    for module, at_load in imports(path):
        if at_load and path.stem not in TRAINERS:
            assert module.split(".")[0] not in LEAVES_ONLY, module
        if at_load and module.startswith("prunebench."):
            other = module.split(".")[1]
            if other in LEVEL:
                assert LEVEL[other] <= own, f"{path.stem} imports {other}, which is above it"


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*.py")), ids=lambda p: p.stem)
def test_methods_import_the_contract_and_nothing_of_the_runner(path):
    for module, at_load in imports(path):
        if at_load:
            assert module.split(".")[0] not in LEAVES_ONLY, module
        if module.startswith("prunebench."):
            allowed = {"method", "errors", "types", "metrics", "methods", "backend"}
            allowed |= {"cachereader", "statestore", "rewardmodel", "prmformats", "rmtrain"}
            allowed |= {"checkpoints", "endpoint", "grading", "sandbox", "cost"}
            allowed |= {"prefixstore", "rewardserver", "rewardvllm", "members"}
            assert module.split(".")[1] in allowed, module


NEEDS = {
    "PROBE": ["Backend.tokenize", "Internals.probe", "Internals.next_logprobs"],
    "HIDDEN_STATES": ["Backend.start_token", "Backend.encode", "Internals.hidden_states",
                      "Internals.iter_hidden_states", "Internals.unembed"],
    "KV_CACHE": ["Backend.encode", "Backend.load_adapter", "Internals.read"],
    "CACHE_READER": ["Backend.encode", "Backend.load_reader", "Internals.reader_scores"],
    "OUTCOME": ["Session.outcomes"],  # stored paths: replay only
    "GRADIENTS": ["Backend.model"],
}  # fmt: skip


INTERNALS = {
    "fake": CachedInternals,
    "imported": CachedInternals,  # it has none, and claims none
    "transformers": CachedInternals,
    "vllm": VllmInternals,
    "openai": ReaderInternals,
}


@pytest.mark.parametrize("name", registry.backends())
def test_an_engine_writes_what_it_claims(name):
    """The raising methods of the contract are for engines that do not provide the capability."""
    cls, internals = registry.backends()[name], INTERNALS[name]
    provided = {capability.name for capability in cls().provides}
    if name == "openai":  # with a reader that the server is told to run
        provided |= {"CACHE_READER"}
    for capability, needs in NEEDS.items():
        for needed in needs if capability in provided else ():
            base, method = needed.split(".")
            own = cls if base == "Backend" else internals
            assert getattr(own, method) is not getattr(getattr(contract, base), method), needed


def test_every_raising_method_of_the_contract_belongs_to_a_capability():
    tree = ast.parse(Path(contract.__file__).read_text())
    raising = {
        f"{cls.name}.{method.name}"
        for cls in tree.body
        if isinstance(cls, ast.ClassDef)
        for method in cls.body
        if isinstance(method, ast.FunctionDef)
        and any(isinstance(node, ast.Raise) for node in ast.walk(method))
    }
    assert raising == {needed for needs in NEEDS.values() for needed in needs}


def test_the_method_table_of_the_readme_is_true():
    text = (ROOT / "README.md").read_text()
    assert readme.updated(text) == text, "run python -m prunebench.readme"


def test_the_example_of_the_readme_keeps_the_contract(tmp_path):
    from prunebench.conformance import check_method, load_method_file

    text = (ROOT / "README.md").read_text()
    code = text.split("`methods/my_method.py`:")[1].split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 20
    file = tmp_path / "my_method.py"
    file.write_text(code)
    assert check_method(load_method_file(file), name="my_method") == []


def test_files_stay_small():
    for path in [*(ROOT / "prunebench").rglob("*.py"), *(ROOT / "methods").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 450, path

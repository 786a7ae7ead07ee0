"""Banks of paths that were made elsewhere: where they are, what they hold, and runs on them.

    <bank.dir>/imported/<name>/import.json   what was imported, for people and for runs
                               tokenizer.json             where one was named
                               manifest.json, problems/   as in every trace bank (`bank.py`)

`bank=NAME` on the command line chooses the dataset and the backend called `imported`; `connect`
tells them which bank is meant. How files become banks is in `importing.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.backends.imported import ImportedBackend
from prunebench.bank import Bank
from prunebench.datasets import Dataset
from prunebench.errors import ConfigError, DamagedFile, UnknownName
from prunebench.modes import Mode
from prunebench.types import Problem

if TYPE_CHECKING:
    from prunebench.config import RunConfig

FACTS = "import.json"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an imported bank: the content of `import.json`.

    Attributes
    ----------
    name : of the bank.
    model, dataset : names for tables.
    grading : answer style under which the answers were read and compared.
    source : the file, as it was named.
    key : what determines the bank (see `Bank`).
    holds : capabilities that at least one path opens.
    n_paths : paths of the problem that has the fewest.
    longest : tokens of the longest path.
    early_every : tokens between two early answers, one entry per distance that occurs.
    paths_with : how many paths have each of the fields that may be missing, and in all.
    problems : id, question and answer of each, in the order of the file.
    """

    name: str
    model: str
    dataset: str
    grading: str
    source: str
    key: dict[str, Any]
    holds: list[str]
    n_paths: int
    longest: int
    early_every: list[int]
    paths_with: dict[str, int]
    problems: list[dict[str, str]]


def folder_of(root: str | Path, name: str) -> Path:
    """The folder of an imported bank under `bank.dir`."""
    return Path(root) / "imported" / name


def read_facts(folder: Path) -> Facts:
    """What was imported into a folder. Raises `UnknownName` when nothing was."""
    path = folder / FACTS
    try:
        return Facts(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        known = [file.parent.name for file in folder.parent.glob(f"[!.]*/{FACTS}")]
        raise UnknownName("imported bank", folder.name, known) from None
    except (OSError, ValueError, TypeError) as error:
        raise DamagedFile(
            f"{path} cannot be read ({error}). Delete the folder {folder} and import its paths "
            f"again."
        ) from error


@dataclass(kw_only=True)
class Imported(Dataset):
    """The problems of an imported bank: `bank=NAME`.

    Attributes
    ----------
    folder : of the bank; set by `bank=NAME`.
    """

    name: str = "imported"
    folder: str = ""

    def load_all(self) -> list[Problem]:
        if not self.folder:
            raise ConfigError(
                "'dataset=imported' needs the name of a bank: give bank=NAME instead."
            )
        return [Problem(**problem) for problem in read_facts(Path(self.folder)).problems]


def connect(run: RunConfig) -> None:
    """Tell dataset, backend and model of a run with `bank.name` which imported bank is meant."""
    assert run.bank.name is not None
    facts = read_facts(folder := folder_of(run.bank.dir, run.bank.name))
    if run.mode is Mode.online:
        raise ConfigError(
            f"mode=online needs an engine that runs the model. Got bank={run.bank.name}, whose "
            f"paths are complete; use mode=replay."
        )
    if not isinstance(run.dataset, Imported) or not isinstance(run.backend, ImportedBackend):
        raise ConfigError(
            f"'bank.name={run.bank.name}' goes with the dataset and the backend called 'imported'. "
            f"Give bank={run.bank.name} instead, without dataset=, model= and backend=."
        )
    run.dataset.folder = str(folder)
    run.dataset.name, run.dataset.grading = facts.dataset, facts.grading
    run.model.name = facts.model
    run.model.sampling.max_new_tokens = facts.longest
    run.backend.name, run.backend.source = facts.name, facts.source
    run.backend.holds, run.backend.n_paths = facts.holds, facts.n_paths
    tokenizer = folder / TOKENIZER
    run.backend.tokenizer = str(tokenizer) if tokenizer.is_file() else ""


def open_bank(root: str | Path, name: str) -> Bank:
    """The trace bank with the imported paths."""
    folder = folder_of(root, name)
    return Bank.at(folder, read_facts(folder).key)

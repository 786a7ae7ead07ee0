"""Where problems come from: the embedded task, a local JSON or JSONL file, the Hugging Face hub.

A dataset is a dataclass; its fields are its Hydra options. Problems get an id from their content,
so that the same problem is the same file in every trace bank.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prunebench.errors import ConfigError, DamagedFile
from prunebench.types import Capability, Problem

MATH_PROMPT = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
"""The paper's prompt for mathematics (arXiv 2604.16029, section 4)."""


@dataclass(kw_only=True)
class Dataset(ABC):
    """A list of problems with a prompt.

    Attributes
    ----------
    name : the short name used in tables and banks.
    limit : use only the first few problems.
    prompt : template of the user's turn for models that bring none; `{question}` is replaced.
    answer : how answers are read and compared: `math`, `choice` or `line`.
    """

    name: str = "???"
    limit: int | None = None
    prompt: str = MATH_PROMPT
    answer: str = "math"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(
                f"The 'dataset.limit' parameter must be at least 1 or null. Got {self.limit} "
                f"instead."
            )

    @abstractmethod
    def load_all(self) -> list[Problem]:
        """Every problem, in a fixed order."""

    @cached_property
    def all_problems(self) -> list[Problem]:
        problems = self.load_all()
        if not problems:
            raise ConfigError(f"The dataset {self.name!r} holds no problems.")
        return problems

    def problems(self) -> list[Problem]:
        """The problems to work on: all of them, or the first `limit`."""
        return self.all_problems[: self.limit]

    def identity(self) -> dict[str, Any]:
        """Name and content hash of the whole dataset, whatever the limit."""
        digest = hashlib.sha256("\n".join(p.id for p in self.all_problems).encode())
        return {"name": self.name, "content": digest.hexdigest()[:16]}

    @property
    def provides(self) -> frozenset[Capability]:
        """STEP_CHECK when the truth of every step is known."""
        return frozenset({Capability.STEP_CHECK} if self.check_steps else ())

    @property
    def check_steps(self) -> Callable[[str, str], bool] | None:
        """`(question, prefix text) -> all finished steps are right`, where that is known."""
        return None


@dataclass(kw_only=True)
class Arithmetic(Dataset):
    """Integer expressions for the embedded model (`prunebench/tiny/task.py`).

    Attributes
    ----------
    seed : draws fresh problems; none of them occurs in the model's training data.
    size : how many problems there are.
    hard : more operators than in training.
    """

    name: str = "arithmetic"
    prompt: str = (
        "Compute {question}\nPlease reason step by step, and put your final answer within "
        "\\boxed{}."
    )
    seed: int = 0
    size: int = 24
    hard: bool = False

    def load_all(self) -> list[Problem]:
        from prunebench.tiny.task import make_problems

        if self.size < 1:
            raise ConfigError(
                f"The 'dataset.size' parameter must be at least 1. Got {self.size} instead."
            )
        drawn = make_problems(self.seed, self.size, "eval", hard=self.hard)
        return [make_problem(question, answer) for question, answer in drawn]

    @property
    def check_steps(self) -> Callable[[str, str], bool]:
        from prunebench.tiny.task import check_prefix

        return check_prefix


@dataclass(kw_only=True)
class ArithmeticHard(Arithmetic):
    """Arithmetic with more operators than the embedded model saw in training."""

    name: str = "arithmetic_hard"
    hard: bool = True


@dataclass(kw_only=True)
class File(Dataset):
    """A local `.json` (list of objects) or `.jsonl` file.

    Attributes
    ----------
    path : the file.
    question_field, answer_field : names of the two fields that are read.
    """

    name: str = "file"
    path: str = "???"
    question_field: str = "problem"
    answer_field: str = "answer"

    def load_all(self) -> list[Problem]:
        path = Path(self.path)
        if not path.is_file():
            raise ConfigError(
                f"The dataset file {self.path!r} does not exist. Give 'dataset.path=' a .json or "
                f".jsonl file."
            )
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"The dataset file {path} cannot be read: {error.strerror}."
            ) from error
        try:
            rows = (
                [json.loads(line) for line in text.split("\n") if line.strip()]
                if path.suffix == ".jsonl"
                else json.loads(text)
            )
        except ValueError as error:
            raise DamagedFile(f"The dataset file {path} is not valid JSON: {error}.") from error
        if not isinstance(rows, list):
            raise ConfigError(f"The dataset file {path} must hold a list of objects.")
        return from_rows(rows, self.question_field, self.answer_field, str(path))


@dataclass(kw_only=True)
class Hub(Dataset):
    """A dataset of the Hugging Face hub; needs `pip install prunebench[datasets]`.

    Attributes
    ----------
    id, split, revision : what to load.
    question_field, answer_field : names of the two fields that are read.
    """

    id: str = "???"
    split: str = "train"
    revision: str | None = None
    question_field: str = "problem"
    answer_field: str = "answer"

    def load_all(self) -> list[Problem]:
        try:
            datasets = importlib.import_module("datasets")  # the library, not this module
        except ImportError as error:
            raise ConfigError(
                "Datasets of the hub need the package 'datasets': "
                "pip install 'prunebench[datasets]'. Or use a local file: dataset=file "
                "dataset.path=problems.jsonl."
            ) from error
        try:
            rows = datasets.load_dataset(self.id, split=self.split, revision=self.revision)
        except Exception as error:
            raise ConfigError(
                f"The dataset {self.id!r} could not be loaded from the hub "
                f"({type(error).__name__}: {str(error)[:200]}). Check the network, or "
                f"use a local file: dataset=file dataset.path=problems.jsonl."
            ) from error
        return from_rows(rows, self.question_field, self.answer_field, self.id)


def make_problem(question: str, answer: str) -> Problem:
    """A problem with an id made from its content."""
    digest = hashlib.sha256(json.dumps([question, answer]).encode()).hexdigest()[:12]
    return Problem(id=f"p-{digest}", question=question, answer=answer)


def from_rows(
    rows: Iterable[Any], question_field: str, answer_field: str, source: str
) -> list[Problem]:
    """Problems from objects with two named fields; repeated problems are taken once."""
    problems: dict[str, Problem] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or question_field not in row or answer_field not in row:
            fields = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise ConfigError(
                f"Entry {number} of {source} must have the fields {question_field!r} and "
                f"{answer_field!r}. Found: {fields}. Set 'dataset.question_field=' and "
                f"'dataset.answer_field='."
            )
        question, answer = str(row[question_field]), re.sub(r"\s+", " ", str(row[answer_field]))
        problem = make_problem(question, answer.strip())
        problems[problem.id] = problem
    return list(problems.values())

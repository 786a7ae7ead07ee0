"""Where problems come from: the embedded task, a local file, the Hugging Face hub.

A dataset is a dataclass; its fields are its Hydra options. Problems get an id from their content,
so that the same problem is the same file in every trace bank.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import logging
import re
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prunebench import grading, tablefile
from prunebench.errors import ConfigError
from prunebench.types import Capability, Problem

logger = logging.getLogger(__name__)

MATH_PROMPT = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
"""The paper's prompt for mathematics (arXiv 2604.16029, section 4)."""
CHOICE_PROMPT = (
    "{question}\nPlease show your choice in the answer field with only the choice letter, "
    'e.g., "ANSWER": "C".'
)
"""The paper's prompt for multiple choice."""
QUESTION_FIELDS = ("problem", "question", "Problem", "Question", "prompt", "input")
ANSWER_FIELDS = ("answer", "gold_answer", "gold", "Answer", "target", "expected_answer")


@dataclass(kw_only=True)
class Dataset(ABC):
    """A list of problems with a prompt.

    Attributes
    ----------
    name : the short name used in tables and banks.
    limit : use only the first few problems.
    prompt : template of the user's turn for models that bring none; `{question}` is replaced.
    grading : how answers are read and compared, for models that bring no way of their own: `math`,
        `choice`, `integer`, `line`, or `package.module:function`, a function of yours, which counts
        whatever the model brings: `(text, gold) -> (answer or None, right)`, or `-> right`.
    """

    name: str = "???"
    limit: int | None = None
    prompt: str | None = MATH_PROMPT
    grading: str | None = "math"

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
    prompt: str | None = (
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
class Table(Dataset):
    """Rows with named fields, of which some are the question, the gold answer and the options.

    A field of a field is named with a dot (`extra.answer`). Problems that occur twice are taken
    once. Every problem needs a question and an answer.

    Attributes
    ----------
    question : field of the question; several fields are joined by a blank line. Null takes the
        first of `QUESTION_FIELDS` that is there.
    answer : field of the gold answer. Null takes the first of `ANSWER_FIELDS` that is there.
    answer_after : the gold answer is what follows the last occurrence of this text in its field.
    options : field of the options of multiple choice: a list, or a mapping from letters to texts,
        or either as JSON text. Several fields hold one option each; then they are put into an order
        that depends on the problem's content alone, since the right one stands first as a rule.
        Options are written below the question; the answer is a letter or the text of one option.
    grading, prompt : null takes `choice` and its prompt where there are options, else `math`.
    """

    grading: str | None = None
    prompt: str | None = None
    question: Any = None
    answer: str | None = None
    answer_after: str | None = None
    options: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.grading = self.grading or ("choice" if self.options else "math")
        if self.prompt is None:
            self.prompt = CHOICE_PROMPT if self.grading == "choice" else MATH_PROMPT

    @abstractmethod
    def rows(self) -> tuple[Iterable[Any], str]:
        """The rows, and what to call their source in errors."""

    def load_all(self) -> list[Problem]:
        rows, source = self.rows()
        problems: dict[str, Problem] = {}
        answers: dict[str, str] = {}
        for number, row in enumerate(rows):
            problem = self._problem(row, f"Entry {number} of {source}")
            known = answers.setdefault(problem.question, problem.answer)
            if known != problem.answer:
                logger.warning(
                    "%s has a question twice, with the answers %r and %r; both are kept.",
                    source,
                    known,
                    problem.answer,
                )
            problems[problem.id] = problem
        return list(problems.values())

    def _problem(self, row: Any, where: str) -> Problem:
        if not isinstance(row, dict):
            raise ConfigError(f"{where} must be an object with fields. Got a {_kind(row)} instead.")
        names = self.question or first_of(QUESTION_FIELDS, row, where, "question")
        names = [names] if isinstance(names, str) else names
        question = "\n\n".join(text_at(row, name, where) for name in names)
        field = self.answer or first_of(ANSWER_FIELDS, row, where, "answer")
        gold = text_at(row, field, where)
        if self.answer_after is not None:
            _, mark, gold = gold.rpartition(self.answer_after)
            if not mark or not gold.strip():
                raise ConfigError(
                    f"{where}: the field {field!r} has nothing behind {self.answer_after!r}, which "
                    f"'dataset.answer_after=' says is before the answer."
                )
        gold = re.sub(r"\s+", " ", gold).strip()
        if self.options:
            question, gold = self._with_options(row, question, gold, where)
        fault = grading.gold_fault(gold, self.grading or "")
        if fault is not None:
            raise ConfigError(
                f"{where}: the answer {fault} with 'dataset.grading={self.grading}'. Got {gold!r} "
                f"instead."
            )
        return make_problem(question, gold, self.label(row, where))

    def _with_options(self, row: Any, question: str, gold: str, where: str) -> tuple[str, str]:
        """The question with its options below, and the letter of the right one."""
        if isinstance(self.options, str):
            options = as_options(value_at(row, self.options, where), where)
        else:
            texts = {str(v).strip() for name in self.options if (v := value_at(row, name, where))}
            options = lettered(sorted(texts, key=lambda t: content_hash(question, t)), where)
        right = {letter for letter, text in options.items() if " ".join(text.split()) == gold}
        if gold.strip("().").upper() in options and isinstance(self.options, str):
            right.add(gold.strip("().").upper())
        if len(right) != 1:
            raise ConfigError(
                f"{where}: the answer must be the letter or the text of one option. Got {gold!r} "
                f"with the options {options}."
            )
        listing = "\n".join(f"{letter}) {text}" for letter, text in options.items())
        return f"{question.rstrip()}\n\n{listing}", right.pop()

    def label(self, row: Any, where: str) -> str:
        """What a problem's id begins with."""
        return "p"


@dataclass(kw_only=True)
class Local(Table):
    """A file of your own: `.json` (a list of objects), `.jsonl`, `.csv`, `.tsv` or `.parquet`.

    Attributes
    ----------
    path : the file.
    id : field whose value the ids of the problems begin with.
    name : in tables and banks; null takes the name of the file.
    """

    name: str | None = None  # type: ignore[assignment]  # filled in below
    path: str = "???"
    id: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = self.name or Path(self.path).stem

    def rows(self) -> tuple[Iterable[Any], str]:
        return tablefile.read(Path(self.path)), self.path

    def label(self, row: Any, where: str) -> str:
        if self.id is None:
            return "p"
        return re.sub(r"[^A-Za-z0-9_]+", "-", text_at(row, self.id, where)).strip("-")[:40] or "p"


@dataclass(kw_only=True)
class File(Local):
    """The same under its first name, which banks filled with it bear."""

    name: str = "file"


@dataclass(kw_only=True)
class Hub(Table):
    """A dataset of the Hugging Face hub; needs `pip install prunebench[datasets]`.

    Attributes
    ----------
    id, config, split, revision : what to load.
    """

    id: str = "???"
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    def rows(self) -> tuple[Iterable[Any], str]:
        own = "Or use a local file: dataset=local dataset.path=FILE."
        try:
            library = importlib.import_module("datasets")  # the library, not this module
        except ImportError as error:
            raise ConfigError(
                f"Datasets of the hub need the package 'datasets': "
                f"pip install 'prunebench[datasets]'. {own}"
            ) from error
        try:
            rows = library.load_dataset(
                self.id, self.config, split=self.split, revision=self.revision
            )
        except Exception as error:
            cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            remedy = "Check the network."
            if any(word in str(error).lower() for word in ("gated", "401", "403", "authenticat")):
                remedy = (
                    f"Its owners ask for consent first: accept their terms on "
                    f"https://huggingface.co/datasets/{self.id} and log in with 'hf auth login'."
                )
            raise ConfigError(
                f"The dataset {self.id!r} could not be loaded from the hub ({cause}). {remedy} "
                f"{own}"
            ) from error
        return rows, self.id


def content_hash(*parts: str) -> str:
    """12 hexadecimal digits that identify some texts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def make_problem(question: str, answer: str, label: str = "p") -> Problem:
    """A problem with an id made from its content, behind a label."""
    return Problem(id=f"{label}-{content_hash(question, answer)}", question=question, answer=answer)


# ---- fields


def first_of(known: Sequence[str], row: dict[str, Any], where: str, what: str) -> str:
    """The first of the usual names that a row has; `ConfigError` when it has none of them."""
    for name in known:
        if name in row:
            return name
    raise ConfigError(
        f"{where} has none of the usual fields for the {what} ({', '.join(known)}). It has: "
        f"{', '.join(map(str, row))}. Name it with 'dataset.{what}='."
    )


def value_at(row: dict[str, Any], name: str, where: str) -> Any:
    """The value of a field, or of a field of a field (`extra.answer`).

    Raises `ConfigError` naming the fields that are there.
    """
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            there = [str(key) for key in row]
            near = difflib.get_close_matches(name, there, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ConfigError(
                f"{where} has no field {name!r}.{hint} It has: {', '.join(there)}. Name fields "
                f"with 'dataset.question=', 'dataset.answer=' and 'dataset.options='."
            )
        value = value[part]
    return value


def text_at(row: dict[str, Any], name: str, where: str) -> str:
    """A field as text: texts as they are, numbers in decimal (12.0 as 12)."""
    value = value_at(row, name, where)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    empty = value is None or value != value or (isinstance(value, str) and not value.strip())
    if empty:
        raise ConfigError(
            f"{where}: the field {name!r} is empty. Give it a value, or leave the entry out."
        )
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise ConfigError(
            f"{where}: the field {name!r} must be a text or a number. Got a {_kind(value)} instead."
        )
    return str(value)


def as_options(value: Any, where: str) -> dict[str, str]:
    """Options by letter, from a list, a mapping from letters, or JSON text of either."""
    given = value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if isinstance(value, dict) and all(re.fullmatch("[A-Za-z]", str(k)) for k in value):
        # a column of a parquet file has every letter in every row
        texts = {str(k).upper(): str(v).strip() for k, v in sorted(value.items()) if v is not None}
        return lettered(list(texts.values()), where, list(texts))
    if isinstance(value, list):
        return lettered([str(v).strip() for v in value], where)
    raise ConfigError(
        f"{where}: options must be a list, or a mapping from letters to texts. Got {given!r} "
        f"instead."
    )


def lettered(
    texts: Sequence[str], where: str, letters: Sequence[str] = string.ascii_uppercase
) -> dict[str, str]:
    """Options by letter. Raises `ConfigError` unless there are 2 to 26."""
    if not 2 <= len(texts) <= 26:
        raise ConfigError(f"{where} must have 2 to 26 options. It has {len(texts)}: {texts}.")
    return dict(zip(letters, texts, strict=False))


def _kind(value: Any) -> str:
    return {list: "list", dict: "mapping", type(None): "null"}.get(
        type(value), type(value).__name__
    )

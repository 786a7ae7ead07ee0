"""Where trained weights of learnable methods lie, and what identifies them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prunebench.errors import ConfigError, DamagedFile, NotTrained
from prunebench.storage import write_atomic

SHIPPED = Path(__file__).parent / "tiny" / "trained"
"""Weights that ship with prunebench, for the embedded model."""
RECORD = "training_problems.json"
"""The file of a checkpoint that says on which problems it was trained."""


def trained_folder(output: str, model: str, method: str) -> Path:
    """Where `prunebench train` puts the weights of a method for a model."""
    return Path(output) / model / method


def find(
    method: str, model: str, *, override: str | None, output: str, embedded: bool = False
) -> Path:
    """The folder with trained weights: the one named, else your own training, else shipped
    (for the embedded model only).

    Raises
    ------
    NotTrained
        With the command that trains the method.
    """
    if override is not None:
        if not Path(override).is_dir():
            raise NotTrained(
                f"The 'method.checkpoint' parameter must be a folder with trained weights. Got "
                f"{override!r} instead, which is not a folder."
            )
        return Path(override)
    candidates = [trained_folder(output, model, method)]
    if embedded:
        candidates.append(SHIPPED / method)
    for folder in candidates:
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    raise NotTrained(
        f"The method {method!r} has no trained weights for model {model!r} (looked in "
        f"{', '.join(map(str, candidates))}). Train it with 'python -m prunebench train "
        f"method={method} model={model}', or set 'method.checkpoint=' to a folder with trained "
        f"weights."
    )


def question_hash(question: str) -> str:
    """12 hexadecimal digits of a question's content: white space, capitals, dollar signs and
    variants of Unicode characters make no difference, and the answer plays no part."""
    content = unicodedata.normalize("NFKC", question).casefold().replace("$", "")
    return hashlib.sha256("".join(content.split()).encode()).hexdigest()[:12]


def record_training(folder: Path, dataset: str, questions: Iterable[str]) -> None:
    """Write beside the weights which problems they were trained and chosen on."""
    facts = {"dataset": dataset, "questions": sorted({question_hash(q) for q in questions})}
    write_atomic(folder / RECORD, json.dumps(facts).encode())


def training_problems(folder: Path) -> frozenset[str] | None:
    """`question_hash` of the problems that a checkpoint was trained on; None when there is no
    record."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return frozenset(json.loads(path.read_bytes())["questions"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(
            f"The record of training problems {path} cannot be read. Train again, or delete it: "
            f"then nothing is known of them."
        ) from error


def check_leakage(
    folder: Path, questions: Sequence[str], *, method: str, allow: bool, disjoint: bool
) -> list[str]:
    """What there is to say about training problems among the questions of an evaluation.

    Parameters
    ----------
    disjoint : known to have none, without a record.

    Raises
    ------
    ConfigError
        When there are some, unless `allow`.
    """
    known = training_problems(folder)
    if known is None:
        if disjoint:
            return []
        return [
            f"{method}: the weights in {folder} do not say which problems they were trained on. "
            f"If some of these are among them, the numbers are too good."
        ]
    leaked = [question for question in questions if question_hash(question) in known]
    if not leaked:
        return []
    shown = "; ".join(repr(" ".join(q.split())[:60]) for q in leaked[:3])
    fact = (
        f"{len(leaked)} of the {len(questions)} problems are among those that the weights of "
        f"{method!r} in {folder} were trained on ({shown}{', ...' if len(leaked) > 3 else ''})"
    )
    if allow:
        return [f"{fact}: its numbers here say nothing about new problems (allow_leakage=true)."]
    raise ConfigError(
        f"{fact}. Its numbers would say nothing about new problems. Evaluate on other problems, "
        f"train on others, or set allow_leakage=true."
    )


def fingerprint(folder: Path) -> str:
    """Hash of the names and contents of a checkpoint's files."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def check_model(method: str, trained_for: dict[str, Any], model: dict[str, Any]) -> None:
    """Raise `NotTrained` when weights were trained for another model than the one at hand.

    Both arguments are `Backend.identity()`; what does not change the weights is not compared.
    """
    for key in trained_for.keys() & model.keys() - {"engine", "dtype", "attention", "model"}:
        if trained_for[key] != model[key]:
            raise NotTrained(
                f"The trained weights of {method!r} belong to another model: {key} is "
                f"{model[key]!r} here and was {trained_for[key]!r} in training. Train it for this "
                f"model with 'python -m prunebench train method={method} model=<model>'."
            )

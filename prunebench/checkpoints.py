"""Where trained weights of learnable methods lie, and what identifies them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from prunebench.errors import NotTrained

SHIPPED = Path(__file__).parent / "tiny" / "trained"
"""Weights that ship with prunebench, for the embedded model."""


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

"""Faulty on purpose: opens a file when it is constructed."""

import os
from dataclasses import dataclass

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class Construction(PathSignal):
    """Higher = keep: longer text."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"

    def __post_init__(self) -> None:
        with open(os.devnull) as file:  # noqa: PTH123
            self.words = file.read().split()

    def score_path(self, path: Path) -> float:
        return float(len(path.text))

"""Faulty on purpose: never scores."""

from dataclasses import dataclass

import numpy as np

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class ScoresNothing(PathSignal):
    """Higher = keep: longer text."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"

    def score_path(self, path: Path) -> float:
        return np.nan

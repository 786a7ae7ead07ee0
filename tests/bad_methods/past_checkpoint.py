"""Faulty on purpose: reads how the path ends."""

from dataclasses import dataclass

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class PastCheckpoint(PathSignal):
    """Higher = keep: it ends right."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"

    def score_path(self, path: Path) -> float:
        return float(path.correct)

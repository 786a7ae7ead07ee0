"""Faulty on purpose: names no source that can be opened."""

from dataclasses import dataclass

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class Paper(PathSignal):
    """Higher = keep: longer text."""

    type = SignalType.I
    paper = "Somebody et al. 2025"

    def score_path(self, path: Path) -> float:
        return float(len(path.text))

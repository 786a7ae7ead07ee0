"""Faulty on purpose: leaves a note on the path."""

from dataclasses import dataclass

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class MutatesInputNotes(PathSignal):
    """Higher = keep: longer text."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"

    def score_path(self, path: Path) -> float:
        object.__setattr__(path, "length", len(path.text))
        return float(len(path.text))

"""Faulty on purpose: calls itself internal, but reads the text only."""

from dataclasses import dataclass

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class TypeMismatchInternal(PathSignal):
    """Higher = keep: longer text."""

    type = SignalType.III
    paper = "https://arxiv.org/abs/2604.16029"

    def score_path(self, path: Path) -> float:
        return float(len(path.text))

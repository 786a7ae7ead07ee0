"""Faulty on purpose: does not say which way the score points."""

from dataclasses import dataclass

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class Docstring(PathSignal):
    """Length of the text."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"

    def score_path(self, path: Path) -> float:
        return float(len(path.text))

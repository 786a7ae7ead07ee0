"""Faulty on purpose: the score depends on what was scored before."""

from dataclasses import dataclass

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class KeepsState(PathSignal):
    """Higher = keep: longer text."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"
    n_calls: int = 0

    def score_path(self, path: Path) -> float:
        self.n_calls += 1
        return float(len(path.text) + self.n_calls)

"""Faulty on purpose: fails on an empty prefix."""

from dataclasses import dataclass

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class Raises(PathSignal):
    """Higher = keep: a large token."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"

    def score_path(self, path: Path) -> float:
        return float(max(path.token_ids))

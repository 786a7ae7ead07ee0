"""Faulty on purpose: sorts the tokens in place."""

from dataclasses import dataclass

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class MutatesInput(PathSignal):
    """Higher = keep: a large median token."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"

    def score_path(self, path: Path) -> float:
        path.token_ids.sort()
        return float(path.token_ids[len(path.token_ids) // 2])

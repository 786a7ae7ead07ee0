"""Faulty on purpose: goes around the read-only flag."""

from dataclasses import dataclass

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class MutatesInputQuietly(PathSignal):
    """Higher = keep: a large median token."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"

    def score_path(self, path: Path) -> float:
        path.token_ids.setflags(write=True)
        path.token_ids[::-1].sort()
        return float(path.n_tokens)

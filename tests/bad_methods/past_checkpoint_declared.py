"""Faulty on purpose: declares that it reads how the path ends, and calls it a signal."""

from dataclasses import dataclass

from prunebench.method import Capability, Path, PathSignal, SignalType


@dataclass(kw_only=True)
class PastCheckpointDeclared(PathSignal):
    """Higher = keep: it ends right."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"
    requires = frozenset({Capability.OUTCOME})

    def score_path(self, path: Path) -> float:
        return float(path.correct)

"""Faulty on purpose: reads entropies, but calls itself external."""

from dataclasses import dataclass

from prunebench.method import Capability, Path, PathSignal, SignalType


@dataclass(kw_only=True)
class TypeMismatch(PathSignal):
    """Higher = keep: low entropy."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"
    requires = frozenset({Capability.ENTROPY})

    def score_path(self, path: Path) -> float:
        return -float(path.entropy.sum())

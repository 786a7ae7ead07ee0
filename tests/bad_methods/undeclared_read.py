"""Faulty on purpose: reads entropies that it did not declare."""

from dataclasses import dataclass

from prunebench.method import Capability, Path, PathSignal, SignalType


@dataclass(kw_only=True)
class UndeclaredRead(PathSignal):
    """Higher = keep: low entropy."""

    type = SignalType.III
    paper = "https://arxiv.org/abs/2604.16029"
    requires = frozenset({Capability.LOGPROBS})

    def score_path(self, path: Path) -> float:
        return float(path.logprobs.sum() - path.entropy.sum())

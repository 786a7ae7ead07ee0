"""Faulty on purpose: asks for log-probabilities and never reads them."""

from dataclasses import dataclass

from prunebench.method import Capability, Path, PathSignal, SignalType


@dataclass(kw_only=True)
class DeclaresTooMuch(PathSignal):
    """Higher = keep: low entropy."""

    type = SignalType.III
    paper = "https://arxiv.org/abs/2604.16029"
    requires = frozenset({Capability.LOGPROBS, Capability.ENTROPY})

    def score_path(self, path: Path) -> float:
        return -float(path.entropy.sum())

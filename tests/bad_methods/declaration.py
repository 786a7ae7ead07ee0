"""Faulty on purpose: requires is a set, which could change."""

from dataclasses import dataclass

from prunebench.method import Capability, Path, PathSignal, SignalType


@dataclass(kw_only=True)
class Declaration(PathSignal):
    """Higher = keep: low entropy."""

    type = SignalType.III
    paper = "https://arxiv.org/abs/2604.16029"
    requires = {Capability.ENTROPY}  # type: ignore[assignment]  # noqa: RUF012

    def score_path(self, path: Path) -> float:
        return -float(path.entropy.sum())

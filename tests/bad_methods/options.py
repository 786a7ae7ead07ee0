"""Faulty on purpose: an option of a kind that the configuration does not know."""

from dataclasses import dataclass
from typing import Literal

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class Options(PathSignal):
    """Higher = keep: longer text."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"

    unit: Literal["chars", "tokens"] = "chars"

    def score_path(self, path: Path) -> float:
        return float(len(path.text) if self.unit == "chars" else path.n_tokens)

"""Faulty on purpose: one column per path instead of one number."""

from dataclasses import dataclass

import numpy as np

from prunebench.method import PathGroup, SignalGenerator, SignalType


@dataclass(kw_only=True)
class WrongShape(SignalGenerator):
    """Higher = keep: longer text."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"

    def score(self, group: PathGroup) -> np.ndarray:
        return np.array([[float(len(p.text))] for p in group.paths])

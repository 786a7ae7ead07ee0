"""Faulty on purpose: the first of two equal texts scores higher."""

from dataclasses import dataclass

import numpy as np

from prunebench.method import PathGroup, SignalGenerator, SignalType


@dataclass(kw_only=True)
class OrderDependent(SignalGenerator):
    """Higher = keep: a text not seen before."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"

    def score(self, group: PathGroup) -> np.ndarray:
        seen: set[str] = set()
        scores = []
        for path in group.paths:
            scores.append(float(path.text not in seen))
            seen.add(path.text)
        return np.array(scores)

"""Faulty on purpose: centred on the group, but says that paths are scored alone."""

from dataclasses import dataclass

import numpy as np

from prunebench.method import PathGroup, SignalGenerator, SignalType


@dataclass(kw_only=True)
class GroupDependent(SignalGenerator):
    """Higher = keep: longer text."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"
    joint = False

    def score(self, group: PathGroup) -> np.ndarray:
        lengths = np.array([float(len(p.text)) for p in group.paths])
        return lengths - lengths.mean()

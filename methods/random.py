"""Random pruning: the reference that every signal has to beat.

Formula: S_i = u_i with u_i ~ U(0, 1), independent. Then E[avg@k|N] = avg@N for every k, so the
expected accuracy of the kept paths is that of no pruning; only the vote loses.

Source: the "random" row of "STOP" (arXiv 2604.16029, section 4, https://arxiv.org/abs/2604.16029).
Ours: u_i is drawn from the run's seed, the problem and the path, so that it depends neither on
the order of the paths nor on which others are alive.
"""

from dataclasses import dataclass

import numpy as np

from prunebench.method import PathGroup, SignalGenerator, SignalType


@dataclass(kw_only=True)
class Random(SignalGenerator):
    """Higher = keep, and means nothing. Scores every path, empty prefixes too."""

    type = SignalType.CONTROL
    paper = "control; arXiv 2604.16029, https://arxiv.org/abs/2604.16029"
    joint = False

    def score(self, group: PathGroup) -> np.ndarray:
        return np.array([group.rng(path).random() for path in group.paths], dtype=np.float64)

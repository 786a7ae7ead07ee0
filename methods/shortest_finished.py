r"""Shortest finished: paths that have ended by the checkpoint are kept, the shorter the better.

Formula, with T_i the tokens of path i and L the checkpoint:

    S_i = L - T_i  for a path that has ended;  S_i = -1  for all others, which are tied

Source: short-m@k of "Don't Overthink it. Preferring Shorter Thinking Chains for Improved LLM
Reasoning", arXiv 2505.17813 (https://arxiv.org/abs/2505.17813), which generates k paths in
parallel, stops when the first m have ended, and votes over these.
Ours: one checkpoint instead of the moment when the m-th path ends. Where fewer paths than slots
have ended, the other slots go to unfinished paths. Nothing is read but lengths.
"""

from dataclasses import dataclass

import numpy as np

from prunebench.method import PathGroup, SignalGenerator, SignalType


@dataclass(kw_only=True)
class ShortestFinished(SignalGenerator):
    """Higher = keep: ended earlier. In tokens before the checkpoint, from 0; -1 for a path that has
    not ended, an empty prefix included."""

    type = SignalType.I
    paper = "short-m@k of arXiv 2505.17813, https://arxiv.org/abs/2505.17813"

    joint = False

    def score(self, group: PathGroup) -> np.ndarray:
        left = [group.prefix_length - p.n_tokens if p.finished else -1 for p in group.paths]
        return np.array(left, dtype=np.float64)

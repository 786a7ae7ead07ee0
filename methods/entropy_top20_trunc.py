"""Negative mean entropy of the 20 most likely tokens, cut off: what a server's top 20 gives.

Formula: S_i = -(1/T) sum_t h_t with h_t = -sum over the 20 most likely v of P_t(v) log P_t(v), in
nats per token, the probabilities as they are.

Source: the inference script of arXiv 2604.16029 (https://arxiv.org/abs/2604.16029) computes a
truncated entropy of this kind (top 5, in bits) for its vote weights.
Ours: the top 20, in nats, as a score. h_t is no monotone measure of uncertainty: where P_t is so
flat that much of its mass lies outside the top 20, h_t falls while the true entropy rises.
`entropy` takes the whole vocabulary, `entropy_top20_renorm` divides by the mass of the top 20.
"""

from dataclasses import dataclass

import numpy as np

from prunebench.method import Capability, Path, PathSignal, SignalType


@dataclass(kw_only=True)
class EntropyTop20Trunc(PathSignal):
    """Higher = keep: low truncated entropy. In [-log 20, 0]; NaN for an empty prefix."""

    type = SignalType.III
    paper = "arXiv 2604.16029, its inference script, https://arxiv.org/abs/2604.16029"
    requires = frozenset({Capability.TOP_ENTROPY})

    def score_path(self, path: Path) -> float:
        if path.n_tokens == 0:
            return path.unscored("the prefix is empty")
        return -float(np.mean(path.top_entropy, dtype=np.float64))

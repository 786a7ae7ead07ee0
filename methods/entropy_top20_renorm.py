"""Negative mean entropy of the 20 most likely tokens, renormalised: certain paths are kept.

Formula: with M_t the mass of the 20 largest P_t(v) and h_t = -sum over them of P_t log P_t,

    S_i = -(1/T) sum_t H_t with H_t = h_t / M_t + log M_t,

the entropy of P_t restricted to its 20 most likely tokens and divided by M_t, in nats per token.

Source: what an API that returns 20 log-probabilities lets one compute of the entropy, one of the
two quantities behind the Type III row of arXiv 2604.16029 (appendix C.5,
https://arxiv.org/abs/2604.16029).
Ours: three conventions exist, and papers seldom say which is theirs. `entropy` takes the whole
vocabulary; this file renormalises, so that H_t is a true entropy, at most log 20, which ignores the
tail; `entropy_top20_trunc` leaves the tail out without renormalising.
"""

from dataclasses import dataclass

import numpy as np

from prunebench.method import Capability, Path, PathSignal, SignalType

from ._top20 import renormalised_entropy


@dataclass(kw_only=True)
class EntropyTop20Renorm(PathSignal):
    """Higher = keep: low entropy. In [-log 20, 0]; NaN for an empty prefix."""

    type = SignalType.III
    paper = "arXiv 2604.16029, appendix C.5, https://arxiv.org/abs/2604.16029"
    requires = frozenset({Capability.TOP_ENTROPY, Capability.TOP_MASS})

    def score_path(self, path: Path) -> float:
        if path.n_tokens == 0:
            return path.unscored("the prefix is empty")
        return -float(np.mean(renormalised_entropy(path.top_entropy, path.top_mass)))

"""Negative mean entropy of the next-token distributions: certain paths are kept.

Formula: S_i = -(1/T) sum_t H_t with H_t = -sum_v P_t(v) log P_t(v), in nats per token.

Source: entropy is one of the two quantities behind the Type III row of arXiv 2604.16029
(appendix C.5, https://arxiv.org/abs/2604.16029). The same mean, over one reasoning step and the
top 20 tokens, is the stopping signal of "Think Just Enough" (arXiv 2510.08146,
https://arxiv.org/abs/2510.08146).
Ours: H_t is exact, over the whole vocabulary, of the raw distribution (before temperature, top-p
and top-k); the mean runs over the prefix; there is no threshold, the scores only rank.
"""

from dataclasses import dataclass

import numpy as np

from prunebench.method import Capability, Path, PathSignal, SignalType


@dataclass(kw_only=True)
class Entropy(PathSignal):
    """Higher = keep: low entropy. At most 0; NaN for an empty prefix."""

    type = SignalType.III
    paper = "arXiv 2604.16029, appendix C.5, https://arxiv.org/abs/2604.16029"
    requires = frozenset({Capability.ENTROPY})

    def score_path(self, path: Path) -> float:
        if path.n_tokens == 0:
            return np.nan
        return -float(np.mean(path.entropy, dtype=np.float64))

"""Mean log-probability of the sampled tokens: likely text is kept.

Formula: S_i = (1/T) sum_t log P_t(y_t) = -log(perplexity), in nats per token.

Source: perplexity is one of the two quantities behind the Type III row of arXiv 2604.16029
(appendix C.5, https://arxiv.org/abs/2604.16029); as a path weight, exp(S_i), it is the internal
probability of RPC (arXiv 2502.00511, https://arxiv.org/abs/2502.00511).
Ours: the sum stops at the checkpoint, and P_t is the raw distribution, before temperature,
top-p and top-k. It is the probability of the sampled token, not of the most likely one.
"""

from dataclasses import dataclass

import numpy as np

from prunebench.method import Capability, Path, PathSignal, SignalType


@dataclass(kw_only=True)
class MeanLogprob(PathSignal):
    """Higher = keep: the model found the path likely. At most 0; NaN for an empty prefix."""

    type = SignalType.III
    paper = "arXiv 2604.16029, appendix C.5, https://arxiv.org/abs/2604.16029"
    requires = frozenset({Capability.LOGPROBS})

    def score_path(self, path: Path) -> float:
        if path.n_tokens == 0:
            return np.nan
        return float(np.mean(path.logprobs, dtype=np.float64))

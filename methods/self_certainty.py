"""Self-certainty: distance of the next-token distributions from the uniform one.

Formula: S_i = (1/T) sum_t KL(U || P_t) = -(1/(T V)) sum_t sum_v log(V P_t(v)), in nats, where U is
uniform over the V tokens of the vocabulary.

Source: "Scalable Best-of-N Selection for Large Language Models via Self-Certainty", arXiv
2502.18581 (https://arxiv.org/abs/2502.18581).
Ours: the mean stops at the checkpoint and covers exactly the distributions that the T tokens were
drawn from (the public code is off by one position); the scores rank paths, without the paper's
Borda vote. The sum over the vocabulary is dominated by its unlikely tail, so it cannot be
approximated from the top tokens, and one P_t(v) = 0 makes the score +inf.
"""

from dataclasses import dataclass

import numpy as np

from prunebench.method import Capability, Path, PathSignal, SignalType


@dataclass(kw_only=True)
class SelfCertainty(PathSignal):
    """Higher = keep: far from uniform. At least 0; NaN for an empty prefix."""

    type = SignalType.III
    paper = "arXiv 2502.18581, https://arxiv.org/abs/2502.18581"
    requires = frozenset({Capability.SUM_LOGPROBS})

    def score_path(self, path: Path) -> float:
        if path.n_tokens == 0:
            return np.nan
        mean_sum = float(np.mean(path.sum_logprobs, dtype=np.float64))
        return -mean_sum / path.vocab_size - float(np.log(path.vocab_size))

"""AdaDec: how often the model was too unsure for plain decoding; paths with few such tokens stay.

Formula: S_i = -(1/T) sum_t [H_t > threshold], H_t = -sum_v P_t(v) log P_t(v) over the whole
vocabulary, in nats.

Source: "AdaDec", arXiv 2506.08980 (https://arxiv.org/abs/2506.08980): a decoder that looks ahead
wherever H_t exceeds a threshold, which is learned for each model by a logistic regression; the
authors' values run from 0.615 (Qwen3-1.7B) to 1.321 (Qwen3-0.6B).
Ours: the decoder's trigger becomes a score of paths, the share of tokens at which it fires; the
paper ranks no paths. The threshold must be set for each model. The default is near the lower of the
authors' values; on the embedded model about one token in twenty exceeds it. Shares of few tokens
tie often.
"""

from dataclasses import dataclass

import numpy as np

from prunebench.errors import ConfigError
from prunebench.method import Capability, Path, PathSignal, SignalType


@dataclass(kw_only=True)
class AdaDec(PathSignal):
    """Higher = keep: few uncertain tokens. In [-1, 0]; NaN for an empty prefix.

    Attributes
    ----------
    threshold : entropy above which a token counts as uncertain, in nats; set it for your model.
    """

    type = SignalType.III
    paper = "arXiv 2506.08980, https://arxiv.org/abs/2506.08980"
    requires = frozenset({Capability.ENTROPY})

    threshold: float = 0.7

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ConfigError(
                f"The 'threshold' parameter of AdaDec must be at least 0 nats. "
                f"Got {self.threshold!r} instead."
            )

    def score_path(self, path: Path) -> float:
        if path.n_tokens == 0:
            return path.unscored("the prefix is empty")
        return -float(np.mean(path.entropy > self.threshold))

"""OTV: one learned token reads the path's own cache, trained to grow surer as the path goes on.

Formula: S_i = w . h + b, with h the last-layer state of one learned token that runs after the
prefix on its key-value cache, with a LoRA adapter that is active for this token only. Its training
target after t tokens is a ramp, 0.5 + (p - 0.5) min(1, t / T), from one half to the outcome p.

Source: "One-Token Verification for Reasoning Correctness Estimation", arXiv 2603.01025
(https://arxiv.org/abs/2603.01025). The paper scores every position of complete paths in one pass.
Ours: `stop` with m = 1 and these targets, so the pair shows what the labels and the tokens do. No
code was published and the shape of the ramp is our reading; p is the Monte-Carlo label of the
prefix instead of the outcome of one path, and the positions are the labelled prefix lengths, which
can be read at any other. Early targets lie close to one half and teach little.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prunebench.errors import ConfigError
from prunebench.method import LabelledPrefix

from ._reader import CacheReader


@dataclass(kw_only=True)
class OTV(CacheReader):
    """Higher = keep: the logit of the value that the token reads from the prefix.

    Attributes
    ----------
    horizon : T, tokens after which the target is the label itself; 0 is the longest labelled
        prefix.
    checkpoint, n_tokens, rank, alpha, dropout, learning_rate, weight_decay, warmup, batch_size,
    epochs, eval_every, cache_gb, centred : as of `stop`.
    """

    paper = "arXiv 2603.01025, https://arxiv.org/abs/2603.01025"

    horizon: int = 0
    n_tokens: int = 1
    rank: int = 8
    alpha: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon < 0:
            raise ConfigError(
                f"The 'horizon' parameter of OTV must be at least 0. Got {self.horizon} instead."
            )

    def targets(self, examples: Sequence[LabelledPrefix]) -> Sequence[LabelledPrefix]:
        horizon = self.horizon or max((len(e.prefix_ids) for e in examples), default=1)
        return [
            replace(e, label=0.5 + (e.label - 0.5) * min(1.0, len(e.prefix_ids) / horizon))
            for e in examples
        ]

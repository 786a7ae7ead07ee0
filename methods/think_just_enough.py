r"""Think Just Enough: entropy of the first step; paths that begin with certainty are kept.

Formula: S_i = -mean over the tokens t of the first `steps` steps of H_t, where H_t is the entropy
of the 20 most likely tokens, renormalised (see `entropy_top20_renorm`), in nats.

Source: "Think Just Enough: Sequence-Level Entropy as a Confidence Signal for LLM Reasoning", arXiv
2510.08146 (https://arxiv.org/abs/2510.08146): the mean entropy over a first round of reasoning,
from the softmax over the top 20 log-probabilities, stops the reasoning when it is below a
threshold calibrated on a few labelled examples.
Ours: the threshold is dropped, since the scores only rank paths; a step is text up to a separator,
not a round of reasoning, so raise `steps` to cover more of it (a number larger than the steps of a
path takes the whole prefix).
"""

from dataclasses import dataclass

import numpy as np

from prunebench.errors import ConfigError
from prunebench.method import Capability, Path, SignalType

from ._positions import StepSignal
from ._top20 import renormalised_entropy


@dataclass(kw_only=True)
class ThinkJustEnough(StepSignal):
    r"""Higher = keep: low entropy at the beginning. In [-log 20, 0].

    NaN for a prefix without text.

    Attributes
    ----------
    steps : how many steps from the beginning count.
    mark : what separates steps, with \n for a line break; empty means a blank line, or a line break
        in paths that have no blank line.
    """

    type = SignalType.III
    paper = "arXiv 2510.08146, https://arxiv.org/abs/2510.08146"
    requires = frozenset({Capability.TOP_ENTROPY, Capability.TOP_MASS})

    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(
                f"The 'steps' parameter of ThinkJustEnough must be at least 1. "
                f"Got {self.steps!r} instead."
            )

    def score_path(self, path: Path) -> float:
        entropy = renormalised_entropy(path.top_entropy, path.top_mass)
        spans = self.spans(path)
        if not spans:
            return path.unscored("the prefix has no step with text")
        return -float(np.mean(entropy[: spans[: self.steps][-1].stop]))

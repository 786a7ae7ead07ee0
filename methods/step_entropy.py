r"""Step entropy: how much information the steps of a path carry.

Formula: S_i = mean over the steps s of sum over the tokens t of s of H_t, with H_t the entropy of
the next-token distribution over the whole vocabulary, in nats per step.

Source: "Compressing Chain-of-Thought in LLMs via Step Entropy", arXiv 2508.03346
(https://arxiv.org/abs/2508.03346), deletes the steps of one chain of thought that have the lowest
entropy, as redundant.
Ours: the carry-over from steps to paths, which the paper does not make: paths with much
entropy per step are kept, as the paper keeps such steps. `keep=low` reverses the sign, as methods
that reward confidence would. Long steps have more entropy. A last step that the checkpoint
cut is left out, unless it is the only one.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from prunebench.method import Capability, Path, SignalType

from ._positions import StepSignal


class Keep(Enum):
    """Which end of the ranking survives."""

    high = "high"
    low = "low"


@dataclass(kw_only=True)
class StepEntropy(StepSignal):
    r"""Higher = keep: steps of high entropy (or, with `keep=low`, of low entropy).

    At least 0, at most 0 with `keep=low`. NaN for a prefix without text.

    Attributes
    ----------
    keep : `high` follows the paper, `low` is the control.
    mark : what separates steps, with \n for a line break; empty means a blank line, or a line break
        in paths that have no blank line.
    """

    type = SignalType.III
    paper = "arXiv 2508.03346, https://arxiv.org/abs/2508.03346"
    requires = frozenset({Capability.ENTROPY})

    keep: Keep = Keep.high

    def score_path(self, path: Path) -> float:
        entropy = path.entropy.astype(np.float64)
        sums = [entropy[span.start : span.stop].sum() for span in self.finished_spans(path)]
        if not sums:
            return path.unscored("the prefix has no step with text")
        score = float(np.mean(sums))
        return score if self.keep is Keep.high else -score

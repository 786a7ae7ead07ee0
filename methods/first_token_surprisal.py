r"""First-token surprisal: how unforeseen the beginnings of a path's steps are.

Formula: S_i = mean over the steps s of -log P(first token of s | all before it), in nats.

Source: "ASAP", arXiv 2508.05988 (https://arxiv.org/abs/2508.05988), shortens one chain of thought
by deleting the paragraphs whose first token has a low surprisal: an expected beginning marks a
redundant step.
Ours: the carry-over from steps to paths, which the paper does not make: paths with much
surprise are kept, as ASAP keeps such steps. `keep=expected` reverses the sign, as methods that
reward confidence would. Steps are cut by blank lines, or by line breaks in paths without
one; blank tokens before a step are no part of it.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from prunebench.method import Capability, Path, SignalType

from ._positions import StepSignal


class Keep(Enum):
    """Which end of the ranking survives."""

    surprising = "surprising"
    expected = "expected"


@dataclass(kw_only=True)
class FirstTokenSurprisal(StepSignal):
    r"""Higher = keep: steps begin with surprise (or, with `keep=expected`, without).

    At least 0, at most 0 with `keep=expected`. NaN for a prefix without text.

    Attributes
    ----------
    keep : `surprising` follows the paper, `expected` is the control.
    mark : what separates steps, with \n for a line break; empty means a blank line, or a line break
        in paths that have no blank line.
    """

    type = SignalType.III
    paper = "arXiv 2508.05988, https://arxiv.org/abs/2508.05988"
    requires = frozenset({Capability.LOGPROBS})

    keep: Keep = Keep.surprising

    def score_path(self, path: Path) -> float:
        surprisal = -path.logprobs.astype(np.float64)
        starts = [span.start for span in self.spans(path)]
        if not starts:
            return path.unscored("the prefix has no step with text")
        score = float(np.mean(surprisal[starts]))
        return score if self.keep is Keep.surprising else -score

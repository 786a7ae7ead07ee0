"""Slim-SC, as arXiv 2604.16029 runs it: paths that repeat another path are pruned.

Formula: S_i = -max over j != i of J(W_i, W_j), where W_i is the set of lower-cased words of prefix
i and J(A, B) = |A and B| / |A or B| the Jaccard similarity.

Source: the Type I row of "STOP", arXiv 2604.16029, appendix C.5 (https://arxiv.org/abs/2604.16029),
a stand-in for "Slim-SC: Thought Pruning for Efficient Scaling with Self-Consistency", arXiv
2509.13990 (https://arxiv.org/abs/2509.13990). Slim-SC itself embeds single thoughts and drops one
path of each pair above a threshold; here both members of a pair score equally low.
Ours: a word is what stands between white space. `similarity=mean` averages over the others
instead. `keep=similar` reverses the sign: the control that shows whether diversity or consensus
does the work.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from prunebench.method import PathGroup, SignalGenerator, SignalType

from ._similarity import jaccard


class Similarity(Enum):
    """How the similarities of a path to the others become one number."""

    max = "max"
    mean = "mean"


class Keep(Enum):
    """Which end of the ranking survives."""

    different = "different"
    similar = "similar"


@dataclass(kw_only=True)
class SlimSC(SignalGenerator):
    """Higher = keep: unlike every other path (or, with `keep=similar`, like one).

    In [-1, 0], or [0, 1] with `keep=similar`. A path without company scores 0. A prefix without a
    word scores NaN, and shares nothing with the others. Time and memory are quadratic in the
    number of paths.

    Attributes
    ----------
    similarity : aggregate over the other paths.
    keep : `different` is the method, `similar` the control.
    """

    type = SignalType.I
    paper = "arXiv 2509.13990 by arXiv 2604.16029, appendix C.5, https://arxiv.org/abs/2604.16029"

    similarity: Similarity = Similarity.max
    keep: Keep = Keep.different

    def score(self, group: PathGroup) -> np.ndarray:
        words = [frozenset(path.text.lower().split()) for path in group.paths]
        scores = jaccard(words)
        np.fill_diagonal(scores, 0.0)  # the other paths only
        if self.similarity is Similarity.max:
            scores = scores.max(axis=1, initial=0.0)
        else:
            scores = scores.sum(axis=1) / max(1, len(words) - 1)
        scores = scores if self.keep is Keep.similar else -scores
        return np.where([len(own) > 0 for own in words], scores, np.nan)

"""Slim-SC, one path after the other: the next one kept is the one least like those kept so far.

Formula: the first path is the one with the lowest mean similarity to the others, each next one is
argmax over the paths i left of min over the chosen j of (1 - sim(i, j)) (farthest-first order).
S_i = -(place of i in that order), places counted from 0.

Source: the idea of "Slim-SC", arXiv 2509.13990 (https://arxiv.org/abs/2509.13990): of two paths
that repeat each other one goes and one stays. The pairwise score S_i = -max_j sim(i, j) drops both.
Ours: all of the rest. The paper has no order; it drops one path of each pair above a threshold, at
random or the one that repeats itself more. Farthest-first order keeps one of the pair for as long
as anything less alike is left, at every number of kept paths. Words stand between white space.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from prunebench.method import PathGroup, SignalGenerator, SignalType

from ._similarity import farthest_first, jaccard, nearest_first, tfidf_cosine
from .slim_sc import Keep


class Measure(Enum):
    """Similarity of two prefixes."""

    jaccard = "jaccard"
    tfidf = "tfidf"


@dataclass(kw_only=True)
class SlimSCGreedy(SignalGenerator):
    """Higher = keep: chosen early. 0, -1, ..., each once; ties go to the lower path index.

    A prefix without a word scores NaN and is compared with none. Time and memory are quadratic in
    the number of paths.

    Attributes
    ----------
    keep : `different` is the method; `similar`, the control, takes the medoid (the path with the
        highest mean similarity to the others) and then the others by their similarity to it.
    measure : `jaccard` of the sets of words, or cosine of their TF-IDF vectors (`tfidf`).
    """

    type = SignalType.I
    paper = "after arXiv 2509.13990, https://arxiv.org/abs/2509.13990"

    keep: Keep = Keep.different
    measure: Measure = Measure.jaccard

    def score(self, group: PathGroup) -> np.ndarray:
        texts = [path.text.lower() for path in group.paths]
        scored = [i for i, text in enumerate(texts) if text.split()]
        scored.sort(key=lambda i: group.paths[i].index)
        if self.measure is Measure.tfidf:
            similarity = tfidf_cosine([texts[i] for i in scored])
        else:
            similarity = jaccard([frozenset(texts[i].split()) for i in scored])
        order = farthest_first if self.keep is Keep.different else nearest_first
        scores = np.full(len(group), np.nan)
        scores[scored] = 0.0 - order(similarity)
        return scores

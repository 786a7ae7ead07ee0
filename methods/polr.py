"""PoLR: paths in a large cluster of similar prefixes are kept.

Formula: the prefixes become TF-IDF vectors of their words and are clustered by average linkage of
the cosine distance 1 - cos, cut at a threshold. S_i = |C(i)| / N + epsilon * mean over the other
members j of C(i) of cos(i, j), where C(i) is the cluster of path i and N the number of paths.

Source: "Path of Least Resistance", arXiv 2601.21494 (https://arxiv.org/abs/2601.21494). The paper
goes on with K prefixes of the largest cluster, taken at 256 tokens, and votes.
Ours: epsilon, which orders the paths within clusters and clusters of equal size, and ranking all
clusters by size, so that a number of kept paths beyond the largest cluster goes to the next one.
The threshold of 1.0 reported for the paper cannot split prefixes that share a word, since cosines
of non-negative vectors are at least 0; the default is 0.6, and 0.3 to 0.9 is a sensible sweep.
Words stand between white space. `keep=smallest` reverses the sign, the control.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from prunebench.errors import ConfigError
from prunebench.method import PathGroup, SignalGenerator, SignalType

from ._similarity import tfidf_cosine


class Keep(Enum):
    """Which clusters survive."""

    largest = "largest"
    smallest = "smallest"


@dataclass(kw_only=True)
class PoLR(SignalGenerator):
    """Higher = keep: a member of a large cluster (or, with `keep=smallest`, of a small one).

    In (0, 1 + epsilon], or its negative. A path alone in its cluster has a mean cosine of 0. A
    prefix without a word scores NaN and counts for none. Time and memory are quadratic in the
    number of paths.

    Attributes
    ----------
    threshold : average cosine distance at which clusters stay apart, in (0, 1].
    epsilon : weight of the mean cosine; below 1/N it never overrules the size of a cluster.
    keep : `largest` is the method, `smallest` the control.
    """

    type = SignalType.I
    paper = "arXiv 2601.21494, https://arxiv.org/abs/2601.21494"

    threshold: float = 0.6
    epsilon: float = 1e-3
    keep: Keep = Keep.largest

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(
                "The 'threshold' parameter of PoLR must be above 0 and at most 1, a cosine "
                f"distance. Got {self.threshold!r} instead."
            )
        if not 0 <= self.epsilon < np.inf:
            raise ConfigError(
                "The 'epsilon' parameter of PoLR must be 0 or a positive number. "
                f"Got {self.epsilon!r} instead."
            )

    def score(self, group: PathGroup) -> np.ndarray:
        scored = [i for i, path in enumerate(group.paths) if path.text.split()]
        # Ties between merges go by row, so the rows stand in an order of their own.
        scored.sort(key=lambda i: (group.paths[i].text, group.paths[i].index))
        scores = np.full(len(group), np.nan)
        if scored:
            similarity = tfidf_cosine([group.paths[i].text for i in scored])
            together = clusters(similarity, self.threshold)
            size = together.sum(axis=1)
            np.fill_diagonal(similarity, 0.0)
            closeness = (similarity * together).sum(axis=1) / np.maximum(1, size - 1)
            scores[scored] = size / len(scored) + self.epsilon * closeness
        return scores if self.keep is Keep.largest else -scores


def clusters(similarity: np.ndarray, threshold: float) -> np.ndarray:
    """Average-linkage clusters: `(n, n)` cosines -> `(n, n)` bool, whether two rows share one."""
    from sklearn.cluster import AgglomerativeClustering

    if len(similarity) == 1:
        return np.ones((1, 1), bool)
    distance = np.clip(1.0 - similarity, 0.0, None)
    np.fill_diagonal(distance, 0.0)
    # With a threshold n_clusters must be None; scikit-learn's default gives it the type int.
    labels = AgglomerativeClustering(
        n_clusters=None,  # type: ignore[arg-type]
        metric="precomputed",
        linkage="average",
        distance_threshold=threshold,
    ).fit_predict(distance)
    return labels[:, None] == labels[None, :]

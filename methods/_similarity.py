r"""Similarities of the texts of a group, and orders in which to pick from them.

A word is what stands between white space, in lower case: formulas such as `7*11=77.` are then
words, where the usual pattern (two letters or digits and more) would drop or split them.
scikit-learn is imported on first use.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def jaccard(sets: list[frozenset[str]]) -> np.ndarray:
    """Pairwise |A and B| / |A or B|: `(n, n)` float64; 0 where both sets are empty."""
    column = {word: i for i, word in enumerate(sorted(frozenset().union(*sets)))}
    member = np.zeros((len(sets), len(column)))
    for row, words in enumerate(sets):
        member[row, [column[word] for word in words]] = 1.0
    shared = member @ member.T
    size = member.sum(axis=1)
    union = size[:, None] + size[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def tfidf(texts: Sequence[str]) -> "csr_matrix":
    """Words weighted by count times ln((1 + n) / (1 + n_with_the_word)) + 1, rows of length 1:
    `(n, n_words)` float64 sparse. A text without a word is a row of zeros."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(text.split() for text in texts):
        return csr_matrix((len(texts), 0))
    # None is documented, and silences a warning; scikit-learn's annotation knows str only.
    vectorizer = TfidfVectorizer(tokenizer=str.split, token_pattern=None)  # type: ignore[arg-type]
    return vectorizer.fit_transform(texts)


def tfidf_cosine(texts: Sequence[str]) -> np.ndarray:
    """Pairwise cosine of the TF-IDF vectors: `(n, n)` float64 in [0, 1]."""
    return cosine(tfidf(texts))


def cosine(vectors: "csr_matrix | np.ndarray") -> np.ndarray:
    """Pairwise dot products of rows of length 1: `(n, n)` float64.

    Rounded to 12 decimals, so that equal texts tie whatever the order of the sums.
    """
    return np.round(_dense(vectors @ vectors.T).astype(np.float64), 12)


def best_match(vectors: "csr_matrix | np.ndarray", sizes: Sequence[int]) -> np.ndarray:
    """Largest cosine between a row of one block and a row of another: `(n, n)` float64.

    Parameters
    ----------
    vectors : `(sum(sizes), width)` rows of length 1, the blocks below each other.
    sizes : `(n,)` rows of each block, at least 1.
    """
    starts = np.cumsum([0, *sizes[:-1]])
    best = np.empty((len(sizes), len(sizes)))
    columns = vectors.T if isinstance(vectors, np.ndarray) else vectors.T.tocsr()
    for i, (start, size) in enumerate(zip(starts, sizes, strict=True)):  # all at once is too large
        products = _dense(vectors[start : start + size] @ columns).max(axis=0)
        best[i] = np.maximum.reduceat(products, starts)
    return np.round(best, 12)


def _dense(matrix: "csr_matrix | np.ndarray") -> np.ndarray:
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


def to_the_others(similarity: np.ndarray, *, mean: bool) -> np.ndarray:
    """The largest, or the mean, similarity of every row to the others: `(n,)`, 0 without others."""
    others = similarity.astype(np.float64)
    n = len(others)
    if mean:
        np.fill_diagonal(others, 0.0)
        return others.sum(axis=1) / max(1, n - 1)
    np.fill_diagonal(others, -np.inf)
    return others.max(axis=1) if n > 1 else np.zeros(n)


def farthest_first(similarity: np.ndarray) -> np.ndarray:
    """Place of every row when the row least like all chosen ones always comes next: `(n,)` int.

    The first is the one with the lowest mean similarity to the others. Of equals the lower row
    comes first, so sort the rows by `path.index`.
    """
    if len(similarity) == 0:
        return np.zeros(0, int)
    first = int(np.argmin(to_the_others(similarity, mean=True).round(12)))
    order = [first]
    nearest = similarity[first].copy()  # the largest similarity to a chosen row
    nearest[first] = np.inf
    while len(order) < len(similarity):
        order.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, similarity[order[-1]])
        nearest[order[-1]] = np.inf
    return rank_of(order)


def nearest_first(similarity: np.ndarray) -> np.ndarray:
    """Place of every row by similarity to the medoid, which comes first: `(n,)` int.

    The medoid is the row with the highest mean similarity to the others. Of equals the lower row
    comes first.
    """
    if len(similarity) == 0:
        return np.zeros(0, int)
    medoid = int(np.argmax(to_the_others(similarity, mean=True).round(12)))
    to_medoid = similarity[medoid].copy()
    to_medoid[medoid] = np.inf
    return rank_of(np.argsort(-to_medoid, kind="stable"))


def rank_of(order: Sequence[int] | np.ndarray) -> np.ndarray:
    """Turns an order of selection into places: `rank[order[k]] = k`. The score is `-rank`."""
    rank = np.empty(len(order), int)
    rank[np.asarray(order, int)] = np.arange(len(order))
    return rank

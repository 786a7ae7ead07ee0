"""What is measured of a pruned set of paths. Pure functions of arrays; one row is one subset.

Knows nothing of methods, problems or files. Means over problems and their uncertainty are in
`stats`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Numbers = Any
"""A float, or an array of them."""


def accuracy_of_kept(correct: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """avg@k|N: `(R,)` share of right paths among the kept, NaN where none is; `correct`, `keep`
    `(R, n)` bool."""
    return _ratio((correct & keep).sum(axis=1), keep.sum(axis=1))


def killed_correct(correct: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """`(R,)` number of right paths that were dropped."""
    return (correct & ~keep).sum(axis=1)


def generator_tokens(lengths: np.ndarray, keep: np.ndarray, prefix_length: int) -> np.ndarray:
    """Tokens the generator samples: Σ_i min(len_i, L) + Σ_kept max(0, len_i − L).

    Parameters
    ----------
    lengths : `(R, n)` int, tokens of the complete paths.
    keep : `(R, n)` bool or a float probability of being kept, which gives the expectation.
    prefix_length : the checkpoint L, tokens.

    Returns
    -------
    tokens : `(R,)` float64. Tokens read or written only to judge are counted apart.
    """
    before = np.minimum(lengths, prefix_length)
    return (before + keep * (lengths - before)).sum(axis=1, dtype=np.float64)


def percent_saved(tokens: Numbers, without_pruning: Numbers) -> Numbers:
    """100 · (1 − tokens / without_pruning); negative when pruning costs more than it saves."""
    return 100.0 * (1.0 - _ratio(tokens, without_pruning))


def percent_killed(killed: Numbers, n_correct: Numbers) -> Numbers:
    """Share of the right paths that was dropped, in percent; NaN where there was none."""
    return 100.0 * _ratio(killed, n_correct)


def auroc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability that a right path scores above a wrong one, ties counting one half.

    Exact (Mann-Whitney U by mid-ranks). NaN is a score like any other, below -inf and tied with
    other NaN: a method does not gain by declining to score.

    Parameters
    ----------
    scores : `(R, n)` or `(n,)` float, higher = more likely right.
    labels : same shape, bool, True = right.

    Returns
    -------
    auroc : `(R,)` float64 (0-d for one row), NaN in rows that have only one class.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    ranks = mid_ranks(np.atleast_2d(scores))
    positive = np.atleast_2d(labels)
    n_pos = positive.sum(axis=1)
    n_pairs = n_pos * (positive.shape[1] - n_pos)
    u = (ranks * positive).sum(axis=1) - n_pos * (n_pos + 1) / 2
    values = np.where(n_pairs > 0, u / np.maximum(n_pairs, 1), np.nan)
    return values if scores.ndim == 2 else values[0]


def mid_ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from 1 within every row, ties sharing their mean rank, NaN lowest."""
    n_rows, n = scores.shape
    order = np.argsort(-scores, axis=1)  # highest first, NaN last
    ordered = np.take_along_axis(scores, order, axis=1)
    left, right = ordered[:, :-1], ordered[:, 1:]
    boundary = (left != right) & ~(np.isnan(left) & np.isnan(right))
    edge = np.ones((n_rows, 1), dtype=bool)
    place = np.arange(n)
    first = np.where(np.hstack([edge, boundary]), place, 0)
    last = np.where(np.hstack([boundary, edge]), place, n - 1)
    first = np.maximum.accumulate(first, axis=1)
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(scores.shape)
    np.put_along_axis(ranks, order, n - (first + last) / 2, axis=1)
    return ranks


def mean_defined(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def within_problem_auroc(per_problem: np.ndarray) -> tuple[float, str]:
    """Mean AUROC over the problems that have right and wrong paths, and why it is missing.

    Parameters
    ----------
    per_problem : `(P,)` AUROC of every problem, NaN where only one class occurs.

    Returns
    -------
    mean, reason : NaN and a reason when no problem has both classes, else the mean and "".
    """
    mean = mean_defined(np.asarray(per_problem, dtype=np.float64))
    return mean, "" if mean == mean else "no problem has both right and wrong paths"


def headroom_recovered(method: Numbers, random: Numbers, oracle: Numbers) -> Numbers:
    """(method − random) / (oracle − random): 0 is random pruning, 1 the best possible choice.

    NaN when there is no headroom to recover.
    """
    return _ratio(method - random, oracle - random)


def _ratio(part: Numbers, whole: Numbers) -> Numbers:
    """part / whole, NaN where whole is not above 0 (or above rounding)."""
    some = np.asarray(whole) > 1e-12
    return np.where(some, part / np.where(some, whole, 1.0), np.nan)[()]

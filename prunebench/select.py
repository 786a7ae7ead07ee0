"""From scores to the paths that are kept: the one place where ties, NaN and finished paths count.

Knows neither methods nor traces, only arrays. One row is one set of live paths, so a thousand
subsets of a pool are selected in one call.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from prunebench.errors import ConfigError


class Select(StrEnum):
    """What decides how many paths are kept."""

    top_k = "top_k"  # the best `keep`
    threshold = "threshold"  # every path that scores at least `threshold`
    mass = "mass"  # the fewest paths that hold the share `mass` of the softmax of the scores


class Finished(StrEnum):
    """What happens to a path that ended at or before the checkpoint."""

    compete = "compete"  # it competes for a slot with the score at its end
    keep_free = "keep_free"  # it is kept without using a slot


def check_keep(keep: int, n_paths: int) -> None:
    """Raise `ConfigError` unless 1 <= keep <= n_paths."""
    if not 1 <= keep <= n_paths:
        raise ConfigError(
            f"The 'keep' parameter must be an integer from 1 to n_paths ({n_paths}). "
            f"Got {keep} instead."
        )


def top_k(
    scores: np.ndarray,
    keep: int,
    *,
    finished: np.ndarray,
    policy: Finished = Finished.compete,
    alive: np.ndarray | None = None,
) -> np.ndarray:
    """Keep the `keep` highest scores of every row.

    Parameters
    ----------
    scores : `(R, n)` float, higher = keep. NaN is the worst score of all, below -inf, so a path
        that could not be scored survives only when nothing else is left. Ties go to the lowest
        position in the row.
    finished : `(R, n)` bool, the path ended at or before the checkpoint.
    policy : with KEEP_FREE the finished paths are kept and the slots go to the others; a row
        then keeps `n_finished + min(keep, n_unfinished)` paths.
    alive : `(R, n)` bool, paths that an earlier checkpoint kept; the others stay dropped. None
        means all.

    Returns
    -------
    kept : `(R, n)` bool.
    """
    check_keep(keep, scores.shape[1])
    alive = np.ones(scores.shape, dtype=bool) if alive is None else alive
    order = _best_first(scores, alive)
    free = finished if policy is Finished.keep_free else np.zeros_like(alive)
    live = np.take_along_axis(alive, order, axis=1)
    uses_slot = live & ~np.take_along_axis(free, order, axis=1)
    in_order = live & (~uses_slot | (np.cumsum(uses_slot, axis=1) <= keep))
    kept = np.empty(scores.shape, dtype=bool)
    np.put_along_axis(kept, order, in_order, axis=1)
    return kept


def above_threshold(
    scores: np.ndarray,
    threshold: float,
    *,
    finished: np.ndarray,
    policy: Finished = Finished.compete,
) -> np.ndarray:
    """Keep every path with a score of at least `threshold`; the best one where none has. See
    `top_k`."""
    free = finished if policy is Finished.keep_free else np.zeros(scores.shape, dtype=bool)
    kept = free | (np.asarray(scores) >= threshold)  # False for NaN
    nobody = ~kept.any(axis=1)
    kept[nobody] = top_k(scores[nobody], 1, finished=finished[nobody])
    return kept


def softmax_mass(
    scores: np.ndarray,
    mass: float,
    *,
    finished: np.ndarray,
    policy: Finished = Finished.compete,
) -> np.ndarray:
    """Keep the fewest paths whose share of the softmax of the standardised scores is `mass`: few
    where the scores set some paths apart, many where they do not. Infinite scores count as the
    largest or smallest finite one of the row, NaN holds no mass. See `top_k`."""
    free = finished if policy is Finished.keep_free else np.zeros(scores.shape, dtype=bool)
    scores = np.asarray(scores, dtype=np.float64)
    weights = np.exp(standardise(scores, ~free & ~np.isnan(scores)))
    weights[free | np.isnan(scores)] = 0.0
    total = weights.sum(axis=1, keepdims=True)
    order = _best_first(scores, ~free)
    share = np.take_along_axis(weights / np.where(total > 0, total, 1.0), order, axis=1)
    before = np.cumsum(share, axis=1) - share
    # a path is needed while those before it hold less than the mass; the first always is
    needed = (before < mass - 1e-12) & (share > 0)
    needed[:, 0] = True
    kept = np.empty(scores.shape, dtype=bool)
    np.put_along_axis(kept, order, needed, axis=1)
    return free | (kept & ~free)


def standardise(scores: np.ndarray, among: np.ndarray) -> np.ndarray:
    """`(R, n)` scores minus their mean, over their standard deviation, both over `among` `(R, n)`
    bool. Infinite scores count as the largest or smallest finite one there; NaN as the smallest; a
    row without two different finite scores is all zero."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    usable = among & np.isfinite(scores)
    low = np.where(usable, scores, np.inf).min(axis=1, keepdims=True)
    high = np.where(usable, scores, -np.inf).max(axis=1, keepdims=True)
    spread = high > low  # False also without any finite score, where low is inf and high -inf
    low, high = np.where(spread, low, 0.0), np.where(spread, high, 0.0)
    clipped = np.clip(scores, low, high)
    n = np.maximum(among.sum(axis=1, keepdims=True), 1)
    centred = clipped - (clipped * among).sum(axis=1, keepdims=True) / n
    sd = np.sqrt((centred**2 * among).sum(axis=1, keepdims=True) / n)
    return centred / np.where(sd > 0, sd, 1.0)


def _best_first(scores: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """`(R, n)` positions, the best of the living first, the dead last."""
    # A stable sort gives ties to the lowest position, and numpy puts NaN behind every number.
    order = np.argsort(-np.asarray(scores, dtype=np.float64), axis=1, kind="stable")
    if alive.all():
        return order
    dead = ~np.take_along_axis(alive, order, axis=1)
    return np.take_along_axis(order, np.argsort(dead, axis=1, kind="stable"), axis=1)

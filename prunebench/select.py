"""From scores to the paths that are kept: the one place where ties, NaN and finished paths count.

Knows neither methods nor traces, only arrays. One row is one set of live paths, so a thousand
subsets of a pool are selected in one call.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from prunebench.errors import ConfigError


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

    Returns
    -------
    kept : `(R, n)` bool.
    """
    check_keep(keep, scores.shape[1])
    # A stable sort gives ties to the lowest position, and numpy puts NaN behind every number.
    order = np.argsort(-np.asarray(scores, dtype=np.float64), axis=1, kind="stable")
    free = finished if policy is Finished.keep_free else np.zeros_like(finished)
    uses_slot = ~np.take_along_axis(free, order, axis=1)
    in_order = ~uses_slot | (np.cumsum(uses_slot, axis=1) <= keep)
    kept = np.empty(scores.shape, dtype=bool)
    np.put_along_axis(kept, order, in_order, axis=1)
    return kept

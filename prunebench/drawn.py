"""Subsets of a pool that share their scores, sorted once for all budgets.

A subset keeps the first k of its members in the pool's order of scores, so sorting the pool and
counting members is all that every k needs. Arrays are `(P, R)`: subsets in the fast dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prunebench import metrics

if TYPE_CHECKING:
    from prunebench.evaluate import ProblemPool

MOST_RANKED = 16
"""Rankings remembered per pool: about as many methods as a sweep evaluates side by side."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """A pool in the order of its scores, and what its subsets make of it.

    Attributes
    ----------
    order : `(P,)` int positions in the pool, the highest score first, ties by position, NaN last.
    member : `(P, R)` bool, by that order: the path is in the subset.
    count : `(P, R)` int, how many members of the subset stand there or before.
    auroc : `(R,)` of the scores in each subset, as `metrics.auroc`.
    n_correct : `(R,)` float64, right paths in each subset.
    """

    order: np.ndarray
    member: np.ndarray
    count: np.ndarray
    auroc: np.ndarray
    n_correct: np.ndarray

    def kept(self, keep: int) -> np.ndarray:
        """`(P, R)` bool, by `order`: among the best `keep` of the subset."""
        return self.member & (self.count <= keep)


class Drawn:
    """Random subsets `(R, n)` of a pool of `n_pool` paths, as positions."""

    def __init__(self, n_pool: int, subsets: np.ndarray) -> None:
        self.subsets = subsets
        self.member = np.zeros((n_pool, len(subsets)), dtype=bool)
        self.member[subsets.T, np.arange(len(subsets))] = True
        self._ranked: dict[bytes, Ranked] = {}
        self._totals: dict[bytes, np.ndarray] = {}

    def total(self, values: np.ndarray) -> np.ndarray:
        """`(R,)` float64, the sum of whole numbers `(P,)` over each subset."""
        key = values.tobytes()
        if key not in self._totals:
            while len(self._totals) >= MOST_RANKED:
                self._totals.pop(next(iter(self._totals)))
            self._totals[key] = values[self.subsets].sum(axis=1, dtype=np.float64)
        return self._totals[key]

    def ranked(self, pool: ProblemPool, scores: np.ndarray) -> Ranked:
        """The pool in the order of these scores `(P,)`, higher first."""
        key = scores.tobytes()
        if key not in self._ranked:
            while len(self._ranked) >= MOST_RANKED:
                self._ranked.pop(next(iter(self._ranked)))
            self._ranked[key] = self._rank(scores, pool.correct)
        return self._ranked[key]

    def _rank(self, scores: np.ndarray, correct: np.ndarray) -> Ranked:
        order = np.argsort(-scores, kind="stable")
        member = self.member[order]
        return Ranked(
            order=order,
            member=member,
            count=np.cumsum(member, axis=0, dtype=np.min_scalar_type(len(order))),
            auroc=self._auroc(scores, correct),
            n_correct=self.total(correct.astype(np.int64)),
        )

    def _auroc(self, scores: np.ndarray, correct: np.ndarray) -> np.ndarray:
        """Every pair of a right and a wrong path of the pool is compared once."""
        right, wrong = np.flatnonzero(correct), np.flatnonzero(~correct)
        ranks = metrics.mid_ranks(scores[None])[0]
        ahead = np.sign(ranks[right][:, None] - ranks[wrong]) / 2 + 0.5
        of_right, of_wrong = (self.member[side].astype(np.float32) for side in (right, wrong))
        pairs = of_right.sum(axis=0, dtype=np.float64) * of_wrong.sum(axis=0, dtype=np.float64)
        # halves and counts of pairs are exact in float32 up to 2^23
        won = np.einsum(
            "wr,wr->r", ahead.T.astype(np.float32) @ of_right, of_wrong, dtype=np.float64
        )
        return np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan)

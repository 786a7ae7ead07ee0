"""How sure the numbers are: bootstrap over problems and subsets, paired tests, Holm.

Pure functions of `(P, R)` arrays: P problems, R random subsets of each problem's pool. Nothing
here knows what was measured. Every function takes a seed and gives the same answer for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

N_RESAMPLES = 2000
_TABLE = 1000  # resampled subset means kept per problem, see `_resampled_means`


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over problems with its 95% interval; NaN where it is not defined."""

    mean: float
    lo: float
    hi: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean difference, paired by problem, with its interval and two-sided p-value."""

    mean: float
    lo: float
    hi: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row against the best row.

    Attributes
    ----------
    best : this row is the best one; then there is no difference.
    tied : best, or not significantly worse than the best after Holm's correction.
    difference : this row − best row (negative = worse); None when no problem is shared.
    p_holm : Holm-corrected p-value of the difference, NaN for the best itself.
    """

    best: bool
    tied: bool
    difference: Difference | None
    p_holm: float


def estimate(
    values: np.ndarray, *, level: float = 0.95, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean over problems of the mean over subsets, with a two-stage percentile interval.

    Parameters
    ----------
    values : `(P,)` or `(P, R)` float. NaN entries are left out; a problem without any number
        does not count.

    Returns
    -------
    estimate : the bounds are NaN with fewer than two problems, where nothing is known about the
        spread over problems.
    """
    values = _defined(values)
    if not len(values):
        return Estimate(mean=np.nan, lo=np.nan, hi=np.nan)
    mean = float(np.nanmean(values, axis=1).mean())
    if len(values) < 2:
        return Estimate(mean=mean, lo=np.nan, hi=np.nan)
    lo, hi = _interval(_resampled_means(values, n_resamples, seed), level)
    return Estimate(mean=mean, lo=lo, hi=hi)


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    *,
    level: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Mean of a − b over problems, paired by problem and, where the shapes agree, by subset.

    The p-value is the share of resamples, centred on zero, that stray at least as far from zero
    as the observed difference. It is never below 2^(1−m), m the number of problems that differ:
    the smallest p-value m paired observations can support, and a guard for tiny runs.

    Parameters
    ----------
    a, b : `(P,)` or `(P, R)` float, same problems in the same order.
    """
    a, b = _two_dimensional(a), _two_dimensional(b)
    if a.shape != b.shape:
        a, b = _problem_means(a)[:, None], _problem_means(b)[:, None]
    delta = _defined(a - b)
    if not len(delta):
        return Difference(mean=np.nan, lo=np.nan, hi=np.nan, p=np.nan)
    per_problem = np.nanmean(delta, axis=1)
    mean = float(per_problem.mean())
    n_differ = int((np.abs(per_problem) > 1e-12).sum())
    if len(delta) < 2:
        return Difference(mean=mean, lo=np.nan, hi=np.nan, p=1.0)
    resampled = _resampled_means(delta, n_resamples, seed)
    stray = np.abs(resampled - mean) >= abs(mean) - 1e-12
    p = max((1 + int(stray.sum())) / (1 + n_resamples), min(1.0, 2.0 ** (1 - n_differ)))
    lo, hi = _interval(resampled, level)
    return Difference(mean=mean, lo=lo, hi=hi, p=p)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction: `(n,)` adjusted p-values, in the order given, at most 1."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def compare_with_best(
    rows: Sequence[np.ndarray],
    *,
    may_be_best: Sequence[bool] | None = None,
    alpha: float = 0.05,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """Compare every row with the best one, Holm-corrected over all these comparisons.

    The best is the row with the highest mean among those that cover the most problems, so that
    a method that failed on the hard problems cannot win.

    Parameters
    ----------
    rows : `(P, R)` arrays over the same problems in the same order; higher = better; a problem
        that a row lacks is NaN.
    may_be_best : rows that can be the best; the others are only compared. None means all.

    Returns
    -------
    comparisons : one per row; without any candidate no row is best or tied.
    """
    allowed = [True] * len(rows) if may_be_best is None else list(may_be_best)
    defined = [_defined(row) for row in rows]
    covered = [len(d) if ok else 0 for d, ok in zip(defined, allowed, strict=True)]
    if not any(covered):
        return [Comparison(best=False, tied=False, difference=None, p_holm=np.nan) for _ in rows]
    candidates = [i for i, n in enumerate(covered) if n == max(covered)]
    best = max(candidates, key=lambda i: np.nanmean(defined[i], axis=1).mean())
    differences = {
        i: paired_difference(row, rows[best], n_resamples=n_resamples, seed=seed)
        for i, row in enumerate(rows)
        if i != best
    }
    differences = {i: d for i, d in differences.items() if not np.isnan(d.mean)}
    adjusted = dict(zip(differences, holm([d.p for d in differences.values()]), strict=True))
    return [
        Comparison(
            best=i == best,
            # A candidate that is ahead (on the problems it shares) is not worse than the best.
            tied=i == best
            or (i in differences and (adjusted[i] > alpha or differences[i].mean > 0)),
            difference=differences.get(i),
            p_holm=float(adjusted.get(i, np.nan)),
        )
        for i in range(len(rows))
    ]


def _two_dimensional(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return values[:, None] if values.ndim == 1 else values


def _defined(values: np.ndarray) -> np.ndarray:
    """`(P', R)`: the problems that have at least one number."""
    values = _two_dimensional(values)
    return values[~np.isnan(values).all(axis=1)]


def _problem_means(values: np.ndarray) -> np.ndarray:
    """`(P,)` mean over the subsets that have a number, NaN without any."""
    count = (~np.isnan(values)).sum(axis=1)
    return np.where(count > 0, np.nansum(values, axis=1) / np.maximum(count, 1), np.nan)


def _interval(resampled: np.ndarray, level: float) -> tuple[float, float]:
    lo, hi = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(lo), float(hi)


def _resampled_means(values: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """`(n_resamples,)` means of a two-stage bootstrap: problems, then subsets within each.

    Drawing R subsets for each of the n_resamples · P chosen problems would need millions of
    random numbers. Instead every problem gets `_TABLE` resampled subset means, and each time a
    problem is chosen one of them is drawn, independently of all others: the same two-stage
    scheme with its second stage represented by that many draws.
    """
    problems, draws, weights = _plan(*values.shape, n_resamples, seed)
    if weights is None:
        return values[:, 0][problems].mean(axis=1)
    known = ~np.isnan(values)
    weight = weights @ known.T.astype(np.float64)
    total = weights @ np.where(known, values, 0.0).T
    # A resample that holds none of a problem's numbers falls back on the problem's mean.
    table = np.where(weight > 0, total / np.maximum(weight, 1), np.nanmean(values, axis=1))
    return table[draws, problems].mean(axis=1)


@lru_cache(maxsize=4)
def _plan(
    n_problems: int, n_subsets: int, n_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """What is drawn in each resample. It does not depend on the values, so all rows of a table
    share it, which also makes their intervals comparable."""
    rng = np.random.default_rng([seed, n_problems, n_subsets])
    problems = rng.integers(n_problems, size=(n_resamples, n_problems))
    if n_subsets == 1:
        return problems, problems, None
    draws = rng.integers(_TABLE, size=(n_resamples, n_problems))
    chosen = rng.integers(n_subsets, size=(_TABLE, n_subsets))
    cell = chosen + n_subsets * np.arange(_TABLE)[:, None]
    weights = np.bincount(cell.ravel(), minlength=_TABLE * n_subsets).reshape(_TABLE, n_subsets)
    return problems, draws, weights.astype(np.float64)

"""How sure the numbers are: bootstrap over problems and subsets, paired tests, Holm.

Pure functions of `(P, R)` arrays: P problems, R random subsets of each problem's pool. Nothing
here knows what was measured. Every function takes a seed and gives the same answer for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
class McNemar:
    """The votes of two rows, a and b, compared problem by problem.

    Attributes
    ----------
    n10 : problems where a is right and b is wrong.
    n01 : problems where a is wrong and b is right.
    p : two-sided exact p-value; 1 when no problem tells them apart.
    """

    n10: int
    n01: int
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


def estimate_of(
    function: Callable[..., np.ndarray],
    *arrays: np.ndarray,
    level: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A function of several means over problems, with its percentile interval.

    All arrays are resampled together, so that what a problem does to one of them it does to the
    others: `estimate_of(lambda m, r, o: (m - r) / (o - r), method, random, oracle)` is headroom.

    Parameters
    ----------
    function : takes one array of means per input, all of one shape, and works elementwise. A
        result that is not finite is not defined.
    arrays : `(P,)` or `(P, R)` float, same problems in the same order; problems that lack a number
        in any of them are left out. Subsets are paired where the arrays have the same R > 1;
        otherwise the problem means stand for them.

    Returns
    -------
    estimate : the bounds are NaN with fewer than two problems, or when more than one resample in
        twenty is not defined.
    """
    values = [_two_dimensional(a) for a in arrays]
    widths = {v.shape[1] for v in values} - {1}
    if len(widths) > 1:
        values = [problem_means(v)[:, None] for v in values]
    known = np.all([~np.isnan(v).all(axis=1) for v in values], axis=0)
    values = [v[known] for v in values]
    if not known.any():
        return Estimate(mean=np.nan, lo=np.nan, hi=np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = [np.array([np.nanmean(v, axis=1).mean()]) for v in values]
        mean = float(_finite(function(*means))[0])
        if len(values[0]) < 2 or math.isnan(mean):
            return Estimate(mean=mean, lo=np.nan, hi=np.nan)
        wide = [
            np.broadcast_to(v, (len(v), max(widths))) if len(widths) == 1 else v for v in values
        ]
        resampled = _finite(function(*(_resampled_means(v, n_resamples, seed) for v in wide)))
    defined = resampled[~np.isnan(resampled)]
    if len(defined) < 0.95 * n_resamples:
        return Estimate(mean=mean, lo=np.nan, hi=np.nan)
    lo, hi = _interval(defined, level)
    return Estimate(mean=mean, lo=lo, hi=hi)


def ratio_estimate(
    numerator: np.ndarray,
    denominator: np.ndarray,
    transform: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio,
    *,
    level: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The ratio of two means over problems: `transform(mean numerator / mean denominator)`.

    `ratio_estimate(tokens, full_tokens, lambda r: 100 * (1 - r))` is the percentage of tokens
    saved. See `estimate_of`.
    """
    return estimate_of(
        lambda n, d: transform(n / d),
        numerator,
        denominator,
        level=level,
        n_resamples=n_resamples,
        seed=seed,
    )


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
        a, b = problem_means(a)[:, None], problem_means(b)[:, None]
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


def mcnemar(a: np.ndarray, b: np.ndarray) -> McNemar:
    """McNemar's exact test on the votes of two rows: a binomial test on the problems that only one
    of them gets right.

    A vote can earn a fraction (ties, many subsets). A problem counts as right when its mean credit
    is above 1/2, as wrong when it is below; one of exactly 1/2, in a or in b, counts for neither.

    Parameters
    ----------
    a, b : `(P,)` or `(P, R)` credits of the vote in [0, 1], same problems in the same order; a
        problem that is NaN in either is left out.
    """
    from scipy.special import bdtr

    # Credits are stored as float32, so a mean of many subsets may miss 1/2 by rounding.
    side_a, side_b = (
        np.where(np.abs(c - 0.5) < 1e-6, 0.0, np.sign(c - 0.5))
        for c in (problem_means(_two_dimensional(a)), problem_means(_two_dimensional(b)))
    )
    n10 = int(((side_a > 0) & (side_b < 0)).sum())
    n01 = int(((side_a < 0) & (side_b > 0)).sum())
    p = min(1.0, 2 * float(bdtr(min(n10, n01), n10 + n01, 0.5)))
    return McNemar(n10=n10, n01=n01, p=p)


def minimal_detectable_difference(
    a: np.ndarray,
    b: np.ndarray,
    *,
    n_comparisons: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """The smallest true difference between two rows that this many problems would show.

    With s the standard deviation of the P paired per-problem differences and t(q) the quantile of
    Student's t with P - 1 degrees of freedom,

        (t(1 - alpha / (2 m)) + t(power)) * s / sqrt(P)

    is the difference that a two-sided paired t-test at level alpha / m finds with probability
    `power` (Bloom 1995, https://doi.org/10.1177/0193841X9501900504). m is the number of
    comparisons: the level that Holm's procedure asks of the first of them.

    Parameters
    ----------
    a, b : `(P,)` or `(P, R)` float, same problems in the same order.

    Returns
    -------
    difference : in the unit of the rows; NaN with fewer than two shared problems, or when the
        differences do not vary, which says nothing about their spread.
    """
    from scipy.special import stdtrit

    delta = problem_means(_two_dimensional(a)) - problem_means(_two_dimensional(b))
    delta = delta[~np.isnan(delta)]
    n = len(delta)
    if n < 2 or np.ptp(delta) < 1e-12:
        return float("nan")
    t = stdtrit(n - 1, 1 - alpha / (2 * max(n_comparisons, 1))) + stdtrit(n - 1, power)
    return float(t * delta.std(ddof=1) / math.sqrt(n))


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


def _finite(values: np.ndarray) -> np.ndarray:
    """The values as float64, NaN where they are not finite."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _defined(values: np.ndarray) -> np.ndarray:
    """`(P', R)`: the problems that have at least one number."""
    values = _two_dimensional(values)
    return values[~np.isnan(values).all(axis=1)]


def problem_means(values: np.ndarray) -> np.ndarray:
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
    if known.all():
        table = weights @ values.T / values.shape[1]
        return table[draws, problems].mean(axis=1)
    weight = weights @ known.T.astype(np.float64)
    total = weights @ np.where(known, values, 0.0).T
    # A resample that holds none of a problem's numbers falls back on the problem's mean.
    table = np.where(weight > 0, total / np.maximum(weight, 1), np.nanmean(values, axis=1))
    return table[draws, problems].mean(axis=1)


@lru_cache(maxsize=8)
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

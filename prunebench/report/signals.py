"""What the scores themselves are worth, before anything is pruned: one row per signal.

Reads `paths.parquet` (one row per path and run) and nothing else; knows no budget and no vote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench import calibration, metrics, stats
from prunebench.report.scorings import SCORING, labels, unique_paths

if TYPE_CHECKING:
    import pandas as pd

SIGNAL = ("bank", "model", "dataset", "method", "type", *SCORING, "seed", "prefix_length")
MEASURES = ("auroc_within", "auroc_across", "brier", "ece", "aurc")
N_RESAMPLES = 1000
SEED = 20240516
"""Of the bootstrap; fixed, so that the same paths always give the same table."""


def signals(paths: pd.DataFrame) -> pd.DataFrame:
    """AUROC within and across problems, calibration and risk-coverage of every signal.

    Intervals cover 95%, by bootstrap over problems. Paths whose score is missing count as the
    lowest in AUROC and risk-coverage, as in the tables, and are left out of calibration; paths of
    which nobody knows whether they are right are left out of everything.

    Parameters
    ----------
    paths : rows of `paths.parquet`, of one or many runs; repeated rows count once.

    Returns
    -------
    table : one row per signal, in order of appearance, with the columns of `SIGNAL` (`n_paths` and
        `rule` of signals that compare paths, else 0 and ""; a second set of options makes the
        method `... (2)`), `n_problems` and `n_scores` (paths that count), each of `MEASURES` with
        `_lo` and `_hi`, and `reason`: why a number is missing and what was left out. Higher =
        better for both AUROC, lower = better for the others; Brier and ECE (10 bins of equal width)
        only where the signal claims to be a probability.
    """
    import pandas as pd

    columns = [
        *(*SIGNAL, "n_problems", "n_scores"),
        *(f"{m}{end}" for m in MEASURES for end in ("", "_lo", "_hi")),
        "reason",
    ]
    unique = unique_paths(paths)
    names = labels(unique)
    key = [unique[column] for column in ("bank", "seed", "method", "config")]
    unique = unique.assign(method=[names[one] for one in zip(*key, strict=True)])
    rows = [
        {**dict(zip(SIGNAL, key, strict=True)), **_measure(group)}  # type: ignore[call-overload]
        for key, group in unique.groupby(list(SIGNAL), sort=False, dropna=False)
    ]
    return pd.DataFrame(rows, columns=columns)


def _measure(paths: pd.DataFrame) -> dict[str, Any]:
    known = paths["correct"].notna().to_numpy()
    n_unknown = int((~known).sum())
    notes = [f"{n_unknown} paths left out: nobody knows whether they are right"] * bool(n_unknown)
    paths = paths.loc[known]
    scores = paths["score"].to_numpy(dtype=np.float64, na_value=np.nan)
    right = paths["correct"].to_numpy(dtype=bool)
    problem = paths["problem_id"].factorize()[0]
    n_problems = int(problem.max(initial=-1)) + 1
    row: dict[str, Any] = {"n_problems": n_problems, "n_scores": len(paths)}
    unscored = np.isnan(scores)
    if not len(paths) or unscored.all():
        why = "no path could be scored" if len(paths) else "no path is known to be right or wrong"
        return row | _missing(MEASURES) | {"reason": "; ".join([*notes, why])}
    if unscored.any():
        notes.append(f"{int(unscored.sum())} paths could not be scored")
    times = _multiplicities(n_problems)
    within, note = _auroc_within(scores, right, problem, n_problems)
    notes += [f"no AUROC within problems: {note}"] * bool(note)
    across = _auroc_across(scores, right, problem, times)
    if across.mean != across.mean:
        notes.append("no AUROC across problems: all paths are right, or all are wrong")
    found = {
        "auroc_within": within,
        "auroc_across": across,
        "aurc": _aurc(scores, right, problem, times),
    }
    claims = paths["probability"].to_numpy(dtype=bool).all()
    p = scores[~unscored]
    if not claims:
        notes.append("no calibration: the score is not a probability")
    elif ((p < 0) | (p > 1)).any():
        claims = False
        notes.append("no calibration: scores lie outside 0 to 1")
    else:
        found |= _calibration(p, right[~unscored], problem[~unscored], times)
    if n_problems < 2:
        notes.append("no intervals: one problem only")
    numbers = {
        f"{name}{end}": getattr(estimate, part)
        for name, estimate in found.items()
        for end, part in (("", "mean"), ("_lo", "lo"), ("_hi", "hi"))
    }
    without = () if claims else ("brier", "ece")
    return row | _missing(without) | numbers | {"reason": "; ".join(notes)}


def _missing(names: tuple[str, ...]) -> dict[str, float]:
    return {f"{name}{end}": float("nan") for name in names for end in ("", "_lo", "_hi")}


def _multiplicities(n_problems: int) -> np.ndarray:
    """`(1 + N_RESAMPLES, P)` how often each problem is drawn; the first row is every one once."""
    rng = np.random.default_rng([SEED, n_problems])
    drawn = rng.multinomial(n_problems, np.full(n_problems, 1 / n_problems), size=N_RESAMPLES)
    return np.vstack([np.ones((1, n_problems)), drawn])


def _estimate(values: np.ndarray, n_problems: int) -> stats.Estimate:
    """From `(1 + N_RESAMPLES,)` values, the first that of the paths as they are. No interval when
    more than one resample in twenty has no value."""
    resampled = values[1:][~np.isnan(values[1:])]
    if n_problems < 2 or np.isnan(values[0]) or len(resampled) < 0.95 * N_RESAMPLES:
        return stats.Estimate(mean=float(values[0]), lo=np.nan, hi=np.nan)
    lo, hi = np.quantile(resampled, [0.025, 0.975])
    return stats.Estimate(mean=float(values[0]), lo=float(lo), hi=float(hi))


def _shifted(values: np.ndarray, n_problems: int) -> stats.Estimate:
    """The same for a mean of absolute values, which resampling makes larger: the interval is moved
    back by what the resamples are larger on average, and never leaves 0 to 1."""
    raw = _estimate(values, n_problems)
    excess = float(np.nanmean(values[1:])) - raw.mean if raw.lo == raw.lo else 0.0
    lo, hi = np.clip([raw.lo - excess, raw.hi - excess], 0.0, 1.0)
    return stats.Estimate(mean=raw.mean, lo=min(float(lo), raw.mean), hi=max(float(hi), raw.mean))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)


def _auroc_within(
    scores: np.ndarray, right: np.ndarray, problem: np.ndarray, n_problems: int
) -> tuple[stats.Estimate, str]:
    each = np.array(
        [metrics.auroc(scores[problem == p], right[problem == p]) for p in range(n_problems)]
    )
    found = stats.estimate(each, n_resamples=N_RESAMPLES, seed=SEED)
    return found, metrics.within_problem_auroc(each)[1]


def _auroc_across(
    scores: np.ndarray, right: np.ndarray, problem: np.ndarray, times: np.ndarray
) -> stats.Estimate:
    """Pooled over all paths. With U[p, q] the wins of right paths of problem p over wrong ones of
    q, a resample that holds p w_p times has w U w wins, so no resample is ranked anew."""
    n_problems = times.shape[1]
    rank = -calibration.tie_groups(scores)  # higher = better, NaN lowest
    wins = np.zeros((n_problems, n_problems))
    for q in range(n_problems):
        wrong = np.sort(rank[(problem == q) & ~right])
        below, upto = (np.searchsorted(wrong, rank[right], side=side) for side in ("left", "right"))
        wins[:, q] = np.bincount(problem[right], weights=(below + upto) / 2, minlength=n_problems)
    n_right, n_wrong = (np.bincount(problem[y], minlength=n_problems) for y in (right, ~right))
    pairs = (times @ n_right) * (times @ n_wrong)
    return _estimate(_ratio(((times @ wins) * times).sum(axis=1), pairs), n_problems)


def _calibration(
    p: np.ndarray, right: np.ndarray, problem: np.ndarray, times: np.ndarray
) -> dict[str, stats.Estimate]:
    n_problems = times.shape[1]
    n = times @ np.bincount(problem, minlength=n_problems)
    error = times @ np.bincount(problem, weights=(p - right) ** 2, minlength=n_problems)
    edges = calibration.bin_edges(p)
    n_bins = len(edges) - 1
    gaps = np.bincount(
        problem * n_bins + calibration.bin_of(p, edges),
        weights=p - right,
        minlength=n_problems * n_bins,
    ).reshape(n_problems, n_bins)
    return {
        "brier": _estimate(_ratio(error, n), n_problems),
        "ece": _shifted(_ratio(np.abs(times @ gaps).sum(axis=1), n), n_problems),
    }


def _aurc(
    scores: np.ndarray, right: np.ndarray, problem: np.ndarray, times: np.ndarray
) -> stats.Estimate:
    """The area of every resample at once, from how many paths and how many wrong ones it has in
    each group of equal scores. In a group with share g of wrong paths after K paths with W wrong
    ones, the expected risks at K + 1 ... M sum to (W - K g) (H_M - H_K) + g (M - K), H_j the j-th
    harmonic number."""
    n_problems = times.shape[1]
    group = calibration.tie_groups(scores)
    n_groups = int(group.max()) + 1
    cell = problem * n_groups + group
    size, wrong = (
        np.bincount(cell, weights=w, minlength=n_problems * n_groups).reshape(n_problems, -1)
        for w in (np.ones(len(group)), (~right).astype(np.float64))
    )
    size, wrong = times @ size, times @ wrong  # (1 + N_RESAMPLES, n_groups)
    end, wrong_end = np.cumsum(size, axis=1), np.cumsum(wrong, axis=1)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(end.max()) + 1))])
    span = np.diff(harmonic[end.astype(np.intp)], axis=1, prepend=0.0)
    share = wrong / np.maximum(size, 1.0)
    risen = (wrong_end - wrong - (end - size) * share) * span
    return _estimate((risen.sum(axis=1) + wrong_end[:, -1]) / end[:, -1], n_problems)

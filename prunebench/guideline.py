"""The retention law: which share of the paths to keep, from the budget and two lengths.

    1 / retention = a * C**b * L_prefix**c / L_task**d        (arXiv 2604.16029, Figure 6)

C is the budget of a problem, its total tokens, in thousands; L_prefix (the checkpoint) and L_task
(the mean length of an unpruned path) are in units of 1,024 tokens. Everything outside this file
counts plain tokens; the units of the law are applied here and only here.

Holds the law with its published coefficients and the fit to one's own sweep. It knows records as
rows of a table, prints nothing and draws nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.errors import ConfigError, DamagedFile

if TYPE_CHECKING:
    import pandas as pd

    from prunebench.report.records import Row

BUDGET_UNIT, LENGTH_UNIT = 1000, 1024
"""Tokens per unit of C, and of the two lengths."""

NAMES = ("a", "b", "c", "d")
INPUTS = {"budget": "C", "prefix_length": "L_prefix", "task_length": "L_task"}
MAX_CONDITION = 30.0
"""Of the standardised design: above it, coefficients trade against each other (Belsley, Kuh and
Welsch 1980)."""


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """a, b, c, d of the law, and where they hold.

    Attributes
    ----------
    source : where they come from, for people.
    ranges : lowest and highest value that they were fitted on, in tokens (`inverse_retention`: a
        ratio); a name that is missing has no known range.
    """

    a: float
    b: float
    c: float
    d: float
    source: str = ""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)


PUBLISHED = Coefficients(
    a=1.17e4,
    b=0.46,
    c=0.40,
    d=4.55,
    source="arXiv 2604.16029, fitted on one 1.5B model and two datasets",
    ranges={"inverse_retention": (2.0, 32.0)},
)


def inverse_retention(
    budget: Any, prefix_length: Any, task_length: Any, coefficients: Coefficients = PUBLISHED
) -> Any:
    """γ⁻¹ of the law, as it comes out: it may lie below 1, where nothing would be pruned.

    Parameters
    ----------
    budget : total tokens of a problem; a number or an array, like the others.
    prefix_length : the checkpoint, in tokens.
    task_length : mean tokens of an unpruned path.
    """
    k = coefficients
    return (
        k.a
        * (np.asarray(budget, dtype=np.float64) / BUDGET_UNIT) ** k.b
        * (np.asarray(prefix_length, dtype=np.float64) / LENGTH_UNIT) ** k.c
        / (np.asarray(task_length, dtype=np.float64) / LENGTH_UNIT) ** k.d
    )[()]


def retention_for(
    n_paths: int,
    budget: float,
    prefix_length: float,
    task_length: float,
    coefficients: Coefficients = PUBLISHED,
) -> tuple[float, float, int]:
    """The law's advice for one problem.

    Returns
    -------
    inverse, retention, keep : γ⁻¹ as the law gives it; γ clipped to (0, 1]; and the number of paths
        to keep, max(1, round(γ · n_paths)), halves rounded to even.
    """
    numbers = {"budget": budget, "prefix_length": prefix_length, "task_length": task_length}
    for name, value in {"n_paths": n_paths, **numbers}.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(
                f"The '{name}' parameter of the retention law must be a number above 0. Got "
                f"{value} instead."
            )
    if n_paths < 1 or n_paths != int(n_paths):
        raise ConfigError(f"The 'n_paths' parameter must be a whole number. Got {n_paths} instead.")
    inverse = float(inverse_retention(budget, prefix_length, task_length, coefficients))
    if not (inverse > 0 and math.isfinite(inverse)):
        raise ConfigError(
            f"The retention law gives no usable number for budget={budget:g}, "
            f"prefix_length={prefix_length:g}, task_length={task_length:g}: {inverse}. Check the "
            "coefficients and the units: all three are in tokens."
        )
    retention = min(1.0, 1 / inverse)
    return inverse, retention, max(1, round(retention * n_paths))


def keep_for(
    n_paths: int,
    prefix_length: float,
    task_length: float,
    coefficients: Coefficients = PUBLISHED,
) -> int:
    """How many of n_paths to keep when the budget is what pruning them costs: the k whose n_paths/k
    is nearest, in logarithms, to the γ⁻¹ that the law gives for the tokens of keeping k."""
    retention_for(
        n_paths, n_paths * task_length, prefix_length, task_length, coefficients
    )  # checks
    k = np.arange(1, n_paths + 1)
    before = min(prefix_length, task_length)
    budgets = n_paths * before + k * (task_length - before)
    wanted = inverse_retention(budgets, prefix_length, task_length, coefficients)
    return int(k[np.argmin(np.abs(np.log(n_paths / k) - np.log(wanted)))])


def explain(
    n_paths: int,
    keep: int,
    prefix_length: float,
    task_length: float,
    coefficients: Coefficients = PUBLISHED,
) -> list[str]:
    """What `keep_for` chose and why, for people."""
    before = min(prefix_length, task_length)
    budget = n_paths * before + keep * (task_length - before)
    inverse = float(inverse_retention(budget, prefix_length, task_length, coefficients))
    inputs = {"budget": budget, "prefix_length": prefix_length, "task_length": task_length}
    chosen = (
        f"retention=auto keeps {keep} of {n_paths}: the law gives 1/retention {inverse:.3g} for "
        f"{budget:.0f} tokens, checkpoint {prefix_length:g}, paths of {task_length:.0f} tokens "
        f"({coefficients.source})"
    )
    return [chosen, *beyond(coefficients, **inputs, inverse_retention=inverse)]


def beyond(coefficients: Coefficients, **values: float) -> list[str]:
    """One note for every value outside the range that the coefficients were fitted on."""
    notes = []
    for name, value in values.items():
        lo, hi = coefficients.ranges.get(name, (-math.inf, math.inf))
        if not lo * (1 - 1e-9) <= value <= hi * (1 + 1e-9):
            notes.append(
                f"{name} {value:g} lies outside {lo:g} to {hi:g}, which the law was fitted on: "
                "this is an extrapolation"
            )
    return notes


# ------------------------------------------------------------------------------------ the fit


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """The law, fitted to a sweep.

    Attributes
    ----------
    coefficients : with the ranges of the points.
    intervals : 95% interval of each coefficient, by Student's t.
    points : one row per cell: model, dataset, method, n_paths, C, L_prefix, L_task (in tokens),
        best and predicted (γ⁻¹), at_edge (the best was the smallest or largest retention tried, so
        a better one may lie beyond).
    n : number of points.
    residual_sd : standard deviation of log γ⁻¹ around the law, with n - 4 degrees of freedom.
    r2 : share of the variance of log γ⁻¹ that the law explains.
    notes : what a reader should know about the points.
    """

    coefficients: Coefficients
    intervals: dict[str, tuple[float, float]]
    points: pd.DataFrame
    n: int
    residual_sd: float
    r2: float
    notes: tuple[str, ...] = ()


def best_points(rows: Sequence[Row]) -> pd.DataFrame:
    """The retention with the best vote of every cell of a sweep.

    A cell is what differs in nothing but the number of kept paths. Its best retention is the one
    with the highest cons, of equal ones that with the fewest tokens, then the fewest paths. C is
    the mean total tokens per problem of that row, L_task the mean length of unpruned paths of its
    model and dataset.

    Parameters
    ----------
    rows : as from `records.analyse`; reference rows, failed rows and cells with one retention only
        are left out, and so are rows with a rule of their own.

    Returns
    -------
    points : the columns of `Fit.points` but `predicted`, and `tied`: every retention had the same
        vote, so that tokens alone decided.
    """
    import pandas as pd

    frame = pd.DataFrame([found for row in rows if (found := _described(row)) is not None])
    columns = ["model", "dataset", "method", "n_paths", "C", "L_prefix", "L_task", "best"]
    columns += ["at_edge", "tied"]
    if frame.empty:
        return pd.DataFrame(columns=columns)
    frame["L_task"] = frame.groupby(["model", "dataset"])["path_length"].transform("mean")
    points = []
    for _, cell in frame.groupby(list(_CELL), sort=False, dropna=False):
        keeps, cons = cell["keep"].to_numpy(np.int64), cell["cons"].to_numpy(np.float64)
        if len(set(keeps.tolist())) < 2:
            continue
        best = cell.sort_values(["cons", "C", "keep"], ascending=[False, True, True]).iloc[0]
        edge = best["keep"] in (keeps.min(), keeps.max())
        tied = bool(np.ptp(cons) < 1e-12)
        point = {name: best[name] for name in columns if name in best}
        points.append(
            point | {"best": best["n_paths"] / best["keep"], "at_edge": edge, "tied": tied}
        )
    return pd.DataFrame(points, columns=columns)


_CELL = (
    *("model", "dataset", "mode", "bank", "setting", "aggregator", "weights", "seed"),
    *("method", "n_paths", "L_prefix"),
)


def _described(row: Row) -> dict[str, Any] | None:
    """What the fit needs of a row; None for rows that are no point of the law."""
    from prunebench.cells import REFERENCES

    cell, line = row.cell, row.line
    tokens = [own[~np.isnan(own)] for own in (r.full_tokens for r in row.results) if len(own)]
    full = [float(own.mean()) for own in tokens if len(own)]
    if (
        cell.method in REFERENCES
        or getattr(cell, "rule", "")
        or not tokens
        or math.isnan(line.cons)
        or math.isnan(line.total_tokens)
    ):
        return None
    return {
        **{name: getattr(cell, name, "") for name in _CELL if name != "L_prefix"},
        "keep": cell.keep,
        "L_prefix": cell.prefix_length,
        "cons": line.cons,
        "C": line.total_tokens,
        "path_length": float(np.mean(full)) / cell.n_paths if full else math.nan,
    }


_LOGARITHMIC = ("C", "L_prefix", "L_task", "best")


def fit(points: pd.DataFrame, *, level: float = 0.95) -> Fit:
    """Fit a, b, c, d by least squares in log space.

    log γ⁻¹ = log a + b log C + c log L_prefix − d log L_task is linear in the coefficients, so the
    least-squares solution and its t intervals are exact; that of a is the interval of log a, raised
    to the power of e.

    Parameters
    ----------
    points : as from `best_points`; those with a number that is not known are left out, with a note.

    Raises
    ------
    ConfigError
        When the points cannot identify the coefficients, with every reason.
    """
    from scipy.special import stdtrit

    n_given = len(points)
    points = points.loc[np.isfinite(points[[*_LOGARITHMIC]].to_numpy(np.float64)).all(axis=1)]
    n_lost = n_given - len(points)
    lost = f"{n_lost} of {n_given} cells are left out: a length or the tokens are not known"
    if reasons := _unidentified(points):
        raise ConfigError(
            "This sweep cannot identify the retention law: "
            + "; ".join([*reasons, *([lost] if n_lost else [])])
            + ". Sweep several keep, n_paths, prefix_length and at least two datasets (or models) "
            "with paths of unlike length."
        )
    units = {"C": BUDGET_UNIT, "L_prefix": LENGTH_UNIT, "L_task": LENGTH_UNIT}
    logs = {name: np.log(points[name].to_numpy(np.float64) / unit) for name, unit in units.items()}
    target = np.log(points["best"].to_numpy(np.float64))
    n = len(target)
    design = np.column_stack([np.ones(n), logs["C"], logs["L_prefix"], -logs["L_task"]])
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    residuals = target - design @ solution
    variance = float(residuals @ residuals) / (n - 4)
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    half = stdtrit(n - 4, (1 + level) / 2) * errors
    bounds = [(float(x - h), float(x + h)) for x, h in zip(solution, half, strict=True)]
    bounds[0] = (math.exp(bounds[0][0]), math.exp(bounds[0][1]))
    ranges = {
        name: (float(values.min()), float(values.max()))
        for name, column in {**INPUTS, "inverse_retention": "best"}.items()
        for values in [points[column].to_numpy(np.float64)]
    }
    coefficients = Coefficients(
        a=math.exp(float(solution[0])),
        **dict(zip(NAMES[1:], map(float, solution[1:]), strict=True)),
        source=f"fitted on {n} cells of {points['model'].nunique()} models and "
        f"{points['dataset'].nunique()} datasets",
        ranges=ranges,
    )
    predicted = points.assign(predicted=np.exp(design @ solution))
    spread = float(((target - target.mean()) ** 2).sum())
    n_edge, n_tied = (int(np.sum(points[name].to_numpy(bool))) for name in ("at_edge", "tied"))
    notes = [lost] if n_lost else []
    if n_edge:
        notes.append(
            f"in {n_edge} of {n} cells the best retention is the smallest or largest tried: "
            "a better one may lie beyond"
        )
    if n_tied:
        notes.append(f"in {n_tied} of {n} cells all retentions vote alike: tokens decided")
    return Fit(
        coefficients=coefficients,
        intervals=dict(zip(NAMES, bounds, strict=True)),
        points=predicted,
        n=n,
        residual_sd=math.sqrt(variance),
        r2=1 - float(residuals @ residuals) / spread,
        notes=tuple(notes),
    )


def _unidentified(points: pd.DataFrame) -> list[str]:
    """Why these points cannot say what the coefficients are; empty when they can."""
    n = len(points)
    if n < 5:
        return [f"{n} cells with several retentions, and four coefficients need at least 5"]
    reasons = []
    for column, what, coefficient in (
        ("C", "budget (C)", "b"),
        ("L_prefix", "prefix length", "c"),
        ("L_task", "task length", "d"),
    ):
        values = points[column].to_numpy(np.float64)
        if values.max() / values.min() < 1.01:
            reasons.append(f"one {what} only ({values[0]:g} tokens), so {coefficient} is unknown")
    best = points["best"].to_numpy(np.float64)
    if points["tied"].to_numpy(bool).all():
        reasons.append("the vote is the same for every retention in every cell")
    elif points["at_edge"].to_numpy(bool).mean() > 0.75:
        reasons.append(
            f"the best retention is the smallest or the largest tried in "
            f"{int(np.sum(points['at_edge'].to_numpy(bool)))} of {n} cells: most of them are bounds"
        )
    elif (best == best[0]).all():
        reasons.append(f"the best retention is 1/{best[0]:g} in every cell")
    if reasons:
        return reasons
    logs = np.log(points[["C", "L_prefix", "L_task"]].to_numpy(np.float64))
    condition = float(np.linalg.cond((logs - logs.mean(axis=0)) / logs.std(axis=0)))
    if condition > MAX_CONDITION:
        return [
            "budget, prefix length and task length rise and fall together (condition number "
            f"{condition:.3g}), so their exponents cannot be told apart"
        ]
    return []


# --------------------------------------------------------------------------------------- files


def save(found: Fit, path: Path) -> None:
    """Write a fit as JSON, for `coefficients=FILE`."""
    from prunebench.storage import write_atomic

    content = {
        **asdict(found.coefficients),
        "units": {"budget": BUDGET_UNIT, "prefix_length": LENGTH_UNIT, "task_length": LENGTH_UNIT},
        "intervals": found.intervals,
        "n": found.n,
        "residual_sd": found.residual_sd,
        "r2": found.r2,
        "notes": found.notes,
    }
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


def load(path: Path) -> Coefficients:
    """Read the coefficients that `save` wrote."""
    try:
        content = json.loads(path.read_text())
        values = {name: float(content[name]) for name in NAMES}
        if not (values["a"] > 0 and all(map(math.isfinite, values.values()))):
            raise ValueError("a must be above 0, and all four must be numbers")
        ranges = {k: (float(v[0]), float(v[1])) for k, v in content.get("ranges", {}).items()}
        return Coefficients(**values, source=str(content.get("source", path)), ranges=ranges)
    except FileNotFoundError:
        raise ConfigError(
            f"There are no coefficients at {path}. Give a file that 'prunebench fit-retention "
            "SWEEP output=FILE' wrote."
        ) from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DamagedFile(
            f"The coefficients {path} cannot be read ({type(error).__name__}: {error}). Make them "
            "again with 'prunebench fit-retention'."
        ) from error

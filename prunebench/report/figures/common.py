"""What the families of figures share: rows that belong into one figure, and which are shown.

Draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from prunebench.cells import NONE, ORACLE, RANDOM, Cell, CellResult
from prunebench.report import style
from prunebench.report.blocks import budget, distinct, is_method, numbered_names
from prunebench.report.numbers import measure
from prunebench.report.records import Row
from prunebench.report.scorings import SCORING, scorings, unique_paths

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

T = TypeVar("T")

_PARTS = ("model", "dataset", "mode", "setting", "aggregator", "seed", "bank")


class NotDrawn(Exception):
    """The records lack what a figure shows; the message says what."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What one method said of the paths of all problems at one checkpoint.

    Attributes
    ----------
    problem : `(n,)` int, the problem of each path.
    score : `(n,)` float, never NaN.
    right : `(n,)` bool.
    probability : the method claims that its scores are probabilities of being right.
    """

    problem: np.ndarray
    score: np.ndarray
    right: np.ndarray
    probability: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Rows that may stand in one figure: one model, dataset, mode, pool, vote and seed.

    Attributes
    ----------
    cell : any cell: the setting.
    suffix : what tells this group's files from those of other groups; "" with one group.
    rows : those with numbers, of the methods shown and the references.
    names : of the methods shown, by type and name; those of one name are numbered as in the tables.
    named : by position in `rows`, what a row is called; a reference by its method.
    note : says when methods were left out.
    scores : of the methods shown, by name and checkpoint.
    looks : by name, and by method for the references.
    """

    cell: Cell
    suffix: str
    rows: list[Row]
    names: list[str]
    named: dict[int, str]
    note: str = ""
    scores: dict[str, dict[int, Scores]] = field(default_factory=dict)
    looks: dict[str, style.Look] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        vote = "" if self.cell.aggregator == "majority" else f", {self.cell.aggregator} vote"
        return f"{self.cell.model} on {self.cell.dataset} ({self.cell.mode}{vote})"

    def lines(self, of: str, **at: int) -> list[CellResult]:
        """Lines of one method (by its name) or reference, at the budget given, by total tokens."""
        own = [
            row.line
            for i, row in enumerate(self.rows)
            if self.named[i] == of
            and all(getattr(row.cell, key) == value for key, value in at.items())
        ]
        return sorted(own, key=lambda line: line.total_tokens)

    def at(self, of: str, cell: Cell) -> CellResult | None:
        """The first line of `of` at the budget of the cell."""
        budget = {key: getattr(cell, key) for key in ("n_paths", "keep", "prefix_length")}
        return next(iter(self.lines(of, **budget)), None)

    def values(self, key: str) -> list[int]:
        """Values of `n_paths`, `keep` or `prefix_length` among the methods' rows; without any
        method among all rows but no pruning."""
        own = [row for row in self.rows if is_method(row)]
        own = own or [row for row in self.rows if row.cell.method != NONE] or self.rows
        return sorted({getattr(row.cell, key) for row in own})


def groups(rows: Sequence[Row], paths: pd.DataFrame | None) -> list[Group]:
    """Sort rows with numbers into groups, at most `style.MAX_METHODS` methods in each."""
    found: dict[Cell, list[Row]] = {}
    for row in distinct(rows):
        if row.line.avg == row.line.avg:
            key = replace(budget(row.cell), n_paths=0, keep=0, prefix_length=0)
            found.setdefault(key, []).append(row)
    differing = [p for p in _PARTS if len({getattr(cell, p) for cell in found}) > 1]
    if differing != ["bank"] and "bank" in differing:  # told apart by the others if they can
        others = [p for p in differing if p != "bank"]
        if len({tuple(getattr(c, p) for p in others) for c in found}) == len(found):
            differing = others
    made = []
    for cell, own in found.items():
        suffix = "_".join(str(getattr(cell, part)) for part in differing)
        called = _named(own)
        names, note = _shown(own, called)
        at = [i for i, row in enumerate(own) if called[i] in names or _is_reference(row, own)]
        kept, named = [own[i] for i in at], dict(enumerate(called[i] for i in at))
        group = Group(cell=cell, suffix=suffix, rows=kept, names=names, named=named, note=note)
        made.append(replace(group, scores=_scores_of(group, paths), looks=style.looks(names)))
    return made


def _named(rows: Sequence[Row]) -> list[str]:
    """What rows are called: within each budget as in the tables; a reference by its method."""
    blocks: dict[Cell, list[int]] = {}
    for i, row in enumerate(rows):
        blocks.setdefault(budget(row.cell), []).append(i)
    names = [row.cell.method for row in rows]
    for own in blocks.values():
        for i, found in zip(own, numbered_names([rows[i] for i in own]), strict=True):
            names[i] = found if is_method(rows[i]) else names[i]
    return names


def some(values: Sequence[T], n: int) -> list[T]:
    """At most n of the values, evenly spread, the first and the last among them."""
    if len(values) <= n:
        return list(values)
    if n == 1:
        return [values[len(values) // 2]]
    return [values[round(i * (len(values) - 1) / (n - 1))] for i in range(n)]


def note_of(group: Group, shown: Sequence[Any], there: Sequence[Any], what: str) -> str:
    """The group's note, and how many of the panels there could be are shown."""
    left_out = f"{len(shown)} of {len(there)} {what} shown" if len(shown) < len(there) else ""
    return "; ".join(part for part in (group.note, left_out) if part)


def curve(
    axis: Axes,
    lines: Sequence[CellResult],
    column: str,
    *,
    x: Sequence[float],
    scale: float = 100.0,
    **look: Any,
) -> None:
    """The column of the lines with its intervals against x; lines without the number are left
    out, a number without an interval has no bar."""
    points = [
        (at, *(scale * v for v in measure(line, column)))
        for at, line in zip(x, lines, strict=True)
        if getattr(line, column) == getattr(line, column)
    ]
    if not points:
        return
    y = [point[1] for point in points]
    below = [gap(lo, v) for _, v, lo, _ in points]
    above = [gap(v, hi) for _, v, _, hi in points]
    options = {"elinewidth": 0.7, "capsize": 1.5, "capthick": 0.7, **look}
    _, caps, bars = axis.errorbar([p[0] for p in points], y, yerr=[below, above], **options)
    for part in (*caps, *bars):
        part.set_alpha(0.45)  # intervals overlap; the means must stay readable


def gap(lo: float, hi: float) -> float:
    """Length of an error bar, 0 without an interval."""
    return max(0.0, hi - lo) if hi == hi and lo == lo else 0.0


def fit(axes: Iterable[Axes], lines: Iterable[CellResult], column: str) -> None:
    """Set the vertical range of panels to the lines without the oracle, and where the oracle lies
    above it, say so in the corner instead of flattening everything else."""
    lines, axes = list(lines), list(axes)
    shown = [line for line in lines if line.method != ORACLE]
    ends = [100 * v for line in shown for v in measure(line, column) if v == v]
    if not ends:
        return
    span = max(ends) - min(ends)
    low, high = max(-1.0, min(ends) - 0.06 * span - 0.5), max(ends) + 0.06 * span + 0.5
    oracle = [100 * getattr(line, column) for line in lines if line.method == ORACLE]
    outside = [v for v in oracle if v > high]
    for axis in axes:
        axis.set_ylim(low, high + (0.12 * span if outside else 0.0))  # room for the words
    if outside:
        ends_of = dict.fromkeys(f"{v:.0f}" for v in (min(outside), max(outside)))
        axes[0].annotate(
            f"oracle: {' to '.join(ends_of)}, above this axis",
            (0.02, 0.98),
            xycoords="axes fraction",
            va="top",
            fontsize=7,
            color=style.GREY,
        )


def _is_reference(row: Row, rows: Sequence[Row]) -> bool:
    """A reference row: those of plain top-k where there are any, else those of the rules."""
    if is_method(row):
        return False
    plain = any(r.cell.method == row.cell.method and not r.cell.rule for r in rows)
    return not (plain and row.cell.rule)


def strongest(group: Group) -> Cell | None:
    """The cell of a method at the largest N, its smallest k and the longest checkpoint, for
    figures that show one budget."""
    cells = [row.cell for row in group.rows if is_method(row)]
    return max(cells, key=lambda c: (c.n_paths, c.keep > 0, -c.keep, c.prefix_length), default=None)


def _shown(rows: Sequence[Row], called: Sequence[str]) -> tuple[list[str], str]:
    best: dict[tuple[str, str], float] = {}
    for row, own in zip(rows, called, strict=True):
        if is_method(row):
            key, auroc = (str(row.cell.type), own), row.line.auroc_within
            best[key] = max(best.get(key, -1.0), auroc if auroc == auroc else -1.0)
    chosen = sorted(best, key=lambda key: -best[key])[: style.MAX_METHODS]
    note = ""
    if len(chosen) < len(best):
        note = f"{len(chosen)} of {len(best)} methods: the best by within-problem AUROC"
    order = ("I", "II", "III", "IV")
    chosen.sort(key=lambda key: (order.index(key[0]) if key[0] in order else 4, key[1]))
    return [named for _, named in chosen], note


def _scores_of(group: Group, paths: Any) -> dict[str, dict[int, Scores]]:
    """Scores of the group's bank, seed and methods: checkpoint -> Scores, by name; of methods that
    compare paths those at the largest N. Missing scores, and paths of which nobody knows whether
    they are right, are left out."""
    if paths is None or not len(paths):
        return {}
    cell = group.cell
    own = {
        part: paths[part] == getattr(cell, part) for part in ("bank", "model", "dataset", "seed")
    }
    paths = paths[own["bank"] & own["model"] & own["dataset"] & own["seed"]]
    of_runs = scorings(paths)
    paths = unique_paths(paths)
    paths = paths[paths["score"].notna() & paths["correct"].notna()]
    by_signal: dict[tuple[Any, ...], dict[int, Scores]] = {}
    for (*signal, at), found in paths.groupby(["method", *SCORING, "prefix_length"], sort=False):
        by_signal.setdefault(tuple(signal), {})[int(at)] = Scores(
            problem=found["problem_id"].factorize()[0],
            score=found["score"].to_numpy(dtype=float),
            right=found["correct"].to_numpy(dtype=bool),
            probability=bool(found["probability"].all()),
        )
    scores: dict[str, dict[int, Scores]] = {}
    for of in group.names:
        rows = [row for i, row in enumerate(group.rows) if group.named[i] == of]
        rows.sort(key=lambda row: row.cell.n_paths)
        for row in rows:  # the last one of a checkpoint stays
            scored = signal_of(row.cell, of_runs, by_signal)
            scores.setdefault(of, {}).update(by_signal.get(scored, {}))
    return {of: found for of, found in scores.items() if found}


def signal_of(
    cell: Cell, of_runs: dict[str, tuple[Any, ...]], known: Iterable[tuple[Any, ...]]
) -> tuple[Any, ...]:
    """(method, *SCORING) of the scores that a cell pruned by; of a run that has left none, those of
    its method if they are the only ones."""
    if cell.run_id in of_runs:
        return (cell.method, *of_runs[cell.run_id])
    others = [signal for signal in known if signal[0] == cell.method]
    return others[0] if len(others) == 1 else (cell.method,)


REFERENCE_NAMES = {NONE: "no pruning", RANDOM: "random", ORACLE: "oracle"}

"""Rows sorted into blocks that may be compared, with their names and comparisons.

Rows of one (setting, checkpoint, N, k) form a block; its best method and those tied with it are
known. Knows no file format and no console.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunebench.cells import NONE, ORACLE, RANDOM, REFERENCES, Cell, by_problem
from prunebench.evaluate import Status
from prunebench.report.records import BOOTSTRAP_SEED, Row
from prunebench.stats import (
    Comparison,
    McNemar,
    compare_with_best,
    mcnemar,
    minimal_detectable_difference,
)
from prunebench.types import SignalType

LABELS = {NONE: "no pruning"}
SCHEDULE_LEGEND = "AUROC of a schedule: at its first checkpoint."


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """The rows that share a setting, a checkpoint, N and k, with their comparisons.

    Attributes
    ----------
    cell : any cell of the block: its setting and budget.
    rows : none, random, the methods, oracle.
    avg, cons : one comparison with the best row each, in the order of `rows`.
    votes : McNemar's test of each row's votes against those of the best in cons, or None.
    detectable : the smallest differences in (avg, cons) from the best that this many problems can
        show, the median over the rows compared; NaN where unknown.
    """

    cell: Cell
    rows: list[Row]
    avg: list[Comparison]
    cons: list[Comparison]
    votes: list[McNemar | None]
    detectable: tuple[float, float]


def name(cell: Cell) -> str:
    """What a row is called: the method, its pruning rule, and whose scores weigh the votes."""
    rule = f" [{cell.rule}]" if cell.rule else ""
    weights = f" ⟨votes: {cell.weights}⟩" if cell.weights else ""
    return LABELS.get(cell.method, cell.method) + rule + weights


def kind(cell: Cell) -> str:
    """The type of the method, nothing for controls."""
    return "" if cell.type is SignalType.CONTROL else str(cell.type)


def kept(cell: Cell) -> str:
    """How many paths stay, in words; a rule that decides by itself has no k."""
    return f"keep {cell.keep or 'what the rule says'} of {cell.n_paths}"


def at_budget(measured: str, cell: Cell) -> str:
    """`avg@8|64`, or `avg` where a rule decides how many paths stay."""
    return f"{measured}@{cell.keep}|{cell.n_paths}" if cell.keep else measured


def title(cell: Cell, *, keep: bool, checkpoint: bool = True) -> str:
    """The setting of a cell in words, with or without its k and L."""
    budget = [kept(cell)] * keep
    budget += [f"checkpoint {cell.prefix_length} tokens"] * checkpoint
    budget += [] if cell.seed == 0 else [f"seed {cell.seed}"]
    budget += [] if cell.aggregator == "majority" else [str(cell.aggregator)]
    budget += [cell.setting] * bool(cell.setting)
    where = f"{cell.model} on {cell.dataset} ({cell.mode})"
    return where + (f": {', '.join(budget)}" if budget else "")


def budget(cell: Cell) -> Cell:
    """The cell without what differs between rows of a block."""
    return replace(cell, run_id="", method="", type=SignalType.CONTROL, rule="", weights="")


def is_schedule(rule: str) -> bool:
    """The rule prunes at several checkpoints."""
    return "→" in rule


def legend(text: str, rows: Iterable[Row]) -> str:
    """The legend of a table of these rows."""
    schedules = any(is_schedule(row.cell.rule) for row in rows)
    return f"{text.rstrip('.')}. {SCHEDULE_LEGEND}" if schedules else text


def distinct(rows: Sequence[Row]) -> list[Row]:
    """The rows without those that equal an earlier one in everything but the run: the same cell,
    asked for twice."""
    found: dict[Cell, list[Row]] = {}
    for row in rows:
        known = found.setdefault(replace(row.cell, run_id=""), [])
        if not any(_same_numbers(row, other) for other in known):
            known.append(row)
    kept = {id(row) for own in found.values() for row in own}
    return [row for row in rows if id(row) in kept]


def _same_numbers(a: Row, b: Row) -> bool:
    """Equal numbers for every problem; how long scoring took does not count."""
    if a.line.reason != b.line.reason or len(a.results) != len(b.results):
        return False
    return all(
        np.array_equal(x, vars(other)[key], equal_nan=isinstance(x, (float, np.ndarray)))
        for one, other in zip(a.results, b.results, strict=True)
        for key, x in vars(one).items()
        if key != "score_seconds"
    )


def blocks(rows: Sequence[Row]) -> list[Block]:
    """Sort analysed rows into blocks, methods by their within-problem AUROC, the highest first.
    The row `none` stands in the block of every k, a row that equals another only once."""
    groups: dict[Cell, list[Row]] = {}
    rows = distinct(rows)
    for row in rows:
        if row.cell.method != NONE:
            groups.setdefault(budget(row.cell), []).append(row)
    for row in rows:
        if row.cell.method == NONE:
            own = budget(row.cell)
            same = [b for b in groups if replace(b, keep=b.n_paths) == own]
            for block in same or [own]:
                groups.setdefault(block, []).insert(0, row)
    for group in groups.values():
        _sort(group)
    return [_block(cell, group) for cell, group in groups.items()]


def numbered(rows: Sequence[Row]) -> dict[tuple[str, int], int]:
    """Positions of a block's rows by (name, how many-th row of that name): a method that was
    run with two settings has two rows."""
    seen: Counter[str] = Counter()
    positions = {}
    for i, row in enumerate(rows):
        positions[name(row.cell), seen[name(row.cell)]] = i
        seen[name(row.cell)] += 1
    return positions


def numbered_names(rows: Sequence[Row]) -> list[str]:
    """The names of a block's rows, the second of one name with " (2)"."""
    return [own + f" ({again + 1})" * (again > 0) for own, again in numbered(rows)]


def notes(rows: Sequence[Row]) -> list[str]:
    """Why numbers are missing, one line per reason."""
    affected: dict[str, list[Cell]] = {}
    for row in rows:
        if row.cell.method != NONE and row.line.reason:
            text = row.line.reason
            if row.line.status != Status.OK:
                text = f"{row.line.status}: {text}"
            affected.setdefault(f"{name(row.cell)} {text}", []).append(row.cell)
    return [
        note if len(cells) == 1 else f"{note} ({len(cells)} cells)"
        for note, cells in affected.items()
    ]


def is_method(row: Row) -> bool:
    """The row is no reference row."""
    return row.cell.method not in REFERENCES


def _sort(rows: list[Row]) -> None:
    """No pruning, random, the methods, oracle. Rows of one name stay together and in their order,
    by which matrices tell them apart."""
    best: dict[str, float] = {}
    for row in rows:
        auroc = row.line.auroc_within
        own = name(row.cell)
        best[own] = max(best.get(own, -1.0), auroc if auroc == auroc else 0)
    roles = {NONE: 0, RANDOM: 1, ORACLE: 3}
    place = {name: i for i, name in enumerate(best)}
    rows.sort(
        key=lambda row: (
            roles.get(row.cell.method, 2),
            -best[name(row.cell)],
            place[name(row.cell)],
        )
    )


def _block(cell: Cell, rows: list[Row]) -> Block:
    avg, cons = _compare(rows, "avg"), _compare(rows, "cons")
    return Block(
        cell=cell,
        rows=rows,
        avg=avg,
        cons=cons,
        votes=_votes(rows, cons),
        detectable=(_detectable(rows, avg, "avg"), _detectable(rows, cons, "cons")),
    )


def _pairs(rows: list[Row], found: list[Comparison], measure: str) -> list[tuple | None]:
    """(values of the row, values of the best) by problem, for every row that was compared."""
    best = next((i for i, c in enumerate(found) if c.best), None)
    pairs: list[tuple | None] = [None] * len(rows)
    if best is not None:
        ids = [r.problem_id for r in rows[best].results]
        top = by_problem(rows[best].results, measure, ids)
        for i, comparison in enumerate(found):
            if comparison.difference:
                own = {r.problem_id: r for r in rows[i].results}
                shared = [own[problem] for problem in ids if problem in own]
                pairs[i] = by_problem(shared, measure, ids), top
    return pairs


def _votes(rows: list[Row], found: list[Comparison]) -> list[McNemar | None]:
    return [mcnemar(*pair) if pair else None for pair in _pairs(rows, found, "cons")]


def _detectable(rows: list[Row], found: list[Comparison], measure: str) -> float:
    pairs = [pair for pair in _pairs(rows, found, measure) if pair]
    values = [minimal_detectable_difference(*p, n_comparisons=len(pairs)) for p in pairs]
    known = [value for value in values if value == value]
    return statistics.median(known) if known else float("nan")


def _compare(rows: Sequence[Row], measure: str) -> list[Comparison]:
    """Methods and random against the best method; controls stay without a comparison."""
    nothing = Comparison(best=False, tied=False, difference=None, p_holm=float("nan"))
    candidates = [row.cell.type is not SignalType.CONTROL for row in rows]
    members = [i for i, row in enumerate(rows) if candidates[i] or row.cell.method == RANDOM]
    ids = sorted({r.problem_id for i in members for r in rows[i].results})
    found = compare_with_best(
        [by_problem(rows[i].results, measure, ids) for i in members],
        may_be_best=[candidates[i] for i in members],
        seed=BOOTSTRAP_SEED,
    )
    compared = dict(zip(members, found, strict=True))
    return [compared.get(i, nothing) for i in range(len(rows))]

"""One cell of the grid (method × budget × checkpoint): its identity, and its line of the table.

Condenses the results of a cell's problems into means, intervals and reasons. It knows neither
pools nor files: the same function serves a run that has just ended and records read years later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from prunebench import metrics, stats
from prunebench.evaluate import ProblemResult, Status
from prunebench.types import SignalType
from prunebench.vote import Aggregator

NONE, RANDOM, ORACLE = "none", "random", "oracle"
REFERENCES = (NONE, RANDOM, ORACLE)
"""Rows that stand in every table beside the methods."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid: which method, on what, under which budget.

    Attributes
    ----------
    run_id : the run that computed it; its folder holds the configuration.
    bank : key of the trace bank, so that rows of different pools are never mixed.
    type : place in the taxonomy.
    n_paths, keep, prefix_length : N, k and L (tokens).
    setting : the rest of what rows must share to be compared: how many problems and which pool,
        what happens to finished paths.
    seed : of the run: the subsets and the methods' noise.
    """

    run_id: str
    bank: str = ""
    model: str
    dataset: str
    method: str
    type: SignalType
    mode: str
    n_paths: int
    keep: int
    prefix_length: int
    setting: str = ""
    aggregator: Aggregator = Aggregator.majority
    seed: int = 0

    def reference(self, name: str) -> Cell:
        """The row `none`, `random` or `oracle` that belongs beside this cell."""
        keep = self.n_paths if name == NONE else self.keep
        return replace(self, method=name, type=SignalType.CONTROL, keep=keep)


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One line of `summary.csv`; the fields are its columns.

    Accuracies in 0..1; tokens and seconds are means per problem; intervals cover 95%. A number
    that does not exist is NaN, and `reason` says why.
    """

    model: str
    dataset: str
    method: str
    type: str
    mode: str
    n_paths: int
    keep: int
    prefix_length: int
    avg: float
    avg_lo: float
    avg_hi: float
    cons: float
    cons_lo: float
    cons_hi: float
    generator_tokens: float
    verifier_tokens: float
    total_tokens: float
    probe_tokens: float
    calls: float
    money: float
    token_reduction_pct: float
    auroc_within: float
    auroc_lo: float
    auroc_hi: float
    headroom: float
    score_seconds: float
    status: str
    reason: str


CSV_COLUMNS = tuple(f.name for f in fields(CellResult))


def by_problem(
    results: Sequence[ProblemResult], name: str, problem_ids: Sequence[str]
) -> np.ndarray:
    """`(len(problem_ids), R)` values per subset of the measure `name`, NaN where a problem is
    missing or has fewer subsets than others."""
    found = {r.problem_id: getattr(r, name) for r in results if r.status is Status.OK}
    width = max((len(v) for v in found.values()), default=1)
    values = np.full((len(problem_ids), width), np.nan)
    for row, problem_id in zip(values, problem_ids, strict=True):
        own = found.get(problem_id, ())
        row[: len(own)] = own
    return values


def summarise(
    cell: Cell,
    results: Sequence[ProblemResult],
    *,
    random: Sequence[ProblemResult] = (),
    oracle: Sequence[ProblemResult] = (),
    seed: int = 0,
) -> CellResult:
    """Condense the results of all problems of a cell into its line of the table.

    Parameters
    ----------
    random, oracle : the reference rows of the same setting, for the headroom.
    seed : of the bootstrap.
    """
    good = [r for r in results if r.status is Status.OK]
    reasons = [f"{r.problem_id}: {r.reason}" for r in results if r.status is not Status.OK]
    if not good:
        return failed_cell(cell, Status.FAILED, _shorten(reasons) or "no problem was evaluated")
    ids = [r.problem_id for r in good]
    avg, cons, auroc = (
        stats.estimate(by_problem(good, name, ids), seed=seed) for name in ("avg", "cons", "auroc")
    )
    generator, verifier, full = (
        float(np.mean([metrics.mean_defined(getattr(r, name)) for r in good]))
        for name in ("generator_tokens", "verifier_tokens", "full_tokens")
    )
    probes, calls, money = (
        float(np.mean([getattr(r, name) for r in good]))
        for name in ("probe_tokens", "calls", "money")
    )
    headroom, why = _headroom(good, random, oracle)
    notes = [f"{len(reasons)} of {len(results)} problems failed ({_shorten(reasons)})"] * bool(
        reasons
    )
    if n_nan := sum(r.n_nan for r in good):
        why_nan = _shorten(sorted({r.reason for r in good if r.n_nan and r.reason}))
        notes.append(f"{n_nan} paths could not be scored ({why_nan or 'NaN'})")
    if verifier != verifier:
        notes.append("verifier tokens and money are not known: the server reports no usage")
    elif money != money:
        notes.append("money is not known: the endpoint has no price")
    if cell.method == NONE:
        notes.append("no signal, so no AUROC and no headroom")
    else:
        no_auroc = metrics.within_problem_auroc(np.array([auroc.mean]))[1]
        notes += [f"no AUROC: {no_auroc}"] * bool(no_auroc) + [f"no headroom: {why}"] * bool(why)
    if len(good) < 2:
        notes.append("no intervals: one problem only")
    elif auroc.mean == auroc.mean and auroc.lo != auroc.lo:
        notes.append("no interval of the AUROC: one problem only has right and wrong paths")
    return _line(
        cell,
        avg=avg.mean,
        avg_lo=avg.lo,
        avg_hi=avg.hi,
        cons=cons.mean,
        cons_lo=cons.lo,
        cons_hi=cons.hi,
        generator_tokens=generator,
        verifier_tokens=verifier,
        total_tokens=generator + verifier,
        probe_tokens=probes,
        calls=calls,
        money=money,
        token_reduction_pct=metrics.percent_saved(generator + verifier, full),
        auroc_within=auroc.mean,
        auroc_lo=auroc.lo,
        auroc_hi=auroc.hi,
        headroom=float("nan") if cell.method == NONE else headroom,
        score_seconds=metrics.mean_defined(np.array([r.score_seconds for r in good])),
        status=Status.PARTIAL if reasons else Status.OK,
        reason="; ".join(notes),
    )


def failed_cell(cell: Cell, status: Status, reason: str) -> CellResult:
    """The line of a cell that has no numbers, because it failed or was skipped."""
    return _line(cell, status=status, reason=reason)


def _line(cell: Cell, *, status: Status, reason: str, **numbers: float) -> CellResult:
    missing = {f.name: float("nan") for f in fields(CellResult) if f.type == "float"}
    return CellResult(
        model=cell.model,
        dataset=cell.dataset,
        method=cell.method,
        type=str(cell.type),
        mode=cell.mode,
        n_paths=cell.n_paths,
        keep=cell.keep,
        prefix_length=cell.prefix_length,
        status=str(status),
        reason=" ".join(reason.split()),
        **{**missing, **numbers},
    )


def _shorten(reasons: Sequence[str]) -> str:
    """The first reason, and how many more there are."""
    more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return reasons[0] + more if reasons else ""


def _headroom(
    results: Sequence[ProblemResult],
    random: Sequence[ProblemResult],
    oracle: Sequence[ProblemResult],
) -> tuple[float, str]:
    """Headroom of avg over the problems that all three have, and why it is missing."""
    tables = [
        {r.problem_id: float(r.avg.mean()) for r in rows if r.status is Status.OK}
        for rows in (results, random, oracle)
    ]
    shared = sorted(set.intersection(*map(set, tables)))
    if not shared:
        return float("nan"), "no random and oracle rows for the same problems"
    method, chance, best = (float(np.mean([t[p] for p in shared])) for t in tables)
    value = metrics.headroom_recovered(method, chance, best)
    return value, "" if value == value else "the oracle is no better than random"

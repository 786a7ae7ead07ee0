"""One cell of the grid (method × budget × checkpoint): its identity, and its line of the table.

Condenses the results of a cell's problems into means, intervals and reasons. It knows neither
pools nor files: the same function serves a run that has just ended and records read years later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from prunebench import metrics, stats
from prunebench.evaluate import ProblemResult, Status
from prunebench.modes import Protocol
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
    n_paths, keep, prefix_length : N, k and L (tokens); keep is 0 where the rule decides it.
    setting : the rest of what rows must share to be compared: how many problems and which pool,
        what happens to finished paths.
    rule : how paths are kept, in words; "" is the best k at one checkpoint.
    weights : the method whose scores weigh the votes; "" is the one that selects.
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
    rule: str = ""
    weights: str = ""
    seed: int = 0

    @property
    def has_signal(self) -> bool:
        """Whether paths were scored: not without pruning, nor by rules that stop sampling."""
        return self.method not in {NONE, *(protocol.value for protocol in Protocol)}

    def reference(self, name: str) -> Cell:
        """The row `none`, `random` or `oracle` that belongs beside this cell."""
        if name == NONE:
            keep, rule = self.n_paths, ""
        elif self.keep or self.method in (RANDOM, ORACLE):
            keep, rule = self.keep, self.rule
        else:  # the method decides how many it keeps, and its controls keep as many
            keep, rule = 0, f"{self.rule}, as many as {self.method}"
        return replace(self, method=name, type=SignalType.CONTROL, keep=keep, rule=rule, weights="")


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One line of `summary.csv`; the fields are its columns.

    Accuracies in 0..1, `_pct` in percent; tokens and seconds are means per problem; `_lo` and `_hi`
    bound the 95% interval of the column before them. A number that does not exist is NaN, and
    `reason` says why.

    Attributes
    ----------
    retention : share of the paths that was kept.
    killed_pct : share of the right paths that was dropped.
    lost_votes, won_votes : mean over problems of how much of a vote that is right without pruning
        is lost, and the other way round; cons is that without pruning − lost + won.
    launch_seconds, check_seconds, resume_seconds, wall_seconds : online only, and their sum.
    check_bytes : GPU memory that the check took beyond the paths' own.
    """

    model: str
    dataset: str
    method: str
    type: str
    mode: str
    setting: str
    rule: str
    aggregator: str
    weights: str
    seed: int
    n_paths: int
    keep: int
    prefix_length: int
    n_problems: int
    avg: float
    avg_lo: float
    avg_hi: float
    cons: float
    cons_lo: float
    cons_hi: float
    n_kept: float
    n_kept_lo: float
    n_kept_hi: float
    retention: float
    retention_lo: float
    retention_hi: float
    generator_tokens: float
    generator_tokens_lo: float
    generator_tokens_hi: float
    verifier_tokens: float
    verifier_tokens_lo: float
    verifier_tokens_hi: float
    total_tokens: float
    total_tokens_lo: float
    total_tokens_hi: float
    probe_tokens: float
    probe_tokens_lo: float
    probe_tokens_hi: float
    calls: float
    calls_lo: float
    calls_hi: float
    money: float
    money_lo: float
    money_hi: float
    token_reduction_pct: float
    token_reduction_pct_lo: float
    token_reduction_pct_hi: float
    auroc_within: float
    auroc_lo: float
    auroc_hi: float
    headroom: float
    headroom_lo: float
    headroom_hi: float
    killed_pct: float
    killed_pct_lo: float
    killed_pct_hi: float
    lost_votes: float
    lost_votes_lo: float
    lost_votes_hi: float
    won_votes: float
    won_votes_lo: float
    won_votes_hi: float
    score_seconds: float
    score_seconds_lo: float
    score_seconds_hi: float
    launch_seconds: float
    launch_seconds_lo: float
    launch_seconds_hi: float
    check_seconds: float
    check_seconds_lo: float
    check_seconds_hi: float
    resume_seconds: float
    resume_seconds_lo: float
    resume_seconds_hi: float
    wall_seconds: float
    wall_seconds_lo: float
    wall_seconds_hi: float
    check_bytes: float
    status: str
    reason: str


CSV_COLUMNS = tuple(f.name for f in fields(CellResult))


def by_problem(
    results: Sequence[ProblemResult], name: str, problem_ids: Sequence[str]
) -> np.ndarray:
    """`(len(problem_ids), R)` values per subset of the measure `name`, NaN where a problem is
    missing or has fewer subsets than others."""
    found = {
        r.problem_id: np.atleast_1d(getattr(r, name)) for r in results if r.status is Status.OK
    }
    width = max((len(v) for v in found.values()), default=1)
    values = np.full((len(problem_ids), width), np.nan)
    for row, problem_id in zip(values, problem_ids, strict=True):
        own = found.get(problem_id, ())
        row[: len(own)] = own
    return values


_PHASES = ("launch", "check", "resume")


def summarise(
    cell: Cell,
    results: Sequence[ProblemResult],
    *,
    none: Sequence[ProblemResult] = (),
    random: Sequence[ProblemResult] = (),
    oracle: Sequence[ProblemResult] = (),
    seed: int = 0,
) -> CellResult:
    """Condense the results of all problems of a cell into its line of the table.

    Parameters
    ----------
    none, random, oracle : the reference rows of the same setting, for votes that turned and for
        the headroom.
    seed : of the bootstrap.
    """
    good = [r for r in results if r.status is Status.OK]
    reasons = [f"{r.problem_id}: {r.reason}" for r in results if r.status is not Status.OK]
    if not good:
        return failed_cell(cell, Status.FAILED, _shorten(reasons) or "no problem was evaluated")
    ids = [r.problem_id for r in good]

    def of(name: str, among: Sequence[ProblemResult] = good) -> np.ndarray:
        return by_problem(among, name, ids)

    def ratio(function: Callable[..., np.ndarray], *arrays: np.ndarray) -> stats.Estimate:
        """An interval over problems only: for what hardly varies over subsets."""
        means = (stats.problem_means(values) for values in arrays)
        return stats.estimate_of(function, *means, seed=seed)

    generator, verifier, full = of("generator_tokens"), of("verifier_tokens"), of("full_tokens")
    seconds = [of(f"{phase}_seconds") for phase in _PHASES]
    lost, won = _turned(of("cons"), of("cons", none))
    estimates = {name: stats.estimate(of(name), seed=seed) for name in ("avg", "cons", "auroc")}
    estimates |= {
        "n_kept": ratio(lambda n: n, of("n_kept")),
        "generator_tokens": ratio(lambda g: g, generator),
        "verifier_tokens": ratio(lambda v: v, verifier),
        "total_tokens": ratio(lambda g, v: g + v, generator, verifier),
        "token_reduction_pct": ratio(
            lambda g, v, f: metrics.percent_saved(g + v, f), generator, verifier, full
        ),
        "killed_pct": ratio(metrics.percent_killed, of("killed_correct"), of("n_correct")),
        "lost_votes": ratio(lambda x: x, lost),
        "won_votes": ratio(lambda x: x, won),
        "score_seconds": ratio(lambda x: x, of("score_seconds")),
        "retention": ratio(lambda n: n / cell.n_paths, of("n_kept")),
        **{
            f"{phase}_seconds": ratio(lambda x: x, s)
            for phase, s in zip(_PHASES, seconds, strict=True)
        },
        "wall_seconds": ratio(lambda a, b, c: a + b + c, *seconds),
    }
    why = "no signal"
    if cell.method != NONE:
        estimates["headroom"], why = _headroom(
            of("avg"), of("avg", random), of("avg", oracle), seed
        )
    for name in ("probe_tokens", "calls", "money"):
        values = of(name)
        if np.isnan(values).any():  # not known of one problem: not known
            values = np.full_like(values, np.nan)
        estimates[name] = ratio(lambda x: x, values)
    auroc = estimates["auroc"]
    notes = [f"{len(reasons)} of {len(results)} problems failed ({_shorten(reasons)})"] * bool(
        reasons
    )
    if n_nan := sum(r.n_nan for r in good):
        why_nan = _shorten(sorted({r.reason for r in good if r.n_nan and r.reason}))
        notes.append(f"{n_nan} paths could not be scored ({why_nan or 'NaN'})")
    if np.isnan(verifier).all():
        notes.append("verifier tokens and money are not known: the server reports no usage")
    elif np.isnan(of("money")).any():
        notes.append("money is not known: the endpoint has no price")
    if not cell.has_signal:
        notes.append("no signal, so no AUROC and no headroom")
    else:
        no_auroc = metrics.within_problem_auroc(np.array([auroc.mean]))[1]
        notes += [f"no AUROC: {no_auroc}"] * bool(no_auroc) + [f"no headroom: {why}"] * bool(why)
    if len(good) < 2:
        notes.append("no intervals: one problem only")
    elif auroc.mean == auroc.mean and auroc.lo != auroc.lo:
        notes.append("no interval of the AUROC: one problem only has right and wrong paths")
    numbers: dict[str, float] = {}
    for name, estimate in estimates.items():
        column = "auroc_within" if name == "auroc" else name
        numbers |= {column: estimate.mean, f"{name}_lo": estimate.lo, f"{name}_hi": estimate.hi}
    return _line(
        cell,
        n_problems=len(good),
        check_bytes=metrics.mean_defined(of("check_bytes")),
        status=Status.PARTIAL if reasons else Status.OK,
        reason="; ".join(notes),
        **numbers,
    )


def _turned(cons: np.ndarray, without: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(P, R)` how much of a right vote pruning loses and wins, subset by subset: the first R
    subsets of a problem are the same for every row of a block."""
    if 1 not in (cons.shape[1], without.shape[1]):
        width = min(cons.shape[1], without.shape[1])
        cons, without = cons[:, :width], without[:, :width]
    change = cons - without
    nan = np.where(np.isnan(change), np.nan, 0.0)
    return np.maximum(-change, nan), np.maximum(change, nan)


def failed_cell(cell: Cell, status: Status, reason: str) -> CellResult:
    """The line of a cell that has no numbers, because it failed or was skipped."""
    return _line(cell, status=status, reason=reason)


def _line(
    cell: Cell, *, status: Status, reason: str, n_problems: int = 0, **numbers: float
) -> CellResult:
    missing = {f.name: float("nan") for f in fields(CellResult) if f.type == "float"}
    return CellResult(
        model=cell.model,
        dataset=cell.dataset,
        method=cell.method,
        type=str(cell.type),
        mode=cell.mode,
        setting=cell.setting,
        rule=cell.rule,
        aggregator=str(cell.aggregator),
        weights=cell.weights,
        seed=cell.seed,
        n_problems=n_problems,
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
    method: np.ndarray, random: np.ndarray, oracle: np.ndarray, seed: int
) -> tuple[stats.Estimate, str]:
    """Headroom of avg over the problems that all three have, and why it is missing."""
    means = (stats.problem_means(rows) for rows in (method, random, oracle))
    found = stats.estimate_of(metrics.headroom_recovered, *means, seed=seed)
    if found.mean == found.mean:
        return found, ""
    defined = [~np.isnan(rows).all(axis=1) for rows in (method, random, oracle)]
    shared = np.all(defined, axis=0)
    if not shared.any():
        return found, "no random and oracle rows for the same problems"
    return found, "the oracle is no better than random"

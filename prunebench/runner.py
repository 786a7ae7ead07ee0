"""Many problems: fill the bank, score, evaluate; or run them online. Failures become records.

`execute` is one cell of an experiment. What cells share lives in a `Lab`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from prunebench import registry
from prunebench.cells import NONE, RANDOM, REFERENCES, Cell
from prunebench.config import RunConfig
from prunebench.errors import NOT_AVAILABLE, Incompatible, Unavailable
from prunebench.evaluate import (
    ProblemResult,
    Status,
    evaluate_problem,
    failed_problem,
    with_costs,
)
from prunebench.execution import (
    Execution,
    cell_of,
    path_rows,
    plan,
    progress,
    references,
    store_traces,
)
from prunebench.lab import Lab, Stored
from prunebench.modes import Mode, Protocol
from prunebench.online import run_online
from prunebench.protocols import sampled
from prunebench.pruning import Pruning
from prunebench.report import records
from prunebench.scoring import Scored, Scorer
from prunebench.select import Select


def execute(run: RunConfig, lab: Lab, console: Console, run_id: str, label: str) -> Execution:
    """Run one configuration.

    Parameters
    ----------
    label : the method's name in tables (the chosen preset).
    """
    run.validate()
    backend = lab.backend(run)
    unavailable = ""
    try:
        if run.protocol is Protocol.prune:  # the other rules score nothing
            lab.pair(run)
    except Incompatible as error:
        if not run.imported:
            raise
        unavailable = f"{NOT_AVAILABLE} {', '.join(error.lacking)}"  # a fact about the traces
    backend.identity()  # a missing model shows here, before any work
    scores = run.protocol is Protocol.prune and not unavailable
    leaks = lab.leakage(run) if scores else []
    if run.mode is Mode.online:
        execution = run_online(run, lab, console, run_id, label)
        return replace(execution, notes=[*leaks, *execution.notes])

    before = dict(lab.seconds)
    bank = lab.bank(run)
    problems = run.dataset.problems()
    with lab.clock("generate"), progress(console, "generating paths", len(problems)) as advance:
        report = lab.fill(run, advance)
    with lab.clock("read bank"):
        stored = lab.stored(run)
    failures = dict(report.failures)
    run.settle([item.pool.lengths for item in stored.values()])
    pruning = run.pruning
    cell = cell_of(run, run_id, label, bank.hash)
    results: list[ProblemResult] = []
    paths: list[dict[str, Any]] = []
    complete = True
    if cell.method in REFERENCES and not cell.keep:
        unavailable = "it keeps as many as the methods beside it, and has no rule of its own"
    if not unavailable and cell.method not in REFERENCES:
        try:
            results, paths, complete = _evaluated(run, lab, console, cell, stored)
        except Incompatible as error:  # the votes' weights need what the traces lack
            if not run.imported:
                raise
            unavailable = f"{NOT_AVAILABLE} {', '.join(error.lacking)}"
    rows = [records.record(cell, result) for result in results]
    if results and all(_lacks_input(r) for r in results):
        unavailable = results[0].reason
    if unavailable:
        rows = [records.failed_record(cell, Status.SKIPPED, unavailable)]
    with lab.clock("evaluate"):
        rows += _references(run, lab, cell, stored, pruning, results)
    skipped = {cell.method} if unavailable else set()
    beside = REFERENCES if run.protocol is Protocol.prune else (NONE,)
    for name in {cell.method, *beside} - skipped:
        own = cell if name == cell.method else cell.reference(name)
        rows += [
            records.record(own, failed_problem(p.id, failures.get(p.id, "no complete paths")))
            for p in problems
            if p.id not in stored
        ]
    return Execution(
        rows=rows,
        paths=paths,
        complete=complete,
        seconds=lab.spent_since(before),
        notes=[*leaks, *run.notes, *bank.warnings, *backend.notes()],
        bank=bank.folder,
        store_traces=partial(
            store_traces, stored=stored, decode=backend.decode, cell=cell, bank=bank.folder
        ),
    )


def _evaluated(
    run: RunConfig, lab: Lab, console: Console, cell: Cell, stored: dict[str, Stored]
) -> tuple[list[ProblemResult], list[dict[str, Any]], bool]:
    """Results of the problems that the bank holds, the rows of `paths.parquet`, and whether the
    next run could do no better."""
    results: list[ProblemResult] = []
    paths: list[dict[str, Any]] = []
    if run.protocol is not Protocol.prune:
        plans = plan(run, stored.values(), joint=False)
        with lab.clock("evaluate"):
            return [sampled(run, stored[p], subsets) for p, subsets in plans.items()], [], True
    work = _Cell(run=run, lab=lab, stored=stored, cell=cell)
    plans = plan(run, stored.values(), joint=work.joint)
    asked = lab.endpoint(run) if lab.judge(run) else None
    with (
        lab.clock("score"),
        progress(console, f"scoring with {cell.method}", len(plans), asked) as advance,
    ):
        for problem_id, subsets in plans.items():
            try:
                result, scored = work.evaluate(stored[problem_id], subsets)
                results.append(result)
                paths += path_rows(cell, run, stored[problem_id], scored.batches)
            except Unavailable as error:  # not stored, so that the next run asks again
                results.append(failed_problem(problem_id, str(error)))
            advance(1)
    scorers = [s for s in (work.selecting, work.weighing) if s is not None]
    return results, paths, not any(scorer.transient for scorer in scorers)


def _lacks_input(result: ProblemResult) -> bool:
    return result.status is Status.FAILED and result.reason.startswith(NOT_AVAILABLE)


def _references(
    run: RunConfig,
    lab: Lab,
    cell: Cell,
    stored: dict[str, Stored],
    pruning: Pruning,
    results: list[ProblemResult],
) -> list[dict[str, Any]]:
    """Records of the rows none, random and oracle. Cells with the same budget share them, unless
    the method decides how many paths it keeps."""
    plans = plan(run, stored.values(), joint=False)
    if run.protocol is not Protocol.prune:
        return list(references(run, cell, stored, plans, pruning, only_none=True))
    if pruning.rule is Select.top_k:
        key = repr((replace(cell.reference(RANDOM), run_id=""), run.evaluation, pruning, run.vote))
        if key not in lab.references:
            lab.references[key] = list(references(run, cell, stored, plans, pruning))
        return [{**row, "run_id": cell.run_id} for row in lab.references[key]]
    counts = {r.problem_id: r.n_kept for r in results if r.status is Status.OK}
    return list(references(run, cell, stored, plans, pruning, as_many_as=counts))


@dataclass(kw_only=True)
class _Cell:
    """Evaluates problems: one method selects, the same or another one weighs the votes."""

    run: RunConfig
    lab: Lab
    stored: dict[str, Stored]
    cell: Cell

    def __post_init__(self) -> None:
        self.selecting = Scorer(run=self.run, lab=self.lab, stored=self.stored)
        self.weighing, self.same = None, False
        if self.run.weights is not None:
            method = registry.method_class(self.run.weights)()
            other = replace(self.run, method=method, weights=None)
            self.lab.pair(other)
            self.lab.leakage(other)
            self.weighing = Scorer(run=other, lab=self.lab, stored=self.stored)
            asked_twice = type(method) is type(self.run.method) and method == self.run.method
            self.same = asked_twice and not self.run.weights_at_end

    @property
    def joint(self) -> bool:
        return self.selecting.joint or (self.weighing is not None and self.weighing.joint)

    def evaluate(self, stored: Stored, subsets: np.ndarray) -> tuple[ProblemResult, Scored]:
        """Score what is missing, then prune and vote on every subset."""
        run, pruning = self.run, self.run.pruning
        scored = self.selecting.score(stored, subsets, pruning)
        weights, extra, reason = None, None, scored.reason
        if self.weighing is not None:
            at = run.longest if run.weights_at_end else pruning.prefix_length
            weighed = self.weighing.score(stored, subsets, Pruning(((at, run.keep),)))
            weights, extra = weighed.by_stage[0], weighed.costs
            if np.isnan(weights).all():
                why = weighed.reason or "every score is NaN"
                return failed_problem(stored.problem.id, f"no weight for the votes: {why}"), scored
            if weighed.reason:
                reason = "; ".join(filter(None, [reason, f"weights: {weighed.reason}"]))
        result = evaluate_problem(
            stored.pool,
            subsets,
            scored.by_stage,
            keep=run.keep,
            prefix_length=run.prefix_length,
            pruning=pruning,
            aggregator=run.aggregator,
            options=run.vote,
            weights=weights,
            costs=scored.costs,
            reason=reason,
        )
        if extra is not None and not self.same and result.status is Status.OK:
            # only kept paths vote, so only they must be weighed
            shares = np.nan_to_num(result.n_kept) / run.n_paths
            per_subset = list(extra) * (len(shares) // len(extra))
            first = result
            result = with_costs(
                result, [c.times(float(s)) for c, s in zip(per_subset, shares, strict=True)]
            )
            result = replace(
                result,
                probe_tokens=result.probe_tokens + first.probe_tokens,
                calls=result.calls + first.calls,
                money=result.money + first.money,
                score_seconds=result.score_seconds + first.score_seconds,
            )
        return result, scored

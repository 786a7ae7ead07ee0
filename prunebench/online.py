"""Launch-Check-Resume on the live engine, problem after problem, in real seconds.

What only complete pruned paths can tell comes from the trace bank, if there is one, or is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from prunebench.cells import REFERENCES, Cell
from prunebench.config import RunConfig
from prunebench.cost import Cost
from prunebench.engine import Checkpoint, ProblemRun, launch_check_resume
from prunebench.errors import PrunebenchError
from prunebench.evaluate import (
    ProblemResult,
    Status,
    evaluate_problem,
    failed_problem,
    pool_of,
    voted_answer,
)
from prunebench.execution import (
    Execution,
    cell_of,
    plan,
    progress,
    references,
    scoring_of,
    store_traces,
)
from prunebench.lab import Lab, Stored
from prunebench.metrics import accuracy_of_kept
from prunebench.report import records
from prunebench.select import Select
from prunebench.types import Problem
from prunebench.vote import credit, vote


def run_online(run: RunConfig, lab: Lab, console: Console, run_id: str, label: str) -> Execution:
    """Launch-Check-Resume on the live engine, with the bank's paths, if any, as reference."""
    before = dict(lab.seconds)
    backend = lab.backend(run)
    with lab.clock("load"):
        backend.load()
        method = lab.ready(lab.prepared(run), run)
    checkpoint = Checkpoint(
        prefix_length=run.prefix_length, seed=run.seed, check_steps=run.dataset.check_steps
    )
    bank = lab.bank(run)
    stored = lab.stored(run) if run.pool == run.n_paths else {}
    problems = run.dataset.problems()
    run.settle([item.pool.lengths for item in stored.values()])
    cell = cell_of(run, run_id, label, bank.hash)
    rows, results, same, paths = [], [], [], []
    asked = lab.endpoint(run) if lab.judge(run) else None

    def launch(group: Sequence[Problem]) -> list[ProblemRun]:
        return launch_check_resume(
            backend,
            group,
            method,
            checkpoint,
            n_paths=run.n_paths,
            pruning=run.pruning,
            ledger=lab.ledger,
        )

    with progress(console, f"online with {label}", len(problems), asked) as advance:
        for at in range(0, len(problems), run.problems_at_once):
            group = problems[at : at + run.problems_at_once]
            for problem, outcome in zip(group, _attempt(group, launch), strict=True):
                reference = stored.get(problem.id)
                if isinstance(outcome, Exception):
                    reason = f"{type(outcome).__name__}: {outcome}"
                    result = failed_problem(problem.id, reason)
                else:
                    result = _online_result(run, outcome, reference)
                    for phase, seconds in outcome.seconds.items():
                        lab.seconds[phase] = lab.seconds.get(phase, 0.0) + seconds
                    if reference is not None:
                        same.append(_same_paths(outcome, reference))
                    paths += _path_rows(run, cell, outcome, reference)
                results.append(result)
                if not (stored and cell.method in REFERENCES):  # the exact row says it better
                    rows.append(records.record(cell, result))
            advance(len(group))
    notes = list(run.notes)
    if stored:
        counts = None
        if run.select is not Select.top_k:
            counts = {r.problem_id: r.n_kept for r in results if r.status is Status.OK}
        plans = plan(run, stored.values(), joint=False)
        exact = list(references(run, cell, stored, plans, run.pruning, as_many_as=counts))
        rows += _timed(exact, cell.method, results)
        notes.append(
            f"{sum(same)} of {len(same)} problems: every kept path has the tokens that the "
            f"trace bank has for it"
        )
    else:
        reason = "no complete trace bank for this configuration: run it with mode=replay first"
        rows += [
            records.failed_record(cell.reference(name), Status.SKIPPED, reason)
            for name in REFERENCES
        ]
    notes += backend.notes()
    return Execution(
        rows=rows,
        paths=paths,
        seconds=lab.spent_since(before),
        notes=notes,
        bank=bank.folder if stored else None,
        store_traces=partial(
            store_traces, stored=stored, decode=backend.decode, cell=cell, bank=bank.folder
        )
        if stored
        else None,
    )


def _timed(
    exact: list[dict[str, Any]], method: str, results: Sequence[ProblemResult]
) -> list[dict[str, Any]]:
    """The exact rows of references, with the seconds that this run measured of its own one."""
    measured = {r.problem_id: r for r in results if r.status is Status.OK}
    for row in exact:
        if row["method"] == method and row["problem_id"] in measured:
            result = measured[row["problem_id"]]
            for name in ("launch_seconds", "check_seconds", "resume_seconds", "check_bytes"):
                value = getattr(result, name)
                row[name] = None if value != value else value
    return exact


def _attempt(
    group: Sequence[Problem], launch: Callable[[Sequence[Problem]], list[ProblemRun]]
) -> Sequence[ProblemRun | Exception]:
    """What became of each problem; when a group fails, its problems run one by one."""
    try:
        return launch(group)
    except PrunebenchError:
        raise
    except Exception as error:
        if len(group) == 1:
            return [error.with_traceback(None)]  # whose frames would keep the batch in memory
    return [outcome for problem in group for outcome in _attempt([problem], launch)]


def _same_paths(outcome: ProblemRun, reference: Stored) -> bool:
    known = {trace.index: trace for trace in reference.traces}
    return all(np.array_equal(t.known_ids, known[t.index].known_ids) for t in outcome.finished)


def _path_rows(
    run: RunConfig, cell: Cell, outcome: ProblemRun, reference: Stored | None
) -> list[dict[str, Any]]:
    """Rows of `paths.parquet`. How a pruned path would have ended only the bank knows."""
    known = {t.index: t for t in (reference.traces if reference else outcome.finished)}
    scoring = scoring_of(run)
    rows = []
    for (prefix_length, _), check in zip(run.pruning.stages, outcome.checks, strict=True):
        claimed = run.method.probabilities(check.scores)
        shown = check.scores if claimed is None else claimed
        for trace, score in zip(outcome.launched, shown.tolist(), strict=True):
            end = known.get(trace.index)
            rows.append(
                records.path_record(
                    cell,
                    prefix_length,
                    outcome.problem.id,
                    end or trace,
                    score,
                    probability=claimed is not None,
                    correct=None if end is None else end.correct,
                    **scoring,
                )
            )
    return rows


def _online_result(run: RunConfig, outcome: ProblemRun, reference: Stored | None) -> ProblemResult:
    """What happened to one problem online. What only complete pruned paths can tell (tokens
    without pruning, right paths killed, AUROC) comes from the bank, or is missing."""
    by_stage = [check.scores[None] for check in outcome.checks]
    reasons = [check.reason for check in outcome.checks if check.reason]
    if np.isnan(by_stage[0]).all():
        reason = reasons[0] if reasons else "no path could be scored"
        return failed_problem(outcome.problem.id, reason)
    if reference is not None:
        result = evaluate_problem(
            reference.pool,
            np.arange(run.n_paths)[None],
            by_stage,
            keep=run.keep,
            prefix_length=run.prefix_length,
            pruning=run.pruning,
            aggregator=run.aggregator,
            options=run.vote,
        )
    else:
        unknown = np.array([np.nan])
        result = replace(
            failed_problem(outcome.problem.id, ""),
            status=Status.OK,
            full_tokens=unknown,
            killed_correct=unknown,
            n_correct=unknown,
            auroc=unknown,
        )
    # The paths as they really went; pruned ones end at their checkpoint, without an answer.
    final = {trace.index: trace for trace in outcome.finished}
    pool = pool_of(outcome.problem.id, [final.get(t.index, t) for t in outcome.launched])
    kept = outcome.kept[None]
    cost = sum((check.cost for check in outcome.checks), Cost()).priced(*run.endpoint.prices)
    win = vote(run.aggregator, pool.codes[None], kept, by_stage[-1], run.vote)
    return replace(
        result,
        avg=accuracy_of_kept(pool.correct[None], kept),
        cons=credit(win, pool.right_codes),
        generator_tokens=np.array([outcome.tokens.sum() + outcome.overrun + cost.probe_tokens]),
        verifier_tokens=np.array([cost.verifier_tokens]),
        n_kept=np.array([float(kept.sum())]),
        kept=[int(i) for i in pool.indices[outcome.kept]],
        answer=voted_answer(pool, np.flatnonzero(outcome.kept), win[0]),
        n_nan=int(np.isnan(by_stage[0]).sum()),
        probe_tokens=cost.probe_tokens,
        calls=cost.requests,
        money=cost.money,
        score_seconds=cost.seconds,
        launch_seconds=outcome.seconds["launch"],
        check_seconds=outcome.seconds["check"],
        resume_seconds=outcome.seconds["resume"],
        check_bytes=outcome.check_bytes,
        reason="; ".join(reasons),
    )

"""Many problems: fill the bank, score, evaluate; or run them online. Failures become records.

`execute` is one cell of an experiment. What cells share lives in a `Lab`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prunebench import registry
from prunebench.cells import NONE, ORACLE, RANDOM, REFERENCES, Cell
from prunebench.config import RunConfig, plain
from prunebench.engine import Checkpoint, ProblemRun, check, launch_check_resume
from prunebench.environment import environment
from prunebench.errors import PrunebenchError
from prunebench.evaluate import (
    ProblemResult,
    Status,
    draw_subsets,
    evaluate_problem,
    failed_problem,
    no_pruning,
    oracle_pruning,
    pool_of,
    random_pruning,
    voted_answer,
)
from prunebench.lab import Lab, Stored
from prunebench.metrics import accuracy_of_kept, generator_tokens
from prunebench.modes import Mode
from prunebench.report import records
from prunebench.scores import ScoredBatch, ScoreTable, score_key, source_hash
from prunebench.select import Finished
from prunebench.types import Problem
from prunebench.vote import credit, vote


@dataclass(kw_only=True)
class Execution:
    """What a run produced.

    Attributes
    ----------
    rows : records, one per cell and problem.
    seconds : wall time by phase.
    notes : facts for people that have no place in a table.
    bank : folder of the trace bank, if one was used.
    """

    rows: list[dict[str, Any]]
    seconds: dict[str, float]
    notes: list[str] = field(default_factory=list)
    bank: Path | None = None


def execute(run: RunConfig, lab: Lab, console: Console, run_id: str, label: str) -> Execution:
    """Run one configuration.

    Parameters
    ----------
    label : the method's name in tables (the chosen preset).
    """
    run.validate()
    backend = lab.backend(run)
    lab.pair(run)
    backend.identity()  # a missing model shows here, before any work
    prepared = lab.prepared(run)
    if run.mode is Mode.online:
        return _online(run, lab, console, run_id, label)

    before = dict(lab.seconds)
    bank = lab.bank(run)
    problems = run.dataset.problems()
    with lab.clock("generate"), _progress(console, "generating paths", len(problems)) as advance:
        report = lab.fill(run, advance)
    with lab.clock("read bank"):
        stored = lab.stored(run)
    failures = dict(report.failures)
    cell = _cell(run, run_id, label, bank.hash)
    plans = _plan(run, stored.values(), joint=run.method.joint)
    rows: list[dict[str, Any]] = []
    if cell.method not in REFERENCES:
        table = ScoreTable.open(
            bank.folder,
            score_key(
                bank_hash=bank.hash,
                method_name=registry.method_name(run.method),
                method_config={**plain(run.method), "checkpoint": None},
                source_hash=source_hash(type(run.method)),
                checkpoint_hash=prepared.checkpoint_hash,
                prefix_length=run.prefix_length,
                seed=run.seed,
                granted=run.method.requires,
            ),
        )
        scorer = _Scorer(run=run, lab=lab, table=table, stored=stored)
        results = []
        with (
            lab.clock("score"),
            _progress(console, f"scoring with {label}", len(plans)) as advance,
        ):
            for problem_id, subsets in plans.items():
                results.append(scorer.evaluate(stored[problem_id], subsets))
                advance(1)
        rows += [records.record(cell, result) for result in results]
    with lab.clock("evaluate"):
        rows += _references(run, cell, stored, _plan(run, stored.values(), joint=False))
    for name in {cell.method, *REFERENCES}:
        own = cell if name == cell.method else cell.reference(name)
        rows += [
            records.record(own, failed_problem(p.id, failures.get(p.id, "no complete paths")))
            for p in problems
            if p.id not in stored
        ]
    return Execution(
        rows=rows,
        seconds={
            k: v - before.get(k, 0.0) for k, v in lab.seconds.items() if v > before.get(k, 0.0)
        },
        notes=list(bank.warnings),
        bank=bank.folder,
    )


@dataclass(kw_only=True)
class _Scorer:
    """Scores through the cache: what the table holds is not scored again."""

    run: RunConfig
    lab: Lab
    table: ScoreTable
    stored: dict[str, Stored]

    def __post_init__(self) -> None:
        self.replay = self.lab.replay(self.run, self.stored)
        self.checkpoint = Checkpoint(
            prefix_length=self.run.prefix_length,
            seed=self.run.seed,
            check_steps=self.run.dataset.check_steps,
        )

    def evaluate(self, stored: Stored, subsets: np.ndarray) -> ProblemResult:
        """Score what is missing, then prune and vote on every subset."""
        run, pool, joint = self.run, stored.pool, self.run.method.joint
        sets = pool.indices[subsets] if joint else pool.indices[None]
        batches = [self._batch(stored.problem, indices.tolist()) for indices in sets]
        n_scored = len(batches[0].indices)
        scale = run.n_paths / n_scored  # cost of n_paths paths, from that of the pool
        scores = (
            np.stack([batch.scores for batch in batches]) if joint else batches[0].scores[subsets]
        )
        tokens = np.array([batch.verifier_tokens * scale for batch in batches])
        result = evaluate_problem(
            pool,
            subsets,
            scores,
            keep=run.keep,
            prefix_length=run.prefix_length,
            policy=run.finished,
            aggregator=run.aggregator,
            verifier_tokens=np.broadcast_to(tokens, (len(subsets),)).copy(),
            score_seconds=float(np.mean([batch.seconds for batch in batches])) * scale,
        )
        reasons = {batch.reason for batch in batches if batch.reason}
        if result.status is Status.FAILED and reasons:
            return failed_problem(result.problem_id, "; ".join(sorted(reasons)))
        return result

    def _batch(self, problem: Problem, indices: list[int]) -> ScoredBatch:
        joint = self.run.method.joint
        owed = self.table.missing(problem.id, indices, joint)
        if owed:
            method = self.lab.ready(self.lab.prepared(self.run), self.run)
            session = self.replay.open(problem, owed)
            session.advance(self.run.prefix_length)
            verdict = check(method, session, self.replay, self.checkpoint)
            session.close()
            self.table.put(
                ScoredBatch(
                    problem=problem.id,
                    indices=tuple(owed),
                    scores=verdict.scores,
                    verifier_tokens=verdict.verifier_tokens,
                    seconds=verdict.seconds,
                    reencode_seconds=verdict.reencode_s,
                    reason=verdict.reason,
                )
            )
        batch = self.table.get(problem.id, indices, joint)
        assert batch is not None, "just stored"
        return batch


def _plan(run: RunConfig, stored: Iterable[Stored], *, joint: bool) -> dict[str, np.ndarray]:
    """The subsets of every problem's pool: `(R, n_paths)` positions, fixed by the seed."""
    options = run.evaluation
    n_subsets = options.n_subsets_joint if joint else options.n_subsets
    plans = {}
    for item in stored:
        rng = np.random.default_rng([run.seed, 2, *item.problem.id.encode()])
        plans[item.problem.id] = draw_subsets(len(item.traces), run.n_paths, n_subsets, rng)
    return plans


def _references(
    run: RunConfig, cell: Cell, stored: dict[str, Stored], plans: dict[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    """Records of the rows none, random and oracle."""
    options = {
        "keep": run.keep,
        "prefix_length": run.prefix_length,
        "policy": run.finished,
        "aggregator": run.aggregator,
    }
    for problem_id, subsets in plans.items():
        pool = stored[problem_id].pool
        rng = np.random.default_rng([run.seed, 1, *problem_id.encode()])
        yield records.record(
            cell.reference(NONE), no_pruning(pool, subsets, prefix_length=run.prefix_length)
        )
        yield records.record(
            cell.reference(RANDOM), random_pruning(pool, subsets, rng=rng, **options)
        )
        yield records.record(cell.reference(ORACLE), oracle_pruning(pool, subsets, **options))


def _online(run: RunConfig, lab: Lab, console: Console, run_id: str, label: str) -> Execution:
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
    cell = _cell(run, run_id, label, bank.hash)
    stored = lab.stored(run) if run.pool == run.n_paths else {}
    problems = run.dataset.problems()
    rows, same = [], []
    with _progress(console, f"online with {label}", len(problems)) as advance:
        for problem in problems:
            reference = stored.get(problem.id)
            try:
                outcome = launch_check_resume(
                    backend,
                    problem,
                    method,
                    checkpoint,
                    n_paths=run.n_paths,
                    keep=run.keep,
                    policy=run.finished,
                )
                result = _online_result(run, outcome, reference)
            except PrunebenchError:
                raise
            except Exception as error:
                result = failed_problem(problem.id, f"{type(error).__name__}: {error}")
            else:
                for phase, seconds in outcome.seconds.items():
                    lab.seconds[phase] = lab.seconds.get(phase, 0.0) + seconds
                if reference is not None:
                    same.append(_same_paths(outcome, reference))
            if not (stored and cell.method in REFERENCES):  # the exact row says it better
                rows.append(records.record(cell, result))
            advance(1)
    notes = []
    if stored:
        rows += _references(run, cell, stored, _plan(run, stored.values(), joint=False))
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
    return Execution(
        rows=rows,
        seconds={
            k: v - before.get(k, 0.0) for k, v in lab.seconds.items() if v > before.get(k, 0.0)
        },
        notes=notes,
        bank=bank.folder if stored else None,
    )


def _same_paths(outcome: ProblemRun, reference: Stored) -> bool:
    known = {trace.index: trace for trace in reference.traces}
    return all(np.array_equal(t.token_ids, known[t.index].token_ids) for t in outcome.finished)


def _online_result(run: RunConfig, outcome: ProblemRun, reference: Stored | None) -> ProblemResult:
    """What happened to one problem online. What only complete pruned paths can tell (tokens
    without pruning, right paths killed, AUROC) comes from the bank, or is missing."""
    scores = outcome.check.scores[None]
    if np.isnan(scores).all():
        return failed_problem(outcome.problem.id, outcome.check.reason or "no path could be scored")
    if reference is not None:
        result = evaluate_problem(
            reference.pool,
            np.arange(run.n_paths)[None],
            scores,
            keep=run.keep,
            prefix_length=run.prefix_length,
            policy=run.finished,
            aggregator=run.aggregator,
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
    # The paths as they really went; pruned ones end at the checkpoint, without an answer.
    final = {trace.index: trace for trace in outcome.finished}
    pool = pool_of(outcome.problem.id, [final.get(t.index, t) for t in outcome.launched])
    kept = outcome.kept[None]
    win = vote(run.aggregator, pool.codes[None], kept, scores)
    return replace(
        result,
        avg=accuracy_of_kept(pool.correct[None], kept),
        cons=credit(win, pool.right_codes),
        generator_tokens=generator_tokens(pool.lengths[None], kept, run.prefix_length),
        verifier_tokens=np.array([float(outcome.check.verifier_tokens)]),
        kept=[int(i) for i in pool.indices[outcome.kept]],
        answer=voted_answer(pool, np.flatnonzero(outcome.kept), win[0]),
        n_nan=int(np.isnan(scores).sum()),
        score_seconds=outcome.check.seconds,
    )


def _cell(run: RunConfig, run_id: str, label: str, bank: str = "") -> Cell:
    parts = []  # what differs from the default
    if run.dataset.limit is not None:
        parts.append(f"first {run.dataset.limit} problems")
    if run.pool > run.n_paths:
        parts.append(f"{run.evaluation.n_subsets} subsets of {run.pool}")
    if run.finished is Finished.keep_free:
        parts.append("finished paths kept free")
    return Cell(
        run_id=run_id,
        bank=bank,
        model=run.model.name,
        dataset=run.dataset.name,
        method=label,
        type=run.method.type,
        mode=run.mode.value,
        n_paths=run.n_paths,
        keep=run.keep,
        prefix_length=run.prefix_length,
        setting=", ".join(parts),
        aggregator=run.aggregator,
        seed=run.seed,
    )


def failed_execution(run: RunConfig, run_id: str, label: str, reason: str) -> Execution:
    """The record of a cell that could not run."""
    cell = _cell(run, run_id, label)
    return Execution(rows=[records.failed_record(cell, Status.FAILED, reason)], seconds={})


def write_run(execution: Execution, run: RunConfig, folder: Path, run_id: str) -> Any:
    """Write `records.parquet` and `run.json` into the folder of a run; returns the records."""
    table = records.frame(execution.rows)
    records.write(folder / "records.parquet", table)
    facts = {
        "run_id": run_id,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "config": plain(run),
        "bank": None if execution.bank is None else str(execution.bank),
        "seeds": {"run": run.seed, "dataset": getattr(run.dataset, "seed", None)},
        "seconds": {k: round(v, 3) for k, v in execution.seconds.items()},
        "notes": execution.notes,
        **environment(),
    }
    with records.replacing(folder / "run.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2, default=str) + "\n")
    return table


class _progress:
    """A progress bar on the console; yields `advance(n)`. Silent for work that is no work."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("problems"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=total)

    def __enter__(self) -> Any:
        self.bar.start()
        return lambda n: self.bar.advance(self.task, n)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

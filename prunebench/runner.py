"""Many problems: fill the bank, score, evaluate; or run them online. Failures become records.

`execute` is one cell of an experiment. What cells share lives in a `Lab`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from prunebench import registry
from prunebench.cells import REFERENCES
from prunebench.config import RunConfig, plain
from prunebench.engine import Checkpoint, check
from prunebench.errors import Unavailable
from prunebench.evaluate import ProblemResult, evaluate_problem, failed_problem
from prunebench.execution import Execution, cell_of, plan, progress, references
from prunebench.lab import Lab, Stored
from prunebench.modes import Mode
from prunebench.online import run_online
from prunebench.report import records
from prunebench.scores import ScoredBatch, ScoreTable, score_key, source_hash
from prunebench.types import Capability, Problem


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
        return run_online(run, lab, console, run_id, label)

    before = dict(lab.seconds)
    bank = lab.bank(run)
    problems = run.dataset.problems()
    with lab.clock("generate"), progress(console, "generating paths", len(problems)) as advance:
        report = lab.fill(run, advance)
    with lab.clock("read bank"):
        stored = lab.stored(run)
    failures = dict(report.failures)
    cell = cell_of(run, run_id, label, bank.hash)
    plans = plan(run, stored.values(), joint=run.method.joint)
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
                endpoint=_servers(run, lab),
            ),
        )
        scorer = _Scorer(run=run, lab=lab, table=table, stored=stored)
        results = []
        asked = lab.endpoint(run) if lab.judge(run) else None
        with (
            lab.clock("score"),
            progress(console, f"scoring with {label}", len(plans), asked) as advance,
        ):
            for problem_id, subsets in plans.items():
                try:
                    results.append(scorer.evaluate(stored[problem_id], subsets))
                except Unavailable as error:  # not stored, so that the next run asks again
                    results.append(failed_problem(problem_id, str(error)))
                advance(1)
        rows += [records.record(cell, result) for result in results]
    with lab.clock("evaluate"):
        rows += references(run, cell, stored, plan(run, stored.values(), joint=False))
    for name in {cell.method, *REFERENCES}:
        own = cell if name == cell.method else cell.reference(name)
        rows += [
            records.record(own, failed_problem(p.id, failures.get(p.id, "no complete paths")))
            for p in problems
            if p.id not in stored
        ]
    return Execution(
        rows=rows,
        seconds=lab.spent_since(before),
        notes=[*bank.warnings, *backend.notes()],
        bank=bank.folder,
    )


def _servers(run: RunConfig, lab: Lab) -> dict[str, Any] | None:
    """What determines scores that servers give: the judge, and the engine's learned reader."""
    reader = getattr(run.backend, "reader", None)  # no option of every engine
    judge = lab.judge(run)
    if reader is None or Capability.CACHE_READER not in run.method.requires:
        return judge
    return {**(judge or {}), "reader": reader}


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
        return evaluate_problem(
            pool,
            subsets,
            scores,
            keep=run.keep,
            prefix_length=run.prefix_length,
            policy=run.finished,
            aggregator=run.aggregator,
            costs=[batch.cost.priced(*run.endpoint.prices).times(scale) for batch in batches],
            reason="; ".join(sorted({batch.reason for batch in batches if batch.reason})),
        )

    def _batch(self, problem: Problem, indices: list[int]) -> ScoredBatch:
        joint = self.run.method.joint
        owed = self.table.missing(problem.id, indices, joint)
        if owed:
            method = self.lab.ready(self.lab.prepared(self.run), self.run)
            session = self.replay.open(problem, owed)
            session.advance(self.run.prefix_length)
            verdict = check(method, session, self.replay, self.checkpoint, self.lab.ledger)
            session.close()
            if not verdict.lasting and np.isnan(verdict.scores).all():
                raise Unavailable(verdict.reason)
            fresh = ScoredBatch(
                problem=problem.id,
                indices=tuple(owed),
                scores=verdict.scores,
                cost=verdict.cost,
                reencode_seconds=verdict.reencode_s,
                reason=verdict.reason,
            )
            if not verdict.lasting and len(owed) == len(indices):
                return fresh  # good for this run, and asked again in the next
            self.table.put(fresh)
        batch = self.table.get(problem.id, indices, joint)
        assert batch is not None, "just stored"
        return batch

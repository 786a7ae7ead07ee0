"""Scores of a bank's paths at every checkpoint of a run, through the cache, with what they cost.

What a score table holds is not scored again. Methods that look at all paths together are asked
anew for every subset, and at later checkpoints about its survivors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunebench import registry
from prunebench.config import RunConfig, plain
from prunebench.cost import Cost
from prunebench.engine import Checkpoint, check
from prunebench.errors import Unavailable
from prunebench.lab import Lab, Stored
from prunebench.pruning import Pruning
from prunebench.scores import ScoredBatch, ScoreTable, score_key, source_hash
from prunebench.types import Capability, Problem


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a method thought of the subsets of one problem's pool.

    Attributes
    ----------
    by_stage : per checkpoint, `(P,)` scores of the pool, or `(R, n)` of every subset for a joint
        method (NaN for paths that are gone).
    costs : of each subset, or one for all.
    batches : per checkpoint, one batch with the scores to show: of the pool, or the first subset.
    reason : why scores are NaN, "" when none is.
    """

    by_stage: list[np.ndarray]
    costs: list[Cost]
    batches: list[ScoredBatch]
    reason: str


@dataclass(kw_only=True)
class Scorer:
    """Scores with the method of `run`, whose weights are found already."""

    run: RunConfig
    lab: Lab
    stored: dict[str, Stored]
    transient: bool = False
    """Whether a score is missing that the next run may get."""
    _tables: dict[int, ScoreTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.replay = self.lab.replay(self.run, self.stored)

    @property
    def joint(self) -> bool:
        return self.run.method.joint

    def score(self, stored: Stored, subsets: np.ndarray, pruning: Pruning) -> Scored:
        """Scores at every checkpoint of a problem.

        Raises `Unavailable` when the method cannot score this problem now but may later.
        """
        pool, n_pool = stored.pool, len(stored.pool.lengths)
        alive = np.ones(subsets.shape, dtype=bool)
        by_stage, first_batches, reasons = [], [], set()
        costs = [Cost()]
        for stage, (prefix_length, _) in enumerate(pruning.stages):
            if self.joint:
                sets = [pool.indices[row[mask]] for row, mask in zip(subsets, alive, strict=True)]
                batches = [self.batch(stored.problem, s.tolist(), prefix_length) for s in sets]
                scores = np.full(subsets.shape, np.nan)
                scores[alive] = np.concatenate([batch.scores for batch in batches])
                spent = [batch.cost for batch in batches]
            else:
                batches = [self.batch(stored.problem, pool.indices.tolist(), prefix_length)]
                scores = batches[0].scores
                n_alive = alive.sum(axis=1)
                if (n_alive == n_alive[0]).all():
                    n_alive = n_alive[:1]
                spent = [batches[0].cost.times(float(n) / n_pool) for n in n_alive]
            by_stage.append(scores)
            first_batches.append(batches[0])
            reasons |= {batch.reason for batch in batches if batch.reason}
            costs = _summed(costs, spent)
            if stage + 1 < len(pruning.stages):
                full = scores if self.joint else scores[subsets]
                finished = pool.finished(prefix_length)[subsets]
                alive = pruning.survivors(stage, full, finished, alive)
        prices = self.run.endpoint.prices
        return Scored(
            by_stage=by_stage,
            costs=[cost.priced(*prices) for cost in costs],
            batches=first_batches,
            reason="; ".join(sorted(reasons)),
        )

    def batch(self, problem: Problem, indices: list[int], prefix_length: int) -> ScoredBatch:
        """The scores of these paths at a checkpoint; what the table lacks is scored."""
        table = self._table(prefix_length)
        owed = table.missing(problem.id, indices, self.joint)
        if owed:
            method = self.lab.ready(self.lab.prepared(self.run), self.run)
            session = self.replay.open(problem, owed)
            session.advance(prefix_length)
            checkpoint = Checkpoint(
                prefix_length=prefix_length,
                seed=self.run.seed,
                check_steps=self.run.dataset.check_steps,
            )
            verdict = check(method, session, self.replay, checkpoint, self.lab.ledger)
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
            if not verdict.lasting:  # good for this run; what failed is asked again in the next
                self.transient = True
                return _beside(fresh, table, indices)
            table.put(fresh)
        batch = table.get(problem.id, indices, self.joint)
        assert batch is not None, "just stored"
        return batch

    def _table(self, prefix_length: int) -> ScoreTable:
        if prefix_length not in self._tables:
            bank = self.lab.bank(self.run)
            table = table_of(self.run, self.lab, bank.folder, bank.hash, prefix_length)
            self._tables[prefix_length] = table
        return self._tables[prefix_length]


def table_of(
    run: RunConfig, lab: Lab, folder: Path, bank_hash: str, prefix_length: int
) -> ScoreTable:
    """The scores of a run's method at a checkpoint, in the folder of a bank (see `ScoreTable`)."""
    key = score_key(
        bank_hash=bank_hash,
        method_name=registry.method_name(run.method),
        method_config={**plain(run.method), "checkpoint": None},
        source_hash=source_hash(type(run.method)),
        checkpoint_hash=lab.prepared(run).checkpoint_hash,
        prefix_length=prefix_length,
        seed=run.seed,
        granted=run.method.requires,
        endpoint=_servers(run, lab),
    )
    return ScoreTable.open(folder, key)


def _servers(run: RunConfig, lab: Lab) -> dict[str, Any] | None:
    """What determines scores that servers give: the judge, and the engine's learned reader."""
    reader = getattr(run.backend, "reader", None)  # no option of every engine
    judge = lab.judge(run)
    if reader is None or Capability.CACHE_READER not in run.method.requires:
        return judge
    return {**(judge or {}), "reader": reader}


def _beside(fresh: ScoredBatch, table: ScoreTable, indices: list[int]) -> ScoredBatch:
    """A batch that is not stored, together with what is stored of the other `indices`."""
    others = [i for i in indices if i not in fresh.indices]
    known = table.get(fresh.problem, others, joint=False) if others else None
    if known is None:
        return fresh
    scores = dict(zip(known.indices, known.scores.tolist(), strict=True))
    scores |= dict(zip(fresh.indices, fresh.scores.tolist(), strict=True))
    return replace(
        fresh,
        indices=tuple(indices),
        scores=np.array([scores[i] for i in indices]),
        cost=fresh.cost + known.cost,
    )


def _summed(total: Sequence[Cost], more: Sequence[Cost]) -> list[Cost]:
    """Costs of subsets, either of which may be one for all of them."""
    n = max(len(total), len(more))
    total, more = list(total) * (n // len(total)), list(more) * (n // len(more))
    return [a + b for a, b in zip(total, more, strict=True)]

"""What every run shares, replayed or online: its cell, its reference rows, its files.

Knows neither how paths are scored nor how they are generated.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prunebench.cells import NONE, ORACLE, RANDOM, Cell
from prunebench.config import RunConfig, plain
from prunebench.endpoint import Endpoint
from prunebench.environment import environment
from prunebench.evaluate import (
    Status,
    draw_subsets,
    no_pruning,
    oracle_pruning,
    random_pruning,
)
from prunebench.lab import Stored
from prunebench.report import records
from prunebench.select import Finished


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


def cell_of(run: RunConfig, run_id: str, label: str, bank: str = "") -> Cell:
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


def plan(run: RunConfig, stored: Iterable[Stored], *, joint: bool) -> dict[str, np.ndarray]:
    """The subsets of every problem's pool: `(R, n_paths)` positions, fixed by the seed."""
    options = run.evaluation
    n_subsets = options.n_subsets_joint if joint else options.n_subsets
    plans = {}
    for item in stored:
        rng = np.random.default_rng([run.seed, 2, *item.problem.id.encode()])
        plans[item.problem.id] = draw_subsets(len(item.traces), run.n_paths, n_subsets, rng)
    return plans


def references(
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


def failed_execution(run: RunConfig, run_id: str, label: str, reason: str) -> Execution:
    """The record of a cell that could not run."""
    cell = cell_of(run, run_id, label)
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


class progress:
    """A progress bar on the console; yields `advance(n)`. Silent for work that is no work.

    With an `endpoint`, it also shows how many replies of the server there are.
    """

    def __init__(
        self, console: Console, title: str, total: int, endpoint: Endpoint | None = None
    ) -> None:
        self.title, self.endpoint, self.n_replies = title, endpoint, 0
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
        if self.endpoint is not None:
            self.endpoint.on_reply = self._replied
        return lambda n: self.bar.advance(self.task, n)

    def __exit__(self, *_: object) -> None:
        if self.endpoint is not None:
            self.endpoint.on_reply = None
        self.bar.stop()

    def _replied(self) -> None:
        self.n_replies += 1
        self.bar.update(self.task, description=f"{self.title}, {self.n_replies} replies")

"""What every run shares, replayed or online: its cell, its reference rows, its files.

Knows neither how paths are scored nor how they are generated.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prunebench import protocols
from prunebench.cells import NONE, ORACLE, RANDOM, Cell
from prunebench.config import RunConfig, plain
from prunebench.endpoint import Endpoint
from prunebench.environment import environment
from prunebench.errors import ConfigError
from prunebench.evaluate import Status, draw_subsets
from prunebench.lab import Stored
from prunebench.modes import Protocol
from prunebench.pruning import Pruning
from prunebench.references import no_pruning, oracle_pruning, random_pruning
from prunebench.report import pieces, records
from prunebench.scores import ScoredBatch
from prunebench.select import Finished, Select
from prunebench.storage import content_hash
from prunebench.types import Capability
from prunebench.vote import Aggregator, VoteOptions


@dataclass(kw_only=True)
class Execution:
    """What a run produced.

    Attributes
    ----------
    rows : records, one per cell and problem.
    paths : of the scores, one per path and checkpoint, for `paths.parquet`.
    complete : False when the same command may do better, because a server gave no answer.
    seconds : wall time by phase.
    notes : facts for people that have no place in a table.
    bank : folder of the trace bank, if one was used.
    store_traces : writes the texts of the paths into a folder, for reports.
    """

    rows: list[dict[str, Any]]
    paths: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    bank: Path | None = None
    store_traces: Callable[[Path], None] | None = None


def cell_of(run: RunConfig, run_id: str, label: str, bank: str = "") -> Cell:
    parts = []  # what differs from the default
    if run.dataset.limit is not None:
        parts.append(f"first {run.dataset.limit} problems")
    if run.pool_size is not None:
        parts.append(f"pool of {run.pool}")
    if run.finished is Finished.keep_free:
        parts.append("finished paths kept free")
    parts += _vote_options(run)
    pruned = run.protocol is Protocol.prune
    varies = run.select is not Select.top_k or run.protocol is not Protocol.prune
    return Cell(
        run_id=run_id,
        bank=bank,
        model=run.model.name,
        dataset=run.dataset.name,
        method=label,
        type=protocols.type_of(run),
        mode=run.mode.value,
        n_paths=run.n_paths,
        keep=0 if varies else run.keep,
        prefix_length=run.prefix_length,
        setting=", ".join(parts),
        aggregator=run.aggregator if pruned else Aggregator.majority,
        rule=_rule(run),
        weights=_weights(run) if pruned else "",
        seed=run.seed,
    )


def _rule(run: RunConfig) -> str:
    try:
        return protocols.describe(run) or run.pruning.describe(run.n_paths)
    except ConfigError:  # the cell has failed because of it
        return ""


def _weights(run: RunConfig) -> str:
    return f"{run.weights} at the end" if run.weights and run.weights_at_end else run.weights or ""


def _vote_options(run: RunConfig) -> list[str]:
    """Parameters of the aggregator that differ from the default."""
    own = {
        Aggregator.softmax_weighted: "temperature",
        Aggregator.borda: "power",
        Aggregator.filter_and_weight: "top",
    }.get(run.aggregator)
    if own is None or getattr(run.vote, own) == getattr(VoteOptions(), own):
        return []
    return [f"{own} {getattr(run.vote, own):g}"]


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
    run: RunConfig,
    cell: Cell,
    stored: dict[str, Stored],
    plans: dict[str, np.ndarray],
    pruning: Pruning,
    *,
    as_many_as: dict[str, np.ndarray] | None = None,
    only_none: bool = False,
) -> Iterator[dict[str, Any]]:
    """Records of the rows none, random and oracle; `as_many_as` as in `random_pruning`."""
    options: dict[str, Any] = {
        "keep": run.keep,
        "prefix_length": run.prefix_length,
        "pruning": pruning,
        "aggregator": run.aggregator,
        "options": run.vote,
    }
    for problem_id, subsets in plans.items():
        pool = stored[problem_id].pool
        rng = np.random.default_rng([run.seed, 1, *problem_id.encode()])
        yield records.record(
            cell.reference(NONE), no_pruning(pool, subsets, prefix_length=run.prefix_length)
        )
        if only_none or (as_many_as is not None and problem_id not in as_many_as):
            continue
        if as_many_as is not None:
            counts = as_many_as[problem_id]
            options["as_many_as"], subsets = counts, subsets[: len(counts)]
        yield records.record(
            cell.reference(RANDOM), random_pruning(pool, subsets, rng=rng, **options)
        )
        yield records.record(cell.reference(ORACLE), oracle_pruning(pool, subsets, **options))


def path_rows(
    cell: Cell, run: RunConfig, stored: Stored, batches: Sequence[ScoredBatch]
) -> list[dict[str, Any]]:
    """Rows of `paths.parquet`: what the method thought of each path at each checkpoint."""
    traces = {trace.index: trace for trace in stored.traces}
    scoring = scoring_of(run)
    rows = []
    for (prefix_length, _), batch in zip(run.pruning.stages, batches, strict=True):
        claimed = run.method.probabilities(batch.scores)
        shown = batch.scores if claimed is None else claimed
        for index, score in zip(batch.indices, shown.tolist(), strict=True):
            trace = traces[index]
            rows.append(
                records.path_record(
                    cell,
                    prefix_length,
                    stored.problem.id,
                    trace,
                    score,
                    probability=claimed is not None,
                    correct=trace.correct,
                    **scoring,
                )
            )
    return rows


def scoring_of(run: RunConfig) -> dict[str, Any]:
    """What tells the scores of a run apart from those of others, for `records.path_record`."""
    asks = Capability.ENDPOINT in run.method.requires
    options = {
        "method": plain(run.method),
        "endpoint": run.endpoint.identity() if asks else None,
    }
    return {"joint": run.method.joint, "config": content_hash(options)[:8]}


def store_traces(
    folder: Path,
    stored: dict[str, Stored],
    decode: Callable[[np.ndarray], str],
    cell: Cell,
    bank: Path,
) -> None:
    """Write the texts of the paths into `folder`, for reports that outlive the bank; what another
    cell has written of the same bank stays when it is no less. A copy stays in the bank, so that
    they are taken apart once, when the tokenizer is at hand."""
    path = folder / f"{cell.bank}.parquet"
    n_rows = sum(len(item.traces) for item in stored.values())
    if path.exists() and pieces.count_rows(path) >= n_rows:
        return
    which = {name: [t.index for t in item.traces] for name, item in stored.items()}
    kept = bank / "texts" / f"{content_hash(which)}.parquet"
    if not pieces.count_rows(kept):
        rows = (
            row
            for item in stored.values()
            for row in pieces.trace_rows(item.problem, item.traces, decode)
        )
        about = {"bank": cell.bank, "model": cell.model, "dataset": cell.dataset}
        pieces.write_traces(kept, rows, about)
    with records.replacing(path) as temporary:
        shutil.copyfile(kept, temporary)


def failed_execution(run: RunConfig, run_id: str, label: str, reason: str) -> Execution:
    """The record of a cell that could not run."""
    cell = cell_of(run, run_id, label)
    return Execution(rows=[records.failed_record(cell, Status.FAILED, reason)])


def write_run(
    execution: Execution, run: RunConfig, folder: Path, run_id: str, key: str | None = None
) -> Any:
    """Write `records.parquet`, `paths.parquet` and `run.json` of a run; returns the records.

    `key` identifies what was computed, so that the same sweep need not compute it again.
    """
    table = records.frame(execution.rows)
    records.write(folder / "records.parquet", table)
    records.write_paths(folder / "paths.parquet", execution.paths)
    facts = {
        "run_id": run_id,
        "key": key if execution.complete else None,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "config": plain(run),
        "bank": None if execution.bank is None else _shown(execution.bank),
        "seeds": {"run": run.seed, "dataset": getattr(run.dataset, "seed", None)},
        "seconds": {k: round(v, 3) for k, v in execution.seconds.items()},
        "notes": execution.notes,
        **environment(),
    }
    with records.replacing(folder / "run.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2, default=str) + "\n")
    return table


def _shown(folder: Path) -> str:
    """A folder as seen from where the run was started, where it lies below."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


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

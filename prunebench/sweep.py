"""The end of a sweep: one set of tables, figures and one page from the records of all its cells.

A Hydra callback, so that it works under every launcher, also when cells ran in other processes or
on other machines.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from rich.console import Console

from prunebench import plans
from prunebench.errors import PrunebenchError
from prunebench.evaluate import Status


class CombinedTable(Callback):
    """Reads `*/records.parquet` below the sweep folder and builds the report of them all there."""

    n_failed: ClassVar[int] = 0
    """Cells of the last sweep that failed, wherever they ran."""

    def __init__(self) -> None:
        self.start = time.time()

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        self.start = time.time()

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        if config.get("dry_run", False):
            folder = Path(config.hydra.sweep.dir)
            CombinedTable.n_failed = plans.show_total(Console(), folder)
            return
        folder = Path(config.hydra.sweep.dir)
        console = Console()
        try:
            combine(folder, console, since=self.start, report=config.report)
        except PrunebenchError as error:
            console.print(f"No combined table: {error}", markup=False)
        console.print(
            f"The whole sweep took {time.time() - self.start:.1f} s; results in {folder}, begin "
            f"with report.html",
            markup=False,
        )


def combine(folder: Path, console: Console, since: float, report: Any) -> None:
    """Build the report of a sweep, and write the seconds by phase of its cells.

    Records older than `since` (seconds since the epoch) belong to an earlier sweep into the same
    folder and are left out. `report` is the configuration's group of that name.
    """
    from prunebench.report import tables
    from prunebench.report.build import build, facts_of, records_below

    files = records_below([folder], since=since)
    made = build(files, folder, max_mb=report.max_mb, width=report.width)
    CombinedTable.n_failed = sum(row.line.status == Status.FAILED for row in made.rows)
    tables.show(made.rows, console)
    seconds: dict[str, float] = {}
    for facts in facts_of(files):
        for phase, spent in facts["seconds"].items():
            seconds[phase] = seconds.get(phase, 0.0) + spent
    (folder / "seconds.json").write_text(json.dumps(seconds, indent=2) + "\n")
    spent = ", ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items())
    console.print(f"Seconds by phase over {len(files)} cells: {spent}", markup=False)

"""The end of a sweep: one table and one figure from the records of all its cells.

A Hydra callback, so that it works under every launcher, also when cells ran on other machines.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from rich.console import Console

from prunebench.errors import PrunebenchError


class CombinedTable(Callback):
    """Reads `*/records.parquet` below the sweep folder and writes the combined table there."""

    def __init__(self) -> None:
        self.start = time.time()

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        self.start = time.time()

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        console = Console()
        try:
            combine(folder, console, since=self.start)
        except PrunebenchError as error:
            console.print(f"No combined table: {error}", markup=False)
        console.print(
            f"The whole sweep took {time.time() - self.start:.1f} s; results in {folder}",
            markup=False,
        )


def combine(folder: Path, console: Console, since: float) -> None:
    """Write `summary.csv`, `summary.md`, the figure and the seconds by phase of a sweep.

    Records older than `since` (seconds since the epoch) belong to an earlier sweep into the same
    folder and are left out.
    """
    from prunebench.report import figures, records, tables

    found = [p for p in folder.rglob("records.parquet") if p.stat().st_mtime >= since - 1]
    files = sorted(found, key=lambda p: (len(p.parent.name), p))
    rows = records.analyse(records.read(files))
    tables.show(rows, console)
    tables.write(rows, folder)
    figures.write_figures(rows, folder)
    seconds: dict[str, float] = {}
    for file in files:
        facts = json.loads((file.parent / "run.json").read_text())
        for phase, spent in facts["seconds"].items():
            seconds[phase] = seconds.get(phase, 0.0) + spent
    (folder / "seconds.json").write_text(json.dumps(seconds, indent=2) + "\n")
    spent = ", ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items())
    console.print(f"Seconds by phase over {len(files)} cells: {spent}", markup=False)

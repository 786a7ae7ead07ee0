"""Plans of what cells would do, as data, as sentences and summed over a sweep.

How a plan is made is in `dryrun.py`. Knows no engine, no bank and no method.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prunebench import compat

FILE = "dry_run.json"
UNKNOWN = float("nan")


@dataclass(kw_only=True)
class Owed:
    """Things of one place that are not there yet: paths of a bank, or scores of a table.

    Attributes
    ----------
    place : the folder of the bank or the file of the table; cells that share it share its things.
    things : what is missing, by a key that means the same in every cell; the value is how many
        paths or scores it stands for.
    n_stored : paths or scores that are there already.
    seconds_each : seconds per path or score.
    bytes_each : on disk, per path or score.
    tokens_each : per path; 0 for scores.
    """

    place: str
    things: dict[str, int]
    n_stored: int
    seconds_each: float = UNKNOWN
    bytes_each: float = UNKNOWN
    tokens_each: float = 0.0

    @property
    def n(self) -> int:
        return sum(self.things.values())


@dataclass(kw_only=True)
class Plan:
    """What one cell would do.

    Attributes
    ----------
    label : the method's name in tables.
    where : model, dataset, mode and checkpoint, for people.
    method, backend : their names.
    reason : why the cell cannot run; "" when it can.
    skipped : the cell is left out for that reason, which is no failure.
    lacks : by engine, what the method needs and the engine does not give here.
    n_problems, n_subsets : what is evaluated.
    paths, scores : what is owed.
    notes : what was probed, and what the estimates are worth.
    """

    label: str
    where: str = ""
    method: str = ""
    backend: str = ""
    reason: str = ""
    skipped: bool = False
    lacks: dict[str, list[str]] = field(default_factory=dict)
    n_problems: int = 0
    n_subsets: int = 0
    paths: list[Owed] = field(default_factory=list)
    scores: list[Owed] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def leave(plan: Plan, folder: Path) -> None:
    """Write the plan of a cell into its folder, for the sum of the sweep."""
    (folder / FILE).write_text(json.dumps(asdict(plan)))


# ------------------------------------------------------------------------------------ for people


def lines(plan: Plan) -> list[str]:
    """The plan of a cell as sentences."""
    head = f"{plan.label} ({plan.where})" if plan.where else plan.label
    if plan.reason:
        return [f"{head}: cannot run: {plan.reason}"]
    subsets = f", {plan.n_subsets} subsets of paths each" if plan.n_subsets > 1 else ""
    return [
        f"{head}: generate {_owed_text(plan.paths, 'paths')}; "
        f"score {_owed_text(plan.scores, 'prefixes')}; "
        f"evaluate {plan.n_problems} problems{subsets}",
        *(f"    {note}" for note in dict.fromkeys(plan.notes)),
    ]


def _owed_text(owed: Sequence[Owed], what: str) -> str:
    n, n_stored = sum(o.n for o in owed), sum(o.n_stored for o in owed)
    if not n:
        return f"nothing ({n_stored:,} {what} are stored)" if n_stored else "nothing"
    due = [o for o in owed if o.n]
    tokens = sum(o.n * o.tokens_each for o in due)
    parts = [
        f"{tokens:,.0f} tokens" if tokens else "",
        _size(sum(o.n * o.bytes_each for o in due)),
        _duration(sum(o.n * o.seconds_each for o in due)),
    ]
    return f"{n:,} {what} ({n_stored:,} are stored), about {', '.join(filter(None, parts))}"


def _size(n_bytes: float) -> str:
    if math.isnan(n_bytes):
        return "unknown size"
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}" if n_bytes else ""
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "unknown time"
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


# ------------------------------------------------------------------------------------ a sweep


def show_total(console: Console, folder: Path) -> int:
    """Sum up the plans that the cells of a sweep left below `folder`, wherever they were made.
    Prints the sum and which method runs on which engine; returns how many cells would fail."""
    plans = [Plan(**_revived(json.loads(p.read_text()))) for p in sorted(folder.rglob(FILE))]
    blocked = [plan for plan in plans if plan.reason]
    runs = [plan for plan in plans if not plan.reason]
    paths = _shared(owed for plan in runs for owed in plan.paths)
    scores = _shared(owed for plan in runs for owed in plan.scores)
    evaluated = sum(plan.n_problems * plan.n_subsets for plan in runs)
    for line in (
        f"The whole sweep: {len(plans)} cells, {len(blocked) or 'none'} of which cannot run. With "
        f"everything shared counted once:",
        f"    generate {_owed_text(paths, 'paths')}",
        f"    score {_owed_text(scores, 'prefixes')}",
        f"    evaluate {evaluated:,} prunings of a problem's paths",
    ):
        console.print(line, markup=False, highlight=False)
    lacks: dict[str, dict[str, list[str]]] = {}
    for plan in plans:
        if plan.method:
            lacks.setdefault(plan.method, {}).update(plan.lacks)
    show_matrix(lacks, console)
    return sum(not plan.skipped for plan in blocked)


def show_matrix(lacks: dict[str, dict[str, list[str]]], console: Console) -> None:
    """One row per method, one column per engine: `yes`, or what the engine does not give."""
    engines = sorted({name for row in lacks.values() for name in row})
    table = Table(box=None, pad_edge=False)
    for column in ("method", *engines):
        table.add_column(column, overflow="fold")
    for method, row in lacks.items():
        places = (compat.verdict(row[e]) if e in row else "–" for e in engines)
        table.add_row(method, *places)
    console.print(table)


def _revived(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, **{name: [Owed(**o) for o in fields[name]] for name in ("paths", "scores")}}


def _shared(owed: Iterable[Owed]) -> list[Owed]:
    """One entry per place, in which what several cells miss stands once."""
    places: dict[str, Owed] = {}
    for one in owed:
        known = places.setdefault(one.place, replace(one, things={}))
        known.things |= one.things
        known.n_stored = max(known.n_stored, one.n_stored)
        for name in ("seconds_each", "bytes_each", "tokens_each"):
            if math.isnan(getattr(known, name)) or not getattr(known, name):
                setattr(known, name, getattr(one, name))
    return list(places.values())

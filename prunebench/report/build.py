"""Everything that a reader of an experiment gets, from its records alone.

`build` is the only way to make tables, figures and the page: the end of a run, the end of a sweep
and `prunebench report` call it, so that a table made years later from the same records is the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import ConfigError, DamagedFile
from prunebench.report import equaltokens, figures, html, records, signals, tables
from prunebench.report.records import Row

MAX_MB = html.MAX_MB
WIDTHS = ("auto", "one", "two")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was built.

    Attributes
    ----------
    rows : the analysed records.
    written : all files.
    skipped : figures that were not drawn, with the reason.
    """

    rows: list[Row]
    written: list[Path]
    skipped: dict[str, str]


def records_below(folders: Sequence[Path], since: float = 0.0) -> list[Path]:
    """The `records.parquet` files of runs and sweeps, cells in the order of their numbers.

    Parameters
    ----------
    since : older files (seconds since the epoch) are left out.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"There is no folder {folder}. Give the folder of a run or a sweep, which holds "
                f"'records.parquet', itself or in folders below."
            )
        below = [p for p in folder.rglob("records.parquet") if p.stat().st_mtime >= since - 1]
        if not below:
            raise ConfigError(
                f"The folder {folder} holds no 'records.parquet', itself or in folders below. Give "
                f"the folder of a run or a sweep."
            )
        found |= dict.fromkeys(sorted(below, key=lambda p: (len(p.parent.name), p)))
    return list(found)


def build(
    files: Sequence[Path], folder: Path, *, max_mb: float = MAX_MB, width: str = "auto"
) -> Report:
    """Build tables, figures and `report.html` in `folder` from the records of one or many runs.

    Parameters
    ----------
    files : `records.parquet` files; `paths.parquet` and `run.json` stand beside them, `traces/`
        there or one folder up.
    max_mb : size of the page up to which it holds the texts of the paths.
    width : of the figures: those of `one` or `two` columns of a paper, or what suits each (`auto`).
    """
    if width not in WIDTHS:
        raise ConfigError(
            f"The 'width' parameter of a report must be one of {', '.join(WIDTHS)}. Got {width!r} "
            f"instead."
        )
    rows = records.analyse(records.read(files))
    paths = records.read_paths([file.with_name("paths.parquet") for file in files])
    written = [*tables.write(rows, folder), *equaltokens.write(rows, folder)]
    known = signals.signals(paths)
    if len(known):
        with records.replacing(folder / "signals.csv") as temporary:
            known.to_csv(temporary, index=False)
        written.append(folder / "signals.csv")
    drawn, skipped = figures.write_figures(rows, paths, folder, width=width)
    places = dict.fromkeys(p for file in files for p in (file.parent, file.parent.parent))
    traces = [path for place in places for path in sorted((place / "traces").glob("*.parquet"))]
    page = html.write_html(rows, paths, traces, drawn, folder, facts_of(files), max_mb=max_mb)
    return Report(rows=rows, written=[*written, *drawn, page], skipped=skipped)


def facts_of(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The `run.json` beside each of the records, where there is one; the run ids are those of
    `records.read`."""
    facts = []
    prefixes = records.run_prefixes(files)
    for path, prefix in zip((file.with_name("run.json") for file in files), prefixes, strict=True):
        try:
            found = json.loads(path.read_text())
            facts.append(found | {"run_id": f"{prefix}{found['run_id']}"} if prefix else found)
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise DamagedFile(
                f"The file {path} is not valid JSON: {error}. Run the experiment again, or delete "
                f"this file."
            ) from error
    return facts

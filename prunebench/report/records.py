"""Records: one row per cell and problem, everything that tables and figures are made from.

A table is always rebuilt from records, in the run that wrote them and years later, alone or
together with those of other runs; there is no second way to make one. This module knows the file
and how rows belong together, not how a number is computed (`cells`, `stats`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.cells import (
    CSV_COLUMNS,
    NONE,
    ORACLE,
    RANDOM,
    REFERENCES,
    Cell,
    CellResult,
    failed_cell,
    summarise,
)
from prunebench.errors import ConfigError, DamagedFile, PrunebenchError
from prunebench.evaluate import ProblemResult, Status, failed_problem
from prunebench.report.scorings import first_of_each
from prunebench.types import SignalType, Trace
from prunebench.vote import Aggregator

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA_VERSION = "4"
BOOTSTRAP_SEED = 20240516
"""Fixed, so that the same records always give the same table."""

_TEXT = (
    *("run_id", "bank", "model", "dataset", "method", "type", "mode", "setting", "aggregator"),
    *("rule", "weights"),
)
_PATH_TEXT = ("run_id", "bank", "model", "dataset", "method", "type")
_COUNTS = ("n_paths", "keep", "prefix_length", "seed")
_MEANS = (
    *("avg", "cons", "generator_tokens", "verifier_tokens", "full_tokens", "auroc"),
    *("n_correct", "killed_correct", "n_kept", "probe_tokens", "calls", "money", "score_seconds"),
    *("launch_seconds", "check_seconds", "resume_seconds", "check_bytes"),
)
_SCALARS = (
    *("probe_tokens", "calls", "money", "score_seconds"),
    *("launch_seconds", "check_seconds", "resume_seconds", "check_bytes"),
)
_LISTS = ("avg_subsets", "cons_subsets", "auroc_subsets")


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A cell with its results and its line of the table."""

    cell: Cell
    results: list[ProblemResult]
    line: CellResult


def schema() -> pa.Schema:
    """Columns of `records.parquet`. Numbers are means over the subsets of the problem, null when
    missing; `*_subsets` hold the value of every subset, for the two-stage bootstrap; `kept` and
    `answer` are those of the first subset; a cell that failed as a whole is one row with an empty
    `problem_id`."""
    import pyarrow as pa

    columns = [
        *((name, pa.string()) for name in _TEXT),
        *((name, pa.int64()) for name in _COUNTS),
        ("problem_id", pa.string()),
        ("n_subsets", pa.int64()),
        *((name, pa.float64()) for name in _MEANS),
        *((name, pa.list_(pa.float32())) for name in _LISTS),
        ("kept", pa.list_(pa.int32())),
        ("answer", pa.string()),
        ("n_nan", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
    return pa.schema(columns, metadata={"prunebench_records": SCHEMA_VERSION})


def record(cell: Cell, result: ProblemResult) -> dict[str, Any]:
    """The row of one problem."""
    return {
        **{name: str(value) if name in _TEXT else value for name, value in asdict(cell).items()},
        "problem_id": result.problem_id,
        "n_subsets": result.n_subsets,
        **{name: _mean(getattr(result, name)) for name in _MEANS},
        **{name: getattr(result, name.removesuffix("_subsets")).tolist() for name in _LISTS},
        "kept": result.kept,
        "answer": result.answer,
        "n_nan": result.n_nan,
        "status": str(result.status),
        "reason": result.reason,
    }


def path_schema() -> pa.Schema:
    """Columns of `paths.parquet`: one row per path, method and checkpoint. `score` is null where
    the path could not be scored, `correct` where nobody knows (pruned online). With `probability`
    the score is the probability of ending right that the method claims. `config` identifies the
    method's options. Where a score depends on the other paths, `n_paths` and `rule` (with the
    setting, which says what they are drawn from) are those of the cell, else 0 and "", so that
    cells share them."""
    import pyarrow as pa

    columns = [
        *((name, pa.string()) for name in _PATH_TEXT),
        ("config", pa.string()),
        ("n_paths", pa.int64()),
        ("rule", pa.string()),
        ("seed", pa.int64()),
        ("prefix_length", pa.int64()),
        ("probability", pa.bool_()),
        ("problem_id", pa.string()),
        ("index", pa.int32()),
        ("score", pa.float64()),
        ("n_tokens", pa.int32()),
        ("stopped", pa.bool_()),
        ("answer", pa.string()),
        ("correct", pa.bool_()),
    ]
    return pa.schema(columns, metadata={"prunebench_paths": SCHEMA_VERSION})


def path_record(
    cell: Cell,
    prefix_length: int,
    problem_id: str,
    trace: Trace,
    score: float,
    *,
    probability: bool,
    correct: bool | None,
    joint: bool,
    config: str,
) -> dict[str, Any]:
    """The row of one path at one checkpoint. `joint`: its score depends on the other paths;
    `config`: hash of the method's options."""
    return {
        **{name: str(getattr(cell, name)) for name in _PATH_TEXT},
        "config": config,
        "n_paths": cell.n_paths if joint else 0,
        "rule": ", ".join(filter(None, (cell.rule, cell.setting))) if joint else "",
        "seed": cell.seed,
        "prefix_length": prefix_length,
        "probability": probability,
        "problem_id": problem_id,
        "index": trace.index,
        "score": None if score != score else score,
        "n_tokens": trace.n_tokens,
        "stopped": trace.stopped,
        "answer": trace.answer,
        "correct": correct,
    }


def failed_record(cell: Cell, status: Status, reason: str) -> dict[str, Any]:
    """The row of a cell that failed or was skipped as a whole."""
    return {**record(cell, failed_problem("", reason)), "status": str(status)}


def frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a DataFrame with the same types as one that was read back from a file."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=schema()).to_pandas()


def write(path: Path, records: pd.DataFrame) -> None:
    """Write records to `path`; at no moment is there half a file under that name."""
    import pyarrow as pa

    _write(path, pa.Table.from_pandas(records, schema=schema(), preserve_index=False), schema())


def write_paths(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of `paths.parquet`."""
    import pyarrow as pa

    _write(path, pa.Table.from_pylist(list(rows), schema=path_schema()), path_schema())


def read(paths: Sequence[Path]) -> pd.DataFrame:
    """Read the records of one or many runs into one DataFrame, see `run_prefixes`."""
    import pyarrow as pa

    tables = [_read(path, "records", schema()) for path in paths]
    named = _named_apart(tables, run_prefixes(paths))
    return pa.concat_tables(named).to_pandas() if tables else frame([])


def read_paths(paths: Sequence[Path]) -> pd.DataFrame:
    """Read what one or many runs wrote of their paths: each path of a scoring once, and at least
    one row of every run, for `scorings`. Runs that wrote nothing are left out."""
    import pyarrow as pa

    prefixes = dict(zip(paths, run_prefixes(paths), strict=True))
    there = [path for path in paths if path.exists()]
    tables = [_read(path, "paths", path_schema()) for path in there]
    named = _named_apart(tables, [prefixes[path] for path in there])
    table = pa.concat_tables([path_schema().empty_table(), *named]).to_pandas()
    kept = first_of_each(table) | ~table["run_id"].duplicated()
    return table.loc[kept].reset_index(drop=True)


def run_prefixes(files: Sequence[Path]) -> list[str]:
    """What comes before the run ids of each of several files, so that runs of one name in unlike
    folders stay apart: nothing, or the position of the file where an earlier one has the same ids.
    The `records.parquet` beside a file decides, so that all files of a run agree."""
    prefixes, seen = [], set()
    for i, file in enumerate(files if len(files) > 1 else ()):
        own = _run_ids(file)
        prefixes.append(f"{i}:" if own & seen else "")
        seen |= own
    return prefixes or [""] * len(files)


def _run_ids(file: Path) -> set[str]:
    import pyarrow.parquet as pq

    there = [p for p in (file.with_name("records.parquet"), file) if p.exists()]
    return set(pq.ParquetFile(there[0]).read(["run_id"])["run_id"].to_pylist()) if there else set()


def _named_apart(tables: Sequence[pa.Table], prefixes: Sequence[str]) -> list[pa.Table]:
    import pyarrow.compute as pc

    found = []
    for table, prefix in zip(tables, prefixes, strict=True):
        ids = pc.binary_join_element_wise(prefix, table["run_id"], "")  # pyright: ignore
        at = table.schema.get_field_index("run_id")
        found.append(table.set_column(at, table.schema.field(at), ids) if prefix else table)
    return found


def _write(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    import pyarrow.parquet as pq

    # pandas leaves its own description in the metadata; ours alone is what readers rely on.
    table = table.replace_schema_metadata(schema.metadata)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _read(path: Path, kind: str, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise ConfigError(
            f"There are no records at {path}. Give the path of a "
            f"'{kind}.parquet', found in the folder of a run."
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(
            f"The records {path} cannot be read ({error}). Run the experiment again, or "
            "leave this file out."
        ) from error
    version = (table.schema.metadata or {}).get(f"prunebench_{kind}".encode(), b"").decode()
    if version != SCHEMA_VERSION:
        raise DamagedFile(
            f"The file {path} does not hold {kind} of schema version {SCHEMA_VERSION} "
            f"(found: {version or 'none'}). Make it again with this version of prunebench."
        )
    return table.select(schema.names).cast(schema)


def analyse(records: pd.DataFrame) -> list[Row]:
    """Group records into cells and compute every cell's line.

    The reference rows `none`, `random` and `oracle` do not depend on a run's method, so those of
    several runs over the same bank, budget and seed are one row. Rows are sorted by setting and
    budget; within one, `none`, `random`, the methods in order of appearance, `oracle`.
    """
    cells: dict[Cell, dict[str, dict[str, Any]]] = {}
    for row in records.to_dict("records"):
        cell = _cell(row)
        if cell.method in REFERENCES:
            cell = replace(cell, run_id="")
        known = cells.setdefault(cell, {}).get(row["problem_id"])
        if known is None or (known["status"] != Status.OK and row["status"] == Status.OK):
            cells[cell][row["problem_id"]] = row
    results = {cell: _results(rows) for cell, rows in cells.items()}
    return sorted(
        (
            Row(cell=cell, results=results[cell], line=_line(cell, rows, results))
            for cell, rows in cells.items()
        ),
        key=lambda row: _position(row.cell),
    )


def summary(records: pd.DataFrame) -> pd.DataFrame:
    """The table of all cells, with the columns of `summary.csv`."""
    return summary_of(analyse(records))


def summary_of(rows: Sequence[Row]) -> pd.DataFrame:
    """The same, of rows that have been analysed already."""
    import pandas as pd

    return pd.DataFrame([asdict(row.line) for row in rows], columns=list(CSV_COLUMNS))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` once it is completely on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise PrunebenchError(
            f"The file {path} could not be written: {error.strerror or error}. Check the free "
            "space and the permissions of its folder."
        ) from error
    finally:
        with suppress(OSError):  # a leftover that cannot be removed must not hide the error above
            temporary.unlink(missing_ok=True)


def _mean(values: np.ndarray | float) -> float | None:
    """Mean of the numbers there are; None (null in the file) when there is none."""
    values = np.atleast_1d(np.asarray(values, dtype=np.float64))
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def _cell(row: dict[str, Any]) -> Cell:
    values = {f.name: row[f.name] for f in fields(Cell)}
    return Cell(
        **{
            **values,
            "type": SignalType(values["type"]),
            "aggregator": Aggregator(values["aggregator"]),
        }
    )


def _results(rows: dict[str, dict[str, Any]]) -> list[ProblemResult]:
    """The results of a cell's problems; tokens and counts come back as their means."""
    return [_result(row) for problem_id, row in rows.items() if problem_id]


def _result(row: dict[str, Any]) -> ProblemResult:
    if row["status"] != Status.OK:
        return failed_problem(row["problem_id"], row["reason"])
    arrays: dict[str, Any] = {
        name.removesuffix("_subsets"): np.asarray(row[name], dtype=np.float64) for name in _LISTS
    }
    means: dict[str, Any] = {
        name: np.array([row[name]], dtype=np.float64)
        for name in _MEANS
        if name not in arrays and name not in _SCALARS
    }
    scalars = {name: float("nan") if row[name] is None else row[name] for name in _SCALARS}
    return ProblemResult(
        problem_id=row["problem_id"],
        kept=[int(i) for i in row["kept"]],
        answer=row["answer"] if isinstance(row["answer"], str) else None,
        n_nan=int(row["n_nan"]),
        reason=row["reason"],
        **scalars,
        **arrays,
        **means,
    )


def _line(
    cell: Cell,
    rows: dict[str, dict[str, Any]],
    results: dict[Cell, list[ProblemResult]],
) -> CellResult:
    whole = rows.get("")  # the cell failed as a whole
    own = results[cell]
    if whole is not None and not own:
        return failed_cell(cell, Status(whole["status"]), whole["reason"])
    if whole is not None and cell.method not in REFERENCES:
        own = [*own, failed_problem("run", whole["reason"])]
    return summarise(
        cell,
        own,
        none=results.get(replace(cell.reference(NONE), run_id=""), ()),
        random=results.get(replace(cell.reference(RANDOM), run_id=""), ()),
        oracle=results.get(replace(cell.reference(ORACLE), run_id=""), ()),
        seed=BOOTSTRAP_SEED,
    )


def _position(cell: Cell) -> tuple[Any, ...]:
    """Sort key; Python's sort is stable, which leaves methods in order of appearance."""
    role = {NONE: 0, RANDOM: 1, ORACLE: 3}.get(cell.method, 2)
    setting = (
        cell.model,
        cell.dataset,
        cell.mode,
        cell.bank,
        cell.setting,
        cell.aggregator,
        cell.seed,
    )
    budget = (cell.prefix_length, cell.n_paths, role > 0, cell.keep)
    return (*setting, *budget, role)

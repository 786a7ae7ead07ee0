"""Rows of a local JSON, JSONL, CSV, TSV or Parquet file, as plain dictionaries.

Knows formats, not what the fields mean.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunebench.errors import ConfigError, DamagedFile


def read(path: Path) -> list[Any]:
    """The rows in their order. Cells of CSV and TSV are texts: `025` keeps its zero.

    Raises
    ------
    ConfigError
        When the file is not there, or of a kind that is not read.
    DamagedFile
        When its content is not what its name says.
    """
    readers = ", ".join(READERS)
    if not path.is_file():
        raise ConfigError(
            f"The file {str(path)!r} does not exist. Give 'dataset.path=' a file of one of these "
            f"kinds: {readers}."
        )
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(
            f"The file {str(path)!r} is of no kind that is read ({readers}); its name says which."
        )
    try:
        rows = reader(path)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())  # pyarrow gives its own words
        raise DamagedFile(f"The file {path} cannot be read: {reason}.") from error
    except (ValueError, RecursionError) as error:  # of json, pandas and pyarrow alike
        raise DamagedFile(
            f"The file {path} is not valid {path.suffix[1:].upper()}: "
            f"{' '.join(str(error).split())[:300]}."
        ) from error
    if not isinstance(rows, list):
        raise ConfigError(
            f"The file {path} must hold a list of objects. It holds "
            f"{'one object' if isinstance(rows, dict) else 'a single value'}."
        )
    return rows


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8-sig"))


def _jsonl(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return rows


def _separated(path: Path, separator: str = ",") -> list[Any]:
    import pandas as pd

    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "index_col": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with too many cells
        try:
            table = pd.read_csv(path, sep=separator, encoding="utf-8-sig", **options)
        except pd.errors.ParserWarning as warning:
            raise ValueError("a row has more cells than there are fields") from warning
    return table.to_dict("records")


def _parquet(path: Path) -> list[Any]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _separated,
    ".tsv": lambda path: _separated(path, "\t"),
    ".parquet": _parquet,
}

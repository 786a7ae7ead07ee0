"""Whose scores are whose: rows of `paths.parquet` by what told a method to score paths as it did.

Several cells of a sweep repeat the same scores, and two runs of one method may differ in options
or, where a method compares paths, in what it compared. Knows rows; knows no file and no number.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

SCORING = ("config", "n_paths", "rule")
"""What tells apart the scores of one method for one bank, see `records.path_schema`."""
_PATH_KEY = ("bank", "method", *SCORING, "seed", "prefix_length", "problem_id", "index")


def unique_paths(paths: pd.DataFrame) -> pd.DataFrame:
    """Each path of a scoring once, in order of appearance; of several rows one that says whether
    the path is right."""
    return paths.loc[first_of_each(paths)]


def first_of_each(paths: pd.DataFrame) -> np.ndarray:
    """`(n,)` bool, True for the rows of `unique_paths`."""
    known_first = np.argsort(paths["correct"].isna().to_numpy(), kind="stable")
    again = paths.iloc[known_first].duplicated(list(_PATH_KEY)).to_numpy()
    first = np.zeros(len(paths), dtype=bool)
    first[known_first[~again]] = True
    return first


def scorings(paths: pd.DataFrame) -> dict[str, tuple[Any, ...]]:
    """`SCORING` of every run, by its id."""
    first = paths.drop_duplicates("run_id")
    values = first[list(SCORING)].itertuples(index=False, name=None)
    return dict(zip(first["run_id"], values, strict=True))


def labels(paths: pd.DataFrame) -> dict[tuple[Any, ...], str]:
    """The names of methods by (bank, seed, method, config): with other options it is numbered, in
    order of appearance."""
    found: dict[tuple[Any, ...], str] = {}
    seen: Counter[tuple[Any, ...]] = Counter()
    key = ["bank", "seed", "method", "config"]
    for row in paths[key].drop_duplicates().itertuples(index=False, name=None):
        seen[row[:3]] += 1
        found[row] = row[2] + f" ({seen[row[:3]]})" * (seen[row[:3]] > 1)
    return found

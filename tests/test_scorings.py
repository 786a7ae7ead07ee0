"""Scores of one method are not mixed when their options or the paths they compared differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from recordsmaker import METHODS, made

from prunebench import metrics
from prunebench.cells import Cell
from prunebench.evaluate import failed_problem
from prunebench.report import pagedata, records
from prunebench.report.blocks import blocks
from prunebench.report.figures.common import groups
from prunebench.report.scorings import labels, scorings, unique_paths
from prunebench.report.signals import signals
from prunebench.types import SignalType, TokenStats, Trace

pytestmark = pytest.mark.pictures

CELL = Cell(
    run_id="r",
    bank="b",
    model="tiny",
    dataset="arithmetic",
    method="slim_sc",
    type=SignalType.I,
    mode="replay",
    n_paths=4,
    keep=2,
    prefix_length=32,
)


def rows(
    cell: Cell, scores: list[float], *, joint: bool = True, config: str = "c", **options: Any
) -> list[dict[str, Any]]:
    """Of the paths 0, 1, ... of a problem, of which the odd ones are right."""
    return [
        records.path_record(
            cell,
            options.get("at", 32),
            "p",
            Trace(
                index=i,
                token_ids=None,
                text="",
                length=40,
                stats=TokenStats(),
                stopped=True,
                answer=None,
                correct=bool(i % 2),
            ),
            score,
            probability=False,
            correct=options.get("correct", bool(i % 2)),
            joint=joint,
            config=config,
        )
        for i, score in enumerate(scores)
    ]


def stored(folder: Path, *runs: list[dict[str, Any]]) -> pd.DataFrame:
    files = [folder / str(i) / "paths.parquet" for i in range(len(runs))]
    for file, own in zip(files, runs, strict=True):
        records.write_paths(file, own)
    return records.read_paths(files)


def test_scores_among_4_paths_and_among_8_are_two_signals(tmp_path: Path):
    """Together the paths of the small subset would be ranked on another scale."""
    four, eight = [4.0, 3.0, 2.0, 1.0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    wider = replace(CELL, run_id="w", n_paths=8)
    paths = stored(tmp_path, rows(CELL, four), rows(wider, eight))
    table = signals(paths)
    assert table["n_paths"].tolist() == [4, 8]
    assert table["n_scores"].tolist() == [4, 8]
    expected = [metrics.auroc(s, [i % 2 == 1 for i in range(len(s))]) for s in (four, eight)]
    assert table["auroc_within"].tolist() == pytest.approx(expected)
    found = pagedata.scored(paths)["b", "p"]["signals"]
    assert [(s["n_paths"], s["scores"][0]) for s in found] == [(4, 4.0), (8, 0.1)]
    assert found[0]["scores"][4:] == [None] * 4
    apart = (
        replace(CELL, run_id="s", rule="4→2→1 at 16, 32"),
        replace(CELL, run_id="t", setting="x"),
    )
    more = [rows(cell, four) for cell in apart]
    assert len(signals(stored(tmp_path, rows(CELL, four), *more))) == 3


def test_scores_of_each_path_alone_are_shared_by_cells(tmp_path: Path):
    wider = replace(CELL, run_id="w", n_paths=8, rule="threshold 0.5")
    paths = stored(
        tmp_path, rows(CELL, [1, 2, 3], joint=False), rows(wider, [1, 2, 3, 4], joint=False)
    )
    assert len(unique_paths(paths)) == 4
    assert len(paths) == 5  # and a row of the second run, to know whose scores it had
    assert scorings(paths) == {"r": ("c", 0, ""), "w": ("c", 0, "")}
    (found,) = pagedata.scored(paths)["b", "p"]["signals"]
    assert set(pagedata.signal_ids(paths).values()) == {found["id"]}


def test_other_options_are_another_signal_with_a_number(tmp_path: Path):
    again = replace(CELL, run_id="again")
    runs = [
        rows(CELL, [1, 2, 3, 4], joint=False),
        rows(again, [4, 3, 2, 1], joint=False, config="d"),
    ]
    paths = stored(tmp_path, *runs)
    table = signals(paths)
    assert table["method"].tolist() == ["slim_sc", "slim_sc (2)"]
    assert table["config"].tolist() == ["c", "d"]
    assert table["auroc_within"].tolist() == pytest.approx([0.75, 0.25])
    assert list(labels(paths).values()) == ["slim_sc", "slim_sc (2)"]
    assert [s["method"] for s in pagedata.scored(paths)["b", "p"]["signals"]] == [
        *("slim_sc", "slim_sc (2)")
    ]


def test_a_row_that_knows_the_outcome_is_kept(tmp_path: Path):
    """Online and without a bank nobody knows how a pruned path would have ended."""
    unknown = rows(CELL, [1, 2, 3, 4], joint=False, correct=None)
    known = rows(replace(CELL, run_id="replay"), [1, 2, 3, 4], joint=False)
    for runs in ((unknown, known), (known, unknown)):
        paths = stored(tmp_path, *runs)
        assert unique_paths(paths)["correct"].tolist() == [False, True, False, True]
        assert signals(paths)["n_scores"].tolist() == [4]
        shown = pagedata.scored(paths)["b", "p"]["paths"]
        assert [p["correct"] for p in shown] == [False, True, False, True]


def test_paths_are_read_apart_for_runs_of_one_name(tmp_path: Path):
    """The first run wrote records but no paths; the second one's are still named as its records."""
    for name in "ab":
        failed = records.record(replace(CELL, run_id="tiny/0"), failed_problem("p", "why"))
        records.write(tmp_path / name / "records.parquet", records.frame([failed]))
    files = [tmp_path / name / "paths.parquet" for name in "ab"]
    records.write_paths(files[1], rows(replace(CELL, run_id="tiny/0"), [1, 2], joint=False))
    assert set(records.read_paths(files)["run_id"]) == {"1:tiny/0"}
    assert set(records.read_paths(files[1:])["run_id"]) == {"tiny/0"}


def test_figures_and_page_show_every_row_the_scores_it_was_pruned_by():
    frame, paths = made({"deepconf": METHODS["deepconf"]}, n_problems=4)
    other = frame[frame["method"] == "deepconf"].assign(run_id="other")
    other["auroc_subsets"] = [[0.5]] * len(other)
    rescored = paths.assign(run_id="other", config="c1", score=-paths["score"])
    rows_ = records.analyse(pd.concat([frame, other], ignore_index=True))
    both = pd.concat([paths, rescored], ignore_index=True)
    (group,) = groups(rows_, both)
    assert group.names == ["deepconf", "deepconf (2)"]
    first, second = (group.scores[of][32].score for of in group.names)
    assert (first == -second).all()
    lines = [group.lines(of)[0].auroc_within for of in group.names]
    assert lines[1] == 0.5 != lines[0]
    ids = pagedata.signal_ids(both)
    (block,) = blocks(rows_)
    shown = {row["name"]: row["signal"] for row in pagedata.table(block, ids)["rows"]}
    found = {s["method"]: s["id"] for s in pagedata.scored(both)["b", "p0"]["signals"]}
    assert {of: shown[of] for of in group.names} == found
    assert shown["random"] is None


def test_figures_take_the_scores_of_the_largest_n():
    frame, paths = made({"slim_sc": METHODS["slim_sc"]}, n_paths=(8, 16), n_problems=4)
    ids = {n: f"slim_sc-{n}-4-32" for n in (8, 16)}
    both = pd.concat(
        [paths.assign(run_id=ids[n], n_paths=n, score=paths["score"] + n) for n in (8, 16)],
        ignore_index=True,
    )
    (group,) = groups(records.analyse(frame), both)
    assert group.scores["slim_sc"][32].score.tolist() == (paths["score"] + 16).tolist()

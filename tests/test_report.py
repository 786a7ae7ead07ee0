"""From records to tables and figures: the same table from the same records, whoever wrote them."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from prunebench import stats
from prunebench.cells import CSV_COLUMNS, Cell
from prunebench.cost import Cost
from prunebench.errors import ConfigError, DamagedFile, PrunebenchError
from prunebench.evaluate import ProblemPool, Status, draw_subsets, evaluate_problem, failed_problem
from prunebench.references import no_pruning, oracle_pruning, random_pruning
from prunebench.report import figures, markdown, records, tables
from prunebench.report.blocks import SCHEDULE_LEGEND, blocks, distinct
from prunebench.report.build import facts_of
from prunebench.types import SignalType

pytestmark = pytest.mark.pictures

ENDS = ("csv", "md", "tex")
N_POOL, N_PATHS, N_PROBLEMS, N_SUBSETS = 24, 16, 10, 12
METHODS = {"strong": (SignalType.IV, 2.0), "twin": (SignalType.III, 2.0), "weak": (SignalType.I, 0)}


def pools(seed: int = 0) -> list[ProblemPool]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(N_PROBLEMS):
        correct = rng.random(N_POOL) < 0.5
        made.append(
            ProblemPool(
                problem_id=f"p{i}",
                indices=np.arange(N_POOL),
                lengths=rng.integers(30, 90, size=N_POOL),
                stopped=np.ones(N_POOL, dtype=bool),
                codes=np.where(correct, 0, rng.integers(1, 4, size=N_POOL)),
                correct=correct,
                answers=["1", "2", "3", "4"],
            )
        )
    return made


def rows_of_run(method: str, keep: int = 4, prefix_length: int = 32, n_problems: int = N_PROBLEMS):
    """The rows that one run of one method writes: its own and the three references."""
    kind, strength = METHODS[method]
    cell = Cell(
        run_id=f"{method}-{keep}-{prefix_length}",
        model="tiny",
        dataset="arithmetic",
        method=method,
        type=kind,
        mode="replay",
        n_paths=N_PATHS,
        keep=keep,
        prefix_length=prefix_length,
    )
    rows = []
    for i, pool in enumerate(pools()[:n_problems]):
        subsets = draw_subsets(N_POOL, N_PATHS, N_SUBSETS, np.random.default_rng([7, i]))
        noise = np.random.default_rng([*method.encode(), i]).normal(size=N_POOL)
        scores = (noise + strength * pool.correct)[subsets]
        options = {"keep": keep, "prefix_length": prefix_length}
        rng = np.random.default_rng([i, keep])
        rows += [
            records.record(
                cell, evaluate_problem(pool, subsets, scores, **options, costs=[Cost(seconds=0.25)])
            ),
            records.record(
                cell.reference("none"), no_pruning(pool, subsets, prefix_length=prefix_length)
            ),
            records.record(
                cell.reference("random"), random_pruning(pool, subsets, **options, rng=rng)
            ),
            records.record(cell.reference("oracle"), oracle_pruning(pool, subsets, **options)),
        ]
    return cell, rows


@pytest.fixture(scope="module")
def single() -> pd.DataFrame:
    return records.frame([row for method in METHODS for row in rows_of_run(method)[1]])


@pytest.fixture(scope="module")
def sweep() -> pd.DataFrame:
    return records.frame(
        [
            row
            for method in METHODS
            for prefix_length in (16, 32)
            for keep in (2, 4)
            for row in rows_of_run(method, keep, prefix_length)[1]
        ]
    )


def printed(frame: pd.DataFrame, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    tables.show(records.analyse(frame), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_file_gives_back_the_same_table(tmp_path: Path, single: pd.DataFrame):
    path = tmp_path / "run" / "records.parquet"
    records.write(path, single)
    back = records.read([path])
    pd.testing.assert_frame_equal(back, single)
    pd.testing.assert_frame_equal(records.summary(back), records.summary(single))
    assert [p.name for p in path.parent.iterdir()] == ["records.parquet"]


def test_rows_stand_in_order_and_references_only_once(single: pd.DataFrame):
    table = records.summary(single)
    assert tuple(table.columns) == CSV_COLUMNS
    assert table["method"].tolist() == ["none", "random", "strong", "twin", "weak", "oracle"]
    assert table["keep"].tolist() == [16, 4, 4, 4, 4, 4]
    assert (table["status"] == "ok").all()


def test_numbers_of_the_summary_are_those_of_the_records(single: pd.DataFrame):
    table = records.summary(single).set_index("method")
    own = single[single["method"] == "strong"]
    assert table.loc["strong", "avg"] == pytest.approx(own["avg"].mean())
    assert table.loc["strong", "generator_tokens"] == pytest.approx(own["generator_tokens"].mean())
    assert table.loc["strong", "score_seconds"] == 0.25
    per_subset = np.stack(own["avg_subsets"].tolist()).astype(float)
    expected = stats.estimate(per_subset, seed=records.BOOTSTRAP_SEED)
    assert table.loc["strong", "avg_lo"] == pytest.approx(expected.lo)
    assert table.loc["random", "avg"] == pytest.approx(table.loc["none", "avg"])
    assert table.loc["random", "headroom"] == 0.0
    assert table.loc["oracle", "headroom"] == 1.0
    assert table.loc["none", "token_reduction_pct"] == 0.0
    assert 0 < table.loc["strong", "token_reduction_pct"] < 100


def test_runs_apart_or_together_give_the_same_rows(tmp_path: Path, single: pd.DataFrame):
    paths = []
    for method in METHODS:
        _, rows = rows_of_run(method)
        paths.append(tmp_path / method / "records.parquet")
        records.write(paths[-1], records.frame(rows))
    together = records.summary(records.read(paths))
    pd.testing.assert_frame_equal(together, records.summary(single))
    alone = records.summary(records.read(paths[:1]))
    first = together[together["method"] != "twin"]
    first = first[first["method"] != "weak"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, first)


def test_references_of_other_banks_and_seeds_are_not_mixed(single: pd.DataFrame):
    for column, value in (("bank", "other"), ("seed", 1), ("mode", "online")):
        other = single.assign(**{column: value})
        table = records.summary(pd.concat([single, other], ignore_index=True))
        assert (table["method"] == "random").sum() == 2


def test_runs_of_different_numbers_of_problems_share_what_they_can():
    _, short = rows_of_run("weak", n_problems=4)
    _, long = rows_of_run("strong")
    table = records.summary(records.frame(short + long)).set_index("method")
    reference = records.summary(records.frame(short)).set_index("method")
    assert table.loc["weak", "headroom"] == pytest.approx(reference.loc["weak", "headroom"])
    assert table.loc["random", "avg"] != reference.loc["random", "avg"]


def test_a_failed_cell_a_failed_problem_and_a_late_failure():
    cell, rows = rows_of_run("strong")
    broken = replace(cell, method="broken[x]", run_id="b")
    half = replace(cell, method="half", run_id="h")
    rows += [
        records.failed_record(broken, Status.SKIPPED, "no endpoint [y]"),
        records.record(half, failed_problem("p0", "it hurts")),
        *(
            {**row, "method": "half", "run_id": "h"}
            for row in rows[4:]
            if row["method"] == "strong"
        ),
    ]
    frame = records.frame(rows)
    table = records.summary(frame).set_index("method")
    assert table.loc["broken[x]", "status"] == "skipped"
    assert table.loc["broken[x]", "reason"] == "no endpoint [y]"
    assert np.isnan(table.loc["broken[x]", "avg"])
    assert table.loc["half", "status"] == "partial"
    assert "1 of 10 problems failed (p0: it hurts)" in table.loc["half", "reason"]
    text = printed(frame)
    assert "broken[x] skipped: no endpoint [y]" in text
    late = [*rows, records.failed_record(cell, Status.FAILED, "stopped early")]
    line = records.summary(records.frame(late)).set_index("method").loc["strong"]
    assert line["status"] == "partial"
    assert "stopped early" in line["reason"]


def test_a_run_without_any_success():
    cell, _ = rows_of_run("strong", n_problems=0)
    frame = records.frame([records.failed_record(cell, Status.FAILED, "out of memory")])
    assert "strong failed: out of memory" in printed(frame)
    drawn, skipped = figures.write_figures(records.analyse(frame), None, Path("unused"))
    assert drawn == []
    assert set(skipped.values()) == {"no row has numbers"}
    assert records.summary(records.frame([])).empty


def test_csv_has_the_exact_header_and_empty_cells(tmp_path: Path, single: pd.DataFrame):
    written = tables.write(records.analyse(single), tmp_path)
    summaries = [f"{name}.{end}" for name in ("summary", "main_table") for end in ENDS]
    assert [p.name for p in written] == summaries
    lines = written[0].read_text().splitlines()
    assert lines[0] == ",".join(CSV_COLUMNS)
    back = pd.read_csv(written[0], keep_default_na=False)
    none = back[back["method"] == "none"].iloc[0]
    assert (none["auroc_within"], none["score_seconds"]) == ("", "")
    assert "no signal" in none["reason"]
    full = records.summary(single).set_index("method")
    assert float(back[back["method"] == "twin"]["avg"].iloc[0]) == pytest.approx(
        full.loc["twin", "avg"], rel=1e-5
    )


def test_markdown_marks_the_best_and_gives_corrected_differences(single: pd.DataFrame):
    rows = records.analyse(single)
    block = tables.blocks(rows)[0]
    by_name = {row.cell.method: c for row, c in zip(block.rows, block.avg, strict=True)}
    assert by_name["strong"].best or by_name["twin"].best
    assert by_name["strong"].tied
    assert by_name["twin"].tied
    assert not by_name["weak"].tied
    for control in ("none", "oracle"):
        assert by_name[control].difference is None
    # Holm over weak, random and the other twin, by hand.
    best = "strong" if by_name["strong"].best else "twin"
    values = {row.cell.method: np.stack([r.avg for r in row.results]) for row in block.rows}
    others = [m for m in ("strong", "twin", "weak", "random") if m != best]
    p = [
        stats.paired_difference(values[m], values[best], seed=records.BOOTSTRAP_SEED).p
        for m in others
    ]
    expected = dict(zip(others, stats.holm(p), strict=True))
    for method, value in expected.items():
        assert by_name[method].p_holm == pytest.approx(value)
    text = markdown.summary(rows, tables.blocks(rows))
    line = next(line for line in text.splitlines() if line.startswith(f"| {best} "))
    assert f"**{100 * values[best].mean():.1f}**" in line
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert len(widths) == 1


def test_the_console_table_fits_80_columns(single: pd.DataFrame, sweep: pd.DataFrame):
    for text in (printed(single), printed(sweep)):
        assert max(map(len, text.splitlines())) <= 80
        for name in ("no pruning", "random", "strong", "twin", "weak", "oracle"):
            assert name in text
        assert "…" not in text
    assert "keep 4 of 16, checkpoint 32 tokens" in printed(single)


def test_a_sweep_is_one_matrix_per_checkpoint(sweep: pd.DataFrame):
    text = printed(sweep)
    assert text.count("checkpoint 16 tokens") == 1
    assert text.count("checkpoint 32 tokens") == 1
    assert text.count("no pruning") == 2
    assert len(records.summary(sweep)) == 2 * (1 + 2 * 5)
    value = records.summary(sweep).query("method == 'weak' and keep == 2 and prefix_length == 16")
    line = next(line for line in text.splitlines() if line.startswith("weak"))
    assert f"{100 * value['avg'].iloc[0]:.1f}" in line


def test_a_method_run_twice_under_one_budget_keeps_both_lines(sweep: pd.DataFrame):
    again = sweep[sweep["method"] == "weak"].assign(run_id="second")
    other = again.assign(
        auroc_subsets=[[0.5]] * len(again)
    )  # of other options: same paths kept, other scores
    for found, n in ((other, 2), (again.assign(score_seconds=9.0), 1)):  # the same cell twice
        text = printed(pd.concat([sweep, found], ignore_index=True))
        assert sum(line.startswith("weak") for line in text.splitlines()) == n * 2
    one = replace(records.analyse(sweep)[2], results=[])
    failed = [replace(one, line=replace(one.line, reason=why)) for why in ("a", "a", "b")]
    assert [row.line.reason for row in distinct(failed)] == ["a", "b"]


def test_equal_rows_do_not_make_the_correction_harder(sweep: pd.DataFrame):
    again = sweep[sweep["method"] == "weak"].assign(run_id="second")
    both = pd.concat([sweep, again, again.assign(run_id="third")], ignore_index=True)
    alone, together = (blocks(records.analyse(frame)) for frame in (sweep, both))
    for a, b in zip(alone, together, strict=True):
        assert [c.p_holm for c in a.avg] == pytest.approx([c.p_holm for c in b.avg], nan_ok=True)
    assert len(records.summary(both)) == len(records.summary(sweep)) + 2 * 4  # all of them


def test_runs_of_one_name_in_unlike_folders_stay_apart(tmp_path: Path, single: pd.DataFrame):
    single = single.assign(run_id="tiny/0")
    weak = single[single["method"] == "weak"]
    files = [tmp_path / name / "0" / "records.parquet" for name in ("a", "b", "c")]
    for file, frame in zip(files, (single, weak, weak),
                           strict=True):  # fmt: skip
        records.write(file, frame)
        file.with_name("run.json").write_text('{"run_id": "tiny/0"}')
    pd.testing.assert_frame_equal(records.read(files[:1]), single)
    rows = records.analyse(records.read(files))
    assert [r.cell.run_id for r in rows if r.cell.method == "weak"] == [
        *("tiny/0", "1:tiny/0", "2:tiny/0")
    ]
    assert [one["run_id"] for one in facts_of(files)] == ["tiny/0", "1:tiny/0", "2:tiny/0"]
    files.insert(1, tmp_path / "d" / "records.parquet")
    records.write(files[1], weak.assign(run_id="tiny/1"))
    assert records.run_prefixes(files) == ["", "", "2:", "3:"]


def test_a_schedule_says_where_its_auroc_was_measured(tmp_path: Path, single: pd.DataFrame):
    staged = single.assign(rule=single["method"].map({"weak": "16→8→4 at 16, 32"}).fillna(""))
    for frame, says in ((single, False), (staged, True)):
        written = tables.write(records.analyse(frame), tmp_path)
        texts = [p.read_text() for p in written if p.name in ("summary.md", "summary.tex")]
        found = [SCHEDULE_LEGEND in text for text in [*texts, printed(frame, width=200)]]
        assert found == [says] * 3


def test_markup_in_names_is_printed_as_it_is(single: pd.DataFrame):
    frame = single.assign(model="[red]m[/]", method=single["method"].replace("weak", "[bold]w"))
    text = printed(frame, width=120)
    assert "[red]m[/]" in text
    assert "[bold]w" in text


def test_damaged_foreign_and_missing_files(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no records at .*nothing\.parquet"):
        records.read([tmp_path / "nothing.parquet"])
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 not really")
    with pytest.raises(DamagedFile, match=r"damaged\.parquet cannot be read"):
        records.read([damaged])
    foreign = tmp_path / "foreign.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(foreign)
    with pytest.raises(DamagedFile, match=r"schema version \d+ .*found: none"):
        records.read([foreign])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "summary.csv"
    path.write_text("old")

    def fill_the_disk() -> None:
        with records.replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(PrunebenchError, match=r"summary\.csv could not be written: No space left"):
        fill_the_disk()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.csv"]
    with pytest.raises(PrunebenchError, match="could not be written"):
        records.write(path / "records.parquet", records.frame([]))


def test_importing_the_report_loads_nothing_heavy():
    code = (
        "import sys, prunebench.report.tables, prunebench.report.figures\n"
        "print([m for m in ('torch', 'pandas', 'pyarrow', 'matplotlib', 'scipy') "
        "if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_methods_are_ordered_by_their_auroc_and_rows_of_one_name_keep_their_order() -> None:
    """Matrices tell two rows of one name apart by their order, so no block may change it."""
    made = []
    for name, method in (("b", "weak"), ("a", "strong")):  # under one label, in two runs
        for keep in (2, 4):
            _, rows = rows_of_run(method, keep=keep)
            labelled = [{**row, "run_id": f"{name}{keep}"} for row in rows]
            made += [{**r, "method": "judge"} if r["method"] == method else r for r in labelled]
            if name == "b":
                made += rows_of_run("strong", keep=keep)[1]
    found = tables.blocks(records.analyse(records.frame(made)))
    assert len(found) == 2
    for block in found:
        names = [row.cell.method for row in block.rows]
        assert names == ["none", "random", "judge", "judge", "strong", "oracle"]
        assert [row.cell.run_id[:1] for row in block.rows[2:4]] == ["b", "a"]
        worse, better = (row.line.auroc_within for row in block.rows[2:4])
        assert worse < better

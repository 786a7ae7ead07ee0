"""Tables as files: LaTeX that compiles, Markdown, the main table, published numbers beside ours."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from recordsmaker import METHODS, made

from prunebench.evaluate import Status
from prunebench.report import latex, maintable, markdown, numbers, published, records, tables
from prunebench.report.blocks import blocks
from prunebench.report.records import Row
from prunebench.types import SignalType
from prunebench.vote import Aggregator

pytestmark = pytest.mark.pictures

NAN = float("nan")
PAPER = Path(__file__).parents[2] / "shared" / "data" / "paper"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Two datasets; on the second one, slim_sc was not run, deepconf failed."""
    frame, _ = made(n_problems=8)
    second, _ = made(n_problems=8, dataset="b_2", length=140)
    second = second[~second["method"].isin(["slim_sc", "deepconf"])]
    cell = next(r.cell for r in records.analyse(frame) if r.cell.method == "deepconf")
    failed = replace(cell, dataset="b_2", run_id="failed")
    late = records.frame([records.failed_record(failed, Status.FAILED, "50% of it & more_")])
    return records.analyse(pd.concat([frame, second, late], ignore_index=True))


def parsed(text: str) -> list[list[list[str]]]:
    """Cells of every tabular, after checking that the text is well-formed: braces balance,
    environments nest, every row has as many columns as the preamble says."""
    body = re.sub(r"(?m)^%.*$", "", text)
    plain = body.replace(r"\\", "\0").replace(r"\{", "").replace(r"\}", "")
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    open_environments = []
    for kind, name in re.findall(r"\\(begin|end)\{([^}]+)\}", body):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert open_environments == []
    assert len(re.findall(r"(?<!\\)\$", body)) % 2 == 0
    assert not re.search(r"(?<!\\)[#_](?!\{)", re.sub(r"\\label\{[^}]*\}", "", body))
    assert body.isascii()
    found = []
    for columns, inner in re.findall(
        r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", body, re.DOTALL
    ):
        inner = re.sub(r"\\(top|mid|bottom)rule", "", inner)
        table = []
        for line in inner.split(r"\\")[:-1]:
            cells = [cell.strip() for cell in re.split(r"(?<!\\)&", line)]
            spans = [re.match(r"\\multicolumn\{(\d+)\}", cell) for cell in cells]
            assert sum(int(m[1]) if m else 1 for m in spans) == len(columns), line
            table.append(cells)
        found.append(table)
    return found


def test_numbers_are_shown_with_their_interval_or_a_dash():
    assert numbers.plus_minus((0.4471, 0.31, 0.59), 100, 1) == "44.7±14.0"
    assert numbers.plus_minus((256.0, 256.0, 256.0), 1, 0) == "256"
    assert numbers.plus_minus((0.5, NAN, NAN), 100, 1) == "50.0"
    assert numbers.plus_minus((NAN, NAN, NAN), 1, 1) == "–"
    assert numbers.number(-0.0004, 2) == "0.00"
    assert numbers.counted((5143.0, 4930.0, 5350.0)) == "5.14±0.21k"
    assert numbers.counted((782300.0, NAN, NAN)) == "782k"
    assert numbers.counted((1.361e6, 1.3e6, 1.4e6)) == "1.36±0.05M"
    assert numbers.counted((87.4, 80.0, 90.0)) == "87±5"
    assert numbers.counted((0.0, 0.0, 0.0)) == "0"
    assert numbers.seconds((0.000254, 0.0002, 0.0003)) == "0.00025±0.00005"
    assert numbers.seconds((12.3, 10.0, 14.0)) == "12±2"
    assert numbers.bounds(0.1, 0.25, 100, 1) == "[10.0, 25.0]"


def test_latex_escapes_every_special_character():
    text = r"a_b & 50% of #1 {x} ~ ^ \cmd $y$ <z> 8|64 ⟨votes: q⟩ 64→32"
    escaped = latex.escape(text)
    parsed(escaped)
    bare = re.sub(r"\\text\w+\{\}|\$\\?\w*[<>|]?\$|\\.", "", escaped)
    assert not set("&%$#_{}~^\\<>|⟨⟩→") & set(bare)
    assert latex.escape("two\n\nlines") == "two lines"


def test_summary_tex_marks_best_second_and_tied_and_explains_dashes(rows: list[Row]):
    found = blocks(rows)
    text = latex.summary(found)
    parsed_tables = parsed(text)
    assert len(parsed_tables) == len(found) == 2
    for table, block in zip(parsed_tables, found, strict=True):
        assert [line[0] for line in table[1:]] == [
            latex.escape("no pruning" if r.cell.method == "none" else r.cell.method)
            for r in block.rows
        ]
        for at, compared, measure in ((2, block.avg, "avg"), (3, block.cons, "cons")):
            cells = [line[at] for line in table[1:]]
            methods = [
                i
                for i, r in enumerate(block.rows)
                if r.cell.type is not SignalType.CONTROL
                and getattr(r.line, measure) == getattr(r.line, measure)
            ]
            assert [i for i, c in enumerate(compared) if c.best] == [
                i for i, cell in enumerate(cells) if cell.startswith(r"\textbf{")
            ]
            others = [i for i in methods if not compared[i].best]
            top = max((getattr(block.rows[i].line, measure) for i in others), default=None)
            assert [i for i in others if getattr(block.rows[i].line, measure) == top] == [
                i for i, cell in enumerate(cells) if cell.startswith(r"\underline{")
            ]
            tied = [i for i, c in enumerate(compared) if c.tied and not c.best]
            assert tied == [i for i, cell in enumerate(cells) if "$^{=}$" in cell]
    assert r"50\% of it \& more\_" in text
    dashes = re.findall(r"--(\$\^\{\\mathrm\{(\w+)\}\}\$)?", text.split(r"\bottomrule")[0])
    assert dashes
    assert all(mark for mark, _ in dashes)
    assert r"\toprule" in text
    assert r"\usepackage{booktabs,graphicx}" in text


def test_the_main_table_is_laid_out_by_type(rows: list[Row]):
    (main,) = maintable.tables(blocks(rows))
    assert main.columns == [
        ("", "no pruning"),
        ("Type I", "slim_sc"),
        ("Type III", "deepconf"),
        ("Type IV", "stop"),
        ("Control", "random"),
        ("Control", "oracle"),
    ]
    assert list(main.lines) == [("tiny", "arithmetic"), ("tiny", "b_2")]
    assert main.heading == "keep 4 of 16, checkpoint 32 tokens (replay)"
    frame = maintable.main_table([main])
    lines = {(r.cell.dataset, r.cell.method): r.line for r in rows}
    for dataset in ("arithmetic", "b_2"):
        line = lines[dataset, "stop"]
        got = frame.loc[(main.heading, "tiny", dataset)]
        for measure in ("avg", "avg_lo", "avg_hi", "total_tokens", "token_reduction_pct"):
            assert got["Type IV", "stop", measure] == getattr(line, measure)
    missing = frame.loc[(main.heading, "tiny", "b_2")]
    assert np.isnan(missing["Type I", "slim_sc", "avg"])
    assert missing["Type I", "slim_sc", "status"] == "not run"
    assert missing["Type III", "deepconf", "status"] == "failed"


def test_the_main_table_in_every_format(rows: list[Row], tmp_path: Path):
    written = maintable.write(blocks(rows), tmp_path)
    assert [p.name for p in written] == ["main_table.csv", "main_table.md", "main_table.tex"]
    back = pd.read_csv(written[0])
    lines = {(r.cell.dataset, r.cell.method): r.line for r in rows}
    stop = lines["arithmetic", "stop"]
    assert back["stop: avg"][0] == pytest.approx(stop.avg, rel=1e-5)
    assert back["slim_sc: status"].tolist() == ["ok", "not run"]
    text = written[1].read_text()
    avg = numbers.plus_minus(numbers.measure(stop, "avg"), 100, 1)
    saved = numbers.plus_minus(numbers.measure(stop, "token_reduction_pct"), 1, 1)
    assert f"**{avg}**" in text or f"*{avg}*" in text or f" {avg}" in text
    assert f"({saved}%)" in text
    notes = dict(re.findall(r"(?m)^<sup>(\w)</sup> (.*)$", text))
    assert set(notes.values()) == {"not run", markdown.escape("50% of it & more_")}
    assert set(re.findall(r"–<sup>(\w)</sup>", text)) == set(notes)
    assert len({line.count(" | ") for line in text.splitlines() if line[:2] == "| "}) == 1
    (table,) = parsed(written[2].read_text())
    assert table[0][3:] == ["", "Type I", "Type III", "Type IV", r"\multicolumn{2}{c}{Control}"]
    assert table[1][3:] == ["no pruning", r"slim\_sc", "deepconf", "stop", "random", "oracle"]
    assert [line[2] for line in table[3:]] == [r"avg@4$|$16 \%", "tokens (saved)"] * 2
    assert sum(cell.startswith(r"\textbf{") for line in table[3:] for cell in line) == 2


def test_every_budget_has_a_main_table_and_a_run_of_references_none(tmp_path: Path):
    frame, _ = made({"stop": METHODS["stop"]}, keeps=(2, 4), checkpoints=(16, 32), n_problems=4)
    analysed = records.analyse(frame)
    headings = [m.heading for m in maintable.tables(blocks(analysed))]
    assert headings == [
        f"keep {k} of 16, checkpoint {at} tokens (replay)" for at in (16, 32) for k in (2, 4)
    ]
    references = records.analyse(frame[frame["method"] != "stop"])
    assert maintable.write(blocks(references), tmp_path) == []
    names = [p.name for p in tables.write(references, tmp_path)]
    assert names == ["summary.csv", "summary.md", "summary.tex"]


def test_one_problem_has_no_intervals_and_says_so(tmp_path: Path):
    frame, _ = made({"stop": METHODS["stop"]}, n_problems=1)
    tables.write(records.analyse(frame), tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert "no intervals: one problem only" in text
    assert "±" not in text.split(markdown.LEGEND)[0]
    parsed((tmp_path / "summary.tex").read_text())


def test_summary_md_says_what_the_problems_can_tell_apart(rows: list[Row]):
    text = markdown.summary(rows, blocks(rows))
    assert "Smallest difference from the best that 8 problems can show" in text
    assert "p (McNemar)" in text
    header, _, first = [line for line in text.splitlines() if line.startswith("| ")][:3]
    assert header.count(" | ") == first.count(" | ")


def test_one_name_under_two_rules_has_two_columns():
    frame, _ = made({"stop": METHODS["stop"]}, n_problems=4)
    own = frame[frame["method"] == "stop"]
    staged = own.assign(rule="16→4 at 16, 32", run_id="a")
    weighed = own.assign(weights="entropy", run_id="b")
    found = blocks(records.analyse(pd.concat([frame, staged, weighed], ignore_index=True)))
    (main,) = maintable.tables(found)
    names = [name for group, name in main.columns if group == "Type IV"]
    assert names == ["stop", "stop [16→4 at 16, 32]", "stop ⟨votes: entropy⟩"]
    parsed(latex.summary(found))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX is installed (pdflatex)")
def test_the_tables_compile(rows: list[Row], tmp_path: Path):
    tables.write(rows, tmp_path)
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n"
        "\\input{summary}\\input{main_table}\n\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]


# ----------------------------------------------------------------------- published numbers


def test_published_facts_are_those_of_the_source():
    if not PAPER.is_dir():
        pytest.skip("the reference data beside the repository is not there")
    facts = published.facts()
    source = pd.read_csv(PAPER / "table2_table13.csv")
    keys = ["model", "dataset", "method"]
    for column, measure in (
        ("avg_accuracy_pct", "avg_pct"),
        ("total_tokens", "total_tokens"),
    ):
        own = facts[facts["source_table"].isin(["2", "13"]) & (facts["measure"] == measure)]
        joined = source.merge(own, on=keys, how="outer", validate="one_to_one")
        assert joined["value"].tolist() == joined[column].tolist()
        assert joined["keep_x"].tolist() == joined["keep_y"].tolist()
    ablations = pd.read_csv(PAPER / "ablations_table3_4_5_6.csv")
    own = facts[facts["source_table"] == "3-6"]
    assert own["value"].tolist() == ablations["value_pct"].tolist()
    overhead = pd.read_csv(PAPER / "overhead_table7_table16.csv").melt(["method", "type"])
    own = facts[facts["source_table"] == "7, 16"]
    joined = overhead.merge(own, left_on=["method", "variable"], right_on=["method", "measure"])
    assert len(joined) == len(overhead) == len(own)
    assert joined["value_x"].tolist() == joined["value_y"].tolist()


def test_our_names_find_the_published_rows():
    facts = published.main_facts("qwen1.5b", "aime24").set_index("method")
    assert facts.loc["stop", "avg_pct"] == 37.92
    assert facts.loc["none", "total_tokens"] == 782300
    assert facts.loc["prm_retrained", "source_table"] == "13"
    assert len(published.main_facts("qwen7b", "gpqa_diamond")) == 4
    assert published.main_facts("tiny", "aime24").empty
    assert published.main_facts("qwen1.5b", "arithmetic").empty
    cell = next(r.cell for r in records.analyse(made(METHODS, n_problems=2)[0]))
    for ours, theirs in (
        ("none", "none"),
        ("stop(m=4)", "stop"),
        ("prm_math_shepherd_7b", ""),
        ("prm_qwen25_math_72b", ""),
        ("prm", ""),
        ("labor", ""),
        ("prm_qwen25_math_7b", "prm_labor"),
        ("labor_qwen25_math_7b", "prm_labor"),
        ("entropy_top20_renorm", "ppl_entropy"),
        ("slim_sc", "slim_sc_jaccard"),
        ("deepconf", ""),
        ("random", ""),
    ):
        assert published.published_method(replace(cell, method=ours)) == theirs


def test_another_rule_or_vote_is_another_budget_than_the_published():
    cell = next(r.cell for r in records.analyse(made(METHODS, n_problems=2)[0]))
    cell = replace(cell, method="stop", n_paths=64, keep=8, prefix_length=2048)
    fact = published.main_facts("qwen1.5b", "aime24").set_index("method").loc["stop"].to_dict()
    assert published.same_budget(cell, fact)
    for change in (
        {"keep": 4},
        {"rule": "64→16→8 at 1024, 2048"},
        {"weights": "deepconf"},
        {"aggregator": Aggregator.borda},
    ):
        assert not published.same_budget(replace(cell, **change), fact)


def test_ours_are_compared_with_the_published_at_the_same_budget(tmp_path: Path):
    names = {"model": "qwen1.5b", "dataset": "aime24"}
    grid = {"n_paths": (64,), "n_pool": 70, "length": 11000, "n_problems": 4}
    frame, _ = made(**names, **grid, keeps=(8, 16), checkpoints=(2048,))
    analysed = records.analyse(frame)
    written = tables.write(analysed, tmp_path)
    assert [p.name for p in written[-2:]] == ["published.csv", "published.md"]
    table = published.comparison(analysed)
    assert sorted(set(table["method"])) == ["no pruning", "slim_sc", "stop"]
    stop = table[(table["method"] == "stop") & (table["keep"] == 8)].iloc[0]
    line = next(r.line for r in analysed if r.cell.method == "stop" and r.cell.keep == 8)
    assert stop["same_budget"]
    assert stop["published_avg_pct"] == 37.92
    assert stop["difference"] == pytest.approx(100 * line.avg - 37.92)
    assert stop["difference_lo"] == pytest.approx(100 * line.avg_lo - 37.92)
    assert stop["published_total_tokens"] == 204300
    assert not table[(table["method"] == "stop") & (table["keep"] == 16)]["same_budget"].any()
    text = (tmp_path / "published.md").read_text()
    assert "8 of 64, checkpoint 2048 |" in text
    assert "16 of 64, checkpoint 2048 † |" in text
    assert "64 paths |" in text

"""From a sweep to its report, again without the bank, and the same sweep a second time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from prunebench import cli, job
from prunebench.lab import Lab

pytestmark = pytest.mark.pictures

SWEEP = [
    "-m",
    "backend=fake",
    "method=mean_logprob,entropy",
    "keep=2,4",
    "n_paths=8",
    "prefix_length=16",
    "dataset.limit=3",
    "workers=1",
    "hydra.sweep.dir=sweep",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a finished sweep."""
    here = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(job, "LAB", Lab())
        assert cli.main(SWEEP) == 0
    return here


@pytest.fixture(autouse=True)
def _inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(job, "LAB", Lab())


def made(folder: Path) -> dict[str, bytes]:
    """The files of a report, without those that tell how long a run took."""
    files = (p for p in folder.iterdir() if p.is_file() and p.suffix != ".yaml")
    return {p.name: p.read_bytes() for p in files if p.name != "seconds.json"}


def test_a_report_is_the_same_without_the_bank(folder, capsys):
    first = made(folder / "sweep")
    assert {"report.html", "summary.csv", "summary.tex", "main_table.tex", "signals.csv"} <= set(
        first
    )
    assert any(name.endswith(".pdf") for name in first)
    shutil.copytree(folder / "sweep", folder / "copy", ignore=shutil.ignore_patterns(*first))
    shutil.move(folder / "results", folder / "gone")
    try:
        assert cli.main(["report", "copy"]) == 0
    finally:
        shutil.move(folder / "gone", folder / "results")
    again = made(folder / "copy")
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == []
    assert "report.html" in capsys.readouterr().out


def test_several_folders_make_one_report(folder):
    assert cli.main(["report", "sweep/0", "sweep/3", "output=both"]) == 0
    table = pd.read_csv(folder / "both" / "summary.csv")
    own = table[~table.method.isin(["none", "random", "oracle"])]
    assert sorted(zip(own.method, own.keep, strict=True)) == [("entropy", 4), ("mean_logprob", 2)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "takes folders"),
        (["sweep", "other"], "output="),
        (["nowhere"], "There is no folder nowhere"),
        (["results"], "holds no 'records.parquet'"),
        (["sweep", "colour=red"], "colour"),
        (["sweep", "max_mb=large"], "max_mb"),
        (["sweep", "width=three"], "one of auto, one, two"),
    ],
)
def test_what_cannot_be_reported(folder, capsys, arguments, words):
    assert cli.main(["report", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_same_sweep_does_only_what_is_missing(folder, capsys):
    stamps = {p: p.stat().st_mtime_ns for p in sorted(folder.glob("sweep/*/run.json"))}
    (folder / "sweep" / "1" / "records.parquet").unlink()
    assert cli.main(SWEEP) == 0
    said = capsys.readouterr().out
    assert said.count("done before") == 3
    changed = [p.parent.name for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp]
    assert changed == ["1"]
    table = pd.read_csv(folder / "sweep" / "summary.csv")
    assert len(table[table.method.isin(["mean_logprob", "entropy"])]) == 4


def test_another_option_is_another_cell(folder, capsys):
    assert cli.main([*SWEEP, "evaluation.n_subsets=7"]) == 0
    assert "done before" not in capsys.readouterr().out


def test_records_name_no_folder_of_the_machine(folder):
    facts = json.loads((folder / "sweep" / "0" / "run.json").read_text())
    assert facts["bank"].startswith("results/bank/")
    assert str(folder) not in (folder / "sweep" / "report.html").read_text()

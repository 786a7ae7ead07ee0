"""The main job on the embedded model: the path a newcomer takes, at reduced size."""

import json

import numpy as np
import pandas as pd
import pytest

from prunebench import cli
from prunebench.lab import Lab
from prunebench.tiny.task import make_problems

SMALL = [
    "n_paths=6",
    "keep=2",
    "prefix_length=48",
    "dataset.limit=20",
    "model.sampling.max_new_tokens=200",
    "workers=1",
    "backend.threads=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which replay and online runs of stop and deepconf have been made."""
    from prunebench import job

    here = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(job, "LAB", Lab())
        for method in ("stop", "deepconf"):
            for mode in ("replay", "online"):
                # online, one by one would take five times as long
                options = [*SMALL, "problems_at_once=5", f"hydra.run.dir={mode}/{method}"]
                code = cli.main([f"method={method}", f"mode={mode}", *options])
                assert code == 0
    return here


@pytest.mark.parametrize("method", ["stop", "deepconf"])
def test_online_and_replay_keep_the_same_paths_and_answer_the_same(folder, method):
    replay, online = (
        pd.read_parquet(folder / mode / method / "records.parquet")
        .query("method == @method")
        .set_index("problem_id")
        for mode in ("replay", "online")
    )
    assert len(replay) == 20
    assert list(online.index) == list(replay.index)
    assert [list(k) for k in online.kept] == [list(k) for k in replay.kept]
    assert list(online.answer) == list(replay.answer)
    assert list(online.generator_tokens) == list(replay.generator_tokens)
    assert list(online.verifier_tokens) == list(replay.verifier_tokens)
    notes = json.loads((folder / "online" / method / "run.json").read_text())["notes"]
    assert notes[-1].startswith("20 of 20 problems")


def test_stop_pays_its_tokens_and_the_table_shows_them_apart(folder):
    table = pd.read_csv(folder / "replay" / "stop" / "summary.csv").set_index("method")
    m = json.loads((folder / "replay" / "stop" / "run.json").read_text())["config"]["method"]
    assert table.verifier_tokens["stop"] == 6 * m["n_tokens"]
    assert table.verifier_tokens["none"] == 0
    assert table.total_tokens["stop"] == pytest.approx(
        table.generator_tokens["stop"] + table.verifier_tokens["stop"]
    )


def test_growing_n_paths_adds_paths_and_redoes_none(folder, monkeypatch):
    monkeypatch.chdir(folder)
    small = ["method=random", *SMALL[1:3], "dataset.limit=2", *SMALL[4:]]
    (bank,) = (folder / "results" / "bank").iterdir()
    before = {f.name: pd.read_parquet(f) for f in (bank / "problems").glob("*.parquet")}
    assert cli.main([*small, "n_paths=8"]) == 0
    grown = 0
    for name, old in before.items():
        new = pd.read_parquet(bank / "problems" / name)
        pd.testing.assert_frame_equal(new[new["index"] < 6].reset_index(drop=True), old)
        grown += len(new) == 8
    assert grown == 2


def test_a_bank_of_another_configuration_says_which_keys_differ(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (bank,) = (folder / "results" / "bank").iterdir()
    assert cli.main(["method=random", *SMALL, f"bank.path={bank}", "seed=5"]) == 2
    error = capsys.readouterr().err
    assert "seed" in error
    assert "5" in error


def test_training_runs_from_the_command_line_and_the_result_is_used(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = [
        "method=stop",
        "model=tiny",
        "model.sampling.max_new_tokens=200",
        "train.n_problems=12",
        "train.prefixes_per_problem=3",
        "train.prefix_lengths=[48,64]",
        "train.valid_share=0.4",
        "method.epochs=1",
        "method.batch_size=16",
        "workers=1",
        "backend.threads=1",
    ]
    assert cli.main(["train", *tiny]) == 0
    trained = tmp_path / "results" / "trained" / "tiny" / "stop"
    assert (trained / "stop.safetensors").is_file()
    assert json.loads((trained / "stop.json").read_text())["metrics"]["n_train"] > 0
    labels = {p: p.stat().st_mtime_ns for p in (tmp_path / "results/labels").rglob("*.parquet")}
    assert cli.main(["train", *tiny]) == 0  # labels are reused
    assert all(p.stat().st_mtime_ns == made for p, made in labels.items())
    capsys.readouterr()
    assert cli.main(["train", "method=deepconf", "model=tiny"]) == 2
    assert "nothing to train" in capsys.readouterr().err
    assert cli.main(["train", *tiny[:3], "train.n_problems=0"]) == 2
    assert "train.n_problems" in capsys.readouterr().err


def test_problems_of_training_labels_and_evaluation_are_disjoint():
    drawn = {
        split: {q for seed in range(3) for q, _ in make_problems(seed, 200, split)}
        for split in ("eval", "labels", "train")
    }
    names = list(drawn)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert not drawn[a] & drawn[b]


def test_the_default_problems_are_in_the_band_that_a_benchmark_needs(folder):
    """A coarse guard on 20 problems x 6 paths; the full numbers are in the README."""
    table = pd.read_parquet(folder / "replay" / "deepconf" / "records.parquet")
    accuracy = table[table.method == "none"].avg
    assert 0.25 < accuracy.mean() < 0.75
    assert np.std(accuracy) > 0.1

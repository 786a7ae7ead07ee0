"""The benchmark scripts at tiny sizes: they run, and their tables hold what they should. No test
looks at how fast anything is."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.benchmark

FOLDER = Path(__file__).parent.parent / "benchmarks"
ABOUT = {"backend", "hardware", "threads", "python", "prunebench", "torch", "transformers", "vllm"}


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs a script of `benchmarks/` and returns its table."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def run(name, *arguments):
        output = tmp_path / f"{name}.csv"
        importlib.import_module(name).main([*arguments, "--output", str(output)])
        return pd.read_csv(output)

    return run


def check(table, columns):
    assert set(table.columns) >= ABOUT | set(columns)
    assert (table.backend == "transformers").all()
    assert table.hardware.str.len().gt(2).all()
    assert not table.hardware.str.contains("/").any()
    values = table[list(columns)].to_numpy(dtype=float)
    assert np.isfinite(values).all()
    assert (values >= 0).all()


def test_framework_tax(script):
    table = script("framework_tax", "--paths", "3", "--tokens", "6", "--repeats", "2")
    speeds = ["prunebench_tokens_per_s", "alone_tokens_per_s", "ratio", "cpu_time_ratio"]
    check(table, [*speeds, "prunebench_tokens", "alone_tokens"])
    assert table.ends.tolist() == ["never", "own"]
    never = table[table.ends == "never"].iloc[0]
    assert never.prunebench_tokens == never.alone_tokens == 2 * 3 * 6
    assert (table.lowest_ratio <= table.ratio).all()
    assert (table.ratio <= table.highest_ratio).all()


@pytest.mark.parametrize("shape", ["tiny", "small"])
def test_check_cost(script, shape):
    sizes = ["--paths", "3", "--prefix-length", "8", "--max-new-tokens", "12", "--repeats", "1"]
    table = script("check_cost", "--shape", shape, *sizes)
    shares = ["of_launch_pct", "of_generation_pct", "tokens_pct"]
    check(table, ["seconds", "verifier_tokens", *shares, "launch_s", "generation_s"])
    rows = table.set_index("method")
    assert rows.type.to_dict() == {"slim_sc": "I", "prm": "II", "deepconf": "III", "stop": "IV"}
    assert rows.verifier_tokens["stop"] == 3 * 4
    assert rows.verifier_tokens["prm"] > 3 * 4
    assert rows.verifier_tokens[["slim_sc", "deepconf"]].tolist() == [0, 0]
    assert rows.prefix_tokens["stop"] == 3 * 8
    if shape == "small":
        assert rows.generated_tokens["stop"] == 3 * 12  # no path ends by itself
    assert rows.of_launch_pct["stop"] == pytest.approx(
        100 * rows.seconds["stop"] / rows.launch_s["stop"], rel=1e-3
    )
    assert rows.paper_pct["stop"] == 0.59
    assert np.isnan(rows.paper_pct["deepconf"])


def test_saving(script):
    sizes = ["--paths", "4", "--keep", "1", "--problems", "2", "--repeats", "1"]
    table = script("saving", *sizes, "prefix_length=4", "model.sampling.max_new_tokens=12")
    check(table, ["complete_s", "pruned_s", "launch_s", "check_s", "resume_s", "tokens_saved_pct"])
    [row] = table.to_dict("records")
    assert row["complete_tokens"] == 2 * 4 * 12
    assert row["pruned_tokens"] == 2 * (3 * 4 + 12)
    assert row["tokens_saved_pct"] == pytest.approx(50.0)
    assert row["verifier_tokens"] == 2 * 4 * 4
    assert row["time_saved_pct"] == pytest.approx(
        100 * (1 - row["pruned_s"] / row["complete_s"]), abs=0.01
    )


def test_growth(script, tmp_path):
    sizes = ["--paths", "4", "8", "--tokens", "8", "16", "--methods", "slim_sc", "stop", "coe"]
    table = script("growth", *sizes)
    check(table, ["n_paths", "prefix_length", "seconds"])
    assert set(table.task) == {"launch", "slim_sc", "stop", "coe", "evaluation"}
    assert len(table) == 4 * (2 + 2) + 2
    found = pd.read_csv(tmp_path / "growth_exponents.csv")
    assert set(found.axis) == {"n_paths", "prefix_length"}
    assert {"exponent", "verdict", "memory_exponent", "memory_verdict"} <= set(found.columns)


def test_a_table_keeps_the_rows_of_other_settings(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    measure = importlib.import_module("_measure")
    output = tmp_path / "table.csv"
    for size, value in ((1, 10.0), (2, 20.0), (1, 30.0)):
        row = {"backend": "transformers", "size": size, "value": value}
        measure.report([row], output, same=["backend", "size"])
    assert pd.read_csv(output)[["size", "value"]].to_numpy().tolist() == [[2, 20.0], [1, 30.0]]


def test_a_meter_sees_time_and_memory(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    meter = importlib.import_module("_measure").Meter()
    with meter:
        block = np.ones(4_000_000)
        del block
    assert meter.seconds > 0
    assert meter.cpu_seconds > 0
    if np.isfinite(meter.peak_mb):  # Linux
        assert 30 < meter.peak_mb < 60


def test_exponents(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    growth = importlib.import_module("growth")
    sizes = [64, 8, 256, 128]
    assert growth.exponent(sizes, [3.0 * n**2 for n in sizes]) == pytest.approx(2.0)
    assert growth.exponent(sizes, [5.0 * n for n in sizes]) == pytest.approx(1.0)
    assert growth.exponent(sizes, [1.0, 9.0, 16.0, 2.0]) == pytest.approx(2.0)  # the last doublings
    assert np.isnan(growth.exponent([8], [1.0]))
    assert np.isnan(growth.exponent([8, 16], [0.0, 1.0]))
    assert growth.verdict("polr", "n_paths", 2.0, True) == "pairs"
    assert growth.verdict("deepconf", "n_paths", 2.0, False) == "TOO STEEP"
    assert growth.verdict("deepconf", "prefix_length", 1.1, False) == ""
    assert growth.verdict("launch", "prefix_length", 1.9, False) == "attention"
    assert growth.verdict("launch", "n_paths", float("nan"), False) == ""


def test_the_end_of_a_random_model_never_comes_and_its_words_survive_a_tokenizer(
    monkeypatch, tmp_path
):
    monkeypatch.syspath_prepend(str(FOLDER))
    models = importlib.import_module("_models")
    for n_vocab in (1000, 2048, 20000):
        tokenizer = models.word_tokenizer(n_vocab)
        assert len(tokenizer) == n_vocab
        assert tokenizer.eos_token_id == n_vocab - 4
        ids = np.random.default_rng(0).integers(500, n_vocab - 4, 200).tolist()
        text = tokenizer.decode(ids)
        assert abs(len(tokenizer(text)["input_ids"]) - 200) < 30
        assert text.count("\n\n") > 0 or n_vocab == 1000
    models.random_model("small", tmp_path / "model")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (model.lm_head.weight[model.generation_config.eos_token_id] == 0).all()
    assert model.lm_head.weight.abs().sum(1).eq(0).sum() == 1


def test_a_grid_is_evaluated(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    evaluation = importlib.import_module("evaluation")
    assert evaluation.evaluate(64, n_problems=3, methods=evaluation.METHODS[:2], n_subsets=20) == 12

"""The command line: what people type, and the sentence they get when it is wrong."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from prunebench import cli, compose
from prunebench.cells import CSV_COLUMNS

FAKE = ["backend=fake", "n_paths=8", "keep=2", "prefix_length=24", "dataset.limit=4"]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def only(folder, pattern):
    found = list(folder.glob(pattern))
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("sweep", [[], ["-m", "keep=2,4"]])
@pytest.mark.parametrize(
    ("option", "secret"),
    [("key_env", "sk-proj-1234"), ("base_url", "https://me:pass1234@host/v1")],
)
def test_a_secret_in_an_option_is_written_nowhere(
    tmp_path, monkeypatch, capsys, option, secret, sweep
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*sweep, "method=llm_judge", "endpoint=openai", "endpoint.model=m"]
    assert cli.main([*arguments, f"endpoint.{option}={secret}"]) == 2
    told = capsys.readouterr()
    assert f"endpoint.{option}" in told.err
    assert secret not in told.err + told.out
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and secret in f.read_text()]


def test_in_a_sweep_of_methods_an_option_reaches_the_methods_only() -> None:
    """Hydra composes a sweep with the default method first, which need not have the option."""
    found = compose.for_sweep(["-m", "method=slim_sc,polr", "method.keep=similar", "keep=2"])
    assert found == ["-m", "method=slim_sc,polr", "method.keep=choice(similar)", "keep=2"]
    quoted = [
        "-m",
        "method=a,b",
        "method.mark='a, (b)'",
        "method.step_mark=",
        "keep=2,4",
    ]
    assert compose.for_sweep(quoted)[2:] == [
        "method.mark=choice('a, (b)')", "method.step_mark=choice('')", "keep=2,4",
    ]  # fmt: skip
    one = ["-m", "method=polr", "method.pattern='a,b'", "keep=2,4"]
    assert compose.for_sweep(one) == one
    plain = ["-m", "method=polr", "method.threshold=0.3,0.6", "model.sampling.top_k=5"]
    assert compose.for_sweep(plain) == plain


def test_a_run_writes_everything_that_it_promises(tmp_path, capsys, pictures):
    assert run("method=deepconf", *FAKE) == 0
    folder = only(tmp_path, "results/runs/*/*")
    names = {p.name for p in folder.iterdir()}
    assert {"summary.csv", "summary.md", "records.parquet", "config.yaml", "run.json"} <= names
    assert {p.suffix for p in folder.iterdir()} >= {".pdf", ".png"}
    table = pd.read_csv(folder / "summary.csv")
    assert tuple(table.columns) == CSV_COLUMNS
    assert list(table.method) == ["none", "random", "deepconf", "oracle"]
    assert table.avg.between(0, 1).all()
    assert table.set_index("method").avg["random"] == pytest.approx(
        table.set_index("method").avg["none"]
    )
    facts = json.loads((folder / "run.json").read_text())
    assert facts["config"]["method"]["window"] == 2048
    assert facts["seeds"] == {"run": 0, "dataset": 0}
    assert facts["libraries"]["numpy"]
    assert "deepconf" in capsys.readouterr().out


def test_a_second_run_scores_nothing_and_gives_the_same_table(tmp_path):
    run("method=mean_logprob", *FAKE)
    run("method=mean_logprob", *FAKE)
    first, second = (pd.read_csv(p) for p in sorted(tmp_path.glob("results/runs/*/*/summary.csv")))
    pd.testing.assert_frame_equal(first, second)


def test_a_sweep_ends_with_one_table_and_goes_on_after_a_failing_cell(tmp_path, capsys):
    code = run("-m", "method=random,deepconf,slim_sc", "keep=2,9", *FAKE[:2], *FAKE[3:])
    assert code == 1
    out = capsys.readouterr().out
    assert "Got 9" in out
    table = pd.read_csv(only(tmp_path, "results/sweeps/*/*/summary.csv"))
    assert set(table.method) == {"none", "random", "oracle", "deepconf", "slim_sc"}
    failed = table[table.status == "failed"]
    assert set(failed.keep) == {9}
    assert failed.avg.isna().all()
    assert failed.reason.str.contains("keep").all()
    good = table[(table.keep == 2) & table.method.isin(["deepconf", "slim_sc"])]
    assert (good.status == "ok").all()
    assert len(good) == 2


def test_online_and_replay_agree_and_online_says_so(tmp_path, capsys):
    run("method=deepconf", *FAKE)
    run("method=deepconf", "mode=online", *FAKE)
    out = capsys.readouterr().out
    assert "4 of 4 problems" in out
    replay, online = (
        pd.read_parquet(p) for p in sorted(tmp_path.glob("results/runs/*/*/records.parquet"))
    )
    own = [t[t.method == "deepconf"].set_index("problem_id") for t in (replay, online)]
    assert [list(k) for k in own[0].kept] == [list(k) for k in own[1].kept]
    assert list(own[0].answer) == list(own[1].answer)
    assert list(own[0].generator_tokens) == list(own[1].generator_tokens)


def test_online_without_a_bank_has_no_reference_rows_and_says_why(tmp_path):
    run("method=deepconf", "mode=online", *FAKE)
    table = pd.read_csv(only(tmp_path, "results/runs/*/*/summary.csv")).set_index("method")
    assert table.status["oracle"] == "skipped"
    assert "mode=replay" in table.reason["none"]
    assert pd.isna(table.token_reduction_pct["deepconf"])
    assert table.generator_tokens["deepconf"] > 0


def test_subsets_of_a_pool(tmp_path):
    run("method=slim_sc", *FAKE, "pool_size=16", "evaluation.n_subsets_joint=5")
    table = pd.read_parquet(only(tmp_path, "results/runs/*/*/records.parquet"))
    assert set(table[table.method == "slim_sc"].n_subsets) == {5}
    assert set(table[table.method == "none"].n_subsets) == {200}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["method=deepconff"], 2, ["method 'deepconff'", "'deepconf'"]),
        (["model=tyny"], 2, ["model 'tyny'", "'tiny'"]),
        (["dataset=arithmetik"], 2, ["dataset 'arithmetik'", "'arithmetic'"]),
        (["backend=transformer"], 2, ["backend 'transformer'", "'transformers'"]),
        (["-m", "method=random,rndom"], 2, ["method 'rndom'", "'random'"]),
        (["n_path=3"], 2, ["option 'n_path'", "'n_paths'"]),
        (["method=deepconf", "method.windw=3"], 2, ["'method.windw'", "'method.window'"]),
        (["model.sampling.tempratur=1"], 2, ["'model.sampling.temperature'"]),
        (["keep=many"], 2, ["keep", "many"]),
        (["method=random", *FAKE, "keep=9"], 2, ["'keep'", "n_paths (8)", "Got 9"]),
        (["method=random", *FAKE, "prefix_length=0"], 2, ["'prefix_length'", "Got 0"]),
        (["method=random", *FAKE, "prefix_length=9999"], 2, ["max_new_tokens", "9999"]),
        (["method=random", *FAKE, "pool_size=4"], 2, ["'pool_size'", "Got 4"]),
        (["method=random", *FAKE, "dataset.limit=0"], 2, ["dataset.limit", "Got 0"]),
        (["method=oracle", *FAKE, "mode=online"], 2, ["'oracle'", "outcome", "mode=replay"]),
        (["method=random", "dataset=file", "backend=fake"], 2, ["dataset.path"]),
        (["method=random", "dataset=file", "dataset.path=no.jsonl"], 2, ["no.jsonl"]),
        (["evaluate"], 2, ["command 'evaluate'", "list"]),
        (["list", "method"], 2, ["'method'", "'methods'"]),
        (["check", "nowhere.py"], 2, ["nowhere.py"]),
        (
            ["method=stop", "model=qwen1.5b", "backend=fake"],
            2,
            ["'stop'", "prunebench train method=stop model=qwen1.5b", "method.checkpoint"],
        ),
        (
            ["method=stop", "model=qwen1.5b"],
            2,
            ["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "model.path"],
        ),
    ],
)
def test_bad_input_gets_one_sentence(arguments, code, words, capsys):
    assert run(*arguments) == code
    error = capsys.readouterr().err
    for word in words:
        assert word in error, error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_list_is_json_on_request(capsys):
    assert run("list", "methods", "--json") == 0
    methods = json.loads(capsys.readouterr().out)
    assert {"deepconf", "random", "stop"} <= {m["name"] for m in methods}
    assert all(set(m) == {"name", "type", "requires", "paper"} for m in methods)
    for kind, name in (("models", "tiny"), ("datasets", "arithmetic"), ("backends", "fake")):
        assert run("list", kind, "--json") == 0
        assert name in {row["name"] for row in json.loads(capsys.readouterr().out)}


def test_help_names_commands_and_option_groups(capsys):
    assert run("--help") == 0
    out = capsys.readouterr().out
    for word in (
        "train",
        "check",
        "list",
        "deepconf",
        "qwen1.5b",
        "arithmetic_hard",
        "prefix_length",
    ):
        assert word in out


def test_local_problems_are_read_from_a_file(tmp_path, capsys):
    rows = [{"problem": f"1+{i}", "answer": i + 1} for i in range(3)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("method=random", "dataset=file", "dataset.path=mine.jsonl", *FAKE) == 0
    (tmp_path / "bad.jsonl").write_text('{"question": "1+1"}')
    assert run("method=random", "dataset=file", "dataset.path=bad.jsonl", *FAKE) == 2
    assert "'dataset.answer='" in capsys.readouterr().err


def test_importing_prunebench_is_light():
    code = (
        "import sys, prunebench.method, prunebench.registry as r; r.methods(); r.backends();"
        "print([m for m in ('torch', 'transformers', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_a_console_script_too():
    done = subprocess.run(
        [sys.executable, "-m", "prunebench", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("prunebench ")

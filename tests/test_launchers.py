"""Sweeps in several processes: they fill one bank together, each path once, and end in one table.

A `sitecustomize` in the processes writes down every path that the fake engine generates.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hydra.types import RunMode

from prunebench import compose, job
from prunebench.bank import Bank
from prunebench.errors import ConfigError, UnknownName

OPTIONS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": [],
    "ray": ["+hydra.launcher.ray.init.num_cpus=2"],
}


def is_installed(extra: str) -> bool:
    plug_ins = importlib.util.find_spec("hydra_plugins")
    return plug_ins is not None and bool(
        importlib.util.find_spec(f"hydra_plugins.hydra_{extra}_launcher")
    )


def launchers(*names: str) -> list:
    """Those that are installed here run; the others are skipped and say what they need."""
    return [
        pytest.param(
            [f"{compose.LAUNCHER}={name}", *OPTIONS[name]],
            id=name,
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    not is_installed(compose.PLUG_INS[name]),
                    reason=f"not installed: pip install 'prunebench[{compose.PLUG_INS[name]}]'",
                ),
            ],
        )
        for name in names
    ]


RECORDER = """
import os, time
from prunebench.backends.fake import FakeBackend
generate = FakeBackend.generate
def recorded(self, problems, indices):
    for found in generate(self, problems, indices):
        with open(os.environ["GENERATED"], "a") as file:
            file.write("".join(f"{os.getpid()} {found[0].id} {i}\\n" for i in indices))
        time.sleep(0.2)  # so that the processes meet at the bank
        yield found
FakeBackend.generate = recorded
"""
SMALL = ["backend=fake", "n_paths=8", "keep=2", "prefix_length=24", "dataset.limit=6"]
N_PROBLEMS, N_PATHS = 6, 8


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    (folder / "sitecustomize.py").write_text(RECORDER)
    environment = {**os.environ, "PYTHONPATH": str(folder), "GENERATED": str(folder / "generated")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "200"}
    command = [sys.executable, "-m", "prunebench", "-m", *arguments, "bank.group=1"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("launcher", launchers("joblib", "submitit_local", "ray"))
def test_processes_fill_banks_together_and_end_in_one_table(launcher, tmp_path):
    # a process per cell costs a start per cell
    datasets = ["arithmetic"] if "submitit" in launcher[0] else ["arithmetic", "arithmetic_hard"]
    cells = ["method=deepconf,repetition,llm_judge", f"dataset={','.join(datasets)}"]
    done = start(tmp_path, *cells, *SMALL, *launcher, "hydra.sweep.dir=sweep")
    assert done.returncode == 1  # the judge has no endpoint
    lines = [line.split() for line in (tmp_path / "generated").read_text().splitlines()]
    paths = Counter((problem, index) for _, problem, index in lines)
    assert len(paths) == len(datasets) * N_PROBLEMS * N_PATHS
    assert set(paths.values()) == {1}
    assert len({process for process, *_ in lines}) > 1

    table = pd.read_csv(tmp_path / "sweep/summary.csv")
    own = table[~table.method.isin(["none", "random", "oracle"])]
    ok, failed = own[own.status == "ok"], own[own.status == "failed"]
    assert sorted(ok.method) == sorted(["deepconf", "repetition"] * len(datasets))
    assert set(ok.n_problems) == {N_PROBLEMS}
    assert failed.method.tolist() == ["llm_judge"] * len(datasets)
    assert failed.reason.str.contains("endpoint").all()

    banks = list((tmp_path / "results/bank").iterdir())
    assert len(banks) == len(datasets)
    for folder in banks:
        assert not (folder / "damaged").exists()
        key = json.loads((folder / "manifest.json").read_text())["key"]
        assert Bank.at(folder, key).hash == folder.name.rpartition("-")[2]
        files = sorted((folder / "problems").iterdir())
        assert [len(pd.read_parquet(f)) for f in files] == [N_PATHS] * N_PROBLEMS
        for scores in (folder / "scores").iterdir():
            header, *batches = map(json.loads, scores.read_text().splitlines())
            assert header["key"]["bank"] == folder.name.rpartition("-")[2]
            assert len({batch["problem"] for batch in batches}) == len(batches) == N_PROBLEMS


@pytest.mark.parametrize("launcher", launchers("joblib"))
def test_a_dry_run_is_summed_over_processes(launcher, tmp_path):
    planned = start(
        tmp_path, "method=repetition,llm_judge,random", *SMALL, *launcher, "dry_run=true"
    )
    assert planned.returncode == 1
    total = planned.stdout.split("The whole sweep: 3 cells, 1 of which cannot run")[1]
    assert "generate 48 paths (0 are stored)" in total
    assert "score 48 prefixes (0 are stored)" in total
    assert not (tmp_path / "results").exists()


def test_a_launcher_that_is_not_installed_or_not_known_says_what_to_do(monkeypatch):
    monkeypatch.setitem(compose.PLUG_INS, "elsewhere", "ray")
    with pytest.raises(ConfigError, match=r"pip install prunebench\[ray\]"):
        compose.validate(["hydra/launcher=elsewhere"])
    with pytest.raises(UnknownName, match="Did you mean 'joblib'"):
        compose.validate(["hydra/launcher=jobli"])
    compose.validate(["hydra/launcher=basic"])


@pytest.mark.parametrize(
    ("launcher", "given", "workers", "threads"),
    [
        ("basic", 0, 0, None),
        ("joblib", 0, 1, "1"),
        ("joblib", 3, 3, "1"),
        ("submitit_slurm", 0, 0, None),
        ("submitit_local", 0, 1, "1"),
    ],
)
def test_cells_on_one_machine_share_its_cores(
    launcher, given, workers, threads, tmp_path, monkeypatch
):
    """A cell has one engine then, unless it is told otherwise; on a node of its own, all cores."""
    seen = {}

    def execute(run, *_):
        seen.update(workers=run.workers, threads=os.environ.get("OMP_NUM_THREADS"))
        raise ConfigError("far enough")

    choices = SimpleNamespace(
        mode=RunMode.RUN,
        launcher=None,
        runtime=SimpleNamespace(
            output_dir=str(tmp_path), choices={"hydra/launcher": launcher, "method": "random"}
        ),
        overrides=SimpleNamespace(task=[]),
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # so that it is restored
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(job.HydraConfig, "get", lambda: choices)
    monkeypatch.setattr(job.runner, "execute", execute)
    with compose.hydra_ready():
        job.task(compose.composed(["method=random", "backend=fake", f"workers={given}"]))
    assert seen == {"workers": workers, "threads": threads}

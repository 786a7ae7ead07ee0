"""The dry run: what it counts is what the run then does, and it leaves nothing behind."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from prunebench import cli, compose, dryrun, job, plans, probing, runner
from prunebench.backends.fake import FakeBackend
from prunebench.backends.openai import OpenAIBackend
from prunebench.bankfile import StatsDtype
from prunebench.config import RunConfig, to_run
from prunebench.lab import Lab
from prunebench.plans import Owed, Plan
from prunebench.types import Problem

FAKE = ["backend=fake", "prefix_length=24", "dataset.limit=4"]
SMALL = [*FAKE, "n_paths=8", "keep=2"]


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "LAB", Lab())
    monkeypatch.setattr(dryrun, "_PROBES", {})
    monkeypatch.setattr(dryrun, "_RATES", {})
    monkeypatch.setenv("COLUMNS", "300")


def dry(*arguments: str) -> int:
    return cli.main([*arguments, "dry_run=true"])


@cache
def composed(*groups: str) -> DictConfig:
    with compose.hydra_ready():
        return compose.composed(groups)


def run_of(*overrides: str) -> RunConfig:
    """The run; what is no group is set afterwards, since composing takes a second."""
    groups = [o for o in overrides if o.startswith(("method=", "backend="))]
    values = OmegaConf.from_dotlist([o for o in overrides if o not in groups])
    return to_run(OmegaConf.merge(composed(*groups), values))


def planned(*overrides: str) -> Plan:
    """The plan of one run."""
    plan = Plan(label=next(o for o in overrides if o.startswith("method=")).removeprefix("method="))
    dryrun._fill_in(plan, run_of(*overrides), Lab())
    return plan


def really(*overrides: str) -> None:
    """Do it, without a report."""
    runner.execute(run_of(*overrides), Lab(), Console(quiet=True), "a/run", "label")


def n(owed: list[Owed]) -> int:
    return sum(one.n for one in owed)


def test_a_dry_run_leaves_nothing_behind(tmp_path, capsys):
    assert dry("method=deepconf", *SMALL) == 0
    assert list(tmp_path.iterdir()) == []
    assert "generate 32 paths (0 are stored)" in capsys.readouterr().out


def test_it_touches_no_file_of_an_earlier_sweep_and_generates_nothing(tmp_path):
    really("method=deepconf", *SMALL)
    (tmp_path / "mine/0/.hydra").mkdir(parents=True)
    for name in ("multirun.yaml", "0/records.parquet", "0/.hydra/config.yaml"):
        (tmp_path / "mine" / name).write_text("of an earlier sweep")

    def files() -> dict:
        found = [f for f in tmp_path.rglob("*") if f.is_file()]
        return {f: (f.stat().st_mtime_ns, f.stat().st_size) for f in found}

    before = files()
    assert len(before) > 8
    sweep = ["method=deepconf", "hydra.sweep.dir=mine", *SMALL, "pool_size=12"]
    assert cli.main([*sweep, "dry_run=true", "-m"]) == 0  # flags may come last
    assert files() == before


def test_what_is_owed_is_what_the_run_then_makes(tmp_path):
    before = planned("method=deepconf", *SMALL)
    assert (before.n_problems, before.n_subsets) == (4, 1)
    assert n(before.paths) == n(before.scores) == 4 * 8
    assert before.paths[0].n_stored == before.scores[0].n_stored == 0
    really("method=deepconf", *SMALL)
    folder, table = (owed[0].place for owed in (before.paths, before.scores))
    assert {str(f) for f in (tmp_path / "results/bank").iterdir()} == {folder}
    assert [str(f) for f in (tmp_path / folder / "scores").iterdir()] == [table]
    after = planned("method=deepconf", *SMALL)
    assert n(after.paths) == n(after.scores) == 0
    assert after.paths[0].n_stored == after.scores[0].n_stored == 32
    assert after.notes == []  # no probe


def test_a_larger_pool_owes_the_rest_and_takes_its_length_and_size_from_the_bank():
    really("method=deepconf", *SMALL)
    plan = planned("method=deepconf", *SMALL, "pool_size=12")
    assert n(plan.paths) == n(plan.scores) == 4 * 4
    assert plan.n_subsets == 200
    lab, run = Lab(), run_of("method=deepconf", *SMALL)
    stored = lab.stored(run)
    lengths = np.concatenate([item.pool.lengths for item in stored.values()])
    assert plan.paths[0].tokens_each == pytest.approx(lengths.mean())
    files = list((lab.bank(run).folder / "problems").glob("*.parquet"))
    assert plan.paths[0].bytes_each == pytest.approx(sum(f.stat().st_size for f in files) / 32)


@pytest.mark.parametrize("pool", [[], ["pool_size=10", "evaluation.n_subsets_joint=3"]])
def test_joint_methods_owe_every_subset_anew_also_at_later_checkpoints(pool):
    """Counted against the lines that the run writes into its score tables."""
    overrides = ["method=slim_sc", *FAKE, "n_paths=8", "schedule=[[12,4],[24,2]]", *pool]
    rows = 3 if pool else 1
    before = planned(*overrides)
    assert [one.n for one in before.scores] == [4 * rows * 8, 4 * rows * 4]
    really(*overrides)
    after = planned(*overrides)
    assert n(after.scores) == 0
    assert n(planned(*overrides, "schedule=[[12,4],[30,2]]").scores) == after.scores[1].n_stored
    for owed in after.scores:
        batches = [json.loads(line) for line in Path(owed.place).read_text().splitlines()][1:]
        held = sum(len(batch["indices"]) for batch in batches)
        assert held == owed.n_stored


def test_the_votes_weights_and_rules_that_stop_sampling_are_counted():
    plan = planned("method=deepconf", "weights=entropy", "aggregator=borda", *SMALL)
    assert [one.n for one in plan.scores] == [32, 32]
    assert "entropy-L24" in plan.scores[1].place
    assert planned("method=deepconf", "protocol=esc", *SMALL).scores == []
    assert planned("method=random", *SMALL).scores == []  # a reference row


def test_online_launches_all_paths_and_finishes_the_kept():
    plan = planned("method=deepconf", *SMALL, "mode=online")
    (live,) = plan.paths
    assert live.n == 32
    (probe,) = dryrun._PROBES.values()
    lengths = probe.lengths
    by_hand = np.minimum(lengths, 24).mean() + 2 / 8 * np.maximum(lengths - 24, 0).mean()
    assert live.tokens_each == pytest.approx(by_hand)
    assert live.bytes_each == 0
    assert n(plan.scores) == 32


def test_a_sweep_counts_shared_things_once_and_says_which_cells_cannot_run(tmp_path, capsys):
    code = dry("-m", "method=deepconf,entropy,llm_judge", "keep=2,9", *SMALL[:-1])
    out, total = capsys.readouterr().out.split("The whole sweep: ")
    assert code == 1
    assert list(tmp_path.iterdir()) == []
    assert out.count("cannot run: The 'keep' parameter") == 3
    assert out.count("cannot run: The method 'llm_judge'") == 1
    assert out.count("generate 32 paths (0 are stored)") == 2
    assert total.startswith("6 cells, 4 of which cannot run")
    assert "generate 32 paths (0 are stored)" in total
    assert "score 64 prefixes (0 are stored)" in total
    assert "evaluate 8 prunings" in total
    rows = {line.split()[0]: line for line in total.splitlines()[4:]}
    assert rows["method"].split() == ["method", "fake", "openai", "transformers", "vllm"]
    assert rows["deepconf"].split()[1:] == ["yes"] * 4
    assert rows["entropy"].count("needs entropy") == 1  # a server gives no exact entropy
    assert rows["llm_judge"].count("needs endpoint") == 4


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["method=deepconf", "backend=transformers", "model.path=nowhere"], "nowhere"),
        (["method=stop", "backend=transformers", "method.checkpoint=gone"], "gone"),
        (["method=stop", "backend=transformers", "model.id=mine", "model.path=null"], "mine"),
        (["method=deepconf", "backend=fake", "n_paths=0"], "n_paths"),
    ],
)
def test_what_is_not_there_is_a_reason(overrides, reason, tmp_path, capsys):
    assert not dryrun.show(run_of(*overrides), Lab(), Console(), "x", tmp_path)
    first = capsys.readouterr().out.splitlines()[0]
    assert "cannot run:" in first
    assert reason in first
    assert json.loads((tmp_path / plans.FILE).read_text())["reason"]


def test_the_sum_of_plans_is_their_union(tmp_path, capsys):
    def owed(place: str, *things: str, each: float) -> Owed:
        return Owed(place=place, things=dict.fromkeys(things, 1), n_stored=1, seconds_each=each)

    cells = [
        Plan(label="a", method="a", n_problems=2, n_subsets=3, paths=[owed("x", "p 0", each=2.0)]),
        Plan(label="b", method="b", paths=[owed("x", "p 0", "p 1", each=float("nan"))]),
        Plan(label="c", method="c", paths=[owed("y", "p 0", each=2.0)]),
        Plan(label="d", reason="no weights", paths=[owed("z", "p 0", each=2.0)]),
        Plan(label="e", reason="not available: needs text", skipped=True),
    ]
    for i, plan in enumerate(cells):
        (tmp_path / str(i)).mkdir()
        plans.leave(plan, tmp_path / str(i))
    assert plans.show_total(Console(), tmp_path) == 1  # the skipped one is no failure
    out = capsys.readouterr().out
    assert "5 cells, 2 of which cannot run" in out
    assert "generate 3 paths (2 are stored)" in out
    assert "unknown size, 6 s" in out
    assert "evaluate 6 prunings" in out


def test_a_server_is_not_probed_and_its_seconds_are_unknown(monkeypatch):
    monkeypatch.setattr(OpenAIBackend, "identity", lambda self: {"server": "made up"})
    monkeypatch.setattr(OpenAIBackend, "open_together", None)
    plan = planned("method=deepconf", "backend=openai", *SMALL[1:])
    (owed,) = plan.paths
    assert np.isnan(owed.seconds_each)
    assert owed.tokens_each == 320  # max_new_tokens: nothing is known
    assert owed.bytes_each == 320 * (4 + 6 * 4 + 4 + 4)
    assert any("unknown" in note for note in plan.notes)


def test_a_probe_is_limited_and_says_which_paths_had_not_ended(monkeypatch):
    monkeypatch.setattr(probing, "LIMIT_S", 0.0)
    monkeypatch.setattr(probing, "FIRST_STEP", 8)
    run = run_of("method=deepconf", *SMALL)
    run.backend.bind(run.spec(), 0)
    problems: list[Problem] = run.dataset.problems()
    probe = probing.probe_generation(run.backend, problems, 8, StatsDtype.float32)
    assert isinstance(run.backend, FakeBackend)
    assert probe.n_open == 32
    assert (probe.lengths == run.longest).all()
    assert all(item.pool.lengths.max() == 8 for item in probe.stored)
    seconds, about = probing.probe_scoring(run, Lab(), probe.stored, 24)
    assert seconds > 0
    assert "of 8 tokens" in about


def test_the_table_of_methods_and_engines(capsys):
    assert cli.main(["list", "compatibility", "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["stop"]["transformers"] == "yes"
    assert rows["stop"]["openai"] == "needs cache_reader"
    assert rows["llm_judge"]["also needs"] == ["endpoint"]
    assert rows["oracle"]["vllm"] == "yes"
    assert rows["oracle"]["also needs"] == ["outcome"]


def test_a_method_that_is_trained_first_has_all_its_scores_to_make():
    few = ["backend=transformers", "dataset.limit=2", "n_paths=3", "keep=1", "workers=1"]
    few += ["prefix_length=8", "model.sampling.max_new_tokens=16"]
    really("method=random", *few)  # so that no probe is needed
    plan = planned("method=stop", *few, "train.first=true")
    assert n(plan.paths) == 0
    assert n(plan.scores) == 6
    assert np.isnan(plan.scores[0].seconds_each)
    assert any("trains its method first" in note for note in plan.notes)

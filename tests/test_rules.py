"""Runs under rules: thresholds, schedules, stopping, other weights; and what they leave undone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from prunebench import compose, runner
from prunebench.cells import Cell, summarise
from prunebench.config import RunConfig, to_run
from prunebench.errors import ConfigError
from prunebench.evaluate import ProblemPool, Status, draw_subsets, evaluate_problem
from prunebench.execution import Execution, failed_execution
from prunebench.lab import Lab
from prunebench.method import PathSignal, SignalType
from prunebench.metrics import accuracy_of_kept
from prunebench.modes import Protocol
from prunebench.pruning import Pruning
from prunebench.references import no_pruning, oracle_pruning, random_pruning
from prunebench.report import records
from prunebench.select import Finished, Select
from prunebench.types import SignalType as Type
from prunebench.vote import Aggregator

NAN = float("nan")


@dataclass(kw_only=True)
class Late(PathSignal):
    """Higher = keep: the index; path 5 finds no server."""

    type = SignalType.II
    paper = "none, https://example.org"

    def score_path(self, path):
        if path.index == 5:
            return path.unscored("no server", ask_again=True)
        return float(path.index)


def run_of(tmp_path: Path, method: str = "mean_logprob", **changes: Any) -> RunConfig:
    with compose.hydra_ready():
        run = to_run(
            compose.composed(
                ["backend=fake", f"method={method}", "n_paths=8", "keep=2", "prefix_length=16",
                 "dataset.limit=3", "workers=1", f"bank.dir={tmp_path / 'bank'}"]
            )
        )  # fmt: skip
    return replace(run, **changes)


def execute(run: RunConfig, label: str = "own") -> Execution:
    return runner.execute(run, Lab(), Console(quiet=True), "run", label)


def lines(execution: Execution) -> dict[str, Any]:
    return {r.cell.method: r for r in records.analyse(records.frame(execution.rows))}


def test_votes_weighed_by_another_method_pay_for_the_kept_paths_only(tmp_path: Path):
    whole = lines(execute(run_of(tmp_path, "early_answer")))["own"].line
    assert whole.probe_tokens > 0
    weighed = {"weights": "early_answer", "aggregator": Aggregator.score_sum}
    two = lines(execute(run_of(tmp_path, **weighed)))["own"]
    assert two.cell.weights == "early_answer"
    assert two.line.probe_tokens == pytest.approx(whole.probe_tokens * 2 / 8)
    every = run_of(tmp_path, select=Select.threshold, threshold=-99.0, **weighed)
    row = lines(execute(every))["own"]
    assert (row.cell.keep, row.line.n_kept) == (0, 8)
    assert row.line.probe_tokens == pytest.approx(whole.probe_tokens)
    own = lines(execute(run_of(tmp_path, "early_answer", **weighed)))["own"].line
    assert own.probe_tokens == pytest.approx(whole.probe_tokens), "asked once, paid once"


def test_weights_are_refused_where_nothing_weighs(tmp_path: Path):
    from prunebench.modes import Mode

    with pytest.raises(ConfigError, match="only mode=replay has"):
        run_of(
            tmp_path, weights="entropy", aggregator=Aggregator.borda, mode=Mode.online
        ).validate()
    run = run_of(tmp_path, protocol=Protocol.esc, weights="entropy", aggregator=Aggregator.borda)
    row = lines(execute(run, "esc"))["esc"]
    assert (row.cell.weights, row.cell.aggregator) == ("", Aggregator.majority)
    assert row.line.reason.startswith("no signal")
    assert row.line.retention <= 1


def test_rules_that_score_nothing_need_nothing_of_the_method(tmp_path: Path):
    """`stop`, the default, reads a cache that the fake engine has not trained for."""
    run = run_of(tmp_path, "stop", protocol=Protocol.adaptive_consistency)
    row = lines(execute(run, "adaptive_consistency"))["adaptive_consistency"]
    assert row.line.status == Status.OK


def test_retention_auto_says_why(tmp_path: Path):
    execution = execute(run_of(tmp_path, retention="auto"))
    assert any(note.startswith("retention=auto keeps") for note in execution.notes)
    assert any("extrapolation" in note for note in execution.notes)


def test_what_failed_for_now_is_never_stored(tmp_path: Path):
    """Also when the pool has grown and only the new paths were asked for."""
    first = execute(late(tmp_path, 4))
    assert lines(first)["own"].line.reason.count("scored") == 0
    assert first.complete
    for _ in range(2):
        grown = execute(late(tmp_path, 8))
        assert "no server" in lines(grown)["own"].line.reason
        assert not grown.complete
    tables = list((tmp_path / "bank").rglob("scores/*.jsonl"))
    assert tables
    assert "NaN" not in "".join(t.read_text() for t in tables)


def late(tmp_path: Path, n_paths: int) -> RunConfig:
    return replace(run_of(tmp_path), method=Late(), n_paths=n_paths)


def test_a_control_has_no_threshold_of_its_own(tmp_path: Path):
    execution = execute(run_of(tmp_path, "random", select=Select.mass), "random")
    own = next(row for row in execution.rows if row["method"] == "random")
    assert (own["status"], own["problem_id"]) == (str(Status.SKIPPED), "")
    assert "as many as the methods beside it" in own["reason"]


def test_a_rule_that_cannot_work_is_a_failed_cell(tmp_path: Path):
    run = run_of(tmp_path, select=Select.threshold)
    with pytest.raises(ConfigError, match="needs 'threshold'"):
        execute(run)
    [row] = failed_execution(run, "run", "own", "why").rows
    assert (row["status"], row["reason"], row["rule"]) == (str(Status.FAILED), "why", "")


def test_parameters_of_the_vote_set_cells_apart(tmp_path: Path):
    run = run_of(tmp_path, aggregator=Aggregator.softmax_weighted)
    run.vote.temperature = 0.05
    assert "temperature 0.05" in lines(execute(run))["own"].cell.setting
    plain = run_of(tmp_path, aggregator=Aggregator.softmax_weighted)
    assert "temperature" not in lines(execute(plain))["own"].cell.setting
    late = run_of(
        tmp_path, weights="entropy", weights_at_end=True, aggregator=Aggregator.score_weighted
    )
    assert lines(execute(late))["own"].cell.weights == "entropy at the end"


@pytest.mark.parametrize(
    "options", [{"retention": "auto", "n_paths": 4, "keep": 8}, {"protocol": Protocol.esc}]
)
def test_keep_is_checked_only_where_it_counts(tmp_path: Path, options: dict[str, Any]):
    replace(run_of(tmp_path), **{"n_paths": 4, "keep": 8, **options}).validate()
    with pytest.raises(ConfigError, match="from 1 to n_paths"):
        replace(run_of(tmp_path), n_paths=4, keep=8).validate()


def test_schedules_and_rules_online_keep_what_replay_keeps(tmp_path: Path):
    from prunebench.modes import Mode

    for options in (
        {"schedule": [[8, 5], [16, 2]]},
        {"select": Select.mass, "mass": 0.6},
    ):
        replayed = lines(execute(run_of(tmp_path, **options)))["own"]
        live = lines(execute(run_of(tmp_path, mode=Mode.online, **options)))["own"]
        assert live.cell.rule == replayed.cell.rule != ""
        for a, b in zip(live.results, replayed.results, strict=True):
            assert (a.kept, a.answer) == (b.kept, b.answer)
            np.testing.assert_allclose(a.generator_tokens, b.generator_tokens)
            np.testing.assert_allclose(a.n_kept, b.n_kept)
        assert live.line.wall_seconds > 0
        assert np.isnan(replayed.line.wall_seconds)


def test_online_seconds_of_random_stand_beside_its_exact_numbers(tmp_path: Path):
    from prunebench.modes import Mode

    exact = lines(execute(run_of(tmp_path, "random"), "random"))["random"].line
    live = lines(execute(run_of(tmp_path, "random", mode=Mode.online), "random"))["random"].line
    assert (live.avg, live.cons) == (exact.avg, exact.cons)
    assert live.wall_seconds > 0


# ------------------------------------------------------------------------------------- arrays


def pool_of_two_kinds() -> ProblemPool:
    """Two finished paths at 5 tokens, four that go on."""
    return ProblemPool(
        problem_id="p",
        indices=np.arange(6),
        lengths=np.array([5, 5, 40, 40, 40, 40]),
        stopped=np.ones(6, dtype=bool),
        codes=np.array([0, 1, 0, 1, 0, 1]),
        correct=np.array([True, False, True, False, True, False]),
        answers=["right", "wrong"],
    )


def test_controls_keep_finished_paths_free_too():
    pool, everything = pool_of_two_kinds(), np.arange(6)[None]
    pruning = Pruning(((10, 6),), policy=Finished.keep_free, rule=Select.threshold, threshold=0.5)
    scores = np.array([0.0, 0.0, 0.9, 0.1, 0.1, 0.1])
    result = evaluate_problem(pool, everything, scores, keep=6, prefix_length=10, pruning=pruning)
    assert (result.n_kept[0], result.generator_tokens[0]) == (3, 5 + 5 + 40 + 30)
    options = {"keep": 6, "prefix_length": 10, "pruning": pruning, "as_many_as": result.n_kept}
    random = random_pruning(pool, everything, rng=np.random.default_rng(0), **options)
    assert random.generator_tokens[0] == pytest.approx(result.generator_tokens[0])
    assert random.avg[0] == pytest.approx((1 + 0 + 2 / 4) / 3)
    oracle = oracle_pruning(pool, everything, **options)
    assert (oracle.kept, oracle.generator_tokens[0]) == ([0, 1, 2], 80)


def test_controls_of_a_subset_without_a_result_have_none():
    pool, subsets = pool_of_two_kinds(), np.array([[0, 1, 2], [3, 4, 5]])
    counts = np.array([2.0, NAN])
    options = {"keep": 3, "prefix_length": 10, "as_many_as": counts}
    for result in (
        random_pruning(pool, subsets, rng=np.random.default_rng(0), **options),
        oracle_pruning(pool, subsets, **options),
    ):
        for name in ("avg", "cons", "generator_tokens", "n_kept", "killed_correct", "auroc"):
            values = getattr(result, name)
            assert not np.isnan(values[0]), name
            assert np.isnan(values[1]), name


def test_nobody_kept_has_no_accuracy():
    correct = np.array([[True, False], [True, False]])
    kept = np.array([[True, False], [False, False]])
    np.testing.assert_array_equal(accuracy_of_kept(correct, kept), [1.0, NAN])


def test_turned_votes_of_many_orders_are_measured_against_the_one_unpruned_vote():
    rng = np.random.default_rng(0)
    pool = replace(pool_of_two_kinds(), codes=np.array([0, 0, 0, 1, 1, 1]))
    pool = replace(pool, correct=pool.codes == 0)
    subsets = draw_subsets(6, 3, 50, rng)
    own = evaluate_problem(pool, subsets, rng.random(6), keep=1, prefix_length=10)
    none = no_pruning(pool, np.arange(6)[None], prefix_length=10)
    cell = Cell(
        run_id="", model="m", dataset="d", method="esc", type=Type.I, mode="replay",
        n_paths=6, keep=0, prefix_length=10,
    )  # fmt: skip
    line = summarise(cell, [own], none=[none])
    assert line.cons == pytest.approx(none.cons[0] - line.lost_votes + line.won_votes)

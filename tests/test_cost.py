"""What judging costs, from the ledger to the table; scores that did not come."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from rich.console import Console

from prunebench import compose, runner
from prunebench.backends.fake import FakeBackend
from prunebench.config import RunConfig, to_run
from prunebench.cost import Cost, Ledger
from prunebench.endpoint import EndpointConfig
from prunebench.engine import Checkpoint, check
from prunebench.errors import Unavailable
from prunebench.evaluate import Status, evaluate_problem, pool_of
from prunebench.execution import Execution
from prunebench.lab import Lab
from prunebench.method import Capability, Context, PathGroup, SignalGenerator, SignalType
from prunebench.report import records
from prunebench.scores import source_hash
from prunebench.types import TokenStats, Trace

CHECKPOINT = Checkpoint(prefix_length=16)


@dataclass(kw_only=True)
class Judge(SignalGenerator):
    """Higher = keep: made-up verdicts; some paths are refused, some problems not answered."""

    type = SignalType.II
    paper = "none, https://example.org"
    joint = False
    down: ClassVar[set[int]] = set()  # calls that find no server
    calls: ClassVar[int] = 0
    error: ClassVar[Exception] = Unavailable("no answer to 3 of 8 requests")

    def setup(self, context: Context) -> None:
        self.ledger_ = context.ledger

    def score(self, group: PathGroup) -> np.ndarray:
        Judge.calls += 1
        n = len(group)
        self.ledger_.add(calls=n, verifier_tokens=10 * n, prompt_tokens=10 * n)
        if Judge.calls in self.down:
            raise self.error
        return np.array(
            [p.unscored("too long") if p.index == 1 else float(p.index) for p in group.paths]
        )


@dataclass(kw_only=True)
class Silent(Judge):
    """Higher = keep: its server does not say how many tokens it took."""

    silent: bool = True

    def score(self, group: PathGroup) -> np.ndarray:
        nan = float("nan")
        self.ledger_.add(calls=1, verifier_tokens=nan, prompt_tokens=nan, completion_tokens=nan)
        return np.arange(len(group), dtype=np.float64)


@dataclass(kw_only=True)
class Refusing(Judge):
    """Higher = keep: its server refuses a path."""

    refusing: bool = True

    def score(self, group: PathGroup) -> np.ndarray:
        Judge.calls += 1
        scores = np.arange(len(group), dtype=np.float64)
        scores[1] = group.paths[1].unscored("refused", ask_again=True)
        return scores


@dataclass(kw_only=True)
class Probing(SignalGenerator):
    """Higher = keep: length of a forced continuation."""

    type = SignalType.I
    paper = "none, https://example.org"
    requires = frozenset({Capability.PROBE})
    joint = False

    def score(self, group: PathGroup) -> np.ndarray:
        probes = group.internals.probe([np.array([65, 66])] * len(group), 5)
        return np.array([float(len(own[0].token_ids)) for own in probes])


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Judge.calls, Judge.down = 0, set()
    Judge.error = Unavailable("no answer to 3 of 8 requests")


def run_of(method: SignalGenerator, tmp_path: Path, **changes: Any) -> RunConfig:
    with compose.hydra_ready():
        run = to_run(
            compose.composed(
                ["backend=fake", "method=random", "n_paths=8", "keep=2", "prefix_length=16",
                 "dataset.limit=3", "workers=1", f"bank.dir={tmp_path / 'bank'}"]
            )
        )  # fmt: skip
    priced = EndpointConfig(price_prompt=6250.0, price_completion=0.0)
    return replace(run, method=method, **{"endpoint": priced, **changes})


def execute(run: RunConfig, lab: Lab | None = None) -> Execution:
    return runner.execute(run, lab or Lab(), Console(quiet=True), "run", "judge")


def line_of(execution: Execution) -> Any:
    rows = records.analyse(records.frame(execution.rows))
    return next(row.line for row in rows if row.cell.method == "judge")


def test_costs_add_and_scale() -> None:
    a, b = Cost(verifier_tokens=6, calls=2, money=1.5), Cost(verifier_tokens=2, seconds=3)
    assert a + b == Cost(verifier_tokens=8, calls=2, money=1.5, seconds=3)
    assert a.times(0.5) == Cost(verifier_tokens=3, calls=1, money=0.75)


def test_what_the_ledger_gains_during_score_is_the_methods(tmp_path: Path) -> None:
    execution = execute(run_of(Judge(), tmp_path))
    line = line_of(execution)
    assert (line.calls, line.verifier_tokens, line.money) == (8, 80, 0.5)  # per problem
    assert line.total_tokens == line.generator_tokens + 80
    again = line_of(execute(run_of(Judge(), tmp_path)))
    assert Judge.calls == 3, "the second run takes the scores, and their cost, from the table"
    assert (again.calls, again.money) == (8, 0.5)


def test_a_path_that_was_refused_is_missing_with_its_reason(tmp_path: Path) -> None:
    line = line_of(execute(run_of(Judge(), tmp_path)))
    assert line.status == Status.OK
    assert "3 paths could not be scored (too long (1 paths))" in line.reason


def test_what_did_not_answer_is_not_stored_and_asked_again(tmp_path: Path) -> None:
    Judge.down = {2}
    line = line_of(execute(run_of(Judge(), tmp_path)))
    assert line.status == Status.PARTIAL
    assert "no answer to 3 of 8 requests" in line.reason
    assert Judge.calls == 3, "the other problems were scored"
    assert line_of(execute(run_of(Judge(), tmp_path))).status == Status.OK
    assert Judge.calls == 4, "only the missing problem was asked for"


def test_money_without_a_price_is_missing_with_a_reason(tmp_path: Path) -> None:
    line = line_of(execute(run_of(Judge(), tmp_path, endpoint=EndpointConfig())))
    assert np.isnan(line.money)
    assert line.calls == 8
    assert "money is not known: the endpoint has no price" in line.reason
    assert line_of(execute(run_of(Judge(), tmp_path))).money == 0.5
    assert Judge.calls == 3, "a price needs no new score"


def test_tokens_that_a_server_does_not_report_are_unknown_and_not_0(tmp_path: Path) -> None:
    line = line_of(execute(run_of(Silent(), tmp_path)))
    assert np.isnan([line.verifier_tokens, line.money, line.token_reduction_pct]).all()
    assert "the server reports no usage" in line.reason
    assert line.auroc_within == line.auroc_within


def test_a_refusal_is_missing_now_and_asked_again_next_time(tmp_path: Path) -> None:
    for _ in range(2):
        line = line_of(execute(run_of(Refusing(), tmp_path)))
        assert "3 paths could not be scored (refused (1 paths))" in line.reason
    assert Judge.calls == 6


@pytest.mark.parametrize("error", [MemoryError("8 GB"), OSError("stale file handle")])
def test_what_may_pass_is_not_stored(tmp_path: Path, error: Exception) -> None:
    Judge.down, Judge.error = {2}, error
    assert line_of(execute(run_of(Judge(), tmp_path))).status == Status.PARTIAL
    assert line_of(execute(run_of(Judge(), tmp_path))).status == Status.OK
    assert Judge.calls == 4


def test_a_subset_that_nothing_scored_has_no_result() -> None:
    paths = [
        Trace(index=i, token_ids=np.zeros(3, np.int32), text="", stats=TokenStats(), stopped=True,
              answer="1" if i else "2", correct=i > 0)
        for i in range(4)
    ]  # fmt: skip
    pool = pool_of("p", paths)
    subsets = np.array([[0, 1], [2, 3]])
    scores = np.array([[np.nan, np.nan], [1.0, 0.0]])
    result = evaluate_problem(pool, subsets, scores, keep=1, prefix_length=2, reason="down")
    assert np.isnan(result.avg).tolist() == [True, False]
    assert result.avg[1] == 1
    assert (result.kept, result.answer) == ([], None)
    assert result.reason == "down"


def test_probes_count_as_generator_tokens_and_their_suffix_as_verifier_tokens(
    tmp_path: Path,
) -> None:
    run = run_of(Probing(), tmp_path)
    execution = execute(run)
    by_method = {r["method"]: r for r in execution.rows if r["problem_id"]}
    mine = [r for r in execution.rows if r["method"] == "judge"]
    assert all(r["verifier_tokens"] == 16 for r in mine)
    assert all(8 <= r["probe_tokens"] <= 40 for r in mine)
    assert by_method["random"]["probe_tokens"] == 0
    backend = FakeBackend()
    backend.bind(run.spec(), run.seed)
    problem = run.dataset.problems()[0]
    session = backend.open(problem, range(8))
    session.advance(16)
    verdict = check(Probing(), session, backend, CHECKPOINT)
    assert verdict.cost.probe_tokens == sum(verdict.scores)
    assert verdict.cost.verifier_tokens == 16


def test_a_reply_from_the_cache_takes_no_measurable_time() -> None:
    ledger = Ledger()

    class Cached(Judge):
        def score(self, group: PathGroup) -> np.ndarray:
            ledger.add(calls=2, cached_calls=1)
            return np.zeros(len(group))

    backend = FakeBackend()
    with compose.hydra_ready():
        run = to_run(compose.composed(["backend=fake", "method=random"]))
    backend.bind(run.spec(), 0)
    session = backend.open(run.dataset.problems()[0], range(4))
    session.advance(16)
    verdict = check(Cached(), session, backend, CHECKPOINT, ledger)
    assert np.isnan(verdict.cost.seconds)
    assert verdict.cost.cached_calls == 1


def test_editing_a_module_beside_a_method_makes_its_scores_stale(tmp_path: Path) -> None:
    import importlib.util

    (tmp_path / "_shared.py").write_text("VALUE = 1\n")
    (tmp_path / "_unrelated.py").write_text("VALUE = 1\n")
    (tmp_path / "mine.py").write_text(
        "def f():\n    from _shared import VALUE\n\nclass M:\n  pass\n"
    )
    spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["mine"] = module
    spec.loader.exec_module(module)
    try:
        before = source_hash(module.M)
        (tmp_path / "_unrelated.py").write_text("VALUE = 2\n")
        assert source_hash(module.M) == before
        (tmp_path / "_shared.py").write_text("VALUE = 2\n")
        assert source_hash(module.M) != before
    finally:
        del sys.modules["mine"]

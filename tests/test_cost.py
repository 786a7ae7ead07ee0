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
from prunebench.engine import Checkpoint, check
from prunebench.errors import Unavailable
from prunebench.evaluate import Status
from prunebench.execution import Execution
from prunebench.lab import Lab
from prunebench.method import Capability, Context, PathGroup, SignalGenerator, SignalType
from prunebench.report import records
from prunebench.scores import source_hash

CHECKPOINT = Checkpoint(prefix_length=16)


@dataclass(kw_only=True)
class Judge(SignalGenerator):
    """Higher = keep: made-up verdicts; some paths are refused, some problems not answered."""

    type = SignalType.II
    paper = "none, https://example.org"
    joint = False
    money: float = 0.5
    down: ClassVar[set[int]] = set()  # calls that find no server
    calls: ClassVar[int] = 0

    def setup(self, context: Context) -> None:
        self.ledger_ = context.ledger

    def score(self, group: PathGroup) -> np.ndarray:
        type(self).calls += 1
        self.ledger_.add(
            calls=len(group),
            verifier_tokens=10 * len(group),
            money=self.money if self.money >= 0 else np.nan,
        )
        if type(self).calls in self.down:
            raise Unavailable("no answer to 3 of 8 requests")
        return np.array(
            [p.unscored("too long") if p.index == 1 else float(p.index) for p in group.paths]
        )


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


def run_of(method: SignalGenerator, tmp_path: Path, **changes: Any) -> RunConfig:
    with compose.hydra_ready():
        run = to_run(
            compose.composed(
                ["backend=fake", "method=random", "n_paths=8", "keep=2", "prefix_length=16",
                 "dataset.limit=3", "workers=1", f"bank.dir={tmp_path / 'bank'}"]
            )
        )  # fmt: skip
    return replace(run, method=method, **changes)


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
    lab = Lab()
    line = line_of(execute(run_of(Judge(money=-1), tmp_path), lab))
    assert np.isnan(line.money)
    assert line.calls == 8
    assert "money is not known" in line.reason
    assert line_of(execute(run_of(Judge(), tmp_path), lab)).money == 0.5, "that of other methods is"


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

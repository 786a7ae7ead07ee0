"""Launch, Check, Resume on the fake engine: what is kept, what is counted, what fails how."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from prunebench.backend import ModelSpec, Sampling
from prunebench.backends.fake import FakeBackend
from prunebench.backends.replay import ReplayBackend
from prunebench.datasets import make_problem
from prunebench.engine import Checkpoint, check, launch_check_resume
from prunebench.errors import ConfigError, ContractViolation, UndeclaredCapability
from prunebench.method import Capability, PathGroup, PathSignal, SignalGenerator, SignalType
from prunebench.pruning import Pruning
from prunebench.select import Finished

PROBLEM = make_problem("1+2", "3")
CHECKPOINT = Checkpoint(prefix_length=24)


def keep(n):
    """The best n at the checkpoint."""
    return Pruning(((24, n),))


@dataclass(kw_only=True)
class Likelihood(PathSignal):
    """Higher = keep."""

    type = SignalType.III
    paper = "https://example.org"
    requires = frozenset({Capability.LOGPROBS})

    def score_path(self, path):
        return float(path.logprobs.mean())


@pytest.fixture
def backend():
    engine = FakeBackend()
    spec = ModelSpec(name="m", id="m", prompt="{question}", answer="line")
    spec.sampling = Sampling(max_new_tokens=200)
    engine.bind(spec, seed=3)
    return engine


def test_the_kept_paths_are_those_with_the_highest_scores_and_end_as_they_would_have(backend):
    whole = {t.index: t for t in backend.open(PROBLEM, range(12)).finish()}
    [run] = launch_check_resume(
        backend, [PROBLEM], Likelihood(), CHECKPOINT, n_paths=12, pruning=keep(3)
    )
    order = np.argsort(-run.checks[0].scores, kind="stable")[:3]
    assert set(np.flatnonzero(run.kept)) == set(order)
    assert [t.index for t in run.finished] == sorted(int(i) for i in order)
    for trace in run.finished:
        np.testing.assert_array_equal(trace.token_ids, whole[trace.index].token_ids)
        assert trace.answer == whole[trace.index].answer
    assert all(t.n_tokens <= 24 for t in run.launched)
    assert set(run.seconds) == {"launch", "check", "resume"}


def test_replay_of_the_same_paths_gives_the_same_run(backend):
    traces = backend.open(PROBLEM, range(12)).finish()
    prompt = backend.open(PROBLEM, [0]).prompt_ids
    replay = ReplayBackend(lookup=lambda problem: (prompt, traces), source=backend)
    replay.bind(backend.spec, 3)
    [live], [stored] = (
        launch_check_resume(
            engine, [PROBLEM], Likelihood(), CHECKPOINT, n_paths=12, pruning=keep(4)
        )
        for engine in (backend, replay)
    )
    np.testing.assert_array_equal(live.kept, stored.kept)
    np.testing.assert_allclose(live.checks[0].scores, stored.checks[0].scores, rtol=1e-6)
    assert [t.answer for t in live.finished] == [t.answer for t in stored.finished]


def test_two_checkpoints_drop_in_turn_and_survivors_end_as_they_would_have(backend):
    whole = {t.index: t for t in backend.open(PROBLEM, range(12)).finish()}
    schedule = Pruning(((12, 6), (24, 2)))
    [run] = launch_check_resume(
        backend, [PROBLEM], Likelihood(), CHECKPOINT, n_paths=12, pruning=schedule
    )
    first, second = (c.scores for c in run.checks)
    survivors = np.argsort(-first, kind="stable")[:6]
    assert set(np.flatnonzero(~np.isnan(second))) == set(survivors)
    best = sorted(survivors, key=lambda i: -second[i])[:2]
    assert set(np.flatnonzero(run.kept)) == {int(i) for i in best}
    for i in range(12):
        ends = 24 if i in survivors else 12
        full = whole[i].n_tokens
        assert run.tokens[i] == (full if run.kept[i] else min(full, ends))
    for trace in run.finished:
        np.testing.assert_array_equal(trace.token_ids, whole[trace.index].token_ids)


def test_paths_that_ended_early_can_be_kept_without_a_slot(backend):
    late = Checkpoint(prefix_length=60)
    [run] = launch_check_resume(
        backend,
        [PROBLEM],
        Likelihood(),
        late,
        n_paths=32,
        pruning=Pruning(((60, 1),), policy=Finished.keep_free),
    )
    ended = np.array([t.stopped and t.n_tokens <= 60 for t in run.launched])
    assert 0 < ended.sum() < 32
    assert run.kept[ended].all()
    assert run.kept[~ended].sum() == 1


def test_a_method_that_fails_on_a_problem_gives_nan_with_the_reason(backend):
    @dataclass(kw_only=True)
    class Fails(Likelihood):
        def score_path(self, path):
            raise ZeroDivisionError("no luck")

    session = backend.open(PROBLEM, range(4))
    session.advance(24)
    verdict = check(Fails(), session, backend, CHECKPOINT)
    assert np.isnan(verdict.scores).all()
    assert verdict.reason == "ZeroDivisionError: no luck"


def test_a_method_that_breaks_the_contract_stops_the_run(backend):
    @dataclass(kw_only=True)
    class Short(SignalGenerator):
        type = SignalType.I
        paper = "https://example.org"

        def score(self, group: PathGroup):
            return np.zeros(len(group) - 1)

    @dataclass(kw_only=True)
    class Float32(Short):
        def score(self, group):
            return np.zeros(len(group), dtype=np.float32)

    @dataclass(kw_only=True)
    class Undeclared(Short):
        def score(self, group):
            return np.array([p.entropy.sum() for p in group.paths])

    session = backend.open(PROBLEM, range(4))
    session.advance(24)
    with pytest.raises(ContractViolation, match=r"\(4,\).*Got \(3,\)"):
        check(Short(), session, backend, CHECKPOINT)
    with pytest.raises(ContractViolation, match="float64"):
        check(Float32(), session, backend, CHECKPOINT)
    with pytest.raises(UndeclaredCapability, match=r"path.entropy.*Capability.ENTROPY"):
        check(Undeclared(), session, backend, CHECKPOINT)


def test_extra_tokens_are_counted_by_the_core(backend):
    @dataclass(kw_only=True)
    class Reads(SignalGenerator):
        type = SignalType.III
        paper = "https://example.org"
        requires = frozenset({Capability.KV_CACHE})

        def score(self, group):
            import torch

            hidden = backend.model().config.hidden_size
            states = group.internals.read(torch.ones(3, hidden))
            return states.sum(dim=(1, 2)).double().numpy()

    session = backend.open(PROBLEM, range(5))
    session.advance(24)
    assert check(Reads(), session, backend, CHECKPOINT).cost.verifier_tokens == 5 * 3


def test_problems_at_once_are_those_one_by_one(backend):
    problems = [PROBLEM, replace(PROBLEM, id="other", question="2+2"), replace(PROBLEM, id="third")]
    options = {"n_paths": 6, "pruning": keep(2)}
    together = launch_check_resume(backend, problems, Likelihood(), CHECKPOINT, **options)
    for problem, run in zip(problems, together, strict=True):
        [alone] = launch_check_resume(backend, [problem], Likelihood(), CHECKPOINT, **options)
        assert run.problem is problem
        np.testing.assert_array_equal(run.kept, alone.kept)
        for a, b in zip(run.finished, alone.finished, strict=True):
            np.testing.assert_array_equal(a.token_ids, b.token_ids)


def test_a_group_that_fails_is_tried_one_by_one():
    from prunebench.online import _attempt

    problems = [replace(PROBLEM, id=name) for name in ("good", "bad", "fine")]

    def launch(group):
        if any(problem.id == "bad" for problem in group):
            raise ValueError("no memory")
        return [f"run of {problem.id}" for problem in group]

    good, bad, fine = _attempt(problems, launch)
    assert (good, fine) == ("run of good", "run of fine")
    assert isinstance(bad, ValueError)

    def interrupted(group):
        raise ConfigError("no such model")

    with pytest.raises(ConfigError):
        _attempt(problems, interrupted)

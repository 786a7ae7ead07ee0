"""Ensembles: what is combined, what is learned, what members bring along, and what is refused."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from prunebench import cli, members, samples
from prunebench.backend import ModelSpec
from prunebench.backends.fake import FakeBackend
from prunebench.checkpoints import SHIPPED
from prunebench.cost import Ledger
from prunebench.errors import ConfigError, NotTrained, UnknownName
from prunebench.lab import Lab
from prunebench.method import Capability, Context, LabelledPrefix, SignalType
from prunebench.methods.deepconf import DeepConf
from prunebench.methods.ensemble import Ensemble, How, combined, rank_mean, regression
from prunebench.methods.entropy import Entropy
from prunebench.methods.linear_probe import LinearProbe
from prunebench.methods.mean_logprob import MeanLogprob

NAN = float("nan")


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    made = FakeBackend()
    made.bind(ModelSpec(name="fake", id="fake"), 0)
    return made


def context(backend, **more) -> Context:
    return Context(model_name="fake", backend=backend, **more)


@pytest.fixture(scope="module")
def examples(backend) -> list[LabelledPrefix]:
    """Prefixes of eight problems; those that the model finds likelier than others are right."""
    rng = np.random.default_rng(0)
    drawn = [
        LabelledPrefix(
            problem_id=f"p{problem}",
            prompt_ids=np.array([50, 43, 48 + problem], dtype=np.int32),
            prefix_ids=rng.integers(40, 120, size=length).astype(np.int32),
            label=0.0,
            n_continuations=4,
        )
        for problem in range(8)
        for length in (12, 20)
        for _ in range(6)
    ]
    found = list(drawn)
    for numbers, group in members.groups(backend, drawn, MeanLogprob.requires, 0):
        likely = MeanLogprob().score(group)
        for i, right in zip(numbers, likely > np.median(likely), strict=True):
            found[i] = replace(drawn[i], label=float(right))
    return found


# ------------------------------------------------------------------------------- mean of ranks


def test_rank_mean_by_hand():
    scores = np.array([[1.0, 7.0], [2.0, 7.0], [9.0, NAN], [NAN, NAN], [-np.inf, 5.0]])
    # Member 1 ranks four paths 2, 3, 4, -, 1; member 2 three: 2.5, 2.5, -, -, 1.
    first, second = np.array([1.5, 2.5, 3.5, NAN, 0.5]) / 4, np.array([2, 2, NAN, NAN, 0.5]) / 3
    expected = [(first[0] + second[0]) / 2, (first[1] + second[1]) / 2, first[2], NAN]
    expected.append((first[4] + second[4]) / 2)
    np.testing.assert_allclose(rank_mean(scores), expected)


def test_rank_mean_agrees_with_scipy_and_knows_no_units():
    scores = np.random.default_rng(0).normal(size=(30, 4)).round(1)
    ranks = np.stack([rankdata(column) for column in scores.T], axis=1)
    np.testing.assert_allclose(rank_mean(scores), ((ranks - 0.5) / 30).mean(axis=1))
    np.testing.assert_allclose(rank_mean(scores), rank_mean(np.exp(7 * scores) + 2))


def test_the_score_is_the_mean_rank_of_the_members_scores(backend):
    method = Ensemble(
        members=["deepconf", "entropy", "mean_logprob"], options={"deepconf": {"window": 5}}
    )
    method.setup(context(backend))
    group = samples.group(samples.varied(), method.requires)
    own = [DeepConf(window=5).score(group), Entropy().score(group), MeanLogprob().score(group)]
    expected = np.mean([(rankdata(s) - 0.5) / 12 for s in own], axis=0)
    np.testing.assert_allclose(method.score(group), expected)
    method.close()
    with pytest.raises(NotTrained):
        method.score(group)


# ------------------------------------------------------------------ what members bring along


@pytest.mark.parametrize(
    ("names", "how", "kind", "joint"),
    [
        (["deepconf", "entropy"], How.rank_mean, SignalType.III, True),
        (["deepconf", "entropy"], How.logistic, SignalType.IV, False),
        (["deepconf", "stop"], How.rank_mean, SignalType.IV, True),
        (["slim_sc", "repetition"], How.rank_mean, SignalType.I, True),
        (["slim_sc", "entropy"], How.logistic, SignalType.IV, True),
        (["repetition", "backtracks"], How.logistic, SignalType.II, False),
        (["llm_judge", "repetition"], How.rank_mean, SignalType.II, True),
        (["llm_judge", "entropy"], How.rank_mean, SignalType.IV, True),
    ],
)
def test_an_ensemble_is_what_its_members_are(names, how, kind, joint):
    method = Ensemble(members=names, how=how)
    assert method.type is kind
    assert method.joint is joint
    assert method.requires == frozenset().union(*(m.requires for m in method.parts))
    assert method.needs_training is (how is How.logistic)
    assert Ensemble.requires == Ensemble().requires
    assert Ensemble.type is Ensemble().type


def test_the_ensemble_may_read_what_its_members_may(backend):
    method = Ensemble(members=["entropy", "early_answer"])
    assert method.requires >= {Capability.ENTROPY, Capability.PROBE}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"members": ["deepconf"]}, ConfigError, "at least two different methods"),
        ({"members": ["deepconf", "deepconf"]}, ConfigError, "at least two different methods"),
        ({"members": ["deepconf", "ensemble"]}, ConfigError, "no ensemble"),
        ({"members": ["deepconf", "entrpy"]}, UnknownName, "Did you mean 'entropy'"),
        ({"members": ["deepconf", "oracle"]}, ConfigError, "'oracle' is a control"),
        ({"members": ["random", "entropy"]}, ConfigError, "'random' is a control"),
        ({"options": {"stop": {"rank": 3}}}, ConfigError, "options of 'stop', which is not among"),
        ({"options": {"deepconf": {"wndow": 3}}}, ConfigError, "do not suit 'deepconf'.*wndow"),
        ({"options": {"deepconf": {"window": 0}}}, ConfigError, "'window' parameter of DeepConf"),
        (
            {"members": ["llm_judge", "entropy"], "how": How.logistic},
            ConfigError,
            "'llm_judge' reads the question",
        ),
    ],
)
def test_what_is_refused(options, error, message: str):
    with pytest.raises(error, match=message):
        Ensemble(**options)


def test_learned_members_come_with_weights(backend, examples, tmp_path):
    method = Ensemble(members=["linear_probe", "entropy"])
    with pytest.raises(
        NotTrained, match=r"member 'linear_probe' has no trained weights for 'fake'"
    ):
        method.setup(context(backend))
    probe = LinearProbe(layer=1).fit(examples[:60], examples[60:], context(backend))
    probe.save(tmp_path)
    method = Ensemble(members=["linear_probe", "entropy"], options={"linear_probe": {"layer": 1}})
    method.setup(context(backend, part_weights={"linear_probe": tmp_path}))
    (_, group), *_ = members.groups(backend, examples, method.requires, 0)
    both = np.stack([probe.score(group), Entropy().score(group)], axis=1)
    np.testing.assert_allclose(method.score(group), rank_mean(both))


@pytest.fixture(scope="module")
def run():
    overrides = ["method.members=[deepconf,entropy]", "backend.threads=1"]
    overrides += ["+method.options.deepconf.window=7", "+method.options.deepconf.measure=tail"]
    return cli._composed("train", ["method=ensemble", "model=tiny", *overrides])


def test_options_of_members_come_from_the_command_line(run):
    assert run.method.parts[0].window == 7
    assert run.method.parts[0].measure.name == "tail"


def prepared(run, method: Ensemble, output="results/trained"):
    own = copy.copy(run)
    own.method, own.train = method, replace(run.train, output=str(output))
    return Lab().prepared(own)


def test_the_core_finds_the_weights_of_members_and_notices_when_they_change(run, tmp_path):
    names = ["stop", "entropy"]
    shipped = prepared(run, Ensemble(members=names), tmp_path)
    assert shipped.part_checkpoints == {"stop": SHIPPED / "stop"}
    own = tmp_path / "tiny" / "stop"
    shutil.copytree(SHIPPED / "stop", own)
    same = prepared(run, Ensemble(members=names), tmp_path)
    assert same.part_checkpoints == {"stop": own}
    assert same.checkpoint_hash == shipped.checkpoint_hash
    (own / "more").write_text("trained again")
    again = prepared(run, Ensemble(members=names), tmp_path)
    assert again.checkpoint_hash != same.checkpoint_hash
    assert prepared(run, Ensemble(), tmp_path).part_checkpoints == {}
    with pytest.raises(NotTrained, match="'ensemble' has no trained weights"):
        prepared(run, Ensemble(how=How.logistic), tmp_path)


def test_scores_are_made_anew_when_a_member_is_edited(run, monkeypatch):
    before = prepared(run, Ensemble()).checkpoint_hash
    monkeypatch.setattr("prunebench.lab.source_hash", lambda cls: f"edited {cls.__name__}")
    assert prepared(run, Ensemble()).checkpoint_hash != before


# ----------------------------------------------------------------------------- training prefixes


def test_statistics_of_given_prefixes_are_those_of_the_paths_themselves(run):
    """On the embedded model, which records them while it samples."""
    run.backend.bind(run.spec(), 0)
    problem = run.dataset.problems()[0]
    session = run.backend.open(problem, range(4))
    session.advance(16)
    traces = session.traces()
    given = [
        LabelledPrefix(
            problem_id=problem.id,
            prompt_ids=session.prompt_ids,
            prefix_ids=trace.token_ids,
            label=0.5,
            n_continuations=1,
        )
        for trace in traces
    ]
    statistics = members._STATISTICS
    for numbers, group in members.groups(run.backend, given, statistics, 0):
        for i, path in zip(numbers, group.paths, strict=True):
            assert path.text == traces[i].text
            for capability in statistics:
                seen, own = (
                    getattr(path, capability.value),
                    getattr(traces[i].stats, capability.value),
                )
                assert seen.dtype == own.dtype
                np.testing.assert_allclose(seen, own, atol=1e-4, rtol=1e-4)
            assert path.vocab_size == traces[i].stats.vocab_size


def test_prefixes_of_one_problem_and_length_compete(backend, examples):
    seen = []
    for numbers, group in members.groups(backend, examples, frozenset(), 0):
        assert {examples[i].problem_id for i in numbers} == {group.problem_id}
        assert {len(examples[i].prefix_ids) for i in numbers} == {group.prefix_length}
        assert not any(path.finished for path in group.paths)
        seen += numbers
    assert sorted(seen) == list(range(len(examples)))


def test_members_that_read_states_can_read_those_of_prefixes(backend, examples):
    requires = frozenset({Capability.HIDDEN_STATES})
    numbers, group = next(iter(members.groups(backend, examples, requires, 0)))
    states = group.internals.hidden_states([1]).numpy()
    assert states.shape[:3] == (len(numbers), 1, group.prefix_length)


# -------------------------------------------------------------------------- logistic regression


def made_up(n_problems: int = 60, n: int = 5, seed: int = 0):
    """Scores of two members, of which the first knows which of a problem's paths are right."""
    rng = np.random.default_rng(seed)
    hard = np.repeat(rng.normal(scale=5, size=n_problems), n)
    label = rng.random(n_problems * n).round(2)
    first = 2 * label + 0.5 * rng.normal(size=len(label)) + hard
    scores = np.column_stack([first, rng.normal(scale=3, size=len(label))])
    prefix = np.zeros(4, dtype=np.int32)
    examples = [
        LabelledPrefix(
            problem_id=f"p{i // n}", prompt_ids=prefix, prefix_ids=prefix, label=y,
            n_continuations=4,
        )
        for i, y in enumerate(label)
    ]  # fmt: skip
    return scores, examples, label


def test_the_regression_agrees_with_scikit_learn_on_centred_scores():
    scores, examples, label = made_up()
    weights, n_used = regression(scores, examples)
    assert n_used == 300
    centred = scores - scores.reshape(60, 5, 2).mean(axis=1).repeat(5, axis=0)
    spread = centred.std(axis=0)
    theirs = LogisticRegression(C=1.0).fit(
        np.tile(centred / spread, (2, 1)), np.repeat([1, 0], 300),
        sample_weight=np.concatenate([label, 1 - label]),
    )  # fmt: skip
    np.testing.assert_allclose(weights["coef"], theirs.coef_[0], rtol=1e-3)
    np.testing.assert_allclose(weights["scale"], spread)
    assert weights["coef"][0] > 10 * abs(weights["coef"][1])
    # A constant of the problem changes no ranking.
    moved = combined(weights, scores + np.array([[7.0, 0.0]])) - combined(weights, scores)
    np.testing.assert_allclose(moved, moved[0])


def test_infinite_and_missing_scores():
    scores, examples, _ = made_up()
    scores[3, 0], scores[8, 1] = np.inf, NAN
    weights, n_used = regression(scores, examples)
    assert n_used == 299
    assert np.isfinite([*weights["coef"], *weights["low"], *weights["high"]]).all()
    found = combined(weights, np.array([[np.inf, 0.0], [NAN, 0.0], [weights["high"][0], 0.0]]))
    assert found[0] == found[2]
    assert np.isnan(found[1])


def test_too_little_to_learn_from():
    scores, examples, _ = made_up(n_problems=1)
    with pytest.raises(ConfigError, match="too little to learn a combination of 2 members from: 5"):
        regression(scores, examples)
    alone = [replace(e, problem_id=f"q{i}") for i, e in enumerate(made_up()[1])]
    with pytest.raises(ConfigError, match="0 prefixes"):
        regression(made_up()[0], alone)


def test_a_learned_combination_comes_back_and_scores_paths_one_by_one(backend, examples, tmp_path):
    method = Ensemble(members=["mean_logprob", "entropy"], how=How.logistic)
    with pytest.raises(NotTrained):
        method.score(samples.group(samples.varied(), method.requires))
    cut = next(i for i, e in enumerate(examples) if e.problem_id == "p6")
    method.fit(examples[:cut], examples[cut:], context(backend))
    assert method.metrics_["n_prefixes"] == cut
    assert method.metrics_["held_out_only"] is False
    assert method.metrics_["valid_auroc"] > 0.8  # the labels are what mean_logprob reads
    method.save(tmp_path)
    again = Ensemble(members=["mean_logprob", "entropy"], how=How.logistic)
    again.load(tmp_path, context(backend))
    group = samples.group(samples.varied(), method.requires)
    scores = again.score(group)
    np.testing.assert_array_equal(scores, method.score(group))
    np.testing.assert_allclose(again.score(group.subset([4, 2])), scores[[4, 2]])
    other = Ensemble(members=["mean_logprob", "deepconf"], how=How.logistic)
    with pytest.raises(ConfigError, match="'members' parameter of Ensemble must be that of the tr"):
        other.load(tmp_path, context(backend))


def test_with_learned_members_only_held_out_prefixes_teach(backend, examples, tmp_path):
    cut = next(i for i, e in enumerate(examples) if e.problem_id == "p4")
    train, valid = examples[:cut], examples[cut:]
    LinearProbe(layer=1).fit(train, valid, context(backend)).save(tmp_path)
    method = Ensemble(
        members=["linear_probe", "entropy"],
        options={"linear_probe": {"layer": 1}},
        how=How.logistic,
    )
    method.fit(train, valid, context(backend, part_weights={"linear_probe": tmp_path}))
    assert method.metrics_["held_out_only"] is True
    assert method.metrics_["n_prefixes"] == len(valid)


def test_what_members_spend_is_counted(backend):
    """The members' tokens go to the same ledger and internals as anyone's."""
    ledger = Ledger()
    method = Ensemble(members=["early_answer", "entropy"])
    method.setup(context(backend, ledger=ledger))
    traces = samples.unfinished()
    inner = backend.encode(samples.PROMPT_IDS, [t.token_ids[:24] for t in traces])
    group = samples.group(traces, method.requires, lambda prefixes: inner)
    before = inner.sampled_tokens
    method.score(group)
    assert inner.sampled_tokens > before

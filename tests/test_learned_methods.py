"""Methods that learn from states: what they compute, what they learn, and that they come back."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prunebench import samples, statestore
from prunebench.backend import ModelSpec
from prunebench.backends.fake import FakeBackend
from prunebench.cachereader import within_problem_auroc
from prunebench.checkpoints import SHIPPED
from prunebench.errors import ConfigError, DamagedFile, NotTrained
from prunebench.lab import found_weights
from prunebench.method import Capability, Context, LabelledPrefix
from prunebench.methods._mlp import MLPRecipe, mlp_logits, train_mlp
from prunebench.methods._states import Pooling, pool, step_ends
from prunebench.methods.clue import Clue, Measure
from prunebench.methods.linear_probe import INVERSE_PENALTIES, LinearProbe, regression
from prunebench.methods.mlp_probe import MLPProbe
from prunebench.methods.otv import OTV
from prunebench.methods.prm import PRM
from prunebench.methods.step_mlp import StepMLP
from prunebench.methods.stop import Stop
from prunebench.types import TokenStats, Trace

LENGTH = samples.PREFIX_LENGTH
NEW_LINE = 10  # the fake backend's tokens are bytes

QUICK = [
    LinearProbe(layer=1),
    MLPProbe(layer=1, width=16, batch_size=16),
    StepMLP(width=16, learning_rate=3e-3),
    Clue(),
    OTV(rank=4, epochs=12, batch_size=32, eval_every=20, warmup=2),
]
NAMES = [type(method).__name__ for method in QUICK]


def fake(**options) -> FakeBackend:
    backend = FakeBackend(**options)
    backend.bind(ModelSpec(name="fake", id="fake"), 0)
    return backend


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return fake()


@pytest.fixture(scope="module")
def examples(backend) -> list[LabelledPrefix]:
    """Nested prefixes of 24 problems; the label says whether the path writes small or large
    bytes, and line breaks end its steps."""
    rng = np.random.default_rng(0)
    found = []
    for problem in range(24):
        prompt = rng.integers(32, 120, 3 + problem % 3).astype(np.int32)
        for k in range(6):
            path = rng.integers(40, 60, LENGTH) + (0 if k % 2 else 50)
            path[[4, 9, 15, 21]] = NEW_LINE
            found += [
                LabelledPrefix(
                    problem_id=f"p{problem}",
                    prompt_ids=prompt,
                    prefix_ids=path[:n].astype(np.int32),
                    label=float(k % 2),
                    n_continuations=4,
                )
                for n in (12, LENGTH)
            ]
    return found


@pytest.fixture(scope="module")
def sides(examples) -> tuple[list[LabelledPrefix], list[LabelledPrefix]]:
    held_out = {"p1", "p5", "p9", "p13", "p17", "p21"}
    train = [e for e in examples if e.problem_id not in held_out]
    return train, [e for e in examples if e.problem_id in held_out]


@pytest.fixture(scope="module", params=QUICK, ids=NAMES)
def fitted(request, backend, sides, tmp_path_factory):
    """Each method, fitted and saved."""
    folder = tmp_path_factory.mktemp("trained")
    method = replace(request.param)
    method.fit(*sides, Context(model_name="fake", backend=backend))
    method.save(folder)
    return method, folder


def group_of(backend, prefixes, prompt=samples.PROMPT_IDS, requires=Capability.HIDDEN_STATES):
    traces = [
        Trace(
            index=i,
            token_ids=np.asarray(p, dtype=np.int32),
            text="",
            stats=TokenStats(),
            stopped=False,
            answer=None,
            correct=False,
        )
        for i, p in enumerate(prefixes)
    ]
    granted = frozenset({requires})
    cut = lambda given: backend.encode(samples.PROMPT_IDS, given)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "decode", backend.decode)
        return samples.group(traces, granted, cut)


def states_of(backend, prefix, layers, prompt=samples.PROMPT_IDS) -> np.ndarray:
    """Reference: the whole text through the model at once, `(layers, n, hidden)`."""
    import torch

    ids = torch.tensor([[*prompt.tolist(), *prefix.tolist()]])
    with torch.no_grad():
        output = backend.model()(input_ids=ids, output_hidden_states=True)
    return np.stack([output.hidden_states[k][0, len(prompt) :].numpy() for k in layers])


# ------------------------------------------------------------------------------------- states


def test_states_of_nested_prefixes_equal_those_of_each_alone(backend, examples):
    chosen = examples[:30]
    found = {i: h.copy() for i, h in statestore.iter_states(backend, chosen, [1, 2])}
    assert sorted(found) == list(range(30))
    for i in (0, 1, 13, 28):
        expected = states_of(backend, chosen[i].prefix_ids, [1, 2], chosen[i].prompt_ids)
        assert found[i].dtype == np.float32
        np.testing.assert_allclose(found[i], expected, atol=1e-5)


def test_only_the_longest_prefix_of_a_path_is_run(backend, examples, monkeypatch):
    run = []
    encode = backend.encode
    monkeypatch.setattr(
        backend, "encode", lambda prompt, prefixes: run.extend(prefixes) or encode(prompt, prefixes)
    )
    statestore.pooled(backend, examples[:12], [1], lambda h, _: h[0, -1])
    assert [len(p) for p in run] == [LENGTH] * 6


def test_layers_are_counted_and_checked(backend):
    assert statestore.n_layers(backend) == 2
    assert statestore.layers_to_try(backend, None) == [1, 2]
    assert statestore.layers_to_try(backend, -1) == [2]
    assert statestore.layers_to_try(backend, 0) == [0]
    with pytest.raises(ConfigError, match=r"'layer'.*between -3 and 2"):
        statestore.layers_to_try(backend, 3)


def test_centring_removes_what_paths_of_a_problem_share(examples):
    """A detector of difficulty tells nothing within a problem; centring leaves nothing of it."""
    rng = np.random.default_rng(1)
    problems = [e.problem_id for e in examples]
    difficulty = np.array([sum(problem.encode()) for problem in problems], dtype=float)
    assert within_problem_auroc(difficulty, examples) == 0.5
    own = rng.normal(size=len(examples))
    left = statestore.problem_centred(np.stack([difficulty, difficulty + own], axis=1), examples)
    np.testing.assert_allclose(left[:, 0], 0, atol=1e-9)
    for problem in set(problems):
        members = [i for i, p in enumerate(problems) if p == problem]
        np.testing.assert_allclose(left[members, 1], own[members] - own[members].mean(), atol=1e-9)


@pytest.mark.parametrize("kind", [LinearProbe, MLPProbe])
def test_centred_probes_do_not_learn_difficulty(backend, sides, monkeypatch, kind):
    """Planted states: the first feature is the problem's difficulty and noise, from which labels
    mostly come; the second alone distinguishes paths of a problem."""
    rng = np.random.default_rng(0)
    made = []
    for problem in range(240):
        difficulty = rng.choice([-1, 1])
        for own in (-1, 1) * 3:
            label = 0.5 + 0.2 * difficulty + 0.25 * own + rng.uniform(-0.05, 0.05)
            example = replace(sides[0][0], problem_id=f"q{problem}", label=label)
            made.append((example, difficulty + 0.3 * rng.normal(), own + rng.normal()))
    train, valid = ([m[0] for m in part] for part in (made[:1200], made[1200:]))
    monkeypatch.setattr(
        statestore,
        "pooled",
        lambda backend, examples, layers, pool: [
            np.array([m[1:]]) for m in (made[:1200] if examples is train else made[1200:])
        ],
    )
    context = Context(model_name="fake", backend=backend)
    slopes = {}
    for centred in (False, True):
        probe = kind(layer=1, centred=centred).fit(train, valid, context)
        steps = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
        low, high, wrong, right = (probe.value(s[None, None], np.array([5])) for s in steps)
        slopes[centred] = (high - low) / (right - wrong)
    assert slopes[False] > 1.0  # difficulty counts for more than the path itself
    assert abs(slopes[True]) < slopes[False] / 4


@pytest.mark.parametrize(
    ("text", "mark", "expected"),
    [
        ("ab\ncd\n", "\n", [2, 5]),
        ("\n\n", "\n", [0, 1]),
        ("abc", "\n", [2]),  # no finished step: the last token
        ("a.b", ".", [1]),
        ("a\n\nb", "\n\n", [3]),  # one byte never holds two line breaks
    ],
)
def test_steps_end_at_tokens_that_contain_the_mark(backend, text, mark, expected):
    assert step_ends(backend, mark)(backend.tokenize(text)).tolist() == expected


def test_pooling_by_hand():
    states = np.arange(24, dtype=float).reshape(2, 4, 3)
    at = np.array([1, 3])
    np.testing.assert_array_equal(pool(states, at, Pooling.last), states[:, 3])
    np.testing.assert_array_equal(
        pool(states, at, Pooling.mean), [[4.5, 5.5, 6.5], [16.5, 17.5, 18.5]]
    )
    np.testing.assert_array_equal(pool(states, at, Pooling.step_ends), [[6, 7, 8], [18, 19, 20]])


# --------------------------------------------------------------------------------- every method


def test_unfitted_says_how_to_train():
    for method in QUICK:
        with pytest.raises(NotTrained, match="prunebench train method="):
            type(method)().score(None)  # type: ignore[arg-type]


def test_learns_what_distinguishes_paths_of_a_problem(fitted):
    least = 0.65 if isinstance(fitted[0], Clue) else 0.9  # CLUE weighs all directions alike
    assert fitted[0].metrics_["valid_auroc"] > least


def test_scores_of_a_live_group_equal_after_loading(backend, fitted, examples):
    method, folder = fitted
    requires = next(iter(method.requires))
    group = group_of(backend, [e.prefix_ids for e in examples[:8]] + [[]], requires=requires)
    scores = method.score(group)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, np.round(scores, 5))
    other = fake()
    again = replace(method).load(folder, Context(model_name="fake", backend=other))
    group = group_of(other, [e.prefix_ids for e in examples[:8]] + [[]], requires=requires)
    np.testing.assert_allclose(again.score(group), scores, atol=1e-4)
    assert len(set(scores[:8])) > 4
    if not isinstance(method, OTV):
        assert np.isnan(scores).tolist() == [False] * 8 + [True]


def test_weights_of_another_model_are_refused(fitted):
    method, folder = fitted
    with pytest.raises(NotTrained, match="belong to another model: accuracy"):
        replace(method).load(folder, Context(model_name="fake", backend=fake(accuracy=0.7)))


def test_damaged_files_are_named(backend, fitted, tmp_path):
    method, folder = fitted
    stem = method.file_stem
    context = Context(model_name="fake", backend=backend)
    for suffix in (".json", ".safetensors"):
        for file in folder.rglob("*"):
            if file.is_file():
                copy = tmp_path / file.relative_to(folder)
                copy.parent.mkdir(exist_ok=True)
                copy.write_bytes(file.read_bytes())
        broken = tmp_path / f"{stem}{suffix}"
        broken.write_bytes(broken.read_bytes()[:20])
        with pytest.raises(DamagedFile, match=f"trained {stem} in .* cannot be read"):
            replace(method).load(tmp_path, context)


def test_record_holds_options_and_no_path(fitted):
    method, folder = fitted
    text = (folder / f"{method.file_stem}.json").read_text()
    record = json.loads(text)
    assert "checkpoint" not in record["options"]
    assert record["metrics"]["n_train"] == 18 * 12
    assert "/" not in text.replace("\\n", "")


def test_missing_arrays_are_damage(backend, sides, tmp_path):
    from safetensors.numpy import save_file

    context = Context(model_name="fake", backend=backend)
    Clue().fit(*sides, context).save(tmp_path)
    save_file({"right": np.zeros((2, 32), np.float32)}, tmp_path / "clue.safetensors")
    with pytest.raises(DamagedFile, match="lacks 'wrong'"):
        Clue().load(tmp_path, context)


def test_options_that_the_weights_were_not_made_for_are_refused(backend, sides, tmp_path):
    context = Context(model_name="fake", backend=backend)
    LinearProbe(layer=1).fit(*sides, context).save(tmp_path)
    LinearProbe(layer=1, centred=False).load(tmp_path, context)  # concerns training only
    with pytest.raises(ConfigError, match=r"'pooling' parameter.*'mean'.*'last'"):
        LinearProbe(layer=1, pooling=Pooling.last).load(tmp_path, context)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: MLPProbe(width=0), "width"),
        (lambda: StepMLP(epochs=0), "epochs"),
        (lambda: Clue(prefix_length=-1), "prefix_length"),
        (lambda: OTV(horizon=-5), "horizon"),
    ],
)
def test_bad_options_are_named(make, name):
    with pytest.raises(ConfigError, match=f"{name!r} parameter of .* Got"):
        make()


# ---------------------------------------------------------------------------------- one by one


def test_linear_probe_equals_a_pipeline_of_scikit_learn(backend, sides, examples):
    train, valid = sides
    soft = [replace(e, label=0.25 + 0.5 * e.label) for e in train]
    probe = LinearProbe(layer=-1, pooling=Pooling.step_ends, centred=False)
    probe.fit(soft, valid, Context(model_name="fake", backend=backend))
    group = group_of(backend, [e.prefix_ids for e in examples[:6]])

    def features(ids, prompt):
        ends = [i for i, token in enumerate(ids) if token == NEW_LINE]
        return states_of(backend, ids, [2], prompt)[0, ends].mean(axis=0)

    x = np.stack([features(e.prefix_ids, e.prompt_ids) for e in soft])
    model = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=probe.metrics_["inverse_penalty"], max_iter=1000),
    )
    labels = np.array([e.label for e in soft])
    model.fit(
        np.concatenate([x, x]),
        np.repeat([1, 0], len(x)),
        logisticregression__sample_weight=np.concatenate([labels, 1 - labels]),
    )
    own = np.stack([features(e.prefix_ids, samples.PROMPT_IDS) for e in examples[:6]])
    np.testing.assert_allclose(probe.score(group), model.decision_function(own), atol=2e-3)


def test_linear_probe_takes_the_best_layer_and_penalty(backend, sides):
    train, valid = sides
    probe = LinearProbe(centred=False, pooling=Pooling.last).fit(
        *sides, Context(model_name="fake", backend=backend)
    )
    values = {}
    for layer in (1, 2):
        x, x_valid = (
            np.stack(statestore.pooled(backend, e, [layer], lambda h, _: h[0, -1])) for e in sides
        )
        for penalty in INVERSE_PENALTIES:
            w = regression(x, np.array([e.label for e in train]), penalty)
            scores = (x_valid - w["mean"]) / w["scale"] @ w["coef"]
            values[layer, penalty] = within_problem_auroc(scores, valid)
    assert probe.metrics_["valid_auroc"] == max(values.values())
    chosen = probe.metrics_["layer"], probe.metrics_["inverse_penalty"]
    assert values[chosen] == max(values.values())


def test_mlp_probe_equals_torch(backend, sides, examples):
    import torch

    probe = MLPProbe(layer=2, width=8, epochs=3, pooling=Pooling.mean)
    probe.fit(*sides, Context(model_name="fake", backend=backend))
    w = {name: torch.tensor(value) for name, value in probe.weights_.items()}
    own = states_of(backend, examples[0].prefix_ids, [2])[0].mean(axis=0)
    hidden = torch.relu(
        torch.nn.functional.linear(
            (torch.tensor(own) - w["mean"]) / w["scale"], w["hidden.weight"], w["hidden.bias"]
        )
    )
    expected = float(hidden @ w["head.weight"] + w["head.bias"])
    group = group_of(backend, [examples[0].prefix_ids])
    assert probe.score(group)[0] == pytest.approx(expected, abs=2e-4)


def test_mlp_learns_what_no_line_separates_and_stops_early():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 2))
    labels = (x[:, 0] * x[:, 1] > 0).astype(float)  # exclusive or
    seen = []

    def accuracy(weights):
        seen.append(np.mean((mlp_logits(weights, x) > 0) == (labels > 0.5)))
        return min(float(seen[-1]), 0.9)  # nothing above 0.9 counts as better

    recipe = MLPRecipe(
        width=16, learning_rate=0.02, weight_decay=0.0, batch_size=64, epochs=60, patience=3
    )
    weights, found = train_mlp(recipe, x, labels, np.zeros(800), evaluate=accuracy)
    assert found["valid_auroc"] == 0.9
    assert np.mean((mlp_logits(weights, x) > 0) == (labels > 0.5)) >= 0.9
    assert len(seen) == found["epoch"] + 3


def test_step_mlp_is_the_mean_over_steps(backend, sides, examples):
    method = StepMLP(width=4, epochs=1).fit(*sides, Context(model_name="fake", backend=backend))
    prefix = examples[1].prefix_ids
    group = group_of(backend, [prefix, prefix[:3]])
    states = states_of(backend, prefix, [2])[0]
    w = method.weights_

    def probability(h):
        hidden = w["hidden.weight"] @ ((h - w["mean"]) / w["scale"]) + w["hidden.bias"]
        logit = sum(v * max(a, 0.0) for v, a in zip(w["head.weight"], hidden, strict=True))
        return 1 / (1 + np.exp(-(logit + w["head.bias"][0])))

    expected = np.mean([probability(states[i]) for i in (4, 9, 15, 21)])
    scores = method.score(group)
    assert scores[0] == pytest.approx(expected, abs=2e-4)
    assert scores[1] == pytest.approx(probability(states[2]), abs=2e-4)  # no step is finished


def test_clue_by_hand(backend, examples):
    """Two right and two wrong prefixes of one length, and one that is neither."""
    chosen = [
        replace(examples[i], label=label)
        for i, label in ((1, 1.0), (3, 0.75), (5, 0.25), (7, 0.0), (9, 0.5))
    ]
    context = Context(model_name="fake", backend=backend)
    deltas = []
    for e in chosen:
        states = states_of(backend, e.prefix_ids, [1, 2], e.prompt_ids)
        deltas.append(states[:, LENGTH - 1] - states[:, 0])
    right, wrong = (deltas[0] + deltas[1]) / 2, (deltas[2] + deltas[3]) / 2
    own = states_of(backend, examples[11].prefix_ids, [1, 2])
    own = own[:, LENGTH - 1] - own[:, 0]

    def distance(centroid):
        return (np.sqrt(((own - centroid) ** 2).sum(axis=1))).mean()

    group = group_of(backend, [examples[11].prefix_ids])
    plain = Clue(centred=False).fit(chosen, chosen, context)
    assert plain.score(group)[0] == pytest.approx(distance(wrong) - distance(right), abs=2e-4)
    nearest = Clue(centred=False, measure=Measure.success).fit(chosen, chosen, context)
    assert nearest.score(group)[0] == pytest.approx(-distance(right), abs=2e-4)
    # All are of one problem and length, so that centring changes nothing.
    centred = Clue().fit(chosen, chosen, context)
    np.testing.assert_allclose(centred.score(group), plain.score(group), atol=2e-4)


def test_clue_takes_the_nearest_labelled_length(backend, sides):
    context = Context(model_name="fake", backend=backend)
    method = Clue(prefix_length=14).fit(*sides, context)
    assert method.metrics_["n_train"] == len([e for e in sides[0] if len(e.prefix_ids) == 12])
    with pytest.raises(ConfigError, match="above and below one half"):
        Clue().fit([e for e in sides[0] if e.label > 0.5], sides[1], context)


def test_otv_targets_grow_from_one_half_to_the_label(examples):
    right, longer = examples[2:4]
    wrong = examples[0]
    assert (right.label, wrong.label, len(right.prefix_ids)) == (1.0, 0.0, 12)
    found = [e.label for e in OTV().targets([right, longer, wrong])]
    assert found == [0.75, 1.0, 0.25]
    assert [e.label for e in OTV(horizon=6).targets([right, wrong])] == [1.0, 0.0]
    assert [e.label for e in OTV(horizon=48).targets([right, longer])] == [0.625, 0.75]


# --------------------------------------------------------------------------- the shipped weights


@pytest.fixture(scope="module")
def tiny():
    from prunebench.backends.transformers import TransformersBackend

    made = TransformersBackend(threads=1)
    made.bind(ModelSpec(name="tiny", id="embedded:tiny", prompt="{question}\n", answer="line"), 0)
    return made


@pytest.mark.parametrize("cls", [LinearProbe, MLPProbe, StepMLP, Clue, OTV])
def test_shipped_weights_fit_the_defaults_and_score(tiny, cls):
    method = cls()
    method.load(SHIPPED / method.file_stem, Context(model_name="tiny", backend=tiny))
    prompt = tiny.prompt_ids("12+30")
    prefixes = [tiny.tokenize(text) for text in ("12+30=42\n", "12+30=", "12+30=32\nA3")]
    paths = group_of(tiny, prefixes, requires=next(iter(method.requires)))
    group = replace(paths, prompt_ids=prompt, _internals=lambda: tiny.encode(prompt, prefixes))
    scores = method.score(group)
    assert np.isfinite(scores).all()
    assert len(set(scores)) == 3


@pytest.mark.parametrize("cls", [Stop, OTV, MLPProbe, StepMLP, PRM])
def test_weights_that_rank_are_not_read_as_probabilities(cls, tmp_path):
    """The shipped weights are centred, so that their scores claim nothing. Refused before anything
    loads, since scores may come from the cache."""
    scores = np.array([0.25, 0.75])
    assert cls().probabilities(scores) is None
    run = SimpleNamespace(
        model=SimpleNamespace(name="tiny", id="embedded:tiny", path=None),
        train=SimpleNamespace(output=str(tmp_path)),
    )
    folder, _ = found_weights(cls(), run)  # pyright: ignore[reportArgumentType]
    assert folder == SHIPPED / cls().file_stem
    assert cls(centred=False).probabilities(scores) is not None
    with pytest.raises(ConfigError, match=r"'centred' parameter.*True\. Got False instead; train"):
        found_weights(cls(centred=False), run)  # pyright: ignore[reportArgumentType]


def test_the_record_of_weights_is_read_without_loading_them(tmp_path):
    Stop().check_weights(tmp_path)  # published weights have none
    (tmp_path / "stop.json").write_text('{"options": 3}')
    with pytest.raises(DamagedFile, match="trained stop"):
        Stop().check_weights(tmp_path)
    (tmp_path / "stop.json").write_text('{"options": {"centred": false}}')
    Stop(centred=False).check_weights(tmp_path)


def test_shipped_weights_are_small():
    files = [f for method in QUICK for f in (SHIPPED / method.file_stem).rglob("*") if f.is_file()]
    assert 0 < sum(f.stat().st_size for f in files) < 3_000_000

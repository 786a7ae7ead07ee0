"""Type III methods from hidden states, against plain transformers, scipy and loops.

The reference runs each prefix alone through the embedded model, without the engine's cache and
batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
from scipy.spatial.distance import jensenshannon

from prunebench.backend import ModelSpec, Sampling
from prunebench.backends.transformers import TransformersBackend
from prunebench.errors import ConfigError
from prunebench.method import Context, PathGroup, SignalGenerator
from prunebench.methods import coe, deep_thinking_ratio
from prunebench.methods._chain import angle, coe_c, coe_r
from prunebench.methods._layers import significant
from prunebench.methods._positions import step_spans, token_reader
from prunebench.methods.coe import CoE, Variant
from prunebench.methods.deep_thinking_ratio import DeepThinkingRatio, jensen_shannon
from prunebench.methods.kappa import (
    Kappa,
    exponential_average,
    median_of_means,
    standardised,
)
from prunebench.methods.st_bon import STBoN
from prunebench.types import Problem, Trace, view

L_PREFIX = 40
METHODS = [CoE, STBoN, DeepThinkingRatio, Kappa]


@dataclass
class World:
    """The embedded model with paths of one problem: three cut, one that ended early."""

    backend: TransformersBackend
    problem: Problem
    prompt_ids: np.ndarray
    traces: list[Trace]

    def score(self, method: SignalGenerator, traces: Sequence[Trace] | None = None) -> np.ndarray:
        method.setup(Context(model_name="tiny", backend=self.backend))
        return method.score(self.group(method, traces))

    def group(self, method: SignalGenerator, traces: Sequence[Trace] | None = None) -> PathGroup:
        traces = self.traces if traces is None else traces
        prefixes = [trace.token_ids[:L_PREFIX] for trace in traces]
        return view(
            self.problem,
            self.prompt_ids,
            traces,
            L_PREFIX,
            decode=self.backend.decode,
            granted=method.requires,
            seed=0,
            internals=lambda: self.backend.encode(self.prompt_ids, prefixes),
        )

    def states(self, trace: Trace) -> np.ndarray:
        """`(n_layers + 1, n_tokens, hidden)` of the prefix tokens, from transformers alone."""
        prefix = trace.token_ids[:L_PREFIX]
        ids = torch.tensor([[*self.prompt_ids, *prefix]])
        with torch.no_grad():
            output = self.backend.model()(input_ids=ids, output_hidden_states=True, use_cache=False)
        return np.stack([s[0, -len(prefix) :].double().numpy() for s in output.hidden_states])

    def head(self, states: np.ndarray, normed: bool) -> np.ndarray:
        """Probabilities that the output head reads from states."""
        model = self.backend.model()
        with torch.no_grad():
            x = torch.tensor(states, dtype=torch.float32)
            logits = model.lm_head(x if normed else model.model.norm(x))
        return logits.double().softmax(-1).numpy()


@pytest.fixture(scope="module")
def world() -> World:
    torch.set_num_threads(1)
    backend = TransformersBackend(device="cpu")
    sampling = Sampling(temperature=2.0, top_p=1.0, top_k=0, max_new_tokens=L_PREFIX + 10)
    spec = ModelSpec(
        name="tiny", id="embedded:tiny", prompt="{question}\n", answer="line", sampling=sampling
    )
    backend.bind(spec, 0)
    problem = Problem(id="p", question="21*43-96-33", answer="774")
    [(_, prompt_ids, traces)] = backend.generate([problem], range(4))
    short = replace(traces[3], token_ids=traces[3].token_ids[:17], stats=traces[3].stats.cut(17))
    return World(backend, problem, prompt_ids, [*traces[:3], short])


def empty(trace: Trace) -> Trace:
    return replace(trace, index=9, token_ids=trace.token_ids[:0], text="", stats=trace.stats.cut(0))


def angle_by_sides(a: np.ndarray, b: np.ndarray) -> float:
    """The angle between two vectors by the half-angle formula (Kahan)."""
    x, y = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return 2 * np.arctan2(np.linalg.norm(x - y), np.linalg.norm(x + y))


def slow_chain(layers: np.ndarray) -> list[tuple[float, float]]:
    """(M_l, A_l) of one state `(n_layers + 1, hidden)`."""
    length = np.linalg.norm(layers[-1] - layers[0])
    turn = angle_by_sides(layers[0], layers[-1])
    return [
        (np.linalg.norm(b - a) / length, angle_by_sides(a, b) / turn) for a, b in pairwise(layers)
    ]


# --- what they share --------------------------------------------------------------------------


@pytest.mark.parametrize("cls", METHODS)
def test_equal_prefixes_tie_and_empty_ones_are_left_out(cls: type, world: World) -> None:
    method = cls()
    a, b, c, short = world.traces
    twins = [a, b, c, short, replace(b, index=7), replace(short, index=8)]
    scores = world.score(method, twins)
    assert scores[1] == scores[4]
    assert scores[3] == scores[5]
    group = world.group(method, [*twins, empty(a)])
    with_empty = method.score(group)
    assert np.isnan(with_empty[-1])
    assert set(group.unscored) == {9}
    np.testing.assert_allclose(with_empty[:-1], scores, atol=2e-4)
    assert np.isnan(world.score(method, [empty(a)])).all()


@pytest.mark.parametrize("cls", [CoE, DeepThinkingRatio])
def test_scores_are_the_path_s_own(cls: type, world: World) -> None:
    together = world.score(cls())
    alone = [world.score(cls(), [trace])[0] for trace in world.traces]
    np.testing.assert_allclose(alone, together, atol=2e-5)


def test_rounding_to_significant_digits() -> None:
    values = np.array([0.0012345, -98765.0, 0.0, np.nan, -np.inf])
    expected = [0.00123, -98800.0, 0.0, np.nan, -np.inf]
    np.testing.assert_allclose(significant(values, 3), expected, rtol=1e-12)


def test_the_embedded_model_s_tokens_join_to_its_text(world: World) -> None:
    text = "3+4=7.\n7*2=14.\nA14"
    end = world.backend.tokenizer.eos_token_id
    ids = np.append(world.backend.tokenize(text), end).astype(np.int32)
    read = token_reader(world.backend.decode)
    assert "".join(map(read, ids.tolist())) == world.backend.decode(ids) == text
    assert [span.stop for span in step_spans(ids, read)] == [7, 15, len(ids)]


# --- chain of embeddings ----------------------------------------------------------------------


def test_chain_by_hand() -> None:
    # Layers (1, 0), (1, 1), (0, 1): steps of length 1, 1 over sqrt 2, turns of 45 over 90 degrees.
    layers = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert coe_r(layers) == pytest.approx(1 / np.sqrt(2) - 0.5)
    assert coe_c(layers) == pytest.approx(1 / np.sqrt(2))  # both steps point the same way
    assert angle(np.array([2.0, 0]), np.array([-1.0, 0])) == pytest.approx(np.pi)


def test_coe_agrees_with_plain_transformers(world: World) -> None:
    real, plane = [], []
    for trace in world.traces:
        chain = slow_chain(world.states(trace).mean(axis=1))
        real.append(np.mean([m - a for m, a in chain]))
        x = np.mean([m * np.cos(a) for m, a in chain])
        y = np.mean([m * np.sin(a) for m, a in chain])
        plane.append(np.hypot(x, y))
    np.testing.assert_allclose(world.score(CoE()), real, atol=1.5e-5)
    complex_ = world.score(CoE(variant=Variant.complex))
    np.testing.assert_allclose(complex_, plane, atol=1.5e-5)
    assert np.ptp(real) > 1e-3  # far above the tolerance
    assert np.ptp(plane) > 1e-3
    assert world.score(CoE(keep=coe.Keep.low)).tolist() == (-world.score(CoE())).tolist()


# --- ST-BoN -----------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 7, 256])
def test_st_bon_agrees_with_plain_transformers(window: int, world: World) -> None:
    features = []
    for trace in world.traces:
        states = world.states(trace)
        by_position = [
            np.mean([m - a for m, a in slow_chain(states[:, : t + 1].mean(axis=1))])
            for t in range(states.shape[1])
        ]
        by_position += [by_position[-1]] * (L_PREFIX - len(by_position))  # ended: keeps its last
        features.append(by_position[-window:])
    expected = []
    for i, own in enumerate(features):
        others = [f for j, f in enumerate(features) if j != i]
        per_position = [np.mean([(f[t] - own[t]) ** 2 for f in others]) for t in range(len(own))]
        expected.append(-np.mean(per_position))
    np.testing.assert_allclose(world.score(STBoN(window=window)), expected, rtol=2e-3)
    assert np.ptp(expected) > 0.02 * np.abs(expected).max()


def test_st_bon_prefers_the_middle_and_scores_a_path_alone_zero(world: World) -> None:
    a, b, _, _ = world.traces
    assert world.score(STBoN(), [a]).tolist() == [0.0]
    pair = world.score(STBoN(), [a, b])
    assert pair[0] == pair[1] < 0
    crowd = [replace(a, index=i) for i in range(3)]
    scores = world.score(STBoN(), [*crowd, b])
    assert scores[0] == scores[1] == scores[2] > scores[3]
    assert scores[3] == pytest.approx(pair[0], rel=1e-4)
    assert scores[0] == pytest.approx(pair[0] / 3, rel=1e-4)  # two of three others are equal


# --- deep-thinking ratio ----------------------------------------------------------------------


def test_jensen_shannon_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(9, 0.4), (2, 30))
    found = jensen_shannon(torch.tensor(np.log(p)), torch.tensor(np.log(q))).numpy()
    np.testing.assert_allclose(found, jensenshannon(p, q, axis=1, base=2) ** 2, atol=1e-12)
    apart = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    assert jensen_shannon(apart[0], apart[1]) == pytest.approx(1)  # no token in common: one bit


@pytest.mark.parametrize(
    ("tokens", "settled", "depth"), [(50, 0.5, 0.5), (50, 0.01, 0.6), (10, 0.2, 0.5), (50, 0, 1)]
)
def test_deep_thinking_ratio_agrees_with_plain_transformers(
    tokens: int, settled: float, depth: float, world: World
) -> None:
    expected = []
    for trace in world.traces:
        states = world.states(trace)
        n_layers = len(states) - 1
        p = [world.head(states[k], normed=k == n_layers) for k in range(1, n_layers + 1)]
        deep = []
        for t in range(min(tokens, states.shape[1]) - 1):  # the token after it is inside the prefix
            divergences = [jensenshannon(p[-1][t], own[t], base=2) ** 2 for own in p]
            divergences[-1] = 0.0
            settling = 1 + int(np.argmax(np.minimum.accumulate(divergences) <= settled))
            deep.append(settling >= np.ceil(depth * n_layers))
        expected.append(np.mean(deep))
    method = DeepThinkingRatio(tokens=tokens, settled=settled, depth=depth)
    assert world.score(method) == pytest.approx(expected)
    assert max(expected) > 0
    control = replace(method, keep=deep_thinking_ratio.Keep.shallow)
    assert world.score(control) == pytest.approx(-np.array(expected))


@pytest.mark.parametrize(
    "options", [{"tokens": 1}, {"settled": -0.1}, {"settled": 2.0}, {"depth": 1.5}]
)
def test_deep_thinking_ratio_refuses_senseless_options(options: dict) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigError, match=rf"'{name}' .* DeepThinkingRatio .* Got {value}"):
        DeepThinkingRatio(**options)


# --- KAPPA ------------------------------------------------------------------------------------


def slow_smooth(kl: np.ndarray, window: int, buckets: int, alpha: float) -> np.ndarray:
    """Median of means by slicing, exponential average by a recursive filter."""
    medians = []
    for t in range(len(kl)):
        recent = list(kl[: t + 1][-window:])
        n = min(buckets, len(recent))
        sizes = [len(recent) // n + (i < len(recent) % n) for i in range(n)]
        means = [np.mean([recent.pop(0) for _ in range(size)]) for size in sizes]
        medians.append(np.median(means))
    start = [(1 - alpha) * medians[0]]
    return scipy.signal.lfilter([alpha], [1, alpha - 1], medians, zi=start)[0]


@pytest.mark.parametrize("tau", [5, 64])
def test_kappa_agrees_with_plain_transformers(tau: int, world: World) -> None:
    method = Kappa(tau=tau, window=8, buckets=3, alpha=0.3)
    start = torch.tensor([[world.backend.tokenizer.eos_token_id]])  # tiny has no token of its own
    with torch.no_grad():
        q = world.backend.model()(input_ids=start).logits[0, -1].double().softmax(-1).numpy()
    rows = []
    for trace in world.traces:
        states = world.states(trace)[-1]
        p = world.head(states[:-1], normed=True)[-(tau + 8) :]
        kl = slow_smooth(scipy.stats.entropy(p, q[None], axis=1), 8, 3, 0.3)
        # The other two terms are the statistics recorded while the tokens were sampled.
        confidence = np.exp(trace.stats.max_logprobs[1:L_PREFIX].astype(float))
        entropy = trace.stats.entropy[1:L_PREFIX].astype(float)
        terms = np.array([kl[-tau:], confidence[-tau:], entropy[-tau:]])
        rows.append(np.round(terms, 5)[:, ::-1])
    totals = [[] for _ in rows]
    for back in range(min(tau, L_PREFIX - 1)):  # positions counted from the end
        there = [i for i, row in enumerate(rows) if back < row.shape[1]]
        values = np.array([rows[i][:, back] for i in there])
        sd = values.std(axis=0)
        z = np.clip((values - values.mean(axis=0)) / np.where(sd < 1e-9, 1e9, sd), -3, 3)
        for i, (kl, confidence, entropy) in zip(there, z, strict=True):
            totals[i].append(0.7 * kl + 0.2 * confidence - 0.1 * entropy)
    expected = [np.mean(own) for own in totals]
    np.testing.assert_allclose(world.score(method), expected, atol=0.005)
    assert np.ptp(expected) > 0.3


def test_kappa_s_weights_turn_terms_off_and_around(world: World) -> None:
    def only(**weights: float) -> np.ndarray:
        none = {"kl_weight": 0.0, "confidence_weight": 0.0, "entropy_weight": 0.0}
        return world.score(Kappa(**{**none, **weights}))

    assert only().tolist() == [0.0] * 4
    kl, confidence, entropy = (
        only(kl_weight=1.0),
        only(confidence_weight=1.0),
        only(entropy_weight=1.0),
    )
    assert only(entropy_weight=-1.0).tolist() == (-entropy).tolist()
    total = 0.7 * kl + 0.2 * confidence - 0.1 * entropy
    np.testing.assert_allclose(world.score(Kappa()), total, atol=2e-4)
    # A path that ended is compared with others' later tokens, so it does not sum to zero with them.
    assert abs(kl[:3].sum() + kl[3] * 16 / 39) < 0.5


def test_kappa_s_parts_by_hand() -> None:
    values = np.array([1.0, 2, 3, 100, 5, 6])
    # The last four in two parts: (3 + 100) / 2 and (5 + 6) / 2, whose median is their mean.
    assert median_of_means(values, 4, 2)[-1] == pytest.approx(28.5)
    # Three parts of (3, 100), (5) and (6): the outlier loses.
    assert median_of_means(values, 4, 3)[-1] == pytest.approx(6)
    assert median_of_means(values, 4, 3)[:2].tolist() == [1.0, 1.5]
    assert exponential_average(np.array([4.0, 0, 8]), 0.25).tolist() == [4, 3, 4.25]
    assert exponential_average(values, 1.0).tolist() == values.tolist()


def test_kappa_s_standardisation_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 20, 3)) ** 3
    values[0, 4, 1] = np.nan
    expected = np.clip(scipy.stats.zscore(values, axis=1, nan_policy="omit"), -3, 3)
    np.testing.assert_allclose(standardised(values), expected)
    assert np.nanmax(np.abs(expected)) == 3  # the clip was needed
    assert standardised(np.full((1, 5, 1), 0.1)).tolist() == [[[0.0]] * 5]


@pytest.mark.parametrize("options", [{"tau": 0}, {"window": 0}, {"buckets": 0}, {"alpha": 0.0}])
def test_kappa_refuses_senseless_options(options: dict) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigError, match=rf"'{name}' .* Kappa .* Got {value}"):
        Kappa(**options)


def test_st_bon_refuses_an_empty_window() -> None:
    with pytest.raises(ConfigError, match=r"'window' .* STBoN .* Got 0"):
        STBoN(window=0)

"""Type III methods from per-token statistics: by hand, and against scipy on real distributions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from scipy.stats import weibull_min

from prunebench.backend import ModelSpec
from prunebench.backends.fake import END, FakeBackend
from prunebench.errors import ConfigError
from prunebench.method import Context, PathGroup, SignalGenerator
from prunebench.methods import first_token_surprisal, step_entropy
from prunebench.methods._positions import step_spans, token_reader
from prunebench.methods._steps import split_steps
from prunebench.methods.adadec import AdaDec
from prunebench.methods.entropy import Entropy
from prunebench.methods.entropy_top20_renorm import EntropyTop20Renorm
from prunebench.methods.entropy_top20_trunc import EntropyTop20Trunc
from prunebench.methods.first_token_surprisal import FirstTokenSurprisal
from prunebench.methods.rpc import BOUNDS, RPC, START, fit_mixture, log_components, log_weibull
from prunebench.methods.step_entropy import StepEntropy
from prunebench.methods.think_just_enough import ThinkJustEnough
from prunebench.types import Problem, TokenStats, Trace, view
from prunebench.vote import Aggregator, vote

STEP_METHODS = (ThinkJustEnough, FirstTokenSurprisal, StepEntropy)


def ids_of(text: str) -> np.ndarray:
    """The fake backend's tokens: one per byte."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def path_of(text: str = "x", index: int = 0, ended: bool = True, **stats: np.ndarray) -> Trace:
    return Trace(
        index=index,
        token_ids=ids_of(text),
        text=text,
        stats=TokenStats(**{name: np.asarray(v, np.float32) for name, v in stats.items()}),
        stopped=ended,
        answer=None,
        correct=False,
    )


def group_of(traces: Sequence[Trace], method: SignalGenerator | type[SignalGenerator]) -> PathGroup:
    return view(
        Problem(id="p", question="1+1", answer="2"),
        np.zeros(1, np.int32),
        traces,
        4096,
        decode=lambda ids: "",
        granted=method.requires,
        seed=0,
    )


def score(method: SignalGenerator, *traces: Trace) -> np.ndarray:
    backend = FakeBackend()
    backend.bind(ModelSpec(name="fake", id="fake"), 0)
    method.setup(Context(model_name="fake", backend=backend))
    return method.score(group_of(traces, method))


def distributions(n: int, vocabulary: int) -> np.ndarray:
    """Peaked and flat ones, `(n, vocabulary)`, each sorted from the most likely token on."""
    rng = np.random.default_rng(n)
    p = rng.dirichlet(np.full(vocabulary, 0.3), size=n) ** rng.uniform(0.3, 2, (n, 1)) + 1e-9
    return np.sort(p / p.sum(axis=1, keepdims=True))[:, ::-1]


def top20(p: np.ndarray) -> dict[str, np.ndarray]:
    top = p[:, :20]
    return {"top_mass": top.sum(axis=1), "top_entropy": -(top * np.log(top)).sum(axis=1)}


# --- entropies --------------------------------------------------------------------------------


def test_top_20_entropies_agree_with_scipy() -> None:
    p = distributions(30, 80)
    path = path_of("x" * 30, **top20(p))
    renormalised = [scipy.stats.entropy(row[:20]) for row in p]  # scipy divides by the sum
    assert score(EntropyTop20Renorm(), path)[0] == pytest.approx(-np.mean(renormalised), rel=1e-6)
    truncated = [scipy.special.entr(row[:20]).sum() for row in p]
    assert score(EntropyTop20Trunc(), path)[0] == pytest.approx(-np.mean(truncated), rel=1e-6)
    assert np.mean(truncated) != pytest.approx(np.mean(renormalised), rel=1e-2)


def test_the_three_conventions_agree_when_nothing_lies_outside_the_top_20() -> None:
    p = distributions(10, 15)
    path = path_of("x" * 10, entropy=scipy.stats.entropy(p, axis=1), **top20(p))
    scores = [score(m(), path)[0] for m in (Entropy, EntropyTop20Renorm, EntropyTop20Trunc)]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-6)


def test_only_the_truncated_entropy_takes_a_flat_distribution_for_a_sure_one() -> None:
    flat, coin = np.full((1, 1000), 1e-3), np.array([[0.5, 0.5]])
    paths = [path_of("x", i, **top20(p)) for i, p in enumerate((flat, coin))]
    assert score(EntropyTop20Renorm(), *paths) == pytest.approx([-np.log(20), -np.log(2)])
    assert score(EntropyTop20Trunc(), *paths) == pytest.approx([-0.02 * np.log(1000), -np.log(2)])


def test_adadec_counts_the_tokens_above_the_threshold() -> None:
    path = path_of("abcde", entropy=np.array([0.0, 0.5, 0.75, 1.0, 2.0]))
    assert score(AdaDec(), path)[0] == pytest.approx(-3 / 5)
    assert score(AdaDec(threshold=0.5), path)[0] == pytest.approx(-3 / 5)  # above, not at
    assert score(AdaDec(threshold=1.321), path)[0] == pytest.approx(-1 / 5)
    assert score(AdaDec(threshold=9.0), path)[0] == 0


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_adadec_refuses_a_threshold_below_zero(value: float) -> None:
    with pytest.raises(ConfigError, match=r"'threshold' .* AdaDec .* Got"):
        AdaDec(threshold=value)


@pytest.mark.parametrize(
    "method",
    [AdaDec, EntropyTop20Renorm, EntropyTop20Trunc, RPC, *STEP_METHODS],
)
def test_an_empty_prefix_cannot_be_scored_and_the_reason_is_noted(method: type) -> None:
    names = ("logprobs", "entropy", "top_mass", "top_entropy")
    stats = {name: np.zeros(0) for name in names}
    group = group_of([path_of("", 7, **stats)], method)
    instance = method()
    if method in STEP_METHODS:
        backend = FakeBackend()
        instance.setup(Context(model_name="fake", backend=backend))
    assert np.isnan(instance.score(group)).all()
    assert set(group.unscored) == {7}


# --- steps ------------------------------------------------------------------------------------


def spans_of(text: str, mark: str = "") -> list[tuple[int, int, bool]]:
    found = step_spans(ids_of(text), token_reader(FakeBackend().decode), mark)
    return [(span.start, span.stop, span.complete) for span in found]


def test_spans_by_hand() -> None:
    assert spans_of("ab\ncd\ne") == [(0, 3, True), (3, 6, True), (6, 7, False)]
    assert spans_of("ab\ncd\n") == [(0, 3, True), (3, 6, True)]
    assert spans_of("a\nb\n\nc") == [(0, 5, True), (5, 6, False)]  # blank lines, once there is one
    assert spans_of("a\n\n\nb", "\\n") == [(0, 2, True), (4, 5, False)]  # blank steps left out
    assert spans_of("\n \na") == [(3, 4, False)]
    assert spans_of("a;b", ";") == [(0, 2, True), (2, 3, False)]
    assert spans_of("") == spans_of("\n\n") == []


def test_spans_of_tokens_of_several_characters() -> None:
    text = ["So", " x", ".\n\n", "Then", " y\n", "\n", "", "z"]
    found = step_spans(np.arange(8), text.__getitem__)
    assert [(s.start, s.stop) for s in found] == [(0, 3), (3, 6), (7, 8)]


@pytest.mark.parametrize("mark", ["\n", "\n\n"])
def test_spans_hold_the_texts_of_the_steps(mark: str) -> None:
    rng = np.random.default_rng(4)
    pieces = np.array(["a", "b.", " ", "\n", "\n\n", ".\n", "c"])
    for _ in range(200):
        words = rng.choice(pieces, rng.integers(1, 15))
        found = step_spans(np.arange(len(words)), words.__getitem__, mark)
        steps = ["".join(words[span.start : span.stop]).strip() for span in found]
        # A token may hold the end of one step and, for "\n" in "\n\n", a blank one.
        assert steps == split_steps("".join(words), mark)


def test_each_token_is_decoded_once() -> None:
    calls = []
    read = token_reader(lambda ids: calls.append(ids.tolist()) or "a")
    step_spans(np.array([1, 2, 1, 1, 2]), read)
    assert calls == [[1], [2]]


def test_think_just_enough_averages_the_entropy_of_the_first_steps() -> None:
    p = distributions(7, 50)
    entropies = scipy.stats.entropy(p[:, :20], axis=1)
    path = path_of("ab\nc\nde", **top20(p))
    for steps, n in ((1, 3), (2, 5), (3, 7), (99, 7)):
        found = score(ThinkJustEnough(steps=steps), path)[0]
        assert found == pytest.approx(-entropies[:n].mean(), rel=1e-6)
    found = score(ThinkJustEnough(mark="c"), path)[0]
    assert found == pytest.approx(-entropies[:4].mean(), rel=1e-6)
    with pytest.raises(ConfigError, match=r"'steps' .* ThinkJustEnough .* Got 0"):
        ThinkJustEnough(steps=0)


def test_first_token_surprisal_by_hand() -> None:
    path = path_of("ab\n\nc\n\nd", logprobs=-np.array([1, 9, 9, 9, 2, 9, 9, 6]))
    assert score(FirstTokenSurprisal(), path)[0] == pytest.approx((1 + 2 + 6) / 3)
    # With single line breaks the blank lines between the steps are no steps.
    assert score(FirstTokenSurprisal(mark="\\n"), path)[0] == pytest.approx(3)
    control = FirstTokenSurprisal(keep=first_token_surprisal.Keep.expected)
    assert score(control, path)[0] == pytest.approx(-3)


def test_step_entropy_by_hand() -> None:
    entropy = np.array([1, 2, 3, 4, 5, 6, 7])
    cut, ended = (path_of("ab\nc\nde", i, bool(i), entropy=entropy) for i in (0, 1))
    # Steps "ab\n", "c\n" and "de"; the last one counts when the path has ended.
    scores = score(StepEntropy(), cut, ended)
    assert scores == pytest.approx([(6 + 9) / 2, (6 + 9 + 13) / 3])
    low = score(StepEntropy(keep=step_entropy.Keep.low), cut, ended)
    assert low.tolist() == (-scores).tolist()
    alone = path_of("abc", ended=False, entropy=entropy[:3])
    assert score(StepEntropy(), alone)[0] == pytest.approx(6)  # the only step there is


def test_the_end_token_is_no_step() -> None:
    [span] = step_spans(np.append(ids_of("a\n"), END), token_reader(FakeBackend().decode))
    assert (span.start, span.stop) == (0, 2)


# --- RPC --------------------------------------------------------------------------------------


def two_humps(seed: int, n: int = 64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    high = weibull_min.rvs(12, scale=0.8, size=n, random_state=rng)
    low = weibull_min.rvs(5, scale=0.4, size=n, random_state=rng)
    return np.clip(np.where(rng.random(n) < 0.6, high, low), 1e-6, 1)


def rpc_paths(c: np.ndarray) -> list[Trace]:
    """Paths of two tokens with mean probability c, the logarithms uneven."""
    return [path_of("ab", i, logprobs=np.log(x) * np.array([0.5, 1.5])) for i, x in enumerate(c)]


def scipy_loss(parameters: np.ndarray, c: np.ndarray) -> float:
    w, k1, l1, k2, l2 = parameters
    density = w * weibull_min.pdf(c, k1, scale=l1) + (1 - w) * weibull_min.pdf(c, k2, scale=l2)
    return -np.log(density).sum()


def test_log_density_agrees_with_scipy() -> None:
    c = np.linspace(0.01, 1, 50)
    for k, scale in ((0.5, 1.0), (1.0, 0.3), (12.0, 0.8), (40.0, 0.96)):
        expected = weibull_min.logpdf(c, k, scale=scale)
        np.testing.assert_allclose(log_weibull(c, k, scale), expected, rtol=1e-9, atol=1e-9)
    assert np.isfinite(log_weibull(np.array([1.0]), 900.0, 0.01)).all()  # scipy has -inf here


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_rpc_fit_is_a_maximum_of_the_likelihood(seed: int) -> None:
    c = two_humps(seed)
    fitted = fit_mixture(np.sort(c))
    w, k1, l1, k2, l2 = fitted
    assert weibull_min.mean(k1, scale=l1) > weibull_min.mean(k2, scale=l2)
    assert 0.2 < w < 0.8
    steps = np.eye(5) * 1e-5
    slope = [(scipy_loss(fitted + s, c) - scipy_loss(fitted - s, c)) / 2e-5 for s in steps]
    assert np.abs(slope).max() < 0.05  # of a loss of about 30, over parameters of 0.4 to 13
    rng = np.random.default_rng(seed)
    for _ in range(5):  # no other start finds a better one
        start = [rng.uniform(0.3, 0.7), *rng.uniform([2, 0.3, 2, 0.3], [15, 1, 15, 1])]
        other = scipy.optimize.minimize(
            lambda p: -np.logaddexp(*log_components(c, p)).sum(), start, bounds=BOUNDS
        )
        assert scipy_loss(fitted, c) <= other.fun + 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_rpc_scores_agree_with_a_second_implementation(seed: int) -> None:
    c = two_humps(seed)
    w, k1, l1, k2, l2 = scipy.optimize.minimize(
        scipy_loss, START, args=(np.sort(c),), bounds=[(0.2, 0.8), *[(0.01, None)] * 4]
    ).x
    if weibull_min.mean(k1, scale=l1) < weibull_min.mean(k2, scale=l2):
        w, k1, l1, k2, l2 = 1 - w, k2, l2, k1, l1
    expected = []
    for x in c:
        one = w * weibull_min.pdf(x, k1, scale=l1)
        two = (1 - w) * weibull_min.pdf(x, k2, scale=l2)
        pruned = two / (one + two) > one / (one + two) and x < c.mean()
        expected.append(x - 1 if pruned else x)
    scores = score(RPC(), *rpc_paths(c))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert 10 < np.sum(scores < 0) < 50
    assert scores[scores < 0].max() < scores[scores > 0].min()


def test_rpc_vote_sums_the_survivors_probabilities() -> None:
    c = two_humps(0)
    scores = score(RPC(), *rpc_paths(c))
    codes = np.random.default_rng(1).integers(-1, 3, len(c))
    sums = [sum(c[(codes == answer) & (scores > 0)]) for answer in range(3)]
    win = vote(Aggregator.score_sum, codes[None], np.ones((1, len(c)), bool), scores[None])
    assert win[0].tolist() == [float(s == max(sums)) for s in sums]


def test_rpc_does_not_depend_on_the_order_and_leaves_the_unscored_out() -> None:
    c = two_humps(1)
    traces = rpc_paths(c)
    scores = score(RPC(), *traces)
    order = np.random.default_rng(0).permutation(len(c))
    assert score(RPC(), *[traces[i] for i in order]).tolist() == scores[order].tolist()
    empty = path_of("", 99, logprobs=np.zeros(0))
    assert score(RPC(), *traces, empty)[:-1].tolist() == scores.tolist()


@pytest.mark.parametrize("c", [[0.5], [0.5] * 8, [1.0, 1.0]])
def test_rpc_prunes_nothing_when_all_paths_are_equally_likely(c: list[float]) -> None:
    assert score(RPC(), *rpc_paths(np.array(c))) == pytest.approx(c)


def test_rpc_survives_extreme_probabilities() -> None:
    scores = score(RPC(), *rpc_paths(np.array([1e-30, 1e-6, 0.3, 1.0, 1.0, 1.0])))
    assert np.isfinite(scores).all()
    assert (np.diff(scores) >= 0).all()
    assert scores[-1] == 1.0

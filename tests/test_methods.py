"""The formulas of the methods, against hand calculation, second implementations and other code.

That every method keeps the contract is checked here too, by the conformance suite, for each file
in `methods/`; what the suite itself detects is tested in `test_conformance.py`.
"""

from __future__ import annotations

from pathlib import Path as FilePath

import numpy as np
import pytest
import scipy.stats
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import prunebench.methods
from prunebench import samples
from prunebench.conformance import check_method, load_method_file
from prunebench.errors import ConfigError
from prunebench.method import PathGroup, SignalGenerator
from prunebench.methods.deepconf import DeepConf, Measure
from prunebench.methods.entropy import Entropy
from prunebench.methods.mean_logprob import MeanLogprob
from prunebench.methods.oracle import Oracle
from prunebench.methods.random import Random
from prunebench.methods.self_certainty import SelfCertainty
from prunebench.methods.slim_sc import Keep, Similarity, SlimSC
from prunebench.methods.step_oracle import StepOracle
from prunebench.types import Problem, TokenStats, Trace, view

FILES = sorted(
    file
    for folder in prunebench.methods.__path__
    for file in FilePath(folder).glob("*.py")
    if not file.stem.startswith("_")
)
PROBLEM = Problem(id="p", question="1+1", answer="2")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    """Tiny products are slower on many threads, most of all beside other work."""
    import torch

    torch.set_num_threads(1)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_method_keeps_the_contract(file: FilePath) -> None:
    faults = check_method(load_method_file(file), name=file.stem)
    assert [f"{fault.check}: {fault.message}" for fault in faults] == []


def one_path(n_tokens: int, method: type[SignalGenerator], **stats: object) -> PathGroup:
    """A group of one path of `n_tokens` tokens, all before the checkpoint."""
    return group_of([_trace(n_tokens, **stats)], method)


def group_of(
    traces: list[Trace], method: type[SignalGenerator], prefix_length: int = 4096, seed: int = 0
) -> PathGroup:
    return view(
        PROBLEM,
        np.zeros(1, np.int32),
        traces,
        prefix_length,
        decode=lambda ids: "",
        granted=method.requires,
        seed=seed,
        check_steps=lambda question, text: "wrong" not in text,
    )


def _trace(n: int, *, index: int = 0, text: str = "", correct: bool = False, **stats) -> Trace:
    return Trace(
        index=index,
        token_ids=np.zeros(n, np.int32),
        text=text,
        stats=TokenStats(**stats),
        stopped=True,
        answer=None,
        correct=correct,
    )


def texts(*lines: str, first_index: int = 0) -> list[Trace]:
    return [_trace(3, index=first_index + i, text=line) for i, line in enumerate(lines)]


# --- token statistics -------------------------------------------------------------------------


def test_mean_logprob_is_minus_log_perplexity_of_the_prefix() -> None:
    probabilities = np.array([0.5, 0.25, 0.5, 1.0], np.float32)
    [score] = MeanLogprob().score(one_path(4, MeanLogprob, logprobs=np.log(probabilities)))
    assert score == pytest.approx(-np.log(2))  # perplexity (2 * 4 * 2 * 1) ** (1/4) = 2


def test_entropy_and_self_certainty_agree_with_scipy_on_explicit_distributions() -> None:
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.full(50, 0.3), size=20)  # (tokens, vocabulary), peaked and flat ones
    p = np.maximum(p, 1e-12) / np.maximum(p, 1e-12).sum(axis=1, keepdims=True)

    own_entropy = scipy.stats.entropy(p, axis=1).astype(np.float32)
    [score] = Entropy().score(one_path(20, Entropy, entropy=own_entropy))
    assert score == pytest.approx(-np.mean([-(q * np.log(q)).sum() for q in p]), rel=1e-6)

    sums = np.log(p).sum(axis=1).astype(np.float32)
    group = one_path(20, SelfCertainty, sum_logprobs=sums, vocab_size=50)
    kl = scipy.stats.entropy(np.full_like(p, 1 / 50), p, axis=1)  # KL(U || P_t)
    assert SelfCertainty().score(group)[0] == pytest.approx(kl.mean(), rel=1e-6)


def test_self_certainty_of_uniform_distributions_is_zero() -> None:
    sums = np.full(5, -32 * np.log(32), np.float32)
    group = one_path(5, SelfCertainty, sum_logprobs=sums, vocab_size=32)
    assert SelfCertainty().score(group)[0] == pytest.approx(0, abs=1e-6)


def test_self_certainty_of_a_masked_token_is_infinite() -> None:
    sums = np.array([-90.0, -np.inf], np.float32)
    group = one_path(2, SelfCertainty, sum_logprobs=sums, vocab_size=32)
    assert SelfCertainty().score(group)[0] == np.inf


@pytest.mark.parametrize(
    ("method", "stats"),
    [
        (MeanLogprob(), {"logprobs": np.zeros(0, np.float32)}),
        (Entropy(), {"entropy": np.zeros(0, np.float32)}),
        (SelfCertainty(), {"sum_logprobs": np.zeros(0, np.float32), "vocab_size": 9}),
        *((DeepConf(measure=m), {"top_logprobs": np.zeros(0, np.float32)}) for m in Measure),
    ],
)
def test_an_empty_prefix_cannot_be_scored(method: SignalGenerator, stats: dict) -> None:
    assert np.isnan(method.score(one_path(0, type(method), **stats))).all()


# --- DeepConf ---------------------------------------------------------------------------------
# Reference values: the public package deepconf 0.1.0 (PyPI), `deepconf/utils.py` loaded by path,
# on `confidences(T)`. Columns: calculate_mean_confidence, calculate_bottom_window_confidence with
# bottom_percent=-1 (the minimum) and with 0.1, calculate_tail_confidence, and the minimum of
# compute_least_grouped, which rounds to 3 decimals. The package rounds token confidences to 3
# decimals; the input already has 3.
PACKAGE = {
    # (T, window): (mean, lowest group, bottom 10%, tail, rounded lowest group)
    (300, 16): (3.17915, 3.0116874999999994, 3.025419642857142, 3.2651875, 3.012),
    (300, 64): (3.17915, 3.035515625, 3.038586956521739, 3.264421875, 3.036),
    (300, 300): (3.17915, 3.17915, 3.17915, 3.17915, 3.179),
    (300, 2048): (3.17915, 3.17915, 3.17915, 3.17915, 3.17915),
    (25, 16): (3.5553200000000005, 3.032187500000001, 3.032187500000001, 3.1251875, 3.032),
    (1, 16): (3.0, 3.0, 3.0, 3.0, 3.0),
}


def confidences(n: int) -> np.ndarray:
    t = np.arange(n)
    return np.round(3 + 2 * np.sin(0.37 * t) + 0.05 * (t % 7), 3)


@pytest.mark.parametrize(("n", "window"), PACKAGE)
def test_deepconf_agrees_with_the_authors_package(n: int, window: int) -> None:
    mean, lowest, bottom, tail, rounded = PACKAGE[n, window]
    group = one_path(n, DeepConf, top_logprobs=-confidences(n).astype(np.float32))

    def score(measure: Measure) -> float:
        return DeepConf(measure=measure, window=window).score(group)[0]

    assert score(Measure.mean) == pytest.approx(mean, rel=1e-6)
    assert score(Measure.lowest_group) == pytest.approx(lowest, rel=1e-6)
    assert score(Measure.bottom_10) == pytest.approx(bottom, rel=1e-6)
    assert score(Measure.tail) == pytest.approx(tail, rel=1e-6)
    assert score(Measure.lowest_group) == pytest.approx(rounded, abs=5.1e-4)


def test_deepconf_measures_by_hand() -> None:
    top = -np.array([4, 1, 3, 8, 6], np.float32)  # groups of 2: 2.5, 2, 5.5, 7
    group = one_path(5, DeepConf, top_logprobs=top)
    scores = {m.name: DeepConf(measure=m, window=2).score(group)[0] for m in Measure}
    assert scores == {"mean": 4.4, "lowest_group": 2.0, "bottom_10": 2.0, "tail": 7.0}


def test_deepconf_bottom_10_averages_a_tenth_of_the_groups() -> None:
    group = one_path(20, DeepConf, top_logprobs=-np.arange(20, dtype=np.float32))
    assert DeepConf(measure=Measure.bottom_10, window=1).score(group)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("window", [0, -3])
def test_deepconf_refuses_a_window_without_a_token(window: int) -> None:
    with pytest.raises(ConfigError, match=rf"'window' .* DeepConf .* Got {window}"):
        DeepConf(window=window)


def test_options_are_typed_by_the_lower_case_names_of_the_measures() -> None:
    schema = OmegaConf.structured(DeepConf)
    options = OmegaConf.merge(schema, OmegaConf.from_dotlist(["measure=tail", "window=64"]))
    assert OmegaConf.to_object(options) == DeepConf(measure=Measure.tail, window=64)
    with pytest.raises(OmegaConfBaseException, match="lowest_group"):
        OmegaConf.merge(schema, OmegaConf.from_dotlist(["measure=tial"]))


# --- Slim-SC ----------------------------------------------------------------------------------


def test_slim_sc_by_hand() -> None:
    group = group_of(texts("a b c", "A B d", "x y", "b\na c"), SlimSC)
    # J(0,1) = 2/4, J(0,3) = 1, J(1,3) = 2/4, the third shares nothing
    assert SlimSC().score(group) == pytest.approx([-1.0, -0.5, 0.0, -1.0])
    mean = SlimSC(similarity=Similarity.mean).score(group)
    assert mean == pytest.approx([-0.5, -1 / 3, 0.0, -0.5])


@pytest.mark.parametrize("similarity", Similarity)
def test_slim_sc_agrees_with_sets(similarity: Similarity) -> None:
    rng = np.random.default_rng(5)
    lines = [" ".join(rng.choice(list("abcdefgh"), rng.integers(1, 7))) for _ in range(20)]
    expected = []
    for i, line in enumerate(lines):
        own = set(line.split())
        others = [set(other.split()) for j, other in enumerate(lines) if j != i]
        shared = [len(own & other) / len(own | other) for other in others]
        expected.append(-max(shared) if similarity is Similarity.max else -np.mean(shared))
    scores = SlimSC(similarity=similarity).score(group_of(texts(*lines), SlimSC))
    assert scores == pytest.approx(expected)


def test_slim_sc_control_reverses_the_ranking() -> None:
    group = group_of(texts("a b", "a c", "d"), SlimSC)
    assert np.array_equal(SlimSC(keep=Keep.similar).score(group), -SlimSC().score(group))


def test_slim_sc_scores_a_path_without_company_zero_and_a_wordless_one_nan() -> None:
    assert SlimSC().score(group_of(texts("a b"), SlimSC)).tolist() == [0.0]
    scores = SlimSC().score(group_of(texts("a b", "", " \n", "c"), SlimSC))
    assert np.array_equal(scores, [0.0, np.nan, np.nan, 0.0], equal_nan=True)


# --- controls ---------------------------------------------------------------------------------


def test_oracles_score_the_outcome_and_the_finished_steps() -> None:
    traces = [
        _trace(2, index=0, text="right", correct=False),
        _trace(2, index=1, text="wrong", correct=True),
    ]
    assert Oracle().score(group_of(traces, Oracle)).tolist() == [0.0, 1.0]
    assert StepOracle().score(group_of(traces, StepOracle)).tolist() == [1.0, 0.0]


def test_random_scores_belong_to_paths_and_change_with_the_seed() -> None:
    traces = texts(*("a" for _ in range(400)))
    scores = Random().score(group_of(traces, Random))
    assert np.array_equal(Random().score(group_of(traces[7:9], Random)), scores[7:9])
    other = Random().score(group_of(traces, Random, seed=1))
    # Independent uniform numbers: |correlation| and both deviations from 1/2 have a standard
    # deviation of at most 0.05, so a false alarm is a matter of 1 in 10^9; the seeds are fixed.
    assert abs(np.corrcoef(scores, other)[0, 1]) < 0.3
    assert scores.mean() == pytest.approx(0.5, abs=0.1)
    assert 0 <= scores.min() < 0.05
    assert 0.95 < scores.max() < 1


def test_sampled_statistics_are_those_of_real_distributions() -> None:
    """The made-up paths obey what holds for every distribution, so methods see nothing absurd."""
    for trace in samples.many():
        stats = trace.stats
        assert stats.logprobs is not None
        assert stats.sum_logprobs is not None
        assert stats.entropy is not None
        assert stats.top_logprobs is not None
        assert (stats.logprobs <= 0).all()
        assert (stats.entropy <= np.log(stats.vocab_size) + 1e-5).all()
        assert (stats.sum_logprobs / stats.vocab_size <= stats.top_logprobs).all()

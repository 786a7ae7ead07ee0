"""Bootstrap, paired tests and Holm against scipy, closed forms and simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from prunebench import stats

NAN = float("nan")


@pytest.mark.parametrize("seed", range(3))
def test_interval_over_problems_agrees_with_scipy(seed: int):
    values = np.random.default_rng(seed).beta(2, 3, size=40)
    ours = stats.estimate(values, n_resamples=20_000, seed=seed)
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=seed
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    width = theirs.high - theirs.low
    assert ours.lo == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.hi == pytest.approx(theirs.high, abs=0.03 * width)


def test_two_stages_have_the_variance_of_their_closed_form():
    # Var = (variance over problems of the means + mean variance over subsets / R) / P.
    rng = np.random.default_rng(5)
    values = 0.3 * rng.normal(size=(12, 1)) + rng.normal(size=(12, 15))
    resampled = stats._resampled_means(values, 20_000, 0)
    over_problems = values.mean(axis=1).var()
    over_subsets = values.var(axis=1).mean() / 15
    assert over_subsets > 0.2 * over_problems  # both stages matter in this test
    assert resampled.var() == pytest.approx((over_problems + over_subsets) / 12, rel=0.05)
    assert resampled.mean() == pytest.approx(values.mean(), abs=0.01)


def test_two_stages_agree_with_a_loop():
    rng = np.random.default_rng(2)
    values = rng.random((6, 4)) * np.arange(1, 7)[:, None]
    slow = [
        np.mean([rng.choice(values[p], size=4).mean() for p in rng.integers(6, size=6)])
        for _ in range(4000)
    ]
    fast = stats._resampled_means(values, 20_000, 1)
    quantiles = [0.025, 0.25, 0.5, 0.75, 0.975]
    np.testing.assert_allclose(
        np.quantile(fast, quantiles), np.quantile(slow, quantiles), atol=0.08
    )


def test_missing_numbers_are_left_out():
    values = np.array([[1.0, NAN], [3.0, 5.0], [NAN, NAN]])
    assert stats.estimate(values).mean == 2.5
    lo, hi = stats.estimate(values).lo, stats.estimate(values).hi
    assert 1.0 <= lo <= 2.5 <= hi <= 5.0


def test_too_little_to_know():
    one = stats.estimate(np.array([0.25]))
    assert one.mean == 0.25
    assert math.isnan(one.lo)
    assert math.isnan(one.hi)
    assert math.isnan(stats.estimate(np.array([NAN, NAN])).mean)
    assert stats.paired_difference(np.array([1.0]), np.array([0.0])).p == 1.0


def test_same_seed_same_interval_and_input_untouched():
    values = np.random.default_rng(0).random((8, 5))
    before = values.copy()
    assert stats.estimate(values, seed=1) == stats.estimate(values, seed=1)
    assert stats.estimate(values, seed=1) != stats.estimate(values, seed=2)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("seed", range(3))
def test_paired_p_value_agrees_with_the_t_test(seed: int):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=60)
    b = a + 0.25 + rng.normal(size=60)
    ours = stats.paired_difference(a, b, n_resamples=20_000)
    assert ours.p == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue, abs=0.02)
    assert ours.mean == pytest.approx((a - b).mean())
    assert ours.lo < ours.mean < ours.hi


def test_p_values_are_calibrated_when_there_is_no_difference():
    rng = np.random.default_rng(0)
    p = [stats.paired_difference(rng.normal(size=32), np.zeros(32)).p for _ in range(300)]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.10
    assert 0.4 <= np.mean(np.array(p) < 0.5) <= 0.6


def test_equal_rows_do_not_differ():
    values = np.random.default_rng(0).random((10, 3))
    same = stats.paired_difference(values, values)
    assert (same.mean, same.p) == (0.0, 1.0)


def test_few_problems_cannot_support_a_small_p_value():
    # Two problems that agree leave the bootstrap no spread at all.
    assert stats.paired_difference(np.array([0.9, 0.8]), np.array([0.1, 0.0])).p == 0.5
    # Of many problems only three differ: 2^(1-3).
    a = np.zeros(40)
    a[:3] = 1.0
    assert stats.paired_difference(a, np.zeros(40)).p >= 0.25


def test_pairing_falls_back_on_problem_means_for_different_numbers_of_subsets():
    a, b = np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([[1.0], [1.0]])
    assert stats.paired_difference(a, b).mean == 1.0


def test_holm_by_hand():
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 -> at least 0.06, 0.9 * 1.
    adjusted = stats.holm([0.03, 0.01, 0.9, 0.02])
    np.testing.assert_allclose(adjusted, [0.06, 0.04, 0.9, 0.06])
    assert stats.holm([0.6, 0.8]).tolist() == [1.0, 1.0]
    assert stats.holm([]).shape == (0,)


def test_the_best_and_those_tied_with_it():
    rng = np.random.default_rng(0)
    base = rng.random((40, 20))
    rows = [base, base + 0.3, base + 0.3 + 0.05 * rng.normal(size=(40, 1)) - 0.001, base + 0.9]
    result = stats.compare_with_best(rows, may_be_best=[True, True, True, False])
    assert [c.best for c in result] == [False, result[1].best, result[2].best, False]
    assert sum(c.best for c in result) == 1
    assert [c.tied for c in result] == [False, True, True, True]
    assert result[0].difference is not None
    assert result[0].difference.mean == pytest.approx(-0.3, abs=0.02)
    assert result[0].p_holm < 0.01
    best = next(c for c in result if c.best)
    assert best.difference is None
    assert math.isnan(best.p_holm)


def test_a_row_that_failed_on_hard_problems_cannot_be_the_best():
    whole = np.array([[1.0], [0.0], [0.0], [0.0]])
    partial = np.array([[0.9], [NAN], [NAN], [NAN]])
    result = stats.compare_with_best([whole, partial])
    assert result[0].best
    assert result[1].difference is not None
    assert result[1].difference.mean == pytest.approx(-0.1)


def test_without_candidates_nothing_is_marked():
    empty = np.full((3, 1), NAN)
    for result in (
        stats.compare_with_best([]),
        stats.compare_with_best([empty, empty]),
        stats.compare_with_best([np.ones((3, 1))], may_be_best=[False]),
    ):
        assert not any(c.best or c.tied for c in result)


# ----------------------------------------------------------------- functions of several means


def headroom(method, random, oracle):
    return (method - random) / (oracle - random)


def test_a_function_of_means_agrees_with_scipy_and_with_the_delta_method():
    rng = np.random.default_rng(0)
    full = rng.gamma(20, 10, size=60)
    tokens = full * rng.beta(8, 12, size=60)
    ours = stats.ratio_estimate(tokens, full, lambda r: 100 * (1 - r), n_resamples=20_000)
    theirs = scipy_stats.bootstrap(
        (tokens, full),
        lambda t, f, axis: 100 * (1 - t.mean(axis) / f.mean(axis)),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=1,
    ).confidence_interval
    ratio = tokens.mean() / full.mean()
    width = theirs.high - theirs.low
    assert ours.mean == pytest.approx(100 * (1 - ratio))
    assert (ours.lo, ours.hi) == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)
    error = 100 * (tokens - ratio * full).std() / full.mean() / math.sqrt(60)
    assert ours.hi - ours.lo == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_a_function_of_one_mean_is_the_plain_estimate():
    values = np.random.default_rng(1).random((9, 7))
    values[2, 3] = values[5] = NAN
    same, plain = stats.estimate_of(lambda m: m, values, seed=3), stats.estimate(values, seed=3)
    assert (same.mean, same.lo, same.hi) == pytest.approx((plain.mean, plain.lo, plain.hi))


def test_arrays_are_resampled_together():
    rng = np.random.default_rng(2)
    hard = rng.random((20, 1))  # what a problem does to one row it does to the others
    random = hard + 0.01 * rng.random((20, 8))
    found = stats.estimate_of(headroom, random + 0.1, random, random + 0.2)
    assert found.mean == pytest.approx(0.5)
    assert (found.lo, found.hi) == pytest.approx((0.5, 0.5))
    # One number per problem stands beside many subsets; unlike numbers of subsets by their means.
    mixed = stats.estimate_of(lambda a, b: a - b, random, random.mean(axis=1))
    assert mixed.mean == pytest.approx(0)
    assert mixed.hi < 0.01
    assert stats.estimate_of(lambda a, b: a - b, random, random[:, :3]).hi < 0.01


def test_a_function_that_is_not_defined_is_missing():
    nothing = stats.estimate_of(headroom, np.ones(5), np.ones(5), np.ones(5))
    assert math.isnan(nothing.mean)
    assert math.isnan(nothing.lo)
    # The denominator is 0 in every resample without the one problem that has some.
    rare = np.array([1.0, 0, 0, 0, 0, 0])
    some = stats.ratio_estimate(rare, rare)
    assert some.mean == 1.0
    assert math.isnan(some.lo)
    assert math.isnan(stats.ratio_estimate(np.array([1.0]), np.array([2.0])).lo)
    shared = stats.estimate_of(lambda a, b: a + b, np.array([1.0, NAN, 3]), np.array([1.0, 1, NAN]))
    assert shared.mean == 2.0
    assert math.isnan(stats.ratio_estimate(np.array([NAN]), np.array([1.0])).mean)


# ----------------------------------------------------------------------------------- McNemar


def test_mcnemar_by_hand():
    a = np.array([1, 1, 1, 1, 1, 0, 1, 0, 1.0])
    b = np.array([0, 0, 0, 0, 0, 1, 1, 0, NAN])
    found = stats.mcnemar(a, b)
    # Six problems differ, five of them one way: 2 (C(6,0) + C(6,1)) / 2^6.
    assert (found.n10, found.n01) == (5, 1)
    assert found.p == pytest.approx(14 / 64)
    assert found.p == pytest.approx(scipy_stats.binomtest(1, 6).pvalue)
    assert stats.mcnemar(b, a).n01 == 5
    assert stats.mcnemar(a, a).p == 1.0


def test_mcnemar_splits_fractional_credits_at_one_half():
    a = np.array([[1, 0.2, 0.5], [0.5, 0.5, 0.5], [0.1, 0.2, 0.9], [0.1, 0.4, NAN]])
    b = np.array([[0.0], [0.0], [1.0], [0.75]])
    found = stats.mcnemar(a, b)  # means 0.57, 0.5 (neither), 0.4, 0.25
    assert (found.n10, found.n01) == (1, 2)
    rounded = np.full((1, 3), 0.5 + 1e-12)
    assert stats.mcnemar(rounded, np.zeros((1, 1))).n10 == 0


def test_ties_that_were_stored_in_single_precision_are_ties():
    credits = np.array([[1 / 3, 2 / 3], [0.1, 0.9], [0.3, 0.7], [1.0, 1.0]], dtype=np.float32)
    assert (np.abs(credits[:3].astype(float).mean(axis=1) - 0.5) > 1e-9).any()
    found = stats.mcnemar(credits, np.zeros(4))
    assert (found.n10, found.n01) == (1, 0)


def test_mcnemar_does_not_cry_wolf():
    rng = np.random.default_rng(0)
    p = [stats.mcnemar(rng.random(40) < 0.6, rng.random(40) < 0.6).p < 0.05 for _ in range(400)]
    assert np.mean(p) <= 0.06


# ------------------------------------------------------------------- what a sample can show


@pytest.mark.parametrize("n_comparisons", [1, 5])
def test_the_detectable_difference_is_detected_four_times_in_five(n_comparisons: int):
    rng = np.random.default_rng(4)
    n, sd = 24, 0.3
    deltas = rng.normal(scale=sd, size=(400, n))
    found = np.array(
        [
            stats.minimal_detectable_difference(d, np.zeros(n), n_comparisons=n_comparisons)
            for d in deltas
        ]
    )
    truth = found.mean()
    shifted = rng.normal(loc=truth, scale=sd, size=(20_000, n))
    p = scipy_stats.ttest_1samp(shifted, 0, axis=1).pvalue
    assert (p < 0.05 / n_comparisons).mean() == pytest.approx(0.8, abs=0.025)


def test_the_detectable_difference_by_hand():
    a = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # Differences 1, 0, 0.5, 0.5; sd 0.408, 3 degrees of freedom: (3.182 + 0.978) 0.408 / 2.
    found = stats.minimal_detectable_difference(a, np.zeros((4, 1)))
    assert found == pytest.approx((3.1824 + 0.9785) * np.sqrt(1 / 6) / 2, rel=1e-3)
    assert math.isnan(stats.minimal_detectable_difference(a[:1], np.zeros((1, 1))))
    assert math.isnan(stats.minimal_detectable_difference(a, a))

"""Measures against hand calculations, pairwise loops and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from prunebench import metrics

NAN = float("nan")


def slow_auroc(scores: list[float], labels: list[bool]) -> float:
    def level(score: float) -> tuple[int, float]:
        return (0, 0.0) if score != score else (1, score)

    right = [level(s) for s, y in zip(scores, labels, strict=True) if y]
    wrong = [level(s) for s, y in zip(scores, labels, strict=True) if not y]
    if not right or not wrong:
        return NAN
    wins = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
    return wins / (len(right) * len(wrong))


def test_tokens_by_hand():
    # L = 4: the lengths 2, 4, 10, 7 cost 2 + 4 + 4 + 4 before the checkpoint, 0, 0, 6, 3 after it.
    lengths = np.array([[2, 4, 10, 7]])
    keep = np.array([[True, False, False, True]])
    assert metrics.generator_tokens(lengths, keep, 4).tolist() == [14 + 3]
    assert metrics.generator_tokens(lengths, np.ones((1, 4), dtype=bool), 4).tolist() == [23]
    assert metrics.generator_tokens(lengths, np.full((1, 4), 0.5), 4).tolist() == [14 + 4.5]


def test_accuracy_and_killed_by_hand():
    correct = np.array([[True, True, False, False], [False] * 4])
    keep = np.array([[True, False, True, False], [True, True, True, False]])
    assert metrics.accuracy_of_kept(correct, keep).tolist() == [0.5, 0.0]
    assert metrics.killed_correct(correct, keep).tolist() == [1, 0]


def test_percent_saved():
    assert metrics.percent_saved(25.0, 100.0) == 75.0
    assert metrics.percent_saved(150.0, 100.0) == -50.0
    assert math.isnan(metrics.percent_saved(0.0, 0.0))


def test_headroom():
    assert metrics.headroom_recovered(0.5, 0.4, 0.8) == pytest.approx(0.25)
    assert metrics.headroom_recovered(0.3, 0.4, 0.8) == pytest.approx(-0.25)
    assert math.isnan(metrics.headroom_recovered(0.5, 0.5, 0.5))


def test_auroc_by_hand():
    # Pairs (right, wrong): 3>1, 3>2, 2>1, 2=2, so (3 + 0.5) / 4.
    assert metrics.auroc(np.array([3.0, 2.0, 1.0, 2.0]), np.array([1, 1, 0, 0], bool)) == 0.875
    assert metrics.auroc(np.zeros(4), np.array([1, 1, 0, 0], bool)) == 0.5
    assert math.isnan(metrics.auroc(np.arange(3.0), np.ones(3, bool)))


def test_nan_is_the_lowest_score_for_the_auroc():
    labels = np.array([True, False])
    assert metrics.auroc(np.array([NAN, -np.inf]), labels) == 0.0
    assert metrics.auroc(np.array([-np.inf, NAN]), labels) == 1.0
    assert metrics.auroc(np.array([NAN, NAN]), labels) == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_auroc_agrees_with_all_pairs_and_with_scipy(seed: int):
    rng = np.random.default_rng(seed)
    scores = rng.choice([NAN, -np.inf, -1.0, 0.0, 0.5, 2.0, np.inf], size=(30, 11))
    labels = rng.random(scores.shape) < rng.random((30, 1))
    values = metrics.auroc(scores, labels)
    expected = [slow_auroc(s, y) for s, y in zip(scores.tolist(), labels.tolist(), strict=True)]
    np.testing.assert_allclose(values, expected)

    smooth = rng.normal(size=40).round(1)
    label = np.arange(40) < 17
    u = mannwhitneyu(smooth[label], smooth[~label]).statistic
    assert metrics.auroc(smooth, label) == pytest.approx(u / (17 * 23))


def test_auroc_ignores_monotone_transformations_and_flips_with_the_sign():
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(20, 9)), rng.random((20, 9)) < 0.5
    value = metrics.auroc(scores, labels)
    np.testing.assert_allclose(metrics.auroc(np.exp(scores), labels), value)
    np.testing.assert_allclose(metrics.auroc(-scores, labels), 1 - value)


def test_within_problem_auroc_leaves_out_one_sided_problems():
    assert metrics.within_problem_auroc(np.array([0.5, NAN, 1.0])) == (0.75, "")
    mean, reason = metrics.within_problem_auroc(np.array([NAN, NAN]))
    assert math.isnan(mean)
    assert "both right and wrong" in reason

"""Selection and voting, against loops over sorted lists and hand-counted votes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from prunebench.errors import ConfigError
from prunebench.select import Finished, top_k
from prunebench.vote import (
    Aggregator,
    best_of_n,
    credit,
    majority,
    score_sum,
    score_weighted,
    vote,
)

NAN = float("nan")
NOT_FINISHED = np.zeros((1, 5), dtype=bool)


def slow_top_k(
    scores: list[float], keep: int, finished: list[bool], policy: Finished
) -> list[bool]:
    def badness(i: int) -> tuple[bool, float, int]:
        is_nan = scores[i] != scores[i]
        return (is_nan, 0.0 if is_nan else -scores[i], i)

    free = [f and policy is Finished.keep_free for f in finished]
    competing = sorted((i for i in range(len(scores)) if not free[i]), key=badness)
    chosen = set(competing[:keep])
    return [free[i] or i in chosen for i in range(len(scores))]


def test_highest_scores_win_and_ties_go_to_the_lowest_index():
    scores = np.array([[1.0, 3.0, 2.0, 3.0, 2.0]])
    kept = top_k(scores, 3, finished=NOT_FINISHED)
    assert kept.tolist() == [[False, True, True, True, False]]


def test_nan_loses_even_against_minus_infinity():
    scores = np.array([[NAN, -np.inf, NAN, 5.0, np.inf]])
    assert top_k(scores, 3, finished=NOT_FINISHED).tolist() == [[False, True, False, True, True]]
    assert top_k(scores, 4, finished=NOT_FINISHED).tolist() == [[True, True, False, True, True]]


def test_zero_and_minus_zero_tie():
    assert top_k(np.array([[-0.0, 0.0]]), 1, finished=NOT_FINISHED[:, :2]).tolist() == [
        [True, False]
    ]


def test_finished_paths_compete_or_are_kept_free():
    scores = np.array([[0.0, 4.0, 3.0, 2.0, 1.0]])
    finished = np.array([[True, False, False, True, False]])
    compete = top_k(scores, 1, finished=finished, policy=Finished.compete)
    assert compete.tolist() == [[False, True, False, False, False]]
    free = top_k(scores, 1, finished=finished, policy=Finished.keep_free)
    assert free.tolist() == [[True, True, False, True, False]]
    everything = top_k(scores, 4, finished=finished, policy=Finished.keep_free)
    assert everything.all()


@pytest.mark.parametrize("policy", list(Finished))
@pytest.mark.parametrize("seed", range(5))
def test_top_k_agrees_with_a_loop(seed: int, policy: Finished):
    rng = np.random.default_rng(seed)
    scores = rng.choice([NAN, -np.inf, -1.0, -0.0, 0.0, 0.5, 2.0, np.inf], size=(40, 9))
    finished = rng.random(scores.shape) < 0.3
    before = scores.copy()
    for keep in (1, 4, 9):
        kept = top_k(scores, keep, finished=finished, policy=policy)
        expected = [
            slow_top_k(s, keep, f, policy)
            for s, f in zip(scores.tolist(), finished.tolist(), strict=True)
        ]
        assert kept.tolist() == expected
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize("keep", [0, -1, 6])
def test_keep_out_of_range_names_the_range_and_the_value(keep: int):
    with pytest.raises(ConfigError, match=rf"'keep' parameter must be .*\(5\).* Got {keep} inst"):
        top_k(np.zeros((1, 5)), keep, finished=NOT_FINISHED)


def test_majority_by_hand():
    codes = np.array([[0, 1, 1, 2, -1], [0, 0, 1, 1, -1], [-1, -1, -1, 2, 2]])
    keep = np.ones((3, 5), dtype=bool)
    keep[2, 3:] = False
    win = majority(codes, keep)
    np.testing.assert_allclose(win, [[0, 1, 0], [0.5, 0.5, 0], [0, 0, 0]])
    np.testing.assert_allclose(credit(win, np.array([False, True, False])), [1.0, 0.5, 0.0])


def test_no_answer_never_votes_even_as_the_most_frequent():
    win = majority(np.array([[-1, -1, -1, 0]]), np.ones((1, 4), dtype=bool))
    assert win.tolist() == [[1.0]]


@pytest.mark.parametrize("aggregator", list(Aggregator))
def test_nobody_votes(aggregator: Aggregator):
    codes, keep = np.full((2, 3), -1), np.ones((2, 3), dtype=bool)
    win = vote(aggregator, codes, keep, np.zeros((2, 3)))
    assert credit(win, np.zeros(0, dtype=bool)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(5))
def test_majority_agrees_with_counting(seed: int):
    rng = np.random.default_rng(seed)
    codes, keep = rng.integers(-1, 4, size=(50, 7)), rng.random((50, 7)) < 0.6
    right = np.array([True, False, True, False])
    for row, kept, got in zip(codes, keep, credit(majority(codes, keep), right), strict=True):
        votes = Counter(int(c) for c in row[kept] if c >= 0)
        top = [c for c, n in votes.items() if n == max(votes.values())]
        assert got == pytest.approx(np.mean([right[c] for c in top]) if top else 0.0)


def test_score_weighted_by_hand():
    # Kept scores 0, 0, 3: mean 1, sd sqrt(2), so z = -0.707, -0.707, 1.414: exp = 0.49, 0.49, 4.11
    codes = np.array([[0, 0, 1, 0]])
    scores = np.array([[0.0, 0.0, 3.0, 99.0]])
    keep = np.array([[True, True, True, False]])
    assert score_weighted(codes, keep, scores).tolist() == [[0.0, 1.0]]
    assert majority(codes, keep).tolist() == [[1.0, 0.0]]


def test_score_weighted_without_spread_is_a_majority():
    codes = np.array([[0, 0, 1, 2]])
    keep = np.ones((1, 4), dtype=bool)
    for row in ([2.0] * 4, [NAN] * 4, [NAN, NAN, 7.0, NAN], [np.inf] * 4):
        np.testing.assert_array_equal(
            score_weighted(codes, keep, np.array([row])), majority(codes, keep)
        )


def test_score_weighted_does_not_depend_on_the_unit():
    rng = np.random.default_rng(3)
    codes, scores = rng.integers(0, 3, size=(30, 6)), rng.normal(size=(30, 6))
    keep = np.ones(codes.shape, dtype=bool)
    first = score_weighted(codes, keep, scores)
    np.testing.assert_allclose(score_weighted(codes, keep, 1e4 * scores - 7), first)


@pytest.mark.parametrize("seed", range(3))
def test_score_weighted_agrees_with_a_loop(seed: int):
    rng = np.random.default_rng(seed)
    codes, scores = rng.integers(-1, 3, size=(30, 6)), rng.normal(size=(30, 6))
    scores[:, 0] = NAN
    keep = rng.random(codes.shape) < 0.8
    keep[:, 1:3] = True
    win = score_weighted(codes, keep, scores)
    for r in range(30):
        members = np.flatnonzero(keep[r])
        values = scores[r, members]
        values = np.where(np.isnan(values), np.nanmin(values), values)
        z = (values - values.mean()) / values.std()
        votes: Counter[int] = Counter()
        for i, weight in zip(members, np.exp(z), strict=True):
            if codes[r, i] >= 0:
                votes[int(codes[r, i])] += weight
        assert win[r].argmax() == votes.most_common(1)[0][0] if votes else not win[r].any()


def test_best_of_n_by_hand():
    codes = np.array([[0, 1, -1, 2]] * 4)
    scores = np.array(
        [[1.0, 2.0, 9.0, 0.0], [2.0, 2.0, 9.0, 2.0], [NAN] * 4, [NAN, -np.inf, 3.0, NAN]]
    )
    win = best_of_n(codes, np.ones(codes.shape, dtype=bool), scores)
    third = [1 / 3] * 3
    np.testing.assert_allclose(win, [[0, 1, 0], third, third, [0, 1, 0]])


def test_best_of_n_gives_tied_paths_equal_chances():
    win = best_of_n(np.array([[0, 0, 1]]), np.ones((1, 3), dtype=bool), np.zeros((1, 3)))
    np.testing.assert_allclose(win, [[2 / 3, 1 / 3]])


def test_score_sum_by_hand():
    # The two votes of answer 0 sum to 0.7, answer 1 has 0.6; the second row drops one of them.
    codes = np.array([[0, 1, 0, 2]] * 2)
    scores = np.array([[0.4, 0.6, 0.3, -0.1], [0.4, 0.6, -0.7, -0.1]])
    keep = np.ones(codes.shape, dtype=bool)
    assert score_sum(codes, keep, scores).tolist() == [[1, 0, 0], [0, 1, 0]]
    keep[0, 0] = False
    assert score_sum(codes, keep, scores)[0].tolist() == [0, 1, 0]


def test_score_sum_splits_ties_and_ignores_nan_and_scores_below_zero():
    codes = np.array([[0, 1, 1, 2, 2, -1]])
    keep = np.ones(codes.shape, dtype=bool)
    scores = np.array([[0.5, 0.25, 0.25, NAN, -9.0, 99.0]])
    assert score_sum(codes, keep, scores).tolist() == [[0.5, 0.5, 0.0]]
    # A sum that is equal but for rounding is a tie: 0.1 + 0.2 > 0.3 in floating point.
    scores = np.array([[0.3, 0.1, 0.2, NAN, -np.inf, 99.0]])
    assert score_sum(codes, keep, scores).tolist() == [[0.5, 0.5, 0.0]]


def test_score_sum_counts_an_infinite_score_as_the_largest_finite_one():
    codes = np.array([[0, 1, 1, 1]] * 3)
    keep = np.ones(codes.shape, dtype=bool)
    scores = np.array(
        [[np.inf, 2.0, 1.0, -1.0], [np.inf, 3.0, NAN, 0.0], [np.inf, np.inf, -1.0, NAN]]
    )
    assert score_sum(codes, keep, scores).tolist() == [[0, 1], [0.5, 0.5], [0.5, 0.5]]


def test_score_sum_without_a_positive_score_is_a_majority():
    codes = np.array([[0, 0, 1, -1]])
    keep = np.ones(codes.shape, dtype=bool)
    for row in ([0.0] * 4, [NAN] * 4, [-1.0, -2.0, -0.5, 7.0], [NAN, -1.0, -np.inf, np.inf]):
        assert score_sum(codes, keep, np.array([row])).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("seed", range(3))
def test_score_sum_agrees_with_a_loop(seed: int):
    rng = np.random.default_rng(seed)
    codes, scores = rng.integers(-1, 3, size=(40, 6)), rng.normal(size=(40, 6))
    keep = rng.random(codes.shape) < 0.7
    win = score_sum(codes, keep, scores)
    for r in range(40):
        votes: Counter[int] = Counter()
        for i in np.flatnonzero(keep[r] & (codes[r] >= 0)):
            votes[int(codes[r, i])] += max(scores[r, i], 0.0)
        if sum(votes.values()) > 0:
            assert win[r].argmax() == votes.most_common(1)[0][0]
            assert win[r].max() == 1.0
        else:
            assert win[r].tolist() == majority(codes, keep)[r].tolist()


def test_winning_probabilities_sum_to_one():
    rng = np.random.default_rng(0)
    codes, scores = rng.integers(0, 5, size=(100, 8)), rng.integers(0, 3, size=(100, 8)) * 1.0
    keep = np.ones(codes.shape, dtype=bool)
    sums = [vote(a, codes, keep, scores).sum(axis=1) for a in Aggregator]
    for left, right in pairwise(sums):
        np.testing.assert_allclose(left, 1.0)
        np.testing.assert_allclose(right, 1.0)

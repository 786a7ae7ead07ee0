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
    VoteOptions,
    best_of_n,
    borda,
    credit,
    filter_and_weight,
    majority,
    score_sum,
    score_weighted,
    softmax_weighted,
    vote,
    weighted_best_of_n,
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


def everyone(codes: np.ndarray) -> np.ndarray:
    return np.ones(codes.shape, dtype=bool)


@pytest.mark.parametrize("seed", range(3))
def test_new_aggregators_agree_with_loops(seed: int):
    rng = np.random.default_rng(seed)
    codes, scores = rng.integers(-1, 3, size=(60, 7)), rng.normal(size=(60, 7))
    scores[:20] = np.abs(scores[:20])  # rows of positive scores are weights as they are
    scores[:, 0] = NAN
    keep = rng.random(codes.shape) < 0.8
    keep[:, 1:3] = True
    options = VoteOptions(temperature=0.4, power=1.7, top=0.4)
    wins = {a: vote(a, codes, keep, scores, options) for a in Aggregator}
    for r in range(60):
        members = [int(i) for i in np.flatnonzero(keep[r])]
        worst = min(scores[r, i] for i in members if scores[r, i] == scores[r, i])
        value = {i: worst if scores[r, i] != scores[r, i] else scores[r, i] for i in members}
        mean = sum(value.values()) / len(members)
        sd = (sum((v - mean) ** 2 for v in value.values()) / len(members)) ** 0.5
        low, high = min(value.values()), max(value.values())
        shift = 0.0 if low > 0 else (high - low) / len(members) - low
        positive = {i: value[i] + shift for i in members}
        nan = {i for i in members if scores[r, i] != scores[r, i]}
        below = {i: sum((j in nan, value[j]) < (i in nan, value[i]) if (j in nan) == (i in nan)
                        else j in nan for j in members) for i in members}  # fmt: skip
        voters = [i for i in members if codes[r, i] >= 0]
        bar = np.percentile([positive[i] for i in voters], 60) if voters else 0.0
        weights = {
            Aggregator.softmax_weighted: {i: np.exp((value[i] - mean) / sd / 0.4) for i in members},
            Aggregator.borda: {i: (below[i] + 1) ** 1.7 for i in members},
            Aggregator.weighted_best_of_n: positive,
            Aggregator.filter_and_weight: {i: positive[i] * (positive[i] >= bar) for i in members},
        }
        for aggregator, weight in weights.items():
            tally: Counter[int] = Counter()
            for i in voters:
                tally[int(codes[r, i])] += weight[i]
            win = wins[aggregator][r]
            top = max(tally.values(), default=0)
            tied = {c for c, w in tally.items() if abs(w - top) < 1e-9 * top}
            expected = [1 / len(tied) if c in tied else 0.0 for c in range(len(win))]
            np.testing.assert_allclose(win, expected, err_msg=f"{aggregator} {r}")


def test_softmax_between_best_path_and_majority():
    codes, scores = np.array([[0, 0, 0, 1]]), np.array([[0.0, 0.1, 0.2, 0.9]])
    keep = everyone(codes)
    assert softmax_weighted(codes, keep, scores, 0.01).tolist() == [[0, 1]]
    assert softmax_weighted(codes, keep, scores, 100.0).tolist() == [[1, 0]]
    np.testing.assert_array_equal(
        softmax_weighted(codes, keep, scores, 1.0), score_weighted(codes, keep, scores)
    )
    # The best path has no answer: the temperature must not take the vote from all the others.
    codes = np.array([[-1, 1, 0, 0]])
    assert softmax_weighted(codes, keep, np.array([[9.0, 3, 1, 0]]), 1e-3).tolist() == [[0, 1]]


def test_borda_by_hand():
    # Ranks from the top: 0, 1, 2, 3 of four kept: weights 4, 3, 2, 1; the fifth is dropped.
    codes = np.array([[0, 1, 1, 0, 0]])
    scores = np.array([[9.0, 8.0, 7.0, -5.0, 99.0]])
    keep = np.array([[True, True, True, True, False]])
    assert borda(codes, keep, scores, 1.0).tolist() == [[0.5, 0.5]]
    assert borda(codes, keep, scores, 0.5).tolist() == [[0, 1]]  # 2 + 1 against 1.73 + 1.41
    assert borda(codes, keep, scores, 0.0).tolist() == majority(codes, keep).tolist()
    # Ties share their rank, NaN is below -inf: weights 3.5, 3.5, 1, 2.
    scores = np.array([[5.0, 5.0, NAN, -np.inf, 0.0]])
    assert borda(codes, keep, scores, 1.0).tolist() == [[1, 0]]


def test_weighted_best_of_n_by_hand():
    codes = np.array([[0, 1, 1, 0]] * 4)
    scores = np.array(
        [
            [0.9, 0.5, 0.5, 0.05],  # as they are: 0.95 against 1.0
            [0.9, -0.5, 0.5, 0.4],  # shifted by 0.5 + 1.4 / 4: 3.0 against 1.7
            [NAN, 2.0, np.inf, -np.inf],  # one finite score: a majority
            [np.inf, 1.0, 3.0, NAN],  # inf counts as 3, NaN as 1
        ]
    )
    expected = [[0, 1], [1, 0], [0.5, 0.5], [0.5, 0.5]]
    assert weighted_best_of_n(codes, everyone(codes), scores).tolist() == expected


# Confidences of 20 paths and what the functions filter_top_confidence and weighted_majority_vote of
# the PyPI package deepconf 0.1.0 made of them, with each confidence as the trace's only token.
CONFIDENCES = [9.1, 12.4, 10.0, 15.2, 14.9, 11.1, 13.3, 15.2, 8.7, 9.9,
               12.0, 14.1, 10.5, 13.9, 11.8, 14.9, 9.4, 12.7, 13.0, 10.8]  # fmt: skip
ANSWERS = [0, 1, 0, 2, 1, 0, 0, 2, 0, 0, 1, 1, 2, 0, 0, 1, 0, 2, 1, 0]
DEEPCONF = {0.05: (2, 2), 0.1: (2, 2), 0.2: (2, 4), 0.25: (1, 5), 0.5: (1, 10), 0.9: (0, 18)}


@pytest.mark.parametrize("top", DEEPCONF)
def test_filter_and_weight_agrees_with_the_package(top: float):
    codes, scores = np.array([ANSWERS]), np.array([CONFIDENCES])
    answer, n_kept = DEEPCONF[top]
    assert filter_and_weight(codes, everyone(codes), scores, top)[0].argmax() == answer
    bar = np.sort(CONFIDENCES)[-n_kept]
    only = scores >= bar
    assert only.sum() == n_kept
    np.testing.assert_array_equal(
        filter_and_weight(codes, everyone(codes), scores, top),
        weighted_best_of_n(codes, only, scores),
    )


def test_filter_and_weight_asks_those_with_an_answer():
    codes = np.array([[-1, -1, 0, 1, 1]])
    scores = np.array([[9.0, 8.0, 3.0, 2.0, 2.0]])
    keep = everyone(codes)
    assert filter_and_weight(codes, keep, scores, 0.1).tolist() == [[1, 0]]
    assert filter_and_weight(codes, keep, scores, 1.0).tolist() == [[0, 1]]
    keep[0, 2] = False
    assert filter_and_weight(codes, keep, scores, 0.1).tolist() == [[0, 1]]


@pytest.mark.parametrize("aggregator", list(Aggregator))
def test_scores_that_say_nothing_are_a_majority(aggregator: Aggregator):
    codes = np.array([[0, 0, 1, -1]])
    for row in ([2.0] * 4, [NAN] * 4):
        win = vote(aggregator, codes, everyone(codes), np.array([row]))
        chance = aggregator is Aggregator.best_of_n  # a random one of the tied paths
        np.testing.assert_allclose(win, [[2 / 3, 1 / 3]] if chance else [[1, 0]])


@pytest.mark.parametrize("aggregator", list(Aggregator))
def test_a_vote_does_not_depend_on_the_order_of_the_paths(aggregator: Aggregator):
    rng = np.random.default_rng(0)
    codes, scores = rng.integers(-1, 4, size=(50, 8)), rng.integers(-2, 3, size=(50, 8)) * 1.0
    keep, order = rng.random(codes.shape) < 0.7, rng.permutation(8)
    np.testing.assert_allclose(
        vote(aggregator, codes, keep, scores),
        vote(aggregator, codes[:, order], keep[:, order], scores[:, order]),
    )


@pytest.mark.parametrize("option", ["temperature", "power", "top"])
@pytest.mark.parametrize("value", [-1.0, NAN, np.inf])
def test_impossible_options_of_a_vote(option: str, value: float):
    with pytest.raises(ConfigError, match=f"'{option}' parameter of the vote must be .* Got"):
        VoteOptions(**{option: value})

"""Stopping rules against loops that draw one path at a time, closed forms against quadrature."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.integrate import quad

from prunebench.errors import ConfigError
from prunebench.methods.deepconf import group_confidences
from prunebench.stopping import adaptive_consistency, deepconf_online, esc, group_minima

NAN = float("nan")


def pool(seed: int, n_rows: int = 40, n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Answers, one of them more likely than the others, and lengths, `(n_rows, n)` each."""
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random((n_rows, n)) < 0.5, 0, rng.integers(-1, 5, size=(n_rows, n)))
    return codes, rng.integers(1, 300, size=codes.shape)


def check(stopped, codes, lengths) -> None:
    """What holds for every rule: draws are a beginning, only drawn paths cost, vote and weigh."""
    n_drawn = stopped.n_drawn
    place = np.arange(codes.shape[1])
    np.testing.assert_array_equal(stopped.drawn, place < n_drawn[:, None])
    assert (n_drawn >= 1).all()
    assert not (stopped.finished & ~stopped.drawn).any()
    assert not (stopped.voters & ~stopped.finished).any()  # no answer, no vote: as in `vote`
    assert (stopped.tokens[stopped.finished] == lengths[stopped.finished]).all()
    assert (stopped.tokens <= lengths).all()
    assert (stopped.tokens[~stopped.drawn] == 0).all()
    assert (stopped.weights[~stopped.voters] == 0).all()
    assert (stopped.weights[stopped.voters] > 0).all()


# ------------------------------------------------------------------------ adaptive consistency


def lead_is_real(answers: list[int], threshold: float) -> bool:
    """The package's criterion (AdaptiveConsistency 1.0.0), by numeric integration as there."""
    counts = [n for _, n in Counter(a for a in answers if a >= 0).most_common(2)]
    v1, v2 = [*counts, 0, 0][:2]

    def density(x: float) -> float:
        return x**v1 * (1 - x) ** v2

    return quad(density, 0.5, 1)[0] / quad(density, 0, 1)[0] >= threshold


@pytest.mark.parametrize("threshold", [0.8, 0.95])
def test_adaptive_consistency_agrees_with_drawing_one_by_one(threshold: float):
    codes, lengths = pool(0)
    stopped = adaptive_consistency(codes, lengths, threshold=threshold)
    check(stopped, codes, lengths)
    for row, n_drawn in zip(codes.tolist(), stopped.n_drawn, strict=True):
        n = next((i for i in range(1, 25) if lead_is_real(row[:i], threshold)), 24)
        assert n_drawn == n
    assert len(set(stopped.n_drawn)) > 5
    np.testing.assert_array_equal(stopped.finished, stopped.drawn)


def test_adaptive_consistency_needs_four_equal_answers():
    # 1 - 0.5 ** (v + 1) >= 0.95 from v = 4 on; a path without an answer is no vote.
    codes = np.array([[7, 7, 7, 7, 7, 7], [7, -1, 7, -1, 7, 7], [-1] * 6])
    stopped = adaptive_consistency(codes, np.full(codes.shape, 10))
    assert stopped.n_drawn.tolist() == [4, 6, 6]
    assert stopped.tokens.sum(axis=1).tolist() == [40, 60, 60]
    assert stopped.voters.sum(axis=1).tolist() == [4, 6, 6]


@pytest.mark.parametrize("threshold", [0.0, 1.0, NAN])
def test_adaptive_consistency_wants_a_probability(threshold: float):
    with pytest.raises(ConfigError, match=r"'threshold' parameter must be between 0 and 1. Got"):
        adaptive_consistency(*pool(0), threshold=threshold)


# ----------------------------------------------------------------------------------------- ESC


def test_esc_by_hand():
    codes = np.array(
        [
            [1, 1, 1, 0, 0, 0, 2, 2],  # the first window agrees
            [0, 1, 1, 0, 0, 0, 2, 2],  # the second one
            [1, 0, 0, 0, 1, 1, 1, 1],  # three in a row across windows do not count
            [-1, -1, -1, 3, 3, -1, 2, 2],  # without answers there is no agreement
        ]
    )
    lengths = np.full(codes.shape, 5)
    stopped = esc(codes, lengths, window=3)
    check(stopped, codes, lengths)
    assert stopped.n_drawn.tolist() == [3, 6, 8, 8]
    # All drawn paths vote, those of earlier windows too.
    assert stopped.voters.sum(axis=1).tolist() == [3, 6, 8, 8]
    assert esc(codes, lengths, window=1).n_drawn.tolist() == [1, 1, 1, 4]
    assert esc(codes, lengths, window=9).n_drawn.tolist() == [8] * 4


@pytest.mark.parametrize("window", [2, 5, 8])
def test_esc_agrees_with_drawing_window_by_window(window: int):
    codes, lengths = pool(1)
    codes = np.where(codes > 2, 0, codes)
    stopped = esc(codes, lengths, window=window)
    check(stopped, codes, lengths)
    for row, n_drawn in zip(codes.tolist(), stopped.n_drawn, strict=True):
        drawn: list[int] = []
        while len(drawn) < 24:
            new = row[len(drawn) : len(drawn) + window]
            drawn += new
            if len(new) == window and set(new) != {-1} and len(set(new)) == 1:
                break
        assert n_drawn == len(drawn)


def test_esc_wants_a_window():
    with pytest.raises(ConfigError, match=r"'window' of ESC must be at least 1 path. Got 0"):
        esc(*pool(0), window=0)


# --------------------------------------------------------------------------- DeepConf online


@pytest.mark.parametrize("seed", range(3))
def test_new_lows_answer_for_every_bar(seed: int):
    rng = np.random.default_rng(seed)
    confidence = rng.gamma(4, 3, size=200).astype(np.float32)
    minima = group_minima(confidence, 16)
    groups = group_confidences(confidence.astype(np.float64), 16)
    assert minima.lowest == groups.min()
    bars = np.concatenate([np.linspace(0, 30, 301), groups, np.nextafter(groups, np.inf)])
    found = minima.stopped_at(bars)
    for bar, at in zip(bars, found, strict=True):
        below = np.flatnonzero(groups < bar)
        assert at == (below[0] + 16 if len(below) else -1)


def test_a_path_shorter_than_the_window_is_never_stopped():
    minima = group_minima(np.array([1.0, 2.0, 6.0]), 4)
    assert minima.lowest == 3.0
    assert minima.stopped_at(np.array([0.0, 99.0])).tolist() == [-1, -1]
    assert np.isnan(group_minima(np.empty(0), 4).lowest)
    with pytest.raises(ConfigError, match=r"at least 1 token. Got 0"):
        group_minima(np.ones(3), 0)


def online_pool(seed: int, n_pool: int = 40):
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random(n_pool) < 0.6, 0, rng.integers(-1, 4, size=n_pool))
    confidences = [rng.gamma(6, 2, size=n) + (c == 0) for n, c in zip(
        rng.integers(5, 120, size=n_pool), codes, strict=True)]  # fmt: skip
    return codes, confidences, [group_minima(c, 10) for c in confidences]


def draw_one_by_one(codes, confidences, order, n_warmup, top, consensus):
    """The rule as a generating loop, that looks at every token."""
    lowest = [group_confidences(confidences[p], 10).min() for p in order[:n_warmup]]
    bar = np.percentile(lowest, 100 - top)
    tokens, votes, heard, n_stopped = [], Counter(), Counter(), 0
    for i, p in enumerate(order):
        c, n, stopped = confidences[p], len(confidences[p]), False
        if i >= n_warmup:
            for t in range(10, n + 1):
                if c[t - 10 : t].mean() < bar - 1e-9:
                    n, n_stopped, stopped = t, n_stopped + 1, True
                    break
        tokens.append(n)
        if not stopped and codes[p] >= 0:
            worst = group_confidences(c, 10).min()
            heard[int(codes[p])] += worst
            votes[int(codes[p])] += worst * (worst >= bar - 1e-9)
        if i >= n_warmup - 1 and max(heard.values()) >= consensus * sum(heard.values()):
            break
    return tokens, votes, n_stopped


@pytest.mark.parametrize(("top", "consensus"), [(10, 0.8), (90, 0.8), (50, 0.7), (90, 2.0)])
def test_deepconf_online_agrees_with_drawing_one_by_one(top: float, consensus: float):
    codes, confidences, minima = online_pool(3)
    lengths = np.array([len(c) for c in confidences])
    order = np.array([np.random.default_rng(r).permutation(40)[:30] for r in range(25)])
    stopped = deepconf_online(
        codes[order], lengths[order], order, minima, n_warmup=8, top=top, consensus=consensus
    )
    check(stopped, codes[order], lengths[order])
    n_cut = 0
    for r, row in enumerate(order):
        tokens, votes, n_stopped = draw_one_by_one(codes, confidences, row, 8, top, consensus)
        n_cut += n_stopped
        assert stopped.tokens[r][stopped.drawn[r]].tolist() == tokens
        assert (stopped.drawn[r] & ~stopped.finished[r]).sum() == n_stopped
        for code in range(4):
            mine = stopped.weights[r][codes[row] == code].sum()
            assert mine == pytest.approx(votes[code])
    assert n_cut > 10
    assert len(set(stopped.n_drawn)) > 3 or consensus > 1
    assert (stopped.n_drawn == 30).all() == (consensus > 1)


def test_deepconf_online_after_the_warmup_of_equal_answers():
    # Everybody agrees, so the warm-up is all there is; the least confident of it does not vote.
    minima = [group_minima(np.full(20, c), 4) for c in (3.0, 1.0, 2.0, 4.0, 0.5)]
    order = np.array([[0, 1, 2, 3, 4]])
    codes, lengths = np.zeros((1, 5), dtype=int), np.full((1, 5), 20)
    stopped = deepconf_online(codes, lengths, order, minima, n_warmup=3, top=50)
    assert stopped.weights.tolist() == [[3.0, 0, 2.0, 0, 0]]
    assert stopped.tokens.tolist() == [[20, 20, 20, 0, 0]]
    going_on = deepconf_online(codes, lengths, order, minima, n_warmup=3, top=50, consensus=2)
    assert going_on.tokens.tolist() == [[20, 20, 20, 20, 4]]
    assert going_on.weights.tolist() == [[3.0, 0, 2.0, 4.0, 0]]


def test_deepconf_online_without_a_bar():
    minima = [group_minima(np.empty(0), 4)] * 3
    order = np.array([[0, 1, 2]])
    zero = np.zeros((1, 3), dtype=int)
    stopped = deepconf_online(zero, zero, order, minima, n_warmup=2)
    assert not stopped.voters.any()
    assert stopped.drawn.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_warmup": 6}, r"'n_warmup' .* from 1 to the number of paths \(5\). Got 6"),
        ({"n_warmup": 3, "top": 101}, "'top' .* percentage from 0 to 100. Got 101"),
        ({"n_warmup": 3, "consensus": 0}, "'consensus' .* above 0. Got 0"),
    ],
)
def test_deepconf_online_says_what_is_wrong(options, message):
    zero = np.zeros((1, 5), dtype=int)
    with pytest.raises(ConfigError, match=message):
        deepconf_online(zero, zero, zero, [group_minima(np.ones(9), 4)], **options)

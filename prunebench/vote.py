"""From the answers of the kept paths to one answer.

Answers arrive as integer codes, so this module never compares text. A vote returns the
probability that each answer wins: ties are broken uniformly and credited by their expectation
instead of by the order of the paths (as in RPC's evaluator, arXiv 2502.00511).
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

NO_ANSWER = -1


class Aggregator(StrEnum):
    """How the kept paths become one answer."""

    majority = "majority"  # one path, one vote
    score_weighted = "score_weighted"  # votes weighted by exp(standardised score)
    best_of_n = "best_of_n"  # the answer of the path with the highest score
    score_sum = "score_sum"  # votes weighted by the scores above 0 (with method=rpc, RPC's vote)


def vote(
    aggregator: Aggregator, codes: np.ndarray, keep: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """Vote with the given aggregator; see `majority` for shapes and the result."""
    if aggregator is Aggregator.score_weighted:
        return score_weighted(codes, keep, scores)
    if aggregator is Aggregator.best_of_n:
        return best_of_n(codes, keep, scores)
    if aggregator is Aggregator.score_sum:
        return score_sum(codes, keep, scores)
    return majority(codes, keep)


def majority(codes: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The most frequent answer of the kept paths.

    Parameters
    ----------
    codes : `(R, n)` int, equal codes are equal answers, `NO_ANSWER` (-1) never votes.
    keep : `(R, n)` bool, the paths that vote.

    Returns
    -------
    win : `(R, n_codes)` float64, the probability that each answer wins when ties are broken
        uniformly: 1/#ties for the tied answers. A row without any vote is all zero.
    """
    return _winners(_tally(codes, keep, np.ones(codes.shape)))


def score_weighted(codes: np.ndarray, keep: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Majority with path i weighing exp(z_i), z the scores standardised over the kept paths of
    the row. Standardising makes the weights positive and independent of the unit of the score.

    Infinite scores count as the largest or smallest finite score among the kept, NaN as the
    smallest; a row without two different finite scores is a plain majority. See `majority`.
    """
    scores = np.where(np.isnan(scores), -np.inf, scores)
    usable = keep & np.isfinite(scores)
    low = np.where(usable, scores, np.inf).min(axis=1, keepdims=True)
    high = np.where(usable, scores, -np.inf).max(axis=1, keepdims=True)
    spread = high > low  # False also without any finite score, where low is inf and high -inf
    low, high = np.where(spread, low, 0.0), np.where(spread, high, 0.0)
    clipped = np.clip(scores, low, high)
    n = np.maximum(keep.sum(axis=1, keepdims=True), 1)
    centred = clipped - (clipped * keep).sum(axis=1, keepdims=True) / n
    sd = np.sqrt((centred**2 * keep).sum(axis=1, keepdims=True) / n)
    return _winners(_tally(codes, keep, np.exp(centred / np.where(sd > 0, sd, 1.0))))


def best_of_n(codes: np.ndarray, keep: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The answer of the kept path with the highest score among those that have an answer.

    Paths tied at the top win with equal probability; NaN is the worst score. See `majority`.
    """
    votes = keep & (codes != NO_ANSWER)
    scored = votes & ~np.isnan(scores)
    # A row where every voter is NaN is a tie of all its voters.
    values = np.where(scored.any(axis=1, keepdims=True), scores, 0.0)
    eligible = np.where(scored.any(axis=1, keepdims=True), scored, votes)
    best = np.where(eligible, values, -np.inf).max(axis=1, keepdims=True)
    top = eligible & (values == best)
    share = 1.0 / np.maximum(top.sum(axis=1, keepdims=True), 1)
    return _tally(codes, top, np.broadcast_to(share, codes.shape))


def score_sum(codes: np.ndarray, keep: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The answer with the largest sum of the positive scores of its kept paths.

    Meant for scores with a meaningful zero; with the method `rpc` it is the perplexity consistency
    vote of RPC (arXiv 2502.00511). Scores of 0 or less and NaN add nothing; an infinite score
    counts as the largest finite one among the kept, or as 1 when none of those is positive; a row
    where no voter scores above 0 is a plain majority. See `majority`.
    """
    positive = keep & (scores > 0)  # False for NaN
    finite = np.where(positive & np.isfinite(scores), scores, 0.0)
    largest = finite.max(axis=1, keepdims=True, initial=0.0)
    weights = np.where(positive & np.isposinf(scores), np.where(largest > 0, largest, 1.0), finite)
    nobody = ~(positive & (codes != NO_ANSWER)).any(axis=1, keepdims=True)
    return _winners(_tally(codes, keep, np.where(nobody, 1.0, weights)))


def credit(win: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`(R,)` probability that the vote is right; 0 where nobody voted.

    Parameters
    ----------
    win : `(R, n_codes)` from one of the votes.
    right : `(>= n_codes,)` bool, which codes equal the gold answer.
    """
    return win @ right[: win.shape[1]].astype(np.float64)


def _tally(codes: np.ndarray, voters: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`(R, n_codes)` sum of the weights of the voters of each answer."""
    n_rows, n_codes = codes.shape[0], int(codes.max(initial=NO_ANSWER)) + 1
    mask = voters & (codes != NO_ANSWER)
    cell = (np.arange(n_rows)[:, None] * n_codes + codes)[mask]
    flat = np.bincount(cell, weights=weights[mask], minlength=n_rows * n_codes)
    return flat.reshape(n_rows, n_codes)


def _winners(tally: np.ndarray) -> np.ndarray:
    if tally.shape[1] == 0:
        return tally
    top = tally.max(axis=1, keepdims=True)
    # Weighted sums of equal weights may differ in the last digits: that is still a tie.
    winners = (tally >= top * (1 - 1e-9)) & (top > 0)
    return winners / np.maximum(winners.sum(axis=1, keepdims=True), 1)

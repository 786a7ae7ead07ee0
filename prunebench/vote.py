"""From the answers of the kept paths to one answer.

Answers arrive as integer codes, so this module never compares text. A vote returns the
probability that each answer wins: ties are broken uniformly and credited by their expectation
instead of by the order of the paths (as in RPC's evaluator, arXiv 2502.00511).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from prunebench.errors import ConfigError
from prunebench.metrics import mid_ranks
from prunebench.select import standardise

NO_ANSWER = -1


class Aggregator(StrEnum):
    """How the kept paths become one answer."""

    majority = "majority"  # one path, one vote
    score_weighted = "score_weighted"  # votes weighted by exp(standardised score)
    best_of_n = "best_of_n"  # the answer of the path with the highest score
    score_sum = "score_sum"  # votes weighted by the scores above 0 (with method=rpc, RPC's vote)
    softmax_weighted = "softmax_weighted"  # votes weighted by exp(standardised score / temperature)
    borda = "borda"  # votes weighted by (number of kept paths - rank) ** power
    weighted_best_of_n = "weighted_best_of_n"  # votes weighted by the scores, made positive
    filter_and_weight = "filter_and_weight"  # the same, of the top share of the voters only


@dataclass(kw_only=True)
class VoteOptions:
    """Parameters of the aggregators that have one.

    Attributes
    ----------
    temperature : of `softmax_weighted`; near 0 the best path decides, far above 1 the majority.
    power : of `borda`; 0 is a majority.
    top : share of the voters that vote in `filter_and_weight`, in (0, 1].
    """

    temperature: float = 1.0
    power: float = 0.5
    top: float = 0.1

    def __post_init__(self) -> None:
        rules = [
            ("temperature", self.temperature, 0 < self.temperature < np.inf, "above 0"),
            ("power", self.power, 0 <= self.power < np.inf, "at least 0"),
            ("top", self.top, 0 < self.top <= 1, "above 0 and at most 1"),
        ]
        for name, value, ok, limits in rules:
            if not ok:
                raise ConfigError(
                    f"The '{name}' parameter of the vote must be {limits}. Got {value} instead."
                )


VOTE_OPTIONS = VoteOptions()


def vote(
    aggregator: Aggregator,
    codes: np.ndarray,
    keep: np.ndarray,
    scores: np.ndarray,
    options: VoteOptions = VOTE_OPTIONS,
) -> np.ndarray:
    """Vote with the given aggregator; see `majority` for shapes and the result."""
    if aggregator is Aggregator.score_weighted:
        return score_weighted(codes, keep, scores)
    if aggregator is Aggregator.best_of_n:
        return best_of_n(codes, keep, scores)
    if aggregator is Aggregator.softmax_weighted:
        return softmax_weighted(codes, keep, scores, options.temperature)
    if aggregator is Aggregator.borda:
        return borda(codes, keep, scores, options.power)
    if aggregator is Aggregator.weighted_best_of_n:
        return weighted_best_of_n(codes, keep, scores)
    if aggregator is Aggregator.filter_and_weight:
        return filter_and_weight(codes, keep, scores, options.top)
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
    return winners(_tally(codes, keep, np.ones(codes.shape)))


def score_weighted(codes: np.ndarray, keep: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Majority with path i weighing exp(z_i), z the scores standardised over the kept paths of
    the row. Standardising makes the weights positive and independent of the unit of the score.

    Infinite scores count as the largest or smallest finite score among the kept, NaN as the
    smallest; a row without two different finite scores is a plain majority. See `majority`.
    """
    return softmax_weighted(codes, keep, scores, temperature=1.0)


def softmax_weighted(
    codes: np.ndarray, keep: np.ndarray, scores: np.ndarray, temperature: float
) -> np.ndarray:
    """Majority with path i weighing exp(z_i / temperature), z as in `score_weighted`, which is
    this with temperature 1 (as CISC weighs confidences, arXiv 2502.06233). Standardising makes the
    temperature independent of the unit of the score.

    NaN and infinite scores as in `score_weighted`. See `majority`.
    """
    logits = standardise(scores, keep) / temperature
    # Relative to the heaviest voter, so that a low temperature cannot make all weights vanish.
    voters = keep & (codes != NO_ANSWER)
    heaviest = np.where(voters, logits, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    logits = logits - np.where(np.isfinite(heaviest), heaviest, 0.0)
    return winners(_tally(codes, keep, np.exp(np.minimum(logits, 0.0))))


def borda(codes: np.ndarray, keep: np.ndarray, scores: np.ndarray, power: float) -> np.ndarray:
    """Majority with path i weighing (n - rank_i) ** power, n the number of kept paths and rank 0
    the highest score (Self-certainty, arXiv 2502.18581).

    Tied paths share their mean rank; NaN is below every score. See `majority`.
    """
    below = mid_ranks(np.where(keep, mid_ranks(scores.astype(np.float64)), np.nan))
    n_dropped = (~keep).sum(axis=1, keepdims=True)  # they share the lowest ranks
    return winners(_tally(codes, keep, np.maximum(below - n_dropped, 1.0) ** power))


def weighted_best_of_n(codes: np.ndarray, keep: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The answer with the largest sum of the scores of its kept paths (weighted best-of-N,
    arXiv 2206.02336).

    Where all kept scores are positive they are the weights. Otherwise they are shifted, so that
    the smallest weighs 1/n of their range, n the number of kept paths. Infinite scores count as the
    largest or smallest finite score among the kept, NaN as the smallest; a row without two
    different finite scores is a plain majority. See `majority`.
    """
    return winners(_tally(codes, keep, _positive(keep, scores)))


def filter_and_weight(
    codes: np.ndarray, keep: np.ndarray, scores: np.ndarray, top: float
) -> np.ndarray:
    """Only the share `top` of the voters with the highest scores votes, weighted by the score
    (DeepConf offline, arXiv 2508.15260).

    As in the authors' package, the bar is the percentile 100 (1 - top) of the scores of the paths
    that have an answer, and those at the bar or above it vote: at least one, more with ties. Scores
    become weights as in `weighted_best_of_n`, over all kept paths. See `majority`.
    """
    voters = keep & (codes != NO_ANSWER)
    weights = _positive(keep, scores)
    ordered = np.sort(np.where(voters, weights, np.inf), axis=1)
    n_voters = voters.sum(axis=1, keepdims=True)
    # The interpolated percentile lies above the value before this place, so it is the bar.
    place = np.ceil((n_voters - 1) * (1 - top) - 1e-9).astype(np.int64)
    bar = np.take_along_axis(ordered, np.clip(place, 0, codes.shape[1] - 1), axis=1)
    return winners(_tally(codes, voters & (weights >= bar), weights))


def _clipped(keep: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores within the range of the finite scores of the kept paths, NaN at its lower end; all 0
    in a row without two different finite scores."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    usable = keep & np.isfinite(scores)
    low = np.where(usable, scores, np.inf).min(axis=1, keepdims=True)
    high = np.where(usable, scores, -np.inf).max(axis=1, keepdims=True)
    spread = high > low  # False also without any finite score, where low is inf and high -inf
    return np.clip(scores, np.where(spread, low, 0.0), np.where(spread, high, 0.0))


def _positive(keep: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Positive weights from scores; see `weighted_best_of_n`."""
    clipped = _clipped(keep, scores)
    low = np.where(keep, clipped, np.inf).min(axis=1, keepdims=True)
    high = np.where(keep, clipped, -np.inf).max(axis=1, keepdims=True)
    n = np.maximum(keep.sum(axis=1, keepdims=True), 1)
    spread = np.isfinite(low) & (high > low)
    shifted = clipped - np.where(spread, low - (high - low) / n, 0.0)
    weights = np.where(spread & (low > 0), clipped, shifted)
    return np.where(spread, weights, 1.0)


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
    return winners(_tally(codes, keep, np.where(nobody, 1.0, weights)))


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


def winners(tally: np.ndarray) -> np.ndarray:
    """`(R, n_codes)` probability that each answer wins, of the weight of its votes `(R, n_codes)`;
    ties share it evenly, a row without votes is all zero."""
    if tally.shape[1] == 0:
        return tally
    top = tally.max(axis=1, keepdims=True)
    # Weighted sums of equal weights may differ in the last digits: that is still a tie.
    winners = (tally >= top * (1 - 1e-9)) & (top > 0)
    return winners / np.maximum(winners.sum(axis=1, keepdims=True), 1)

"""Rules that stop sampling, or single paths, early: replayed on paths that are complete already.

Paths are independent, so what a rule would have done follows from the complete paths taken in the
order in which they are drawn. Pure functions of arrays: one row is one order, one column one draw.
Knows no method and no file, and does not vote: it says which paths vote and with what weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunebench.errors import ConfigError
from prunebench.vote import NO_ANSWER


@dataclass(frozen=True, kw_only=True, eq=False)
class Stopped:
    """What a rule did. All arrays are `(R, n)`, in the order of drawing.

    Attributes
    ----------
    drawn : the path was begun.
    finished : the path ran to its own end; False also for those that were never begun.
    tokens : int64, tokens generated of the path.
    voters : the path votes, if it has an answer.
    weights : float64 weight of its vote, 0 for those that do not vote.
    """

    drawn: np.ndarray
    finished: np.ndarray
    tokens: np.ndarray
    voters: np.ndarray
    weights: np.ndarray

    @property
    def n_drawn(self) -> np.ndarray:
        """`(R,)` paths that were begun."""
        return self.drawn.sum(axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupMinima:
    """Where a path's group confidence falls to a new low, which answers for every bar when the
    path would have been stopped by it.

    Attributes
    ----------
    lows : `(m,)` float64, strictly falling: the new lows, of full windows only; empty for a path
        shorter than the window.
    n_tokens : `(m,)` int64, tokens the path has when the window of that low is full.
    lowest : the lowest group confidence of the whole path; of a path shorter than the window the
        mean of its tokens, NaN without a token.
    """

    lows: np.ndarray
    n_tokens: np.ndarray
    lowest: float

    def stopped_at(self, bars: np.ndarray) -> np.ndarray:
        """`(R,)` tokens at which the path first has a full window below each bar `(R,)`; -1 where
        it never has."""
        place = np.searchsorted(-self.lows, -np.asarray(bars, dtype=np.float64), side="right")
        return np.append(self.n_tokens, -1)[place]


def group_minima(confidence: np.ndarray, window: int) -> GroupMinima:
    """The new lows of the means of all full windows of a path's token confidences.

    Parameters
    ----------
    confidence : `(n,)` float, token confidences (minus the mean log-probability of the most likely
        tokens, nats).
    window : tokens per group.
    """
    if window < 1:
        raise ConfigError(
            f"The 'window' of the group confidence must be at least 1 token. Got {window} instead."
        )
    confidence = np.asarray(confidence, dtype=np.float64)
    n = len(confidence)
    none = np.empty(0)
    if n < window:
        lowest = float(confidence.mean()) if n else float("nan")
        return GroupMinima(lows=none, n_tokens=none.astype(np.int64), lowest=lowest)
    sums = np.cumsum(np.concatenate([[0.0], confidence]))
    groups = (sums[window:] - sums[:-window]) / window
    before = np.concatenate([[np.inf], np.minimum.accumulate(groups)[:-1]])
    new = np.flatnonzero(groups < before)
    return GroupMinima(lows=groups[new], n_tokens=new + window, lowest=float(groups.min()))


def adaptive_consistency(
    codes: np.ndarray, lengths: np.ndarray, *, threshold: float = 0.95
) -> Stopped:
    """Stop as soon as the leading answer is the majority of the two most frequent ones with
    probability `threshold` (Adaptive-Consistency, arXiv 2305.11860, the Beta criterion):

        1 - I_0.5(v1 + 1, v2 + 1) >= threshold

    v1 and v2 are the votes of the two most frequent answers and I the regularised incomplete beta
    function: the posterior of the first one's share, from a uniform prior. A path without an answer
    is drawn and paid for, but is no vote.

    Parameters
    ----------
    codes : `(R, n)` int answers in the order of drawing, `NO_ANSWER` without one; n is the most
        that may be drawn.
    lengths : `(R, n)` int tokens of the complete paths.
    """
    from scipy.special import betainc

    _check_share("threshold", threshold)
    counts = _running(codes, np.ones(codes.shape))
    first, second = _two_largest(counts)
    return _up_to(codes, lengths, 1 - betainc(first + 1, second + 1, 0.5) >= threshold)


def esc(codes: np.ndarray, lengths: np.ndarray, *, window: int = 8) -> Stopped:
    """Draw windows of `window` paths until all answers of one window agree; all drawn paths vote
    (Early-stopping self-consistency, arXiv 2401.10480).

    A window with a path without an answer does not agree. What is left of n after the last full
    window is drawn too. Arguments as in `adaptive_consistency`.
    """
    if window < 1:
        raise ConfigError(f"The 'window' of ESC must be at least 1 path. Got {window} instead.")
    stop = np.zeros(codes.shape, dtype=bool)
    for start in range(0, codes.shape[1] - window + 1, window):
        block = codes[:, start : start + window]
        agree = (block == block[:, :1]).all(axis=1) & (block[:, 0] != NO_ANSWER)
        stop[:, start + window - 1] = agree
    return _up_to(codes, lengths, stop)


def deepconf_online(
    codes: np.ndarray,
    lengths: np.ndarray,
    order: np.ndarray,
    minima: Sequence[GroupMinima],
    *,
    n_warmup: int = 16,
    top: float = 10.0,
    consensus: float = 0.95,
) -> Stopped:
    """DeepConf online (arXiv 2508.15260): a bar from a few complete paths stops those
    that fall below it, and a clear leader stops sampling.

    The first `n_warmup` paths run to their end. The bar s is the percentile 100 - top of their
    lowest group confidences. Every later path stops at the first token where the mean confidence of
    a full window is below s. After the warm-up and after each later path, sampling stops when the
    leading answer has at least the share `consensus` of the weight of all complete paths. A path
    weighs as much as its lowest group confidence. As in the authors' released script, only those
    vote in the end whose lowest group confidence is at least s, which leaves out paths of the
    warm-up too; the script has no consensus stop, the paper has.

    Parameters
    ----------
    codes, lengths : as in `adaptive_consistency`; n is the budget in paths.
    order : `(R, n)` int, which path of `minima` each draw is.
    minima : one per path of the problem's pool. A path without a number neither sets the bar nor
        votes.
    top : percentage of the warm-up above the bar: 10 is the paper's "low", 90 its "high".
    consensus : share of the weight of the votes; above 1 switches the stop off.
    """
    n_rows, n = codes.shape
    if not 1 <= n_warmup <= n:
        raise ConfigError(
            f"The 'n_warmup' of DeepConf online must be from 1 to the number of paths ({n}). Got "
            f"{n_warmup} instead."
        )
    if not 0 <= top <= 100:
        raise ConfigError(
            f"The 'top' of DeepConf online must be a percentage from 0 to 100. Got {top} instead."
        )
    if consensus <= 0:
        raise ConfigError(
            f"The 'consensus' of DeepConf online must be above 0. Got {consensus} instead."
        )
    lowest = np.array([m.lowest for m in minima], dtype=np.float64)[order]
    bars = _percentile(lowest[:, :n_warmup], 100 - top)
    falls = np.stack([m.stopped_at(bars) for m in minima])  # (paths, R)
    at = falls[order, np.arange(n_rows)[:, None]]
    at[:, :n_warmup] = -1
    cut = at >= 0
    complete = ~cut & ~np.isnan(lowest)
    running = _running(np.where(complete, codes, NO_ANSWER), np.where(complete, lowest, 0.0))
    total, (leader, _) = running.sum(axis=2), _two_largest(running)
    stop = (total > 0) & (leader >= consensus * total * (1 - 1e-12))
    stop[:, : n_warmup - 1] = False
    drawn = _drawn(stop)
    voters = drawn & complete & (lowest >= bars[:, None])
    return Stopped(
        drawn=drawn,
        finished=drawn & ~cut,
        tokens=np.where(drawn, np.where(cut, at, lengths), 0).astype(np.int64),
        voters=voters,
        weights=np.where(voters, lowest, 0.0),
    )


def _up_to(codes: np.ndarray, lengths: np.ndarray, stop: np.ndarray) -> Stopped:
    """Complete paths are drawn until `stop`; one path, one vote."""
    drawn = _drawn(stop)
    return Stopped(
        drawn=drawn,
        finished=drawn.copy(),
        tokens=np.where(drawn, lengths, 0).astype(np.int64),
        voters=drawn.copy(),
        weights=drawn.astype(np.float64),
    )


def _drawn(stop: np.ndarray) -> np.ndarray:
    """`(R, n)` bool: everything up to the first stop, itself included; all without one."""
    before = np.cumsum(stop, axis=1) - stop
    return before == 0


def _running(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`(R, n, n_codes)` weight of the votes of each answer after each draw; at least two answers
    wide, so that there always is a second."""
    n_codes = max(2, int(codes.max(initial=NO_ANSWER)) + 1)
    votes = (codes[:, :, None] == np.arange(n_codes)) * weights[:, :, None]
    return np.cumsum(votes, axis=1)


def _two_largest(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest and the second largest along the last axis."""
    top = np.partition(values, values.shape[-1] - 2, axis=-1)
    return top[..., -1], top[..., -2]


def _percentile(values: np.ndarray, q: float) -> np.ndarray:
    """`(R,)` percentile of every row without its NaN; +inf in a row of NaN: nothing reaches it."""
    known = ~np.isnan(values).all(axis=1)
    bars = np.full(len(values), np.inf)
    if known.any():
        bars[known] = np.nanpercentile(values[known], q, axis=1)
    return bars


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ConfigError(f"The '{name}' parameter must be between 0 and 1. Got {value} instead.")

"""The rows every method is measured against: no pruning, random pruning, and the oracle.

Arrays only, like `evaluate`. What has a closed form is not simulated.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prunebench import metrics
from prunebench.evaluate import (
    PER_SUBSET,
    ProblemPool,
    ProblemResult,
    evaluate_problem,
    outcome,
    prune,
)
from prunebench.pruning import Pruning
from prunebench.select import Finished
from prunebench.vote import VOTE_OPTIONS, Aggregator, VoteOptions

RANDOM_DRAWS = 200
"""Votes simulated per problem for random pruning, when there are fewer subsets than that."""


def no_pruning(pool: ProblemPool, subsets: np.ndarray, *, prefix_length: int) -> ProblemResult:
    """The row `none`: all paths finish and vote by majority; there is no signal to measure."""
    everything = np.ones(subsets.shape, dtype=bool)
    lengths = pool.lengths[subsets]
    return outcome(pool, subsets, everything, lengths, np.zeros(subsets.shape))


def random_pruning(
    pool: ProblemPool,
    subsets: np.ndarray,
    *,
    keep: int,
    prefix_length: int,
    policy: Finished = Finished.compete,
    pruning: Pruning | None = None,
    as_many_as: np.ndarray | None = None,
    aggregator: Aggregator = Aggregator.majority,
    options: VoteOptions = VOTE_OPTIONS,
    rng: np.random.Generator,
) -> ProblemResult:
    """The row `random`: exact expectations of everything but the vote, which is simulated.

    Every path that competes is kept with probability keep / n_competing, and the number of kept
    paths is fixed, so avg, tokens and killed paths have closed forms; with COMPETE avg equals
    avg@N. The vote is averaged over at least `RANDOM_DRAWS` draws per problem. With several stages
    and KEEP_FREE everything is simulated.

    Parameters
    ----------
    as_many_as : `(R,)` the number of paths to keep in each subset (NaN: not known, no result), in
        place of a rule about scores: the control of a method that decides how many it keeps.
    """
    pruning = pruning or Pruning(((prefix_length, keep),), policy=policy)
    n_rows, n = subsets.shape
    times = -(-RANDOM_DRAWS // n_rows)
    repeated = np.repeat(subsets, times, axis=0)
    noise = [rng.random(repeated.shape) for _ in pruning.stages]
    if as_many_as is not None:
        kept, tokens = _as_many(
            pool, repeated, noise[0], np.repeat(as_many_as, times), prefix_length, pruning.policy
        )
    else:
        kept, tokens = prune(pool, repeated, noise, pruning)
    drawn = outcome(pool, repeated, kept, tokens, noise[-1], aggregator, options)
    simulated = replace(
        drawn,
        **{name: getattr(drawn, name).reshape(n_rows, times).mean(axis=1) for name in PER_SUBSET},
    )
    correct, lengths = pool.correct[subsets], pool.lengths[subsets]
    n_correct = correct.sum(axis=1)
    known = {
        "full_tokens": lengths.sum(axis=1, dtype=np.float64),
        "n_correct": n_correct,
        "auroc": np.where((n_correct > 0) & (n_correct < n), 0.5, np.nan),
    }
    chances = _chances(pool, subsets, pruning, as_many_as)
    if chances is None:
        return replace(simulated, **known)
    p_keep, expected = chances
    exact = replace(
        simulated,
        avg=(p_keep * correct).sum(axis=1) / np.maximum(p_keep.sum(axis=1), 1e-12),
        generator_tokens=expected.sum(axis=1),
        n_kept=p_keep.sum(axis=1),
        killed_correct=((1 - p_keep) * correct).sum(axis=1),
        **known,
    )
    return exact if as_many_as is None else _only(exact, ~np.isnan(as_many_as))


def _as_many(
    pool: ProblemPool,
    subsets: np.ndarray,
    scores: np.ndarray,
    counts: np.ndarray,
    prefix_length: int,
    policy: Finished,
) -> tuple[np.ndarray, np.ndarray]:
    """Kept paths and tokens when each subset keeps its own number of paths, the highest scores
    first; with KEEP_FREE the finished ones are among them."""
    free = np.zeros(subsets.shape, dtype=bool)
    if policy is Finished.keep_free:
        free = pool.finished(prefix_length)[subsets]
    first = np.where(free, np.inf, scores)
    rank = np.argsort(np.argsort(-first, axis=1, kind="stable"), axis=1)
    kept = rank < np.nan_to_num(counts)[:, None]
    lengths = pool.lengths[subsets]
    return kept, np.where(kept, lengths, np.minimum(lengths, prefix_length))


def _only(result: ProblemResult, known: np.ndarray) -> ProblemResult:
    """The result without the subsets of which nothing is known."""
    if known.all():
        return result
    names = (*PER_SUBSET, "auroc")
    return replace(result, **{n: np.where(known, getattr(result, n), np.nan) for n in names})


def _chances(
    pool: ProblemPool, subsets: np.ndarray, pruning: Pruning, as_many_as: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """`(R, n)` probability that random pruning keeps a path, and its expected tokens; None where
    there is no closed form."""
    lengths, n = pool.lengths[subsets].astype(np.float64), subsets.shape[1]
    free = np.zeros(subsets.shape, dtype=bool)
    if pruning.policy is Finished.keep_free:
        free = pool.finished(pruning.prefix_length)[subsets]
    n_competing = (~free).sum(axis=1, keepdims=True)
    slots = None
    if as_many_as is not None:
        slots = np.nan_to_num(as_many_as)[:, None] - free.sum(axis=1, keepdims=True)
    elif len(pruning.stages) == 1:
        slots = np.full((len(subsets), 1), float(pruning.keep))
    if slots is not None:
        p_keep = np.clip(slots, 0, n_competing) / np.maximum(n_competing, 1)
        p_keep = np.where(free, 1.0, p_keep)
        before = np.minimum(lengths, pruning.prefix_length)
        return p_keep, before + p_keep * (lengths - before)
    if pruning.policy is not Finished.compete:
        return None
    budgets = [(length, np.float64(keep)) for length, keep in pruning.stages]
    ends = [*(length for length, _ in budgets[1:]), np.inf]
    tokens = np.minimum(lengths, budgets[0][0])
    p_keep = np.ones(lengths.shape)
    for (start, keep), end in zip(budgets, ends, strict=True):
        p_keep = np.broadcast_to(keep / n, lengths.shape)
        tokens = tokens + p_keep * (np.minimum(lengths, end) - np.minimum(lengths, start))
    return p_keep, tokens


def oracle_pruning(
    pool: ProblemPool,
    subsets: np.ndarray,
    *,
    keep: int,
    prefix_length: int,
    policy: Finished = Finished.compete,
    pruning: Pruning | None = None,
    as_many_as: np.ndarray | None = None,
    aggregator: Aggregator = Aggregator.majority,
    options: VoteOptions = VOTE_OPTIONS,
) -> ProblemResult:
    """The row `oracle`: right paths first. No signal can exceed its avg. `as_many_as` as in
    `random_pruning`."""
    scores = pool.correct.astype(np.float64)
    pruning = pruning or Pruning(((prefix_length, keep),), policy=policy)
    if as_many_as is not None:
        right = scores[subsets]
        kept, tokens = _as_many(pool, subsets, right, as_many_as, prefix_length, pruning.policy)
        result = outcome(pool, subsets, kept, tokens, right, aggregator, options)
        result = replace(result, auroc=metrics.auroc(right, pool.correct[subsets]))
        return _only(result, ~np.isnan(as_many_as))
    return evaluate_problem(
        pool,
        subsets,
        [scores] * len(pruning.stages),
        keep=keep,
        prefix_length=prefix_length,
        pruning=pruning,
        aggregator=aggregator,
        options=options,
    )

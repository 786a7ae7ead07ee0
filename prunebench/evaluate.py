"""Prune and vote on many random subsets of a problem's pool.

Works on arrays only: lengths, answer codes, right or wrong. It knows no method, no engine and no
file; scores come in as an array. Everything about one problem is vectorised over the subsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from prunebench import metrics
from prunebench.cost import Cost
from prunebench.errors import ConfigError
from prunebench.select import Finished, check_keep, top_k
from prunebench.types import Trace
from prunebench.vote import NO_ANSWER, Aggregator, credit, vote

RANDOM_DRAWS = 200
"""Votes simulated per problem for random pruning, when there are fewer subsets than that."""


class Status(StrEnum):
    """What became of a cell."""

    OK = "ok"
    PARTIAL = "partial"  # some problems failed; the numbers are about the others
    FAILED = "failed"
    SKIPPED = "skipped"  # not tried, for example because the backend lacks something


@dataclass(frozen=True, kw_only=True, eq=False)
class ProblemPool:
    """All complete paths of one problem, as arrays in ascending order of path index.

    Attributes
    ----------
    problem_id : the problem.
    indices : `(P,)` int, the index of each path.
    lengths : `(P,)` int, generated tokens of the complete path.
    stopped : `(P,)` bool, the model ended the path itself.
    codes : `(P,)` int, position of the path's answer in `answers`, -1 without an answer.
    correct : `(P,)` bool.
    answers : the distinct answers, by first appearance.
    """

    problem_id: str
    indices: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    codes: np.ndarray
    correct: np.ndarray
    answers: list[str]

    @property
    def right_codes(self) -> np.ndarray:
        """`(len(answers),)` bool, which answers equal the gold answer."""
        right = np.zeros(len(self.answers), dtype=bool)
        right[self.codes[self.correct & (self.codes != NO_ANSWER)]] = True
        return right

    def finished(self, prefix_length: int) -> np.ndarray:
        """`(P,)` bool, the path ended by itself at or before the checkpoint."""
        return self.stopped & (self.lengths <= prefix_length)


@dataclass(frozen=True, kw_only=True, eq=False)
class ProblemResult:
    """What one method did to one problem. Arrays have one entry per subset, `(R,)`.

    Attributes
    ----------
    avg : avg@k|N, accuracy of the kept paths.
    cons : cons@k|N, probability that the vote is right.
    generator_tokens, verifier_tokens : tokens of this problem; the generator's include probes.
    full_tokens : generator tokens without pruning.
    killed_correct, n_correct : right paths dropped, and right paths there were.
    auroc : of the scores against right and wrong, NaN where only one class occurs.
    kept : indices of the paths kept in the first subset.
    answer : the answer voted in the first subset (of tied ones, the first seen), or None.
    n_nan : paths of the pool whose score was NaN in at least one subset.
    probe_tokens, calls, money : tokens sampled to probe, requests to a server, and what they
        cost (NaN without a price), for n_paths paths.
    score_seconds : seconds it took to score n_paths paths, NaN when not measured.
    status, reason : a failed problem has empty arrays and a reason; the reason of a good one says
        why some of its paths could not be scored.
    """

    problem_id: str
    avg: np.ndarray
    cons: np.ndarray
    generator_tokens: np.ndarray
    verifier_tokens: np.ndarray
    full_tokens: np.ndarray
    killed_correct: np.ndarray
    n_correct: np.ndarray
    auroc: np.ndarray
    kept: list[int]
    answer: str | None
    n_nan: int = 0
    probe_tokens: float = 0.0
    calls: float = 0.0
    money: float = 0.0
    score_seconds: float = float("nan")
    status: Status = Status.OK
    reason: str = ""

    @property
    def n_subsets(self) -> int:
        return len(self.avg)


def pool_of(problem_id: str, traces: Sequence[Trace]) -> ProblemPool:
    """The arrays of a problem's complete traces, sorted by path index."""
    traces = sorted(traces, key=lambda trace: trace.index)
    code_of: dict[str, int] = {}
    codes = [
        NO_ANSWER if t.answer is None else code_of.setdefault(t.answer, len(code_of))
        for t in traces
    ]
    return ProblemPool(
        problem_id=problem_id,
        indices=np.array([t.index for t in traces], dtype=np.int64),
        lengths=np.array([t.n_tokens for t in traces], dtype=np.int64),
        stopped=np.array([t.stopped for t in traces], dtype=bool),
        codes=np.array(codes, dtype=np.int64),
        correct=np.array([t.correct for t in traces], dtype=bool),
        answers=list(code_of),
    )


def draw_subsets(n_pool: int, n_paths: int, n_subsets: int, rng: np.random.Generator) -> np.ndarray:
    """Random subsets of a pool, each drawn without replacement.

    Returns
    -------
    subsets : `(n_subsets, n_paths)` int positions in the pool, ascending in every row. When the
        pool has exactly n_paths paths there is only one subset, and one row.
    """
    if not 1 <= n_paths <= n_pool:
        raise ConfigError(
            f"The 'n_paths' parameter must be an integer from 1 to the number of paths in the "
            f"pool ({n_pool}). Got {n_paths} instead. Generate a larger pool or lower 'n_paths'."
        )
    if n_subsets < 1:
        raise ConfigError(f"The 'n_subsets' parameter must be at least 1. Got {n_subsets} instead.")
    if n_paths == n_pool:
        return np.arange(n_pool)[None, :]
    noise = rng.random((n_subsets, n_pool))
    return np.sort(np.argpartition(noise, n_paths - 1, axis=1)[:, :n_paths], axis=1)


def evaluate_problem(
    pool: ProblemPool,
    subsets: np.ndarray,
    scores: np.ndarray,
    *,
    keep: int,
    prefix_length: int,
    policy: Finished = Finished.compete,
    aggregator: Aggregator = Aggregator.majority,
    costs: Sequence[Cost] = (Cost(seconds=float("nan")),),
    reason: str = "",
) -> ProblemResult:
    """Prune every subset by its scores, finish the kept paths and vote.

    Parameters
    ----------
    subsets : `(R, n)` int positions in the pool, ascending in every row.
    scores : `(R, n)` float, higher = keep, NaN = could not be scored.
    costs : of scoring each subset, or one for all of them.
    reason : why scores are NaN, if any is.

    Returns
    -------
    result : failed, with a reason, when not one path could be scored: such a "method" would
        silently keep the first paths.
    """
    unscored = np.isnan(scores)
    if unscored.all():
        return failed_problem(
            pool.problem_id, reason or "no path could be scored: every score is NaN"
        )
    lost = np.atleast_1d(unscored.all(axis=1))  # nothing chose: such a subset has no result
    kept = top_k(scores, keep, finished=pool.finished(prefix_length)[subsets], policy=policy)
    result = _outcome(pool, subsets, kept, scores, prefix_length, aggregator)
    if lost.any():
        names = ("avg", "cons", "generator_tokens", "verifier_tokens", "full_tokens")
        rows = {n: np.where(lost, np.nan, getattr(result, n)) for n in (*names, "killed_correct")}
        first = {"kept": [], "answer": None} if lost[0] else {}
        result = replace(result, **rows, **first)
    return replace(
        result,
        generator_tokens=result.generator_tokens + _column(costs, "probe_tokens"),
        verifier_tokens=result.verifier_tokens + _column(costs, "verifier_tokens"),
        auroc=np.where(lost, np.nan, metrics.auroc(scores, pool.correct[subsets])),
        n_nan=len(np.unique(subsets[unscored])),
        probe_tokens=float(_column(costs, "probe_tokens").mean()),
        calls=float(_column(costs, "requests").mean()),
        money=float(_column(costs, "money").mean()),
        score_seconds=metrics.mean_defined(_column(costs, "seconds")),
        reason=reason if unscored.any() else "",
    )


def _column(costs: Sequence[Cost], name: str) -> np.ndarray:
    return np.array([getattr(cost, name) for cost in costs], dtype=np.float64)


def no_pruning(pool: ProblemPool, subsets: np.ndarray, *, prefix_length: int) -> ProblemResult:
    """The row `none`: all paths finish and vote by majority; there is no signal to measure."""
    everything = np.ones(subsets.shape, dtype=bool)
    scores = np.zeros(subsets.shape)
    return _outcome(pool, subsets, everything, scores, prefix_length, Aggregator.majority)


def random_pruning(
    pool: ProblemPool,
    subsets: np.ndarray,
    *,
    keep: int,
    prefix_length: int,
    policy: Finished = Finished.compete,
    aggregator: Aggregator = Aggregator.majority,
    rng: np.random.Generator,
) -> ProblemResult:
    """The row `random`: exact expectations of everything but the vote, which is simulated.

    Every path that competes is kept with probability keep / n_competing, and the number of kept
    paths is fixed, so avg, tokens and killed paths have closed forms; with COMPETE avg equals
    avg@N. The vote is averaged over at least `RANDOM_DRAWS` draws per problem.
    """
    n_rows, n = subsets.shape
    check_keep(keep, n)
    finished = pool.finished(prefix_length)[subsets]
    correct = pool.correct[subsets]
    free = finished if policy is Finished.keep_free else np.zeros_like(finished)
    n_competing = (~free).sum(axis=1, keepdims=True)
    n_slots = np.minimum(keep, n_competing)
    p_keep = np.where(free, 1.0, n_slots / np.maximum(n_competing, 1))

    times = -(-RANDOM_DRAWS // n_rows)
    repeated = np.repeat(subsets, times, axis=0)
    scores = rng.random(repeated.shape)
    kept = top_k(scores, keep, finished=pool.finished(prefix_length)[repeated], policy=policy)
    simulated = _outcome(pool, repeated, kept, scores, prefix_length, aggregator)
    n_correct = correct.sum(axis=1)
    return replace(
        simulated,
        avg=(p_keep * correct).sum(axis=1) / p_keep.sum(axis=1),
        cons=simulated.cons.reshape(n_rows, times).mean(axis=1),
        generator_tokens=metrics.generator_tokens(pool.lengths[subsets], p_keep, prefix_length),
        verifier_tokens=np.zeros(n_rows),
        full_tokens=pool.lengths[subsets].sum(axis=1, dtype=np.float64),
        killed_correct=((1 - p_keep) * correct).sum(axis=1),
        n_correct=n_correct,
        auroc=np.where((n_correct > 0) & (n_correct < n), 0.5, np.nan),
    )


def oracle_pruning(
    pool: ProblemPool,
    subsets: np.ndarray,
    *,
    keep: int,
    prefix_length: int,
    policy: Finished = Finished.compete,
    aggregator: Aggregator = Aggregator.majority,
) -> ProblemResult:
    """The row `oracle`: right paths first. No signal can exceed its avg."""
    scores = pool.correct[subsets].astype(np.float64)
    return evaluate_problem(
        pool,
        subsets,
        scores,
        keep=keep,
        prefix_length=prefix_length,
        policy=policy,
        aggregator=aggregator,
    )


def _outcome(
    pool: ProblemPool,
    subsets: np.ndarray,
    kept: np.ndarray,
    scores: np.ndarray,
    prefix_length: int,
    aggregator: Aggregator,
) -> ProblemResult:
    correct, lengths = pool.correct[subsets], pool.lengths[subsets]
    win = vote(aggregator, pool.codes[subsets], kept, scores)
    return ProblemResult(
        problem_id=pool.problem_id,
        avg=metrics.accuracy_of_kept(correct, kept),
        cons=credit(win, pool.right_codes),
        generator_tokens=metrics.generator_tokens(lengths, kept, prefix_length),
        verifier_tokens=np.zeros(len(subsets)),
        full_tokens=lengths.sum(axis=1, dtype=np.float64),
        killed_correct=metrics.killed_correct(correct, kept),
        n_correct=correct.sum(axis=1),
        auroc=np.full(len(subsets), np.nan),
        kept=[int(i) for i in pool.indices[subsets[0][kept[0]]]],
        answer=voted_answer(pool, subsets[0][kept[0]], win[0]),
    )


def voted_answer(pool: ProblemPool, kept: np.ndarray, win: np.ndarray) -> str | None:
    """The answer with the highest probability of winning; of tied ones, that of the kept path
    with the lowest index. `kept` are positions in the pool, ascending; `win` is `(n_codes,)`."""
    codes = pool.codes[kept]
    winners = [code for code in codes if code != NO_ANSWER and win[code] == win.max() > 0]
    return pool.answers[int(winners[0])] if winners else None


def failed_problem(problem_id: str, reason: str) -> ProblemResult:
    """A problem for which a method gave no result."""
    empty = np.empty(0)
    return ProblemResult(
        problem_id=problem_id,
        avg=empty,
        cons=empty,
        generator_tokens=empty,
        verifier_tokens=empty,
        full_tokens=empty,
        killed_correct=empty,
        n_correct=empty,
        auroc=empty,
        kept=[],
        answer=None,
        probe_tokens=float("nan"),
        calls=float("nan"),
        money=float("nan"),
        status=Status.FAILED,
        reason=reason,
    )

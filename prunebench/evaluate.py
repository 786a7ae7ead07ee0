"""Prune and vote on many random subsets of a problem's pool.

Works on arrays only: lengths, answer codes, right or wrong. It knows no method, no engine and no
file; scores come in as an array. Everything about one problem is vectorised over the subsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from prunebench import metrics
from prunebench.cost import Cost
from prunebench.drawn import Drawn
from prunebench.errors import ConfigError
from prunebench.pruning import Pruning
from prunebench.select import Finished, check_keep
from prunebench.types import Trace
from prunebench.vote import NO_ANSWER, VOTE_OPTIONS, Aggregator, VoteOptions, credit, vote, winners


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
    _drawn: list[Drawn] = field(default_factory=list, init=False, repr=False)

    @property
    def right_codes(self) -> np.ndarray:
        """`(len(answers),)` bool, which answers equal the gold answer."""
        right = np.zeros(len(self.answers), dtype=bool)
        right[self.codes[self.correct & (self.codes != NO_ANSWER)]] = True
        return right

    def finished(self, prefix_length: int) -> np.ndarray:
        """`(P,)` bool, the path ended by itself at or before the checkpoint."""
        return self.stopped & (self.lengths <= prefix_length)

    def drawn(self, subsets: np.ndarray) -> Drawn:
        """What cells with the same subsets share; the last subsets are remembered."""
        if not (self._drawn and np.array_equal(self._drawn[0].subsets, subsets)):
            self._drawn[:] = [Drawn(len(self.lengths), subsets)]
        return self._drawn[0]


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
    n_kept : paths that were finished and voted.
    auroc : of the scores against right and wrong, NaN where only one class occurs.
    kept : indices of the paths kept in the first subset.
    answer : the answer voted in the first subset (of tied ones, the first seen), or None.
    n_nan : paths of the pool whose score was NaN in at least one subset.
    probe_tokens, calls, money : tokens sampled to probe, requests to a server, and what they
        cost (NaN without a price), for n_paths paths.
    score_seconds : seconds it took to score n_paths paths, NaN when not measured.
    launch_seconds, check_seconds, resume_seconds : wall time of the phases of an online run, NaN in
        replay.
    check_bytes : memory that the check took beyond what the paths hold (GPU only), NaN else.
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
    n_kept: np.ndarray
    auroc: np.ndarray
    kept: list[int]
    answer: str | None
    n_nan: int = 0
    probe_tokens: float = 0.0
    calls: float = 0.0
    money: float = 0.0
    score_seconds: float = float("nan")
    launch_seconds: float = float("nan")
    check_seconds: float = float("nan")
    resume_seconds: float = float("nan")
    check_bytes: float = float("nan")
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
    scores: np.ndarray | Sequence[np.ndarray],
    *,
    keep: int,
    prefix_length: int,
    policy: Finished = Finished.compete,
    pruning: Pruning | None = None,
    aggregator: Aggregator = Aggregator.majority,
    options: VoteOptions = VOTE_OPTIONS,
    weights: np.ndarray | None = None,
    costs: Sequence[Cost] = (Cost(seconds=float("nan")),),
    reason: str = "",
) -> ProblemResult:
    """Prune every subset by its scores, finish the kept paths and vote.

    Parameters
    ----------
    subsets : `(R, n)` int positions in the pool, ascending in every row.
    scores : `(R, n)` float, higher = keep, NaN = could not be scored; or `(P,)`, the scores of the
        pool, which every subset shares. With several stages, one such array for each.
    pruning : checkpoints, budgets and rule; None means one checkpoint `prefix_length` where the
        best `keep` stay.
    aggregator, options : how the kept paths vote.
    weights : `(R, n)` or `(P,)` float, what the votes weigh; None means the scores of the last
        stage.
    costs : of scoring each subset, or one for all of them.
    reason : why scores are NaN, if any is.

    Returns
    -------
    result : failed, with a reason, when not one path could be scored: such a "method" would
        silently keep the first paths. AUROC is that of the first stage.
    """
    pruning = pruning or Pruning(((prefix_length, keep),), policy=policy)
    by_stage = [scores] if isinstance(scores, np.ndarray) else list(scores)
    unscored = np.isnan(by_stage[0])
    if unscored.all():
        return failed_problem(
            pool.problem_id, reason or "no path could be scored: every score is NaN"
        )
    shared = all(s.ndim == 1 for s in by_stage)
    if shared and pruning.is_plain and aggregator is Aggregator.majority:
        result = _plain_majority(pool, subsets, by_stage[0], keep, prefix_length)
        lost = np.atleast_1d(unscored[subsets].all(axis=1))
        n_nan = int(unscored.sum())
    else:
        full = [s[subsets] if s.ndim == 1 else s for s in by_stage]
        # nothing chose where every score is NaN: such a subset has no result
        lost = np.atleast_1d(np.isnan(full[0]).all(axis=1))
        n_nan = len(np.unique(subsets[np.isnan(full[0])]))
        kept, tokens = prune(pool, subsets, full, pruning)
        voting = full[-1] if weights is None else weights
        voting = voting[subsets] if voting.ndim == 1 else voting
        result = replace(
            outcome(pool, subsets, kept, tokens, voting, aggregator, options),
            auroc=metrics.auroc(full[0], pool.correct[subsets]),
        )
    if lost.any():
        rows = {n: np.where(lost, np.nan, getattr(result, n)) for n in (*PER_SUBSET, "auroc")}
        first = {"kept": [], "answer": None} if lost[0] else {}
        result = replace(result, **rows, **first)
    return replace(with_costs(result, costs), n_nan=n_nan, reason=reason if n_nan else "")


def with_costs(result: ProblemResult, costs: Sequence[Cost]) -> ProblemResult:
    """The result with the costs of scoring each subset, or of one for all of them, added."""
    return replace(
        result,
        generator_tokens=result.generator_tokens + _column(costs, "probe_tokens"),
        verifier_tokens=result.verifier_tokens + _column(costs, "verifier_tokens"),
        probe_tokens=float(_column(costs, "probe_tokens").mean()),
        calls=float(_column(costs, "requests").mean()),
        money=float(_column(costs, "money").mean()),
        score_seconds=metrics.mean_defined(_column(costs, "seconds")),
    )


def _column(costs: Sequence[Cost], name: str) -> np.ndarray:
    return np.array([getattr(cost, name) for cost in costs], dtype=np.float64)


def sampled_outcome(
    pool: ProblemPool,
    subsets: np.ndarray,
    *,
    voters: np.ndarray,
    tokens: np.ndarray,
    weights: np.ndarray | None = None,
) -> ProblemResult:
    """The result of a rule that decides which paths are sampled at all (`stopping`).

    Parameters
    ----------
    voters : `(R, n)` bool, the paths that were finished and vote.
    tokens : `(R, n)` tokens generated of every path, 0 for those never begun.
    weights : `(R, n)` positive weights of the votes, summed by answer; None is a plain majority.
    """
    if weights is None:
        return outcome(pool, subsets, voters, tokens, np.zeros(subsets.shape))
    return outcome(pool, subsets, voters, tokens, weights, Aggregator.score_sum)


PER_SUBSET = (
    *("avg", "cons", "generator_tokens", "verifier_tokens", "full_tokens"),
    *("killed_correct", "n_kept"),
)
"""Arrays of a result that a subset without any score does not have."""


def prune(
    pool: ProblemPool, subsets: np.ndarray, scores: Sequence[np.ndarray], pruning: Pruning
) -> tuple[np.ndarray, np.ndarray]:
    """Prune subsets at every checkpoint in turn.

    Parameters
    ----------
    scores : one `(R, n)` array per stage; values of paths that are gone by then are not looked at.

    Returns
    -------
    kept, tokens : `(R, n)` bool, and the tokens generated of every path.
    """
    lengths = pool.lengths[subsets]
    alive = np.ones(subsets.shape, dtype=bool)
    tokens = lengths.copy()
    for stage, (length, _) in enumerate(pruning.stages):
        finished = pool.finished(length)[subsets]
        survivors = pruning.survivors(stage, scores[stage], finished, alive)
        dropped = alive & ~survivors
        tokens[dropped] = np.minimum(lengths, length)[dropped]
        alive = survivors
    return alive, tokens


def _plain_majority(
    pool: ProblemPool, subsets: np.ndarray, scores: np.ndarray, keep: int, prefix_length: int
) -> ProblemResult:
    """`prune` and `outcome` for one checkpoint, the best k and a majority, where all subsets share
    the scores of the pool."""
    n_rows, n = subsets.shape
    check_keep(keep, n)
    drawn = pool.drawn(subsets)
    ranked = drawn.ranked(pool, scores)
    kept = ranked.kept(keep)
    correct, lengths = pool.correct[ranked.order], pool.lengths[ranked.order]
    beyond = lengths - np.minimum(lengths, prefix_length)
    n_codes = len(pool.answers)
    votes = pool.codes[ranked.order] == np.arange(n_codes)[:, None]
    # float32 adds whole numbers exactly up to 2^24; tokens are split into parts that stay below
    parts = np.vstack([votes, correct, beyond // 4096, beyond % 4096]).astype(np.float32)
    sums = parts @ kept.astype(np.float32)
    kept_right = sums[n_codes].astype(np.float64)
    resumed = 4096.0 * sums[n_codes + 1] + sums[n_codes + 2]
    win = winners(sums[:n_codes].T.astype(np.float64))
    first = np.sort(ranked.order[kept[:, 0]])
    return ProblemResult(
        problem_id=pool.problem_id,
        avg=kept_right / keep,
        cons=credit(win, pool.right_codes),
        generator_tokens=drawn.total(np.minimum(pool.lengths, prefix_length)) + resumed,
        verifier_tokens=np.zeros(n_rows),
        full_tokens=drawn.total(pool.lengths),
        killed_correct=ranked.n_correct - kept_right,
        n_correct=ranked.n_correct,
        n_kept=np.full(n_rows, float(keep)),
        auroc=ranked.auroc,
        kept=[int(i) for i in pool.indices[first]],
        answer=voted_answer(pool, first, win[0]),
    )


def outcome(
    pool: ProblemPool,
    subsets: np.ndarray,
    kept: np.ndarray,
    tokens: np.ndarray,
    weights: np.ndarray,
    aggregator: Aggregator = Aggregator.majority,
    options: VoteOptions = VOTE_OPTIONS,
) -> ProblemResult:
    correct, lengths = pool.correct[subsets], pool.lengths[subsets]
    win = vote(aggregator, pool.codes[subsets], kept, weights, options)
    return ProblemResult(
        problem_id=pool.problem_id,
        avg=metrics.accuracy_of_kept(correct, kept),
        cons=credit(win, pool.right_codes),
        generator_tokens=tokens.sum(axis=1, dtype=np.float64),
        verifier_tokens=np.zeros(len(subsets)),
        full_tokens=lengths.sum(axis=1, dtype=np.float64),
        killed_correct=metrics.killed_correct(correct, kept),
        n_correct=correct.sum(axis=1),
        n_kept=kept.sum(axis=1, dtype=np.float64),
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
        n_kept=empty,
        auroc=empty,
        kept=[],
        answer=None,
        probe_tokens=float("nan"),
        calls=float("nan"),
        money=float("nan"),
        status=Status.FAILED,
        reason=reason,
    )

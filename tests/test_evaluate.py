"""Pruning and voting over subsets: a hand-calculated example, loops and exhaustive enumeration."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields, replace
from itertools import combinations

import numpy as np
import pytest

from prunebench.cells import CSV_COLUMNS, Cell, failed_cell, summarise
from prunebench.cost import Cost
from prunebench.errors import ConfigError
from prunebench.evaluate import (
    ProblemPool,
    Status,
    draw_subsets,
    evaluate_problem,
    failed_problem,
    pool_of,
)
from prunebench.references import no_pruning, oracle_pruning, random_pruning
from prunebench.select import Finished
from prunebench.types import SignalType, TokenStats, Trace
from prunebench.vote import Aggregator

NAN = float("nan")
CELL = Cell(
    run_id="r1",
    model="tiny",
    dataset="arithmetic",
    method="some_method",
    type=SignalType.III,
    mode="replay",
    n_paths=4,
    keep=2,
    prefix_length=4,
)


def pool_by_hand(
    problem_id: str, lengths: list[int], answers: list[str | None], stopped: list[bool]
) -> ProblemPool:
    """Right is the answer 'x'. Traces are given in reverse order, which must not matter."""
    traces = [
        Trace(
            index=i,
            token_ids=np.zeros(n, dtype=np.int32),
            text="",
            stats=TokenStats(),
            stopped=stop,
            answer=answer,
            correct=answer == "x",
        )
        for i, (n, answer, stop) in enumerate(zip(lengths, answers, stopped, strict=True))
    ]
    return pool_of(problem_id, traces[::-1])


def random_pool(rng: np.random.Generator, n: int) -> ProblemPool:
    codes = rng.integers(-1, 4, size=n)
    return ProblemPool(
        problem_id="p",
        indices=np.arange(n) * 3 + 1,
        lengths=rng.integers(1, 30, size=n),
        stopped=rng.random(n) < 0.8,
        codes=codes,
        correct=codes == 2,
        answers=["a", "b", "x", "d"],
    )


A = pool_by_hand("A", [6, 8, 10, 4], ["x", "y", "x", None], [True] * 4)
B = pool_by_hand("B", [4, 4, 12, 4], ["x", "x", "y", "x"], [True, True, True, False])
ALL = np.arange(4)[None, :]
SCORES = {"A": np.array([[1.0, 4, 3, 2]]), "B": np.array([[4.0, 3, 2, 1]])}


def evaluated(pool: ProblemPool):
    return evaluate_problem(
        pool,
        ALL,
        SCORES[pool.problem_id],
        keep=2,
        prefix_length=4,
        costs=[Cost(verifier_tokens=3.0)],
    )


def test_pool_of_traces():
    assert A.answers == ["x", "y"]
    assert A.codes.tolist() == [0, 1, 0, -1]
    assert A.correct.tolist() == [True, False, True, False]
    assert A.lengths.tolist() == [6, 8, 10, 4]
    assert A.right_codes.tolist() == [True, False]
    # A path cut by max_new_tokens is not finished, however short it is.
    assert B.finished(4).tolist() == [True, True, False, False]
    assert B.finished(12).tolist() == [True, True, True, False]


def test_two_problems_by_hand():
    a, b = evaluated(A), evaluated(B)
    # A keeps paths 1 and 2: one of two is right, y and x tie; 16 tokens before, 4 + 6 after.
    assert (a.avg[0], a.cons[0], a.generator_tokens[0]) == (0.5, 0.5, 26)
    assert (a.kept, a.killed_correct[0], a.n_correct[0], a.full_tokens[0]) == ([1, 2], 1, 2, 28)
    assert a.auroc[0] == 0.25  # right 1 and 3 against wrong 4 and 2: one win of four
    assert (b.avg[0], b.cons[0], b.generator_tokens[0], b.kept) == (1.0, 1.0, 16, [0, 1])
    assert (b.answer, b.auroc[0]) == ("x", pytest.approx(2 / 3))

    rng = np.random.default_rng(0)
    options = {"keep": 2, "prefix_length": 4}
    line = summarise(
        CELL,
        [a, b],
        random=[random_pruning(p, ALL, **options, rng=rng) for p in (A, B)],
        oracle=[oracle_pruning(p, ALL, **options) for p in (A, B)],
    )
    assert (line.avg, line.cons, line.status, line.reason) == (0.75, 0.75, "ok", "")
    assert (line.generator_tokens, line.verifier_tokens, line.total_tokens) == (21, 3, 24)
    assert line.token_reduction_pct == pytest.approx(100 * (1 - 24 / 26))
    assert line.auroc_within == pytest.approx((0.25 + 2 / 3) / 2)
    assert line.headroom == pytest.approx((0.75 - 0.625) / (1 - 0.625))
    assert (line.avg_lo, line.avg_hi) == (0.5, 1.0)


def slow_problem(
    pool: ProblemPool,
    subset: np.ndarray,
    scores: np.ndarray,
    keep: int,
    prefix_length: int,
    policy: Finished,
) -> dict[str, float]:
    """One subset, path by path."""
    order = sorted(
        range(len(subset)),
        key=lambda j: (scores[j] != scores[j], -scores[j] if scores[j] == scores[j] else 0, j),
    )
    kept, slots = [], keep
    for j in order:
        i = subset[j]
        done = bool(pool.stopped[i]) and pool.lengths[i] <= prefix_length
        if policy is Finished.keep_free and done:
            kept.append(i)
        elif slots > 0:
            kept.append(i)
            slots -= 1
    votes = Counter(pool.answers[pool.codes[i]] for i in kept if pool.codes[i] >= 0)
    top = [answer for answer, n in votes.items() if n == max(votes.values())]
    tokens = sum(
        int(pool.lengths[i]) if i in kept else min(int(pool.lengths[i]), prefix_length)
        for i in subset
    )
    return {
        "avg": float(np.mean([pool.correct[i] for i in kept])),
        "cons": ("x" in top) / len(top) if top else 0.0,
        "generator_tokens": tokens,
        "killed_correct": sum(bool(pool.correct[i]) for i in subset if i not in kept),
        "n_correct": int(pool.correct[subset].sum()),
        "full_tokens": int(pool.lengths[subset].sum()),
    }


@pytest.mark.parametrize("policy", list(Finished))
@pytest.mark.parametrize("seed", range(5))
def test_many_subsets_agree_with_a_loop(seed: int, policy: Finished):
    rng = np.random.default_rng(seed)
    pool = random_pool(rng, 20)
    subsets = draw_subsets(20, 8, 25, rng)
    per_path = rng.integers(0, 4, size=20).astype(float)
    per_path[rng.random(20) < 0.2] = NAN
    scores = per_path[subsets]
    for keep in (1, 3, 8):
        result = evaluate_problem(pool, subsets, scores, keep=keep, prefix_length=12, policy=policy)
        for r, subset in enumerate(subsets):
            slow = slow_problem(pool, subset, scores[r], keep, 12, policy)
            for name, value in slow.items():
                assert getattr(result, name)[r] == pytest.approx(value), name
        assert result.n_nan == len({int(i) for i in subsets.ravel() if np.isnan(per_path[i])})
        assert set(result.kept) <= set(pool.indices[subsets[0]].tolist())


@pytest.mark.parametrize("policy", list(Finished))
@pytest.mark.parametrize("seed", range(3))
def test_random_pruning_agrees_with_all_possible_choices(seed: int, policy: Finished):
    rng = np.random.default_rng(seed)
    pool, keep, prefix_length = random_pool(rng, 7), 3, 15
    subsets = np.arange(7)[None, :]
    # Under KEEP_FREE only the unfinished paths compete for the slots.
    free = pool.finished(prefix_length) & (policy is Finished.keep_free)
    competing = np.flatnonzero(~free)
    outcomes = []
    for chosen in combinations(competing, min(keep, len(competing))):
        scores = np.isin(np.arange(7), chosen) * 1.0
        outcomes.append(slow_problem(pool, subsets[0], scores, keep, prefix_length, policy))
    result = random_pruning(
        pool,
        np.repeat(subsets, 4000, axis=0),
        keep=keep,
        prefix_length=prefix_length,
        policy=policy,
        rng=rng,
    )
    for name in ("avg", "generator_tokens", "killed_correct", "n_correct", "full_tokens"):
        assert getattr(result, name)[0] == pytest.approx(np.mean([o[name] for o in outcomes]))
    assert result.cons.mean() == pytest.approx(np.mean([o["cons"] for o in outcomes]), abs=0.04)
    if policy is Finished.compete:
        assert result.avg[0] == pytest.approx(pool.correct.mean())


def test_random_scores_give_what_the_closed_form_says():
    rng = np.random.default_rng(7)
    pool = random_pool(rng, 30)
    subsets = draw_subsets(30, 10, 3000, rng)
    for policy in Finished:
        options = {"keep": 4, "prefix_length": 10, "policy": policy}
        drawn = evaluate_problem(pool, subsets, rng.random(subsets.shape), **options)
        exact = random_pruning(pool, subsets, **options, rng=rng)
        for name, tolerance in (("avg", 0.02), ("cons", 0.03), ("generator_tokens", 1.0)):
            assert getattr(drawn, name).mean() == pytest.approx(
                getattr(exact, name).mean(), abs=tolerance
            )
        assert np.nanmean(drawn.auroc) == pytest.approx(np.nanmean(exact.auroc), abs=0.02)


def test_one_subset_still_gives_a_steady_vote_for_random():
    pool = random_pool(np.random.default_rng(0), 12)
    subsets = draw_subsets(12, 12, 50, np.random.default_rng(0))
    values = [
        random_pruning(
            pool, subsets, keep=4, prefix_length=5, rng=np.random.default_rng(seed)
        ).cons.item()
        for seed in range(20)
    ]
    assert np.std(values) < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_no_signal_beats_the_oracle(seed: int):
    rng = np.random.default_rng(seed)
    pool = random_pool(rng, 16)
    subsets = draw_subsets(16, 9, 50, rng)
    for policy in Finished:
        options = {"keep": 3, "prefix_length": 10, "policy": policy}
        oracle = oracle_pruning(pool, subsets, **options)
        for _ in range(5):
            other = evaluate_problem(pool, subsets, rng.random(subsets.shape), **options)
            assert (other.avg <= oracle.avg + 1e-12).all()
        assert set(oracle.auroc[~np.isnan(oracle.auroc)]) <= {1.0}


def test_no_pruning_keeps_everything():
    result = no_pruning(A, ALL, prefix_length=4)
    assert (result.avg[0], result.cons[0], result.generator_tokens[0]) == (0.5, 1.0, 28)
    assert (result.kept, result.answer, result.killed_correct[0]) == ([0, 1, 2, 3], "x", 0)
    assert np.isnan(result.auroc).all()


def test_nobody_answers():
    pool = pool_by_hand("C", [5, 6], [None, None], [False, False])
    result = evaluate_problem(pool, ALL[:, :2], np.zeros((1, 2)), keep=1, prefix_length=3)
    assert (result.avg[0], result.cons[0], result.answer) == (0.0, 0.0, None)


def test_best_of_n_reaches_the_vote():
    scores = np.array([[1.0, 4, 3, 2]])
    result = evaluate_problem(
        A, ALL, scores, keep=4, prefix_length=4, aggregator=Aggregator.best_of_n
    )
    assert (result.answer, result.cons[0]) == ("y", 0.0)


def test_subsets_are_sorted_distinct_and_uniform():
    subsets = draw_subsets(10, 4, 5000, np.random.default_rng(0))
    assert subsets.shape == (5000, 4)
    assert (np.diff(subsets, axis=1) > 0).all()
    np.testing.assert_allclose(np.bincount(subsets.ravel()) / 5000, 0.4, atol=0.03)
    whole = draw_subsets(10, 10, 5000, np.random.default_rng(0))
    assert whole.tolist() == [list(range(10))]


@pytest.mark.parametrize(
    ("n_paths", "n_subsets", "message"),
    [(11, 5, r"'n_paths'.*\(10\).* Got 11"), (0, 5, "'n_paths'"), (4, 0, "'n_subsets'.* Got 0")],
)
def test_impossible_subsets(n_paths: int, n_subsets: int, message: str):
    with pytest.raises(ConfigError, match=message):
        draw_subsets(10, n_paths, n_subsets, np.random.default_rng(0))


def test_a_problem_without_any_score_fails_instead_of_keeping_the_first_paths():
    result = evaluate_problem(A, ALL, np.full((1, 4), NAN), keep=2, prefix_length=4)
    assert result.status is Status.FAILED
    assert "no path could be scored" in result.reason
    line = summarise(CELL, [evaluated(A), replace(result, problem_id="D")])
    assert line.status == "partial"
    assert line.avg == 0.5
    assert "1 of 2 problems failed (D: no path" in line.reason
    line = summarise(CELL, [result])
    assert line.status == "failed"
    assert math.isnan(line.avg)


def test_missing_numbers_have_reasons():
    one = summarise(CELL, [evaluated(A)])
    assert math.isnan(one.avg_lo)
    assert "no intervals: one problem only" in one.reason
    assert math.isnan(one.headroom)
    assert "no headroom: no random and oracle rows" in one.reason
    always = pool_by_hand("E", [5, 5], ["x", "x"], [True, True])
    sided = evaluate_problem(always, ALL[:, :2], np.array([[1.0, NAN]]), keep=1, prefix_length=3)
    line = summarise(CELL, [sided, replace(sided, problem_id="F")])
    assert math.isnan(line.auroc_within)
    assert "no AUROC: no problem has both right and wrong paths" in line.reason
    assert "2 paths could not be scored (NaN)" in line.reason


def test_headroom_uses_the_problems_all_rows_have():
    rows = {
        name: [replace(evaluated(A), problem_id=p, avg=np.array([v])) for p, v in values.items()]
        for name, values in {
            "method": {"p": 0.5},
            "random": {"p": 0.4, "q": 0.0},
            "oracle": {"p": 0.8, "q": 1.0},
        }.items()
    }
    line = summarise(CELL, rows["method"], random=rows["random"], oracle=rows["oracle"])
    assert line.headroom == pytest.approx(0.25)


def test_a_failed_cell_has_a_reason_and_no_numbers():
    line = failed_cell(CELL, Status.SKIPPED, "needs an\nendpoint")
    assert (line.status, line.reason, line.method) == (
        "skipped",
        "needs an endpoint",
        "some_method",
    )
    numbers = [getattr(line, f.name) for f in fields(line) if f.type == "float"]
    assert len(numbers) > 40
    assert all(math.isnan(n) for n in numbers)


def test_columns_of_the_table():
    identity = "model,dataset,method,type,mode,setting,rule,aggregator,weights,seed,n_paths,keep"
    assert ",".join(CSV_COLUMNS).startswith(
        f"{identity},prefix_length,n_problems,avg,avg_lo,avg_hi"
    )
    assert CSV_COLUMNS[-2:] == ("status", "reason")
    for name in ("avg", "cons", "n_kept", "total_tokens", "token_reduction_pct", "headroom"):
        assert {f"{name}_lo", f"{name}_hi"} <= set(CSV_COLUMNS)


def test_reference_cells():
    none = CELL.reference("none")
    assert (none.method, none.keep, none.type) == ("none", 4, SignalType.CONTROL)
    assert CELL.reference("random").keep == 2
    assert failed_problem("p", "why").n_subsets == 0

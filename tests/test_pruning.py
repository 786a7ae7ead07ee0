"""Several checkpoints, thresholds and shares: against loops, hand calculations and enumeration."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from prunebench.cells import Cell, summarise
from prunebench.config import RunConfig
from prunebench.errors import ConfigError
from prunebench.evaluate import ProblemPool, draw_subsets, evaluate_problem, prune
from prunebench.pruning import Pruning
from prunebench.references import no_pruning, oracle_pruning, random_pruning
from prunebench.select import Finished, Select, above_threshold, softmax_mass
from prunebench.types import SignalType
from prunebench.vote import Aggregator

NAN = float("nan")


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


@pytest.mark.parametrize("seed", range(6))
def test_scores_of_the_pool_give_what_scores_of_every_subset_give(seed: int):
    """The fast way (the pool sorted once) against the general one, ties and NaN included."""
    rng = np.random.default_rng(seed)
    pool = random_pool(rng, 20)
    subsets = draw_subsets(20, 9, 60, rng)
    scores = np.round(rng.normal(size=20), 1)
    scores[rng.random(20) < 0.2 * seed / 5] = NAN
    options = {"keep": int(rng.integers(1, 10)), "prefix_length": 12}
    fast = evaluate_problem(pool, subsets, scores, **options)
    general = evaluate_problem(pool, subsets, scores[subsets], **options)
    for name in ("avg", "cons", "generator_tokens", "full_tokens", "killed_correct", "n_kept"):
        np.testing.assert_allclose(getattr(fast, name), getattr(general, name), err_msg=name)
    np.testing.assert_allclose(fast.auroc, general.auroc)
    assert (fast.kept, fast.answer, fast.n_correct.tolist()) == (
        general.kept,
        general.answer,
        general.n_correct.tolist(),
    )
    assert fast.n_nan == np.isnan(scores).sum()


def one_by_one(pool: ProblemPool, members: list[int], scores: list[np.ndarray], stages):
    """Kept paths and tokens of one subset, path by path, as a person would."""
    alive, tokens = list(range(len(members))), {}
    for stage, (length, keep) in enumerate(stages):
        ranked = sorted(alive, key=lambda i: (-scores[stage][i], i))
        for i in ranked[keep:]:
            tokens[i] = min(pool.lengths[members[i]], length)
        alive = sorted(ranked[:keep])
    for i in alive:
        tokens[i] = pool.lengths[members[i]]
    return alive, [tokens[i] for i in range(len(members))]


@pytest.mark.parametrize("seed", range(4))
def test_several_checkpoints_agree_with_a_loop(seed: int):
    rng = np.random.default_rng(seed)
    pool = random_pool(rng, 14)
    subsets = draw_subsets(14, 8, 30, rng)
    stages = ((5, 6), (11, 3), (20, 2))
    scores = [rng.normal(size=14) for _ in stages]
    kept, tokens = prune(pool, subsets, [s[subsets] for s in scores], Pruning(stages))
    result = evaluate_problem(
        pool, subsets, scores, keep=2, prefix_length=20, pruning=Pruning(stages)
    )
    for row, members in enumerate(subsets.tolist()):
        alive, spent = one_by_one(pool, members, [s[members] for s in scores], stages)
        assert np.flatnonzero(kept[row]).tolist() == alive
        assert tokens[row].tolist() == spent
        assert result.generator_tokens[row] == sum(spent)
        assert result.avg[row] == np.mean([pool.correct[members[i]] for i in alive])


def test_random_pruning_at_several_checkpoints_agrees_with_all_orders():
    rng = np.random.default_rng(3)
    pool = random_pool(rng, 5)
    everything = np.arange(5)[None]
    pruning = Pruning(((4, 3), (9, 1)))
    exact = random_pruning(
        pool, everything, keep=1, prefix_length=9, pruning=pruning, rng=np.random.default_rng(0)
    )
    # a random score per stage is a random order per stage; 5!^2 pairs of them
    orders = [np.array(order, dtype=float) for order in permutations(range(5))]
    runs = [prune(pool, everything, [a[None], b[None]], pruning) for a in orders for b in orders]
    tokens = np.mean([spent.sum() for _, spent in runs])
    avg = np.mean([pool.correct[kept[0]].mean() for kept, _ in runs])
    killed = np.mean([(pool.correct & ~kept[0]).sum() for kept, _ in runs])
    assert exact.generator_tokens[0] == pytest.approx(tokens)
    assert exact.avg[0] == pytest.approx(avg)
    assert exact.killed_correct[0] == pytest.approx(killed)
    assert exact.n_kept[0] == 1


def test_a_threshold_keeps_what_reaches_it_and_never_nobody():
    scores = np.array([[0.2, 0.5, 0.9, NAN], [0.1, 0.2, 0.3, NAN]])
    finished = np.array([[False, False, False, True]] * 2)
    kept = above_threshold(scores, 0.5, finished=finished)
    assert kept.tolist() == [[False, True, True, False], [False, False, True, False]]
    free = above_threshold(scores, 0.5, finished=finished, policy=Finished.keep_free)
    assert free.tolist() == [[False, True, True, True], [False, False, False, True]]


def test_softmax_mass_by_hand():
    # z = (1, -1): shares 0.881 and 0.119
    scores = np.array([[2.0, 0.0], [5.0, 5.0], [NAN, 1.0]])
    nobody = np.zeros(scores.shape, dtype=bool)
    assert softmax_mass(scores, 0.88, finished=nobody).tolist() == [
        [True, False],
        [True, True],
        [False, True],
    ]
    assert softmax_mass(scores, 0.89, finished=nobody)[0].tolist() == [True, True]
    assert softmax_mass(scores, 0.5, finished=nobody)[1].tolist() == [True, False]
    everything = softmax_mass(np.full((1, 3), NAN), 0.9, finished=np.zeros((1, 3), dtype=bool))
    assert everything.sum() == 1


def test_controls_keep_as_many_as_the_rule_did():
    rng = np.random.default_rng(8)
    pool = random_pool(rng, 12)
    subsets = draw_subsets(12, 8, 50, rng)
    pruning = Pruning(((9, 8),), rule=Select.threshold, threshold=0.3)
    scores = rng.normal(size=12)
    result = evaluate_problem(pool, subsets, scores, keep=8, prefix_length=9, pruning=pruning)
    expected = np.maximum((scores[subsets] >= 0.3).sum(axis=1), 1)
    np.testing.assert_array_equal(result.n_kept, expected)
    options = {"keep": 8, "prefix_length": 9, "pruning": pruning, "as_many_as": result.n_kept}
    random = random_pruning(pool, subsets, rng=rng, **options)
    oracle = oracle_pruning(pool, subsets, **options)
    np.testing.assert_allclose(random.n_kept, expected)
    np.testing.assert_allclose(random.avg, pool.correct[subsets].mean(axis=1))
    lengths = pool.lengths[subsets]
    begun = np.minimum(lengths, 9)
    share = (expected / 8)[:, None]
    np.testing.assert_allclose(
        random.generator_tokens, (begun + share * (lengths - begun)).sum(axis=1)
    )
    n_right = pool.correct[subsets].sum(axis=1)
    np.testing.assert_allclose(oracle.avg, np.minimum(n_right, expected) / expected)
    np.testing.assert_array_equal(oracle.n_kept, expected)


def test_votes_weigh_by_another_signal_than_the_one_that_selects():
    pool = ProblemPool(
        problem_id="p",
        indices=np.arange(4),
        lengths=np.full(4, 9),
        stopped=np.ones(4, dtype=bool),
        codes=np.array([0, 0, 1, 1]),
        correct=np.array([False, False, True, True]),
        answers=["wrong", "right"],
    )
    selects = np.array([4.0, 3.0, 2.0, 1.0])  # keeps 0, 1 and 2
    options = {"keep": 3, "prefix_length": 4, "aggregator": Aggregator.best_of_n}
    everything = np.arange(4)[None]
    own = evaluate_problem(pool, everything, selects, **options)
    other = evaluate_problem(
        pool, everything, selects, weights=np.array([0.0, 0.0, 1.0, 9.0]), **options
    )
    assert own.kept == other.kept == [0, 1, 2]
    assert (own.answer, other.answer) == ("wrong", "right")
    assert (own.cons[0], other.cons[0]) == (0.0, 1.0)


def test_votes_turned_by_pruning_add_up():
    rng = np.random.default_rng(1)
    cell = Cell(
        run_id="",
        model="m",
        dataset="d",
        method="some",
        type=SignalType.I,
        mode="replay",
        n_paths=8,
        keep=2,
        prefix_length=9,
    )
    results, none = [], []
    for name in "abcdef":
        pool = replace(random_pool(rng, 16), problem_id=name)
        subsets = draw_subsets(16, 8, 40, rng)
        scores = rng.normal(size=16)
        results.append(evaluate_problem(pool, subsets, scores, keep=2, prefix_length=9))
        none.append(no_pruning(pool, subsets, prefix_length=9))
    line = summarise(cell, results, none=none)
    unpruned = float(np.mean([r.cons.mean() for r in none]))
    assert line.lost_votes > 0
    assert line.won_votes > 0
    assert line.cons == pytest.approx(unpruned - line.lost_votes + line.won_votes)
    killed = sum(r.killed_correct.mean() for r in results)
    assert line.killed_pct == pytest.approx(100 * killed / sum(r.n_correct.mean() for r in results))
    assert line.killed_pct_lo < line.killed_pct < line.killed_pct_hi


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ((9, 2), (5, 1))}, "ascending lengths"),
        ({"stages": ((5, 1), (9, 2))}, "do not grow"),
        ({"stages": ((5, 0),)}, "at least 1"),
        ({"stages": ()}, "list of"),
        ({"stages": ((5, 3),), "rule": Select.threshold}, "needs 'threshold'"),
        ({"stages": ((5, 3),), "rule": Select.mass, "mass": 1.5}, "at most 1"),
        ({"stages": ((5, 3), (9, 2)), "rule": Select.mass, "mass": 0.5}, "one checkpoint"),
    ],
)
def test_budgets_that_cannot_work(change, message):
    with pytest.raises(ConfigError, match=message):
        Pruning(**change)


def test_what_a_rule_is_called():
    assert Pruning(((512, 32), (1024, 8))).describe(64) == "64→32→8 at 512, 1024"
    assert Pruning(((512, 8),)).describe(64) == ""
    assert Pruning(((512, 8),), rule=Select.threshold, threshold=0.5).describe(64) == (
        "threshold 0.5"
    )


def run_config(**options) -> RunConfig:
    from prunebench import compose
    from prunebench.config import to_run

    with compose.hydra_ready():
        return to_run(compose.composed([f"{k}={v}" for k, v in options.items()]))


def test_schedules_and_retention_become_budgets():
    run = run_config(schedule="[[0.5,0.5],[96,4]]", n_paths=16)
    run.validate()
    assert run.stages == [(32, 8), (96, 4)]
    assert (run.prefix_length, run.keep) == (96, 4)
    run = run_config(retention=0.125, n_paths=16)
    run.validate()
    assert run.keep == 2
    run = run_config(retention=0.01)
    run.validate()
    assert run.keep == 1
    assert run_config(prefix_scale=1.5).prefix_length == 96


def test_retention_auto_asks_the_law():
    from prunebench.guideline import inverse_retention, keep_for

    keep = keep_for(64, 2048, 8650)
    budget = 64 * 2048 + keep * (8650 - 2048)
    wanted = inverse_retention(budget, 2048, 8650)
    assert 64 / (keep + 1) < wanted < 64 / (keep - 1)
    run = run_config(retention="auto", task_length=8650, prefix_length=300)
    run.prefix_length = 2048  # beyond what the embedded model writes
    run.settle()
    assert run.keep == keep
    online = run_config(retention="auto", mode="online")
    with pytest.raises(ConfigError, match="task_length"):
        online.validate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retention": 0}, "above 0 and at most 1"),
        ({"retention": "most"}, "or 'auto'"),
        ({"retention": 0.5, "schedule": "[[64,8]]"}, "leave one out"),
        ({"schedule": "[64,8]"}, "list of"),
        ({"schedule": "[[64,99]]"}, "from 1 to n_paths"),
        ({"protocol": "esc", "mode": "online"}, "mode=replay"),
        ({"weights": "nonsense", "aggregator": "borda"}, "Unknown method"),
        ({"weights": "entropy"}, "every vote weighs the same"),
        ({"threshold": 0.5}, "select=threshold only"),
        ({"select": "mass", "retention": 0.5}, "leave one out"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        run_config(**options).validate()

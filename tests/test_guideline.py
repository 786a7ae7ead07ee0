"""The retention law: its units, the fit to known coefficients, and what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import curve_fit

from prunebench import guideline
from prunebench.cells import Cell
from prunebench.cli import main
from prunebench.errors import ConfigError, DamagedFile
from prunebench.evaluate import ProblemPool, draw_subsets, evaluate_problem
from prunebench.guideline import (
    PUBLISHED,
    Coefficients,
    best_points,
    beyond,
    fit,
    inverse_retention,
    keep_for,
    load,
    retention_for,
    save,
)
from prunebench.report import records
from prunebench.types import SignalType

EXAMPLE = ["retention", "budget=158000", "prefix_length=2048", "task_length=8650"]
TRUTH = Coefficients(a=30.0, b=0.5, c=0.3, d=2.0)


# --------------------------------------------------------------------------------- the law


def test_the_example_by_hand():
    # C = 158 thousand tokens, L_prefix = 2 and L_task = 8.447 units of 1,024 tokens.
    by_hand = 1.17e4 * 158**0.46 * 2**0.40 / (8650 / 1024) ** 4.55
    assert by_hand == pytest.approx(9.63, abs=0.01)
    inverse, retention, keep = retention_for(64, 158_000, 2048, 8650)
    assert inverse == pytest.approx(by_hand)
    assert retention == pytest.approx(1 / by_hand)
    assert keep == 7  # 64 / 9.63 = 6.65


def test_directions_of_the_law():
    base = inverse_retention(158_000, 2048, 8650)
    assert inverse_retention(2 * 158_000, 2048, 8650) == pytest.approx(base * 2**0.46)
    assert inverse_retention(158_000, 4096, 8650) == pytest.approx(base * 2**0.40)
    assert inverse_retention(158_000, 2048, 2 * 8650) == pytest.approx(base / 2**4.55)
    many = inverse_retention(np.array([1e5, 2e5]), 2048, np.array([8650, 9000]))
    assert many.shape == (2,)


def test_advice_is_clipped_and_rounded():
    easy = Coefficients(a=0.1, b=0, c=0, d=0)
    assert retention_for(64, 1, 1, 1024, easy) == pytest.approx((0.1, 1.0, 64))
    severe = Coefficients(a=1000, b=0, c=0, d=0)
    assert retention_for(64, 1, 1, 1024, severe)[2] == 1
    half = Coefficients(a=2, b=0, c=0, d=0)
    assert [retention_for(n, 1, 1, 1024, half)[2] for n in (5, 7, 1)] == [2, 4, 1]  # 2.5, 3.5, 0.5


@pytest.mark.parametrize("name", ["n_paths", "budget", "prefix_length", "task_length"])
@pytest.mark.parametrize("value", [0, -3, math.nan, math.inf])
def test_impossible_inputs_are_named(name: str, value: float):
    inputs = {"n_paths": 64, "budget": 1e5, "prefix_length": 2048, "task_length": 8650}
    with pytest.raises(ConfigError, match=f"'{name}' parameter .* a number above 0. Got {value}"):
        retention_for(**{**inputs, name: value})


def test_the_keep_whose_own_cost_the_law_asks_for():
    found = keep_for(64, 2048, 8650)
    budget = 64 * 2048 + found * (8650 - 2048)
    inverse = inverse_retention(budget, 2048, 8650)
    assert 64 / (found + 1) < inverse < 64 / max(found - 1, 0.5)
    with pytest.raises(ConfigError, match="'prefix_length'"):
        keep_for(64, 0, 8650)


# -------------------------------------------------------------------------------- the fit


def grid(truth: Coefficients = TRUTH, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Cells of a sweep whose best retention follows the law, in tokens."""
    rng = np.random.default_rng(seed)
    rows = []
    for (dataset, task), n_paths, prefix in product(
        [("easy", 3000.0), ("medium", 5000.0), ("hard", 9000.0)],
        [16, 32, 64],
        [512, 1024, 2048],
    ):
        budget = n_paths * (prefix + 0.2 * task)
        best = inverse_retention(budget, prefix, task, truth) * np.exp(noise * rng.normal())
        rows.append(("m", dataset, "s", n_paths, budget, prefix, task, best, False, False))
    columns = ["model", "dataset", "method", "n_paths", "C", "L_prefix", "L_task", "best"]
    return pd.DataFrame(rows, columns=[*columns, "at_edge", "tied"])


@pytest.mark.parametrize("truth", [TRUTH, PUBLISHED])
def test_known_coefficients_are_recovered_exactly(truth: Coefficients):
    found = fit(grid(truth))
    for name in "abcd":
        assert getattr(found.coefficients, name) == pytest.approx(getattr(truth, name))
    assert found.r2 == pytest.approx(1)
    assert found.residual_sd == pytest.approx(0, abs=1e-10)
    np.testing.assert_allclose(found.points["predicted"], found.points["best"])


def test_the_fit_agrees_with_scipy():
    points = grid(noise=0.2)
    found = fit(points)
    x = points[["C", "L_prefix", "L_task"]].to_numpy().T / np.array([[1000], [1024], [1024]])

    def law(x, log_a, b, c, d):
        return log_a + b * np.log(x[0]) + c * np.log(x[1]) - d * np.log(x[2])

    theirs, covariance = curve_fit(law, x, np.log(points["best"]), p0=[1, 1, 1, 1])
    ours = found.coefficients
    assert [math.log(ours.a), ours.b, ours.c, ours.d] == pytest.approx(theirs, rel=1e-4)
    t = 2.0687  # of Student's t with 27 - 4 degrees of freedom, 97.5%
    for name, value, error in zip("bcd", theirs[1:], np.sqrt(np.diag(covariance))[1:], strict=True):
        interval = (value - t * error, value + t * error)
        assert found.intervals[name] == pytest.approx(interval, rel=1e-3)
    lo, hi = found.intervals["a"]
    assert math.log(hi) - math.log(lo) == pytest.approx(2 * t * covariance[0, 0] ** 0.5, rel=1e-3)


def test_intervals_hold_the_truth_as_often_as_they_say():
    hits = dict.fromkeys("abcd", 0)
    for seed in range(120):
        intervals = fit(grid(noise=0.3, seed=seed)).intervals
        for name, (lo, hi) in intervals.items():
            hits[name] += lo <= getattr(TRUTH, name) <= hi
    assert all(0.89 <= n / 120 <= 0.995 for n in hits.values()), hits


def test_notes_say_what_the_points_are_worth():
    points = grid(noise=0.1)
    points.loc[:2, "at_edge"] = points.loc[:1, "tied"] = True
    found = fit(points)
    assert "in 3 of 27 cells" in found.notes[0]
    assert "in 2 of 27 cells" in found.notes[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.head(4), "4 cells .* need at least 5"),
        (lambda p: p[p["dataset"] == "hard"], r"one task length only \(9000 tokens\), so d is unk"),
        (lambda p: p[p["L_prefix"] == 512], "one prefix length .*so c is unknown"),
        (lambda p: p.assign(C=1e5), "one budget .*so b is unknown"),
        (lambda p: p.assign(tied=True), "the vote is the same for every retention"),
        (lambda p: p.assign(at_edge=True), "the smallest or the largest tried in"),
        (lambda p: p.assign(best=4.0), "the best retention is 1/4 in every cell"),
        (lambda p: p.assign(L_prefix=p["L_task"] / 3), "rise and fall together .condition"),
        (lambda p: p.assign(C=50 * p["L_task"] ** 1.5 * p["L_prefix"]), "rise and fall together"),
    ],
)
def test_sweeps_that_cannot_identify_the_law(change, reason: str):
    with pytest.raises(ConfigError, match=f"cannot identify the retention law: .*{reason}"):
        fit(change(grid(noise=0.1)))


def test_cells_of_unknown_lengths_are_left_out_and_said():
    points = grid(noise=0.1)
    more = points.head(3).assign(L_task=[np.nan, np.inf, 5000.0], C=[1e5, 1e5, np.nan])
    found, alone = fit(pd.concat([more, points], ignore_index=True)), fit(points)
    assert found.n == 27
    assert found.coefficients == alone.coefficients
    assert found.notes[0].startswith("3 of 30 cells are left out: a length or the tokens")
    with pytest.raises(ConfigError, match=r"0 cells .*; 27 of 27 cells are left out"):
        fit(points.assign(L_task=np.nan))
    unknown = [row(keep=k, tokens=100.0 * k) for k in (2, 4)]
    for one in unknown:
        one.results[0].full_tokens[:] = np.nan
    assert best_points(unknown)["L_task"].isna().all()


# ------------------------------------------------------------------------- points of a sweep


def row(method="s", n_paths=16, keep=4, prefix=32, cons=0.5, tokens=1000.0, **cell):
    """A row as far as the fit looks at it; unpruned paths have 100 tokens."""
    made = Cell(
        run_id="r",
        **{"model": "m", "dataset": "d", **cell},
        method=method,
        type=SignalType.III,
        mode="replay",
        n_paths=n_paths,
        keep=keep,
        prefix_length=prefix,
    )
    result = SimpleNamespace(full_tokens=np.array([90.0 * n_paths, 110.0 * n_paths]))
    line = SimpleNamespace(cons=cons, total_tokens=tokens)
    return SimpleNamespace(cell=made, results=[result], line=line)


def test_the_best_retention_of_a_cell():
    rows = [
        row(keep=1, cons=0.2, tokens=700),
        row(keep=2, cons=0.6, tokens=800),
        row(keep=4, cons=0.6, tokens=900),  # as good as 2, and dearer
        row(keep=8, cons=0.5, tokens=1200),
        row(keep=8, cons=0.1, n_paths=32, dataset="e"),
        row(keep=16, cons=0.4, n_paths=32, dataset="e", tokens=5000),
    ]
    points = best_points(rows)
    assert points["best"].tolist() == [8.0, 2.0]
    assert points["C"].tolist() == [800, 5000]
    assert points["L_task"].tolist() == [100, 100]
    assert points["L_prefix"].tolist() == [32, 32]
    assert points["at_edge"].tolist() == [False, True]
    assert points["tied"].tolist() == [False, False]


def test_rows_that_are_no_points():
    rows = [
        row(method="none"),
        row(method="random", keep=2),
        row(method="random", keep=4),
        row(keep=2),  # one retention only
        row(keep=4, prefix=64),
        row(keep=2, prefix=64, cons=math.nan),
        row(keep=2, prefix=64, rule="threshold 0.5"),
    ]
    assert best_points(rows).empty
    assert list(best_points([]).columns) == list(best_points(rows).columns)
    both = best_points([*rows, row(keep=8, prefix=64)])
    assert both["tied"].tolist() == [True]
    assert both["best"].tolist() == [4.0]  # of equal tokens too, so the fewest paths


# ------------------------------------------------------------------------------ the commands


def test_the_command_prints_the_advice(capsys):
    assert main(EXAMPLE) == 0
    printed = capsys.readouterr().out
    assert "inverse retention 9.625" in printed
    assert "keep 7 of 64 paths" in printed
    assert main([*EXAMPLE, "n_paths=32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["keep"], found["n_paths"], found["notes"]) == (3, 32, [])
    assert found["inverse_retention"] == pytest.approx(9.6255, abs=1e-4)
    assert found["retention"] == pytest.approx(1 / found["inverse_retention"])


def test_the_command_says_where_the_law_is_stretched(capsys):
    assert main(["retention", "budget=158", "prefix_length=2", "task_length=8"]) == 0
    assert "lies outside 2 to 32, which the law was fitted on" in capsys.readouterr().out
    main(["retention", "budget=15800", "prefix_length=2048", "task_length=86500", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["retention"], found["keep"]) == (1.0, 64)
    assert any("nothing is worth pruning" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["retention", "budget=1000"], "needs prefix_length, task_length, in tokens"),
        ([*EXAMPLE, "n_paths=many"], "'n_paths' parameter must be a number. Got 'many'"),
        ([*EXAMPLE, "n_paths=6.5"], "'n_paths' parameter must be a whole number. Got 6.5"),
        ([*EXAMPLE, "keep=3"], "Unknown option of 'prunebench retention' 'keep'"),
        ([*EXAMPLE, "budget=3"], "'budget' is given twice"),
        ([*EXAMPLE, "--jsn"], "Did you mean '--json'?"),
        ([*EXAMPLE, "coefficients=/nowhere.json"], "There are no coefficients at /nowhere.json"),
        (["fit-retention"], "needs the folder of a sweep"),
        (["fit-retention", "/nowhere"], "no records.parquet below '/nowhere'"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, message: str, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def write_sweep(folder, truth: Coefficients = TRUTH) -> None:
    """Records of real evaluations whose votes are replaced: the best keep is the law's."""
    rng = np.random.default_rng(0)
    for dataset, length in (("easy", 60), ("hard", 130)):
        pools = [
            ProblemPool(
                problem_id=f"p{i}",
                indices=np.arange(64),
                lengths=rng.integers(length - 20, length + 20, size=64),
                stopped=np.ones(64, dtype=bool),
                codes=rng.integers(0, 2, size=64),
                correct=np.zeros(64, dtype=bool),
                answers=["1", "2"],
            )
            for i in range(2)
        ]
        for n_paths, prefix in product((16, 64), (8, 32)):
            keeps = [k for k in (1, 2, 4, 8, 16) if k < n_paths]
            ideal = inverse_retention(n_paths * (prefix + 10), prefix, length, truth)
            best = min(keeps, key=lambda k, n=n_paths, x=ideal: abs(math.log(n / k / x)))
            for keep in keeps:
                cell = Cell(
                    run_id="r",
                    bank=dataset,
                    model="m",
                    dataset=dataset,
                    method="s",
                    type=SignalType.III,
                    mode="replay",
                    n_paths=n_paths,
                    keep=keep,
                    prefix_length=prefix,
                )
                results = []
                for pool in pools:
                    subsets = draw_subsets(64, n_paths, 4, rng)
                    result = evaluate_problem(
                        pool, subsets, rng.random(subsets.shape), keep=keep, prefix_length=prefix
                    )
                    results.append(replace(result, cons=np.full(len(subsets), float(keep == best))))
                where = folder / f"{dataset}-{n_paths}-{prefix}-{keep}"
                frame = records.frame([records.record(cell, r) for r in results])
                records.write(where / "records.parquet", frame)


def test_fit_retention_from_a_sweep_to_a_file_and_back(tmp_path, capsys):
    # Best retentions between 1/2 and 1/32 for prefixes and tasks this short.
    write_sweep(tmp_path / "sweep", Coefficients(a=0.9, b=0.6, c=0.2, d=0.9))
    output = tmp_path / "law.json"
    assert main(["fit-retention", str(tmp_path / "sweep"), f"output={output}"]) == 0
    printed = capsys.readouterr().out
    assert "fitted on 8 cells of 1 models and 2 datasets" in printed
    assert printed.count("published") == 4
    law = load(output)
    assert law.ranges["prefix_length"] == (8.0, 32.0)
    content = json.loads(output.read_text())
    assert content["units"] == {"budget": 1000, "prefix_length": 1024, "task_length": 1024}
    assert content["intervals"]["b"][0] < law.b < content["intervals"]["b"][1]
    inputs = ["budget=1000", "prefix_length=16", "task_length=100", "n_paths=16"]
    assert main(["retention", *inputs, f"coefficients={output}", "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)
    expected = retention_for(16, 1000, 16, 100, law)
    assert (advice["inverse_retention"], advice["keep"]) == (expected[0], expected[2])
    assert main(["fit-retention", str(tmp_path / "sweep"), "method=t"]) == 2
    assert "Unknown method in these records 't'" in capsys.readouterr().err
    for folder in (tmp_path / "sweep").glob("hard-*"):
        (folder / "records.parquet").unlink()
    assert main(["fit-retention", str(tmp_path / "sweep")]) == 2
    assert "4 cells with several retentions" in capsys.readouterr().err


def test_coefficients_in_a_file(tmp_path):
    file = tmp_path / "law.json"
    found = fit(grid())
    save(found, file)
    assert asdict(load(file)) == asdict(found.coefficients)
    assert beyond(load(file), prefix_length=512, task_length=9000) == []
    assert "prefix_length 511 lies outside 512 to 2048" in beyond(load(file), prefix_length=511)[0]
    for broken in ("", "[]", '{"a": 1}', '{"a": -1, "b": 1, "c": 1, "d": 1}'):
        file.write_text(broken)
        with pytest.raises(DamagedFile, match=f"coefficients {file} cannot be read"):
            load(file)
    file.write_text('{"a": 1, "b": 1, "c": 1, "d": 1}')
    assert load(file).ranges == {}
    assert guideline.inverse_retention(1000, 1024, 1024, load(file)) == pytest.approx(1.0)

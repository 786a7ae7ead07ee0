"""Calibration and risk-coverage against scikit-learn, loops and sums by hand; signals' table."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from prunebench import calibration
from prunebench.errors import ConfigError
from prunebench.report import signals as module
from prunebench.report.signals import MEASURES, signals

NAN = float("nan")


def sample(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Overconfident probabilities, some of them equal."""
    rng = np.random.default_rng(seed)
    p = np.round(rng.beta(0.8, 0.8, size=n), 2)
    return p, rng.random(n) < 0.25 + 0.5 * p


@pytest.mark.parametrize("seed", range(3))
def test_brier_agrees_with_scikit_learn(seed: int):
    p, y = sample(seed)
    assert calibration.brier(p, y) == pytest.approx(brier_score_loss(y, p))


@pytest.mark.parametrize("seed", range(3))
def test_reliability_agrees_with_scikit_learn(seed: int):
    p, y = sample(seed)
    p = np.clip(p + 1e-4, 0, 1)  # on an edge, scikit-learn chooses the bin above
    bins = calibration.reliability(p, y, 8)
    share, mean = calibration_curve(y, p, n_bins=8)
    np.testing.assert_allclose(bins["share_right"], share)
    np.testing.assert_allclose(bins["mean_p"], mean)
    assert bins["n"].sum() == len(p)
    gaps = np.abs(bins["share_right"] - bins["mean_p"]) * bins["n"] / len(p)
    assert calibration.ece(p, y, 8) == pytest.approx(gaps.sum())


def test_ece_by_hand():
    p = np.array([0.0, 0.1, 0.4, 0.5, 0.9, 1.0])
    y = np.array([0, 1, 0, 1, 1, 1])
    # Bins [0, .5], (.5, 1]: |1.0 - 2| / 6 + |1.9 - 2| / 6.
    assert calibration.ece(p, y, 2) == pytest.approx(1.1 / 6)
    assert calibration.ece(y.astype(float), y) == 0.0
    assert calibration.ece(p, y, 1) == pytest.approx(abs(p.mean() - y.mean()))
    assert math.isnan(calibration.ece(np.empty(0), np.empty(0)))
    assert math.isnan(calibration.brier(np.empty(0), np.empty(0)))


def test_bins_of_equal_mass():
    p = np.concatenate([np.linspace(0, 0.1, 90), np.linspace(0.5, 1, 10)])
    edges = calibration.bin_edges(p, 5, equal_mass=True)
    assert np.bincount(calibration.bin_of(p, edges)).tolist() == [20] * 5
    assert (edges[0], edges[-1]) == (0.0, 1.0)
    # Ties stay together, so there are fewer bins.
    tied = calibration.reliability(np.full(10, 0.3), np.arange(10) < 3, 4, equal_mass=True)
    assert tied["n"].tolist() == [10]
    assert tied["share_right"].tolist() == [0.3]


def test_wilson_agrees_with_scipy():
    lo, hi = calibration.wilson(np.array([0, 3, 10]), np.array([10, 10, 10]))
    for k, low, high in zip([0, 3, 10], lo, hi, strict=True):
        theirs = scipy_stats.binomtest(k, 10).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert np.isnan(calibration.wilson(np.array([0]), np.array([0]))[0]).all()


@pytest.mark.parametrize("value", [-0.1, 1.1, NAN, np.inf])
def test_only_probabilities_can_be_calibrated(value: float):
    with pytest.raises(ConfigError, match=r"needs probabilities from 0 to 1. Got"):
        calibration.ece(np.array([0.5, value]), np.array([0, 1]))


def test_risk_coverage_by_hand():
    coverage, risk = calibration.risk_coverage(
        np.array([NAN, 3.0, 2.0, 2.0]), np.array([True, True, False, True])
    )
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose(risk, [0, 0.25, 1 / 3, 0.25])
    aurc = calibration.aurc(np.array([3.0, 2.0, 1.0]), np.array([True, False, False]))
    assert aurc == pytest.approx((0 + 1 / 2 + 2 / 3) / 3)
    assert math.isnan(calibration.aurc(np.empty(0), np.empty(0)))


def test_ties_are_worth_their_expectation_over_random_orders():
    rng = np.random.default_rng(0)
    scores, y = rng.integers(0, 4, size=30), rng.random(30) < 0.5
    risks = []
    for _ in range(4000):
        order = np.lexsort([rng.random(30), -scores])
        risks.append(np.cumsum(~y[order]) / np.arange(1, 31))
    np.testing.assert_allclose(
        calibration.risk_coverage(scores, y)[1], np.mean(risks, axis=0), atol=0.02
    )


# --------------------------------------------------------------------------- the signals' table


def paths_of(seed: int, n_problems: int = 12, n: int = 16, **columns) -> pd.DataFrame:
    """Paths of one signal that knows a little about them and more about their problem."""
    rng = np.random.default_rng(seed)
    hard = np.repeat(rng.random(n_problems), n)
    right = rng.random(n_problems * n) < hard
    score = np.clip(0.5 * hard + 0.2 * right + rng.normal(0, 0.2, size=len(hard)), 0, 1)
    frame = pd.DataFrame(
        {
            "run_id": "r",
            "bank": "b",
            "model": "m",
            "dataset": "d",
            "method": "s",
            "type": "III",
            "config": "c0",
            "n_paths": 0,
            "rule": "",
            "seed": 0,
            "prefix_length": 64,
            "probability": True,
            "problem_id": [f"p{i}" for i in np.repeat(np.arange(n_problems), n)],
            "index": np.tile(np.arange(n), n_problems).astype(np.int32),
            "score": np.round(score, 2),
            "n_tokens": 100,
            "stopped": True,
            "answer": "1",
            "correct": right.astype(object),
        }
    )
    return frame.assign(**columns)


def test_measures_agree_with_scikit_learn_and_the_pure_functions():
    paths = paths_of(0)
    row = signals(paths).iloc[0]
    p, y = paths["score"].to_numpy(), paths["correct"].to_numpy(dtype=bool)
    assert row["auroc_across"] == pytest.approx(roc_auc_score(y, p))
    within = [
        roc_auc_score(g["correct"].astype(bool), g["score"])
        for _, g in paths.groupby("problem_id")
        if g["correct"].nunique() == 2
    ]
    assert row["auroc_within"] == pytest.approx(np.mean(within))
    assert row["brier"] == pytest.approx(calibration.brier(p, y))
    assert row["ece"] == pytest.approx(calibration.ece(p, y))
    assert row["aurc"] == pytest.approx(calibration.aurc(p, y))
    assert (row["n_problems"], row["n_scores"], row["reason"]) == (12, 192, "")
    for name in MEASURES:
        assert row[f"{name}_lo"] <= row[name] <= row[f"{name}_hi"]
        assert row[f"{name}_lo"] < row[f"{name}_hi"]
    assert row["auroc_across"] > row["auroc_within"] + 0.05  # it knows how hard a problem is


def test_intervals_agree_with_resampling_problems_for_real():
    paths = paths_of(1, n_problems=8)
    row = signals(paths).iloc[0]
    groups = [
        (g["score"].to_numpy(), g["correct"].to_numpy(dtype=bool))
        for _, g in paths.groupby("problem_id")
    ]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(800):
        again = [groups[i] for i in rng.integers(8, size=8)]
        p, y = (np.concatenate(parts) for parts in zip(*again, strict=True))
        wins = scipy_stats.mannwhitneyu(p[y], p[~y], method="asymptotic").statistic
        auroc = wins / (y.sum() * (~y).sum())
        found.append([auroc, ((p - y) ** 2).mean(), calibration.aurc(p, y)])
    for name, values in zip(("auroc_across", "brier", "aurc"), np.transpose(found), strict=True):
        lo, hi = np.quantile(values, [0.025, 0.975])
        width = hi - lo
        assert row[f"{name}_lo"] == pytest.approx(lo, abs=0.12 * width)
        assert row[f"{name}_hi"] == pytest.approx(hi, abs=0.12 * width)


def test_every_resample_has_the_measures_of_its_paths(monkeypatch):
    paths = paths_of(2, n_problems=5, n=6)
    drawn = np.array([[1.0] * 5, [2, 0, 1, 2, 0], [0, 0, 5, 0, 0]])
    seen = []
    monkeypatch.setattr(module, "_multiplicities", lambda n: drawn)
    monkeypatch.setattr(
        module, "_estimate", lambda values, n: seen.append(values) or module.stats.Estimate(
            mean=values[0], lo=NAN, hi=NAN)
    )  # fmt: skip
    signals(paths)
    across, aurc, brier, ece = seen
    for k, times in enumerate(drawn[:2].astype(int)):
        again = pd.concat(
            [paths[paths["problem_id"] == f"p{i}"] for i, n in enumerate(times) for _ in range(n)]
        )
        p, y = again["score"].to_numpy(), again["correct"].to_numpy(dtype=bool)
        assert across[k] == pytest.approx(roc_auc_score(y, p))
        assert aurc[k] == pytest.approx(calibration.aurc(p, y))
        assert brier[k] == pytest.approx(calibration.brier(p, y))
        assert ece[k] == pytest.approx(calibration.ece(p, y))


def test_a_signal_that_claims_no_probability_has_no_calibration():
    row = signals(paths_of(0, probability=False)).iloc[0]
    assert np.isnan([row["brier"], row["ece"], row["ece_lo"]]).all()
    assert row["aurc"] == row["aurc"]
    assert row["reason"] == "no calibration: the score is not a probability"
    row = signals(paths_of(0).assign(score=lambda f: f["score"] * 2)).iloc[0]
    assert "scores lie outside 0 to 1" in row["reason"]
    assert np.isnan(row["brier"])


def test_paths_without_a_score_or_an_outcome():
    paths = paths_of(0)
    full = signals(paths).iloc[0]
    paths.loc[:4, "score"] = NAN
    some = signals(paths).iloc[0]
    assert some["reason"] == "5 paths could not be scored"
    known = paths["score"].notna()
    p, y = paths["score"][known].to_numpy(), paths["correct"][known].to_numpy(dtype=bool)
    assert some["brier"] == pytest.approx(calibration.brier(p, y))
    lowest = paths["score"].fillna(-1.0)
    expected = roc_auc_score(paths["correct"].astype(bool), lowest)
    assert some["auroc_across"] == pytest.approx(expected)
    assert some["n_scores"] == 192
    paths = paths_of(0)
    paths.loc[:4, "correct"] = None
    fewer = signals(paths).iloc[0]
    assert fewer["n_scores"] == 187
    assert fewer["reason"].startswith("5 paths left out")
    assert fewer["brier"] != full["brier"]


def test_what_cannot_be_measured_is_missing_with_its_reason():
    never = signals(paths_of(0, score=NAN)).iloc[0]
    assert all(np.isnan(never[name]) for name in MEASURES)
    assert never["reason"] == "no path could be scored"
    unknown = signals(paths_of(0, correct=None)).iloc[0]
    assert "no path is known to be right or wrong" in unknown["reason"]
    right = signals(paths_of(0, correct=True)).iloc[0]
    assert np.isnan([right["auroc_within"], right["auroc_across"]]).all()
    assert "no AUROC within problems: no problem has both" in right["reason"]
    assert "no AUROC across problems: all paths are right" in right["reason"]
    assert right["aurc"] == 0.0
    alone = signals(paths_of(0, n_problems=1)).iloc[0]
    assert np.isnan([alone[f"{name}_lo"] for name in MEASURES]).all()
    assert "no intervals: one problem only" in alone["reason"]


def test_signals_are_told_apart_and_repeated_rows_count_once():
    paths = [paths_of(0), paths_of(1, method="t", prefix_length=32), paths_of(0, run_id="again")]
    table = signals(pd.concat(paths))
    assert table["method"].tolist() == ["s", "t"]
    assert table["n_scores"].tolist() == [192, 192]
    alone = signals(paths[1])
    np.testing.assert_array_equal(
        table.loc[1, list(MEASURES)].to_numpy(float), alone.loc[0, list(MEASURES)].to_numpy(float)
    )
    empty = signals(paths[0].iloc[:0])
    assert empty.empty
    assert list(empty.columns) == list(table.columns)


def test_it_is_quick():
    paths = [paths_of(i, n_problems=30, n=64, method=f"m{i}") for i in range(5)]
    start = time.process_time()
    signals(pd.concat(paths))
    assert time.process_time() - start < 5

"""Are scores that claim to be probabilities true, and what is lost by trusting them?

Pure functions of pooled paths: `p` are probabilities that a path is right, `y` whether it is.
Risk-coverage needs only an order, so it takes any score, higher = more likely right. Nothing here
knows problems or files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunebench.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

N_BINS = 10


def brier(p: np.ndarray, y: np.ndarray) -> float:
    """Mean squared error of the probabilities `(n,)` against right and wrong `(n,)` bool: 0 is
    perfect, 0.25 what always saying 1/2 gets, lower = better. NaN without a path."""
    p, y = _checked(p, y)
    return float(((p - y) ** 2).mean()) if len(p) else float("nan")


def bin_edges(p: np.ndarray, n_bins: int = N_BINS, *, equal_mass: bool = False) -> np.ndarray:
    """`(m + 1,)` ascending edges of the bins, from 0 to 1.

    Equal width: `n_bins` bins. Equal mass: as many paths in each as ties allow, so there may be
    fewer bins.
    """
    if n_bins < 1:
        raise ConfigError(f"The 'n_bins' parameter must be at least 1. Got {n_bins} instead.")
    if not equal_mass or not len(p):
        return np.linspace(0.0, 1.0, n_bins + 1)
    inner = np.quantile(p, np.arange(1, n_bins) / n_bins, method="inverted_cdf")
    return np.unique(np.concatenate([[0.0], inner, [1.0]]))


def bin_of(p: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """`(n,)` the bin of each probability: bin k holds lo < p <= hi, the first one also its lo."""
    return np.clip(np.searchsorted(edges, p, side="left") - 1, 0, len(edges) - 2)


def ece(p: np.ndarray, y: np.ndarray, n_bins: int = N_BINS, *, equal_mass: bool = False) -> float:
    """Expected calibration error: the mean distance between what was claimed and what came true,
    Σ_k (n_k / n) |mean p - share right| over the bins k (Naeini et al. 2015,
    https://doi.org/10.1609/aaai.v29i1.9602). In 0..1, lower = better, NaN without a path.

    Parameters
    ----------
    equal_mass : bins with equally many paths instead of bins of equal width.
    """
    p, y = _checked(p, y)
    if not len(p):
        return float("nan")
    edges = bin_edges(p, n_bins, equal_mass=equal_mass)
    gaps = np.bincount(bin_of(p, edges), weights=p - y, minlength=len(edges) - 1)
    return float(np.abs(gaps).sum() / len(p))


def reliability(
    p: np.ndarray, y: np.ndarray, n_bins: int = N_BINS, *, equal_mass: bool = False
) -> pd.DataFrame:
    """The reliability diagram: one row per bin that holds a path.

    Returns
    -------
    bins : columns lo, hi (the bin), mean_p (what was claimed), share_right (what came true) with
        its 95% Wilson interval share_lo, share_hi, and n (paths).
    """
    import pandas as pd

    p, y = _checked(p, y)
    edges = bin_edges(p, n_bins, equal_mass=equal_mass)
    where = bin_of(p, edges)
    n, right, claimed = (
        np.bincount(where, weights=w, minlength=len(edges) - 1) for w in (np.ones(len(p)), y, p)
    )
    held = n > 0
    n, right, claimed = n[held], right[held], claimed[held]
    lo, hi = wilson(right, n)
    return pd.DataFrame(
        {
            "lo": edges[:-1][held],
            "hi": edges[1:][held],
            "mean_p": claimed / n,
            "share_right": right / n,
            "share_lo": lo,
            "share_hi": hi,
            "n": n.astype(np.int64),
        }
    )


def wilson(
    n_right: np.ndarray, n: np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of the share `n_right / n`; NaN where n is 0. It takes paths as
    independent, which those of one problem are not."""
    from scipy.special import ndtri

    n_right, n = np.asarray(n_right, dtype=np.float64), np.asarray(n, dtype=np.float64)
    n = np.where(n > 0, n, np.nan)
    z2 = ndtri((1 + level) / 2) ** 2
    centre = (n_right + z2 / 2) / (n + z2)
    half = np.sqrt(z2 * (n_right * (n - n_right) / n + z2 / 4)) / (n + z2)
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def risk_coverage(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Risk among the paths with the highest scores, for every number of them (Geifman and El-Yaniv,
    arXiv 1705.08500).

    Paths with equal scores come in random order, so the risk is an expectation; NaN is the lowest
    score, tied with other NaN.

    Returns
    -------
    coverage, risk : `(n,)` the share 1/n ... 1 of the paths that is trusted, and the expected
        share of wrong ones among them.
    """
    scores, y = np.asarray(scores, dtype=np.float64), np.asarray(y, dtype=bool)
    n = len(scores)
    group = tie_groups(scores)
    sizes = np.bincount(group)
    share_wrong = np.bincount(group, weights=~y) / np.maximum(sizes, 1)
    taken = np.arange(1, n + 1)
    return taken / max(n, 1), np.cumsum(np.repeat(share_wrong, sizes)) / taken


def aurc(scores: np.ndarray, y: np.ndarray) -> float:
    """Area under the risk-coverage curve: the mean risk over all coverages, lower = better, at
    best a little more than 0. NaN without a path. It depends on how many paths are right: compare
    it between signals on the same paths only."""
    risk = risk_coverage(scores, y)[1]
    return float(risk.mean()) if len(risk) else float("nan")


def tie_groups(scores: np.ndarray) -> np.ndarray:
    """`(n,)` int group of each score: 0 for the highest, one more for every lower value; NaN is the
    lowest."""
    return np.unique(-np.asarray(scores, dtype=np.float64), return_inverse=True)[1]


def _checked(p: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64; raises when `p` holds anything that is no probability."""
    p, y = np.asarray(p, dtype=np.float64), np.asarray(y, dtype=np.float64)
    wrong = ~((p >= 0) & (p <= 1))  # True for NaN
    if wrong.any():
        raise ConfigError(
            f"Calibration needs probabilities from 0 to 1. Got {p[wrong][0]} instead; leave out "
            "paths without a score, and signals that do not claim to be probabilities."
        )
    return p, y

"""RPC: paths that belong to the improbable half of a two-component mixture are pruned.

Formula: c_i = exp(mean_t log P_t(y_t)), the inverse perplexity. A mixture
w Weibull(k1, l1) + (1 - w) Weibull(k2, l2) is fitted to all c_i by maximum likelihood, component 1
being the one with the larger mean. Path i is pruned when p(2 | c_i) > p(1 | c_i) and c_i < mean c;

    S_i = c_i for the paths that survive, c_i - 1 for those that are pruned,

so that only survivors score above 0. `aggregator=score_sum` then gives the answer with the largest
sum of c_i over survivors, RPC's perplexity consistency.

Source: "A Theoretical Study on Bridging Internal Probability and Self-Consistency for LLM
Reasoning", arXiv 2502.00511 (https://arxiv.org/abs/2502.00511). Start (0.5, 1, 1, 1.5, 2) and
w in [0.2, 0.8] are the authors' (https://github.com/WNJXYK/RPC).
Ours: c is taken at the checkpoint, and the number of kept paths is the run's, so it is the cut that
shows in the score's sign; shapes are bounded by 1000, because a component that shrinks to one point
has an unbounded likelihood; equal completions are not merged. Fewer than two different c_i give no
fit: nothing is pruned. With 16 paths or fewer the fit is mostly noise.
"""

from dataclasses import dataclass

import numpy as np

from prunebench.method import Capability, PathGroup, SignalGenerator, SignalType

START = (0.5, 1.0, 1.0, 1.5, 2.0)
BOUNDS = ((0.2, 0.8), (0.01, 1e3), (0.01, None), (0.01, 1e3), (0.01, None))
"""Of w, k1, l1, k2, l2."""


@dataclass(kw_only=True)
class RPC(SignalGenerator):
    """Higher = keep: survivors before pruned paths, probable before improbable ones.

    In (0, 1] for survivors, in (-1, 0) for pruned paths; NaN for an empty prefix.
    """

    type = SignalType.III
    paper = "arXiv 2502.00511, https://arxiv.org/abs/2502.00511"
    requires = frozenset({Capability.LOGPROBS})
    joint = True

    def score(self, group: PathGroup) -> np.ndarray:
        c = np.array(
            [
                np.exp(np.mean(path.logprobs, dtype=np.float64))
                if path.n_tokens
                else path.unscored("the prefix is empty")
                for path in group.paths
            ],
            dtype=np.float64,
        )
        c = np.clip(c, 1e-6, 1.0)  # NaN stays
        known = np.sort(c[~np.isnan(c)])  # a fit must not depend on the order of the paths
        if known.size == 0 or known[0] == known[-1]:
            return c
        likely, unlikely = log_components(c, fit_mixture(known))
        return np.where((unlikely > likely) & (c < known.mean()), c - 1.0, c)


def fit_mixture(c: np.ndarray) -> np.ndarray:
    """Maximum likelihood (w, k1, l1, k2, l2); component 1 has the larger mean."""
    from scipy.optimize import minimize
    from scipy.special import gamma

    def loss(parameters: np.ndarray) -> float:
        return -float(np.logaddexp(*log_components(c, parameters)).sum())

    w, k1, l1, k2, l2 = minimize(loss, START, method="L-BFGS-B", bounds=BOUNDS).x
    if l1 * gamma(1 + 1 / k1) < l2 * gamma(1 + 1 / k2):
        w, k1, l1, k2, l2 = 1 - w, k2, l2, k1, l1
    return np.array([w, k1, l1, k2, l2])


def log_components(c: np.ndarray, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log(w f1(c)) and log((1 - w) f2(c)), f the Weibull densities."""
    w, k1, l1, k2, l2 = parameters
    return np.log(w) + log_weibull(c, k1, l1), np.log(1 - w) + log_weibull(c, k2, l2)


def log_weibull(c: np.ndarray, k: float, scale: float) -> np.ndarray:
    """Log-density of the Weibull distribution; at least -1e100, so that sums stay finite."""
    log_ratio = np.log(c / scale)
    power = np.exp(np.minimum(k * log_ratio, 230.0))  # exp(230) = 1e100
    return np.log(k / scale) + (k - 1) * log_ratio - power

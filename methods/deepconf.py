"""DeepConf: confidence of the most likely tokens, in sliding windows.

Formula: token confidence C_t = -(1/K) sum over the K most likely v of log P_t(v), K = 20, in nats.
Group confidence G_s = mean of C_s ... C_{s+w-1}, one group per start s. The score S_i is

    mean          mean of C_t over the prefix
    lowest_group  min_s G_s
    bottom_10     mean of the lowest tenth of the G_s, at least one
    tail          mean of C_t over the last w tokens

Source: "Deep Think with Confidence", arXiv 2508.15260 (https://arxiv.org/abs/2508.15260).
Defaults are the paper's: w = 2048, and lowest_group, which is what it stops paths by while they
run. A prefix shorter than w has one group, itself, so all measures are then the plain mean, as in
the authors' package `deepconf` 0.1.0; sweep the window below the prefix length.
Ours: the prefix ends at the checkpoint and the scores only rank; the paper compares them with a
bar from 16 warm-up paths. The package rounds C_t and G_s to 3 decimals; we do not.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from prunebench.errors import ConfigError
from prunebench.method import Capability, Path, PathSignal, SignalType


class Measure(Enum):
    """How the token confidences of a prefix become one number."""

    mean = "mean"
    lowest_group = "lowest_group"
    bottom_10 = "bottom_10"
    tail = "tail"


@dataclass(kw_only=True)
class DeepConf(PathSignal):
    """Higher = keep: peaked distributions leave little to the other likely tokens, so C_t is large.

    NaN for an empty prefix.

    Attributes
    ----------
    measure : which mean of the token confidences to take.
    window : group size w, in tokens.
    """

    type = SignalType.III
    paper = "arXiv 2508.15260, https://arxiv.org/abs/2508.15260"
    requires = frozenset({Capability.TOP_LOGPROBS})

    measure: Measure = Measure.lowest_group
    window: int = 2048

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(
                f"The 'window' parameter of DeepConf must be at least 1 token. "
                f"Got {self.window!r} instead."
            )

    def score_path(self, path: Path) -> float:
        if path.n_tokens == 0:
            return np.nan
        confidence = -path.top_logprobs.astype(np.float64)
        if self.measure is Measure.mean:
            return float(confidence.mean())
        if self.measure is Measure.tail:
            return float(confidence[-self.window :].mean())
        groups = group_confidences(confidence, self.window)
        if self.measure is Measure.lowest_group:
            return float(groups.min())
        return lowest_tenth(groups)


def group_confidences(confidence: np.ndarray, window: int) -> np.ndarray:
    """Means of all windows: `(n,)` -> `(n - window + 1,)`, or `(1,)` when n < window."""
    window = min(window, len(confidence))
    sums = np.cumsum(np.concatenate([[0.0], confidence]))
    return (sums[window:] - sums[:-window]) / window


def lowest_tenth(groups: np.ndarray) -> float:
    """Mean of the max(1, floor(n / 10)) smallest values."""
    n_lowest = max(1, len(groups) // 10)
    return float(np.partition(groups, n_lowest - 1)[:n_lowest].mean())

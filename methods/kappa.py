"""KAPPA: what a path's recent tokens say beyond the model's empty context, plus confidence.

Formula: at every position t of the last `tau` tokens, with P_t the distribution the token was
sampled from and Q the distribution after the start token alone,

    KL_t = KL(P_t || Q), smoothed over time by a median of means and then an exponential average,
    conf_t = max_v P_t(v),    H_t = -sum_v P_t(v) log P_t(v),
    s_t = 0.7 z(KL_t) + 0.2 z(conf_t) - 0.1 z(H_t),    S_i = mean of s_t,

where z standardises over the paths of the problem and clips to [-3, 3]. The median of means is over
the last `window` positions in `buckets` parts; the exponential average is e_t = alpha m_t +
(1 - alpha) e_{t-1}.

Source: "Inference-Time Chain-of-Thought Pruning with Latent Informativeness Signals", arXiv
2511.00699 (https://arxiv.org/abs/2511.00699). It was read in digests; there is no public code. The
paper drops paths one by one over tau steps, after all of them differ.
Ours: the mean over the tau last tokens before the checkpoint, without drops on the way, and the
value of tau; smoothing before standardising; the sign of the entropy term, which the digests leave
open (`entropy_weight=0.1` for the other one). Positions are counted back from each path's end, so
a path that has ended takes part with its own last tokens. P_t is read from the state before the
token, so the first token is left out. Smoothing starts up to `window` positions before. Terms that
differ by less than 1e-5 count as equal, or else standardising would blow up rounding noise where
all paths are sure. Models without a start token take their end-of-text token for Q.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunebench.errors import ConfigError
from prunebench.method import Capability, Context, PathGroup, SignalGenerator, SignalType

from ._layers import count_layers


@dataclass(kw_only=True)
class Kappa(SignalGenerator):
    """Higher = keep: far from the empty context's distribution, confident, of low entropy.

    Within three times the sum of the weights. NaN for a prefix of fewer than two tokens.

    Attributes
    ----------
    tau : how many tokens before the checkpoint count.
    window, buckets : of the median of means, in tokens and parts.
    alpha : weight of the present in the exponential average, in (0, 1].
    kl_weight, confidence_weight, entropy_weight : of the three standardised terms.
    """

    type = SignalType.III
    paper = "arXiv 2511.00699, https://arxiv.org/abs/2511.00699"
    requires = frozenset({Capability.HIDDEN_STATES})
    joint = True

    tau: int = 64
    window: int = 16
    buckets: int = 4
    alpha: float = 0.5
    kl_weight: float = 0.7
    confidence_weight: float = 0.2
    entropy_weight: float = -0.1

    def __post_init__(self) -> None:
        for name in ("tau", "window", "buckets"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"The '{name}' parameter of Kappa must be at least 1. "
                    f"Got {getattr(self, name)!r} instead."
                )
        if not 0 < self.alpha <= 1:
            raise ConfigError(
                f"The 'alpha' parameter of Kappa must be above 0 and at most 1. "
                f"Got {self.alpha!r} instead."
            )

    def setup(self, context: Context) -> None:
        backend = context.backend
        self._last = count_layers(backend)
        start = np.array([backend.start_token], dtype=np.int32)
        empty = backend.encode(np.zeros(0, np.int32), [start])
        [states] = empty.iter_hidden_states([self._last])
        self._log_q = empty.unembed(states[0, 0], normed=True).double()

    def score(self, group: PathGroup) -> np.ndarray:
        readings = np.full((3, len(group), self.tau), np.nan)  # the last position is a path's last
        states = group.internals.iter_hidden_states([self._last])
        for i, (path, [own]) in enumerate(zip(group.paths, states, strict=True)):
            if path.n_tokens < 2:
                path.unscored("the prefix has fewer than two tokens")
                continue
            before = own[:-1][-(self.tau + self.window) :]  # what the last tokens came from
            log_p = group.internals.unembed(before, normed=True).double()
            p = log_p.exp()
            kl = (p * (log_p - self._log_q)).sum(-1).numpy()
            confidence, entropy = p.amax(-1).numpy(), -(p * log_p).sum(-1).numpy()
            smooth = exponential_average(median_of_means(kl, self.window, self.buckets), self.alpha)
            own_terms = np.array([smooth, confidence, entropy])[:, -self.tau :]
            readings[:, i, self.tau - own_terms.shape[1] :] = own_terms
        z = standardised(np.round(readings, 5))
        weights = np.array([self.kl_weight, self.confidence_weight, self.entropy_weight])
        per_token = np.tensordot(weights, z, 1)  # (n_paths, tau), NaN where a path has no token
        n_tokens = np.sum(~np.isnan(per_token), axis=1)
        totals = np.nansum(per_token, axis=1)
        scores = np.divide(totals, n_tokens, out=np.full(len(group), np.nan), where=n_tokens > 0)
        return np.round(scores, 4)


def median_of_means(values: np.ndarray, window: int, buckets: int) -> np.ndarray:
    """At every position: the median of the means of consecutive parts of the last `window` values,
    of fewer at the beginning."""
    ends = range(1, len(values) + 1)
    recent = [values[max(0, end - window) : end] for end in ends]
    parts = [np.array_split(r, min(buckets, len(r))) for r in recent]
    return np.array([np.median([part.mean() for part in own]) for own in parts])


def exponential_average(values: np.ndarray, alpha: float) -> np.ndarray:
    """e_t = alpha v_t + (1 - alpha) e_{t-1}, from e_0 = v_0."""
    averages = values.copy()
    for t in range(1, len(values)):
        averages[t] = alpha * values[t] + (1 - alpha) * averages[t - 1]
    return averages


def standardised(values: np.ndarray) -> np.ndarray:
    """z-scores over the second axis, clipped to [-3, 3]; 0 where all are equal, NaN stays."""
    known = ~np.isnan(values)
    n = np.maximum(known.sum(axis=1, keepdims=True), 1)
    centred = values - np.where(known, values, 0.0).sum(axis=1, keepdims=True) / n
    sd = np.sqrt(np.where(known, centred**2, 0.0).sum(axis=1, keepdims=True) / n)
    return np.clip(centred / np.where(sd > 1e-9, sd, np.inf), -3.0, 3.0)

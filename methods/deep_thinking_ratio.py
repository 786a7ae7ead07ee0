"""Deep-thinking ratio: the share of tokens that the model settles on only in its last layers.

Formula: p_{t,l} is what the output head reads from the state of layer l at position t (the logit
lens, after the final norm), D_{t,l} = JSD_2(p_{t,L}, p_{t,l}) the Jensen-Shannon divergence in
bits, in [0, 1]. A token settles at c_t = min { l >= 1 : D_{t,l} <= g }, and

    S_i = share of the first `tokens` tokens with c_t >= ceil(rho L).

Source: "Think Deep, Not Just Long", arXiv 2602.13517 (https://arxiv.org/abs/2602.13517); g = 0.5,
rho = 0.85 and 50 tokens are the paper's. It was read in digests, which do not agree on whether the
last inequality is strict.
Ours: a token's distributions are those it was sampled from, so the first token, whose
distributions belong to the end of the prompt, is left out. The paper keeps deep paths;
on some models and tasks it finds the opposite (`keep=shallow`). Shares of 50 tokens tie often; for
the paper's setting use a prefix of 50 tokens, since states are computed for the whole prefix. The
embedded model settles in the first half of its six layers, so that every path scores 0 unless
`depth` is lowered to 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from prunebench.errors import ConfigError
from prunebench.method import Capability, Context, PathGroup, SignalGenerator, SignalType

from ._layers import count_layers

if TYPE_CHECKING:
    import torch

    from prunebench.backend import Internals


class Keep(Enum):
    """Which end of the ranking survives."""

    deep = "deep"
    shallow = "shallow"


@dataclass(kw_only=True)
class DeepThinkingRatio(SignalGenerator):
    """Higher = keep: many tokens settle late (or, with `keep=shallow`, few do).

    In [0, 1], or [-1, 0] with `keep=shallow`. NaN for a prefix of fewer than two tokens.

    Attributes
    ----------
    tokens : how many tokens from the beginning count.
    settled : g, the divergence up to which a layer agrees with the last one, in bits.
    depth : rho, the share of the layers after which a token counts as deep.
    keep : `deep` is the method, `shallow` the control.
    """

    type = SignalType.III
    paper = "arXiv 2602.13517, https://arxiv.org/abs/2602.13517"
    requires = frozenset({Capability.HIDDEN_STATES})
    joint = False

    tokens: int = 50
    settled: float = 0.5
    depth: float = 0.85
    keep: Keep = Keep.deep

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ConfigError(
                f"The 'tokens' parameter of DeepThinkingRatio must be at least 2. "
                f"Got {self.tokens!r} instead."
            )
        for name in ("settled", "depth"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(
                    f"The '{name}' parameter of DeepThinkingRatio must be between 0 and 1. "
                    f"Got {value!r} instead."
                )

    def setup(self, context: Context) -> None:
        self._n_layers = count_layers(context.backend)

    def score(self, group: PathGroup) -> np.ndarray:
        first_deep = math.ceil(self.depth * self._n_layers - 1e-9)  # 0.7 * 10 > 7 in floating point
        scores = np.full(len(group), np.nan)
        states = group.internals.iter_hidden_states(range(1, self._n_layers + 1))
        for i, (path, own) in enumerate(zip(group.paths, states, strict=True)):
            n_tokens = min(self.tokens, path.n_tokens)
            if n_tokens < 2:
                scores[i] = path.unscored("the prefix has fewer than two tokens")
                continue
            settling = settling_layers(own[:, : n_tokens - 1], group.internals, self.settled)
            scores[i] = np.mean(settling >= first_deep)
        return scores if self.keep is Keep.deep else -scores


def settling_layers(states: torch.Tensor, internals: Internals, settled: float) -> np.ndarray:
    """c_t, counted from 1, of states `(L, n_tokens, hidden)`: `(n_tokens,)` int."""
    n_layers, n_tokens, _ = states.shape
    last = internals.unembed(states[-1], normed=True).double()
    found = np.full(n_tokens, n_layers)
    for layer in range(n_layers - 1, 0, -1):  # the first one that agrees is written last
        lens = internals.unembed(states[layer - 1], normed=False).double()
        found[(jensen_shannon(last, lens) <= settled).numpy()] = layer
    return found


def jensen_shannon(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Divergence in bits, over the last axis, of distributions given by natural logarithms."""
    import torch

    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    terms = [torch.where(x > -torch.inf, x.exp() * (x - log_m), 0.0) for x in (log_p, log_q)]
    return (terms[0] + terms[1]).sum(-1) / (2 * math.log(2))

"""Chain of embeddings: how the mean state of a path changes from layer to layer.

Formula: h_l is the mean over the prefix tokens of the states of layer l = 0 (embeddings) ... L;

    M_l = |h_{l+1} - h_l| / |h_L - h_0|,    A_l = angle(h_l, h_{l+1}) / angle(h_0, h_L),

    CoE-R  S_i = mean_l (M_l - A_l),    CoE-C  S_i = |mean_l M_l exp(i A_l)|.

Source: "Latent Space Chain-of-Embedding Enables Output-free LLM Self-Evaluation", arXiv 2410.13640
(https://arxiv.org/abs/2410.13640), as in the authors' code (`CoEScoreInfo`), where the normalised
angle enters the plane of CoE-C.
Ours: the mean runs over the prefix instead of a complete answer. The last layer's state is the one
after the final norm, as transformers returns it. Which sign is right depends on model and task:
`keep=low` reverses it.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from prunebench.method import Capability, Context, PathGroup, SignalGenerator, SignalType

from ._chain import coe_c, coe_r
from ._layers import count_layers


class Variant(Enum):
    """How magnitudes and angles become one number."""

    real = "real"
    complex = "complex"


class Keep(Enum):
    """Which end of the ranking survives."""

    high = "high"
    low = "low"


@dataclass(kw_only=True)
class CoE(SignalGenerator):
    """Higher = keep: a larger CoE score (or, with `keep=low`, a smaller one).

    Any sign for CoE-R; CoE-C is at least 0, at most 0 with `keep=low`. NaN for an empty prefix.

    Attributes
    ----------
    variant : `real` is CoE-R, `complex` is CoE-C.
    keep : which end of the scores survives.
    """

    type = SignalType.III
    paper = "arXiv 2410.13640, https://arxiv.org/abs/2410.13640"
    requires = frozenset({Capability.HIDDEN_STATES})
    joint = False

    variant: Variant = Variant.real
    keep: Keep = Keep.high

    def setup(self, context: Context) -> None:
        self._n_layers = count_layers(context.backend)

    def score(self, group: PathGroup) -> np.ndarray:
        feature = coe_r if self.variant is Variant.real else coe_c
        scores = np.full(len(group), np.nan)
        states = group.internals.iter_hidden_states(range(self._n_layers + 1))
        for i, (path, own) in enumerate(zip(group.paths, states, strict=True)):
            if path.n_tokens == 0:
                scores[i] = path.unscored("the prefix is empty")
            else:
                scores[i] = feature(layer.double().mean(0).numpy() for layer in own)
        # Equal prefixes must tie, whatever the last bits of their batch.
        scores = np.round(scores, 5)
        return scores if self.keep is Keep.high else -scores

"""ST-BoN: paths whose states move through the layers like those of the others are kept.

Formula: for every position t of a window, h_l is the mean of layer l's states over the tokens 1..t,
and

    F_i(t) = mean_l [ |h_{l+1} - h_l| / |h_L - h_0| - angle(h_l, h_{l+1}) / angle(h_0, h_L) ],
    S_i = -mean over the window of mean over j != i of (F_i(t) - F_j(t))^2.

Source: "Sampling-Efficient Test-Time Scaling: Self-Estimating the Best-of-N Sampling in Early
Decoding", arXiv 2503.01422 (https://arxiv.org/abs/2503.01422), as in the authors' code
(https://github.com/Alsace08/ST-BoN). There the window opens when all prefixes differ and is as long
as the paths are by then; each of its positions votes for the path with the smallest mean distance,
and one path survives.
Ours: the window is the last `window` positions before the checkpoint, and the distances are
averaged instead of voted on, which ranks all paths. The states are those of the generated tokens;
the authors' first one is the last token of the prompt. A path that has ended keeps its last F.
"""

from dataclasses import dataclass

import numpy as np

from prunebench.errors import ConfigError
from prunebench.method import Capability, Context, PathGroup, SignalGenerator, SignalType

from ._chain import coe_r
from ._layers import count_layers, significant


@dataclass(kw_only=True)
class STBoN(SignalGenerator):
    """Higher = keep: the states agree with those of the other paths.

    At most 0; a path without company scores 0. NaN for an empty prefix, which is no company either.
    Time and memory of the comparison are quadratic in the number of paths, times `window`.

    Attributes
    ----------
    window : how many positions before the checkpoint count.
    """

    type = SignalType.III
    paper = "arXiv 2503.01422, https://arxiv.org/abs/2503.01422"
    requires = frozenset({Capability.HIDDEN_STATES})
    joint = True

    window: int = 256

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(
                f"The 'window' parameter of STBoN must be at least 1 position. "
                f"Got {self.window!r} instead."
            )

    def setup(self, context: Context) -> None:
        self._n_layers = count_layers(context.backend)

    def score(self, group: PathGroup) -> np.ndarray:
        longest = max((path.n_tokens for path in group.paths), default=1) or 1
        window = np.arange(max(0, longest - self.window), longest)  # positions, from 0
        features = []
        states = group.internals.iter_hidden_states(range(self._n_layers + 1))
        for path, own in zip(group.paths, states, strict=True):
            if path.n_tokens == 0:
                features.append(np.full(len(window), path.unscored("the prefix is empty")))
                continue
            at = np.minimum(window, path.n_tokens - 1)
            features.append(coe_r(running_mean(layer.double().numpy(), at) for layer in own))
        # Equal prefixes must tie, whatever the last bits of their batch.
        f = np.round(np.array(features).reshape(len(group), len(window)), 6)
        distances = (f[:, None] - f[None]) ** 2  # (n, n, window); 0 to itself
        n_others = np.maximum(np.sum(~np.isnan(f[:, :1])) - 1, 1)
        scores = -np.nansum(distances, axis=1).mean(axis=1) / n_others
        return np.where(np.isnan(f).any(axis=1), np.nan, significant(scores, 6))


def running_mean(states: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Means of `states[: t + 1]` for the positions t in `at`: `(n, hidden)` -> `(n_at, hidden)`."""
    return states.cumsum(axis=0)[at] / (at + 1)[:, None]

"""CLUE: is the path's way through state space nearer to that of right or of wrong paths?

Formula: S_i = d(D_i, V_wrong) - d(D_i, V_right), where D_i holds for every layer the difference
between the state of the prefix's last token and that of its first, V_right and V_wrong are means of
D over right and wrong prefixes, and d(A, B) is the mean over layers of |A_l - B_l|.

Source: "CLUE: Non-parametric Verification from Experience via Hidden-State Clustering", arXiv
2510.01591 (https://arxiv.org/abs/2510.01591). The paper subtracts the state at the opening of the
thoughts from that at their end, and ranks by -d(D_i, V_right) (`measure=success`).
Ours: the thoughts end at the checkpoint and begin with the first generated token; a prefix is right
when its Monte-Carlo label is above one half and left out when it equals one half; by default both
centroids count, since nearness to one alone follows the length of D. With `centred` the centroids
differ by what distinguishes right from wrong paths within problems: the mean over right (wrong)
prefixes of D minus the mean D of their problem, added to the mean of all D.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Self

import numpy as np

from prunebench.errors import ConfigError
from prunebench.method import Context, LabelledPrefix

from ._states import StateSignal, at_least


class Measure(Enum):
    """Which centroids count."""

    difference = "difference"
    success = "success"


@dataclass(kw_only=True)
class Clue(StateSignal):
    """Higher = keep: nearer to right paths than to wrong ones (`success`: near to right ones).

    NaN for an empty prefix. In states' units; at most 0 with `success`.

    Attributes
    ----------
    checkpoint : folder with trained centroids; None takes the ones for the model at hand.
    measure : `difference` of the two distances, or minus the distance to `success` (the paper).
    prefix_length : centroids from the labelled length nearest to this one; 0 takes all lengths.
    centred : centroids without the differences between problems.
    """

    paper = "arXiv 2510.01591, https://arxiv.org/abs/2510.01591"
    weight_names = frozenset({"right", "wrong"})
    structure = ("prefix_length", "centred")

    measure: Measure = Measure.difference
    prefix_length: int = 0
    centred: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("Clue", 0, prefix_length=self.prefix_length)

    @property
    def layers(self) -> list[int]:
        return list(range(1, 1 + len(self.weights_["right"])))

    def value(self, states: np.ndarray, token_ids: np.ndarray) -> float:
        return float(self.values(delta(states)))

    def values(self, deltas: np.ndarray) -> np.ndarray:
        """`(...)` scores of `(..., layers, hidden)`."""
        to_right = distance(deltas, self.weights_["right"])
        if self.measure is Measure.success:
            return -to_right
        return distance(deltas, self.weights_["wrong"]) - to_right

    def fit(
        self, train: Sequence[LabelledPrefix], valid: Sequence[LabelledPrefix], context: Context
    ) -> Self:
        from prunebench.cachereader import within_problem_auroc
        from prunebench.statestore import layers_to_try, pooled, problem_centred

        if self.prefix_length:
            lengths = {len(e.prefix_ids) for e in train}
            nearest = min(lengths, key=lambda n: (abs(n - self.prefix_length), n))
            train = [e for e in train if len(e.prefix_ids) == nearest]
        layers = layers_to_try(context.backend, None)
        deltas, held_out = (
            np.stack(pooled(context.backend, e, layers, lambda h, _: delta(h)))
            for e in (train, valid)
        )
        labels = np.array([e.label for e in train])
        right, wrong = labels > 0.5, labels < 0.5
        if not right.any() or not wrong.any():
            raise ConfigError(
                f"CLUE needs prefixes with labels above and below one half to learn from. Got "
                f"{right.sum()} and {wrong.sum()}; raise 'train.n_problems'."
            )
        centre = deltas.mean(axis=0) if self.centred else np.zeros(1)
        parts = problem_centred(deltas, train) if self.centred else deltas
        self.weights_ = {
            "right": (centre + parts[right].mean(axis=0)).astype(np.float32),
            "wrong": (centre + parts[wrong].mean(axis=0)).astype(np.float32),
        }
        auroc = within_problem_auroc(self.values(held_out), valid)
        self.record(context, train, valid, valid_auroc=auroc)
        return self


def delta(states: np.ndarray) -> np.ndarray:
    """`(layers, hidden)`: the last token's states minus the first one's."""
    return states[:, -1] - states[:, 0]


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean over layers of the Euclidean distances of `(..., layers, hidden)`."""
    return np.linalg.norm(a.astype(np.float64) - b, axis=-1).mean(axis=-1)

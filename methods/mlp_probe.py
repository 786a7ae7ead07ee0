"""MLP probe: a small network on one hidden state of the prefix.

Formula: S_i = v . relu(W (h - mu) / sigma + a) + b, with h a hidden state of one layer: the mean
over the tokens of the prefix, over those that end a step, or that of the last token.

Source: "Reasoning Models Know When They're Right: Probing Hidden States for Self-Verification",
arXiv 2504.05419 (https://arxiv.org/abs/2504.05419). The paper reads the last layer at the last
token of a chunk that ends with an intermediate answer, and learns whether that answer is right;
its probe is linear or has one hidden layer.
Ours: as in `linear_probe`, the checkpoint instead of an answer, a mean of states, Monte-Carlo soft
labels, and the layer (and epoch) with the best within-problem AUROC on held-out problems; with
`centred`, the logit of the problem's mean label is added in the loss, as in `stop`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from prunebench.method import Context, LabelledPrefix

from ._mlp import NAMES, MLPRecipe, mlp_logits, train_mlp
from ._states import (
    Pooling,
    StateSignal,
    at_least,
    logit_offsets,
    pool,
    pooled_sets,
)


@dataclass(kw_only=True)
class MLPProbe(StateSignal):
    """Higher = keep: the logit that the path ends right (relative to the problem, if `centred`).

    NaN for an empty prefix.

    Attributes
    ----------
    checkpoint : folder with trained weights; None takes the ones for the model at hand.
    layer : hidden state that is read, 0 = embeddings, -1 = last; None takes the best.
    pooling : mean over all tokens or over those that end a step, or the last token.
    mark : text that ends a step; empty takes what the training texts use.
    width : units of the hidden layer.
    learning_rate, weight_decay, batch_size : of AdamW.
    epochs, patience : passes at most, and without a better state on the held-out problems.
    centred : learn the difference to the problem's mean label.
    """

    paper = "arXiv 2504.05419, https://arxiv.org/abs/2504.05419"
    weight_names = NAMES
    structure = ("layer", "pooling", "mark", "centred")

    layer: int | None = None
    pooling: Pooling = Pooling.mean
    mark: str = ""
    width: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 256
    epochs: int = 30
    patience: int = 5
    centred: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("MLPProbe", 1, width=self.width, batch_size=self.batch_size, epochs=self.epochs)

    @property
    def layers(self) -> list[int]:
        return [self.metrics_["layer"]]

    def value(self, states: np.ndarray, token_ids: np.ndarray) -> float:
        return float(
            mlp_logits(self.weights_, pool(states, self.ends_(token_ids), self.pooling))[0]
        )

    def probabilities(self, scores: np.ndarray) -> np.ndarray | None:
        return None if self.centred else 1 / (1 + np.exp(-scores))

    def fit(
        self, train: Sequence[LabelledPrefix], valid: Sequence[LabelledPrefix], context: Context
    ) -> Self:
        from prunebench.cachereader import within_problem_auroc

        mark, layers, x, x_valid = pooled_sets(self, train, valid, context.backend)
        labels = np.array([e.label for e in train])
        tried = []
        for k, layer in enumerate(layers):
            weights, found = train_mlp(
                MLPRecipe.of(self),
                x[:, k],
                labels,
                logit_offsets(train, self.centred),
                evaluate=lambda w, k=k: within_problem_auroc(mlp_logits(w, x_valid[:, k]), valid),
                seed=context.seed,
            )
            tried.append((weights, {"layer": layer, **found}))
        self.weights_, best = max(tried, key=lambda t: np.nan_to_num(t[1]["valid_auroc"]))
        self.record(context, train, valid, mark=mark, **best)
        return self

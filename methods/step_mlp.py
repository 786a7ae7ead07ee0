"""STEP: a small network scores the state at the end of every step; the path gets their mean.

Formula: S_i = (1/n) sum over steps k of sigmoid(f(h_k)), with h_k the last layer's state at the
k-th token whose text contains the step mark, and f a network with one hidden ReLU layer.

Source: "Hidden States as Early Signals: Step-level Trace Evaluation and Pruning for Efficient
Test-Time Scaling", arXiv 2601.09093 (https://arxiv.org/abs/2601.09093): width 512, each step
labelled with the outcome of its path, binary cross-entropy weighted by wrong / right, Adam at 1e-4
with decay 1e-5, batches of 128, at most 20 epochs, patience 5. It prunes when the cache is full.
Ours: the score at the checkpoint; the label of a step is the Monte-Carlo label of its prefix; steps
are held out by problem (the published code splits by step, so steps of one path stand on both
sides) and the epoch is chosen by within-problem AUROC; standardised states, decoupled decay, width
128; with `centred`, the logit of the problem's mean label is added in the loss, as in `stop`; a
prefix without a finished step is scored at its last token. The mark is a blank line, or a line
break for models that write none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from prunebench.method import Context, LabelledPrefix

from ._mlp import NAMES, MLPRecipe, Weights, mlp_logits, train_mlp
from ._states import (
    StateSignal,
    at_least,
    learn_mark,
    logit_offsets,
    step_ends,
)


@dataclass(kw_only=True)
class StepMLP(StateSignal):
    """Higher = keep: the mean probability, over the steps so far, that the path ends right.

    In [0, 1]; NaN for an empty prefix.

    Attributes
    ----------
    checkpoint : folder with trained weights; None takes the ones for the model at hand.
    layer : hidden state that is read, 0 = embeddings, -1 = last, after the final norm.
    mark : text that ends a step; empty takes what the training texts use.
    width : units of the hidden layer.
    learning_rate, weight_decay, batch_size : of AdamW; steps per batch.
    epochs, patience : passes at most, and without a better state on the held-out problems.
    centred : learn the difference to the problem's mean label.
    """

    paper = "arXiv 2601.09093, https://arxiv.org/abs/2601.09093"
    weight_names = NAMES
    structure = ("layer", "mark", "centred")

    layer: int = -1
    mark: str = ""
    width: int = 128
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    batch_size: int = 128
    epochs: int = 20
    patience: int = 5
    centred: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("StepMLP", 1, width=self.width, batch_size=self.batch_size, epochs=self.epochs)

    @property
    def layers(self) -> list[int]:
        return [self.metrics_["layer"]]

    def value(self, states: np.ndarray, token_ids: np.ndarray) -> float:
        return float(probabilities(self.weights_, states[0, self.ends_(token_ids)]).mean())

    def probabilities(self, scores: np.ndarray) -> np.ndarray | None:
        return None if self.centred else scores

    def fit(
        self, train: Sequence[LabelledPrefix], valid: Sequence[LabelledPrefix], context: Context
    ) -> Self:
        from prunebench.cachereader import within_problem_auroc
        from prunebench.statestore import layers_to_try, pooled

        backend = context.backend
        mark = learn_mark(backend, train, self.mark)
        ends = self.ends_ = step_ends(backend, mark)
        layers = layers_to_try(backend, self.layer)
        steps, valid_steps = (
            pooled(backend, e, layers, lambda h, t: h[0, ends(t)]) for e in (train, valid)
        )
        counts, valid_counts = ([len(s) for s in found] for found in (steps, valid_steps))
        labels = np.repeat([e.label for e in train], counts)
        x_valid = np.concatenate(valid_steps)
        owner = np.repeat(np.arange(len(valid)), valid_counts)

        def evaluate(weights: Weights) -> float:
            sums = np.bincount(owner, weights=probabilities(weights, x_valid))
            return within_problem_auroc(sums / valid_counts, valid)

        self.weights_, found = train_mlp(
            MLPRecipe.of(self),
            np.concatenate(steps),
            labels,
            np.repeat(logit_offsets(train, self.centred), counts),
            evaluate=evaluate,
            pos_weight=float((1 - labels).sum() / max(labels.sum(), 1e-9)),
            seed=context.seed,
        )
        self.record(context, train, valid, mark=mark, layer=layers[0], **found)
        return self


def probabilities(weights: Weights, x: np.ndarray) -> np.ndarray:
    """`(n,)` from states `(n, hidden)` at the ends of steps."""
    from scipy.special import expit

    return expit(mlp_logits(weights, x))

"""Linear probe: a logistic regression on one hidden state of the prefix.

Formula: S_i = w . (h - mu) / sigma + b, with h a hidden state of one layer: the mean over the
tokens of the prefix, over those that end a step, or that of the last token; mu and sigma
standardise.

Source: "Reasoning Models Know When They're Right: Probing Hidden States for Self-Verification",
arXiv 2504.05419 (https://arxiv.org/abs/2504.05419). The paper reads the last layer at the last
token of a chunk that ends with an intermediate answer, and learns whether that answer is right.
Ours: the checkpoint instead of an answer, where on the embedded model a mean ranks paths better
than the last token; Monte-Carlo soft labels (every prefix counts as right with weight p and as
wrong with weight 1 - p); the layer and the strength of the L2 penalty with the best within-problem
AUROC on held-out problems; with `centred`, the mean state of a problem's paths is subtracted in
training, so that nothing is learned about how hard a problem is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from prunebench.method import Context, LabelledPrefix

from ._states import Pooling, StateSignal, pool, pooled_sets

INVERSE_PENALTIES = (0.0001, 0.001, 0.01, 0.1)


@dataclass(kw_only=True)
class LinearProbe(StateSignal):
    """Higher = keep: the logit that the path ends right, up to a constant of the problem.

    NaN for an empty prefix.

    Attributes
    ----------
    checkpoint : folder with trained weights; None takes the ones for the model at hand.
    layer : hidden state that is read, 0 = embeddings, -1 = last; None takes the best.
    pooling : mean over all tokens or over those that end a step, or the last token.
    mark : text that ends a step; empty takes what the training texts use.
    centred : learn from differences between paths of the same problem.
    """

    paper = "arXiv 2504.05419, https://arxiv.org/abs/2504.05419"
    weight_names = frozenset({"mean", "scale", "coef", "intercept"})
    structure = ("layer", "pooling", "mark")

    layer: int | None = None
    pooling: Pooling = Pooling.mean
    mark: str = ""
    centred: bool = True

    @property
    def layers(self) -> list[int]:
        return [self.metrics_["layer"]]

    def value(self, states: np.ndarray, token_ids: np.ndarray) -> float:
        return float(logits(self.weights_, pool(states, self.ends_(token_ids), self.pooling))[0])

    def fit(
        self, train: Sequence[LabelledPrefix], valid: Sequence[LabelledPrefix], context: Context
    ) -> Self:
        from prunebench.cachereader import within_problem_auroc
        from prunebench.statestore import problem_centred

        mark, layers, x, x_valid = pooled_sets(self, train, valid, context.backend)
        labels = np.array([e.label for e in train])
        best: dict[str, Any] | None = None
        for k, layer in enumerate(layers):
            seen = problem_centred(x[:, k], train) if self.centred else x[:, k]
            for penalty in INVERSE_PENALTIES:
                weights = regression(seen, labels, penalty)
                if self.centred:  # to score, a constant of the problem does no harm
                    weights["mean"] = x[:, k].mean(axis=0)
                auroc = within_problem_auroc(logits(weights, x_valid[:, k]), valid)
                found = {"layer": layer, "inverse_penalty": penalty, "valid_auroc": auroc}
                if best is None or np.nan_to_num(auroc) > np.nan_to_num(best["valid_auroc"]):
                    self.weights_, best = weights, found
        self.record(context, train, valid, mark=mark, **(best or {}))
        return self


def regression(x: np.ndarray, labels: np.ndarray, inverse_penalty: float) -> dict[str, Any]:
    """Standardise `(n, hidden)` and fit a logistic regression to soft labels `(n,)`."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    z = (x - mean) / scale
    model = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(
        np.concatenate([z, z]),
        np.repeat([1, 0], len(z)),
        sample_weight=np.concatenate([labels, 1 - labels]),
    )
    return {"mean": mean, "scale": scale, "coef": model.coef_[0], "intercept": model.intercept_}


def logits(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """`(n,)` from states `(n, hidden)`."""
    return (x - weights["mean"]) / weights["scale"] @ weights["coef"] + weights["intercept"]

"""A network with one hidden layer on standardised states: trained with torch, scored with NumPy.

Knows rows of features and soft labels; knows nothing of paths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

NAMES = frozenset({"mean", "scale", "hidden.weight", "hidden.bias", "head.weight", "head.bias"})

Weights = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class MLPRecipe:
    """How it is trained: Adam with decoupled weight decay; after `patience` epochs without a better
    state it stops."""

    width: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    epochs: int
    patience: int

    @classmethod
    def of(cls, method: Any) -> MLPRecipe:
        """The options of a method, which have the same names."""
        return cls(**{f.name: getattr(method, f.name) for f in fields(cls)})


def mlp_logits(weights: Weights, x: np.ndarray) -> np.ndarray:
    """`(n,)` from `(n, hidden)`."""
    z = (x - weights["mean"]) / weights["scale"]
    hidden = np.maximum(z @ weights["hidden.weight"].T + weights["hidden.bias"], 0.0)
    return hidden @ weights["head.weight"] + weights["head.bias"]


def train_mlp(
    recipe: MLPRecipe,
    x: np.ndarray,
    labels: np.ndarray,
    offsets: np.ndarray,
    *,
    evaluate: Callable[[Weights], float],
    pos_weight: float = 1.0,
    seed: int = 0,
) -> tuple[Weights, dict[str, Any]]:
    """The state with the highest `evaluate`, and where it was found.

    Parameters
    ----------
    x, labels, offsets : `(n, hidden)` features, `(n,)` soft labels, `(n,)` added to the logit.
    pos_weight : of the part of the binary cross-entropy that belongs to right.
    """
    import torch
    import torch.nn.functional as F

    mean, scale = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 0, scale, 1.0)
    z = torch.tensor((x - mean) / scale, dtype=torch.float32)
    y, shift = (torch.tensor(v, dtype=torch.float32) for v in (labels, offsets))
    weight = torch.tensor(pos_weight, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden, head = torch.nn.Linear(z.shape[1], recipe.width), torch.nn.Linear(recipe.width, 1)
    optimizer = torch.optim.AdamW(
        [*hidden.parameters(), *head.parameters()],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    generator = torch.Generator().manual_seed(seed)

    def weights() -> Weights:
        return {
            "mean": mean.astype(np.float32),
            "scale": scale.astype(np.float32),
            "hidden.weight": hidden.weight.detach().numpy().copy(),
            "hidden.bias": hidden.bias.detach().numpy().copy(),
            "head.weight": head.weight.detach()[0].numpy().copy(),
            "head.bias": head.bias.detach().numpy().copy(),
        }

    best, found = weights(), {"epoch": 0, "valid_auroc": float("nan")}
    for epoch in range(1, recipe.epochs + 1):
        for batch in torch.randperm(len(z), generator=generator).split(recipe.batch_size):
            logits = head(torch.relu(hidden(z[batch])))[:, 0] + shift[batch]
            loss = F.binary_cross_entropy_with_logits(logits, y[batch], pos_weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        now = weights()
        value = evaluate(now)
        if not found["epoch"] or np.nan_to_num(value) > np.nan_to_num(found["valid_auroc"]):
            best, found = now, {"epoch": epoch, "valid_auroc": value}
        elif epoch - found["epoch"] >= recipe.patience:
            break
    return best, found

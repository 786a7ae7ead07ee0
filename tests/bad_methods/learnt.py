"""Not faulty: the learnable method that the faulty ones are made from.

Regresses the label on the last state of the prefix (ridge), so that it runs on any backend.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Self

import numpy as np

from prunebench.method import (
    Capability,
    Context,
    LabelledPrefix,
    PathGroup,
    SignalGenerator,
    SignalType,
    Trainable,
)


@dataclass(kw_only=True)
class Learnt(SignalGenerator, Trainable):
    """Higher = keep: the predicted share of right continuations."""

    type = SignalType.IV
    paper = "https://arxiv.org/abs/2604.16029"
    requires = frozenset({Capability.HIDDEN_STATES})
    joint = False

    checkpoint: str | None = None
    ridge: float = 1.0
    weights_: Any = field(default=None, init=False, repr=False)

    @property
    def is_fitted(self) -> bool:
        return self.weights_ is not None

    def fit(
        self, train: Sequence[LabelledPrefix], valid: Sequence[LabelledPrefix], context: Context
    ) -> Self:
        states = []
        for example in train:
            internals = context.backend.encode(example.prompt_ids, [example.prefix_ids])
            states.append(_last_states(internals, [len(example.prefix_ids)])[0])
        x, y = np.array(states), np.array([example.label for example in train])
        self.weights_ = np.linalg.solve(x.T @ x + self.ridge * np.eye(x.shape[1]), x.T @ y)
        return self

    def save(self, folder: FilePath) -> None:
        (folder / "weights.json").write_text(json.dumps(self.weights_.tolist()))

    def load(self, folder: FilePath, context: Context) -> Self:
        self.weights_ = np.array(json.loads((folder / "weights.json").read_text()))
        return self

    def score(self, group: PathGroup) -> np.ndarray:
        self.check_fitted()
        return _last_states(group.internals, [p.n_tokens for p in group.paths]) @ self.weights_


def _last_states(internals: Any, lengths: list[int]) -> np.ndarray:
    """States of the last prefix token `(n_paths, hidden)`; zeros for an empty prefix."""
    states = internals.hidden_states([1])[:, 0].double().numpy()  # (n_paths, prefix, hidden)
    ends = [s[n - 1] if n else 0.0 * s[0] for s, n in zip(states, lengths, strict=True)]
    return np.nan_to_num(np.array(ends))

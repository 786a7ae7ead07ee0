"""Signals that are read from hidden states of the prefix: the scoring loop, and what is pooled.

Knows positions and states; knows nothing of what is learned from them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path as FilePath
from typing import Any, Self

import numpy as np

from prunebench.backend import Backend
from prunebench.errors import ConfigError
from prunebench.method import Capability, Context, LabelledPrefix, PathGroup

from ._learned import Learned
from ._steps import step_mark_of


class Pooling(Enum):
    """Which tokens' states stand for the prefix."""

    last = "last"
    mean = "mean"
    step_ends = "step_ends"


@dataclass(kw_only=True)
class StateSignal(Learned):
    """A learned function of the hidden states of one prefix."""

    requires = frozenset({Capability.HIDDEN_STATES})
    fit_requires = frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ends_: Any = None  # see `step_ends`

    @property
    @abstractmethod
    def layers(self) -> Sequence[int]:
        """The layers that `value` reads."""

    @abstractmethod
    def value(self, states: np.ndarray, token_ids: np.ndarray) -> float:
        """The score of a prefix (not empty) with states `(len(layers), n_tokens, hidden)`."""

    def score(self, group: PathGroup) -> np.ndarray:
        self.check_fitted()
        scores = [
            self.value(own.numpy(), path.token_ids) if path.n_tokens else np.nan
            for own, path in zip(
                group.internals.iter_hidden_states(self.layers), group.paths, strict=True
            )
        ]
        # Equal prefixes must tie, whatever the last bits of their batch.
        return np.round(np.array(scores, dtype=np.float64), 4)

    def load(self, folder: FilePath, context: Context) -> Self:
        super().load(folder, context)
        self.ends_ = step_ends(context.backend, self.metrics_.get("mark", "\n"))
        return self

    def record(self, context: Context, train: Sequence, valid: Sequence, **found: Any) -> None:
        """Note what was learned from, for the JSON file."""
        sizes = {"n_train": len(train), "n_valid": len(valid)}
        self.metrics_ = {**found, **sizes, "model": context.backend.identity()}


def step_ends(backend: Backend, mark: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from token ids to the positions of tokens whose text contains `mark`, or to the
    last position when there is none."""
    contains: dict[int, bool] = {}

    def positions(token_ids: np.ndarray) -> np.ndarray:
        for token in set(token_ids.tolist()) - contains.keys():
            contains[token] = mark in backend.decode(np.array([token], dtype=np.int32))
        found = np.flatnonzero([contains[token] for token in token_ids.tolist()])
        return found if len(found) else np.array([len(token_ids) - 1])

    return positions


def learn_mark(backend: Backend, examples: Sequence[LabelledPrefix], mark: str) -> str:
    """The separator of steps: `mark`, or the one that the examples' texts use."""
    return step_mark_of((backend.decode(e.prefix_ids) for e in examples[:256]), mark)


def pooled_sets(
    method: Any, train: Sequence[LabelledPrefix], valid: Sequence[LabelledPrefix], backend: Backend
) -> tuple[str, list[int], np.ndarray, np.ndarray]:
    """What a probe learns from: the mark, the layers to try, and the pooled states of both sets,
    `(n, n_layers, hidden)`. From then on the method knows where steps end."""
    from prunebench.statestore import layers_to_try, pooled

    mark = learn_mark(backend, train, method.mark)
    ends = method.ends_ = step_ends(backend, mark)
    layers = layers_to_try(backend, method.layer)
    x, x_valid = (
        np.stack(pooled(backend, e, layers, lambda h, t: pool(h, ends(t), method.pooling)))
        for e in (train, valid)
    )
    return mark, layers, x, x_valid


def pool(states: np.ndarray, positions: np.ndarray, pooling: Pooling) -> np.ndarray:
    """`(n_layers, hidden)` from `(n_layers, n_tokens, hidden)`; `positions` of the step ends."""
    match pooling:
        case Pooling.last:
            return states[:, -1]
        case Pooling.mean:
            return states.mean(axis=1)
        case Pooling.step_ends:
            return states[:, positions].mean(axis=1)


def logit_offsets(examples: Sequence[LabelledPrefix], centred: bool) -> np.ndarray:
    """`(n,)` what is added to the logit in the loss: the logit of the problem's mean label, so
    that only the difference to it is learned, or 0."""
    from prunebench.prefixstore import problem_logits

    return np.array(problem_logits(examples)) if centred else np.zeros(len(examples))


def at_least(cls: str, minimum: float, **values: float) -> None:
    """Raise `ConfigError` for options below `minimum`."""
    for name, value in values.items():
        if value < minimum:
            raise ConfigError(
                f"The {name!r} parameter of {cls} must be at least {minimum}. Got {value} instead."
            )

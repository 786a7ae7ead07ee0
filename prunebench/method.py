"""The public contract: what a path-pruning method is.

A method only scores. Selection, voting, timing, counting and files belong to the core. A method
is one dataclass in one file of `methods/`; its fields are its hyper-parameters and become Hydra
options (`method.window=512`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from prunebench.cost import Ledger
from prunebench.errors import ContractViolation, MissingInput, NotTrained
from prunebench.types import Capability, Path, PathGroup, SignalType

if TYPE_CHECKING:
    from prunebench.backend import Backend
    from prunebench.endpoint import Endpoint

__all__ = [
    "Capability",
    "Context",
    "LabelledPrefix",
    "Path",
    "PathGroup",
    "PathSignal",
    "SignalGenerator",
    "SignalType",
    "Trainable",
]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the core hands to `setup`, `fit` and `load`.

    Attributes
    ----------
    model_name : the model's name in `conf/model/`.
    backend : the engine that generates (or generated) the paths; loads on first use.
    seed : seed of the run.
    work_dir : a folder for files that a long `fit` wants to keep between interruptions.
    endpoint : the server that judges (capability ENDPOINT), None when there is none. It counts its
        own tokens, calls and money.
    ledger : where the tokens of other external models are written down (`add(verifier_tokens=n)`;
        `prunebench.rewardmodel` does it by itself).
    part_weights : folders with the trained weights of a method's `parts`, by method name.
    """

    model_name: str
    backend: Backend
    seed: int = 0
    work_dir: FilePath | None = None
    endpoint: Endpoint | None = None
    ledger: Ledger = field(default_factory=Ledger)
    part_weights: Mapping[str, FilePath] = field(default_factory=dict)


@dataclass(kw_only=True)
class SignalGenerator(ABC):
    """Scores the live paths of one problem at a checkpoint.

    `setup` and `close` are hooks that most methods leave out: they do nothing unless written.

    Class attributes
    ----------------
    type : place in the taxonomy.
    paper : where the formula comes from, with a URL.
    requires : what the method reads beyond text and token ids. Matched against what the backend
        provides before anything loads; anything not declared is not readable.
    joint : True when the score of a path depends on the other paths. Such methods are scored
        again for every subset of the pool.
    """

    type: ClassVar[SignalType]
    paper: ClassVar[str]
    requires: ClassVar[frozenset[Capability]] = frozenset()
    joint: ClassVar[bool] = True

    def setup(self, context: Context) -> None:  # noqa: B027  optional hook
        """Load what scoring needs (weights, clients). Nothing heavy happens before this."""

    @property
    def parts(self) -> Sequence[SignalGenerator]:
        """The methods whose scores this one combines. The core finds their trained weights, and
        scores anew when their source or weights change; none for most methods."""
        return ()

    @abstractmethod
    def score(self, group: PathGroup) -> np.ndarray:
        """Score every path of the group.

        Returns
        -------
        scores : `(n_paths,)` float64, higher = keep, NaN = could not be scored. Deterministic,
            independent of the order of the paths, and the group is left as it was.
        """

    def probabilities(self, scores: np.ndarray) -> np.ndarray | None:
        """What scores claim as the probability that a path ends right, in [0, 1], so that their
        calibration can be measured; None for a signal that claims none."""
        return None

    def close(self) -> None:  # noqa: B027  optional hook
        """Free what `setup` took."""


@dataclass(kw_only=True)
class PathSignal(SignalGenerator):
    """A method whose score of a path depends on that path alone."""

    joint: ClassVar[bool] = False

    @abstractmethod
    def score_path(self, path: Path) -> float:
        """The score of one path: higher = keep, NaN = could not be scored."""

    def score(self, group: PathGroup) -> np.ndarray:
        scores, missing = [], []
        for path in group.paths:
            try:
                scores.append(self.score_path(path))
            except MissingInput as error:  # this path lacks what others may have
                scores.append(path.unscored(str(error)))
                missing.append(error)
        if missing and len(missing) == len(scores):
            raise missing[0]
        for score in scores:
            if np.ndim(score) != 0 or score is None:
                got = np.shape(score) if score is not None else None
                raise ContractViolation(
                    f"{type(self).__name__}.score_path must return one float per path. Got "
                    f"{'None' if got is None else f'an array of shape {got}'} instead."
                )
        return np.array(scores, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class LabelledPrefix:
    """A training example: a prefix and how often its continuations end in the right answer.

    Attributes
    ----------
    problem_id : examples of one problem never stand on both sides of a split.
    prompt_ids, prefix_ids : `(n_prompt,)` and `(n_prefix,)` int32 token ids.
    label : share of right continuations, in [0, 1].
    n_continuations : how many continuations the share is taken over.
    """

    problem_id: str
    prompt_ids: np.ndarray
    prefix_ids: np.ndarray
    label: float
    n_continuations: int


class Trainable(ABC):
    """A method with weights that `prunebench train` makes. Learned state ends in `_`.

    Class attributes
    ----------------
    fit_requires : what `fit` reads.
    weights_of : the method whose trained weights this one uses; None for its own.
    """

    fit_requires: ClassVar[frozenset[Capability]] = frozenset({Capability.GRADIENTS})
    weights_of: ClassVar[str | None] = None
    checkpoint: str | None = None  # every Trainable dataclass repeats it as a field

    @abstractmethod
    def fit(
        self, train: Sequence[LabelledPrefix], valid: Sequence[LabelledPrefix], context: Context
    ) -> Self:
        """Fit on `train`; choose the best state by within-problem AUROC on `valid`."""

    @abstractmethod
    def save(self, folder: FilePath) -> None:
        """Write the learned state (safetensors and JSON)."""

    @abstractmethod
    def load(self, folder: FilePath, context: Context) -> Self:
        """Read what `save` wrote and get ready to score with `context.backend`."""

    def check_weights(self, folder: FilePath) -> None:  # noqa: B027  optional hook
        """Raise `ConfigError` when the weights in a folder were made for options that these are
        not. Loads nothing: scores may come from the cache."""

    @property
    def needs_training(self) -> bool:
        """Whether these options score with weights that `prunebench train` makes."""
        return True

    def published_weights(self) -> str | None:
        """Identifies the weights when they come from elsewhere. Raises when they are not there."""
        return None

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether `score` can be called."""

    def check_fitted(self) -> None:
        """Raise `NotTrained`, with the remedy, when there is no learned state."""
        if not self.is_fitted:
            name = self.weights_of or type(self).__module__.rsplit(".", 1)[-1]
            raise NotTrained(
                f"The method {name!r} has no trained weights yet. Train it with "
                f"'python -m prunebench train method={name} model=<model>', or point "
                f"'method.checkpoint=' at a folder with trained weights."
            )

"""What methods that ask a discriminative reward model share: loading, encoding, training.

Knows how a path becomes probabilities of its steps; how they become a score is the method's.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from prunebench.backend import ModelSpec
from prunebench.errors import ConfigError
from prunebench.method import Capability, Context, LabelledPrefix, Path, PathGroup, SignalType
from prunebench.prmformats import (
    FORMATS,
    Encoded,
    Family,
    Steps,
    Unfinished,
    encode_own,
    encode_path,
    split_path,
)
from prunebench.rewardmodel import Dtype, RewardModel, Runner
from prunebench.rewardserver import SERVED

from ._learned import Learned

if TYPE_CHECKING:
    from prunebench.rmtrain import Recipe

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class RewardMethod(Learned):
    """A method that scores a path by what a reward model says of its steps."""

    type = SignalType.II
    requires = frozenset()
    weights_of = "prm"

    family: Family = Family.tiny
    model_id: str = ""
    revision: str | None = None
    path: str | None = None
    max_length: int = 0
    batch_tokens: int = 16384
    device: str = "auto"
    dtype: Dtype = Dtype.auto
    runner: Runner = Runner.transformers
    gpu_memory_utilization: float = 0.9
    processes: bool = False
    engine: dict[str, Any] = field(default_factory=dict)
    server: bool = False

    def probabilities(self, scores: np.ndarray) -> np.ndarray | None:
        own = self.needs_training and getattr(self, "centred", True)  # ranks paths of a problem
        return None if own else scores

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model_: RewardModel | None = None
        self.context_: Any = None
        self.ends_line_: dict[int, bool] = {}
        self.n_cut_ = 0
        name = type(self).__name__
        for option, least in (("max_length", 0), ("batch_tokens", 1)):
            if getattr(self, option) < least:
                raise ConfigError(
                    f"The {option!r} parameter of {name} must be at least {least}. "
                    f"Got {getattr(self, option)!r} instead."
                )
        if self.family is not Family.tiny and not (self.model_id or self.path):
            raise ConfigError(
                f"The 'model_id' parameter of {name} must name the reward model of family "
                f"{self.family.value} on the hub, or 'path' a folder with it. Got neither."
            )

        if self.runner is Runner.vllm:
            self._check_vllm_options(name)
        if self.server:
            if self.family not in SERVED:
                known = ", ".join(f.value for f in SERVED)
                raise ConfigError(
                    f"The 'server' parameter of {name} must be false for family "
                    f"{self.family.value}: a server can run only {known}."
                )
            # Of this object alone: it now asks a server.
            self.requires = frozenset({Capability.ENDPOINT})  # pyright: ignore

    def _check_vllm_options(self, name: str) -> None:
        if self.family is Family.tiny or self.server:
            given = "family tiny" if self.family is Family.tiny else "'server=true'"
            raise ConfigError(
                f"The 'runner' parameter of {name} must be transformers for {given}: it is for "
                f"published reward models that are loaded here."
            )
        if self.device != "auto":
            raise ConfigError(
                f"The 'device' parameter of {name} must be auto with 'runner=vllm', which runs "
                f"where it was built for. Got {self.device!r} instead."
            )
        if self.dtype is Dtype.float64:
            raise ConfigError(
                f"The 'dtype' parameter of {name} must be auto, float32, bfloat16 or float16 with "
                f"'runner=vllm'. Got 'float64' instead."
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"The 'gpu_memory_utilization' parameter of {name} must be above 0 and at most 1. "
                f"Got {self.gpu_memory_utilization} instead."
            )

    @property
    def needs_training(self) -> bool:
        return self.family is Family.tiny

    def published_weights(self) -> str | None:
        from prunebench.rewardmodel import identity_of

        return None if self.server else identity_of(self._published())

    def _published(self) -> ModelSpec:
        name = self.family.value
        return ModelSpec(name=name, id=self.model_id, revision=self.revision, path=self.path)

    @property
    def is_fitted(self) -> bool:
        return self.model_ is not None

    @property
    def file_stem(self) -> str:
        return self.weights_of or super().file_stem

    @property
    def splitting(self) -> tuple[Steps, Unfinished]:
        """What counts as a step, and what becomes of an unfinished one."""
        return Steps.whole, Unfinished.close

    def recipe(self) -> Recipe:
        """How `fit` trains."""
        from prunebench.rmtrain import Recipe

        return Recipe()

    @abstractmethod
    def aggregated(self, steps: np.ndarray) -> float:
        """The score of a path from the probabilities of its steps, at least one."""

    def setup(self, context: Context) -> None:
        if self.family is Family.tiny:
            return
        self.context_ = context
        if self.server:
            from prunebench.rewardserver import ServedRewardModel

            config = getattr(context.endpoint, "config", None)
            if config is None:
                raise ConfigError(
                    "'method.server=true' needs a server: set 'endpoint=server', "
                    "'endpoint.base_url=' and 'endpoint.model='."
                )
            self.model_ = ServedRewardModel(
                config,
                self._published(),
                batch_tokens=self.batch_tokens,
                max_length=self.max_length,
                ledger=context.ledger,
            )
            return
        if self.runner is Runner.vllm:
            from prunebench.rewardvllm import VllmRewardModel

            self.model_ = VllmRewardModel(
                self.family,
                self._published(),
                dtype=self.dtype,
                max_length=self.max_length,
                batch_tokens=self.batch_tokens,
                gpu_memory_utilization=self.gpu_memory_utilization,
                processes=self.processes,
                engine=self.engine,
                ledger=context.ledger,
            )
            return
        from prunebench.rewardmodel import from_hub

        self.model_ = from_hub(
            self.family,
            self._published(),
            max_length=self.max_length,
            ledger=context.ledger,
            **self._running(),
        )

    def score(self, group: PathGroup) -> np.ndarray:
        self.check_fitted()
        assert self.model_ is not None
        inputs = {}
        scores = np.full(len(group), np.nan)
        for i, path in enumerate(group.paths):
            encoded = self.encoded(group, path)
            if encoded is not None:
                inputs[i] = encoded
        self._note_cuts(sum(e.cut for e in inputs.values()))
        for i, steps in zip(inputs, self.model_.read(list(inputs.values())), strict=True):
            scores[i] = self.aggregated(steps)
        return scores

    def encoded(self, group: PathGroup, path: Path) -> Encoded | None:
        """What the reward model reads of a path; None, with a note of why, when it cannot."""
        assert self.model_ is not None
        steps, unfinished = self.splitting
        n = self.model_.max_length
        if self.family is Family.tiny:
            if path.n_tokens == 0:
                path.unscored("empty prefix")
                return None
            found = encode_own(
                group.prompt_ids,
                path.token_ids,
                self._ends_line,
                finished=path.finished,
                steps=steps,
                unfinished=unfinished,
                max_length=n,
            )
        else:
            form = FORMATS[self.family]
            pieces = split_path(path.text, form, path.finished, steps, unfinished)
            if not pieces:
                path.unscored("empty prefix")
                return None
            found = encode_path(self.family, self.model_.tokenizer, group.question, pieces, n)
        if found is None:
            path.unscored(f"the question leaves no room within {n} tokens of the reward model")
        return found

    def _ends_line(self, token: int) -> bool:
        if token not in self.ends_line_:
            text = self.context_.backend.decode(np.array([token], dtype=np.int32))
            self.ends_line_[token] = "\n" in text
        return self.ends_line_[token]

    def _note_cuts(self, n: int) -> None:
        if n and not self.n_cut_:
            assert self.model_ is not None
            logger.warning(
                "Some paths are longer than the %d tokens that the reward model reads: they lose "
                "their first steps.",
                self.model_.max_length,
            )
        self.n_cut_ += n

    # ---- the reward model that prunebench trains

    def fit(
        self, train: Sequence[LabelledPrefix], valid: Sequence[LabelledPrefix], context: Context
    ) -> Self:
        from prunebench.rmtrain import train_reward_model

        if self.family is not Family.tiny:
            raise ConfigError(
                f"Reward models of family {self.family.value} come trained; only "
                f"'method.family=tiny' is trained here."
            )
        learnt = train_reward_model(
            context.backend.model(), self.recipe(), train, valid, seed=context.seed
        )
        self.weights_ = {name: value.numpy() for name, value in learnt.weights.items()}
        identity = context.backend.identity()
        self.metrics_ = {**learnt.metrics, "model": identity, "config": learnt.config}
        return self._ready(context)

    def load(self, folder: FilePath, context: Context) -> Self:
        super().load(folder, context)
        return self._ready(context)

    def _ready(self, context: Context) -> Self:
        from prunebench.rewardmodel import from_weights

        self.context_ = context
        self.model_ = from_weights(
            self.weights_,
            self.metrics_["config"],
            max_length=self.max_length,
            ledger=context.ledger,
            **self._running(),
        )
        return self

    def _running(self) -> dict[str, Any]:
        return {"device": self.device, "dtype": self.dtype, "batch_tokens": self.batch_tokens}

    def close(self) -> None:
        if self.model_ is not None:
            self.model_.close()
        self.model_ = None

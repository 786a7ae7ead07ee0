"""The configuration: one dataclass per group, registered as Hydra schemas.

Methods, backends and datasets are dataclasses already; registering them here makes their fields
options, checked when a configuration is composed.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from prunebench import datasets, registry
from prunebench.backend import ModelSpec
from prunebench.bankfile import StatsDtype
from prunebench.endpoint import EndpointConfig
from prunebench.errors import ConfigError
from prunebench.modes import Mode
from prunebench.select import Finished
from prunebench.vote import Aggregator


@dataclass(kw_only=True)
class BankOptions:
    """Where traces are kept.

    Attributes
    ----------
    dir : parent folder of all banks; the right one is found by content.
    path : exactly this bank; an error says which keys differ when it does not match.
    stats_dtype : float32, or float16 for half the size on disk.
    group : problems decoded together; 0 chooses by n_paths.
    """

    dir: str = "results/bank"
    path: str | None = None
    stats_dtype: StatsDtype = StatsDtype.float32
    group: int = 0


@dataclass(kw_only=True)
class EvaluationOptions:
    """How the grid is evaluated.

    Attributes
    ----------
    n_subsets : random subsets of the pool per problem when n_paths is smaller than the pool.
    n_subsets_joint : the same for methods that must score every subset anew.
    """

    n_subsets: int = 200
    n_subsets_joint: int = 20


@dataclass(kw_only=True)
class TrainOptions:
    """Options of `prunebench train`: Monte-Carlo labels and where trained weights go.

    Attributes
    ----------
    output : folder of trained weights, `<output>/<model>/<method>/`.
    label_dir : where labels are kept; they are reused when nothing that determines them changed.
    seed : of the problems, paths and the split.
    n_problems : problems to draw prefixes from.
    prefixes_per_problem : paths begun per problem; each is labelled at every prefix length.
    prefix_lengths : lengths of the prefixes; empty takes 1/2, 3/4, 1, 3/2 and 2 times the
        model's prefix length.
    n_continuations : continuations of a path's first prefix behind its label, a power of two. They
        branch at the prefix lengths, so that longer prefixes have fewer.
    rows : paths of labels in memory at the same time; those of one problem always are.
    valid_share : share of the problems held out to choose the checkpoint.
    """

    output: str = "results/trained"
    label_dir: str = "results/labels"
    seed: int = 1
    n_problems: int = 12288
    prefixes_per_problem: int = 2
    prefix_lengths: list[int] = field(default_factory=list)
    n_continuations: int = 4
    rows: int = 512
    valid_share: float = 0.08


@dataclass(kw_only=True)
class RunConfig:
    """One run: a method on a model, a dataset and an engine.

    Attributes
    ----------
    mode : replay (evaluate on stored traces) or online (Launch-Check-Resume on the live engine).
    n_paths, keep : N and k.
    prefix_length : the checkpoint L in generated tokens.
    pool_size : paths generated per problem; null = n_paths. More than n_paths gives tighter
        intervals, by evaluating many random subsets.
    finished : paths that ended before the checkpoint compete for a slot, or are kept free.
    aggregator : how the kept paths vote.
    seed : of the sampling noise, the subsets and random methods.
    workers : processes that fill the bank, each with an engine of its own; 0 = one per core on a
        CPU, else one. On GPUs every engine takes GPUs of its own.
    problems_at_once : problems that are launched, checked and resumed together online. A few rows
        take the engine nearly as long as many, so more problems save more time, for more memory.
    debug : show tracebacks.
    """

    method: Any = MISSING
    model: Any = MISSING
    dataset: Any = MISSING
    backend: Any = MISSING
    endpoint: Any = field(default_factory=EndpointConfig)
    mode: Mode = Mode.replay
    n_paths: int = 64
    keep: int = 8
    prefix_length: int = MISSING
    pool_size: int | None = None
    finished: Finished = Finished.compete
    aggregator: Aggregator = Aggregator.majority
    seed: int = 0
    workers: int = 0
    problems_at_once: int = 1
    debug: bool = False
    bank: BankOptions = field(default_factory=BankOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    train: TrainOptions = field(default_factory=TrainOptions)

    @property
    def pool(self) -> int:
        """Paths per problem in the pool."""
        return self.n_paths if self.pool_size is None else self.pool_size

    def validate(self) -> None:
        """Raise `ConfigError` for values that cannot work, before anything loads."""
        sampling, n = self.model.sampling, self.n_paths
        longest = sampling.max_new_tokens
        rules: list[tuple[str, Any, bool, str]] = [
            ("n_paths", n, n >= 1, "at least 1"),
            ("keep", self.keep, 1 <= self.keep <= n, f"an integer from 1 to n_paths ({n})"),
            ("pool_size", self.pool, self.pool >= n, f"at least n_paths ({n})"),
            ("prefix_length", self.prefix_length, self.prefix_length >= 1, "at least 1 token"),
            (
                "prefix_length",
                self.prefix_length,
                self.prefix_length < longest,
                f"smaller than model.sampling.max_new_tokens ({longest})",
            ),
            ("workers", self.workers, self.workers >= 0, "at least 0"),
            ("problems_at_once", self.problems_at_once, self.problems_at_once >= 1, "at least 1"),
        ]
        for name, low, high in (("temperature", 0, None), ("top_p", 0, 1), ("top_k", 0, None)):
            value = getattr(sampling, name)
            ok = value >= low and (high is None or value <= high) and not (high and value == 0)
            limits = f"at least {low}" if high is None else f"above {low} and at most {high}"
            rules.append((f"model.sampling.{name}", value, ok, limits))
        for group, name in (
            ("evaluation", "n_subsets"),
            ("evaluation", "n_subsets_joint"),
            ("train", "n_problems"),
            ("train", "prefixes_per_problem"),
            ("train", "rows"),
        ):
            value = getattr(getattr(self, group), name)
            rules.append((f"{group}.{name}", value, value >= 1, "at least 1"))
        lengths, share = self.train.prefix_lengths, self.train.valid_share
        in_range = all(1 <= length < longest for length in lengths)
        rules.append(
            (
                "train.prefix_lengths",
                lengths,
                in_range and len(set(lengths)) == len(lengths),
                f"different lengths from 1 to model.sampling.max_new_tokens - 1 ({longest - 1})",
            )
        )
        rules.append(("train.valid_share", share, 0 < share < 1, "between 0 and 1"))
        rules.append(("bank.group", self.bank.group, self.bank.group >= 0, "at least 0"))
        self.endpoint.validate()
        for name, value, ok, constraint in rules:
            if not ok:
                raise ConfigError(
                    f"The '{name}' parameter must be {constraint}. Got {value} instead."
                )

    @property
    def n_workers(self) -> int:
        """Processes that fill the bank."""
        return self.workers or len(os.sched_getaffinity(0))

    def spec(self) -> ModelSpec:
        """The model with prompt and answer style filled in from the dataset."""
        model: ModelSpec = self.model
        model.prompt = model.prompt or self.dataset.prompt
        model.answer = model.answer or self.dataset.answer
        return model


DATASET_SCHEMAS: dict[str, type[datasets.Dataset]] = {
    "arithmetic": datasets.Arithmetic,
    "arithmetic_hard": datasets.ArithmeticHard,
    "file": datasets.File,
    "hub": datasets.Hub,
}


def register() -> None:
    """Put every schema into Hydra's ConfigStore. Call before composing."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(group="schema", name="model", node=ModelSpec)
    store.store(group="schema", name="endpoint", node=EndpointConfig)
    for name, cls in registry.methods().items():
        store.store(group="method", name=name, node=cls)
        store.store(group="schema/method", name=name, node=cls)
    for name, cls in registry.backends().items():
        store.store(group="backend", name=name, node=cls)
    for name, schema in DATASET_SCHEMAS.items():
        store.store(group="schema/dataset", name=name, node=schema)
    for name in ("arithmetic", "arithmetic_hard", "file"):
        store.store(group="dataset", name=name, node=DATASET_SCHEMAS[name])


def to_run(cfg: Any) -> RunConfig:
    """The composed configuration as objects, `__post_init__` checks included."""
    run = OmegaConf.to_object(cfg)
    assert isinstance(run, RunConfig)
    return run


def plain(value: Any) -> Any:
    """A config object as JSON-ready data: enums by name, learned state left out."""
    if dataclasses.is_dataclass(value):
        fields = [f for f in dataclasses.fields(value) if f.init]
        return {f.name: plain(getattr(value, f.name)) for f in fields}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value

"""The configuration: one dataclass per group, registered as Hydra schemas.

Methods, backends and datasets are dataclasses already; registering them here makes their fields
options, checked when a configuration is composed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import II, MISSING, OmegaConf

from prunebench import datasets, grading, imported, registry
from prunebench.backend import ModelSpec
from prunebench.bankfile import StatsDtype
from prunebench.endpoint import EndpointConfig
from prunebench.errors import ConfigError
from prunebench.modes import Mode, Protocol
from prunebench.pruning import Pruning
from prunebench.select import Finished, Select, check_keep
from prunebench.vote import Aggregator, VoteOptions


@dataclass(kw_only=True)
class BankOptions:
    """Where traces are kept.

    Attributes
    ----------
    dir : parent folder of all banks; the right one is found by content.
    path : exactly this bank; an error says which keys differ when it does not match.
    name : an imported bank (`prunebench import`); on the command line `bank=NAME`.
    stats_dtype : float32, or float16 for half the size on disk.
    group : problems decoded together; 0 chooses by n_paths.
    """

    dir: str = "results/bank"
    path: str | None = None
    name: str | None = None
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
class ReportOptions:
    """What stands in the report of a run or sweep.

    Attributes
    ----------
    texts : keep the texts of the paths beside the records, for the path explorer.
    max_mb : size of `report.html` up to which it holds them.
    width : of the figures: `one` or `two` columns of a paper, or what suits each (`auto`).
    """

    texts: bool = True
    max_mb: float = 64.0
    width: str = "auto"


@dataclass(kw_only=True)
class StoppingOptions:
    """Parameters of the rules that decide which paths are sampled (`protocol=`).

    Attributes
    ----------
    threshold : adaptive_consistency stops when the leader is safe with this probability.
    window : paths drawn together by esc.
    n_warmup : complete paths from which deepconf_online takes its bar.
    top : percentage of the warm-up above the bar (10 is the paper's "low", 90 its "high").
    consensus : share of the votes' weight at which deepconf_online stops.
    group : tokens in a group of deepconf_online; by default the model's prefix length, which for
        real models is the paper's 2048.
    """

    threshold: float = 0.95
    window: int = 8
    n_warmup: int = 16
    top: float = 10.0
    consensus: float = 0.95
    group: int = II("model.prefix_length")


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
    first : a run trains its method with these very options before it scores, unless that was done
        before (for ablations); its weights lie in a folder of their own under `output`.
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
    first: bool = False


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
    retention : share of the paths to keep, in place of `keep`; or `auto`, by the retention law
        (`prunebench retention`) for the length of the task's unpruned paths.
    coefficients : file of a fit (`prunebench fit-retention`) for `retention=auto`; null takes the
        published law.
    task_length : that length in tokens, for `retention=auto`; null takes the mean of the bank.
    schedule : several checkpoints, `[[prefix_length, keep], ...]`, in place of `prefix_length` and
        `keep`. Numbers with a point are shares of the model's prefix length and of n_paths.
    prefix_scale : multiplies the model's prefix length where no prefix_length is given.
    select : `top_k` keeps the best; `threshold` all that score at least `threshold`; `mass` as few
        as hold that share of the softmax of the scores.
    weights : the method whose scores weigh the votes, with its defaults; null is the one that
        selects. `weights_at_end` reads them off the complete paths instead of at the checkpoint.
    vote : parameters of the aggregators.
    protocol : `prune`, or a rule that decides which paths are sampled at all (replay only).
    stopping : parameters of these rules.
    dry_run : only say what would be generated, scored and evaluated, and what cannot run.
    allow_leakage : evaluate a learned method also on problems that it was trained on.
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
    retention: Any = None
    coefficients: str | None = None
    task_length: float | None = None
    schedule: list[Any] = field(default_factory=list)
    prefix_scale: float = 1.0
    select: Select = Select.top_k
    threshold: float | None = None
    mass: float = 0.9
    weights: str | None = None
    weights_at_end: bool = False
    protocol: Protocol = Protocol.prune
    allow_leakage: bool = False
    dry_run: bool = False
    debug: bool = False
    vote: VoteOptions = field(default_factory=VoteOptions)
    stopping: StoppingOptions = field(default_factory=StoppingOptions)
    report: ReportOptions = field(default_factory=ReportOptions)
    bank: BankOptions = field(default_factory=BankOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    train: TrainOptions = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        self.notes: list[str] = []  # what there is to say about the budget, once it is settled
        if self.imported:
            imported.connect(self)

    @property
    def pool(self) -> int:
        """Paths per problem in the pool."""
        return self.n_paths if self.pool_size is None else self.pool_size

    @property
    def imported(self) -> bool:
        """Whether the paths were made elsewhere, so that no engine is there to make more."""
        return self.bank.name is not None

    @property
    def longest(self) -> int:
        """A number of tokens that no path exceeds."""
        return self.model.sampling.max_new_tokens

    @property
    def stages(self) -> list[tuple[int, int]]:
        """`(prefix_length, keep)` of each checkpoint."""
        if not self.schedule:
            return [(self.prefix_length, self.keep)]
        try:
            stages = [(length, keep) for length, keep in self.schedule]
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"The 'schedule' parameter must be a list of [prefix_length, keep]. Got "
                f"{self.schedule} instead."
            ) from error
        return [
            (_absolute(length, self.model.prefix_length), _absolute(keep, self.n_paths))
            for length, keep in stages
        ]

    @property
    def pruning(self) -> Pruning:
        """Checkpoints, budgets and rule."""
        return Pruning(
            tuple(self.stages),
            policy=self.finished,
            rule=self.select,
            threshold=float("nan") if self.threshold is None else self.threshold,
            mass=self.mass,
        )

    def settle(self, lengths: Sequence[np.ndarray] = ()) -> None:
        """Turn `retention` and `schedule` into `keep` and `prefix_length`.

        Parameters
        ----------
        lengths : tokens of the complete paths of every problem, which `retention=auto` needs when
            there is no `task_length`.
        """
        if self.schedule:
            self.prefix_length, self.keep = self.stages[-1]
        elif self.retention == "auto":
            known = self.task_length or (float(np.concatenate(lengths).mean()) if lengths else 0)
            if known:
                from prunebench import guideline

                law = guideline.PUBLISHED
                if self.coefficients is not None:
                    law = guideline.load(Path(self.coefficients))
                self.keep = guideline.keep_for(self.n_paths, self.prefix_length, known, law)
                self.notes = guideline.explain(
                    self.n_paths, self.keep, self.prefix_length, known, law
                )
            elif self.mode is Mode.online:
                raise ConfigError(
                    "retention=auto online needs 'task_length', the mean number of tokens of an "
                    "unpruned path on this task. Give for example task_length=8650."
                )
        elif self.retention is not None:
            self.keep = max(1, round(float(self.retention) * self.n_paths))

    def validate(self) -> None:
        """Raise `ConfigError` for values that cannot work, before anything loads."""
        sampling, n = self.model.sampling, self.n_paths
        longest = sampling.max_new_tokens
        retention = self.retention
        if retention not in (None, "auto") and not (
            isinstance(retention, int | float) and 0 < retention <= 1
        ):
            raise ConfigError(
                f"The 'retention' parameter must be a share above 0 and at most 1, or 'auto'. Got "
                f"{retention} instead."
            )
        if self.threshold is not None and self.select is not Select.threshold:
            raise ConfigError(
                f"A 'threshold' counts with select=threshold only. Got threshold={self.threshold} "
                f"with select={self.select}; leave one out."
            )
        votes = self.aggregator is not Aggregator.majority
        if self.weights is not None and self.protocol is Protocol.prune and not votes:
            raise ConfigError(
                f"In a majority every vote weighs the same. Got weights={self.weights}; choose "
                f"another aggregator, for example aggregator=score_sum, or leave it out."
            )
        if retention is not None and (self.schedule or self.select is not Select.top_k):
            what = "A 'schedule'" if self.schedule else f"select={self.select}"
            raise ConfigError(
                f"{what} says how many paths are kept. Got retention={retention}; leave one out."
            )
        if self.protocol is not Protocol.prune and self.mode is Mode.online:
            raise ConfigError(
                f"protocol={self.protocol.value} is a rule about complete paths. Got mode=online; "
                f"use mode=replay."
            )
        if self.weights is not None and self.mode is Mode.online:
            raise ConfigError(
                f"The votes' 'weights' are scores of another method, which only mode=replay has. "
                f"Got weights={self.weights} with mode=online; leave one out."
            )
        if self.weights is not None:
            registry.method_class(self.weights)
        rules: list[tuple[str, Any, bool, str]] = [
            ("n_paths", n, n >= 1, "at least 1"),
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
        self.settle()
        pruning = self.pruning
        counted = pruning.rule is Select.top_k and self.protocol is Protocol.prune
        for _, keep in pruning.stages:
            if counted and self.retention != "auto":  # which keeps at most n_paths
                check_keep(keep, n)

    @property
    def n_workers(self) -> int:
        """Processes that fill the bank."""
        return self.workers or len(os.sched_getaffinity(0))

    def spec(self) -> ModelSpec:
        """The model with prompt and answer style filled in from the dataset."""
        model: ModelSpec = self.model
        model.prompt = model.prompt or self.dataset.prompt
        own = grading.is_function(self.dataset.grading)  # asked for, so it counts in any case
        model.answer = self.dataset.grading if own else model.answer or self.dataset.grading
        return model


def _absolute(value: Any, unit: int) -> int:
    """A number of tokens or paths; numbers with a point are shares of `unit`."""
    return max(1, round(value * unit)) if isinstance(value, float) else int(value)


DATASET_SCHEMAS: dict[str, type[datasets.Dataset]] = {
    "arithmetic": datasets.Arithmetic,
    "arithmetic_hard": datasets.ArithmeticHard,
    "file": datasets.File,
    "local": datasets.Local,
    "hub": datasets.Hub,
    "imported": imported.Imported,
}


def register() -> None:
    """Put every schema into Hydra's ConfigStore. Call before composing."""
    OmegaConf.register_new_resolver(
        "scaled", lambda length, scale: max(1, round(length * scale)), replace=True
    )
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
    for name in ("arithmetic", "arithmetic_hard", "file", "local", "imported"):
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

"""What the cells of a sweep share in one process: engines, banks, pools and prepared methods.

A sweep is many small runs; loading a model or reading a bank once per run would cost more than
the runs. Everything here is found by content, so two cells share exactly what they may share.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prunebench import checkpoints, compat, grading, imported, registry
from prunebench.backend import Backend
from prunebench.backends.replay import ReplayBackend
from prunebench.bank import Bank, FillReport, bank_key
from prunebench.config import RunConfig, plain
from prunebench.cost import Ledger
from prunebench.datasets import Arithmetic
from prunebench.endpoint import Endpoint
from prunebench.errors import ConfigError
from prunebench.evaluate import ProblemPool, pool_of
from prunebench.filling import fill_beside
from prunebench.method import Context, SignalGenerator, Trainable
from prunebench.modes import Mode
from prunebench.scores import source_hash
from prunebench.storage import content_hash
from prunebench.types import CONTROLS_ONLY, Capability, Problem, SignalType, Trace

ROWS_PER_GROUP = 256
"""Paths decoded together when `bank.group` is 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """The paths of one problem in memory: the first `pool` of the bank."""

    problem: Problem
    prompt_ids: np.ndarray
    traces: list[Trace]
    pool: ProblemPool


@dataclass(kw_only=True)
class Prepared:
    """A method that is ready to score.

    Attributes
    ----------
    checkpoint : folder of its trained weights, None for methods that have none.
    checkpoint_hash : identifies the weights in score tables, and those of its parts with their
        source.
    part_checkpoints : folders with the trained weights of its parts, by method name.
    """

    method: SignalGenerator
    checkpoint: Path | None
    checkpoint_hash: str | None
    part_checkpoints: dict[str, Path] = field(default_factory=dict)
    ready: bool = False


@dataclass(kw_only=True)
class Lab:
    """Shared by all runs of a process. `seconds` adds up wall time by phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    _backends: dict[str, Backend] = field(default_factory=dict)
    _banks: dict[str, Bank] = field(default_factory=dict)
    _stored: dict[tuple[str, str], Stored] = field(default_factory=dict)
    _methods: dict[str, Prepared] = field(default_factory=dict)
    _endpoints: dict[str, Endpoint] = field(default_factory=dict)
    _leakage: dict[str, list[str]] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    references: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Records of the rows that cells of one budget share."""

    def clock(self, phase: str) -> _Clock:
        """A context manager that adds its wall time to `seconds[phase]`."""
        return _Clock(self.seconds, phase)

    def spent_since(self, before: dict[str, float]) -> dict[str, float]:
        """Seconds by phase since `seconds` was `before`, without phases that did nothing."""
        spent = {phase: total - before.get(phase, 0.0) for phase, total in self.seconds.items()}
        return {phase: seconds for phase, seconds in spent.items() if seconds > 0}

    def backend(self, run: RunConfig) -> Backend:
        """The engine of a run, bound to its model; loads nothing by itself."""
        spec = run.spec()
        key = _key(_stem(run.backend), run.backend, spec, run.seed)
        if key not in self._backends:
            self._close_others()  # one model in memory at a time
            run.backend.bind(spec, run.seed)
            self._backends[key] = run.backend
        self._backends[key].expect(run.method.requires)
        return self._backends[key]

    def _close_others(self) -> None:
        for prepared in self._methods.values():
            if prepared.ready:
                prepared.method.close()
        for backend in self._backends.values():
            backend.close()
        self._methods.clear()
        self._backends.clear()

    def pair(self, run: RunConfig) -> None:
        """Raise `Incompatible` when the method needs what this run cannot give."""
        name = registry.method_name(run.method)
        forbidden = run.method.requires & CONTROLS_ONLY
        if forbidden and run.method.type is not SignalType.CONTROL:
            raise ConfigError(
                f"The method {name!r} of type {run.method.type} must not require ground truth "
                f"({', '.join(sorted(forbidden))}): only a SignalType.CONTROL may. Run "
                f"'prunebench check' on its file."
            )
        extra = self.beside_engine(run)
        requires = run.method.requires
        if run.mode is Mode.online:
            requires |= compat.ENGINE_REQUIRES
        compat.check(
            name,
            requires,
            backend=_stem(run.backend),
            provides=run.backend.provides | extra,
            providers={n: cls().provides for n, cls in registry.engines().items()}
            | {_stem(run.backend): run.backend.provides},
        )

    def beside_engine(self, run: RunConfig) -> frozenset[Capability]:
        """What dataset, endpoint and mode of a run give, whatever the engine."""
        given = run.dataset.provides
        if run.endpoint.configured:
            given |= {Capability.ENDPOINT}
        if run.mode is Mode.replay:
            given |= {Capability.OUTCOME}
        return given

    def bank(self, run: RunConfig) -> Bank:
        """The trace bank of a run, opened or created."""
        folder, key = self.bank_place(run)
        memo = _key(key, run.bank, str(folder.absolute()))
        if memo not in self._banks:
            self._banks[memo] = Bank.at(folder, key)
        return self._banks[memo]

    def bank_place(self, run: RunConfig) -> tuple[Path, dict[str, Any]]:
        """The folder and the key of the trace bank of a run, which need not exist yet."""
        if run.bank.name is not None:
            folder = imported.folder_of(run.bank.dir, run.bank.name)
            return folder, imported.read_facts(folder).key
        backend = self.backend(run)
        spec = backend.spec
        prompt = {
            "prompt": spec.prompt,
            "chat": spec.chat,
            "chat_kwargs": spec.chat_kwargs,
            "answer": spec.answer,
            **grading.identity(spec.answer),
        }
        key = bank_key(
            backend.identity(),
            spec.sampling,
            prompt,
            run.dataset.identity(),
            run.seed,
            run.bank.stats_dtype,
        )
        if run.bank.path is not None:
            return Path(run.bank.path), key
        return Bank.folder_of(Path(run.bank.dir), key, f"{spec.name}-{run.dataset.name}"), key

    def fill(self, run: RunConfig, progress: Callable[[int], None]) -> FillReport:
        """Generate the paths of a run that its bank does not hold yet."""
        bank, problems = self.bank(run), run.dataset.problems()
        missing = [p for p in problems if bank.missing(p, run.pool)]
        if not missing:
            progress(len(problems))
            return FillReport(n_generated=0, failures=[])
        group = run.bank.group or max(1, ROWS_PER_GROUP // run.pool)
        return fill_beside(
            bank,
            self.backend(run),
            problems,
            run.pool,
            group=group,
            n_groups=-(-len(missing) // group),
            workers=run.workers,
            progress=progress,
        )

    def stored(self, run: RunConfig) -> dict[str, Stored]:
        """The first `run.pool` paths of every problem that the bank holds whole."""
        bank = self.bank(run)
        found = {}
        for problem in run.dataset.problems():
            memo = (f"{bank.folder}", f"{problem.id}:{run.pool}")
            if memo not in self._stored:
                content = None if bank.missing(problem, run.pool) else bank.read(problem)
                if content is None:
                    continue
                traces = [t for t in content[1] if t.index < run.pool]
                self._stored[memo] = Stored(
                    problem=problem,
                    prompt_ids=content[0],
                    traces=traces,
                    pool=pool_of(problem.id, traces),
                )
            found[problem.id] = self._stored[memo]
        return found

    def replay(self, run: RunConfig, stored: dict[str, Stored]) -> ReplayBackend:
        """An engine whose tokens come from the bank."""
        backend = self.backend(run)
        replay = ReplayBackend(
            lookup=lambda p: (stored[p.id].prompt_ids, stored[p.id].traces), source=backend
        )
        replay.bind(backend.spec, run.seed)
        return replay

    def endpoint(self, run: RunConfig) -> Endpoint | None:
        """The client of the server that judges, if one is configured."""
        if not run.endpoint.configured:
            return None
        key = _key(run.endpoint)
        if key not in self._endpoints:
            from prunebench.endpointclient import OpenAIEndpoint

            self._endpoints[key] = OpenAIEndpoint(run.endpoint, self.ledger)
        return self._endpoints[key]

    def judge(self, run: RunConfig) -> dict[str, Any] | None:
        """What determines the verdicts of a method that asks a server, None for others."""
        asks = Capability.ENDPOINT in run.method.requires
        return run.endpoint.identity() if asks else None

    def prepared(self, run: RunConfig) -> Prepared:
        """The method with its checkpoint found, but nothing loaded yet.

        Raises `NotTrained` when a learnable method has no weights for this model.
        """
        name = registry.method_name(run.method)
        key = _key(
            name, run.method, run.backend, run.model, run.seed, run.train.output, run.endpoint
        )
        if key not in self._methods:
            folder, weights = found_weights(run.method, run)
            parts = {registry.method_name(p): (p, *found_weights(p, run)) for p in run.method.parts}
            if parts:
                sources = {part: source_hash(type(p)) for part, (p, _, _) in parts.items()}
                loaded = {part: of_part for part, (_, _, of_part) in parts.items()}
                weights = content_hash({"own": weights, "sources": sources, "weights": loaded})
            self._methods[key] = Prepared(
                method=run.method,
                checkpoint=folder,
                checkpoint_hash=weights,
                part_checkpoints={part: at for part, (_, at, _) in parts.items() if at is not None},
            )
        return self._methods[key]

    def leakage(self, run: RunConfig) -> list[str]:
        """What there is to say about training problems of the method among those of the run. Raises
        `ConfigError` when there are some, unless `run.allow_leakage`."""
        prepared = self.prepared(run)
        name = registry.method_name(prepared.method)
        folders = [] if prepared.checkpoint is None else [(name, prepared.checkpoint)]
        folders += prepared.part_checkpoints.items()
        return [note for found in folders for note in self._leakage_of(*found, prepared, run)]

    def _leakage_of(self, name: str, folder: Path, prepared: Prepared, run: RunConfig) -> list[str]:
        key = _key(str(folder), prepared.checkpoint_hash, run.dataset, run.allow_leakage)
        if key not in self._leakage:
            # the embedded task keeps its problems for training, labels and evaluation apart
            shipped = checkpoints.SHIPPED in folder.parents
            self._leakage[key] = checkpoints.check_leakage(
                folder,
                [problem.question for problem in run.dataset.problems()],
                method=name,
                allow=run.allow_leakage,
                disjoint=shipped and isinstance(run.dataset, Arithmetic),
            )
        return self._leakage[key]

    def ready(self, prepared: Prepared, run: RunConfig) -> SignalGenerator:
        """The method with its weights loaded and set up."""
        if not prepared.ready:
            context = Context(
                model_name=run.model.name,
                backend=self.backend(run),
                seed=run.seed,
                endpoint=self.endpoint(run),
                ledger=self.ledger,
                part_weights=prepared.part_checkpoints,
            )
            if prepared.checkpoint is not None:
                assert isinstance(prepared.method, Trainable)
                prepared.method.load(prepared.checkpoint, context)
            prepared.method.setup(context)
            prepared.ready = True
        return prepared.method


def found_weights(method: SignalGenerator, run: RunConfig) -> tuple[Path | None, str | None]:
    """The folder with a method's trained weights for the model of a run, and what identifies
    them; None for what there is not. Raises `NotTrained` when there should be some."""
    if not isinstance(method, Trainable):
        return None, None
    if not method.needs_training:
        return None, method.published_weights()
    folder = checkpoints.find(
        method.weights_of or registry.method_name(method),
        run.model.name,
        override=method.checkpoint,
        output=run.train.output,
        embedded=run.model.id == "embedded:tiny" and run.model.path is None,
    )
    method.check_weights(folder)
    return folder, checkpoints.fingerprint(folder)


@dataclass
class _Clock:
    seconds: dict[str, float]
    phase: str
    start: float = 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self.start
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + spent


def _key(*parts: Any) -> str:
    ready = [p if isinstance(p, (str, int, dict, type(None))) else plain(p) for p in parts]
    return json.dumps(ready, sort_keys=True, default=str)


def _stem(backend: Backend) -> str:
    return type(backend).__module__.rsplit(".", 1)[-1]

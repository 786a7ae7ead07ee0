"""Generates with vLLM, in this process or with engine processes, on GPU or CPU.

Draws with the same noise as the transformers engine, lets paths wait as live requests while they
are checked, and runs STOP on their cache blocks through the plug-in in `_vllm_plugin.py`. vLLM is
imported when the engine is first needed, not with this file.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench import readerfiles
from prunebench.backend import Internals, ModelSpec, ReaderWeights, Session
from prunebench.backends import _hub
from prunebench.backends._device import SMALL, Dtype, as_dtype, number_format, torch_device
from prunebench.backends._text import HubModel
from prunebench.backends._vllm_setup import check_installation as _check_installation
from prunebench.backends._vllm_setup import prepare_environment
from prunebench.backends._vllm_setup import version as _version
from prunebench.errors import ConfigError
from prunebench.types import Capability, Problem, Trace

if TYPE_CHECKING:
    from prunebench.backends._vllm_engine import VllmEngine
    from prunebench.backends._vllm_session import Settings

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""


@dataclass(kw_only=True)
class VllmBackend(HubModel):
    """vLLM as the engine.

    Parameters
    ----------
    dtype : number format; `auto` is float32 on the CPU, else what the weights are stored in.
    tensor_parallel_size : GPUs that share the model.
    gpu_memory_utilization : share of a GPU's memory for weights and cache.
    kv_cache_gb : memory of the cache in GB instead; None is vLLM's choice on GPUs, 1 on CPUs.
    max_model_len : longest prompt and path together; None is what the model allows.
    max_num_seqs : most paths that run at the same time.
    block_size : tokens in a block of the cache; None is vLLM's choice, 32 on CPUs.
    enable_prefix_caching : share cache blocks; without it every check reads the prefix again.
    enforce_eager : no compilation and no CUDA graphs; None is eager on CPUs, and where a method
        reads hidden states.
    processes : run the engine in a process of its own.
    hold : paths wait while they are checked; false lets them run on, and what pruned paths
        generate meanwhile counts as generated.
    exact_stats : measure exact entropy and the sum of log-probabilities, which vLLM's top 20 cannot
        tell; None does so for the trace bank, which serves every method, and online only for
        methods that read them.
    engine : any other option of vLLM's `EngineArgs` (`+backend.engine.quantization=fp8`).
    """

    dtype: Dtype = Dtype.auto
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    kv_cache_gb: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 256
    block_size: int | None = None
    enable_prefix_caching: bool = True
    enforce_eager: bool | None = None
    processes: bool = False
    hold: bool = True
    exact_stats: bool | None = None
    engine: dict[str, Any] = field(default_factory=dict)

    parallel_fill = False

    def __post_init__(self) -> None:
        for name in ("tensor_parallel_size", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"'backend.{name}' must be at least 1. Got {getattr(self, name)}."
                )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"'backend.gpu_memory_utilization' must be above 0 and at most 1. Got "
                f"{self.gpu_memory_utilization}."
            )
        self.dtype = as_dtype(self.dtype)
        self._expected: frozenset[Capability] = frozenset()
        self._forget()

    def _forget(self) -> None:
        self._engine: VllmEngine | None = None
        self._started_for: dict[str, Any] = {}
        self._readers: dict[str, tuple[FilePath, int]] = {}
        self._n_loaded = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._tokenizer = None

    def bind(self, spec: ModelSpec, seed: int) -> None:
        self.close()
        super().bind(spec, seed)

    def __getstate__(self) -> dict[str, Any]:
        """Another process gets the settings and starts the engine itself."""
        empty = {"_engine": None, "_tokenizer": None, "_folder": None, "_readers": {}}
        return self.__dict__ | empty

    # ---- what it can do

    @property
    def unusable(self) -> str | None:
        try:
            _version()
        except ConfigError as error:
            return str(error)
        return None

    @property
    def provides(self) -> frozenset[Capability]:
        given = {
            Capability.LOGPROBS,
            Capability.TOP_LOGPROBS,
            Capability.MAX_LOGPROBS,
            Capability.TOP_MASS,
            Capability.TOP_ENTROPY,
            Capability.PROBE,
            Capability.CONTINUE,
        }
        if self.exact_stats is not False:
            given |= {Capability.ENTROPY, Capability.SUM_LOGPROBS}
        if self.enable_prefix_caching and "enable_lora" not in self.engine:
            given.add(Capability.CACHE_READER)
        if self.enforce_eager is not False:
            given.add(Capability.HIDDEN_STATES)
        return frozenset(given)

    def expect(self, requires: frozenset[Capability]) -> None:
        self._expected |= requires

    def identity(self) -> dict[str, Any]:
        location = _hub.locate(self.spec)
        return {
            "engine": "vllm",
            "model": None if self.spec.path else self.spec.id,
            **_hub.fingerprint(location),
            "dtype": self._dtype(location),
            "exact_stats": self.exact_stats is not False,
            **({"options": dict(sorted(self.engine.items()))} if self.engine else {}),
        }

    def _dtype(self, location: _hub.Location) -> str:
        return number_format(self.dtype, location, on_cpu=self._on_cpu)

    @property
    def _on_cpu(self) -> bool:
        return torch_device() == "cpu"

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return torch_device()

    # ---- starting

    def load(self) -> None:
        assert self.llm is not None

    @property
    def llm(self) -> VllmEngine:
        """The running engine; started on first use, and again when more is asked of it."""
        needs = self._needs()
        if self._engine is not None and needs != self._started_for:
            self._engine.close()
            self._engine = None
        if self._engine is None:
            self._engine = self._start(needs)
            self._started_for = needs
            for name, (folder, _) in self._readers.items():
                self._engine.add_adapter(name, folder)
        return self._engine

    def _needs(self) -> dict[str, Any]:
        """What the start of the engine decides."""
        location = _hub.locate(self.spec)
        lora = Capability.CACHE_READER in self._expected or bool(self._readers)
        ranks = [readerfiles.rank(readerfiles.read(folder)) for folder, _ in self._readers.values()]
        small = _hub.read_json(location, "config.json").get("hidden_size", 0) <= SMALL
        least = max([32 if small else 128, *ranks])
        eager = self.enforce_eager
        if eager is None:
            eager = self._on_cpu or Capability.HIDDEN_STATES in self._expected
        # What was needed once is kept: a narrower engine would only have to be started again.
        before = self._started_for
        return {
            "lora": lora or before.get("lora", False),
            "rank": max(self._rank(least), before.get("rank", 0)) if lora else 0,
            "n_readers": max(2, len(self._readers)) if lora else 0,
            "eager": eager or before.get("eager", False),
        }

    def _rank(self, least: int) -> int:
        if least > RANKS[-1]:
            raise ConfigError(
                f"vLLM runs adapters of rank {RANKS[-1]} and less. Got rank {least}; use "
                f"backend=transformers."
            )
        return next(rank for rank in RANKS if rank >= least)

    def _start(self, needs: dict[str, Any]) -> VllmEngine:
        location = _hub.locate(self.spec)
        _hub.check_files(location)
        prepare_environment(location, processes=self.processes)
        _check_installation()

        from vllm.engine.arg_utils import EngineArgs  # pyright: ignore[reportMissingImports]

        from prunebench.backends import _vllm_plugin
        from prunebench.backends._vllm_engine import VllmEngine

        _vllm_plugin.check_version(_version())
        _vllm_plugin.register()  # vLLM does so in its own processes
        options: dict[str, Any] = {
            "model": str(location.folder),
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "dtype": self._dtype(location),
            "trust_remote_code": self.spec.trust_remote_code,
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "enable_prefix_caching": self.enable_prefix_caching,
            "enforce_eager": needs["eager"],
            "logits_processors": ["prunebench.backends._vllm_sampling:PathNoise"],
            "scheduler_cls": "prunebench.backends._vllm_scheduler.HoldingScheduler",
            "worker_extension_cls": "prunebench.backends._vllm_worker.WorkerExtension",
            "async_scheduling": False,
            "disable_log_stats": True,
        }
        if self._on_cpu:
            options |= {"block_size": 32, "kv_cache_memory_bytes": 1 << 30}
        if self.block_size is not None:
            options["block_size"] = self.block_size
        if self.kv_cache_gb is not None:
            options["kv_cache_memory_bytes"] = int(self.kv_cache_gb * 1e9)
        if needs["lora"]:
            options |= {
                "enable_lora": True,
                "max_lora_rank": needs["rank"],
                "max_loras": needs["n_readers"],
            }
        options |= self.engine
        try:
            args = EngineArgs(**options)
        except TypeError as error:
            raise ConfigError(
                f"'backend.engine' must hold options of vLLM {_version()}: {error}."
            ) from error
        config = _hub.read_json(location, "config.json")
        try:
            return VllmEngine(
                args,
                processes=self.processes,
                eos_ids=self.eos_ids,
                n_vocab=config.get("text_config", config)["vocab_size"],
            )
        except Exception as error:  # vLLM raises many kinds for a model or memory that do not fit
            text = " ".join(str(error).split())[:400]
            raise ConfigError(
                f"vLLM {_version()} cannot start with the model {self.spec.name!r} "
                f"({type(error).__name__}: {text}). Check the options 'backend.*'; "
                f"'debug=true' shows all of it."
            ) from error

    # ---- generating

    def _exact(self, *, bank: bool) -> bool:
        if self.exact_stats is not None:
            return self.exact_stats
        whole = {Capability.ENTROPY, Capability.SUM_LOGPROBS}
        return bank or bool(self._expected & whole)

    def _settings(self, *, bank: bool = False) -> Settings:
        from prunebench.backends._vllm_session import Settings

        return Settings(
            sampling=self.spec.sampling,
            seed=self.seed,
            exact=self._exact(bank=bank),
            hold=self.hold,
            readers={name: m for name, (_, m) in self._readers.items()},
        )

    def open(self, problem: Problem, indices: Sequence[int]) -> Session:
        llm = self.llm
        from prunebench.backends._vllm_session import VllmSession

        prompt = self.prompt_ids(problem.question)
        return VllmSession(llm, problem, prompt, indices, self._settings(), self._reader())

    def generate(
        self, problems: Sequence[Problem], indices: Sequence[int]
    ) -> Iterator[tuple[Problem, np.ndarray, list[Trace]]]:
        """Complete paths; all problems are in the engine at once."""
        llm = self.llm
        from prunebench.backends._vllm_session import VllmSession

        settings, reader = self._settings(bank=True), self._reader()
        sessions = [
            VllmSession(llm, problem, self.prompt_ids(problem.question), indices, settings, reader)
            for problem in problems
        ]
        try:
            for session in sessions:
                session.start(None)
            for session in sessions:
                yield session.problem, session.prompt_ids, session.finish()
        finally:
            for session in sessions:
                session.close()

    # ---- states

    def encode(self, prompt_ids: np.ndarray, prefixes: Sequence[np.ndarray]) -> Internals:
        llm = self.llm
        from prunebench.backends._vllm_session import VllmInternals

        internals = VllmInternals(llm, prompt_ids, prefixes, self._settings(), live=False)
        if self._expected & {Capability.CACHE_READER, Capability.PROBE}:
            internals.warm()
        return internals

    def load_reader(self, name: str, weights: ReaderWeights) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="prunebench-")
        width = _hub.read_json(_hub.locate(self.spec), "config.json").get("hidden_size")
        if weights.adapter is None or len(weights.embeddings) > readerfiles.MOST_TOKENS:
            raise ConfigError(
                f"vLLM runs learned readers that have an adapter and at most "
                f"{readerfiles.MOST_TOKENS} tokens. Got {len(weights.embeddings)} tokens, "
                f"{'no' if weights.adapter is None else 'an'} adapter; use backend=transformers."
            )
        if width not in (None, weights.embeddings.shape[1]):
            raise ConfigError(
                f"The learned reader must be made for a model of width {width}. Got embeddings of "
                f"width {weights.embeddings.shape[1]}; use weights of this model."
            )
        self._n_loaded += 1  # vLLM keeps what it read from a folder, so none is used twice
        folder = FilePath(self._folder.name) / f"{self._n_loaded}-{name}"
        readerfiles.write(folder, weights)
        self._readers[name] = (folder, len(weights.embeddings))
        if self._engine is not None and self._needs() == self._started_for:
            self._engine.add_adapter(name, folder)

    def reader_folders(self) -> list[FilePath]:
        """Where the loaded readers lie, as a server takes them; until `close`."""
        return [folder for folder, _ in self._readers.values()]

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        if self._folder is not None:
            shutil.rmtree(self._folder.name, ignore_errors=True)
        self._forget()

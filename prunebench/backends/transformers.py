"""Generates with any causal language model of transformers, on CPU or GPU.

Owns the decoding loop, so that paths can be paused, read, pruned and resumed on one cache. Knows
no method and no dataset. torch is imported when the model is first needed, not with this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.backend import Internals, ModelSpec, ReaderWeights, Session
from prunebench.backends import _hub
from prunebench.backends._device import SMALL, Dtype, as_dtype, number_format, torch_device
from prunebench.backends._text import HubModel
from prunebench.errors import ConfigError
from prunebench.types import Capability, Problem, Trace

if TYPE_CHECKING:  # what a loaded model is made of needs torch
    import torch

    from prunebench.backends._engine import Engine


@dataclass(kw_only=True)
class TransformersBackend(HubModel):
    """The decoding loop of prunebench over a model of transformers.

    Parameters
    ----------
    device : `auto` takes the first GPU, or else the CPU; otherwise a torch device.
    dtype : number format; in float32 a path is the same in every batch, in shorter formats
        rounding depends on the batch and can now and then change a token.
    attn_implementation : as in transformers: `sdpa`, `eager`, `flash_attention_2`.
    batch_rows : most paths that are decoded together. More are faster until memory runs out.
    threads : CPU threads of torch; None is one for small models, else torch's own choice.
    """

    device: str = "auto"
    dtype: Dtype = Dtype.auto
    attn_implementation: str = "sdpa"
    batch_rows: int = 256
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.batch_rows < 1:
            raise ConfigError(f"'backend.batch_rows' must be at least 1. Got {self.batch_rows}.")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"'backend.threads' must be at least 1. Got {self.threads}.")
        self.dtype = as_dtype(self.dtype)
        self._forget()

    def _forget(self) -> None:
        self._engine: Engine | None = None
        self._tokenizer: Any = None

    def bind(self, spec: ModelSpec, seed: int) -> None:
        super().bind(spec, seed)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Another process gets the settings and loads the model itself."""
        return self.__dict__ | {"_engine": None, "_tokenizer": None}

    @property
    def provides(self) -> frozenset[Capability]:
        return frozenset(
            {
                Capability.LOGPROBS,
                Capability.TOP_LOGPROBS,
                Capability.ENTROPY,
                Capability.SUM_LOGPROBS,
                Capability.MAX_LOGPROBS,
                Capability.TOP_MASS,
                Capability.TOP_ENTROPY,
                Capability.HIDDEN_STATES,
                Capability.KV_CACHE,
                Capability.CACHE_READER,
                Capability.PROBE,
                Capability.GRADIENTS,
                Capability.CONTINUE,
            }
        )

    def identity(self) -> dict[str, Any]:
        location = _hub.locate(self.spec)
        return {
            "engine": "transformers",
            # A folder is known by its weights alone, so that it may be moved.
            "model": None if self.spec.path else self.spec.id,
            **_hub.fingerprint(location),
            "dtype": self._dtype(location),
            "attention": self.attn_implementation,
        }

    # ---- loading

    def _device(self) -> str:
        return torch_device() if self.device == "auto" else self.device

    def _dtype(self, location: _hub.Location) -> str:
        return number_format(self.dtype, location, on_cpu=self._device().startswith("cpu"))

    @property
    def engine(self) -> Engine:
        """The loaded model; the first use loads it."""
        if self._engine is None:
            self._engine = self._load()
        return self._engine

    def load(self) -> None:
        assert self.engine is not None

    def _load(self) -> Engine:
        location = _hub.locate(self.spec)
        _hub.check_files(location)

        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        from prunebench.backends._engine import Engine

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        device = self._device()
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(
                f"'backend.device' must be a device that torch can use. Got {device!r}, but torch "
                f"{torch.__version__} finds no GPU; use backend.device=cpu."
            )
        logging.disable_progress_bar()
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                location.folder,
                dtype=getattr(torch, self._dtype(location)),
                attn_implementation=self.attn_implementation,
                trust_remote_code=self.spec.trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # libraries raise many kinds for a broken or unsuitable model
            raise self._load_error(location, error) from error
        model, report = loaded
        if self.threads is None and device == "cpu" and model.config.hidden_size <= SMALL:
            torch.set_num_threads(1)
        if report["missing_keys"] or report.get("mismatched_keys"):
            name = sorted(map(str, report["missing_keys"] or report["mismatched_keys"]))[0]
            raise location.damaged(
                "*.safetensors", f"the weights lack {name}, which config.json asks for"
            )
        return Engine(model.to(device), self.eos_ids)

    def _load_error(self, location: _hub.Location, error: Exception) -> Exception:
        text = " ".join(str(error).split())[:300]
        if "trust_remote_code" in text:
            return ConfigError(
                f"The model {self.spec.id} comes with its own Python code. Read the code in "
                f"{location.folder}, then allow it with 'model.trust_remote_code=true'."
            )
        if isinstance(error, ImportError) or "attn_implementation" in text or "ttention" in text:
            return ConfigError(
                f"The model cannot be loaded with attn_implementation="
                f"{self.attn_implementation!r}: {text}. Try backend.attn_implementation=eager."
            )
        return location.damaged("config.json or its weights", f"{type(error).__name__}: {text}")

    # ---- generating

    def open(self, problem: Problem, indices: Sequence[int]) -> Session:
        return self.open_together([problem], indices)[0]

    def open_together(self, problems: Sequence[Problem], indices: Sequence[int]) -> list[Session]:
        from prunebench.backends._session import open_sessions

        return [
            *open_sessions(
                self.engine,
                problems,
                [self.prompt_ids(problem.question) for problem in problems],
                [int(i) for i in indices],
                sampling=self.spec.sampling,
                seed=self.seed,
                reader=self._reader(),
            )
        ]

    def generate(
        self, problems: Sequence[Problem], indices: Sequence[int]
    ) -> Iterator[tuple[Problem, np.ndarray, list[Trace]]]:
        """Complete paths, several problems in one batch of up to `batch_rows` rows.

        Which paths share a batch depends on the arguments alone, so that equal calls give equal
        bits.
        """
        reader = self._reader()
        indices = [int(i) for i in indices]
        per_batch = max(1, self.batch_rows // max(1, len(indices)))
        for start in range(0, len(problems), per_batch):
            group = problems[start : start + per_batch]
            prompts = [self.prompt_ids(problem.question) for problem in group]
            found: list[list[Trace]] = [[] for _ in group]
            for first in range(0, len(indices), self.batch_rows):
                part = indices[first : first + self.batch_rows]
                for place, records in enumerate(self._run(group, prompts, part)):
                    found[place] += reader.traces(group[place], part, records)
            yield from zip(group, prompts, found, strict=True)

    def _run(
        self, problems: Sequence[Problem], prompts: Sequence[np.ndarray], indices: Sequence[int]
    ) -> Iterator[Any]:
        """The records of one batch, problem by problem."""
        from prunebench.backends._decode import Batch, Launch
        from prunebench.backends._sampling import path_keys

        launches = [
            Launch(prompt_ids=ids, keys=path_keys(self.seed, problem.id, indices))
            for problem, ids in zip(problems, prompts, strict=True)
        ]
        batch = Batch(self.engine, launches, self.spec.sampling)
        batch.advance(self.spec.sampling.max_new_tokens, final=True)
        n = len(indices)
        for place in range(len(problems)):
            yield batch.records(range(place * n, (place + 1) * n))

    # ---- the model itself

    def encode(self, prompt_ids: np.ndarray, prefixes: Sequence[np.ndarray]) -> Internals:
        return self.engine.encode(prompt_ids, prefixes)

    def load_adapter(self, name: str, folder: FilePath) -> None:
        self.engine.load_adapter(name, FilePath(folder))

    def load_reader(self, name: str, weights: ReaderWeights) -> None:
        self.engine.load_reader(name, weights)

    def model(self) -> torch.nn.Module:
        return self.engine.model

    def close(self) -> None:
        on_gpu = self._engine is not None and self._engine.device.type == "cuda"
        self._forget()
        if on_gpu:
            import torch

            torch.cuda.empty_cache()

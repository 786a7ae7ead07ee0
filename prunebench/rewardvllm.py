"""Runs a reward model on vLLM's pooling engine, in this process or with one of its own.

vLLM gives the states of the last layer, one per token; the heads are those of `rewardmodel.py`, so
every published family runs, on the same token ids and with no code that comes with the weights.
The engine's memory is apart from that of an engine that generates: on one GPU the shares of both
(`method.gpu_memory_utilization`, `backend.gpu_memory_utilization`) must fit beside each other.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import numpy as np

from prunebench.backend import ModelSpec
from prunebench.backends import _hub
from prunebench.backends._device import torch_device
from prunebench.backends._vllm_setup import (
    check_installation,
    prepare_environment,
    stop_engine,
    version,
)
from prunebench.cost import Ledger
from prunebench.errors import ConfigError
from prunebench.prmformats import Encoded, Family, pair_ids
from prunebench.rewardmodel import PAIRS, Dtype, RewardModel, difference, head_of, located, longest

ASKED_BY = "method.runner=vllm"
MODULE = "prunebench.backends._vllm_backbone"
CPU_CACHE_BYTES = 1 << 30


class VllmRewardModel(RewardModel):
    """A published reward model of any family, from a folder or the hub cache.

    Parameters
    ----------
    family, spec : input format and head, and where the model lies.
    dtype : `auto` is float32 on the CPU, else what the weights are stored in.
    max_length : most tokens it reads; 0 takes its own limit.
    batch_tokens : most tokens that are in the engine at the same time.
    gpu_memory_utilization : share of a GPU's memory for weights and cache.
    processes : run the engine in a process of its own.
    engine : any other option of vLLM's `EngineArgs`.

    Raises
    ------
    ModelNotFound, DamagedFile
        As `rewardmodel.from_hub`.
    ConfigError
        When vLLM is absent, or cannot start with the model and the options.
    """

    def __init__(
        self,
        family: Family,
        spec: ModelSpec,
        *,
        dtype: Dtype,
        max_length: int,
        batch_tokens: int,
        gpu_memory_utilization: float,
        processes: bool,
        engine: dict[str, Any],
        ledger: Ledger,
    ) -> None:
        location = located(spec)
        _hub.check_files(location)
        prepare_environment(location, processes=processes)
        check_installation(ASKED_BY)
        config = _hub.read_json(location, "config.json")
        self.batch_tokens, self.ledger = batch_tokens, ledger
        self.tokenizer = _tokenizer(location)
        if family in PAIRS:
            self.logits = difference(_output_rows(location, pair_ids(self.tokenizer, family)))
        else:
            self.logits = head_of(location, family, "cpu")
        self.max_length = longest(family, config["max_position_embeddings"], max_length)
        on_cpu = torch_device() == "cpu"
        number = dtype.value
        if dtype is Dtype.auto:
            number = "float32" if on_cpu else _hub.stored_dtype(location)
        options: dict[str, Any] = {
            "model": str(location.folder),
            "dtype": number,
            "max_model_len": self.max_length,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "disable_log_stats": True,
        }
        if family not in PAIRS:
            from prunebench.backends._vllm_backbone import NAME

            options["hf_overrides"] = {"architectures": [NAME]}
            options["worker_extension_cls"] = f"{MODULE}.WorkerExtension"
        if on_cpu:
            options |= {"block_size": 32, "kv_cache_memory_bytes": CPU_CACHE_BYTES}
        self._processes = processes
        self._engine = _started(options | engine, processes=processes)

    def _forward(self, batch: list[Encoded]) -> list[np.ndarray]:
        import torch
        from vllm import PoolingParams

        self.ledger.add(verifier_tokens=sum(len(e.ids) for e in batch))
        for i, encoded in enumerate(batch):
            params = PoolingParams(task="token_embed", use_activation=False)
            prompt = {"prompt_token_ids": encoded.ids.tolist()}
            self._engine.add_request(str(i), prompt, params)
        found: dict[int, np.ndarray] = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    i = int(output.request_id)
                    states = output.outputs.data.cpu()[torch.as_tensor(batch[i].read)]
                    found[i] = self.logits(states).double().numpy()
        return [found[i] for i in range(len(batch))]

    def close(self) -> None:
        stop_engine(vars(self).pop("_engine"), processes=self._processes)


def _started(options: dict[str, Any], *, processes: bool) -> Any:
    """An engine that gives the states of all tokens, as they are."""
    from vllm.config import PoolerConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    try:
        args = EngineArgs(
            runner="pooling",
            convert="embed",
            pooler_config=PoolerConfig(tok_pooling_type="ALL", use_activation=False),
            skip_tokenizer_init=True,
            **options,
        )
    except TypeError as error:
        raise ConfigError(
            f"'method.engine' must hold options of vLLM {version(ASKED_BY)}: {error}."
        ) from error
    try:
        return LLMEngine.from_engine_args(args, enable_multiprocessing=processes)
    except Exception as error:  # vLLM raises many kinds for a model or memory that do not fit
        text = " ".join(str(error).split())[:400]
        raise ConfigError(
            f"vLLM {version(ASKED_BY)} cannot start with the reward model {options['model']} "
            f"({type(error).__name__}: {text}). Check 'method.max_length', "
            f"'method.gpu_memory_utilization' and 'method.engine', or set "
            f"'method.runner=transformers'; 'debug=true' shows all of it."
        ) from error


def _tokenizer(location: _hub.Location) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            location.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # many kinds, for files that are broken
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise location.damaged("its tokenizer", reason) from error


def _output_rows(location: _hub.Location, ids: tuple[int, int]) -> Any:
    """`(2, hidden)` float32: rows of the output embedding, which may be that of the input."""
    import torch
    from safetensors import safe_open

    names = ("lm_head.weight", "model.embed_tokens.weight")
    found = {}
    for file in sorted(location.folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in set(names) & set(weights.keys()):
                table = weights.get_slice(name)
                found[name] = torch.cat([table[i : i + 1] for i in ids]).float()
    for name in names:
        if name in found:
            return found[name]
    raise location.damaged("*.safetensors", f"the weights lack {names[0]}")

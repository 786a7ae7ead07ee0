"""Teaches a stock vLLM to run learned readers of the key-value cache, such as STOP.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). A request to
an adapter folder that holds a reader (see `readerfiles.py`) must end in m placeholder tokens
0..m-1. Its prefix is read from the base model's cache blocks; the adapter and the learned
embeddings act on the m tokens only; and the score S comes back as log-probabilities: of the two
most likely "tokens" 0 and 1, logprob(0) - logprob(1) = S. Requests to other adapters and to the
base model are as before. vLLM has no public way to do this, so the names below are those of the
versions in `KNOWN`; with another version such folders are refused.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from prunebench import readerfiles
from prunebench.backend import ReaderWeights
from prunebench.errors import Incompatible
from prunebench.readerfiles import MOST_TOKENS

KNOWN = ("0.32",)
"""Versions whose internals this file was tested on."""

NEVER = -1e6
"""Logit of all tokens but the two that carry the score."""


def known_version(version: str) -> bool:
    """Whether the plug-in was tested on this version of vLLM."""
    return ".".join(version.split("+")[0].split(".")[:2]) in KNOWN


def check_version(version: str) -> None:
    """Raise `Incompatible` for a version of vLLM whose internals are not known."""
    if not known_version(version):
        raise Incompatible(
            f"prunebench's engine and learned readers such as STOP run on vLLM "
            f"{', '.join(KNOWN)}.x, whose internals are known; this is vLLM {version}, on which "
            f"paths and scores could be wrong. Install it with "
            f"'pip install \"prunebench[vllm]\"', or use backend=transformers."
        )


def register() -> None:
    """Put the hooks in place; a second call does nothing."""
    import vllm
    from vllm.lora.worker_manager import WorkerLoRAManager

    if hasattr(WorkerLoRAManager, "prunebench") or not hasattr(WorkerLoRAManager, "_load_adapter"):
        return
    WorkerLoRAManager.prunebench = True
    _wrap(WorkerLoRAManager, "_load_adapter", _load_adapter)
    if not known_version(vllm.__version__):
        return  # _load_adapter refuses readers

    import vllm.v1.core.block_pool
    import vllm.v1.core.kv_cache_utils
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.lora.punica_wrapper import punica_cpu
    from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.gpu_input_batch import InputBatch
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

    _wrap(PEFTHelper, "from_local_dir", _from_local_dir)
    _wrap(vllm.v1.core.kv_cache_utils, "generate_block_hash_extra_keys", _extra_keys)
    vllm.v1.core.block_pool.generate_block_hash_extra_keys = (
        vllm.v1.core.kv_cache_utils.generate_block_hash_extra_keys
    )
    _wrap(InputBatch, "make_lora_inputs", _make_lora_inputs)
    _wrap(PunicaWrapperBase, "__init__", _punica_init)
    _wrap(lora_ops, "bgmv_shrink", _bgmv_shrink)
    for module in (torch_ops, punica_cpu):
        module.bgmv_shrink = lora_ops.bgmv_shrink
    punica_cpu.PunicaWrapperCPU.add_lora_linear = _add_lora_linear
    _wrap(LoRAModelRunnerMixin, "load_lora_model", _load_lora_model)
    _wrap(LoRAModelManager, "activate_adapter", _activate_adapter)
    EngineCore.prunebench_hold = lambda core, ids, n: core.scheduler.hold(ids, n)


def _wrap(owner: Any, name: str, hook: Any) -> None:
    """Replace `owner.name` by `hook`, which gets the original first."""
    static = isinstance(vars(owner).get(name), classmethod)
    original = vars(owner)[name].__func__ if static else getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return hook(original, *args, **kwargs)

    setattr(owner, name, classmethod(wrapped) if static else wrapped)


@cache
def _reader(path: str) -> ReaderWeights | None:
    """The reader in an adapter's folder, None for other adapters."""
    folder = Path(path)
    return readerfiles.read(folder) if readerfiles.is_reader(folder) else None


def _first_reader_token(lora_request: Any, n_prompt: int) -> int:
    """Position from which the adapter acts, 0 for an adapter that is no reader."""
    reader = _reader(lora_request.lora_path)
    return 0 if reader is None else n_prompt - len(reader.embeddings)


# ---- loading


def _load_adapter(original: Any, manager: Any, lora_request: Any) -> Any:
    import vllm

    if _reader(lora_request.lora_path) is not None:
        check_version(vllm.__version__)
    adapter = original(manager, lora_request)
    adapter.prunebench_path = lora_request.lora_path
    return adapter


def _from_local_dir(original: Any, cls: Any, path: str, *args: Any, **kwargs: Any) -> Any:
    """vLLM refuses activated LoRAs; those with a reader are run by this file."""
    helper = original(cls, path, *args, **kwargs)
    if _reader(path) is not None:
        helper.alora_invocation_tokens = None
    return helper


# ---- the prefix belongs to the base model


def _extra_keys(original: Any, request: Any, start: int, end: int, *args: Any) -> Any:
    """Cache blocks that end before the reader's first token are those of the base model."""
    lora_request = request.lora_request
    if lora_request is None or end > _first_reader_token(lora_request, request.num_prompt_tokens):
        return original(request, start, end, *args)
    request.lora_request = None
    try:
        return original(request, start, end, *args)
    finally:
        request.lora_request = lora_request


def _make_lora_inputs(original: Any, batch: Any, n_scheduled: np.ndarray, n_sampled: Any) -> Any:
    """Switch the adapter off for the prefix."""
    per_sample, per_token, requests = original(batch, n_scheduled, n_sampled)
    if not requests:
        return per_sample, per_token, requests
    tokens = np.array(per_token)
    at = 0
    for row, n in enumerate(n_scheduled.tolist()):
        lora = batch.lora_id_to_lora_request.get(int(batch.request_lora_mapping[row]))
        if lora is not None:
            first = _first_reader_token(lora, int(batch.num_prompt_tokens[row]))
            n_before = first - int(batch.num_computed_tokens_cpu[row])
            tokens[at : at + min(max(n_before, 0), n)] = 0
        at += n
    return per_sample, tuple(tokens.tolist()), requests


def _punica_init(
    original: Any, wrapper: Any, n_tokens: int, n_batches: int, *args: Any, **kwargs: Any
) -> None:
    """A request of a reader is two segments, without and with the adapter."""
    original(wrapper, n_tokens, 2 * n_batches + 1, *args, **kwargs)


def _bgmv_shrink(
    original: Any, inputs: Any, weights: Any, output: Any, indices: Any, *args: Any, **kwargs: Any
) -> None:
    """vLLM 0.32 on CPU takes the index -1, no adapter, as the last one."""
    original(inputs, weights, output, indices.clamp(min=0), *args, **kwargs)
    output[indices < 0] = 0


def _add_lora_linear(
    wrapper: Any,
    y: Any,
    x: Any,
    lora_a_stacked: Sequence[Any],
    lora_b_stacked: Sequence[Any],
    scale: float,
    output_slices: Sequence[int],
    **_: Any,
) -> None:
    """y += scale * x A^T B^T for the tokens of each adapter, on a CPU.

    vLLM's own copies A and B once per token, which costs more than the model does.
    """
    if wrapper.no_lora:
        return
    slots = wrapper.token_lora_indices[: x.shape[0]]
    for slot in slots.unique().tolist():
        if slot < 0:
            continue
        rows = (slots == slot).nonzero()[:, 0]
        tokens, at = x[rows], 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            added = (tokens @ a[slot, 0].T) @ b[slot, 0].T
            y[rows, at : at + width] += scale * added
            at += width


# ---- embeddings in, scores out


class _Tables:
    """The readers by adapter slot, on the device of the model."""

    def __init__(self, n_slots: int, width: int, dtype: Any, device: Any) -> None:
        import torch

        self.embeddings = torch.zeros(n_slots, MOST_TOKENS, width, dtype=dtype, device=device)
        self.is_reader = torch.zeros(n_slots, dtype=torch.bool, device=device)

    def set(self, slot: int, reader: ReaderWeights | None) -> None:
        import torch

        self.is_reader[slot] = reader is not None
        if reader is not None:
            rows = torch.from_numpy(reader.embeddings).to(self.embeddings)
            self.embeddings[slot, : len(rows)] = rows


def _load_lora_model(original: Any, runner: Any, model: Any, *args: Any) -> Any:
    model = original(runner, model, *args)
    manager = runner.lora_manager._adapter_manager
    manager.prunebench_tables = None
    if hasattr(runner, "input_batch"):  # the newer runner of GPUs keeps its requests elsewhere
        manager.prunebench_tables = _hook_model(runner, manager, model)
    return model


def _hook_model(runner: Any, manager: Any, model: Any) -> _Tables | None:
    import torch
    from vllm.lora.model_manager import DEFAULT_LANGUAGE_WRAPPER_KEY
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    embeds = [
        module
        for _, module in model.named_modules()
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    ]
    if not embeds:
        return None  # a later stage of a pipeline
    embed = embeds[0]
    tables = _Tables(
        manager.lora_slots, embed.embedding_dim, runner.model_config.dtype, embed.weight.device
    )
    slots_of = manager.punica_wrapper_mapping[DEFAULT_LANGUAGE_WRAPPER_KEY]._token_lora_indices
    plain_embed, plain_logits = embed.forward, model.compute_logits

    def forward(ids: Any) -> Any:
        slots = slots_of[: ids.shape[0]]
        known = slots.clamp(min=0)
        ours = (slots >= 0) & tables.is_reader[known]
        own = tables.embeddings[known, ids.clamp(min=0, max=MOST_TOKENS - 1)]
        return torch.where(ours[:, None], own, plain_embed(ids))

    def compute_logits(states: Any, *args: Any, **kwargs: Any) -> Any:
        logits = plain_logits(states, *args, **kwargs)
        batch = runner.input_batch
        if logits is None or not batch.lora_id_to_lora_request:
            return logits
        for row in range(min(batch.num_reqs, len(logits))):
            lora = batch.lora_id_to_lora_request.get(int(batch.request_lora_mapping[row]))
            reader = None if lora is None else _reader(lora.lora_path)
            if reader is not None:
                logits = logits.float()  # a score needs more digits than bfloat16 has
                weight = torch.from_numpy(reader.head_weight).to(states.device)
                logits[row] = NEVER
                logits[row, 0] = states[row].float() @ weight + reader.head_bias
                logits[row, 1] = 0.0
        return logits

    embed.forward, model.compute_logits = forward, compute_logits
    model.prunebench_plain_logits = plain_logits
    return tables


def _activate_adapter(original: Any, manager: Any, lora_id: int) -> bool:
    changed = original(manager, lora_id)
    adapter = manager._registered_adapters[lora_id]
    path = getattr(adapter, "prunebench_path", None)  # none for the adapters of a warm-up
    reader = _reader(path) if path else None
    tables = getattr(manager, "prunebench_tables", None)
    if tables is not None:
        tables.set(manager.lora_index_to_id.index(lora_id), reader)
    elif reader is not None:
        raise Incompatible(
            "Learned readers such as STOP run on vLLM's first model runner and without pipeline "
            "parallelism. Set the environment variable VLLM_USE_V2_MODEL_RUNNER=0 before the "
            "server starts, and --pipeline-parallel-size 1."
        )
    return changed

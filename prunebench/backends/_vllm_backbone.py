"""A Qwen2 backbone for vLLM that leaves the head of a reward model in its files.

Every process of vLLM loads this file for `WorkerExtension`, and so knows the model under `NAME`.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.registry import ModelRegistry

NAME = "PrunebenchQwen2Backbone"
PARTS = ("embed_tokens.", "layers.", "norm.")


class Backbone(Qwen2ForCausalLM):
    """The decoder of Qwen2, whatever head lies beside it."""

    def load_weights(self, weights: Iterable[tuple[str, Any]]) -> set[str]:
        kept = ((n, w) for n, w in weights if n.removeprefix("model.").startswith(PARTS))
        return super().load_weights(kept)


class WorkerExtension:
    """Adds nothing to a worker."""


ModelRegistry.register_model(NAME, Backbone)

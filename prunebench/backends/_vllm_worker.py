"""What prunebench asks vLLM's workers: exact statistics, hidden states, the output head.

Mixed into the worker class by `worker_extension_cls` and called with `collective_rpc`, so that it
works in process, with engine processes and with tensor parallelism. Tensors travel as bytes.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from prunebench.backends._vllm_sampling import PathNoise

Packed = tuple[bytes, list[int]]
"""A float32 array: its bytes and its shape."""


def pack(tensor: torch.Tensor) -> Packed:
    """A tensor that can be sent to another process."""
    return tensor.detach().float().cpu().contiguous().numpy().tobytes(), list(tensor.shape)


def unpack(packed: Sequence[Any]) -> torch.Tensor:
    """What `pack` was given."""
    content, shape = packed
    return torch.from_numpy(np.frombuffer(content, np.float32).reshape(tuple(shape)).copy())


class WorkerExtension:
    """Methods of the worker, all of which begin with `prunebench_`."""

    def _prunebench_noise(self) -> PathNoise:
        for processor in self.model_runner.input_batch.logitsprocs.non_argmax_invariant:
            if isinstance(processor, PathNoise):
                return processor
        raise RuntimeError("the engine was started without PathNoise")

    def prunebench_take_exact(self, names: list[str]) -> dict[str, Any]:
        """See `PathNoise.take_exact`."""
        return self._prunebench_noise().take_exact(names)

    def prunebench_take_whole(self, names: list[str]) -> list[Packed | None]:
        """See `PathNoise.take_whole`."""
        found = [self._prunebench_noise().take_whole(name) for name in names]
        return [None if row is None else pack(row) for row in found]

    def prunebench_n_layers(self) -> int:
        """Layers that `prunebench_watch` knows."""
        return len(self.model_runner.get_model().model.layers) + 1

    def prunebench_watch(self, layers: list[int] | None) -> None:
        """Keep the states of these layers, for every token, until they are taken; None stops.

        Layer 0 is the embeddings, layer k the output of the k-th block, and the last one is after
        the final norm, as transformers counts `hidden_states`.
        """
        for handle in getattr(self, "_prunebench_handles", []):
            handle.remove()
        self._prunebench_handles, self._prunebench_seen = [], {}
        if layers is None:
            return
        base = self.model_runner.get_model().model
        embed = base.embedding if hasattr(base, "embedding") else base.embed_tokens  # gpt-oss
        modules = [embed, *list(base.layers)[:-1], base.norm]
        for layer in sorted(set(layers)):
            last = layer == len(modules) - 1
            handle = modules[layer].register_forward_hook(
                lambda _, __, output, layer=layer, last=last: self._prunebench_see(
                    layer, output, last
                )
            )
            self._prunebench_handles.append(handle)

    def _prunebench_see(self, layer: int, output: Any, last: bool) -> None:
        """Sort the rows of a batch by request. A block gives what it adds and what it adds to."""
        if isinstance(output, tuple):
            output = output[0] if last else output[0] + output[1]
        runner = self.model_runner
        batch = runner.input_batch
        ends = runner.query_start_loc.np[: batch.num_reqs + 1]
        if int(ends[-1]) > len(output):
            return  # a warm-up
        for row, request in enumerate(batch.req_ids[: batch.num_reqs]):
            states = output[int(ends[row]) : int(ends[row + 1])].float().cpu()
            self._prunebench_seen.setdefault((request, layer), []).append(states)

    def prunebench_take_states(self, request: str, layers: list[int]) -> list[Packed]:
        """The states of a request's tokens, `(n_tokens, hidden)` per layer; forgets them."""
        return [pack(torch.cat(self._prunebench_seen.pop((request, k)))) for k in layers]

    def prunebench_unembed(self, states: Packed, normed: bool) -> Packed | None:
        """Log-probabilities that the output head reads from states `(n, hidden)`."""
        model = self.model_runner.get_model()
        rows = unpack(states).to(self.model_runner.device, self.model_runner.model_config.dtype)
        with torch.inference_mode():
            if not normed:
                rows = model.model.norm(rows)
            # the plug-in's own would take these rows for those of a batch
            logits = getattr(model, "prunebench_plain_logits", model.compute_logits)(rows)
        return None if logits is None else pack(logits.float().log_softmax(-1))

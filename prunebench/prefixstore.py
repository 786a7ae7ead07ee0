"""Keys and values of labelled prefixes, computed once and kept within a memory bound.

Knows nothing of what is trained on them (`cachereader`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.progress import Progress
from torch import Tensor
from transformers import DynamicCache

from prunebench.method import LabelledPrefix


class PrefixStore:
    """Keys and values of labelled prefixes, from the model without the adapter.

    Prefixes of one path share its memory: only the longest is encoded. Rows are kept in bf16
    while `budget` bytes last; the others are encoded whenever a batch needs them.
    """

    def __init__(
        self, model: Any, examples: Sequence[LabelledPrefix], budget: int, centred: bool = False
    ) -> None:
        self.model, self.examples = model, list(examples)
        self.device = model.device
        self.labels = torch.tensor([e.label for e in examples], device=self.device).float()
        self.offsets = torch.zeros_like(self.labels)
        if centred:
            self.offsets = torch.tensor(problem_logits(examples), device=self.device).float()
        tokens = [np.concatenate([e.prompt_ids, e.prefix_ids]) for e in examples]
        self.lengths = [len(t) for t in tokens]
        self.row_of = [0] * len(tokens)
        self.rows: list[np.ndarray] = []
        last = b""
        for i in sorted(range(len(tokens)), key=lambda i: tokens[i].tobytes(), reverse=True):
            content = tokens[i].tobytes()
            if not last.startswith(content):
                self.rows.append(tokens[i])
                last = content
            self.row_of[i] = len(self.rows) - 1
        self.n_bytes = 0
        self.kept: dict[int, Tensor] = {}
        with Progress() as progress:
            bar = progress.add_task("encoding prefixes", total=len(self.rows))
            for start in range(0, len(self.rows), 64):
                chunk = list(range(start, min(start + 64, len(self.rows))))
                if self.n_bytes < budget:
                    for row, states in zip(chunk, self._encode(chunk), strict=True):
                        self.kept[row] = states.bfloat16()
                        self.n_bytes += self.kept[row].nbytes
                progress.update(bar, completed=chunk[-1] + 1)

    def order(self, generator: torch.Generator) -> list[int]:
        """All examples, shuffled. When some must be encoded anew, prefixes of one path stay
        together, so that a batch encodes few paths."""
        if len(self.kept) == len(self.rows):
            return torch.randperm(len(self.examples), generator=generator).tolist()
        members: list[list[int]] = [[] for _ in self.rows]
        for i, row in enumerate(self.row_of):
            members[row].append(i)
        shuffled = torch.randperm(len(members), generator=generator).tolist()
        return [i for row in shuffled for i in members[row]]

    @torch.no_grad()
    def _encode(self, rows: list[int]) -> Iterator[Tensor]:
        """Keys and values of each row: `(layers, 2, heads, tokens, head_dim)`."""
        width = max(len(self.rows[r]) for r in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(self.rows[row])] = torch.as_tensor(self.rows[row])
        self.model.eval()
        cache = DynamicCache(config=self.model.config)
        with adapter_off(self.model):
            self.model.base_model(
                input_ids=ids.to(self.device), past_key_values=cache, use_cache=True
            )
        layers: list[Any] = list(cache.layers)
        pairs = [torch.stack([layer.keys, layer.values]) for layer in layers]
        states = torch.stack(pairs)
        for i, row in enumerate(rows):
            yield states[:, :, i, :, : len(self.rows[row])].clone()

    def batch(self, chosen: list[int]) -> tuple[DynamicCache, Tensor, Tensor]:
        """The cache of these examples, padded on the left; its mask; their lengths."""
        rows = [self.row_of[i] for i in chosen]
        missing = sorted({row for row in rows if row not in self.kept})
        fresh = dict(zip(missing, self._encode(missing), strict=True)) if missing else {}
        lengths = [self.lengths[i] for i in chosen]
        width = max(lengths)
        first = self.kept.get(rows[0], fresh.get(rows[0]))
        assert first is not None
        layers, _, heads, _, size = first.shape
        dtype = self.model.dtype
        states = torch.zeros(layers, 2, len(rows), heads, width, size, dtype=dtype)
        states = states.to(self.device)
        mask = torch.zeros(len(rows), width, dtype=torch.long, device=self.device)
        for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
            source = self.kept[row] if row in self.kept else fresh[row]
            states[:, :, i, :, width - n :] = source[:, :, :, :n]
            mask[i, width - n :] = 1
        cache = DynamicCache(config=self.model.config)
        for index in range(layers):
            cache.update(states[index, 0], states[index, 1], index)
        return cache, mask, torch.tensor(lengths, device=self.device)


def problem_logits(examples: Sequence[LabelledPrefix]) -> list[float]:
    """For each example the logit of its problem's mean label, at most 3 from 0."""
    labels: dict[str, list[float]] = {}
    for example in examples:
        labels.setdefault(example.problem_id, []).append(example.label)
    means = {problem: float(np.mean(values)) for problem, values in labels.items()}
    bounded = {problem: min(max(mean, 0.047), 0.953) for problem, mean in means.items()}
    return [math.log(bounded[e.problem_id] / (1 - bounded[e.problem_id])) for e in examples]


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Run the body on the frozen model alone."""
    for layer in _tuner_layers(model):
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in _tuner_layers(model):
            layer.enable_adapters(True)


def _tuner_layers(model: Any) -> Iterator[BaseTunerLayer]:
    return (m for m in model.modules() if isinstance(m, BaseTunerLayer))

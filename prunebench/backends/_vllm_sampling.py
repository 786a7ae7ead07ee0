"""Draws tokens inside vLLM with the noise of prunebench, and measures what its top 20 cannot tell.

A logits processor of vLLM (`--logits-processors prunebench.backends._vllm_sampling:PathNoise`).
Requests that carry `prunebench_key` among their extra arguments must be greedy: the processor draws
the token from (key, position) and makes it the only possible one. A path is then the same alone,
in a batch, after a pause, and as a new request that goes on after its own prefix; and the same as
in the transformers engine, up to rounding. Requests without a key are left alone.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
)

from prunebench.backend import Sampling
from prunebench.backends._noise import KEY, START, TEMPERATURE, TOP_K, TOP_P
from prunebench.backends._sampling import choose, entropy_and_sum

EXACT = "prunebench_exact"
"""A name under which exact entropy and sum of log-probabilities are kept, until they are taken."""
WHOLE = "prunebench_whole"
"""A name under which the log-probabilities of the whole vocabulary are kept."""


@dataclass
class _Row:
    """A request in the batch."""

    key: int | None
    sampling: tuple[float, float, int]
    start: int
    output: list[int]
    exact: str | None
    whole: str | None

    @property
    def position(self) -> int:
        return self.start + len(self.output)


@dataclass
class _Group:
    """Rows that are drawn with the same settings."""

    rows: list[_Row]
    at: torch.Tensor
    keys: torch.Tensor
    sampling: Sampling


class PathNoise(LogitsProcessor):
    """See the head of this file."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        extra = sampling_params.extra_args or {}
        if KEY not in extra:
            return
        if sampling_params.temperature != 0:
            raise ValueError(
                f"A request with {KEY} must have temperature 0: its own goes into {TEMPERATURE}. "
                f"Got {sampling_params.temperature}."
            )
        row = _row(extra, [])
        temperature, top_p, top_k = row.sampling
        if not (-(2**63) <= int(extra[KEY]) < 2**63 and row.start >= 0):
            raise ValueError(f"{KEY} must be an int64 and {START} at least 0.")
        if not (0 <= temperature < math.inf and 0 < top_p <= 1 and top_k >= 0):
            raise ValueError(
                f"{TEMPERATURE} and {TOP_K} must be at least 0, {TOP_P} above 0 and at most 1. "
                f"Got {temperature}, {top_k}, {top_p}."
            )

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.device = device
        self._rows: dict[int, _Row] = {}
        self._groups: list[_Group] | None = None
        self._log: list[tuple[list[_Row], list[int], torch.Tensor]] = []
        self._exact: dict[str, dict[int, tuple[float, float]]] = {}
        self._whole: dict[str, torch.Tensor] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        rows = self._rows
        for index in batch_update.removed:
            rows.pop(index, None)
        for index, params, _, output in batch_update.added:
            extra = params.extra_args or {}
            rows.pop(index, None)
            if KEY in extra or WHOLE in extra:
                rows[index] = _row(extra, output)
        for a, b, direction in batch_update.moved:
            from_a, from_b = rows.pop(a, None), rows.pop(b, None)
            if from_a is not None:
                rows[b] = from_a
            if direction is MoveDirectionality.SWAP and from_b is not None:
                rows[a] = from_b
        self._groups = None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if not self._rows:
            return logits
        for row_at, row in self._rows.items():
            if row.whole is not None:
                self._whole[row.whole] = logits[row_at].log_softmax(-1)
        if self._groups is None:
            self._groups = self._grouped()
        for group in self._groups:
            everything = len(group.rows) == len(logits)
            own = logits if everything else logits[group.at]
            places = [row.position for row in group.rows]
            positions = torch.tensor(places, device=logits.device)
            chosen = choose(own, group.keys, positions, group.sampling)
            if any(row.exact is not None for row in group.rows):
                found = torch.stack(entropy_and_sum(own, own.logsumexp(-1)))
                self._log.append((group.rows, places, found))
            forced = torch.full_like(own, -math.inf).scatter_(1, chosen[:, None], 0.0)
            if everything:
                logits = forced
            else:
                logits[group.at] = forced
        return logits

    def _grouped(self) -> list[_Group]:
        by_sampling: dict[tuple[float, float, int], list[int]] = {}
        for at in sorted(self._rows):
            if self._rows[at].key is not None:
                by_sampling.setdefault(self._rows[at].sampling, []).append(at)
        groups = []
        for (temperature, top_p, top_k), at in by_sampling.items():
            rows = [self._rows[i] for i in at]
            groups.append(
                _Group(
                    rows=rows,
                    at=torch.tensor(at, device=self.device),
                    keys=torch.tensor([row.key for row in rows], device=self.device),
                    sampling=Sampling(temperature=temperature, top_p=top_p, top_k=top_k),
                )
            )
        return groups

    def take_exact(self, names: Iterable[str]) -> dict[str, list[tuple[int, float, float]]]:
        """`(position, entropy, sum of log-probabilities)` of tokens, by name; forgets them."""
        for rows, places, values in self._log:
            columns = values.T.tolist()
            for row, place, (entropy, total) in zip(rows, places, columns, strict=True):
                if row.exact is not None:  # drawn again after a preemption: the last one counts
                    self._exact.setdefault(row.exact, {})[place] = (entropy, total)
        self._log = []
        found = {name: self._exact.pop(name, {}) for name in names}
        return {n: [(at, *values) for at, values in by.items()] for n, by in found.items()}

    def take_whole(self, name: str) -> torch.Tensor | None:
        """Log-probabilities of the whole vocabulary after the last forward pass; forgets them."""
        return self._whole.pop(name, None)


def _row(extra: dict[str, Any], output: list[int]) -> _Row:
    """Raises `ValueError` for arguments that cannot be read."""
    return _Row(
        key=int(extra[KEY]) if KEY in extra else None,
        sampling=(
            float(extra.get(TEMPERATURE, 1.0)),
            float(extra.get(TOP_P, 1.0)),
            int(extra.get(TOP_K, 0)),
        ),
        start=int(extra.get(START, 0)),
        output=output,
        exact=extra.get(EXACT),
        whole=extra.get(WHOLE),
    )

"""The states of a model as far as a method has declared to read them.

A method that declares one way into the model must not use another one unseen, since an engine that
provides the first may lack the second. Knows no engine and no method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.backend import Internals, Probe
from prunebench.types import Capability, Granted

if TYPE_CHECKING:
    import torch


class GrantedInternals(Internals):
    """Passes on what `granted` opens and refuses the rest. Tokens are counted by what is inside."""

    def __init__(self, inner: Internals, granted: Granted) -> None:
        self._inner = inner
        self._granted = granted

    def read(self, embeddings: torch.Tensor, adapter: str | None = None) -> torch.Tensor:
        self._need(Capability.KV_CACHE, "read")
        return self._inner.read(embeddings, adapter)

    def reader_scores(self, name: str) -> np.ndarray:
        self._need(Capability.CACHE_READER, "reader_scores")
        return self._inner.reader_scores(name)

    def hidden_states(self, layers: Sequence[int]) -> torch.Tensor:
        self._need(Capability.HIDDEN_STATES, "hidden_states")
        return self._inner.hidden_states(layers)

    def iter_hidden_states(self, layers: Sequence[int]) -> Iterator[torch.Tensor]:
        self._need(Capability.HIDDEN_STATES, "iter_hidden_states")
        return self._inner.iter_hidden_states(layers)

    def unembed(self, states: torch.Tensor, *, normed: bool) -> torch.Tensor:
        self._need(Capability.HIDDEN_STATES, "unembed")
        return self._inner.unembed(states, normed=normed)

    def probe(self, *args: Any, **kwargs: Any) -> list[list[Probe]]:
        self._need(Capability.PROBE, "probe")
        return self._inner.probe(*args, **kwargs)

    def next_logprobs(self, suffixes: Sequence[np.ndarray | None]) -> torch.Tensor:
        self._need(Capability.PROBE, "next_logprobs")
        return self._inner.next_logprobs(suffixes)

    def subset(self, order: Sequence[int]) -> Internals:
        return GrantedInternals(self._inner.subset(order), self._granted)

    def _need(self, capability: Capability, attribute: str) -> None:
        if capability not in self._granted:
            raise self._granted.refuse(f"group.internals.{attribute}", capability)

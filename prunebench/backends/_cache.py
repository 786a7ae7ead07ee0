"""A key-value cache that grows in place, lends windows of itself and lets rows go.

transformers' own cache copies everything it holds at every token. This one writes each token into
spare room. Knows nothing of tokens, paths or sampling: rows are numbers, slots are numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 1.5
"""Factor by which a full buffer grows, so that a token costs constant time on average."""
GRAIN = 64
"""Buffers hold a multiple of this many slots."""


class GrowingLayer(CacheLayerMixin):
    """Keys and values of one layer: `(rows, heads, slots, head_dim)`, of which `filled` slots
    are in use. Sliding-window layers keep all slots too; their mask hides the old ones."""

    is_sliding = False

    def __init__(
        self,
        keys: torch.Tensor | None = None,
        values: torch.Tensor | None = None,
        filled: int = 0,
    ) -> None:
        super().__init__()
        self._keys, self._values, self.filled = keys, values, filled
        self.is_initialized = keys is not None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, _ = key_states.shape
        self._keys = key_states.new_empty((rows, heads, 0, key_states.shape[-1]))
        self._values = value_states.new_empty((rows, heads, 0, value_states.shape[-1]))
        self.is_initialized = True

    @property
    def buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values with their spare room."""
        assert self._keys is not None, "a layer was read before anything was written to it"
        assert self._values is not None
        return self._keys, self._values

    def reserve(self, slots: int) -> None:
        """Make room for `slots` slots in all."""
        keys, values = self.buffers
        if slots > keys.shape[2]:
            slots = -(-max(slots, int(GROWTH * self.filled)) // GRAIN) * GRAIN
            self._keys, self._values = (self._enlarged(b, slots) for b in (keys, values))

    def _enlarged(self, buffer: torch.Tensor, slots: int) -> torch.Tensor:
        larger = buffer.new_empty((*buffer.shape[:2], slots, buffer.shape[3]))
        larger[:, :, : self.filled] = buffer[:, :, : self.filled]
        return larger

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.filled, self.filled + key_states.shape[2]
        self.reserve(end)
        keys, values = self.buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.filled = end
        return keys[:, :, :end], values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled

    def get_max_length(self) -> int:
        return -1


class GrowingCache(Cache):
    """One `GrowingLayer` per layer of the model."""

    layers: list[GrowingLayer]  # type: ignore[assignment]  # narrower than the base, never mixed

    def __init__(self, layers: list[GrowingLayer] | None = None) -> None:
        if layers is None:
            super().__init__(layer_class_to_replicate=GrowingLayer)
        else:
            super().__init__(layers=list(layers))

    @property
    def filled(self) -> int:
        """Slots in use."""
        return self.layers[0].filled if self.layers else 0

    @property
    def n_rows(self) -> int:
        return self.layers[0].buffers[0].shape[0] if self.layers else 0

    @property
    def n_bytes(self) -> int:
        """Memory held, spare room included."""
        return sum(b.nbytes for layer in self.layers for b in layer.buffers)

    def window(self, start: int, stop: int, spare: int) -> GrowingCache:
        """Rows `start:stop` of this very memory, with room for `spare` more tokens.

        Tokens that are run on the window go into spare slots, so that what this cache holds stays
        as it is and nothing is copied.
        """
        layers = []
        for layer in self.layers:
            layer.reserve(layer.filled + spare)
            keys, values = layer.buffers
            layers.append(GrowingLayer(keys[start:stop], values[start:stop], layer.filled))
        return GrowingCache(layers)

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order, and free the rest. Layer by layer, so that no more than
        one layer is there twice."""
        for layer in self.layers:
            keys, values = layer.buffers
            layer._keys, layer._values = keys.index_select(0, rows), values.index_select(0, rows)

    def close_gaps(self, moved_from: torch.Tensor, moved_to: torch.Tensor, n_rows: int) -> None:
        """Let rows go without copying the others: move a few rows into the gaps and keep the
        first `n_rows`. The memory is given back when the buffers next grow."""
        for layer in self.layers:
            shorter = []
            for buffer in layer.buffers:
                used = buffer[:, :, : layer.filled]
                used[moved_to] = used[moved_from]
                shorter.append(buffer[:n_rows])
            layer._keys, layer._values = shorter

    def gather(self, rows: torch.Tensor) -> GrowingCache:
        """A copy of these rows."""
        layers = []
        for layer in self.layers:
            used = (b[:, :, : layer.filled].index_select(0, rows) for b in layer.buffers)
            layers.append(GrowingLayer(*used, filled=layer.filled))
        return GrowingCache(layers)

    def advance_to(self, filled: int) -> None:
        """Count slots as used that were written through windows."""
        for layer in self.layers:
            layer.filled = filled


def left_padded(
    sources: Sequence[tuple[GrowingCache, int, int, int]], copies: Sequence[int], spare: int = 0
) -> GrowingCache:
    """A new cache whose rows all end at the same slot.

    Parameters
    ----------
    sources : `(cache, row, start, length)`: `length` slots of a row of a cache, from `start` on.
    copies : how many equal rows each source becomes.
    spare : room to leave after the last slot.

    Slots before the beginning of a row hold zeros; the attention mask must hide them. Padding on
    the left keeps the distance between any two tokens of a row, which sliding windows need.
    """
    filled = max(length for *_, length in sources)
    layers = []
    for i in range(len(sources[0][0].layers)):
        buffers = []
        for which in (0, 1):
            like = sources[0][0].layers[i].buffers[which]
            new = like.new_empty((sum(copies), like.shape[1], filled + spare, like.shape[3]))
            at = 0
            for (cache, row, start, length), n in zip(sources, copies, strict=True):
                used = cache.layers[i].buffers[which][row, :, start : start + length]
                new[at : at + n, :, : filled - length] = 0
                new[at : at + n, :, filled - length : filled] = used
                at += n
            buffers.append(new)
        layers.append(GrowingLayer(*buffers, filled=filled))
    return GrowingCache(layers)

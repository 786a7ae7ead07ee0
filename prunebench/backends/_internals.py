"""The model's states at the checkpoint, read from the cache that is already there.

Knows caches and rows; does not know whether they come from a live session or from re-encoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from prunebench.backend import Internals, Probe
from prunebench.backends._cache import GrowingCache
from prunebench.backends._probe import by_length, go_on, logits_after
from prunebench.backends._sampling import path_keys

if TYPE_CHECKING:  # the engine builds internals, so that it imports this module
    from prunebench.backends._engine import Engine

READ_TOKENS = 1024
"""Most extra tokens in one forward pass."""
COPY_BYTES = 1 << 30
"""Most memory that a temporary copy of chosen rows, or of states, may take."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows of one cache, all ending at its last filled slot.

    Attributes
    ----------
    lengths : `(rows,)` int64, tokens of each row, prompt included; the slots before are padding.
    places : for each path of the block, its place in the group.
    rows : the row of each path, or None when they are simply all rows in order.
    """

    cache: GrowingCache
    lengths: torch.Tensor
    places: list[int]
    rows: list[int] | None = None

    def chunks(
        self, n_extra: int, copies: int = 1
    ) -> Iterator[tuple[GrowingCache, torch.Tensor, list[int]]]:
        """Pieces `(cache, lengths, places)` with room for `n_extra` tokens a row, so small that
        `copies` of each fit into memory."""
        step = max(1, READ_TOKENS // max(1, n_extra))
        first, in_order = 0, self.rows is None
        if self.rows is not None:
            first = self.rows[0]
            in_order = self.rows == list(range(first, first + len(self.rows)))
        if not in_order:
            per_row = self.cache.n_bytes // max(1, self.cache.n_rows)
            step = max(1, min(step, COPY_BYTES // max(1, per_row * copies)))
        for start in range(0, len(self.places), step):
            stop = min(start + step, len(self.places))
            places = self.places[start:stop]
            if in_order:
                own = slice(first + start, first + stop)
                yield self.cache.window(own.start, own.stop, n_extra), self.lengths[own], places
            else:
                assert self.rows is not None
                rows = torch.tensor(self.rows[start:stop], device=self.lengths.device)
                yield self.cache.gather(rows), self.lengths[rows], places

    def pick(self, order: Sequence[int]) -> Block | None:
        """The block for the group `paths[i] for i in order`; None when it has none of them."""
        row_of = {
            place: row if self.rows is None else self.rows[row]
            for row, place in enumerate(self.places)
        }
        chosen = [(new, row_of[old]) for new, old in enumerate(order) if old in row_of]
        if not chosen:
            return None
        return Block(
            cache=self.cache,
            lengths=self.lengths,
            places=[new for new, _ in chosen],
            rows=[row for _, row in chosen],
        )


class CachedInternals(Internals):
    """Internals over blocks of cached rows."""

    def __init__(
        self,
        engine: Engine,
        prompt_ids: np.ndarray,
        prefixes: Sequence[np.ndarray],
        blocks: list[Block],
        parent: CachedInternals | None = None,
    ) -> None:
        self.forwarded_tokens = self.sampled_tokens = 0
        self._engine, self._blocks, self._parent = engine, blocks, parent
        self._prompt_ids, self._prefixes = prompt_ids, list(prefixes)

    def _count(self, n_tokens: int, n_sampled: int = 0) -> None:
        self.forwarded_tokens += n_tokens
        self.sampled_tokens += n_sampled
        if self._parent is not None:
            self._parent._count(n_tokens, n_sampled)

    @torch.inference_mode()
    def read(self, embeddings: torch.Tensor, adapter: str | None = None) -> torch.Tensor:
        engine, n_extra = self._engine, embeddings.shape[0]
        extra = embeddings.detach().to(engine.device, engine.model.dtype)
        states = torch.empty(len(self._prefixes), n_extra, engine.hidden_size)
        after = torch.arange(n_extra, device=engine.device)
        with engine.adapter(adapter):
            for block in self._blocks:
                for cache, lengths, places in block.chunks(n_extra):
                    pads = cache.filled - lengths
                    slots = torch.arange(cache.filled + n_extra, device=engine.device)
                    padded = bool(pads.any())
                    output = engine.states(
                        cache,
                        lengths[:, None] + after,
                        inputs_embeds=extra.expand(len(places), -1, -1),
                        attention_mask=(slots >= pads[:, None]) if padded else None,
                    )
                    states[places] = output.last_hidden_state.float().cpu()
        self._count(len(self._prefixes) * n_extra)
        return states

    def reader_scores(self, name: str) -> np.ndarray:
        reader = self._engine.reader(name)
        adapter = name if reader.adapter is not None else None
        states = self.read(torch.from_numpy(reader.embeddings), adapter)[:, -1].double().numpy()
        return states @ reader.head_weight.astype(np.float64) + reader.head_bias

    def hidden_states(self, layers: Sequence[int]) -> torch.Tensor:
        _, states, n_tokens = self._engine.run_prefixes(
            self._prompt_ids, self._prefixes, list(layers)
        )
        assert states is not None
        self._count(n_tokens)
        return states

    def iter_hidden_states(self, layers: Sequence[int]) -> Iterator[torch.Tensor]:
        longest = max((len(p) for p in self._prefixes), default=0)
        per_path = 4 * len(layers) * longest * self._engine.hidden_size
        step = max(1, COPY_BYTES // max(1, per_path))
        for start in range(0, len(self._prefixes), step):
            prefixes = self._prefixes[start : start + step]
            _, states, n_tokens = self._engine.run_prefixes(
                self._prompt_ids, prefixes, list(layers)
            )
            assert states is not None
            self._count(n_tokens)
            for own, prefix in zip(states, prefixes, strict=True):
                yield own[:, : len(prefix)]

    def unembed(self, states: torch.Tensor, *, normed: bool) -> torch.Tensor:
        return self._engine.unembed(states, normed=normed)

    def probe(
        self,
        suffixes: Sequence[np.ndarray | None],
        max_new_tokens: int,
        *,
        n_samples: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[list[Probe]]:
        found: list[list[Probe]] = [[] for _ in suffixes]
        for cache, lengths, logits, places, n_suffix in self._after(
            suffixes, max_new_tokens, n_samples
        ):
            copies = torch.arange(len(places), device=lengths.device).repeat_interleave(n_samples)
            names = [self._prefixes[place].tobytes().hex() for place in places]
            keys = torch.cat([path_keys(seed, name, range(n_samples)) for name in names])
            probes = go_on(
                self._engine,
                cache.gather(copies) if n_samples > 1 else cache,
                lengths[copies] + n_suffix,
                logits[copies],
                keys,
                max_new_tokens,
                temperature,
            )
            for at, place in enumerate(places):
                found[place] = probes[at * n_samples : (at + 1) * n_samples]
            self._count(0, sum(len(p.token_ids) for p in probes))
        return found

    def next_logprobs(self, suffixes: Sequence[np.ndarray | None]) -> torch.Tensor:
        table = torch.full((len(suffixes), self._engine.n_vocab), torch.nan)
        for _, _, logits, places, _ in self._after(suffixes):
            table[places] = logits.log_softmax(-1).cpu()
        return table

    def _after(
        self, suffixes: Sequence[np.ndarray | None], n_more: int = 0, copies: int = 1
    ) -> Iterator[tuple[GrowingCache, torch.Tensor, torch.Tensor, list[int], int]]:
        """Copies of some rows with their suffix run: `(cache, lengths before it, logits after it,
        places, suffix length)`."""
        assert len(suffixes) == len(self._prefixes), "one suffix, or None, per path"
        for n_suffix, chosen in by_length(suffixes).items():
            for block in self._blocks:
                part = block.pick(chosen)
                if part is None:
                    continue
                for cache, lengths, at in part.chunks((n_suffix + n_more) * copies, copies):
                    places = [chosen[i] for i in at]
                    rows = np.stack([np.asarray(suffixes[place]) for place in places])
                    ids = torch.as_tensor(rows, device=lengths.device).long()
                    logits = logits_after(self._engine, cache, lengths, ids)
                    self._count(ids.numel())
                    yield cache, lengths, logits, places, n_suffix

    def subset(self, order: Sequence[int]) -> CachedInternals:
        blocks = [block.pick(order) for block in self._blocks]
        return CachedInternals(
            self._engine,
            self._prompt_ids,
            [self._prefixes[i] for i in order],
            [block for block in blocks if block is not None],
            self,
        )

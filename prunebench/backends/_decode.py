"""Decodes many paths together, token by token, and lets rows leave when they end.

Knows prompts, noise keys and a model; knows no problem, no text and no answer. All rows of a batch
start together, so that they are at the same position; prompts of different lengths are padded on
the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prunebench.backend import Sampling
from prunebench.backends._cache import left_padded
from prunebench.backends._engine import Engine
from prunebench.backends._internals import Block
from prunebench.backends._records import Record
from prunebench.backends._sampling import step
from prunebench.types import TOKEN_STATS, TokenStats

LEAVE_SHARE = 1 / 32
"""Ended rows leave the batch when they are this share of it; each leaving costs a little time."""
LEAVE_SHARE_KEPT = 1 / 4
"""The same where their cache is kept: each leaving makes one more block to read later."""
ROOM = 80
"""Slots after the prompt to begin with: a check at 64 tokens should not have to make room."""
COLUMNS = 256
"""The record of tokens grows by this many positions."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Paths of one prompt: `(n_prompt,)` token ids, and one noise key per path."""

    prompt_ids: np.ndarray
    keys: torch.Tensor


class Batch:
    """Paths that are decoded together, numbered in launch order.

    `keep_ended` keeps the cache of paths that end, for internals.
    """

    @torch.inference_mode()
    def __init__(
        self,
        engine: Engine,
        launches: Sequence[Launch],
        sampling: Sampling,
        *,
        keep_ended: bool = False,
    ) -> None:
        self.position = 0
        self.keep_ended = keep_ended
        self._engine, self._sampling = engine, sampling
        device = engine.device
        copies = [len(launch.keys) for launch in launches]
        prompts = [engine.prefill(launch.prompt_ids) for launch in launches]
        n_paths = sum(copies)

        lengths = [len(launch.prompt_ids) for launch in launches]
        self._cache = left_padded(
            [(cache, 0, 0, n) for (cache, _), n in zip(prompts, lengths, strict=True)],
            copies,
            ROOM,
        )
        self._logits = torch.cat(
            [row.expand(n, -1) for (_, row), n in zip(prompts, copies, strict=True)]
        )
        self._keys = torch.cat([launch.keys for launch in launches]).to(device)
        self._prompt_lengths = torch.tensor(np.repeat(lengths, copies), device=device)
        self._longest_prompt = max(lengths)
        self._mask: torch.Tensor | None = None
        self._dropped: set[int] = set()  # paths that leave before the next step

        self._paths = torch.arange(n_paths, device=device)  # the path that each row decodes
        self._ended = torch.zeros(n_paths, dtype=torch.bool, device=device)  # by row
        self._length = torch.full((n_paths,), -1)  # by path; -1 while it runs
        self._archive: list[Block] = []
        self._ids = torch.zeros((0, n_paths), dtype=torch.int32, device=device)
        self._stats = torch.zeros((0, len(TOKEN_STATS), n_paths), device=device)

    @property
    def n_rows(self) -> int:
        """Rows that take part in the computation."""
        return len(self._paths)

    @torch.inference_mode()
    def advance(self, n_tokens: int, *, final: bool = False) -> None:
        """Decode until every running path has `n_tokens` tokens.

        The last token is run through the model too, so that the cache holds it; with `final`,
        when nothing will be read or resumed, that pass is left out.
        """
        self._leave()
        n_tokens = min(n_tokens, self._sampling.max_new_tokens)
        while self.position < n_tokens and self.n_rows:
            chosen, n_ended = self._sample()
            at_goal = self.position == n_tokens
            share = LEAVE_SHARE_KEPT if self.keep_ended else LEAVE_SHARE
            leave = n_ended >= max(1, share * self.n_rows) or (at_goal and n_ended > 0)
            if leave and not self.keep_ended:
                chosen = chosen[self._remove_ended()]
            if self.n_rows and not (at_goal and final):
                self._forward(chosen)
            if leave and self.keep_ended:
                self._remove_ended()

    def _sample(self) -> tuple[torch.Tensor, int]:
        chosen, stats = step(self._logits, self._keys, self.position, self._sampling)
        if self.position == len(self._ids):
            self._ids = _longer(self._ids)
            self._stats = _longer(self._stats)
        self._ids[self.position, self._paths] = chosen.int()
        self._stats[self.position].index_copy_(1, self._paths, stats)
        self.position += 1
        ends = (chosen[:, None] == self._engine.eos_ids).any(-1) & ~self._ended
        if bool(ends.any()):
            self._length[self._paths[ends].cpu()] = self.position
            self._ended |= ends
        return chosen, int(self._ended.sum())

    def _forward(self, chosen: torch.Tensor) -> None:
        filled = self._cache.filled
        positions = self._prompt_lengths[:, None] + (self.position - 1)
        mask = self._mask_for(filled + 1)
        self._logits = self._engine.logits(chosen[:, None], self._cache, positions, mask)

    def _mask_for(self, slots: int) -> torch.Tensor | None:
        """None without padding, else a slice of a mask that is rebuilt only now and then."""
        if self._mask is None or self._mask.shape[-1] < slots or len(self._mask) != self.n_rows:
            pads = slots - self.position - self._prompt_lengths
            if not bool(pads.any()):
                return None
            self._mask = self._engine.mask(pads, slots + COLUMNS)
        return self._mask[..., :slots]

    def _remove_ended(self) -> torch.Tensor:
        """Take ended rows out of the batch; returns the rows that stay, in their new order."""
        if self.keep_ended:
            gone = self._ended.nonzero()[:, 0].tolist()
            paths = self._paths[self._ended].tolist()
            prompts = self._prompt_lengths[self._ended].tolist()
            lengths = [n + int(self._length[path]) for n, path in zip(prompts, paths, strict=True)]
            sources = [
                (self._cache, row, self._longest_prompt - prompt, n)
                for row, prompt, n in zip(gone, prompts, lengths, strict=True)
            ]
            cache = left_padded(sources, [1] * len(gone))
            self._archive.append(
                Block(cache=cache, lengths=self._prompt_lengths.new_tensor(lengths), places=paths)
            )
        n_stay = self.n_rows - int(self._ended.sum())
        gaps = self._ended[:n_stay].nonzero()[:, 0]
        movers = (~self._ended[n_stay:]).nonzero()[:, 0] + n_stay
        order = torch.arange(n_stay, device=gaps.device)
        order[gaps] = movers
        self._cache.close_gaps(movers, gaps, n_stay)
        self._take(order)
        return order

    def _take(self, rows: torch.Tensor) -> None:
        """Bring everything that is kept per row, but the cache, into this order."""
        self._mask = None
        self._logits, self._keys = self._logits[rows], self._keys[rows]
        self._paths, self._ended = self._paths[rows], self._ended[rows]
        self._prompt_lengths = self._prompt_lengths[rows]

    def drop(self, paths: Sequence[int]) -> None:
        """Take these paths out of the computation; their cache is freed before it is used again."""
        self._dropped.update(paths)

    @torch.inference_mode()
    def _leave(self) -> None:
        """Let dropped paths go, those of all sessions at once."""
        if not self._dropped:
            return
        gone = torch.tensor(sorted(self._dropped), device=self._paths.device, dtype=torch.long)
        stay = (~torch.isin(self._paths, gone)).nonzero()[:, 0]
        if len(stay) < self.n_rows:
            self._cache.select(stay)
            self._take(stay)
        archive = []
        for block in self._archive:
            rows = [r for r, path in enumerate(block.places) if path not in self._dropped]
            if rows:
                index = torch.tensor(rows, device=self._paths.device)
                block.cache.select(index)
                places = [block.places[r] for r in rows]
                archive.append(
                    Block(cache=block.cache, lengths=block.lengths[index], places=places)
                )
        self._archive = archive
        self._dropped = set()

    def forget_ended(self) -> None:
        """Free the cache of ended paths and keep none from now on."""
        self._archive, self.keep_ended = [], False

    def blocks(self, paths: Sequence[int]) -> list[Block]:
        """The caches of these paths, placed in their order."""
        self._leave()
        place = {path: i for i, path in enumerate(paths)}
        running = self._paths.tolist()
        found = list(self._archive)
        if running:
            lengths = self._prompt_lengths + self.position
            found.append(Block(cache=self._cache, lengths=lengths, places=running))
        blocks = []
        for block in found:  # which may hold paths of other problems, too
            rows = [row for row, path in enumerate(block.places) if path in place]
            if rows:
                blocks.append(
                    Block(
                        cache=block.cache,
                        lengths=block.lengths,
                        places=[place[block.places[row]] for row in rows],
                        rows=None if len(rows) == len(block.places) else rows,
                    )
                )
        return blocks

    def length(self, path: int) -> int:
        """Tokens that the path has generated."""
        length = int(self._length[path])
        return self.position if length < 0 else length

    def over(self, path: int) -> bool:
        """The path has ended or has been cut at the maximum."""
        return bool(self._length[path] >= 0) or self.position >= self._sampling.max_new_tokens

    def records(self, paths: Sequence[int]) -> list[Record]:
        """Tokens and statistics of these paths so far."""
        index = torch.tensor(list(paths), device=self._ids.device, dtype=torch.long)
        ids = self._ids[: self.position].index_select(1, index).T.cpu().numpy()
        stats = self._stats[: self.position].index_select(2, index).permute(2, 1, 0).cpu().numpy()
        records = []
        for row, path in enumerate(paths):
            n = self.length(path)
            columns = {name: stats[row, k, :n].copy() for k, name in enumerate(TOKEN_STATS)}
            records.append(
                Record(
                    token_ids=ids[row, :n].copy(),
                    stats=TokenStats(**columns, vocab_size=self._engine.n_vocab),
                    stopped=bool(self._length[path] >= 0),
                )
            )
        return records


def _longer(record: torch.Tensor) -> torch.Tensor:
    more = record.new_zeros((max(COLUMNS, len(record) // 2), *record.shape[1:]))
    return torch.cat([record, more])

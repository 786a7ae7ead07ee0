"""Forces a text after given cache rows and lets the model go on for a few tokens.

Works on a copy of the rows, so that what the cache holds stays as it is. Knows tensors and the
engine; knows no path, no text and no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from prunebench.backend import Probe, Sampling
from prunebench.backends._cache import GrowingCache
from prunebench.backends._sampling import step

if TYPE_CHECKING:
    from prunebench.backends._engine import Engine


@torch.inference_mode()
def logits_after(
    engine: Engine, cache: GrowingCache, lengths: torch.Tensor, suffixes: torch.Tensor
) -> torch.Tensor:
    """Raw logits `(rows, vocab)` after suffixes `(rows, m)`, which join the cache."""
    n_new = suffixes.shape[1]
    pads = cache.filled - lengths
    slots = torch.arange(cache.filled + n_new, device=engine.device)
    mask = (slots >= pads[:, None]) if bool(pads.any()) else None
    after = torch.arange(n_new, device=engine.device)
    return engine.logits(suffixes, cache, lengths[:, None] + after, mask)


@torch.inference_mode()
def go_on(
    engine: Engine,
    cache: GrowingCache,
    lengths: torch.Tensor,
    logits: torch.Tensor,
    keys: torch.Tensor,
    max_new_tokens: int,
    temperature: float,
) -> list[Probe]:
    """Decode every row until it ends or has `max_new_tokens` tokens.

    Parameters
    ----------
    lengths : `(rows,)` tokens of each row in the cache, without padding.
    logits : `(rows, vocab)` after the last of them.
    keys : `(rows,)` noise keys.
    """
    sampling = Sampling(temperature=temperature, top_p=1.0, top_k=0, max_new_tokens=max_new_tokens)
    n_rows = len(lengths)
    ids = torch.zeros(max_new_tokens, n_rows, dtype=torch.long, device=engine.device)
    stats = torch.zeros(max_new_tokens, 2, n_rows, device=engine.device)
    ends = torch.full((n_rows,), max_new_tokens, device=engine.device)
    keys = keys.to(engine.device)
    for position in range(max_new_tokens):
        chosen, found = step(logits, keys, position, sampling)
        ids[position], stats[position] = chosen, found[[0, 2]]
        ended = (chosen[:, None] == engine.eos_ids).any(-1)
        ends = torch.where(ended & (ends == max_new_tokens), position + 1, ends)
        if position + 1 == max_new_tokens or bool((ends <= position + 1).all()):
            break
        pads = cache.filled - lengths - position
        slots = torch.arange(cache.filled + 1, device=engine.device)
        mask = (slots >= pads[:, None]) if bool(pads.any()) else None
        logits = engine.logits(chosen[:, None], cache, (lengths + position)[:, None], mask)
    table, numbers = ids.T.cpu().numpy().astype(np.int32), stats.permute(2, 1, 0).cpu().numpy()
    return [
        Probe(token_ids=row[:n].copy(), logprobs=own[0, :n].copy(), entropy=own[1, :n].copy())
        for row, own, n in zip(table, numbers, ends.tolist(), strict=True)
    ]


def by_length(suffixes: Sequence[np.ndarray | None]) -> dict[int, list[int]]:
    """Places of the suffixes of each length, without skipped ones."""
    groups: dict[int, list[int]] = {}
    for place, suffix in enumerate(suffixes):
        if suffix is not None:
            assert len(suffix), "a forced text has at least one token"
            groups.setdefault(len(suffix), []).append(place)
    return groups

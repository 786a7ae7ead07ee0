"""A live session on a decoding batch.

Knows which paths live; leaves the computation to `_decode.Batch` and the texts to `_records`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunebench.backend import Internals, Sampling, Session
from prunebench.backends._decode import Batch, Launch
from prunebench.backends._engine import Engine
from prunebench.backends._internals import CachedInternals
from prunebench.backends._records import Reader
from prunebench.backends._sampling import path_keys
from prunebench.types import Problem, Trace


class LiveSession(Session):
    """Paths of one problem on a live engine; their cache stays between the stages.

    Sessions that were opened together share a batch, of which each knows its own paths.
    """

    def __init__(
        self,
        engine: Engine,
        problem: Problem,
        prompt_ids: np.ndarray,
        indices: Sequence[int],
        *,
        batch: Batch,
        first: int,
        max_new_tokens: int,
        reader: Reader,
    ) -> None:
        self.problem, self.prompt_ids = problem, prompt_ids
        self._engine, self._reader, self._batch = engine, reader, batch
        # The batch numbers paths in launch order.
        self._indices = {first + at: int(index) for at, index in enumerate(indices)}
        self._live = list(self._indices)
        self._max_tokens = max_new_tokens

    _batch: Batch | None

    @property
    def batch(self) -> Batch:
        assert self._batch is not None, "the session is closed"
        return self._batch

    @property
    def cache_bytes(self) -> int:
        """Memory that the live paths' keys and values take."""
        return sum(block.cache.n_bytes for block in self.batch.blocks(self._live))

    def advance(self, n_tokens: int) -> None:
        self.batch.advance(n_tokens)

    def traces(self) -> list[Trace]:
        indices = [self._indices[path] for path in self._live]
        return self._reader.traces(self.problem, indices, self.batch.records(self._live))

    def internals(self) -> Internals:
        prefixes = [record.token_ids for record in self.batch.records(self._live)]
        if not self.batch.keep_ended:  # finished: the caches are gone, so they are rebuilt
            return self._engine.encode(self.prompt_ids, prefixes)
        blocks = self.batch.blocks(self._live)
        return CachedInternals(self._engine, self.prompt_ids, prefixes, blocks)

    def keep(self, mask: np.ndarray) -> None:
        mask = np.asarray(mask, dtype=bool)
        assert mask.shape == (len(self._live),), f"one flag per live path, got {mask.shape}"
        self.batch.drop([p for p, kept in zip(self._live, mask, strict=True) if not kept])
        self._live = [p for p, kept in zip(self._live, mask, strict=True) if kept]

    def finish(self) -> list[Trace]:
        self.batch.forget_ended()
        self.batch.advance(self._max_tokens, final=True)
        return self.traces()

    def close(self) -> None:
        self._batch = None


def open_sessions(
    engine: Engine,
    problems: Sequence[Problem],
    prompts: Sequence[np.ndarray],
    indices: Sequence[int],
    *,
    sampling: Sampling,
    seed: int,
    reader: Reader,
) -> list[LiveSession]:
    """Sessions of several problems on one batch."""
    launches = [
        Launch(prompt_ids=prompt, keys=path_keys(seed, problem.id, indices))
        for problem, prompt in zip(problems, prompts, strict=True)
    ]
    batch = Batch(engine, launches, sampling, keep_ended=True)
    return [
        LiveSession(
            engine,
            problem,
            prompt,
            indices,
            batch=batch,
            first=at * len(indices),
            max_new_tokens=sampling.max_new_tokens,
            reader=reader,
        )
        for at, (problem, prompt) in enumerate(zip(problems, prompts, strict=True))
    ]

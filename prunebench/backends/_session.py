"""A live session on a decoding batch, and the step from records of tokens to traces.

Knows problems and answers; leaves the computation to `_decode.Batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prunebench import grading
from prunebench.backend import Internals, Sampling, Session
from prunebench.backends._decode import Batch, Launch, Record
from prunebench.backends._engine import Engine
from prunebench.backends._internals import CachedInternals
from prunebench.backends._sampling import path_keys
from prunebench.types import Problem, Trace

Decode = Callable[[Sequence[np.ndarray]], list[str]]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Turns records into traces: `decode` gives the texts, `style` says how answers look."""

    decode: Decode
    style: str

    def traces(
        self, problem: Problem, indices: Sequence[int], records: Sequence[Record]
    ) -> list[Trace]:
        """Only a path that ended by itself has an answer."""
        traces = []
        texts = self.decode([record.token_ids for record in records])
        for index, record, text in zip(indices, records, texts, strict=True):
            answer, correct = None, False
            if record.stopped:
                answer, correct = grading.grade(text, problem.answer, self.style)
            traces.append(
                Trace(
                    index=index,
                    token_ids=record.token_ids,
                    text=text,
                    stats=record.stats,
                    stopped=record.stopped,
                    answer=answer,
                    correct=correct,
                )
            )
        return traces


class LiveSession(Session):
    """Paths of one problem on a live engine; their cache stays between the stages."""

    def __init__(
        self,
        engine: Engine,
        problem: Problem,
        prompt_ids: np.ndarray,
        indices: Sequence[int],
        *,
        sampling: Sampling,
        seed: int,
        reader: Reader,
    ) -> None:
        self.problem, self.prompt_ids = problem, prompt_ids
        self._engine, self._reader = engine, reader
        self._indices = [int(i) for i in indices]
        self._live = list(range(len(self._indices)))  # the batch numbers paths in launch order
        keys = path_keys(seed, problem.id, self._indices)
        launch = Launch(prompt_ids=prompt_ids, keys=keys)
        self._batch: Batch | None = Batch(engine, [launch], sampling, keep_ended=True)
        self._max_tokens = sampling.max_new_tokens

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

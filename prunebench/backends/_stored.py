"""A session over complete traces: it cuts them at the current position.

Knows neither where the traces come from nor how states are computed; holds no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from prunebench.backend import Internals, Session
from prunebench.types import Problem, Trace

Encode = Callable[[np.ndarray, Sequence[np.ndarray]], Internals]


class StoredSession(Session):
    """Behaves like a live session whose paths happen to be known already.

    Attributes
    ----------
    reencode_s : seconds that the last `internals()` took to run the prefixes through the model
        again; a live engine has these states already, so they are no cost of a method. 0.0 when
        they were at hand.
    """

    def __init__(
        self,
        problem: Problem,
        prompt_ids: np.ndarray,
        traces: Sequence[Trace],
        *,
        decode: Callable[[np.ndarray], str],
        encode: Encode,
    ) -> None:
        self.problem, self.prompt_ids = problem, prompt_ids
        self.position = 0
        self.reencode_s = 0.0
        self._live, self._decode, self._encode = list(traces), decode, encode
        self._internals: Internals | None = None

    def advance(self, n_tokens: int) -> None:
        if n_tokens > self.position:
            self.position = n_tokens
            self._forget()

    def traces(self) -> list[Trace]:
        return [self._cut(trace) for trace in self._live]

    def outcomes(self) -> list[bool]:
        return [trace.correct for trace in self._live]

    def _cut(self, trace: Trace) -> Trace:
        if trace.n_tokens <= self.position:
            return trace
        return trace.cut(self.position, self._decode)

    def internals(self) -> Internals:
        self.reencode_s = 0.0
        if self._internals is None:
            prefixes = [trace.known_ids[: self.position] for trace in self._live]
            start = time.perf_counter()
            self._internals = self._encode(self.prompt_ids, prefixes)
            self.reencode_s = time.perf_counter() - start
        return self._internals

    def keep(self, mask: np.ndarray) -> None:
        mask = np.asarray(mask, dtype=bool)
        assert mask.shape == (len(self._live),), f"one flag per live path, got {mask.shape}"
        self._live = [trace for trace, kept in zip(self._live, mask, strict=True) if kept]
        self._forget()

    def finish(self) -> list[Trace]:
        self.position = max([self.position, *(trace.n_tokens for trace in self._live)])
        self._forget()
        return self.traces()

    def close(self) -> None:
        self._live = []
        self._forget()

    def _forget(self) -> None:
        self._internals, self.reencode_s = None, 0.0

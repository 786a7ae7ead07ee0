"""A live session on vLLM, and the states of its prefixes.

Paths stay requests of the engine from launch to end: they wait while they are checked, those that
are pruned are aborted, the others go on from their cache blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prunebench.backend import Internals, Probe, Sampling, Session
from prunebench.backends._records import Reader
from prunebench.backends._sampling import path_keys
from prunebench.errors import UnknownName
from prunebench.types import Problem, Trace

if TYPE_CHECKING:
    import torch

    from prunebench.backends._vllm_engine import Request, VllmEngine

CHUNK_TOKENS = 1 << 16
"""Most tokens whose hidden states are asked for at once."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a session needs to know beside the problem.

    Attributes
    ----------
    exact : measure exact entropy and sum of log-probabilities.
    hold : paths wait while they are checked; otherwise they run on.
    readers : number of tokens of each learned reader.
    """

    sampling: Sampling
    seed: int
    exact: bool
    hold: bool
    readers: dict[str, int]


class VllmSession(Session):
    """The live paths of one problem."""

    def __init__(
        self,
        engine: VllmEngine,
        problem: Problem,
        prompt_ids: np.ndarray,
        indices: Sequence[int],
        settings: Settings,
        reader: Reader,
    ) -> None:
        self.problem, self.prompt_ids = problem, prompt_ids
        self._engine, self._settings, self._reader = engine, settings, reader
        self._indices = [int(i) for i in indices]
        self._keys = path_keys(settings.seed, problem.id, self._indices).tolist()
        self._requests: list[Request] = []
        self._launched = False
        self._position: int | None = 0  # None: to the end

    def start(self, n_tokens: int | None) -> None:
        self._launch()
        if n_tokens is None:
            self._engine.hold(self._requests, None)
        elif self._settings.hold:
            self._engine.hold(self._requests, n_tokens)

    def _launch(self) -> None:
        if not self._launched:
            self._launched = True
            self._requests = [
                self._engine.add_path(
                    self.prompt_ids.tolist(),
                    key,
                    self._settings.sampling,
                    exact=self._settings.exact,
                )
                for key in self._keys
            ]

    def advance(self, n_tokens: int) -> None:
        n_tokens = min(n_tokens, self._settings.sampling.max_new_tokens)
        if self._position is None or n_tokens <= self._position:
            return
        self.start(n_tokens)
        self._engine.reach(self._requests, n_tokens)
        self._position = n_tokens

    def traces(self) -> list[Trace]:
        self._launch()
        records = self._engine.records(self._requests, self._position)
        return self._reader.traces(self.problem, self._indices, records)

    def internals(self) -> Internals:
        self._launch()
        prefixes = [record.token_ids for record in self._engine.records(self._requests)]
        cut = [ids[: self._position] for ids in prefixes]
        return VllmInternals(self._engine, self.prompt_ids, cut, self._settings, live=True)

    def keep(self, mask: np.ndarray) -> None:
        mask = np.asarray(mask, dtype=bool)
        assert mask.shape == (len(self._indices),), f"one flag per live path, got {mask.shape}"
        self._launch()
        gone = [r for r, kept in zip(self._requests, mask, strict=True) if not kept]
        self._engine.drop(gone)
        if self._position is not None:
            self.overrun += sum(max(0, len(r.token_ids) - self._position) for r in gone)
        self._engine.forget(gone)
        self._requests = [r for r, kept in zip(self._requests, mask, strict=True) if kept]
        self._indices = [i for i, kept in zip(self._indices, mask, strict=True) if kept]

    def finish(self) -> list[Trace]:
        self.start(None)
        self._engine.finish(self._requests)
        self._position = None
        return self.traces()

    def close(self) -> None:
        self._engine.drop(self._requests)
        self._engine.forget(self._requests)
        self._requests = []


class VllmInternals(Internals):
    """What vLLM can tell of prefixes; every question is one short request per path, which reads the
    prefix from the cache.

    `live` says that the prefixes are those of paths in the engine. If not, they stand for such
    paths: what the cache does not hold any more is computed again, but not counted.
    """

    def __init__(
        self,
        engine: VllmEngine,
        prompt_ids: np.ndarray,
        prefixes: Sequence[np.ndarray],
        settings: Settings,
        *,
        live: bool,
        parent: VllmInternals | None = None,
    ) -> None:
        self.forwarded_tokens = self.sampled_tokens = 0
        self._engine, self._settings, self._live, self._parent = engine, settings, live, parent
        self._prompt_ids, self._prefixes = prompt_ids, list(prefixes)

    def _count(self, n_tokens: int, n_sampled: int = 0) -> None:
        self.forwarded_tokens += n_tokens
        self.sampled_tokens += n_sampled
        if self._parent is not None:
            self._parent._count(n_tokens, n_sampled)

    def _tokens(self, path: int, suffix: Sequence[int] | np.ndarray = ()) -> list[int]:
        return [*self._prompt_ids.tolist(), *self._prefixes[path].tolist(), *map(int, suffix)]

    def _n_computed(self, request: Request, n_extra: int) -> int:
        """Tokens that were run to answer a request with `n_extra` tokens after its prefix."""
        if self._live or not self._engine.caches:
            return request.n_prompt - request.n_cached
        # A paused path has computed all tokens but its last one, and shares whole blocks.
        known = max(0, request.n_prompt - n_extra - 1)
        return request.n_prompt - known // self._engine.block_size * self._engine.block_size

    def warm(self) -> None:
        """Put the prefixes into the cache, as far as a paused path would have them there."""
        tokens = [self._tokens(path)[:-1] for path in range(len(self._prefixes))]
        self._engine.finish([self._engine.add_reading(ids) for ids in tokens if ids])

    def reader_scores(self, name: str) -> np.ndarray:
        if name not in self._settings.readers:
            raise UnknownName("reader", name, self._settings.readers)
        extra = range(self._settings.readers[name])
        requests: dict[bytes, Request] = {}  # equal prefixes are asked once
        for path, prefix in enumerate(self._prefixes):
            if prefix.tobytes() not in requests:
                tokens = self._tokens(path, extra)
                request = self._engine.add_reading(tokens, adapter=name)
                requests[prefix.tobytes()] = request
        self._engine.finish(list(requests.values()))
        self._count(sum(self._n_computed(r, len(extra)) for r in requests.values()))
        return np.array([self._engine.score(requests[p.tobytes()]) for p in self._prefixes])

    def hidden_states(self, layers: Sequence[int]) -> torch.Tensor:
        import torch

        longest = max((len(p) for p in self._prefixes), default=0)
        width = self._engine.llm.model_config.get_hidden_size()
        found = torch.full((len(self._prefixes), len(layers), longest, width), torch.nan)
        for row, states in enumerate(self.iter_hidden_states(layers)):
            found[row, :, : states.shape[1]] = states
        return found

    def iter_hidden_states(self, layers: Sequence[int]) -> Iterator[torch.Tensor]:
        import torch

        from prunebench.backends._vllm_worker import unpack

        n_layers = self._engine.worker("prunebench_n_layers")
        if not all(-n_layers <= layer < n_layers for layer in layers):
            raise IndexError(f"layers must be below {n_layers}, got {list(layers)}")
        layers = [layer % n_layers for layer in layers]
        n_prompt = len(self._prompt_ids)
        longest = max((n_prompt + len(p) for p in self._prefixes), default=1)
        step = max(1, CHUNK_TOKENS // longest)
        for start in range(0, len(self._prefixes), step):
            paths = range(start, min(start + step, len(self._prefixes)))
            self._engine.worker("prunebench_watch", list(layers))
            try:
                requests = [
                    self._engine.add_reading(self._tokens(path), from_cache=False) for path in paths
                ]
                self._engine.finish(requests)
                self._count(sum(request.n_prompt for request in requests))
                for request in requests:
                    states = self._engine.worker("prunebench_take_states", request.id, list(layers))
                    yield torch.stack([unpack(one)[n_prompt:] for one in states])
            finally:
                self._engine.worker("prunebench_watch", None)

    def unembed(self, states: torch.Tensor, *, normed: bool) -> torch.Tensor:
        from prunebench.backends._vllm_worker import pack, unpack

        rows = states.reshape(-1, states.shape[-1])
        table = unpack(self._engine.worker("prunebench_unembed", pack(rows), normed))
        return table.reshape(*states.shape[:-1], -1)

    def probe(
        self,
        suffixes: Sequence[np.ndarray | None],
        max_new_tokens: int,
        *,
        n_samples: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[list[Probe]]:
        sampling = Sampling(
            temperature=temperature, top_p=1.0, top_k=0, max_new_tokens=max_new_tokens
        )
        asked: list[tuple[int, int, Request]] = []
        for path, suffix in enumerate(suffixes):
            if suffix is None:
                continue
            tokens = self._tokens(path, suffix)
            name = self._prefixes[path].tobytes().hex()
            for key in path_keys(seed, name, range(n_samples)).tolist():
                request = self._engine.add_path(tokens, key, sampling, exact=True)
                asked.append((path, len(suffix), request))
        requests = [request for *_, request in asked]
        self._engine.finish(requests)
        found: list[list[Probe]] = [[] for _ in suffixes]
        records = self._engine.records(requests)
        for (path, n_suffix, request), record in zip(asked, records, strict=True):
            stats = record.stats
            assert stats.logprobs is not None
            assert stats.entropy is not None
            self._count(self._n_computed(request, n_suffix), len(record.token_ids))
            found[path].append(
                Probe(token_ids=record.token_ids, logprobs=stats.logprobs, entropy=stats.entropy)
            )
        return found

    def next_logprobs(self, suffixes: Sequence[np.ndarray | None]) -> torch.Tensor:
        import torch

        from prunebench.backends._vllm_worker import unpack

        asked = [
            (path, len(suffix), self._engine.add_reading(self._tokens(path, suffix), whole=True))
            for path, suffix in enumerate(suffixes)
            if suffix is not None
        ]
        self._engine.finish([request for *_, request in asked])
        names = [request.name for *_, request in asked]
        rows = self._engine.worker("prunebench_take_whole", names)
        table = torch.full((len(suffixes), self._engine.n_vocab), torch.nan)
        for (path, n_suffix, request), row in zip(asked, rows, strict=True):
            self._count(self._n_computed(request, n_suffix))
            table[path] = unpack(row)[: self._engine.n_vocab]
        return table

    def subset(self, order: Sequence[int]) -> VllmInternals:
        prefixes = [self._prefixes[i] for i in order]
        return VllmInternals(
            self._engine,
            self._prompt_ids,
            prefixes,
            self._settings,
            live=self._live,
            parent=self,
        )

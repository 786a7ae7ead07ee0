"""Drives vLLM's own engine step by step: requests go in, wait, are looked at, go on or are dropped.

Knows token ids, sampling and requests; knows no problem, no method and no text. Written for the
versions that `_vllm_plugin.KNOWN` names, since it reads what vLLM keeps of unfinished requests.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from prunebench.backend import Sampling
from prunebench.backends._noise import noise_args
from prunebench.backends._records import Record
from prunebench.backends._sampling import TOP
from prunebench.backends._vllm_sampling import EXACT, WHOLE
from prunebench.backends._vllm_setup import stop_engine
from prunebench.errors import ConfigError
from prunebench.types import TokenStats

IDLE_STEPS, IDLE_S = 1000, 10.0
"""Steps in a row, and seconds, without a new token after which the engine is considered stuck."""


@dataclass(kw_only=True, eq=False)
class Request:
    """A request in the engine.

    Attributes
    ----------
    name, id : ours, and what vLLM makes of it.
    n_prompt : tokens that were given.
    exact : exact entropy and sum of log-probabilities by position, as far as they were taken from
        the engine, where they are kept under `name`; None when nobody asked for them.
    done : it has ended, or was dropped.
    stopped : the model ended it itself.
    n_cached : tokens of its prompt that were read from the cache.
    """

    name: str
    id: str
    n_prompt: int
    exact: dict[int, tuple[float, float]] | None = None
    done: bool = False
    stopped: bool = False
    n_cached: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: Any = None


class VllmEngine:
    """vLLM's engine with the requests that prunebench makes.

    Parameters
    ----------
    args : options of vLLM.
    processes : run the engine in a process of its own.
    eos_ids : token ids that end a path.
    n_vocab : size of the vocabulary.
    """

    def __init__(
        self, args: EngineArgs, *, processes: bool, eos_ids: Sequence[int], n_vocab: int
    ) -> None:
        self.llm = LLMEngine.from_engine_args(args, enable_multiprocessing=processes)
        self.eos_ids, self.n_vocab = list(eos_ids), n_vocab
        self.processes = processes
        self.block_size: int = self.llm.vllm_config.cache_config.block_size
        self.caches: bool = self.llm.vllm_config.cache_config.enable_prefix_caching
        self._live: dict[str, Request] = {}
        self._names = itertools.count()
        self._adapters: dict[str, LoRARequest] = {}
        self._adapter_ids = itertools.count(1)  # vLLM takes one it has seen for loaded

    # ---- requests

    def add_path(
        self,
        prompt_ids: Sequence[int],
        key: int,
        sampling: Sampling,
        *,
        exact: bool,
        start: int = 0,
    ) -> Request:
        """A path that is drawn with the noise of `key`, with statistics of its tokens."""
        longest = self.llm.model_config.max_model_len
        if len(prompt_ids) + sampling.max_new_tokens > longest:
            raise ConfigError(
                f"vLLM must have room for a prompt of {len(prompt_ids)} tokens and a path of "
                f"{sampling.max_new_tokens}. Its limit is {longest}: raise backend.max_model_len "
                f"(if the model allows more), or lower model.sampling.max_new_tokens."
            )
        name = self._new_name()
        extra = noise_args(key, sampling, start) | ({EXACT: name} if exact else {})
        params = SamplingParams(
            temperature=0.0,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=self.eos_ids,
            logprobs=TOP,
            flat_logprobs=True,
            detokenize=False,
            skip_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=extra,
        )
        request = self._add(name, prompt_ids, params)
        request.exact = {} if exact else None
        return request

    def add_reading(
        self,
        token_ids: Sequence[int],
        *,
        adapter: str | None = None,
        whole: bool = False,
        from_cache: bool = True,
    ) -> Request:
        """One forward pass over given tokens; what it samples means nothing.

        With an adapter its log-probabilities carry the score. With `whole` those of the whole
        vocabulary are kept under its name. Without `from_cache` every token is computed.
        """
        name = self._new_name()
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprobs=2 if adapter else None,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_reading_prefix_cache=not from_cache,
            extra_args={WHOLE: name} if whole else None,
        )
        return self._add(name, token_ids, params, self._adapters[adapter] if adapter else None)

    def _new_name(self) -> str:
        return f"r{next(self._names)}"

    def _add(
        self, name: str, token_ids: Sequence[int], params: SamplingParams, lora: Any = None
    ) -> Request:
        ids = [int(i) for i in token_ids]
        own = self.llm.add_request(name, {"prompt_token_ids": ids}, params, lora_request=lora)
        request = Request(name=name, id=own, n_prompt=len(ids))
        self._live[name] = request
        return request

    def add_adapter(self, name: str, folder: Path) -> None:
        """Make the adapter in `folder` usable by name."""
        self._adapters[name] = LoRARequest(name, next(self._adapter_ids), str(folder))

    # ---- running

    def hold(self, requests: Sequence[Request], n_tokens: int | None) -> None:
        """Let requests wait once they have `n_tokens` tokens; None lets them go on."""
        ids = [request.id for request in requests if not request.done]
        if not ids:
            return
        core: Any = self.llm.engine_core
        if self.processes:
            core.call_utility("prunebench_hold", ids, n_tokens)
        else:
            core.engine_core.prunebench_hold(ids, n_tokens)

    def run(self, goal: Callable[[], bool]) -> None:
        """Step until `goal()`; requests that end meanwhile are marked as done.

        Raises `ConfigError` when the engine cannot go on, which means too little memory.
        """
        idle, seen, since = 0, self._progress(), time.monotonic()
        while not goal():
            for output in self.llm.step():
                if output.finished:
                    self._finish(output)
            now = self._progress()
            if now != seen:
                idle, seen, since = 0, now, time.monotonic()
            idle += 1
            if idle > IDLE_STEPS and time.monotonic() - since > IDLE_S:
                raise ConfigError(
                    "vLLM makes no progress: the cache has no room for the paths at hand. Give it "
                    "more with backend.kv_cache_gb or backend.gpu_memory_utilization, or lower "
                    "n_paths."
                )

    def finish(self, requests: Sequence[Request]) -> None:
        """Run until all of these have ended."""
        self.run(lambda: all(request.done for request in requests))

    def reach(self, requests: Sequence[Request], n_tokens: int) -> None:
        """Run until each of these has `n_tokens` tokens or has ended."""
        self.run(lambda: all(r.done or self.n_tokens(r) >= n_tokens for r in requests))

    def drop(self, requests: Sequence[Request]) -> None:
        """Abort requests and free what they hold; what they have so far stays readable."""
        live = [request for request in requests if not request.done and hasattr(self, "llm")]
        for request in live:
            self._look(request)
            request.done = True
            self._live.pop(request.name)
        if live:
            self.llm.abort_request([request.id for request in live], internal=True)

    def forget(self, requests: Sequence[Request]) -> None:
        """Throw away what the engine keeps of these requests."""
        names = [request.name for request in requests if request.exact is not None]
        if names and hasattr(self, "llm"):  # not closed
            self.worker("prunebench_take_exact", names)

    def _progress(self) -> tuple[int, int]:
        return len(self._live), sum(map(self.n_tokens, self._live.values()))

    def _state(self, request: Request) -> Any:
        """What vLLM keeps of a request that has not ended."""
        return self.llm.output_processor.request_states[request.id]

    def n_tokens(self, request: Request) -> int:
        """Tokens that the request has generated so far."""
        if request.done:
            return len(request.token_ids)
        return self._state(request).detokenizer.num_output_tokens()

    def _look(self, request: Request) -> None:
        """Bring what is known of an unfinished request up to date."""
        state = self._state(request)
        request.token_ids = list(state.detokenizer.output_token_ids)
        request.logprobs = state.logprobs_processor.logprobs

    def _finish(self, output: Any) -> None:
        request = self._live.pop(output.request_id)
        [result] = output.outputs
        request.token_ids, request.logprobs = list(result.token_ids), result.logprobs
        request.stopped = result.finish_reason == "stop"
        request.n_cached = output.num_cached_tokens or 0
        request.done = True

    # ---- what came out

    def records(self, requests: Sequence[Request], n_tokens: int | None = None) -> list[Record]:
        """Tokens and statistics so far, of at most `n_tokens` tokens."""
        asked = {r.name: r.exact for r in requests if r.exact is not None}
        if asked:
            for name, values in self.worker("prunebench_take_exact", list(asked)).items():
                asked[name].update({int(at): (e, s) for at, e, s in values})
        records = []
        for request in requests:
            if not request.done:
                self._look(request)
            ids = np.array(request.token_ids[:n_tokens], dtype=np.int32)
            stats = replace(top_statistics(request.logprobs, ids), vocab_size=self.n_vocab)
            if request.exact is not None:
                exact = np.array([request.exact[i] for i in range(len(ids))], dtype=np.float32)
                entropy, total = exact.reshape(-1, 2).T
                stats = replace(stats, entropy=entropy.copy(), sum_logprobs=total.copy())
            whole = len(ids) == len(request.token_ids)
            records.append(Record(token_ids=ids, stats=stats, stopped=request.stopped and whole))
        return records

    def score(self, request: Request) -> float:
        """The score in the log-probabilities of a reading with an adapter."""
        flat = request.logprobs
        table = dict(zip(flat.token_ids, flat.logprobs, strict=True))
        return table[0] - table[1]

    def worker(self, method: str, *args: Any) -> Any:
        """What the first worker with a reply says (see `_vllm_worker.py`)."""
        replies = self.llm.collective_rpc(method, args=args)
        return next((reply for reply in replies if reply is not None), None)

    def close(self) -> None:
        """Free the engine."""
        self.drop(list(self._live.values()))
        stop_engine(vars(self).pop("llm"), processes=self.processes)


def top_statistics(flat: Any, token_ids: np.ndarray) -> TokenStats:
    """What 20 log-probabilities per token tell.

    `flat` holds, for every position, the sampled token and the 20 likeliest: 21 entries, or 20
    different ones when the sampled token is among them, which then stands there twice.
    """
    n = len(token_ids)
    if n == 0:
        empty = np.zeros(0, np.float32)
        names = ("logprobs", "top_logprobs", "max_logprobs", "top_mass", "top_entropy")
        return TokenStats(**dict.fromkeys(names, empty))
    width = flat.end_indices[0] - flat.start_indices[0]
    ids = np.array(flat.token_ids[: n * width]).reshape(n, width)
    values = np.array(flat.logprobs[: n * width]).reshape(n, width)
    assert (ids[:, 0] == token_ids).all(), "vLLM puts the sampled token first"
    twice = (ids[:, 1:] == ids[:, :1]).any(1)
    own = np.where(twice, -np.inf, values[:, 0])
    top = -np.sort(-np.column_stack([own, values[:, 1:]]), axis=1)
    top = top[:, : min(TOP, width - 1)]
    p = np.exp(top)
    smallest = np.finfo(np.float32).min  # a probability of 0 contributes 0 to an entropy
    return TokenStats(
        logprobs=values[:, 0].astype(np.float32),
        top_logprobs=top.mean(1).astype(np.float32),
        max_logprobs=top[:, 0].astype(np.float32),
        top_mass=np.minimum(p.sum(1), 1.0).astype(np.float32),
        top_entropy=-(p * np.maximum(top, smallest)).sum(1).astype(np.float32),
    )

"""Generates over HTTP: any server with the completions API of OpenAI, such as vLLM.

Paths are launched, continued from their prefixes and, where the server runs a learned reader,
scored by requests; what the server can do is found by a short probe. The model's tokenizer must be
on this machine, its weights need not. Knows no method and no dataset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prunebench.backend import Internals, ModelSpec, ReaderWeights, Session
from prunebench.backends import _hub, _openaiprobe
from prunebench.backends._openaiclient import Completions, Readers
from prunebench.backends._openaidraw import Draft, Drawer, Refused
from prunebench.backends._openaiprobe import Abilities, Server
from prunebench.backends._openaireader import ReaderInternals
from prunebench.backends._openaireply import TOP
from prunebench.backends._text import HubModel
from prunebench.cost import Ledger
from prunebench.endpoint import EndpointConfig, Request, check_secrets
from prunebench.errors import ConfigError, EndpointError, Unavailable
from prunebench.types import Capability, Problem, Trace

PROBE_S, PROBE_ATTEMPTS = 120.0, 2
"""Timeout and tries of a request that asks what the server can do."""


@dataclass(kw_only=True)
class OpenAIBackend(HubModel):
    """A model behind an OpenAI-compatible completions server.

    `model=` must name the model that the server runs: its tokenizer, on this machine, makes the
    prompts and reads the tokens. Every reply is kept on disk as it arrives, so that a server that
    dies costs the requests in flight: start the same command again.

    A server draws with its own noise from a seed per path and position, so a path that is paused
    and continued is a fresh, equally valid sample, not the tokens it would have had without the
    pause. A vLLM server with prunebench's logits processor (`path_noise`) draws the same tokens
    either way.

    What methods can read follows from what the server gives. Without `base_url`, `provides` is
    what a server such as vLLM gives.

    Parameters
    ----------
    base_url : of the server, with `/v1`.
    model_name : the model's name there; None takes the only one that is no adapter.
    key_env : name of the environment variable that holds the key; None: no key is needed.
    concurrency : most requests in flight; `bank.group` problems share them, online
        `problems_at_once`.
    timeout : seconds to wait for one path.
    max_attempts : tries per request, the first one included.
    max_wait : longest pause between tries, in seconds.
    cache_dir : folder of the cache of replies; None keeps none.
    capabilities_dir : folder where it is kept what servers can do; None asks in every run. Delete
        its file after the server was started with other options.
    reader : name under which the server, a vLLM with prunebench's plug-in, serves the learned
        reader of the method, such as STOP; None: it serves none.
    path_noise : let the server draw by path and position. It must be a vLLM that was started with
        `--logits-processors prunebench.backends._vllm_sampling:PathNoise`.
    """

    base_url: str | None = None
    model_name: str | None = None
    key_env: str | None = None
    concurrency: int = 64
    timeout: float = 1800.0
    max_attempts: int = 6
    max_wait: float = 60.0
    cache_dir: str | None = "results/endpoint"
    capabilities_dir: str | None = "results/endpoint"
    reader: str | None = None
    path_noise: bool = False

    parallel_fill = False
    remote = True
    needs_weights = False

    def __post_init__(self) -> None:
        check_secrets(self.key_env, self.base_url, "backend")
        self._config("unknown").validate("backend")
        if self.base_url is not None:
            self.base_url = self.base_url.rstrip("/")
        self._server: Server | None = None
        self._readers: dict[str, int] = {}
        self._reader_counts: Counter[str] = Counter()
        self._forget()

    def _forget(self) -> None:
        self._drawer: Drawer | None = None
        self._reader_client: Readers | None = None
        self._started: list[ServerSession] = []
        self._tokenizer: Any = None

    def bind(self, spec: ModelSpec, seed: int) -> None:
        self.close()
        super().bind(spec, seed)

    def _config(self, model: str, **changes: Any) -> EndpointConfig:
        config = EndpointConfig(
            base_url=self.base_url,
            model=model,
            key_env=self.key_env,
            concurrency=self.concurrency,
            timeout=self.timeout,
            max_attempts=self.max_attempts,
            max_wait=self.max_wait,
            cache_dir=self.cache_dir,
        )
        return replace(config, **changes)

    # ---- what the server can do

    @property
    def provides(self) -> frozenset[Capability]:
        able = Abilities() if self.base_url is None else self._known().abilities
        given = {Capability.CONTINUE}
        if able.logprobs:
            given.add(Capability.LOGPROBS)
        if able.logprobs >= TOP:
            given |= {
                Capability.TOP_LOGPROBS,
                Capability.MAX_LOGPROBS,
                Capability.TOP_MASS,
                Capability.TOP_ENTROPY,
            }
        if self.reader is not None and able.token_prompts and able.token_ids and able.logprobs:
            given.add(Capability.CACHE_READER)
        return frozenset(given)

    def _known(self) -> Server:
        """What the server can do: known, stored, or asked now."""
        if self._server is None:
            if self.base_url is None:
                raise ConfigError(
                    "backend=openai needs the address of a server: set backend.base_url, for "
                    "example backend.base_url=http://127.0.0.1:8000/v1."
                )
            where = (self.capabilities_dir, self.base_url, self.model_name)
            self._server = None if where[0] is None else _openaiprobe.stored(*where)  # type: ignore[arg-type]
        return self._server or self._asked()

    def _asked(self) -> Server:
        assert self.base_url is not None
        name = self.model_name or self._only_model()
        client = self._plain_client(name)
        try:
            abilities = _openaiprobe.find_out(client)
        finally:
            client.close()
        self._server = Server(model=name, abilities=abilities)
        if self.capabilities_dir is not None:
            where = (self.capabilities_dir, self.base_url, self.model_name)
            self._server = _openaiprobe.store(*where, name, abilities)
        return self._server

    def _plain_client(self, model: str) -> Completions:
        """A client that keeps nothing and soon gives up."""
        short = {
            "timeout": min(PROBE_S, self.timeout),
            "max_attempts": min(PROBE_ATTEMPTS, self.max_attempts),
        }
        return Completions(self._config(model, cache_dir=None, concurrency=1, **short), Ledger())

    def _only_model(self) -> str:
        client = self._plain_client("unknown")
        try:
            listed = client.models()
        finally:
            client.close()
        if listed is None:
            raise EndpointError(
                f"The server at {self.base_url} does not list its models, or none answers there. "
                f"Start it, set backend.base_url, or name the model with backend.model_name=NAME."
            )
        names = [name for name in listed if name != self.reader]
        if len(names) != 1:
            raise ConfigError(
                f"The server at {self.base_url} has {len(names)} models "
                f"({', '.join(names[:20])}). Choose one with backend.model_name=NAME."
            )
        return names[0]

    def identity(self) -> dict[str, Any]:
        server, location = self._known(), self._location()
        able = server.abilities
        return {
            "engine": "openai",
            "version": 1,
            "base_url": self.base_url,
            "served": server.model,
            "model": None if self.spec.path else self.spec.id,
            **_hub.tokenizer_fingerprint(location),
            "prompts": "token ids" if able.token_prompts else "text",
            "token_ids": able.token_ids,
            "logprobs": able.logprobs,
            "plain": dict(able.plain),
            "path_noise": self.path_noise,
        }

    def _check_sampling(self, server: Server) -> None:
        """Raise `ConfigError` when the server would draw in another way than it is told."""
        able, sampling = server.abilities, self.spec.sampling
        again = "" if server.file is None else f" Delete {server.file} to have it asked again."
        if self.path_noise and not able.path_noise:
            raise ConfigError(
                f"'backend.path_noise' needs a vLLM server with prunebench's logits processor. The "
                f"server at {self.base_url} does not draw by it: start it with "
                f"'--logits-processors prunebench.backends._vllm_sampling:PathNoise'.{again}"
            )
        if self.path_noise or sampling.temperature == 0:
            return
        wanted = {
            "temperature": True,
            "top_p": sampling.top_p < 1,
            "top_k": sampling.top_k > 0,
        }
        off = {"temperature": "0", "top_p": "1.0", "top_k": "0"}
        for name, needed in wanted.items():
            if needed and not getattr(able, name):
                raise ConfigError(
                    f"The server at {self.base_url} must obey model.sampling.{name}="
                    f"{getattr(sampling, name)}. It ignores or refuses {name}; switch it off with "
                    f"model.sampling.{name}={off[name]}, or take another server.{again}"
                )

    # ---- connecting

    @property
    def drawer(self) -> Drawer:
        """What draws paths; the first use loads the tokenizer and checks the sampling."""
        if self._drawer is None:
            server = self._known()
            self._check_sampling(server)
            self._drawer = Drawer(
                client=Completions(self._config(server.model), Ledger()),
                abilities=server.abilities,
                sampling=self.spec.sampling,
                tokenizer=self.tokenizer,
                end_ids=self.eos_ids,
                path_noise=self.path_noise,
            )
        return self._drawer

    def load(self) -> None:
        """Raise when the server does not answer now."""
        drawer = self.drawer
        client = self._plain_client(drawer.client.model)
        try:
            client.ask([Request(prompt=_openaiprobe.TEXT)])
        finally:
            client.close()

    def close(self) -> None:
        if self._drawer is not None:
            self._drawer.client.close()
        if self._reader_client is not None:
            self._reader_client.close()
        self._forget()

    def notes(self) -> list[str]:
        found = [] if self._drawer is None else self._drawer.take_notes()
        counts = Counter(self._reader_counts)
        self._reader_counts.clear()
        if counts["silent"] and not counts["cached"]:
            found.append(
                f"{self.base_url}: it does not say how many tokens of a prefix it had cached, so "
                f"that each of {counts['silent']} scores counts its whole prefix as verifier "
                f"tokens. Start vLLM with --enable-prompt-tokens-details."
            )
        return found

    # ---- generating

    def _drafts(self, problem: Problem, indices: Sequence[int]) -> list[Draft]:
        from prunebench.backends._sampling import path_keys

        prompt_ids = self.prompt_ids(problem.question)
        keys = path_keys(self.seed, problem.id, indices).tolist()
        return [Draft(prompt_ids=prompt_ids, key=key) for key in keys]

    def open(self, problem: Problem, indices: Sequence[int]) -> Session:
        indices = [int(i) for i in indices]
        return ServerSession(self, problem, indices, self._drafts(problem, indices))

    def generate(
        self, problems: Sequence[Problem], indices: Sequence[int]
    ) -> Iterator[tuple[Problem, np.ndarray, list[Trace]]]:
        """Complete paths; the requests of all problems are in flight together. Problems whose
        paths are complete come first, then the error of the others, if there are any."""
        indices, reader = [int(i) for i in indices], self._reader()
        drafts = [self._drafts(problem, indices) for problem in problems]
        failure: Exception | None = None
        try:
            self.drawer.run([d for own in drafts for d in own], self.spec.sampling.max_new_tokens)
        except Unavailable as error:
            failure = error
        for problem, own in zip(problems, drafts, strict=True):
            if all(draft.ended for draft in own):
                records = [draft.record() for draft in own]
                traces = reader.traces(problem, indices, records)
                yield problem, self.prompt_ids(problem.question), traces
        failure = failure or refusal(indices * len(problems), [d for own in drafts for d in own])
        if failure is not None:
            raise failure

    # ---- learned readers on the server

    def load_reader(self, name: str, weights: ReaderWeights) -> None:
        """The server has its weights; here it is only known how many tokens it reads."""
        self._readers[name] = len(weights.embeddings)

    def encode(self, prompt_ids: np.ndarray, prefixes: Sequence[np.ndarray]) -> Internals:
        if self.reader is None:
            raise ConfigError(
                "Name the learned reader that the server runs with backend.reader=NAME."
            )
        drawer = self.drawer
        if self._reader_client is None:
            self._reader_client = Readers(self._config(self.reader), Ledger())
        return ReaderInternals(
            self._reader_client,
            self._readers,
            drawer.abilities.names,
            prompt_ids,
            prefixes,
            self._reader_counts,
        )


class ServerSession(Session):
    """The live paths of one problem; between requests the server holds nothing of them."""

    def __init__(
        self, backend: OpenAIBackend, problem: Problem, indices: list[int], drafts: list[Draft]
    ) -> None:
        self.problem, self.prompt_ids = problem, drafts[0].prompt_ids
        self._backend, self._reader = backend, backend._reader()
        self._live = list(zip(indices, drafts, strict=True))

    def start(self, n_tokens: int | None) -> None:
        """Only noted: the first session that waits draws for all that were started."""
        self._backend._started.append(self)

    def advance(self, n_tokens: int) -> None:
        indices, drafts = [i for i, _ in self._live], [d for _, d in self._live]
        started = self._backend._started
        together = list(started) if self in started else [self]
        if self in started:
            started.clear()
        try:
            everyone = [draft for session in together for _, draft in session._live]
            self._backend.drawer.run(everyone, n_tokens)
        except Unavailable:
            most = self._backend.spec.sampling.max_new_tokens
            if any(draft.owes(min(n_tokens, most)) for draft in drafts):
                raise
        refused = refusal(indices, drafts)
        if refused is not None:
            raise refused

    def traces(self) -> list[Trace]:
        records = [draft.record() for _, draft in self._live]
        return self._reader.traces(self.problem, [i for i, _ in self._live], records)

    def internals(self) -> Internals:
        return self._backend.encode(self.prompt_ids, [draft.ids for _, draft in self._live])

    def keep(self, mask: np.ndarray) -> None:
        mask = np.asarray(mask, dtype=bool)
        assert mask.shape == (len(self._live),), f"one flag per live path, got {mask.shape}"
        self._live = [pair for pair, kept in zip(self._live, mask, strict=True) if kept]

    def finish(self) -> list[Trace]:
        self.advance(self._backend.spec.sampling.max_new_tokens)
        return self.traces()

    def close(self) -> None:
        self._live = []
        if self in self._backend._started:
            self._backend._started.remove(self)


def refusal(indices: Sequence[int], drafts: Sequence[Draft]) -> Refused | None:
    """The error for paths that the server will not draw, None when there is none."""
    refused = [(i, d.refusal) for i, d in zip(indices, drafts, strict=True) if d.refusal]
    if not refused:
        return None
    index, reason = refused[0]
    return Refused(
        f"The server refuses {len(refused)} of {len(drafts)} paths, the first with index {index}: "
        f"{reason}. A prompt and model.sampling.max_new_tokens must fit into its context."
    )

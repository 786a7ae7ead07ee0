"""The contract of an engine: it launches paths, pauses them, drops some and finishes the rest.

Two kinds of methods here are not abstract, on purpose. Those that do nothing are hooks that an
engine may leave out. Those that raise `NotImplementedError` belong to a capability: an engine
whose `provides` names it must write them, and the pairing refuses, before anything loads, a method
that needs what `provides` does not name; so the error means that an engine claims too much.

A `Backend` is a dataclass whose fields are its Hydra options; what it provides is known from
them before anything loads. A `Session` holds the live paths of one problem. `Internals` gives
methods the model's own states at the checkpoint and counts every token they forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prunebench.types import Capability, Problem, Trace

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True)
class Sampling:
    """How paths are drawn. Defaults are the paper's (arXiv 2604.16029, section 4).

    Attributes
    ----------
    temperature : 0 is greedy.
    top_p, top_k : nucleus and top-k truncation; 1.0 and 0 switch them off.
    max_new_tokens : a path longer than this is cut and counts as unanswered.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 40
    max_new_tokens: int = 16384


@dataclass(kw_only=True)
class ModelSpec:
    """Which model, and how it is prompted and sampled: the schema of `conf/model/`.

    Attributes
    ----------
    name : the short name used in tables, banks and checkpoint folders.
    id : hub id, or `embedded:tiny` for the model that ships with prunebench.
    path : a local folder with the weights, instead of the hub cache.
    revision : branch, tag or commit on the hub.
    prompt : template of the user's turn, `{question}` is replaced; empty takes the dataset's.
    chat : wrap the prompt with the tokenizer's chat template.
    chat_kwargs : extra arguments of the chat template (`reasoning_effort: medium`);
        `strftime_now: 2025-06-28` is the day for templates that would write today's.
    answer : how answers are read from text: `line` (a line `A<answer>`), `math` (the last
        boxed expression), `choice` (a letter); empty takes the dataset's.
    prefix_length : the checkpoint used when none is given, in generated tokens.
    trust_remote_code : run code that comes with the weights; off unless you turn it on.
    """

    name: str = "???"
    id: str = "???"
    path: str | None = None
    revision: str | None = None
    prompt: str = ""
    chat: bool = False
    chat_kwargs: dict[str, Any] = field(default_factory=dict)
    answer: str = ""
    prefix_length: int = 2048
    trust_remote_code: bool = False
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A short continuation after a forced text.

    Attributes
    ----------
    token_ids : `(n,)` int32, the end-of-text token included when it was reached.
    logprobs : `(n,)` float32, log-probability of each token, nats, before temperature.
    entropy : `(n,)` float32, of the distributions they came from, nats.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    entropy: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ReaderWeights:
    """A learned reader of the key-value cache, such as STOP: m tokens that run after a prefix with
    an adapter, and a linear head on the last one's last-layer state h: score = w . h + b.

    Attributes
    ----------
    embeddings : `(m, hidden)` float32 input embeddings of the tokens.
    head_weight, head_bias : w `(hidden,)` float32, and b.
    adapter : folder with a PEFT LoRA adapter, active for these tokens only; None for none.
    """

    embeddings: np.ndarray
    head_weight: np.ndarray
    head_bias: float
    adapter: FilePath | None


class Internals(ABC):
    """The generating model's states for the live prefixes of one problem, in path order.

    `forwarded_tokens` counts every token that was run through the model on behalf of a method;
    the engine books it as verifier tokens. `sampled_tokens` counts what the model sampled for
    probes; the engine books it as generator tokens. `from_cache` says that a server's answers were
    on disk already, so that their time tells nothing.
    """

    forwarded_tokens: int = 0
    sampled_tokens: int = 0
    from_cache: bool = False

    def read(self, embeddings: torch.Tensor, adapter: str | None = None) -> torch.Tensor:
        """Run m extra tokens after every prefix, on a temporary view of its KV cache (capability
        KV_CACHE).

        Parameters
        ----------
        embeddings : `(m, hidden)` input embeddings of the extra tokens, shared by all paths.
        adapter : name of an adapter (see `Backend.load_adapter`) that is active for these
            tokens only; None runs the plain model.

        Returns
        -------
        states : `(n_paths, m, hidden)` last-layer states after the final norm, float32, CPU.
            The prefix's own cache is as it was before.
        """
        raise NotImplementedError(f"{type(self).__name__} does not give its key-value cache.")

    def reader_scores(self, name: str) -> np.ndarray:
        """What a learned reader says of every prefix: `(n_paths,)` float64, higher = keep
        (capability CACHE_READER; see `Backend.load_reader`)."""
        raise NotImplementedError(f"{type(self).__name__} runs no learned readers.")

    def hidden_states(self, layers: Sequence[int]) -> torch.Tensor:
        """States of the prefix tokens: `(n_paths, len(layers), prefix_length, hidden)`, float32,
        CPU, right-padded with NaN. Layer k is what transformers calls `hidden_states[k]`
        (capability HIDDEN_STATES)."""
        raise NotImplementedError(f"{type(self).__name__} does not give hidden states.")

    def iter_hidden_states(self, layers: Sequence[int]) -> Iterator[torch.Tensor]:
        """The same path by path, in order, as `(len(layers), n_tokens, hidden)`: a few paths are
        in memory at a time, and nothing is padded (capability HIDDEN_STATES)."""
        raise NotImplementedError(f"{type(self).__name__} does not give hidden states one by one.")

    def unembed(self, states: torch.Tensor, *, normed: bool) -> torch.Tensor:
        """What the output head reads from states: log-probabilities `(..., vocab)`, float32, CPU
        (capability HIDDEN_STATES).

        Parameters
        ----------
        states : `(..., hidden)`, as from `hidden_states` or `read`.
        normed : False applies the model's final norm first, as states of intermediate layers need
            (the logit lens); the last layer's states have been through it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not give its output head.")

    def probe(
        self,
        suffixes: Sequence[np.ndarray | None],
        max_new_tokens: int,
        *,
        n_samples: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[list[Probe]]:
        """Force a text after every prefix and let the model go on from there (capability PROBE).

        Parameters
        ----------
        suffixes : one array of token ids per path, never empty; None skips the path.
        n_samples : continuations per path.
        temperature : 0 is greedy.
        seed : of the sampling noise, which belongs to the path and the sample, not to the batch.

        Returns
        -------
        probes : `n_samples` per path (none for a skipped path). The caches stay as they are.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot probe its prefixes.")

    def next_logprobs(self, suffixes: Sequence[np.ndarray | None]) -> torch.Tensor:
        """Log-probabilities of the next token after a forced text: `(n_paths, vocab)`, float32,
        CPU, NaN for skipped paths (capability PROBE). See `probe`."""
        raise NotImplementedError(f"{type(self).__name__} cannot probe its prefixes.")

    @abstractmethod
    def subset(self, order: Sequence[int]) -> Internals:
        """The same states for `paths[i] for i in order`; counts on the parent."""


class Session(ABC):
    """The live paths of one problem."""

    problem: Problem
    prompt_ids: np.ndarray  # (n_prompt,) int32
    overrun: int = 0  # tokens that dropped paths had beyond the position, since they could not wait

    def start(self, n_tokens: int | None) -> None:  # noqa: B027  optional hook
        """Hand the paths to the engine, to run until each has `n_tokens` tokens (None: to the end)
        or has ended, without waiting for them; `advance` or `finish` waits. Between sessions that
        were opened together, so that they run together."""

    @abstractmethod
    def advance(self, n_tokens: int) -> None:
        """Run until every live path has `n_tokens` generated tokens or has ended."""

    @abstractmethod
    def traces(self) -> list[Trace]:
        """The live paths as they stand, in order; `answer` and `correct` are meaningful only
        for paths that have ended."""

    def outcomes(self) -> list[bool]:
        """Whether each live path will end right: known only where paths are already complete
        (capability OUTCOME, which the pairing grants in replay only)."""
        raise NotImplementedError(f"{type(self).__name__} does not know how its paths end.")

    @abstractmethod
    def internals(self) -> Internals:
        """The states at the current position. Raises when the backend does not provide them."""

    @abstractmethod
    def keep(self, mask: np.ndarray) -> None:
        """Drop the live paths where `mask` `(n_live,)` is False and free what they held."""

    @abstractmethod
    def finish(self) -> list[Trace]:
        """Run the remaining paths to their end and return them."""

    def close(self) -> None:  # noqa: B027  optional hook
        """Free everything the session holds."""


class Backend(ABC):
    """An engine. Subclasses are `@dataclass(kw_only=True)`; see `prunebench/backends/`.

    Class attributes
    ----------------
    parallel_fill : on a CPU several processes may fill a trace bank, each with an engine.
    remote : every path costs requests to a server, whose replies are kept.
    """

    spec: ModelSpec
    seed: int
    parallel_fill: ClassVar[bool] = True
    remote: ClassVar[bool] = False

    def bind(self, spec: ModelSpec, seed: int) -> None:
        """Say which model to run and the seed of its sampling noise. Loads nothing."""
        self.spec = spec
        self.seed = seed

    @property
    @abstractmethod
    def provides(self) -> frozenset[Capability]:
        """What methods can read here, from the options alone."""

    @property
    def unusable(self) -> str | None:
        """Why the engine cannot be used on this machine, None when nothing is known against it."""
        return None

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What determines the tokens of a path, beside problem, prompt, sampling and seed:
        engine, model revision or weights hash, tokenizer, dtype. JSON-ready, no weights loaded.
        Raises `ModelNotFound` when the model is not on this machine."""

    def expect(self, requires: frozenset[Capability]) -> None:  # noqa: B027  optional hook
        """Hear what the coming runs read, before the engine starts; what was said before still
        holds. An engine may leave out what nobody reads."""

    def load(self) -> None:  # noqa: B027  optional hook
        """Load the model now instead of on first use."""

    @abstractmethod
    def open(self, problem: Problem, indices: Sequence[int]) -> Session:
        """Launch the paths with these indices. Path i is the same whichever others run."""

    def open_together(self, problems: Sequence[Problem], indices: Sequence[int]) -> list[Session]:
        """Sessions of several problems that may share batches of the engine. Each stage must be
        called on all of them before the next one: `start` and `advance` with one number of tokens,
        then `keep`, then `start(None)` and `finish`."""
        return [self.open(problem, indices) for problem in problems]

    @abstractmethod
    def decode(self, token_ids: np.ndarray) -> str:
        """Text of generated tokens, special tokens left out."""

    def tokenize(self, text: str) -> np.ndarray:
        """`(n,)` int32 token ids of a text, without special tokens of its own (capability
        PROBE)."""
        raise NotImplementedError(f"{type(self).__name__} cannot tokenize.")

    @property
    def start_token(self) -> int:
        """The token a text begins with when nothing is said: the tokenizer's BOS, or, for models
        without one, the end-of-text token (capability HIDDEN_STATES)."""
        raise NotImplementedError(f"{type(self).__name__} names no start token.")

    def generate(
        self, problems: Sequence[Problem], indices: Sequence[int]
    ) -> Iterator[tuple[Problem, np.ndarray, list[Trace]]]:
        """Complete paths of several problems: `(problem, prompt_ids, traces)` each.

        Engines that gain from batching across problems override this.
        """
        for problem in problems:
            session = self.open(problem, indices)
            try:
                yield problem, session.prompt_ids, session.finish()
            finally:
                session.close()

    def encode(self, prompt_ids: np.ndarray, prefixes: Sequence[np.ndarray]) -> Internals:
        """States of given prefixes, by running them through the model: what replay reads instead
        of a live cache (capabilities KV_CACHE and HIDDEN_STATES)."""
        raise NotImplementedError(f"{type(self).__name__} cannot encode given prefixes.")

    def load_adapter(self, name: str, folder: FilePath) -> None:
        """Make the PEFT adapter in `folder` usable by `Internals.read(adapter=name)` (capability
        KV_CACHE)."""
        raise NotImplementedError(f"{type(self).__name__} cannot load adapters.")

    def load_reader(self, name: str, weights: ReaderWeights) -> None:
        """Make a learned reader usable by `Internals.reader_scores(name)`, in place of one of this
        name (capability CACHE_READER)."""
        raise NotImplementedError(f"{type(self).__name__} runs no learned readers.")

    def notes(self) -> list[str]:
        """Facts about the paths since the last call that belong into the report of a run."""
        return []

    def model(self) -> torch.nn.Module:
        """The model itself, for training (capability GRADIENTS)."""
        raise NotImplementedError(f"{type(self).__name__} does not give access to its model.")

    def close(self) -> None:  # noqa: B027  optional hook
        """Free the engine."""

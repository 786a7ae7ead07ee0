"""A judge behind a server: what a method asks, what it gets back, and the options of the group
`endpoint`.

Methods see only this file: they hand over all requests of a problem at once and get the replies in
the same order. Who sends them, retries, caches and counts is `endpointclient.py`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunebench.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question. Either `messages` (chat API) or `prompt` (completions API; text or token ids).

    Attributes
    ----------
    max_tokens : of the reply.
    temperature, top_p : 0 is greedy.
    top_logprobs : alternatives to return per token; 0 asks for no log-probabilities.
    n : replies to sample.
    stop : texts that end the reply.
    seed : of the server's sampling, where it honours one.
    extra : further fields of the request's body (`chat_template_kwargs`, ...).
    about : what else the reply depends on, such as weights that the server holds. It is not sent:
        it keeps kept replies apart.
    """

    messages: tuple[Mapping[str, str], ...] | None = None
    prompt: str | Sequence[int] | None = None
    max_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_logprobs: int = 0
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    about: str | None = None

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            raise ConfigError("A request must have either messages or a prompt, not both.")


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of a reply: its text, log-probability (nats) and the alternatives returned for
    its place, by text; of alternatives with the same text, the probabilities are added."""

    text: str
    logprob: float
    top: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One sampled reply. `tokens` is None when the server gave no log-probabilities."""

    text: str
    tokens: tuple[Token, ...] | None = None
    finish_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer to one request.

    Attributes
    ----------
    choices : the sampled replies; empty when the server refused.
    refusal : why the server will not answer this request, ever (too long, filtered), or None.
    """

    choices: tuple[Choice, ...] = ()
    refusal: str | None = None


class Endpoint(ABC):
    """Sends requests to a model behind a server and counts what they cost.

    `on_reply`, if set, is called once per request that has its reply: a progress bar listens.
    """

    model: str
    on_reply: Callable[[], None] | None = None

    @abstractmethod
    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies, in order.

        Raises
        ------
        Unavailable
            When some requests were not answered after all retries; the replies to the others are
            kept, so that asking again pays only for what is missing.
        EndpointError
            When no request can succeed: no server, wrong key, unknown model.
        """

    def close(self) -> None:  # noqa: B027  optional hook
        """Close connections."""


def check_secrets(key_env: str | None, base_url: str | None, group: str = "endpoint") -> None:
    """Raise `ConfigError` when an option of `group` holds a secret instead of saying where it is.

    Called before Hydra writes the configuration of a run to disk.
    """
    if key_env is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*", key_env):
        raise ConfigError(
            f"The '{group}.key_env' parameter must be the name of an environment variable in "
            "capital letters, such as OPENAI_API_KEY. The value is not shown here, since it may be "
            "the key itself."
        )
    if base_url is not None and "@" in base_url.partition("//")[2].partition("/")[0]:
        raise ConfigError(
            f"The '{group}.base_url' parameter must not hold a user or password. Put the key into "
            f"an environment variable and name it with {group}.key_env=NAME."
        )
    if base_url is not None and "?" in base_url:
        raise ConfigError(
            f"The '{group}.base_url' parameter must end before any '?'. The value is not shown "
            f"here, since it may hold a key: put the key into an environment variable and name it "
            f"with {group}.key_env=NAME."
        )


@dataclass(kw_only=True)
class EndpointConfig:
    """Which server judges: the schema of `conf/endpoint/`.

    Attributes
    ----------
    base_url : of an OpenAI-compatible server, with `/v1`; None: there is no server.
    model : the model's name on the server.
    key_env : name of the environment variable that holds the key; None: no key is needed.
    concurrency : most requests in flight.
    timeout : seconds to wait for one reply.
    max_attempts : tries per request, the first one included.
    max_wait : longest pause between tries, in seconds.
    price_prompt, price_completion : money per million tokens, if known.
    cache_dir : folder of the cache of replies; None keeps none.
    """

    base_url: str | None = None
    model: str | None = None
    key_env: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    max_attempts: int = 6
    max_wait: float = 60.0
    price_prompt: float | None = None
    price_completion: float | None = None
    cache_dir: str | None = "results/endpoint"

    @property
    def configured(self) -> bool:
        """Whether there is a server at all."""
        return self.base_url is not None

    @property
    def prices(self) -> tuple[float | None, float | None]:
        """Money per million tokens of prompts and of replies."""
        return self.price_prompt, self.price_completion

    def identity(self) -> dict[str, Any]:
        """What determines the replies."""
        return {"base_url": self.base_url, "model": self.model}

    def validate(self, group: str = "endpoint") -> None:
        """Raise `ConfigError`, which names options of `group`, for values that cannot work."""
        rules: list[tuple[str, Any, bool, str]] = [
            ("concurrency", self.concurrency, self.concurrency >= 1, "at least 1"),
            ("timeout", self.timeout, self.timeout > 0, "above 0 seconds"),
            ("max_attempts", self.max_attempts, self.max_attempts >= 1, "at least 1"),
            ("max_wait", self.max_wait, self.max_wait >= 0, "at least 0 seconds"),
        ]
        if self.base_url is not None:
            good = self.base_url.startswith(("http://", "https://"))
            rules.append(("base_url", self.base_url, good, "an http:// or https:// address"))
            rules.append(("model", self.model, bool(self.model), "the name of a model there"))
        check_secrets(self.key_env, self.base_url, group)
        for name in ("price_prompt", "price_completion"):
            value = getattr(self, name)
            rules.append((name, value, value is None or value >= 0, "at least 0"))
        for name, value, ok, constraint in rules:
            if not ok:
                raise ConfigError(
                    f"The '{group}.{name}' parameter must be {constraint}. Got {value!r} instead."
                )

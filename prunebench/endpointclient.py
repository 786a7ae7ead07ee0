"""The client for OpenAI-compatible servers: sends, retries, caches and counts.

It knows the chat and the completions API and what servers answer when something is wrong. It does
not know what is asked or why: methods see only `endpoint.py`.

The key is read from the environment, lives in the HTTP client alone and is cut out of every text
that a server sends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from prunebench.cost import Ledger
from prunebench.endpoint import Endpoint, EndpointConfig, Reply, Request
from prunebench.errors import ConfigError, EndpointError, Unavailable
from prunebench.openaiformat import (
    Usage,
    body_of,
    pack,
    reply_of,
    retry_after_of,
    unpack,
    usage_of,
)
from prunebench.replycache import ReplyCache, reply_key

logger = logging.getLogger(__name__)

FIRST_WAIT_S = 1.0
"""Pause after the first failed try; it doubles after each further one."""

CONNECT_S = 10.0
"""Longest wait for a connection."""

SECRET_LENGTH = 8
"""Shorter keys are placeholders that a local server wants ("EMPTY"): model texts keep them."""

TRY_AGAIN = (408, 409, 425, 429)
REFUSED = (400, 413, 422)
PERHAPS_REFUSED = (403, 404)
"""One request's fault if others were answered: some gateways moderate so."""
NO_MODEL = re.compile(
    r"model.{0,80}(not exist|not found|not a valid|unknown)|(no such|unknown|invalid) model",
    re.IGNORECASE,
)
BAD_KEY = re.compile(
    r"(invalid|incorrect|missing) api.?key|api.?key (is )?(not valid|invalid|missing)",
    re.IGNORECASE,
)


class _Fault(Exception):
    """A try brought nothing usable; another one may."""

    def __init__(self, reason: str, retry_after: float | None = None, reached: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.retry_after, self.reached = reason, retry_after, reached


class _Hopeless(Exception):
    """No request can succeed."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status


class OpenAIEndpoint(Endpoint):
    """Sends requests to an OpenAI-compatible server.

    `ask` is synchronous and must not be called from inside a running event loop. Requests of equal
    content are sent, and counted, once. The connection, the key and the package `openai` are
    needed only when a reply is not in the cache.

    Engines that generate over HTTP inherit it with their own form of a reply: `_parse`, `_pack` and
    `_unpack`.

    Attributes
    ----------
    unknown_usage : replies whose tokens the server did not report; they make tokens and money NaN.
    group, model_option : the options that errors name.
    """

    group, model_option = "endpoint", "endpoint.model"
    _parse = staticmethod(reply_of)
    _pack = staticmethod(pack)
    _unpack = staticmethod(unpack)

    def __init__(self, config: EndpointConfig, ledger: Ledger) -> None:
        config.validate(self.group)
        if config.base_url is None or config.model is None:
            raise ConfigError(
                "No endpoint is configured. Choose one with endpoint=local or endpoint=openai."
            )
        self.config, self.ledger = config, ledger
        self.model, self.base_url = config.model, config.base_url.rstrip("/")
        self.unknown_usage = 0
        self._cache: ReplyCache | None = None
        self._runner: asyncio.Runner | None = None
        self._client: Any = None
        self._reached = False  # in this `ask`: the server answered anything
        self._served = False  # ever: it gave a usable reply, so that key and model are right
        self._gone = False  # the server could not be reached in all tries of the last request
        self._attempts = config.max_attempts

    def __repr__(self) -> str:
        return f"OpenAIEndpoint(base_url={self.base_url!r}, model={self.model!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.config, self.ledger)

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        keys = [self._cache_key(request) for request in requests]
        replies: dict[str, tuple[Reply, Usage | None]] = {}
        if self.config.cache_dir is not None and self._cache is None:
            self._cache = ReplyCache(self.config.cache_dir, f"{self.group}.cache_dir")
        if self._cache is not None:
            found = {key: self._cache.get(key) for key in keys}
            known = {key: value for key, value in found.items() if value is not None}
            replies = {key: self._unpack(value) for key, value in known.items()}
        missing = {k: r for k, r in zip(keys, requests, strict=True) if k not in replies}
        if missing:
            replies |= self._fetch_all(missing)
        for key in replies.keys() - missing.keys():  # the others were counted when they were sent
            self._count(replies[key][1], cached_calls=1)
            self._show_progress()
        for _ in range(len(keys) - len(replies)):  # the equal ones
            self._show_progress()
        return [replies[key][0] for key in keys]

    def close(self) -> None:
        if self._runner is not None:
            if self._client is not None:
                self._runner.run(self._client.close())
            self._runner.close()
        if self._cache is not None:
            self._cache.close()
        self._runner = self._client = self._cache = None

    def _fetch_all(self, missing: Mapping[str, Request]) -> dict[str, tuple[Reply, Usage | None]]:
        """Send these requests; whatever arrives is cached, also when some fail. A server that is
        gone gets no more of them, and one try the next time."""
        self._attempts, self._gone = 1 if self._gone else self.config.max_attempts, False
        self._reached = False
        try:
            results = self._run(self._gather(missing))
        except _Hopeless as error:
            hopeless = error
        else:
            failures = [result for result in results.values() if isinstance(result, _Fault)]
            if not failures:
                return {k: result for k, result in results.items() if isinstance(result, tuple)}
            n_failed = len(missing) - len(results) + len(failures)
            kept = "the others are kept and the same command asks only for the missing ones"
            raise Unavailable(
                f"{n_failed} of {len(missing)} requests to {self.model} at {self.base_url} "
                f"got no reply in {self._attempts} tries; the last reason: "
                f"{failures[-1].reason.rstrip('.')}. Start the same command again: "
                f"{'it asks all again' if self._cache is None else kept}."
            )
        raise EndpointError(self._run(self._explain(hopeless)))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Wait for it, connected."""
        try:
            if self._client is None:
                self._client = self._connect()
            if self._runner is None:
                self._runner = asyncio.Runner()
        except BaseException:
            work.close()
            raise
        return self._runner.run(work)

    def models(self) -> list[str] | None:
        """The models that the server lists, without adapters of others; None when it does not
        say."""
        found = self._run(self._models())
        return found and [name for name, parent in found.items() if parent is None]

    async def _gather(
        self, missing: Mapping[str, Request]
    ) -> dict[str, tuple[Reply, Usage | None] | _Fault]:
        """The results by key. Each of `concurrency` workers sends one request at a time, pauses
        included, so that a busy server gets fewer of them."""
        todo = iter(missing.items())
        results = {}

        async def work() -> None:
            for key, request in todo:
                if self._gone:
                    return
                results[key] = await self._fetch(key, request)

        n_workers = min(self.config.concurrency, len(missing))
        workers = [asyncio.ensure_future(work()) for _ in range(n_workers)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return results

    async def _fetch(self, key: str, request: Request) -> tuple[Reply, Usage | None] | _Fault:
        """The reply to one request, or why there is none after all tries."""
        import tenacity

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Fault),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=self._pause,
            reraise=True,
        )
        try:
            reply, usage = await retrying(self._try_once, request)
        except _Fault as fault:
            if not fault.reached and not self._reached:
                self._gone = True
                raise _Hopeless(fault.reason) from None
            self._gone |= not fault.reached
            return fault
        if self._cache is not None and self._lasts(request, reply):
            reply, usage = self._unpack(self._cache.put(key, self._pack(reply, usage)))
        self._show_progress()
        return reply, usage

    def _lasts(self, request: Request, reply: Reply) -> bool:
        """Whether to keep the reply: a server may change its limits."""
        return reply.refusal is None

    def _pause(self, state: Any) -> float:
        """Seconds until the next try: what the server asks for, else longer each time."""
        import tenacity

        asked = state.outcome.exception().retry_after
        if asked is not None:
            return min(asked, self.config.max_wait)
        backoff = tenacity.wait_exponential_jitter(initial=FIRST_WAIT_S, max=self.config.max_wait)
        return backoff(state)

    async def _try_once(self, request: Request) -> tuple[Reply, Usage | None]:
        """Send the request once and write down what it cost, however it ends."""
        import openai

        api, body = body_of(self.model, request)
        usage: Usage | None = (0, 0)
        answered = False
        try:
            async with asyncio.timeout(self.config.timeout):
                text = await self._client.post(f"/{api}", body=body, cast_to=str)
            self._reached = True
            usage = usage_of(text)
            reply = self._read(text)
            answered = reply.refusal is None
            self._served |= answered
        except _Fault:
            usage = usage or (0, 0)
            raise
        except (openai.APITimeoutError, TimeoutError) as error:
            reached = type(error.__cause__).__name__ != "ConnectTimeout"
            raise _Fault(f"no reply in {self.config.timeout:g} s", reached=reached) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__
            reached = type(cause).__name__ != "ConnectError"
            raise _Fault(self._redact(f"connection failed: {cause}"), reached=reached) from None
        except openai.APIStatusError as error:
            self._reached = True
            usage = usage_of(error.response.text) or (0, 0)
            reply = self._refusal(error)
        finally:
            self._count(usage, calls=1, failed_calls=not answered)
        return reply, usage

    def _read(self, text: str) -> Reply:
        if len(self._client.api_key) >= SECRET_LENGTH:
            text = text.replace(self._client.api_key, "***")
        try:
            return self._parse(text)
        except ValueError as error:
            reason = self._redact(str(error))
        raise _Fault(reason)

    def _refusal(self, error: Any) -> Reply:
        """The refusal of this one request; raises when the fault is not the request's."""
        status, body = error.status_code, error.body
        message = body.get("message") if isinstance(body, dict) else None
        reason = self._redact(f"{status}: {message or error.response.text}")
        if status == 429 and error.code == "insufficient_quota":
            raise _Hopeless(reason, status) from None
        if status in TRY_AGAIN or status >= 500:
            retry_after = retry_after_of(error.response.headers.get("retry-after"))
            raise _Fault(reason, retry_after) from None
        known = REFUSED + PERHAPS_REFUSED * self._served
        if status not in known:
            raise _Hopeless(reason, status) from None
        if not self._served and BAD_KEY.search(reason):  # some servers answer these with 400
            raise _Hopeless(reason, 401) from None
        if not self._served and NO_MODEL.search(reason):
            raise _Hopeless(reason, 404) from None
        return Reply(refusal=reason)

    async def _explain(self, error: _Hopeless) -> str:
        """What is wrong and what to do."""
        where, name = f"The server at {self.base_url}", self.config.key_env
        if error.status is None:
            return (
                f"No server answers at {self.base_url} ({error.reason}). Start it, e.g. with "
                f"'vllm serve {self.model}', or set {self.group}.base_url."
            )
        if error.status in (401, 403) and name is None:
            return (
                f"{where} wants a key ({error.reason}). Name the environment variable that holds "
                f"it with {self.group}.key_env=NAME."
            )
        if error.status in (401, 403):
            return (
                f"{where} refuses the key in the environment variable {name} ({error.reason}). "
                f"Set it to a valid key for this server."
            )
        if error.status != 404:
            return f"{where} answers no request ({error.reason})."
        models = await self._models()
        if models is None:
            options = f"{self.model_option}, and {self.group}.base_url"
            advice = f"Check {options}, which usually ends in /v1."
        elif self.model in models:
            advice = "It lists the model, but does not offer this API for it."
        else:
            listing = ", ".join(list(models)[:20])
            advice = f"Its models: {listing}. Choose one with {self.model_option}=NAME."
        return f"{where} does not serve the model {self.model!r} ({error.reason}). {advice}"

    async def _models(self) -> dict[str, str | None] | None:
        """The models the server has, each with the one that it is an adapter of, if it is; None
        when the server does not say."""
        import openai

        try:
            async with asyncio.timeout(CONNECT_S):
                text = await self._client.get("/models", cast_to=str)
            data = json.loads(text)["data"]
            return {str(model["id"]): model.get("parent") for model in data} or None
        except (
            openai.OpenAIError,
            TimeoutError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ):
            return None

    def _connect(self) -> Any:
        try:
            import openai
            import tenacity  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"Asking a server needs the package {error.name!r}, which is not installed. "
                f"Install it with: pip install openai tenacity"
            ) from None
        key = self._key()
        try:
            return openai.AsyncOpenAI(
                base_url=self.base_url,
                api_key=key,
                max_retries=0,
                timeout=openai.Timeout(
                    self.config.timeout, connect=min(CONNECT_S, self.config.timeout)
                ),
            )
        except Exception as error:  # addresses and proxy settings that its HTTP client rejects
            reason = str(error).replace(key, "***")
        raise ConfigError(f"Cannot connect to {self.group}.base_url={self.base_url}: {reason}.")

    def _key(self) -> str:
        """The key; a placeholder when none is needed, since the library insists on one."""
        name = self.config.key_env
        if name is None:
            return "none"
        key = os.environ.get(name, "").strip()
        if not key:
            raise ConfigError(
                f"The environment variable {name} is not set. It must hold the key for "
                f"{self.base_url} ('{self.group}.key_env' names it)."
            )
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"The environment variable {name} holds no valid key.")
        return key

    def _redact(self, text: str) -> str:
        """One short line without the key."""
        if self.config.key_env is not None:
            text = text.replace(self._client.api_key, "***")
        text = re.sub(r"(?i)bearer\s+[^\s\"']+", "Bearer ***", text)
        return " ".join(text.split())[:300]

    def _cache_key(self, request: Request) -> str:
        api, body = body_of(self.model, request)
        if request.about is not None:
            body["about"] = request.about
        return reply_key(base_url=self.base_url, model=self.model, api=api, body=body)

    def _count(self, usage: Usage | None, **amounts: float) -> None:
        if usage is None:
            if not self.unknown_usage:
                logger.warning("%s does not say how many tokens a reply took", self.base_url)
            self.unknown_usage += 1
        prompt, completion = usage or (math.nan, math.nan)
        self.ledger.add(
            verifier_tokens=prompt + completion,
            prompt_tokens=prompt,
            completion_tokens=completion,
            **amounts,
        )

    def _show_progress(self) -> None:
        if self.on_reply is not None:
            self.on_reply()

"""The client of the engine behind a completions server: the judge's, with replies of its own form.

Concurrency, retries, timeouts, errors and the disk cache are those of `endpointclient.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunebench.backends import _openaireply
from prunebench.backends._openaireply import Drawn
from prunebench.endpoint import Reply, Request
from prunebench.endpointclient import OpenAIEndpoint
from prunebench.errors import EndpointError, Unavailable
from prunebench.openaiformat import Usage


class Completions(OpenAIEndpoint):
    """Asks for completions; each reply that is no refusal is a `Drawn`."""

    group, model_option = "backend", "backend.model_name"
    _parse = staticmethod(_openaireply.drawn_of)
    _pack = staticmethod(_openaireply.pack)
    _unpack = staticmethod(_openaireply.unpack)

    def kept(self, requests: Sequence[Request]) -> list[Drawn | None]:
        """Those replies that are in the cache; sends nothing."""
        if self._cache is None:
            return [None] * len(requests)
        values = [self._cache.get(self._cache_key(request)) for request in requests]
        found = [None if value is None else self._unpack(value)[0] for value in values]
        return [reply if isinstance(reply, Drawn) else None for reply in found]

    def _lasts(self, request: Request, reply: Reply) -> bool:
        return isinstance(reply, Drawn) and not reply.cut_before(request.max_tokens)

    def _fetch_all(self, missing: Mapping[str, Request]) -> dict[str, tuple[Reply, Usage | None]]:
        """A server that has answered before and is gone now may come back."""
        try:
            return super()._fetch_all(missing)
        except EndpointError as error:
            if not self._served:
                raise
            reason = str(error)
        kept = "asks all again" if self._cache is None else "asks only for what is missing"
        raise Unavailable(f"{reason} Then start the same command again: it {kept}.")


class Readers(Completions):
    """Asks the learned reader `config.model` for the scores of prefixes."""

    model_option = "backend.reader"

    async def _explain(self, error: Any) -> str:
        reason = await super()._explain(error)
        if error.status != 404:
            return reason
        return (
            f"{reason} A vLLM server serves a learned reader when it is started with "
            f"'--lora-modules {self.model}=FOLDER', the folder that 'prunebench export' wrote."
        )

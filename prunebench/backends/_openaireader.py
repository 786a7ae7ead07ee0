"""Scores of a learned reader, such as STOP, that a server runs beside the model.

The server must be a vLLM with prunebench's plug-in: it takes the m last tokens of a prompt for the
reader's own and answers with the score S as log-probabilities of its tokens 0 and 1, where
logprob(0) - logprob(1) = S.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.backend import Internals
from prunebench.backends._openaiclient import Readers
from prunebench.backends._openaidraw import Refused
from prunebench.backends._openaireply import ID_MARK, Drawn
from prunebench.endpoint import Request
from prunebench.errors import EndpointError, Unavailable

if TYPE_CHECKING:
    pass

PRECISION = 1e-3
"""Most by which the two probabilities may miss 1."""


class ReaderInternals(Internals):
    """Prefixes whose states lie on a server: only its readers can be asked.

    Parameters
    ----------
    client : asks the reader.
    n_tokens : number of tokens of each reader, by the name the method gives it.
    fields : further fields of the requests; they make the server name token ids.
    counts : of replies, by whether the server said how many tokens it had `cached`, else `silent`.
    """

    def __init__(
        self,
        client: Readers,
        n_tokens: Mapping[str, int],
        fields: Mapping[str, Any],
        prompt_ids: np.ndarray,
        prefixes: Sequence[np.ndarray],
        counts: Counter[str],
        parent: ReaderInternals | None = None,
    ) -> None:
        self._client, self._counts = client, counts
        self._n_tokens, self._fields = n_tokens, fields
        self._prompt_ids, self._prefixes = prompt_ids, list(prefixes)
        self._total = parent or self

    def reader_scores(self, name: str) -> np.ndarray:
        placeholders = range(self._n_tokens[name])
        prompt = self._prompt_ids.tolist()
        requests = [
            Request(
                prompt=(*prompt, *prefix.tolist(), *placeholders),
                top_logprobs=2,
                extra=self._fields,
                about=name,
            )
            for prefix in self._prefixes
        ]
        spent = self._client.ledger.spent
        replies = self._client.ask(requests)
        self._total.from_cache |= self._client.ledger.spent.cached_calls > spent.cached_calls
        scores = np.empty(len(replies))
        for i, (request, reply) in enumerate(zip(requests, replies, strict=True)):
            if not isinstance(reply, Drawn):
                if (reply.refusal or "")[:3] in ("403", "404"):  # it was served before
                    raise Unavailable(
                        f"The server at {self._client.base_url} no longer answers for the reader "
                        f"{self._client.model!r}: {reply.refusal}."
                    )
                raise Refused(f"The server will not score a prefix: {reply.refusal}.")
            scores[i] = self._score(reply)
            assert request.prompt is not None
            n_read = reply.prompt_tokens or len(request.prompt)
            self._counts["silent" if reply.cached_tokens is None else "cached"] += 1
            self._total.forwarded_tokens += n_read - (reply.cached_tokens or 0)
        return scores

    def _score(self, reply: Drawn) -> float:
        good, bad = (reply.first.get(f"{ID_MARK}{i}", -math.inf) for i in (0, 1))
        if not abs(math.exp(good) + math.exp(bad) - 1.0) <= PRECISION:
            raise EndpointError(
                f"The server at {self._client.base_url} must give its tokens 0 and 1 all "
                f"probability when it runs the reader {self._client.model!r}. It gives "
                f"{dict(reply.first)}: it does not run prunebench's plug-in for vLLM, or "
                f"backend.reader names something else."
            )
        return good - bad

    def subset(self, order: Sequence[int]) -> Internals:
        prefixes = [self._prefixes[i] for i in order]
        return ReaderInternals(
            self._client,
            self._n_tokens,
            self._fields,
            self._prompt_ids,
            prefixes,
            self._counts,
            self._total,
        )

"""A judge that needs no server: its replies are made from a hash of the question.

For tests and for `prunebench check`. It says whatever the methods of prunebench look for (a
critique, a verdict in several words, a boxed one, a score), and means none of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from prunebench.cost import Ledger
from prunebench.endpoint import Choice, Endpoint, Reply, Request, Token

WORDS = ("Yes", "No", "True", "False", "yes", "no", ".", "!")


class FakeEndpoint(Endpoint):
    """Deterministic replies: equal requests get equal replies, in every process.

    Parameters
    ----------
    ledger : where one call and about a token per four characters are counted, per request.
    logprobs : False gives none, like servers that cannot.
    """

    model = "fake"

    def __init__(self, ledger: Ledger | None = None, *, logprobs: bool = True) -> None:
        self.ledger = ledger
        self.logprobs = logprobs
        self.asked: list[Request] = []

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        self.asked += requests
        replies = [self._reply(request) for request in requests]
        if self.ledger is not None:
            for request, reply in zip(requests, replies, strict=True):
                said = [_content(request), *(choice.text for choice in reply.choices)]
                self.ledger.add(calls=1, verifier_tokens=sum(len(text) // 4 + 1 for text in said))
        return replies

    def _reply(self, request: Request) -> Reply:
        return Reply(choices=tuple(self._choice(request, i) for i in range(request.n)))

    def _choice(self, request: Request, sample: int) -> Choice:
        content = f"{sample}\0{request.seed}\0{_content(request)}".encode()
        rng = np.random.default_rng(list(hashlib.sha256(content).digest()))
        p = (rng.dirichlet(np.ones(len(WORDS))) + 1 / len(WORDS)) / 2  # none is negligible
        top = {word: float(np.log(q)) for word, q in zip(WORDS, p, strict=True)}
        yes, score = bool(p[0] > p[1]), int(rng.integers(0, 101))
        verdict, boxed = ("True", "Yes") if yes else ("False", "No")
        texts = ["Step 1 was read", ".", "\nScore:", f" {score}", "\nVerdict:", f" {verdict}"]
        texts += ["\n$\\boxed", "{", boxed, "}"]
        texts = [boxed] if request.max_tokens == 1 else texts[-request.max_tokens :]
        tokens = tuple(
            Token(text=text, logprob=top.get(text.strip(), -20.0), top={text: -20.0, **top})
            for text in texts
        )
        return Choice(
            text="".join(texts),
            tokens=tokens if self.logprobs and request.top_logprobs else None,
            finish_reason="stop",
        )


def _content(request: Request) -> str:
    """The words of a request; how they are to be sampled does not matter to this judge."""
    if request.prompt is not None:
        return str(request.prompt)
    return json.dumps([dict(message) for message in request.messages or ()])

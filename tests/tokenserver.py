"""A completions server on this machine that draws tokens from a small made-up model.

Faults are scripted as in `faultyserver.py`. What the server can do, and what it silently ignores,
is set by the fields of `TokenModel`. Tokens are those of the embedded model's tokenizer.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from faultyserver import FAULTS, FaultyServer, send

from prunebench.tiny.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
END = TOKENIZER.eos_token_id
VOCAB = len(TOKENIZER)
ASCII = [i for i in range(VOCAB) if i == END or TOKENIZER.decode([i]) in map(chr, range(32, 127))]
FLOOR = -9999.0
KNOWN = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "logprobs", "n", "stop"}


@cache
def logprobs_after(token: int, wild: bool) -> np.ndarray:
    """`(VOCAB,)` float64 log-probabilities of the token after this one; one in 25 ends the path.
    Without `wild` all are ASCII, so that a text says which tokens it was; with it, those after
    every third token may be bytes that are no character."""
    logits = np.full(VOCAB, -np.inf)
    allowed = [i for i in range(END) if TOKENIZER.decode([i]) == "\ufffd"]
    allowed = allowed if wild and token % 3 == 0 else ASCII
    logits[allowed] = np.random.default_rng(token).normal(size=len(allowed)) * 1.5
    logits[END] = -np.inf
    logits[END] = np.logaddexp.reduce(logits) + np.log(0.04 / 0.96)
    return logits - np.logaddexp.reduce(logits)


@dataclass(kw_only=True)
class TokenModel:
    """Answers completion requests.

    Attributes
    ----------
    logprobs : most alternatives per token; 0 ignores the field.
    strict : refuse fields that the API of OpenAI does not have, instead of ignoring them.
    obeys : settings that change what is drawn.
    tempered : log-probabilities are those after temperature.
    says_end : the end-of-text token is among the tokens.
    context : longest prompt and reply.
    fixed : the temperature of a server that does not obey it.
    longest : tokens after which a reply is cut.
    end_reason, end_piece : the finish reason of a path that ended, and how its last token is named
        where tokens are named by their text (None: by its text).
    """

    token_prompts: bool = True
    names_ids: bool = True
    logprobs: int = 20
    strict: bool = False
    obeys: frozenset[str] = frozenset({"temperature", "top_p", "top_k", "seed"})
    tempered: bool = False
    says_end: bool = True
    wild: bool = False
    context: int = 10_000
    fixed: float = 0.0
    longest: int = 10_000
    end_reason: str = "stop"
    end_piece: str | None = None
    cached: int | None = None
    noise: bool = False
    reader_bias: float | None = None
    _fresh: int = field(default=0, repr=False)

    def __call__(self, handler: Any, body: dict[str, Any]) -> None:
        refusal = self._refusal(body)
        if refusal:
            send(handler, 400, {"error": {"message": refusal}})
        elif body["model"] == "stop":
            send(handler, 200, self._score(body))
        else:
            send(handler, 200, self._reply(body))

    def _refusal(self, body: dict[str, Any]) -> str | None:
        if not self.token_prompts and not isinstance(body["prompt"], str):
            return "prompt must be a string"
        if self.strict and body.keys() - KNOWN:
            return f"unknown fields: {sorted(body.keys() - KNOWN)}"
        if self.logprobs and body.get("logprobs", 0) > self.logprobs:
            return f"logprobs must be at most {self.logprobs}"
        if len(self.prompt(body)) + body["max_tokens"] > self.context:
            return f"This model's maximum context length is {self.context} tokens"
        return None

    def prompt(self, body: dict[str, Any]) -> list[int]:
        asked = body["prompt"]
        return TOKENIZER(asked)["input_ids"] if isinstance(asked, str) else list(asked)

    def draw(self, body: dict[str, Any]) -> list[int]:
        """The tokens of a reply, the end of the text included."""
        context = self.prompt(body)
        noise = body.get("vllm_xargs", {}) if self.noise else {}
        if "seed" not in body or "seed" not in self.obeys:
            self._fresh += 1
        seed = body["seed"] if "seed" in self.obeys and "seed" in body else 10**6 + self._fresh
        drawn: list[int] = []
        while len(drawn) < min(body["max_tokens"], self.longest) and drawn[-1:] != [END]:
            where: Sequence[int] = [seed, len(drawn)]
            settings = dict(body)
            if noise:
                where = [int(noise["prunebench_key"]) % 2**63]
                where += [noise["prunebench_start"] + len(drawn)]
                settings = {n: noise[f"prunebench_{n}"] for n in ("temperature", "top_p", "top_k")}
            drawn.append(self._one((context + drawn)[-1], settings, where))
        return drawn

    def _one(self, after: int, settings: dict[str, Any], where: Sequence[int]) -> int:
        logprobs = logprobs_after(after, self.wild)
        temperature = settings["temperature"] if "temperature" in self.obeys else self.fixed
        if temperature == 0:
            return int(logprobs.argmax())
        order = np.argsort(-logprobs)
        p = np.exp(logprobs[order] / temperature)
        p /= p.sum()
        if "top_k" in self.obeys and settings.get("top_k", 0) > 0:
            p[settings["top_k"] :] = 0
        if "top_p" in self.obeys:
            p[np.cumsum(p) - p >= settings["top_p"]] = 0
        return int(order[np.random.default_rng(where).choice(len(p), p=p / p.sum())])

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, drawn = self.prompt(body), self.draw(body)
        ended = drawn[-1] == END
        told = drawn if self.says_end or not ended else drawn[:-1]
        choice: dict[str, Any] = {
            "index": 0,
            "text": TOKENIZER.decode(told, skip_special_tokens=True),
            "finish_reason": self.end_reason if ended else "length",
        }
        by_id = self.names_ids and body.get("return_tokens_as_token_ids", False)
        if self.names_ids and body.get("return_token_ids"):
            choice["token_ids"] = told
        if self.logprobs and body.get("logprobs"):
            choice["logprobs"] = self._logprobs(prompt, told, body, by_id)
        usage: dict[str, Any] = {"prompt_tokens": len(prompt), "completion_tokens": len(drawn)}
        return {"choices": [choice], "usage": usage}

    def _logprobs(
        self, prompt: list[int], drawn: list[int], body: dict[str, Any], by_id: bool
    ) -> dict[str, Any]:
        def name(token: int) -> str:
            if not by_id and token == END and self.end_piece is not None:
                return self.end_piece
            return f"token_id:{token}" if by_id else TOKENIZER.decode([token])

        values, tops = [], []
        for at, token in enumerate(drawn):
            logprobs = logprobs_after([*prompt, *drawn[:at]][-1], self.wild)
            if self.tempered and body["temperature"]:
                logprobs = logprobs / body["temperature"]
                logprobs = logprobs - np.logaddexp.reduce(logprobs)
            logprobs = np.maximum(logprobs, FLOOR)
            best = np.argsort(-logprobs)[: body["logprobs"]].tolist()
            values.append(float(logprobs[token]))
            tops.append({name(i): float(logprobs[i]) for i in dict.fromkeys([token, *best])})
        return {"tokens": [*map(name, drawn)], "token_logprobs": values, "top_logprobs": tops}

    def _score(self, body: dict[str, Any]) -> dict[str, Any]:
        """The score of a prompt is a hundredth of the sum of its tokens before the last three."""
        score = sum(body["prompt"][:-3]) / 100
        good, bad = -np.logaddexp(0.0, -score), -np.logaddexp(0.0, score)
        if self.reader_bias is not None:
            good += self.reader_bias
        usage: dict[str, Any] = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}
        if self.cached is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached}
        tops = {"token_id:0": float(good), "token_id:1": float(bad)}
        logprobs = {"tokens": ["token_id:0"], "token_logprobs": [float(good)]}
        choice = {"text": "", "finish_reason": "length", "token_ids": [0]}
        choice["logprobs"] = logprobs | {"top_logprobs": [tops]}
        return {"choices": [choice], "usage": usage}


class TokenServer(FaultyServer):
    """Serves a `TokenModel` as `judge`. `lives_for` requests are answered; at the next one the
    server is gone, with all that are in flight."""

    def __init__(self, model: TokenModel | None = None, **options: Any) -> None:
        self.model = model or TokenModel()
        super().__init__(always=self._serve, **options)
        self.lives_for: int | None = None
        self.answered: list[dict[str, Any]] = []
        self._alive = threading.Lock()

    def _serve(self, handler: Any, body: dict[str, Any]) -> None:
        with self._alive:
            dying = self.lives_for is not None and len(self.answered) >= self.lives_for
            if not dying:
                self.answered.append(body)
        if not dying:
            self.model(handler, body)
            return
        self._http.shutdown()
        self._http.server_close()
        FAULTS["drop"](handler, body)

    def begin(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Any:
        return super().begin(path, body, headers) or self.always

    def completions(self) -> list[dict[str, Any]]:
        """The bodies of all requests so far."""
        return [body for _, body, _ in self.requests]

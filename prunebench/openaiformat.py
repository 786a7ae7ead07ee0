"""The JSON of the OpenAI API: bodies of requests, replies, token counts, and how replies are kept.

Nothing is sent here. Both ways to write log-probabilities (chat and completions) become `Token`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np

from prunebench.endpoint import Choice, Reply, Request, Token

Usage = tuple[int, int]
"""Tokens of the prompt and of the reply."""


def body_of(model: str, request: Request) -> tuple[str, dict[str, Any]]:
    """The path of the API and the body to send. `extra` goes last: None there takes a field out."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "n": request.n if request.n > 1 else None,
        "stop": list(request.stop) or None,
        "seed": request.seed,
    }
    if request.messages is not None:
        api = "chat/completions"
        body["messages"] = [dict(message) for message in request.messages]
        if request.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    else:
        api = "completions"
        body |= {"prompt": request.prompt, "logprobs": request.top_logprobs or None}
    body |= request.extra
    return api, {name: value for name, value in body.items() if value is not None}


def usage_of(text: str) -> Usage | None:
    """The tokens that the server reports, None when it does not."""
    try:
        usage = json.loads(text)["usage"]
        return int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def reply_of(text: str) -> Reply:
    """The reply in the body of an answer; raises `ValueError` when there is none."""
    try:
        content = json.loads(text)
    except ValueError:
        raise ValueError(f"the answer is not JSON: {text}") from None
    try:
        raw = content["choices"]
        choices = tuple(
            Choice(
                text=(choice["message"].get("content") if "message" in choice else choice["text"])
                or "",
                tokens=tokens_of(choice.get("logprobs")),
                finish_reason=choice.get("finish_reason"),
            )
            for choice in raw
        )
        refusals = [(choice.get("message") or {}).get("refusal") for choice in raw]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"the answer holds no reply: {text}") from None
    if not choices:
        raise ValueError(f"the answer holds no reply: {text}")
    if any(choice.finish_reason in ("abort", "error") for choice in choices):
        raise ValueError(f"the reply was broken off: {text}")
    if all(refusals):
        return Reply(refusal=f"the model refuses: {refusals[0]}")
    if all(choice.finish_reason == "content_filter" for choice in choices):
        return Reply(refusal="the server's content filter stopped the reply")
    return Reply(choices=choices)


def tokens_of(logprobs: Any) -> tuple[Token, ...] | None:
    """The tokens of a reply, in the form of the chat or of the completions API."""
    if not logprobs:
        return None
    if logprobs.get("content") is not None:
        return tuple(
            Token(
                text=token["token"],
                logprob=_number(token["logprob"]),
                top=_added((t["token"], t["logprob"]) for t in token.get("top_logprobs") or ()),
            )
            for token in logprobs["content"]
        )
    if logprobs.get("tokens") is None:
        return None
    texts, values = logprobs["tokens"], logprobs["token_logprobs"]
    tops = logprobs.get("top_logprobs") or [None] * len(texts)
    return tuple(
        Token(text=text, logprob=_number(value), top=_added((top or {}).items()))
        for text, value, top in zip(texts, values, tops, strict=True)
    )


def _number(value: float | None) -> float:
    """The first token of an echoed prompt has no log-probability."""
    return math.nan if value is None else float(value)


def _added(alternatives: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Log-probabilities by text; the probabilities of equal texts are added, none counts as 0."""
    top: dict[str, float] = {}
    for text, value in alternatives:
        if value is None:
            continue
        top[text] = float(np.logaddexp(top[text], value)) if text in top else float(value)
    return top


def retry_after_of(header: str | None) -> float | None:
    """Seconds from now, of a header in seconds or as a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def pack(reply: Reply, usage: Usage | None) -> dict[str, Any]:
    """A reply as JSON-ready data."""
    choices = [
        {
            "text": choice.text,
            "tokens": None
            if choice.tokens is None
            else [[token.text, token.logprob, dict(token.top)] for token in choice.tokens],
            "finish_reason": choice.finish_reason,
        }
        for choice in reply.choices
    ]
    return {"choices": choices, "refusal": reply.refusal, "usage": usage}


def unpack(value: Any) -> tuple[Reply, Usage | None]:
    """What `pack` was given."""
    choices = []
    for choice in value["choices"]:
        tokens = choice["tokens"]
        if tokens is not None:
            tokens = tuple(Token(text=t, logprob=p, top=top) for t, p, top in tokens)
        finish = choice["finish_reason"]
        choices.append(Choice(text=choice["text"], tokens=tokens, finish_reason=finish))
    usage = None if value["usage"] is None else (value["usage"][0], value["usage"][1])
    return Reply(choices=tuple(choices), refusal=value["refusal"]), usage

"""What a completions server says of the tokens it drew: ids, log-probabilities, statistics.

Reads the JSON of a reply once, when it arrives; what is kept on disk are token ids and a few
numbers per token, not the alternatives. Knows no tokenizer: from a server that names no ids there
are texts.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunebench.endpoint import Reply
from prunebench.openaiformat import Usage

TOP = 20
"""How many of the largest log-probabilities `TokenStats.top_logprobs` averages."""

FLOOR = -9999.0
"""What vLLM writes for minus infinity, which JSON has not."""

ID_MARK = "token_id:"
"""What a server puts before a token's id when it is asked for ids in place of texts."""

STOPPED = ("stop", "eos_token", "stop_sequence")
"""How servers say that the model ended the text itself."""

PER_TOKEN = ("logprobs", "top_logprobs", "max_logprobs", "top_mass", "top_entropy")
"""The statistics that log-probabilities of the most likely tokens tell."""


@dataclass(frozen=True, kw_only=True)
class Drawn(Reply):
    """Tokens that a server drew after a prompt.

    Attributes
    ----------
    text : their text, empty when the ids are known.
    token_ids : `(n,)` int32, None when the server names none.
    pieces : the text of each token, where log-probabilities came without ids.
    stats : some of `PER_TOKEN`, `(n,)` float32 each; NaN where the server gave too few
        alternatives.
    first : log-probabilities of the alternatives for the first token, by what the server calls
        them.
    n_alternatives : most alternatives that were given for a token.
    finish_reason : one of `STOPPED` when the model ended the text, `length` when it was cut.
    prompt_tokens, completion_tokens, cached_tokens : as the server counts them, None when it does
        not say. Cached ones are those of the prompt that it did not compute again.
    """

    text: str = ""
    token_ids: np.ndarray | None = None
    pieces: tuple[str, ...] | None = None
    stats: Mapping[str, np.ndarray] = field(default_factory=dict)
    first: Mapping[str, float] = field(default_factory=dict)
    n_alternatives: int = 0
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None

    @property
    def stopped(self) -> bool:
        return self.finish_reason in STOPPED

    def cut_before(self, n: int) -> bool:
        """Whether the server ended the reply before `n` tokens though the model went on."""
        drawn = self.completion_tokens if self.token_ids is None else len(self.token_ids)
        return not self.stopped and drawn is not None and drawn < n


def drawn_of(text: str) -> Reply:
    """The reply in the body of an answer; raises `ValueError` when there is none."""
    try:
        content = json.loads(text)
        choice = content["choices"][0]
        finish = choice.get("finish_reason")
        if finish in ("abort", "error"):
            raise ValueError("the reply was broken off")
        if finish == "content_filter":
            return Reply(refusal="the server's content filter stopped the reply")
        return _drawn(choice, content.get("usage") or {}, finish)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it holds no completion"
        raise ValueError(f"the answer cannot be read ({reason}): {text}") from None


def _drawn(choice: Mapping[str, Any], usage: Mapping[str, Any], finish: str | None) -> Drawn:
    ids = choice.get("token_ids")
    pieces, values, tops = columns(choice.get("logprobs"))
    if ids is None and pieces and all(p.startswith(ID_MARK) for p in pieces):
        ids = [int(piece.removeprefix(ID_MARK)) for piece in pieces]
    if ids is not None and values is not None and len(ids) != len(values):
        raise ValueError(f"{len(ids)} token ids, but {len(values)} log-probabilities")
    details = usage.get("prompt_tokens_details") or {}
    return Drawn(
        text=choice["text"] or "" if ids is None else "",
        token_ids=None if ids is None else np.array(ids, dtype=np.int32),
        pieces=None if ids is not None or pieces is None else tuple(pieces),
        stats={} if values is None else statistics(values, [list(t.values()) for t in tops]),
        first=dict(tops[0]) if tops else {},
        n_alternatives=max(map(len, tops), default=0),
        finish_reason=finish,
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        cached_tokens=details.get("cached_tokens"),
    )


def columns(
    logprobs: Mapping[str, Any] | None,
) -> tuple[list[str] | None, list[float] | None, Sequence[Mapping[str, float]]]:
    """Texts, log-probabilities and alternatives of the tokens, in the form of the completions API
    or, as some servers do, of the chat API."""
    if not logprobs:
        return None, None, []
    if logprobs.get("content") is not None:
        tokens = logprobs["content"]
        tops = [
            {_name(top): float(top["logprob"]) for top in token.get("top_logprobs") or ()}
            for token in tokens
        ]
        return [_name(token) for token in tokens], [float(t["logprob"]) for t in tokens], tops
    pieces, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if pieces is None or values is None:
        return None, None, []
    tops = [top or {} for top in logprobs.get("top_logprobs") or [None] * len(pieces)]
    if not len(pieces) == len(values) == len(tops):
        raise ValueError("its lists of tokens and log-probabilities differ in length")
    return pieces, [float(value) for value in values], tops


def _name(token: Mapping[str, Any]) -> str:
    """The id, which tells tokens of equal text apart, if the server gives it; else the text."""
    return f"{ID_MARK}{token['id']}" if "id" in token else token["token"]


def statistics(values: Sequence[float], tops: Sequence[Sequence[float]]) -> dict[str, np.ndarray]:
    """What `TokenStats` can hold of a path: `(n,)` float32 each, nats.

    Parameters
    ----------
    values : log-probability of each token.
    tops : log-probabilities of the alternatives at each place, in any order, the token perhaps
        among them. The `TOP` largest count; a place with fewer is NaN.
    """
    logprobs = _unfloored(np.array(values, dtype=np.float64))
    table = np.full((len(values), max([TOP, *map(len, tops)])), np.nan)
    for row, top in zip(table, tops, strict=True):
        row[: len(top)] = top
    table = -np.sort(-_unfloored(table), axis=1)[:, :TOP]  # NaN goes last
    p = np.exp(table)
    plogp = p * np.maximum(table, FLOOR)  # a probability of 0 contributes 0
    found = {
        "logprobs": logprobs,
        "top_logprobs": table.mean(axis=1),
        "max_logprobs": np.where(np.isnan(table[:, -1]), np.nan, table[:, 0]),
        "top_mass": np.minimum(p.sum(axis=1), 1.0),
        "top_entropy": -plogp.sum(axis=1),
    }
    return {name: column.astype(np.float32) for name, column in found.items()}


def _unfloored(values: np.ndarray) -> np.ndarray:
    return np.where(values <= FLOOR, -np.inf, values)


def pack(reply: Reply, usage: Usage | None) -> dict[str, Any]:
    """A reply as JSON-ready data; numbers per token as base64 of their bytes."""
    assert isinstance(reply, Drawn), "refusals are not kept"
    return {
        "text": reply.text,
        "token_ids": None if reply.token_ids is None else _as_text(reply.token_ids, "<i4"),
        "pieces": reply.pieces,
        "stats": {name: _as_text(column, "<f4") for name, column in reply.stats.items()},
        "first": dict(reply.first),
        "n_alternatives": reply.n_alternatives,
        "finish_reason": reply.finish_reason,
        "counts": [reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens],
        "usage": usage,
    }


def unpack(value: Any) -> tuple[Reply, Usage | None]:
    """What `pack` was given."""
    ids, usage = value["token_ids"], value["usage"]
    prompt, completion, cached = value["counts"]
    drawn = Drawn(
        text=value["text"],
        token_ids=None if ids is None else _as_array(ids, "<i4"),
        pieces=None if value["pieces"] is None else tuple(value["pieces"]),
        stats={name: _as_array(column, "<f4") for name, column in value["stats"].items()},
        first=value["first"],
        n_alternatives=value["n_alternatives"],
        finish_reason=value["finish_reason"],
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
    )
    return drawn, None if usage is None else (usage[0], usage[1])


def _as_text(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(values.astype(dtype).tobytes()).decode("ascii")


def _as_array(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype).astype(dtype[1:])

"""Paths that are drawn behind a server: requests out of prefixes, tokens out of replies.

Knows the tokenizer and what the server can do; leaves sending to the client and problems, answers
and checks to the engine.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunebench.backend import Sampling
from prunebench.backends._noise import noise_args
from prunebench.backends._openaiclient import Completions
from prunebench.backends._openaiprobe import Abilities
from prunebench.backends._openaireply import TOP, Drawn
from prunebench.backends._records import Record
from prunebench.endpoint import Reply, Request
from prunebench.errors import Unavailable
from prunebench.types import TokenStats

logger = logging.getLogger(__name__)


class Refused(Exception):
    """The server will not draw this path, ever."""


@dataclass(kw_only=True)
class Draft:
    """A path as far as it has come.

    Attributes
    ----------
    key : int64 that stands for seed, problem and index.
    ids, stats : its tokens and their statistics, by name. The end-of-text token is missing where
        a server that names no ids gives log-probabilities without one for it.
    stopped : the model ended it.
    ended : it gets no more tokens.
    refusal : why the server will not go on with it.
    """

    prompt_ids: np.ndarray
    key: int
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    stats: dict[str, np.ndarray] = field(default_factory=dict)
    stopped: bool = False
    ended: bool = False
    refusal: str | None = None

    def owes(self, n_tokens: int) -> bool:
        """Whether it gets more tokens on its way to `n_tokens`."""
        return not self.ended and self.refusal is None and len(self.ids) < n_tokens

    def record(self) -> Record:
        stats = TokenStats(**self.stats)  # type: ignore[arg-type]  # names of statistics
        return Record(token_ids=self.ids, stats=stats, stopped=self.stopped)


@dataclass(kw_only=True)
class Drawer:
    """Draws drafts on.

    Attributes
    ----------
    tokenizer : of the model, on this machine.
    end_ids : tokens that end a path.
    path_noise : let the server draw by key and position.
    counts : what is worth a note: `requests`, `cached`, and what went wrong with tokens.
    """

    client: Completions
    abilities: Abilities
    sampling: Sampling
    tokenizer: Any
    end_ids: Sequence[int]
    path_noise: bool
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def stat_names(self) -> tuple[str, ...]:
        """The statistics that every path gets."""
        if not self.abilities.logprobs:
            return ()
        top = ("top_logprobs", "max_logprobs", "top_mass", "top_entropy")
        return ("logprobs", *(top if self.abilities.logprobs >= TOP else ()))

    def run(self, drafts: Sequence[Draft], n_tokens: int) -> None:
        """Draw until every draft has `n_tokens` tokens or has ended.

        Raises what the client raises; what arrived by then is in the drafts.
        """
        n_tokens = min(n_tokens, self.sampling.max_new_tokens)
        due = [draft for draft in drafts if draft.owes(n_tokens)]
        prompts = [self._prompt(draft) for draft in due]
        requests = [
            self._request(draft, prompt, n_tokens - len(draft.ids))
            for draft, (prompt, _) in zip(due, prompts, strict=True)
        ]
        before = self.client.ledger.spent.cached_calls
        replies: Sequence[Reply | None] = []
        try:
            replies = self.client.ask(requests)
        except Unavailable:
            replies = self.client.kept(requests)
            raise
        finally:
            self.counts["cached"] += int(self.client.ledger.spent.cached_calls - before)
            self.counts["requests"] += len(replies)
            for draft, (_, changed), reply in zip(due, prompts, replies, strict=False):
                if reply is not None:
                    self._extend(draft, reply, n_tokens, changed)

    # ---- requests

    def _prompt(self, draft: Draft) -> tuple[str | tuple[int, ...], bool]:
        """The prompt to send, and whether the server will read other tokens than it stands for."""
        ids = [*draft.prompt_ids.tolist(), *draft.ids.tolist()]
        if self.abilities.token_prompts:
            return tuple(ids), False
        text = self._text(ids)
        if self._reads(text) == ids:
            return text, False
        # A server puts the first token of every text there by itself.
        without = self._text(ids[1:]) if ids[:1] == [self.tokenizer.bos_token_id] else text
        return without, self._reads(without) != ids

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _reads(self, text: str) -> list[int]:
        """The tokens that a server with this tokenizer makes of a prompt."""
        return list(self.tokenizer(text)["input_ids"])

    def _request(self, draft: Draft, prompt: str | tuple[int, ...], n_tokens: int) -> Request:
        sampling, extra = self.sampling, {**self.abilities.names, **self.abilities.plain}
        if "stop_token_ids" in extra:
            extra["stop_token_ids"] = list(self.end_ids)
        start, greedy = len(draft.ids), self.path_noise or sampling.temperature == 0
        if self.path_noise:
            extra["vllm_xargs"] = noise_args(draft.key, sampling, start)
        elif sampling.top_k > 0 and not greedy:
            extra["top_k"] = sampling.top_k
        return Request(
            prompt=prompt,
            max_tokens=n_tokens,
            temperature=0.0 if greedy else sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            top_logprobs=self.abilities.logprobs,
            seed=None if greedy else _seed(draft.key, start),
            extra=extra,
        )

    # ---- replies

    def _extend(self, draft: Draft, reply: Reply, n_tokens: int, changed: bool) -> None:
        if not isinstance(reply, Drawn):
            draft.refusal = reply.refusal
            return
        n_prompt = len(draft.prompt_ids) + len(draft.ids)
        self._count_changed(changed or reply.prompt_tokens not in (None, n_prompt))
        n_asked = n_tokens - len(draft.ids)
        ids = self._token_ids(reply)
        columns = {name: self._column(name, reply, len(ids)) for name in self.stat_names}
        draft.stopped = reply.stopped
        if not draft.stopped:  # what was read as more tokens than were drawn is drawn again
            ids = ids[:n_asked]
        elif not columns and len(ids) < n_asked and not np.isin(ids[-1:], self.end_ids).any():
            ids = np.append(ids, np.int32(self.end_ids[0]))
        cut_short = reply.cut_before(n_asked)
        self.counts["cut"] += cut_short
        final = n_tokens >= self.sampling.max_new_tokens
        draft.ended = draft.stopped or cut_short or final
        draft.ids = np.concatenate([draft.ids, ids])
        for name, column in columns.items():
            before = draft.stats.get(name, column[:0])
            draft.stats[name] = np.concatenate([before, column[: len(ids)]])

    def _count_changed(self, changed: bool) -> None:
        if changed and not self.counts["retokenised"]:
            logger.warning(
                "%s takes text only, and makes other tokens of a prefix than it was sampled as: "
                "paths go on after slightly different prefixes. The run's notes count them.",
                self.client.base_url,
            )
        self.counts["retokenised"] += changed

    def _token_ids(self, reply: Drawn) -> np.ndarray:
        """The ids that the server names, else those of each token's text, else of all text."""
        if reply.token_ids is not None:
            return reply.token_ids.astype(np.int32)
        pieces, end = list(reply.pieces or ()), self.end_ids[0]
        singles = [self._single(piece) for piece in pieces]
        if reply.stopped and pieces[-1:] == [""]:
            singles[-1] = end
        if reply.pieces is not None and None not in singles:
            return np.array(singles, dtype=np.int32)
        ids = self.tokenizer(reply.text, add_special_tokens=False)["input_ids"]
        exact = self._text(ids) == reply.text
        n = reply.completion_tokens
        self.counts["guessed"] += not exact or n not in (None, len(ids), len(ids) + 1)
        if reply.stopped and len(ids) == len(pieces) - 1 and singles[-1] in self.end_ids:
            ids = [*ids, singles[-1]]  # texts leave it out
        return np.array(ids, dtype=np.int32)

    def _single(self, piece: str) -> int | None:
        """The id of a token of this text, None when the text alone does not tell."""
        if "\ufffd" in piece:  # bytes that are no character, of any of several tokens
            return None
        ids = self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids[0] if len(ids) == 1 and self._text(ids) == piece else None

    def _column(self, name: str, reply: Drawn, n: int) -> np.ndarray:
        column = reply.stats.get(name)
        if column is None or len(column) != n:
            self.counts["unaligned"] += name == "logprobs"
            return np.full(n, np.nan, dtype=np.float32)
        if name == "top_logprobs":
            self.counts["narrow"] += int(np.isnan(column).sum())
        return column

    # ---- for the report

    def take_notes(self) -> list[str]:
        """What people must know of the paths since the last call, in sentences."""
        said = {
            "retokenised": "replies of {requests} followed a prompt that the server read as other "
            "tokens than were sampled",
            "guessed": "replies of {requests} came without token ids, and their text may have been "
            "sampled as other tokens than it was read as",
            "unaligned": "replies of {requests} have log-probabilities that could not be matched "
            "with tokens: their statistics are NaN",
            "narrow": f"tokens came with fewer than {TOP} different alternatives: what needs them "
            "is NaN there",
            "cut": "replies of {requests} ended before max_new_tokens by a limit of the server",
            "cached": "replies of {requests} came from the disk cache: seconds do not show what "
            "they took",
        }
        counts = Counter(self.counts)
        self.counts.clear()
        where = self.client.base_url
        return [
            f"{where}: {counts[name]} {text.format(requests=counts['requests'])}"
            for name, text in said.items()
            if counts[name]
        ]


def _seed(key: int, start: int) -> int:
    """A seed that every server takes, for the tokens of a path from `start` on."""
    digest = hashlib.blake2b(f"{key}/{start}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 33

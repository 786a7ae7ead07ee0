"""A problem, and complete paths for it: what is generated, imported, stored and replayed.

Methods never see a `Trace`; what they see of it is in `types.py`, which also offers all names of
this module. Knows no method, no engine and no file format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from prunebench.errors import ConfigError, MissingInput

TOKEN_STATS = (
    "logprobs",
    "top_logprobs",
    "entropy",
    "sum_logprobs",
    "max_logprobs",
    "top_mass",
    "top_entropy",
)
"""Names of the per-token statistics, in the order in which banks store them."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question with its gold answer.

    Attributes
    ----------
    id : stable identifier, made from the content, safe as a file name.
    question : the text put into the prompt template.
    answer : the gold answer; methods never see it.
    """

    id: str
    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class TokenStats:
    """Per-token statistics of the raw next-token distribution P_t (before temperature, top-p,
    top-k), each `(n_tokens,)` float32 in nats, or None when the engine does not give it.

    Attributes
    ----------
    logprobs : log P_t of the sampled token.
    top_logprobs : mean of the 20 largest log P_t (fewer when the vocabulary is smaller).
    entropy : exact entropy of P_t over the whole vocabulary.
    sum_logprobs : sum over the whole vocabulary of log P_t(v).
    max_logprobs : the largest log P_t.
    top_mass : sum of the 20 largest P_t, in (0, 1].
    top_entropy : -sum of P log P over the 20 largest P_t, not renormalised.
    vocab_size : number of terms in `sum_logprobs`.
    """

    logprobs: np.ndarray | None = None
    top_logprobs: np.ndarray | None = None
    entropy: np.ndarray | None = None
    sum_logprobs: np.ndarray | None = None
    max_logprobs: np.ndarray | None = None
    top_mass: np.ndarray | None = None
    top_entropy: np.ndarray | None = None
    vocab_size: int = 0

    def cut(self, n_tokens: int) -> TokenStats:
        """The statistics of the first `n_tokens` tokens, as read-only copies."""
        return replace(
            self, **{name: frozen(getattr(self, name), n_tokens) for name in TOKEN_STATS}
        )


def frozen(values: np.ndarray | None, n: int) -> np.ndarray | None:
    """A read-only copy of the first `n` values."""
    if values is None:
        return None
    cut = np.array(values[:n])
    cut.setflags(write=False)
    return cut


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A complete sampled path and what became of it.

    Attributes
    ----------
    index : position of the path in its problem's pool; with the seed it determines the path.
    token_ids : `(n_tokens,)` int32, generated tokens only, the end-of-text token included; None
        when an imported path does not tell.
    text : the generated text, special tokens left out; None when an imported path does not tell.
    stats : per-token statistics of the generated tokens.
    stopped : True when the model ended the path itself, False when it ran into max_new_tokens.
    answer : the extracted answer, None when the text holds none.
    correct : whether `answer` equals the gold answer.
    length : number of tokens of an imported path, whose token ids may be unknown.
    pieces : `(n_tokens,)` int32, how many characters of `text` each token of an imported path
        wrote; None when that is not known.
    early_answers : what an imported path answered when it was made to answer after `early_every`
        tokens, twice as many, and so on (None: no answer); None when that was not recorded.
    early_every : tokens between two early answers.
    """

    index: int
    token_ids: np.ndarray | None
    text: str | None
    stats: TokenStats
    stopped: bool
    answer: str | None
    correct: bool
    length: int | None = None
    pieces: np.ndarray | None = None
    early_answers: tuple[str | None, ...] | None = None
    early_every: int | None = None

    @property
    def n_tokens(self) -> int:
        if self.length is not None:
            return self.length
        return len(self.known_ids)

    @property
    def known_ids(self) -> np.ndarray:
        """The token ids of a path that an engine has made, which are always known."""
        assert self.token_ids is not None, "only imported paths lack token ids"
        return self.token_ids

    def text_until(self, n_tokens: int, decode: Callable[[np.ndarray], str]) -> str | None:
        """The text of the first tokens; None when an imported path does not tell."""
        if n_tokens >= self.n_tokens:
            return self.text
        if self.length is None:
            return decode(self.known_ids[:n_tokens])
        if self.text is None or self.pieces is None:
            return None
        return self.text[: int(self.pieces[:n_tokens].sum())]

    def cut(self, n_tokens: int, decode: Callable[[np.ndarray], str]) -> Trace:
        """The path as it was after its first `n_tokens` tokens, with its end unknown."""
        early = self.early_answers
        if early is not None and self.early_every:
            early = early[: n_tokens // self.early_every]
        return replace(
            self,
            token_ids=frozen(self.token_ids, n_tokens),
            text=self.text_until(n_tokens, decode),
            stats=self.stats.cut(n_tokens),
            stopped=False,
            answer=None,
            correct=False,
            length=None if self.length is None else n_tokens,
            pieces=frozen(self.pieces, n_tokens),
            early_answers=early,
        )

    def early_answer(self, n_tokens: int) -> str | None:
        """What the path answers when it is made to answer after `n_tokens` tokens; a path that has
        ended by then answers what it answered at its end."""
        if self.n_tokens < n_tokens or (self.n_tokens == n_tokens and self.stopped):
            return self.answer
        if self.early_answers is None or not self.early_every:
            raise MissingInput("answers given early, which were not recorded for this path")
        if n_tokens % self.early_every:
            raise ConfigError(
                f"The 'prefix_length' parameter must be a multiple of {self.early_every} for "
                f"methods that read early answers: they were recorded every {self.early_every} "
                f"tokens. Got {n_tokens} instead."
            )
        at = n_tokens // self.early_every - 1
        if at >= len(self.early_answers):
            raise MissingInput(
                f"the answer at {n_tokens} tokens; the last one recorded for this path is at "
                f"{len(self.early_answers) * self.early_every}"
            )
        return self.early_answers[at]

"""What the judges behind a server share: their options, asking, and reading the verdict.

A verdict is read from the reply alone, and a reply's quotations of the data do not count.
"""

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import numpy as np

from prunebench.endpoint import Choice, Endpoint, Reply, Request, Token
from prunebench.errors import ConfigError
from prunebench.method import Capability, Context, PathGroup, SignalGenerator, SignalType

Result = TypeVar("Result")

TOP = 20  # alternatives to ask for; also the most that servers return unless told otherwise
LEAST_MASS = 0.01
"""Least probability of both verdict words together; below, the judge was not giving a verdict."""


class Unjudged(Exception):
    """The reply holds no verdict; the message says why, and what to try instead.

    `refused`: the server would not answer, which another setting of it may change.
    """

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class Aggregation(Enum):
    """How the scores of steps become one score."""

    min = "min"
    mean = "mean"
    last = "last"

    def of(self, scores: Iterable[float | Unjudged]) -> float:
        values = [checked(score) for score in scores]
        if self is Aggregation.last:
            return values[-1]
        return float(np.min(values) if self is Aggregation.min else np.mean(values))


@dataclass(kw_only=True)
class Judge(SignalGenerator):
    """A method that asks a server about every path by itself, all paths at once."""

    type = SignalType.II
    requires = frozenset({Capability.ENDPOINT})
    joint = False

    def require(self, option: str, good: bool, constraint: str) -> None:
        """Raise `ConfigError` for an option that is not good."""
        if not good:
            name, value = type(self).__name__, getattr(self, option)
            raise ConfigError(
                f"The {option!r} parameter of {name} must be {constraint}. Got {value!r} instead."
            )

    def require_least(self, **least: float) -> None:
        """The options must not be below these values."""
        for option, bound in least.items():
            self.require(option, getattr(self, option) >= bound, f"at least {bound}")

    def require_places(self, *places: str) -> None:
        """The option `template` must be empty or have these places for data."""
        template = getattr(self, "template", "")
        good = not template or all(place in template for place in places)
        self.require("template", good, f"empty or contain {' and '.join(places)}")

    def require_words(self, yes: str, no: str) -> None:
        """The verdict words must be words, and different ones."""
        good = bool(yes.strip() and no.strip()) and not same_word(yes, no)
        self.require("no", good, "another word than 'yes', and neither may be blank")

    def setup(self, context: Context) -> None:
        if context.endpoint is None:
            raise ConfigError("There is no server to judge: name one with 'endpoint='.")
        self._endpoint = context.endpoint

    @abstractmethod
    def judge(self, group: PathGroup) -> list[float | Unjudged]:
        """The score of every path, or why it has none. Paths without text are not in the group."""

    def score(self, group: PathGroup) -> np.ndarray:
        empty = Unjudged("there is nothing to judge: the prefix is empty")
        scores: list[float | Unjudged] = [empty] * len(group)
        some = [i for i, path in enumerate(group.paths) if path.text.strip()]
        for i, score in zip(some, self.judge(group.subset(some)), strict=True):
            scores[i] = score
        return np.array(
            [
                path.unscored(str(score), ask_again=score.refused)
                if isinstance(score, Unjudged)
                else score
                for path, score in zip(group.paths, scores, strict=True)
            ],
            dtype=np.float64,
        )


def attempt(read: Callable[..., Result], *args: Any) -> Result | Unjudged:
    """What `read` returns, or the `Unjudged` that it raises."""
    try:
        return read(*args)
    except Unjudged as reason:
        return reason


def checked(score: float | Unjudged) -> float:
    """The score; raises the reason where there is none."""
    if isinstance(score, Unjudged):
        raise score
    return score


def ask_each(endpoint: Endpoint, asked: Sequence[Sequence[Request]]) -> list[list[Reply]]:
    """The replies to several lists of requests, all sent at once."""
    replies = iter(endpoint.ask([request for requests in asked for request in requests]))
    return [[next(replies) for _ in requests] for requests in asked]


# --- reading the reply ------------------------------------------------------------------------


class Mode(Enum):
    """How a verdict is read."""

    logprob = "logprob"
    sampled = "sampled"
    score = "score"

    def read(self, reply: Reply, yes: str, no: str, data: Iterable[str]) -> float:
        """p(yes), the share of yes among the verdicts stated, or the mean of the scores given."""
        choices = choices_of(reply)
        if self is Mode.logprob:
            tokens = tokens_of(reply, "use method.mode=sampled or score")
            return verdict_probability(tokens, yes, no)
        if self is Mode.score:
            found = [attempt(read_score, choice.text, data) for choice in choices]
            scores = [score for score in found if not isinstance(score, Unjudged)]
            if not scores:
                raise next(score for score in found if isinstance(score, Unjudged))
            return float(np.mean(scores))
        verdicts = [read_verdict(choice.text, yes, no, data) for choice in choices]
        given = [verdict for verdict in verdicts if verdict is not None]
        if not given:
            raise Unjudged(f"none of {len(choices)} replies says {yes!r} or {no!r}")
        return float(np.mean(given))


def choices_of(reply: Reply) -> tuple[Choice, ...]:
    """The sampled replies, at least one."""
    if reply.refusal is not None:
        raise Unjudged(f"the server refused: {reply.refusal}", refused=True)
    if not reply.choices:
        raise Unjudged("the server gave no reply")
    return reply.choices


def tokens_of(reply: Reply, instead: str = "this method needs them") -> tuple[Token, ...]:
    """The tokens of the first reply with their log-probabilities."""
    tokens = choices_of(reply)[0].tokens
    if tokens is None:
        raise Unjudged(f"the server returns no log-probabilities; {instead}")
    if not tokens:
        raise Unjudged("the reply is empty")
    return tokens


def same_word(token: str, word: str) -> bool:
    """Whether a token is a surface variant of a verdict word: case and white space around it do
    not matter, nor, for words of letters, punctuation around it (` Yes`, `yes`, `**YES`)."""
    token, word = token.strip(" \t\r\n▁Ġ").casefold(), word.strip().casefold()
    if any(c.isalnum() for c in word):
        token = re.sub(r"^\W+|\W+$", "", token)
    return token == word


def verdict_probability(tokens: Sequence[Token], yes: str, no: str) -> float:
    """p(yes) / (p(yes) + p(no)) at the last token that is a verdict, or at the first token when
    none is.

    The probability of a word is the sum over its surface variants among the alternatives
    returned. A word that is not among them gets the smallest probability that is.
    """
    verdicts = [t for t in tokens if same_word(t.text, yes) or same_word(t.text, no)]
    token = verdicts[-1] if verdicts else tokens[0]
    top = {token.text: token.logprob, **token.top}
    p_yes, p_no = (
        sum(math.exp(logprob) for text, logprob in top.items() if same_word(text, word))
        for word in (yes, no)
    )
    if not p_yes + p_no >= LEAST_MASS:  # a server may send NaN
        raise Unjudged(
            f"the reply is neither {yes!r} nor {no!r} (together {p_yes + p_no:.1%}): a thinking "
            "model must be told not to think, or be sampled"
        )
    if len(top) == 1:
        raise Unjudged("the server returns no alternatives to its token; sample the judge instead")
    least = math.exp(min(top.values()))
    p_yes, p_no = p_yes or least, p_no or least
    return p_yes / (p_yes + p_no)


def read_verdict(text: str, yes: str, no: str, data: Iterable[str]) -> bool | None:
    """What the last verdict word says, outside of quotations of the data; None without one."""
    yes, no = yes.strip(), no.strip()
    words = "|".join(_whole(word) for word in sorted((yes, no), key=len, reverse=True))
    for reply in own_words(text, data):
        found = re.findall(words, reply, re.IGNORECASE)
        if found:
            return found[-1].casefold() == yes.casefold()
    return None


def read_score(text: str, data: Iterable[str]) -> float:
    """The last `Score: n` with n from 0 to 100, outside of quotations of the data, as n / 100."""
    for reply in own_words(text, data):
        found = re.findall(
            r"\bscore\b(?: *\([^)\n]*\))?[\s*_:=`$]*(-?\d+(?:\.\d+)?)", reply, re.IGNORECASE
        )
        if found:
            score = float(found[-1])
            if not 0 <= score <= 100:
                raise Unjudged(f"the score {found[-1]} is not between 0 and 100")
            return score / 100
    raise Unjudged("the reply holds no 'Score: n'")


def own_words(reply: str, data: Iterable[str]) -> tuple[str, str]:
    """What the judge says itself, without and with quotations in quotation marks.

    Left out are its thoughts (`<think>`), blocks between tags `<problem>` or `<solution>`, and
    lines that are lines of the data, but never the last line of a reply: there the verdict stands.
    """
    reply = re.sub(r"(?s)^.*</think>|<think>.*$", "", reply)
    reply = re.sub(r"(?is)<(problem|solution)>.*?</\1>", "", reply).strip()
    data = list(data)
    echoed = {line.strip() for text in data for line in text.splitlines()}
    lines = reply.splitlines()
    own = [line for line in lines[:-1] if line.strip(" \t>") not in echoed] + lines[-1:]

    def unless_quoted(found: re.Match[str]) -> str:
        return "" if any(found[0][1:-1].strip() in text for text in data) else found[0]

    said = "\n".join(own)
    return re.sub(r"\"[^\"\n]+\"|“[^”\n]+”|`[^`\n]+`|'[^'\n]+'", unless_quoted, said), said


def _whole(word: str) -> str:
    """A pattern for the word, not as part of a longer one."""
    before = r"(?<!\w)" if word[:1].isalnum() else ""
    after = r"(?!\w)" if word[-1:].isalnum() else ""
    return before + re.escape(word) + after

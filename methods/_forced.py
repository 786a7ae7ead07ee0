r"""Early answers: a forced text after the prefix makes the model state its answer now.

How a reply is read depends on the answer style of the model (`ModelSpec.answer`):

    math    the reply up to the first unmatched `}`; no answer when it hesitates (HESITATION)
    choice  a letter at its beginning
    line    an integer that fills the rest of the line, since a model that goes on with an operator
            has begun another formula instead of answering; `A` is put on a line of its own

The suffix for `math`, reading up to the brace, and the words of hesitation are Dynasor's
(Certaindex, arXiv 2412.20993, https://arxiv.org/abs/2412.20993). Ours: the other two styles, and
that hesitation is looked for in whole words, where Dynasor looks for substrings ("not" has "no").
The embedded model was never trained to answer early: a third to a half of its replies hold no
answer, and few are right before the last steps of a path.

A settled path is not probed: nothing follows its end-of-text token, so that its answer is the one
in its text. With style `line`, a path is also settled from the first digit of its answer line on.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prunebench.backend import Backend, Probe
from prunebench.errors import ConfigError
from prunebench.grading import Style, as_style, extract, style_of_text
from prunebench.method import Context, Path, PathGroup, SignalGenerator

BOX = "... Oh, I suddenly got the answer to the whole problem, **Final Answer**\n\n\\[ \\boxed{"
SUFFIX = {Style.MATH: BOX, Style.CHOICE: BOX, Style.LINE: "A"}
HESITATION = re.compile(r"\b(?:wait|hold|but|okay|no|hmm)\b", re.IGNORECASE)
_OPENS = {
    Style.MATH: re.compile(r"\\(?:boxed|fbox)\s*\{"),
    Style.CHOICE: re.compile(r"(?<![A-Za-z])(?=[A-Za-z](?![A-Za-z]))"),
    Style.LINE: re.compile(r"^A(?=-?\d)", re.MULTILINE),
}
"""Where an answer begins in a text of one's own."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a path answers when it has to.

    Attributes
    ----------
    value : the answer in the normal form of `grading.extract`, None without one.
    text : as the path wrote it.
    logprob : mean log-probability of its tokens in the forced reply, nats; -inf without an answer,
        NaN for the answer of a settled path (see `own_logprob`).
    """

    value: str | None
    text: str = ""
    logprob: float = -np.inf


@dataclass(kw_only=True)
class AnswerForcing(SignalGenerator):
    """A method that reads early answers."""

    suffix: str = ""
    max_new_tokens: int = 20

    def __post_init__(self) -> None:
        check_positive(self, "max_new_tokens")

    def setup(self, context: Context) -> None:
        self.backend_: Backend = context.backend
        self.ledger_ = context.ledger
        self.style_ = style_of_text(as_style(context.backend.spec.answer or Style.LINE))

    def settled(self, path: Path) -> bool:
        """Whether the answer is the one in the text."""
        last_line = path.text.rstrip().rpartition("\n")[2]
        in_answer = self.style_ is Style.LINE and extract(last_line, Style.LINE) is not None
        return path.finished or in_answer

    def forced_text(self, path: Path) -> str:
        """The suffix for a path."""
        if self.suffix or self.style_ is not Style.LINE:
            return self.suffix or SUFFIX[self.style_]
        return "A" if path.text.endswith("\n") else "\nA"

    def prior_answers(self, group: PathGroup, n_samples: int, temperature: float) -> list[Answer]:
        """Answers that are forced after the prompt, before the model has reasoned at all."""
        alone = self.backend_.encode(group.prompt_ids, [np.zeros(0, np.int32)])
        [replies] = alone.probe(
            [self.backend_.tokenize(self.suffix or SUFFIX[self.style_])],
            self.max_new_tokens,
            n_samples=n_samples,
            temperature=temperature,
            seed=group.seed,
        )
        self.ledger_.add(verifier_tokens=alone.forwarded_tokens, probe_tokens=alone.sampled_tokens)
        return [self.read(reply) for reply in replies]

    def answers(
        self, group: PathGroup, n_samples: int = 1, temperature: float = 0.0
    ) -> list[list[Answer]]:
        """`n_samples` early answers per path, settled ones repeated; none for an empty prefix."""
        suffixes = [
            self.backend_.tokenize(self.forced_text(path))
            if path.n_tokens and not self.settled(path)
            else None
            for path in group.paths
        ]
        replies = group.internals.probe(
            suffixes,
            self.max_new_tokens,
            n_samples=n_samples,
            temperature=temperature,
            seed=group.seed,
        )
        found = []
        for path, suffix, own in zip(group.paths, suffixes, replies, strict=True):
            if suffix is not None:
                found.append([self.read(reply) for reply in own])
            else:
                value = extract(path.text, self.style_)
                settled = Answer(value=value, text=value or "", logprob=np.nan)
                found.append([settled] * n_samples if path.n_tokens else [])
        return found

    def read(self, reply: Probe) -> Answer:
        """The answer in a forced reply."""
        ids = np.asarray(reply.token_ids)
        text = self.backend_.decode(ids)
        value, end = parse(text, self.style_)
        if value is None or (self.style_ is Style.MATH and HESITATION.search(text)):
            return Answer(value=None)
        start = len(text[:end]) - len(text[:end].lstrip())
        first, stop = token_span(self.backend_.decode, ids, start, end)
        if self.style_ is Style.LINE and stop == len(ids):
            return Answer(value=None)  # cut off, so there may be more digits
        logprob = mean(reply.logprobs[first:stop])
        return Answer(value=value, text=text[start:end], logprob=logprob)

    def own_logprob(self, path: Path) -> float:
        """Mean log-probability of the answer's tokens in the text of a settled path; -inf without
        an answer."""
        logprobs, answer = path.logprobs, extract(path.text, self.style_)
        if answer is None:
            return -np.inf
        for opening in reversed(list(_OPENS[self.style_].finditer(path.text))):
            start = opening.end()
            value, length = parse(path.text[start:], self.style_)
            if value == answer:
                end = start + length
                first, stop = token_span(self.backend_.decode, path.token_ids, start, end)
                return mean(logprobs[first:stop])
        return path.unscored("the tokens of its own answer were not found")


def mean(values: np.ndarray) -> float:
    """Mean in float64."""
    return float(np.mean(values, dtype=np.float64))


def parse(reply: str, style: Style) -> tuple[str | None, int]:
    """The answer that a reply begins with, in normal form, and where it ends in the reply."""
    if style is Style.MATH:
        end = _unmatched_brace(reply)
        return (extract(f"\\boxed{{{reply[:end]}}}", style), end) if end >= 0 else (None, 0)
    if style is Style.CHOICE:
        wrapped = r"\W*?(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\W*([A-Za-z])(?! ?[A-Za-z'])"
        found = re.match(wrapped, reply)
        return (found[1].upper(), found.end()) if found else (None, 0)
    found = re.match(r"-?\d+(?=[ \t\r]*(?:\n|$))", reply, re.ASCII)
    return (extract(f"A{found[0]}", style), found.end()) if found else (None, 0)


def _unmatched_brace(text: str) -> int:
    """Where the first `}` without a `{` stands, or -1; escaped braces do not count."""
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth < 0:
            return brace.start()
    return -1


def token_span(
    decode: Callable[[np.ndarray], str], ids: np.ndarray, start: int, end: int
) -> tuple[int, int]:
    """The first token of the characters `start:end` and the one after the last."""
    counts = range(len(ids) + 1)

    def n_characters(n_tokens: int) -> int:
        return len(decode(ids[:n_tokens]))

    return bisect_right(counts, start, key=n_characters) - 1, bisect_left(
        counts, end, key=n_characters
    )


def check_positive(method: SignalGenerator, *names: str) -> None:
    """Raise `ConfigError` for an option that is not above 0."""
    for name in names:
        if not getattr(method, name) > 0:
            raise ConfigError(
                f"The '{name}' parameter of {type(method).__name__} must be above 0. "
                f"Got {getattr(method, name)!r} instead."
            )

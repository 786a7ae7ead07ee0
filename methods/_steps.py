r"""Cuts the text of a path into steps or thoughts. Knows no method and no model.

A step ends at a separator. Models of the DeepSeek-R1 and Qwen families put a blank line between
steps ("\n\n"), the embedded model `tiny` writes one step per line ("\n"); `step_mark_of` chooses
one separator for a whole group, so that the steps of its paths can be compared.

A thought is longer: it is opened by a pivot phrase ("Wait", "Alternatively") at the beginning of a
line or sentence and reaches to the next one. PIVOTS is our list: words that Slim-SC (arXiv
2509.13990) and studies of backtracking (arXiv 2505.17813) look for.
"""

import re
from collections.abc import Iterable
from functools import cache

PIVOTS = (
    "wait",
    "hmm+",
    "hold on",
    "but",
    "however",
    "alternatively",
    "another",
    "actually",
    "let me",
    "let's",
    "going back",
    "not sure",
    "maybe",
    "perhaps",
)
"""Regular expressions of the phrases that open a thought, in lower case; case does not matter."""

LEAST_WORDS = 20  # Slim-SC asks for 25 tokens; a word has about 1.3


def step_mark_of(texts: Iterable[str], mark: str = "") -> str:
    r"""The separator of steps for a group of texts.

    `mark` itself unless it is empty; a backslash and n in it, as typed on a command line, stand
    for a line break. Empty means: a blank line if any of the texts has one, else a line break.
    """
    if mark:
        return mark.replace("\\n", "\n")
    return "\n\n" if any("\n\n" in text.strip() for text in texts) else "\n"


def split_steps(text: str, mark: str = "\n\n") -> list[str]:
    """The steps between the marks, in order, without those that are blank or the space around."""
    return [step for step in map(str.strip, text.split(mark)) if step]


def complete_steps(text: str, mark: str = "\n\n") -> tuple[list[str], str]:
    """The steps that are followed by a mark, and the rest after the last mark, as it stands.

    The rest is unfinished when the checkpoint cut it, and the last step when the path is finished.
    """
    done, found, rest = text.rpartition(mark)
    return (split_steps(done, mark) if found else []), rest


def split_thoughts(
    text: str, phrases: tuple[str, ...] = PIVOTS, least_words: int = LEAST_WORDS
) -> list[str]:
    """The thoughts opened by pivot phrases, in order; what stands before the first is one too.

    A thought of fewer than `least_words` words goes on past the next pivot; a last one that is too
    short belongs to the one before. Without a pivot the whole text is one thought; a blank text
    has none.
    """
    starts = [0, *(m.start() for m in _pivots(phrases).finditer(text) if m.start() > 0)]
    thoughts: list[str] = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        if thoughts and _n_words(thoughts[-1]) < least_words:
            thoughts[-1] += text[start:end]
        else:
            thoughts.append(text[start:end])
    if len(thoughts) > 1 and _n_words(thoughts[-1]) < least_words:
        last = thoughts.pop()
        thoughts[-1] += last
    return [thought for thought in map(str.strip, thoughts) if thought]


def count_pivots(text: str, phrases: tuple[str, ...] = PIVOTS) -> int:
    """How many lines or sentences begin with a pivot phrase."""
    return sum(1 for _ in _pivots(phrases).finditer(text))


def pivot_pattern(phrases: tuple[str, ...] = PIVOTS) -> str:
    """A regular expression for a phrase that begins a line or follows the end of a sentence; to be
    used with re.IGNORECASE and re.MULTILINE."""
    return rf"(?:^|(?<=[.!?]\s))[ \t]*(?:{'|'.join(phrases)})\b"


def strip_question(text: str, question: str) -> str:
    """The text without the question, if it begins with it and goes on after white space.

    White space may differ. A text that only restates the question stays as it is.
    """
    restated = r"\s+".join(map(re.escape, question.split()))
    found = re.match(rf"\s*{restated}(?=\s)", text) if restated else None
    rest = text[found.end() :] if found else ""
    return rest if rest.strip() else text


def _n_words(text: str) -> int:
    return len(text.split())


@cache
def _pivots(phrases: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(pivot_pattern(phrases), re.IGNORECASE | re.MULTILINE)

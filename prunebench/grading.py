"""Reads the answer out of a path's text and compares it with the gold answer.

A model that thinks aloud closes its thoughts with `</think>`. Its answer is the last one after the
last such tag, or, when none stands there, the last one before it: the answer may be boxed in the
thoughts and repeated in words. A path that stopped inside its thoughts has the last answer of the
whole text.

Knows text only: no dataset, no model, no token. A path whose answer cannot be read or compared is
an unanswered path, never a crash.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from enum import StrEnum

from prunebench.errors import ConfigError

THINK_START, THINK_END = "<think>", "</think>"
TIMEOUT_S = 5
"""Seconds that one symbolic comparison may take before it counts as unequal."""
LONGEST_ANSWER = 400
"""Longer expressions are compared as text only: symbolic algebra on them can take forever."""


class Style(StrEnum):
    """How answers are written in a text."""

    LINE = "line"  # a line `A<integer>`: the embedded arithmetic model
    MATH = "math"  # the last \\boxed{...}
    CHOICE = "choice"  # a letter: "ANSWER": "C", or \\boxed{C}


def as_style(style: str) -> Style:
    """The style of that name. Raises `ConfigError` naming the known ones."""
    try:
        return Style(style)
    except ValueError:
        known = ", ".join(s.value for s in Style)
        raise ConfigError(
            f"The answer style must be one of: {known}. Got {style!r} instead. Set it with "
            f"'model.answer=' or in the dataset's configuration."
        ) from None


def extract(text: str, style: str) -> str | None:
    """The answer that `text` gives, in a normal form, or None when it gives none."""
    read = _EXTRACT[as_style(style)]
    thoughts, _, rest = text.rpartition(THINK_END)
    return read(rest) or read(thoughts)


def equal(answer: str, gold: str, style: str) -> bool:
    """Whether `answer` (from `extract`) means the same as `gold`.

    `math` compares symbolically with math-verify (https://github.com/huggingface/Math-Verify);
    what it cannot decide within `TIMEOUT_S` counts as unequal.
    """
    match as_style(style):
        case Style.LINE:
            return _integer(answer) is not None and _integer(answer) == _integer(gold)
        case Style.CHOICE:
            return _letter(answer) is not None and _letter(answer) == _letter(gold)
        case Style.MATH:
            if _tidy(answer) == _tidy(gold):
                return True
            if max(len(answer), len(gold)) > LONGEST_ANSWER:
                return False
            return _within_time(lambda limit: _same_value(answer, gold, limit))


def grade(text: str, gold: str, style: str) -> tuple[str | None, bool]:
    """`(answer, correct)` of a complete text. A fault while grading counts as no answer."""
    style = as_style(style)
    try:
        answer = extract(text, style)
        return answer, answer is not None and equal(answer, gold, style)
    except Exception:  # parsers meet arbitrary model output; one bad text must not end a run
        return None, False


# ---- line


def _integer(text: str) -> str | None:
    """Decimal digits without leading zeros; as text, since int() refuses very long numbers."""
    match = re.fullmatch(r"\s*(-?)0*(\d+)\s*", text, re.ASCII)
    if match is None:
        return None
    return "0" if match[2] == "0" else match[1] + match[2]


def _extract_line(text: str) -> str | None:
    found = re.findall(r"^A(-?\d+)[ \t\r]*$", text, re.MULTILINE | re.ASCII)
    return _integer(found[-1]) if found else None


# ---- math


def _boxes(text: str) -> list[tuple[int, str]]:
    """Position and content of every \\boxed{...} whose braces balance, left to right."""
    found = []
    for start in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        depth, i = 1, start.end()
        while i < len(text) and depth:
            if text[i] == "\\":
                i += 1  # an escaped brace does not count
            elif text[i] in "{}":
                depth += 1 if text[i] == "{" else -1
            i += 1
        if depth == 0:
            found.append((start.start(), text[start.end() : i - 1]))
    return found


def _tidy(answer: str) -> str:
    """One spelling for answers that differ in typesetting only."""
    answer = re.sub(r"\\(?:left|right|displaystyle|,|;|:|!|\s)(?![a-zA-Z])", "", answer)
    answer = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", answer)
    answer = answer.replace("{,}", "").replace("\\$", "").strip().strip("$").strip()
    answer = re.sub(r"\s+", " ", answer).rstrip(".").strip()
    return _integer(answer) or answer


def _extract_math(text: str) -> str | None:
    answers = [tidy for _, content in _boxes(text) if (tidy := _tidy(content))]
    return answers[-1] if answers else None


def _same_value(answer: str, gold: str, limit: int | None) -> bool:
    from math_verify import parse, verify

    # It logs a warning for every expression that it cannot read, and one for a missing limit.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    left, right = (
        parse(f"\\boxed{{{side}}}", parsing_timeout=limit)  # type: ignore[arg-type]  # None: no limit
        for side in (gold, answer)
    )
    return bool(left and right and verify(left, right, timeout_seconds=limit))


def _within_time(compare: Callable[[int | None], bool]) -> bool:
    """Run `compare` with a time limit, in any thread.

    math-verify interrupts itself with a signal, which only the main thread can receive. Elsewhere
    the comparison runs in a thread of its own, which is left behind when it takes too long.
    """
    if threading.current_thread() is threading.main_thread():
        return compare(TIMEOUT_S)
    result: list[bool] = []

    def work() -> None:
        try:
            result.append(compare(None))
        except Exception:  # the same verdict as a timeout: could not be shown to be equal
            result.append(False)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return bool(result and result[0])


# ---- choice


def _letter(text: str) -> str | None:
    match = re.fullmatch(
        r"\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*\(?([A-Za-z])\)?\s*\}?\.?\s*", text
    )
    return match[1].upper() if match else None


def _extract_choice(text: str) -> str | None:
    found = [(at, letter) for at, content in _boxes(text) if (letter := _letter(content))]
    # The key may be quoted, bold or bare; the letter must not be the first letter of a word.
    named = r"""\banswer\b["'*\s]*[:=]["'*\s]*\(?([A-Z])(?![A-Za-z])"""
    for match in re.finditer(named, text, re.IGNORECASE):
        found.append((match.start(), match[1].upper()))
    return max(found)[1] if found else None


_EXTRACT: dict[Style, Callable[[str], str | None]] = {
    Style.LINE: _extract_line,
    Style.MATH: _extract_math,
    Style.CHOICE: _extract_choice,
}

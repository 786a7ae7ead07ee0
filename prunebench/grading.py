"""Reads the answer out of a path's text and compares it with the gold answer.

A model that thinks aloud closes its thoughts with `</think>`. Its answer is the last one after the
last such tag, or, when none stands there, the last one before it: the answer may be boxed in the
thoughts and repeated in words. A path that stopped inside its thoughts has the last answer of the
whole text. A box that is empty or never closed is no answer.

Knows text only: no dataset, no model, no token. A path whose answer cannot be read is unanswered,
one whose answer cannot be compared within `TIMEOUT_S` is wrong.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

from prunebench.errors import ConfigError, UnknownName
from prunebench.mathequal import Comparer

THINK_START, THINK_END = "<think>", "</think>"
TIMEOUT_S = 10
"""Seconds that one symbolic comparison may take before it counts as unequal."""
LONGEST_ANSWER = 400
"""Longer expressions are compared as text only: symbolic algebra on them can take forever."""


class Style(StrEnum):
    """How answers are written in a text."""

    LINE = "line"  # a line `A<integer>`: the embedded arithmetic model
    MATH = "math"  # the last \\boxed{...}
    CHOICE = "choice"  # a letter: "ANSWER": "C", or \\boxed{C}
    INTEGER = "integer"  # the last \\boxed{...}; without any box the last integer


class GradingFault(Exception):
    """A user's grading function failed or returned something else than a verdict. The problem at
    hand fails with this reason."""


def as_style(style: str) -> str:
    """`style`, checked: the name of a `Style`, or `module:function` of a user's own function.

    Raises `ConfigError` naming the known styles, or what is wrong with the function.
    """
    if ":" in style:
        _function(style)
        return style
    try:
        return Style(style)
    except ValueError:
        known = ", ".join(s.value for s in Style)
        raise ConfigError(
            f"The answer style must be one of: {known}, or a function of your own as "
            f"'package.module:function'. Got {style!r} instead. Set it with 'dataset.grading=' or "
            f"'model.answer='."
        ) from None


def is_function(style: str | None) -> bool:
    """Whether a style is a user's own function."""
    return ":" in (style or "")


def style_of_text(style: str) -> Style:
    """The style by which a piece of text is read where there is no gold answer to hand to a
    function: `math` for functions, and for integers, which stand in a box too."""
    built_in = None if is_function(style) else Style(style)
    return Style.MATH if built_in in (None, Style.INTEGER) else built_in


def identity(style: str) -> dict[str, str]:
    """What determines the verdicts of a style beside its name: a hash of the source file of a
    user's function. Empty for the styles that prunebench defines."""
    if not is_function(style):
        return {}
    module = inspect.getmodule(_function(style))
    file = getattr(module, "__file__", None)
    content = Path(file).read_bytes() if file else b""
    return {"grader_source": hashlib.sha256(content).hexdigest()[:16]}


def extract(text: str, style: str) -> str | None:
    """The answer that `text` gives, in a normal form, or None when it gives none."""
    style = style_of_text(style) if is_function(style) else as_style(style)
    thoughts, _, rest = text.rpartition(THINK_END)
    if style == Style.INTEGER and "\\boxed" not in text and "\\fbox" not in text:
        return _last_integer(rest)
    read = _EXTRACT[Style(style)]
    return read(rest) or read(thoughts)


def equal(answer: str, gold: str, style: str) -> bool:
    """Whether `answer` (from `extract`) means the same as `gold`.

    `math` compares symbolically (`prunebench/mathequal.py`); what cannot be decided within
    `TIMEOUT_S` counts as unequal.
    """
    match as_style(style):
        case Style.LINE:
            return _integer(answer) is not None and _integer(answer) == _integer(gold)
        case Style.INTEGER:
            return _whole(answer) is not None and _whole(answer) == _whole(gold)
        case Style.CHOICE:
            return _letter(answer) is not None and _letter(answer) == _letter(gold)
        case Style.MATH:
            answer, gold = _tidy(answer), _tidy(gold)
            if answer == gold:
                return True
            if max(len(answer), len(gold)) > LONGEST_ANSWER:
                return False
            if _integer(answer) and _integer(gold):
                return False  # both in normal form
            return _compared(answer, gold)
        case function:
            return _verdict(function, f"\\boxed{{{answer}}}", gold)[1]


def grade(text: str, gold: str, style: str) -> tuple[str | None, bool]:
    """`(answer, correct)` of a complete text.

    Raises `GradingFault` when a user's function fails.
    """
    style = as_style(style)
    if is_function(style):
        return _verdict(style, text, gold)
    answer = extract(text, style)
    return answer, answer is not None and equal(answer, gold, style)


def gold_fault(gold: str, style: str) -> str | None:
    """Why `gold` cannot be the gold answer of a style, None when it can."""
    reads = {
        Style.LINE: (_integer, "an integer"),
        Style.INTEGER: (_whole, "an integer"),
        Style.CHOICE: (_letter, "one letter"),
    }
    read, expected = reads.get(style, (None, ""))  # type: ignore[call-overload]  # a Style is a str
    return f"must be {expected}" if read is not None and read(gold) is None else None


# ---- a user's function


@functools.cache
def _function(style: str) -> Callable[[str, str], Any]:
    """The function at `package.module:function`, found where Python looks or in the current
    folder."""
    module_name, _, name = style.partition(":")
    what = f"The grading function {style!r} cannot be used"
    if not module_name or not name.isidentifier():
        raise ConfigError(f"{what}: write it as 'package.module:function'.")
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's own module may raise anything
        raise ConfigError(
            f"{what}: importing {module_name!r} gave {type(error).__name__}: {error}. The module "
            f"must lie in the current folder or be installed."
        ) from error
    if not hasattr(module, name):
        functions = [n for n, f in vars(module).items() if callable(f) and n[:1] != "_"]
        raise UnknownName(f"function of {module_name}", name, functions)
    function = getattr(module, name)
    if not callable(function):
        raise ConfigError(f"{what}: it is a {type(function).__name__}, not a function.")
    return function


def _verdict(style: str, text: str, gold: str) -> tuple[str | None, bool]:
    """What a user's function says of a text. A right path without an answer votes for the gold
    answer; a function that returns only a verdict gets the last box as the answer."""
    try:
        verdict = _function(style)(text, gold)
    except ConfigError:
        raise
    except Exception as error:
        raise GradingFault(
            f"the grading function {style!r} raised {type(error).__name__}: {error}"
        ) from error
    if isinstance(verdict, bool):
        verdict = (extract(text, Style.MATH), verdict)
    match verdict:
        case (str() | None as answer, bool() as correct):
            return answer or (gold if correct else None), correct
    raise GradingFault(
        f"the grading function {style!r} must return True or False, or (answer, True or False) "
        f"with the answer as text or None. It returned {verdict!r}"
    )


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
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", answer, re.ASCII):
        answer = answer.replace(",", "")
    return _integer(answer) or answer


def _extract_math(text: str) -> str | None:
    answers = [tidy for _, content in _boxes(text) if (tidy := _tidy(content))]
    return answers[-1] if answers else None


_COMPARER = Comparer()


@functools.lru_cache(maxsize=1 << 14)
def _compared(answer: str, gold: str) -> bool:
    """Many paths give the same answer, which is compared once."""
    return _COMPARER.same(answer, gold, TIMEOUT_S)


# ---- integer

_INTEGER = r"[-+]?(?:\d{1,3}(?:[, ]\d{3})+|\d+)(?:\.0+)?"


def _whole(text: str) -> str | None:
    """An integer with or without separators of thousands, sign, leading zeros, `.0` and dollar
    sign, as decimal digits; None for anything else."""
    text = re.sub(r"\\[,;:!]", "", text.replace("{,}", "").replace("\\$", "").replace("−", "-"))
    text = text.strip().strip("$").strip().removesuffix(".")
    if not re.fullmatch(_INTEGER, text, re.ASCII):
        return None
    return _integer(re.sub(r"[, +]|\.0+$", "", text))


def _extract_integer(text: str) -> str | None:
    answer = _extract_math(text)
    return None if answer is None else _whole(answer) or answer


def _last_integer(text: str) -> str | None:
    """The last integer that stands alone: no part of a word, a fraction, a power or a decimal."""
    alone = rf"(?<![\w.,^/]){_INTEGER.replace('[, ]', ',')}(?![\w^]|[.,/]\d)"
    found = re.findall(alone, text.replace("{,}", "").replace("−", "-"), re.ASCII)
    return _whole(found[-1]) if found else None


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
    Style.INTEGER: _extract_integer,
}

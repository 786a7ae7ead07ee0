"""Whether two mathematical answers mean the same: math-verify, with rules where it goes wrong.

Knows two short LaTeX expressions and nothing else. The comparison can hang or eat memory (symbolic
algebra; powers of powers), and no signal interrupts a large power. So `Comparer` runs this file in
a process of its own, asks it over pipes, and kills it when a reply takes too long. That holds in
every thread and every process, daemons included.

Math-Verify: https://github.com/huggingface/Math-Verify
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from fractions import Fraction

START_S = 120
"""Seconds that the process may take to load; a slow disk is no reason to give a verdict."""
MEMORY = 4 << 30
"""Bytes of address space of the process."""
LONGEST_LIST = 12
"""Longer lists are compared by math-verify at once."""

_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?", re.ASCII)
_BASE = re.compile(r"\(?([0-9A-Za-z]+)\)?_\{?(\d+)\}?")
_PERCENT = re.compile(r"(.+?)\s*\\?%")
_TEXT = re.compile(r"\\(?:text|textrm|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_BETWEEN = re.compile(r"\s*(?:\\(?:text|mathrm|mbox)\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*")
_ALIASES = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "km": "kilometer kilometre",
    "m": "meter metre",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "kg": "kilogram",
    "g": "gram",
    "s": "sec second",
    "min": "minute",
    "h": "hr hour",
    "day": "",
    "week": "",
    "year": "",
    "cent": "¢",
    "dollar": "",
    "degree": "",
    "unit": "",
}
_UNIT = {name: unit for unit, others in _ALIASES.items() for name in (unit, *others.split())}
_BARE_UNIT = re.compile(r"([-+]?[\d.,]+)\s*((?:(?:square|cubic)\s+)?[A-Za-z¢]+)(?:\^\{?[23]\}?)?")


def same_value(answer: str, gold: str) -> bool:
    """Whether both mean the same. Symmetric; not transitive where a percentage is involved.

    Exact numbers are compared exactly, an exact value with a decimal to six digits. Tuples and
    intervals keep their order and their kind of bracket, sets and bare lists may be in any order. A
    unit that only one side names is ignored, two different units differ. `50\\%` equals both `50`
    and `0.5`, because datasets write the answer to "what percent" either way. `17_8` equals `17`
    (the base is often left out), but not `17_9`.
    """
    answer, gold = _plain(answer), _plain(gold)
    if answer == gold:
        return True
    exact = _exact(answer), _exact(gold)
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1]
    percent = _PERCENT.fullmatch(answer), _PERCENT.fullmatch(gold)
    if percent[0] and percent[1]:
        return same_value(percent[0][1], percent[1][1])
    if percent[0] or percent[1]:  # math-verify 0.9 cannot read a percentage in a box
        share, other = (percent[0], gold) if percent[0] else (percent[1], answer)
        assert share is not None
        return same_value(share[1], other) or same_value(f"\\frac{{{share[1]}}}{{100}}", other)
    based = _BASE.fullmatch(answer), _BASE.fullmatch(gold)
    if based[0] and based[1]:  # math-verify drops the base of both
        return _in_base(*based[0].groups()) == _in_base(*based[1].groups())
    answer, unit = _without_unit(answer)
    gold, other_unit = _without_unit(gold)
    if unit and other_unit and unit != other_unit:  # math-verify drops units
        return False
    words = _TEXT.sub(r"\1", answer).strip(), _TEXT.sub(r"\1", gold).strip()
    if all(map(_is_word, words)):  # which math-verify multiplies letter by letter
        return words[0].lower() == words[1].lower()
    verdict = _same_items(answer, gold)
    return _verified(answer, gold) if verdict is None else verdict


def _plain(text: str) -> str:
    """One spelling for what math-verify reads in several ways or not at all."""
    text = text.strip().strip("$").strip().rstrip(".").strip()
    text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text) if _is_thousands(text) else text
    text = text.replace("−", "-").replace("\\lbrace", "\\{").replace("\\rbrace", "\\}")
    text = re.sub(r"\\[,;:!]", "", text)
    if text.count("\\pm") == 1 and "," not in text:  # only a leading \pm is understood
        signs = (("+", "-"), ("-", "+"))
        text = ", ".join(text.replace("\\pm", p).replace("\\mp", m) for p, m in signs)
    return text.strip()


def _is_thousands(text: str) -> bool:
    return _THOUSANDS.fullmatch(text) is not None


def _exact(text: str) -> Fraction | None:
    """The value of an integer, a decimal, or a number with an exponent (`1.5e3`)."""
    return Fraction(text) if _NUMBER.fullmatch(text) else None


def _in_base(digits: str, base: str) -> int | str:
    with suppress(ValueError):
        return int(digits, int(base))
    return f"{digits}_{base}"


def _without_unit(text: str) -> tuple[str, str]:
    """A number without the unit behind it, and that unit in one spelling; others as they are."""
    bare = _TEXT.sub(r" \1", text.replace("^\\circ", " degrees").replace("^{\\circ}", " degrees"))
    bare = re.sub(r"\\[ ,;!]|~", " ", bare).strip()
    match = _BARE_UNIT.fullmatch(bare)
    if match is None:
        return text, ""
    words = match[2].lower().split()
    name = words[-1] if words[-1] in _UNIT else words[-1].removesuffix("s")
    if name not in _UNIT and len(name) < 3:  # letters that may be variables
        return text, ""
    power = " ".join([*words[:-1], bare[match.end(2) :].strip("^{}")])
    number = match[1].replace(",", "") if _is_thousands(match[1]) else match[1]
    return number, f"{_UNIT[name]}{power.strip()}" if name in _UNIT else ""


def _is_word(text: str) -> bool:
    return text.isalpha() and (len(text) > 3 or (len(text) > 1 and text.isupper()))


def _parts(text: str) -> tuple[str, str, list[str]] | None:
    """Opening bracket, closing bracket and items of a tuple, an interval, a set or a bare list;
    None for what has no comma between items. Sets and bare lists have no brackets."""
    text = _BETWEEN.sub(",", text)
    opening = closing = ""
    if text.startswith("\\{") and text.endswith("\\}"):
        inner = text[2:-2]
    elif text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        opening, closing, inner = text[0], text[-1], text[1:-1]
    else:
        inner = text
    items = _split(inner)
    if items is None and inner != text:  # the brackets at the ends do not belong to each other
        opening, closing, items = "", "", _split(text)
    return (opening, closing, items) if items and len(items) > 1 else None


def _split(text: str) -> list[str] | None:
    """What stands between the commas outside brackets; None when brackets do not balance."""
    items, depth, start = [], 0, 0
    for i, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            items.append(text[start:i].strip())
            start = i + 1
        if depth < 0:
            return None
    items.append(text[start:].strip())
    return [item for item in items if item] if depth == 0 else None


def _same_items(answer: str, gold: str) -> bool | None:
    """The verdict on two lists, item by item; None when they are not both lists.

    math-verify reads (2, 1) as an interval or as a tuple, whichever is valid.
    """
    left, right = _parts(answer), _parts(gold)
    if left is None or right is None or max(len(left[2]), len(right[2])) > LONGEST_LIST:
        return None
    if left[:2] != right[:2] or len(left[2]) != len(right[2]):
        return False
    if left[0]:
        return all(map(same_value, left[2], right[2]))
    rest = list(right[2])
    for item in left[2]:
        match = next((i for i, other in enumerate(rest) if same_value(item, other)), None)
        if match is None:
            return False
        del rest[match]
    return True


def _verified(answer: str, gold: str) -> bool:
    from math_verify import parse, verify

    # It logs a warning for every expression that it cannot read, and one for a missing limit.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    left, right = (parse(f"\\boxed{{{s}}}", parsing_timeout=None) for s in (answer, gold))  # type: ignore[arg-type]
    if not left or not right:
        return False
    left, right = _imaginary(left), _imaginary(right)
    # Its comparison treats gold and answer differently.
    same = verify(left, right, timeout_seconds=None) or verify(right, left, timeout_seconds=None)
    return bool(same) and _near(left[0], right[0])


def _imaginary(parsed: list) -> list:
    """Expressions with the imaginary unit, where math-verify read a variable `i`."""
    from sympy import Basic, I

    return [
        p.subs({s: I for s in p.free_symbols if str(s) == "i"}) if isinstance(p, Basic) else p
        for p in parsed
    ]


def _near(left: object, right: object) -> bool:
    """Whether two values that were found equal to six decimals also are to six digits."""
    from sympy import Expr, Float

    if not (isinstance(left, Expr) and isinstance(right, Expr)):
        return True
    if not (left.has(Float) or right.has(Float)):
        return True
    try:
        x, y = complex(left.evalf()), complex(right.evalf())  # type: ignore[arg-type]
    except TypeError:  # it has variables
        return True
    return abs(x - y) <= 5e-6 * max(abs(x), abs(y))


# ---- the process


class Comparer:
    """Asks a process of its own, which starts with the first question and again after a kill.

    Safe to use from several threads, which wait for each other, and after a fork.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._forget)

    def same(self, answer: str, gold: str, seconds: float) -> bool:
        """`same_value`; what takes longer than `seconds`, or fails, is not equal."""
        question = json.dumps([answer, gold]).encode() + b"\n"
        with self._lock:
            reply = self._ask(question, seconds)
            if reply is None:
                self._kill()
            return reply == b"1"

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._kill()

    def _ask(self, question: bytes, seconds: float) -> bytes | None:
        """The reply, or None without one."""
        if self._process is None or self._process.poll() is not None:
            self._kill()
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(question)
            process.stdin.flush()
        except OSError:
            return None
        return self._read(seconds)

    def _start(self) -> None:
        # -P: this folder holds a types.py, which must not hide Python's own
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        if self._read(START_S) is None:
            self._kill()
            raise RuntimeError(
                "The process that compares answers with math-verify does not start. Try "
                "'python -c \"import math_verify\"'."
            )

    def _read(self, seconds: float) -> bytes | None:
        """One line of the process within the time."""
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, end, line = self._process.stdout.fileno(), time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return None
            piece = os.read(pipe, 64)
            if not piece:
                return None
            line += piece
        return line.strip()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        process.wait()

    def _forget(self) -> None:
        """In a forked child: the process belongs to the parent."""
        self._process, self._lock = None, threading.Lock()


def _serve() -> None:
    """Answer questions until the asking process is gone."""
    import resource
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the asking process's to handle
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    replies = os.dup(1)
    os.dup2(2, 1)  # nothing that a library prints is a reply
    with suppress(Exception):
        same_value("\\frac{1}{2}", "x")  # loads the library before the clock runs
    os.write(replies, b"ready\n")
    for question in sys.stdin:
        try:
            verdict = same_value(*json.loads(question))
        except Exception:  # parsers meet arbitrary text: what cannot be compared is not equal
            verdict = False
        os.write(replies, b"1\n" if verdict else b"0\n")


if __name__ == "__main__":
    _serve()

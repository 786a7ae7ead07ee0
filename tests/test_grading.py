"""Answers are read from text as the benchmark's prompts ask for them, and compared by meaning."""

from __future__ import annotations

import threading
import time
from fractions import Fraction

import pytest

from prunebench import grading
from prunebench.errors import ConfigError
from prunebench.grading import equal, extract, grade


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("7*11=77.\n77-3\n77-3=74.\nA74", "74"),
        ("A3\nsorry\nA-12\n", "-12"),
        ("A007", "7"),
        ("A-0", "0"),
        ("xA5", None),
        ("A5x", None),
        ("A 5", None),
        ("", None),
        ("A" + "9" * 5000, "9" * 5000),
    ],
)
def test_line_answers(text: str, answer: str | None) -> None:
    assert extract(text, "line") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{204}.", "204"),
        (r"first \boxed{1}, no, \boxed{\dfrac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left(1, \{2\}\right)}", r"(1, \{2\})"),
        (r"\boxed{3} and then \boxed{\frac{1}{2", "3"),
        (r"\boxed{}", None),
        (r"\boxed{ $1{,}234$ }", "1234"),
        (r"\boxed{025}", "25"),
        (r"\boxed{a\}}", r"a\}"),
        ("no box at all 42", None),
    ],
)
def test_math_answers(text: str, answer: str | None) -> None:
    assert extract(text, "math") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('I think "ANSWER": "C"', "C"),
        ('"ANSWER": "A" ... wait ... "ANSWER": "D".', "D"),
        (r'"ANSWER": "A" but finally \boxed{\text{B}}', "B"),
        (r'\boxed{B} but finally {"answer": "(C)"}', "C"),
        ("**ANSWER: E**", "E"),
        ("The answer: Because", None),
        ("A", None),
    ],
)
def test_choice_answers(text: str, answer: str | None) -> None:
    assert extract(text, "choice") == answer


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac{1}{2}", "1/2", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        (r"(1,2)", r"(2,1)", False),
        ("204", "205", False),
        ("x", r"\frac{", False),
    ],
)
def test_math_equality_is_symbolic(answer: str, gold: str, same: bool) -> None:
    assert equal(answer, gold, "math") is same


def test_fractions_agree_with_exact_arithmetic() -> None:
    values = [Fraction(a, b) for a in range(-3, 4) for b in (2, 4, 5)]
    for x in values[::3]:
        for y in values[::2]:
            answer = rf"\frac{{{2 * x.numerator}}}{{{2 * x.denominator}}}"
            assert equal(answer, str(y), "math") is (x == y)


def test_other_styles_compare_by_their_own_rules() -> None:
    assert equal("074", "74", "line")
    assert not equal("74", "-74", "line")
    assert equal("c", "(C)", "choice")
    assert not equal("C", "D", "choice")


def test_symbolic_equality_works_outside_the_main_thread() -> None:
    verdicts: list[bool] = []

    def work() -> None:
        verdicts.append(equal(r"\frac{2}{4}", "0.5", "math"))
        verdicts.append(equal(r"\frac{3}{4}", "0.5", "math"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert verdicts == [True, False]


def test_a_comparison_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(grading, "_same_value", lambda *_: time.sleep(3) or True)
    verdicts: list[bool] = []
    thread = threading.Thread(target=lambda: verdicts.append(equal("1+x", "2", "math")))
    start = time.perf_counter()
    thread.start()
    thread.join(2)
    assert verdicts == [False]
    assert time.perf_counter() - start < 2


def test_a_fault_while_grading_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert grade(r"\boxed{\frac{6}{3}}", "2", "math") == (r"\frac{6}{3}", True)

    def fail(*_: object) -> bool:
        raise RecursionError("too deep")

    monkeypatch.setattr(grading, "_same_value", fail)
    assert grade(r"\boxed{\frac{6}{3}}", "2", "math") == (None, False)
    assert grade("nothing", "2", "math") == (None, False)


@pytest.mark.parametrize("call", [lambda s: grade("A1", "1", s), lambda s: extract("A1", s)])
def test_unknown_style_names_the_styles(call) -> None:
    with pytest.raises(ConfigError, match=r"line, math, choice.*'sums'"):
        call("sums")

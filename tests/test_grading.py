"""Answers are read from text as the benchmark's prompts ask for them, and compared by meaning."""

from __future__ import annotations

import json
import math
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest

from prunebench import grading
from prunebench.errors import ConfigError
from prunebench.grading import GradingFault, equal, extract, grade
from prunebench.mathequal import Comparer

BENCHMARKS = Path(__file__).parent.parent.parent / "shared" / "data" / "benchmarks"


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
        (r"\boxed{3} and then \boxed{}", "3"),
        (r"\boxed{\frac{1}{2", None),
        (r"\boxed{1,234,567}", "1234567"),
        (r"\boxed{1,2}", "1,2"),
        (r"<think>\boxed{1}</think> so \boxed{2}, or \boxed{3}", "3"),
        (r"<think>\boxed{1}</think> It is one.", "1"),
        (r"<think>\boxed{1} or \boxed{2}", "2"),
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
        (r"\boxed{A or B}", None),
        (r"\boxed{A}, \boxed{B", "A"),
        ("", None),
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
    assert equal("1,000", "1000", "integer")
    assert not equal("1/2", "1/2", "integer")


@pytest.mark.parametrize(
    ("text", "answer", "gold", "right"),
    [
        (r"so \boxed{204}", "204", "204", True),
        (r"\boxed{1} or \boxed{025}", "25", "25", True),
        (r"\boxed{1,234}", "1234", "1234", True),
        (r"\boxed{1{,}234}", "1234", "1,234", True),
        (r"\boxed{\$18.00}", "18", "18", True),
        (r"\boxed{-7}", "-7", "7", False),
        (r"\boxed{+7}", "7", "7", True),
        (r"\boxed{-0}", "0", "0", True),
        (r"\boxed{12.5}", "12.5", "12", False),
        (r"\boxed{x}, which is 5", "x", "5", False),
        ("Each costs $2,500. That makes 5000.", "5000", "5,000", True),
        ("She has 3-2 apples, half of x2, 1/2 or 2.5 or 2^10; -4.", "-4", "-4", True),
        (r"about 17 of them: \boxed{1", None, "17", False),
        (r"<think>It is 12</think>It is 13.", "13", "13", True),
        (r"<think>\boxed{12}</think>Done in 3 steps.", "12", "12", True),
        ("none", None, "0", False),
        ("9" * 5000, "9" * 5000, "9" * 5000, True),
    ],
)
def test_integers_are_exact(text: str, answer: str | None, gold: str, right: bool) -> None:
    assert grade(text, gold, "integer") == (answer, right)


EQUAL = [
    ("2^{99}", "633825300114114700748351602688"),
    (r"2^{25} \cdot 26!", str(2**25 * math.factorial(26))),
    ("1/2", "0.5"),
    (r"\dfrac{3}{4}", r"\tfrac34"),
    (r"\frac{9 \sqrt{23}}{23}", r"\frac{9}{\sqrt{23}}"),
    (r"3+2\sqrt2", r"(1+\sqrt2)^2"),
    (r"\{1,2,3\}", r"\{3, 1, 2\}"),
    (
        r"2,3,\frac{3+i\sqrt{3}}{2},\frac{3-i\sqrt{3}}{2}",
        r"3,2,\frac{3-i\sqrt{3}}{2},\frac{3+i\sqrt{3}}{2}",
    ),
    (r"\frac{-1\pm\sqrt{17}}{2}", r"\frac{-1-\sqrt{17}}{2}, \frac{-1+\sqrt{17}}{2}"),
    (r"x=2 \text{ or } x=3", r"\{2,3\}"),
    (r"(1,2)\cup(3,4)", r"(3,4)\cup(1,2)"),
    (r"\{(1,2),(3,4)\}", r"\{(3,4),(1,2)\}"),
    ("1<x<2", "(1,2)"),
    (r"x \in [1,2]", "[1,2]"),
    ("1,234,567", "1234567"),
    (r"1\,234", "1{,}234"),
    (r"50\%", "50"),
    (r"50\%", r"\frac12"),
    (r"90^\circ", r"90\text{ degrees}"),
    (r"10\text{ cm}", "10"),
    (r"10\text{ cm}", r"10\text{ centimeters}"),
    ("5 dollars", r"\$5"),
    (r"12\text{ square units}", "12"),
    (r"\text{Monday}", "Monday"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    (r"\left(\frac{1}{2}, 3\right)", "(0.5,3)"),
    ("(x+1)^2", "x^2+2x+1"),
    ("ab", "ba"),
    ("x=5", "5"),
    ("1e5", "100000"),
    (r"1.5\times10^3", "1500"),
    (r"e^{i\pi}", "-1"),
    ("0.333333", r"\frac13"),
    (r"1\frac{1}{2}", "1.5"),
    ("204.", "$204$"),
    ("17_8", "17"),
]
UNEQUAL = [
    ("2^{99}", "633825300114114700748351602689"),
    ("2^{100}", "2^{100}+1"),
    ("1/2", "0.51"),
    (r"\frac13", "0.33"),
    ("0.0000001", "0.0000002"),
    ("0.0000001", r"3\cdot10^{-7}"),
    ("9", "9.000001"),
    ("3.14", r"\pi"),
    (r"3+2\sqrt2", r"3-2\sqrt2"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    ("1,1,2", "1,2"),
    ("(1,2)", "(2,1)"),
    ("(2,1)", "(5,3)"),
    ("(1,1)", "(2,2)"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(1,2]"),
    (r"[0,\infty)", r"(0,\infty)"),
    (r"(1,2)\cup[3,4]", r"(1,2)\cup(3,4]"),
    (r"\{(1,2),(3,4)\}", r"\{(2,1),(3,4)\}"),
    ("1,234", "1.234"),
    ("1,234", "(1,234)"),
    ("3,5", "3.5"),
    ("1,2", "12"),
    (r"50\%", "51"),
    (r"50\%", "0.05"),
    (r"90^\circ", "91"),
    (r"10\text{ cm}", r"10\text{ m}"),
    (r"3\text{ cm}^2", r"3\text{ cm}^3"),
    (r"12\text{ dollars}", r"12\text{ cents}"),
    (r"\text{Monday}", r"\text{Tuesday}"),
    (r"\text{East}", r"\text{Seat}"),
    ("ABC", "CAB"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
    ("x^2+1", "x^2-1"),
    ("x=5", "y=5"),
    (r"\pm2", "2"),
    ("4-i", "4+i"),
    ("17_8", "17_9"),
    ("5x", "5"),
    ("", "0"),
]


@pytest.mark.parametrize(("left", "right"), EQUAL)
def test_different_spellings_are_equal_both_ways(left: str, right: str) -> None:
    assert equal(left, right, "math")
    assert equal(right, left, "math")


@pytest.mark.parametrize(("left", "right"), UNEQUAL)
def test_near_misses_are_not_equal_either_way(left: str, right: str) -> None:
    assert not equal(left, right, "math")
    assert not equal(right, left, "math")


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmark files are not on this machine")
@pytest.mark.parametrize("name", ["aime_2024", "aime_2025", "brumo_2025", "hmmt_25"])
def test_every_gold_answer_equals_itself_and_no_other(name: str) -> None:
    golds = [row["answer"] for row in json.loads((BENCHMARKS / f"{name}.json").read_text())]
    assert len(golds) == 30
    for gold, other in zip(golds, golds[1:] + golds[:1], strict=True):
        text = rf"<think>\boxed{{7777}}</think>Therefore $\boxed{{{gold}}}$."
        assert grade(text, gold, "math")[1], gold
        assert grade(text.replace("frac", "dfrac"), gold, "math")[1], gold
        if gold.lstrip("0") != other.lstrip("0"):
            assert not grade(text, other, "math")[1], (gold, other)


HANGS = "9^{9^{9^{9}}}"
"""Its value does not fit into any memory, and no signal interrupts the attempt."""


def test_threads_share_one_comparing_process() -> None:
    pairs = [(rf"\frac{{{i}}}{{{2 * i}}}", "0.5" if i % 2 else "0.6") for i in range(1, 41)]
    with ThreadPoolExecutor(4) as threads:
        verdicts = list(threads.map(lambda pair: equal(*pair, "math"), pairs))
    assert verdicts == [i % 2 == 1 for i in range(1, 41)]


def test_a_comparison_that_hangs_is_given_up_and_the_next_works() -> None:
    comparer = Comparer()
    assert comparer.same(r"\sqrt{4}", "2", 60)
    first = comparer._process
    verdicts: list[bool] = []
    start = time.perf_counter()
    thread = threading.Thread(target=lambda: verdicts.append(comparer.same(HANGS, "7", 0.3)))
    thread.start()
    thread.join(30)
    assert verdicts == [False]
    assert time.perf_counter() - start < 5
    assert first is not None
    assert first.poll() is not None, "the process that hangs is ended"
    assert comparer.same(r"\sqrt{9}", "3", 60)
    comparer.close()


def test_a_comparing_process_that_dies_is_started_again() -> None:
    comparer = Comparer()
    assert comparer.same(r"\sqrt{4}", "2", 60)
    assert comparer._process is not None
    comparer._process.kill()
    comparer._process.wait()
    assert comparer.same(r"\sqrt{9}", "3", 60)
    comparer.close()
    assert comparer._process is None


def _verdicts(pipe) -> None:
    pipe.send([equal(r"\frac{2}{4}", "0.5", "math"), equal(r"\frac{3}{4}", "0.5", "math")])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_comparisons_work_in_worker_processes_that_are_daemons(method: str) -> None:
    assert equal(r"\frac{4}{8}", "0.5", "math")  # a forked child must not use the parent's pipes
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    worker = context.Process(target=_verdicts, args=(theirs,), daemon=True)
    worker.start()
    assert ours.poll(60)
    assert ours.recv() == [True, False]
    worker.join(10)
    assert worker.exitcode == 0
    assert equal(r"\frac{5}{10}", "0.5", "math")


def test_a_comparing_process_ends_with_the_process_that_asks() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_own_comparer, args=(theirs,))
    worker.start()
    assert ours.poll(60)
    process = ours.recv()
    worker.kill()
    worker.join()
    end = time.monotonic() + 10
    while _runs(process) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(process)


def _own_comparer(pipe) -> None:
    comparer = Comparer()
    comparer.same(r"\sqrt{4}", "2", 60)
    assert comparer._process is not None
    pipe.send(comparer._process.pid)
    time.sleep(60)


def _runs(process: int) -> bool:
    """Whether a process is there and not merely waiting to be reaped."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_thousand_gradings_take_no_second() -> None:
    equal("x", "y", "math")  # the process has started
    start = time.perf_counter()
    texts = [rf"\boxed{{{i % 50}.5}}" for i in range(2000)]
    verdicts = [grade(text, r"\frac{3}{2}", "math")[1] for text in texts]
    assert sum(verdicts) == 40
    assert time.perf_counter() - start < 4


def test_text_that_cannot_be_read_is_wrong_and_no_crash() -> None:
    for bad in (r"\frac{", "{" * 40, "(" * 20, r"\left(", "\x00", "é" * 300, r"\boxed", "1/0"):
        assert not equal(bad, "2", "math")
        assert grade(f"\\boxed{{{bad}}}", "2", "math")[1] is False


GRADER = """
def whole(text, gold):
    answer = text.split()[-1]
    return answer, answer == gold

def right(text, gold):
    return gold in text

def broken(text, gold):
    raise KeyError("units")

def odd(text, gold):
    return "yes"

LIMIT = 3
"""


@pytest.fixture
def grader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    monkeypatch.delitem(__import__("sys").modules, "my_grader", raising=False)
    grading._function.cache_clear()
    path = tmp_path / "my_grader.py"
    path.write_text(GRADER)
    return path


def test_a_function_in_the_current_folder_grades(grader: Path) -> None:
    assert grade("it is 12", "12", "my_grader:whole") == ("12", True)
    assert grade("it is 13", "12", "my_grader:whole") == ("13", False)
    assert grade(r"\boxed{12}", "12", "my_grader:right") == ("12", True)
    assert grade(r"\boxed{13}", "12", "my_grader:right") == ("13", False)
    assert grade("it is 12", "12", "my_grader:right") == ("12", True), "the right one votes"
    assert grade("it is 13", "12", "my_grader:right") == (None, False)
    assert equal("12", "12", "my_grader:right")
    assert extract(r"\boxed{12}", "my_grader:right") == "12"
    assert grading.style_of_text("my_grader:right") == "math"


def test_the_source_of_a_function_identifies_it(grader: Path) -> None:
    first = grading.identity("my_grader:whole")
    assert set(first) == {"grader_source"}
    grader.write_text(GRADER + "\n# changed")
    assert grading.identity("my_grader:whole") != first
    assert all(grading.identity(style) == {} for style in grading.Style)


@pytest.mark.parametrize(
    ("style", "words"),
    [
        ("my_grader:broken", "KeyError: 'units'"),
        ("my_grader:odd", "'yes'"),
    ],
)
def test_a_function_that_fails_says_so(grader: Path, style: str, words: str) -> None:
    with pytest.raises(GradingFault, match=words):
        grade("12", "12", style)


@pytest.mark.parametrize(
    ("style", "words"),
    [
        ("no_such_module:grade", "No module named 'no_such_module'.*current folder"),
        ("my_grader:hole", "'my_grader'|my_grader 'hole'.*whole"),
        ("my_grader:LIMIT", "int, not a function"),
        ("my_grader:", "package.module:function"),
        (":grade", "package.module:function"),
    ],
)
def test_a_function_that_is_not_there_is_named(grader: Path, style: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        grading.as_style(style)


@pytest.mark.parametrize("call", [lambda s: grade("A1", "1", s), lambda s: extract("A1", s)])
def test_unknown_style_names_the_styles(call) -> None:
    with pytest.raises(ConfigError, match=r"line, math, choice, integer.*'sums'"):
        call("sums")

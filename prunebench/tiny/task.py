"""The arithmetic task of the embedded model: expressions, worked solutions, and an exact checker.

A question is an integer expression with `+ - *` and parentheses whose intermediate values all lie
in 0..999. A solution alternates two kinds of lines: one reduction (`7*11=77`), then the
rewritten expression, until `A<answer>`. Every line but the last ends with a mark: `.` when its
writer believes it, `!` when not; a line marked `!` is void and written again.

Training solutions come from writers with different habits (which reducible operation goes first,
operands as they stand or swapped, a bullet before the reduction). Habits put variety into the
text that has nothing to do with being right, as wording does in real reasoning.

Pure Python: nothing here knows the model.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_VALUE = 999
BULLETS = ">:;~|@#%"
RIGHT, WRONG = ".", "!"
SPLITS = {"eval": range(0, 2), "labels": range(2, 6), "train": range(6, 16)}
"""Which sixteenths of the hash space belong to which split."""

_NUMBER = re.compile(r"\d+")
_REDUCTION = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")
_ANSWER = re.compile(r"^A(\d+)$", re.MULTILINE)
_PRECEDENCE = {"+": 1, "-": 1, "*": 2}

Tree = int | tuple[str, "Tree", "Tree"]
"""A number, or (operator, left, right)."""

Address = tuple[int, ...]
"""The way from the root to a node: 1 = left child, 2 = right child."""


def apply(operator: str, left: int, right: int) -> int:
    """The value of one operation."""
    if operator == "*":
        return left * right
    return left + right if operator == "+" else left - right


def to_text(tree: Tree, context: int = 0) -> str:
    """The expression with as few parentheses as its left-to-right reading needs."""
    if isinstance(tree, int):
        return str(tree)
    operator, left, right = tree
    level = _PRECEDENCE[operator]
    text = to_text(left, level) + operator + to_text(right, level + 1)
    return f"({text})" if level < context else text


def parse(text: str) -> Tree:
    """The tree of an expression. Raises ValueError when it is not one."""
    tokens = re.findall(r"\d+|[-+*()]", text)
    if not text or "".join(tokens) != text:
        raise ValueError(f"Not an expression: {text!r}")
    tokens.append("")
    tree, end = _parse_level(tokens, 0, 1)
    if tokens[end] != "":
        raise ValueError(f"Not an expression: {text!r}")
    return tree


def _parse_level(tokens: list[str], at: int, level: int) -> tuple[Tree, int]:
    if level == 3:
        if tokens[at] == "(":
            tree, at = _parse_level(tokens, at + 1, 1)
            if tokens[at] != ")":
                raise ValueError("Unbalanced parentheses")
            return tree, at + 1
        if not tokens[at].isdigit():
            raise ValueError(f"Expected a number, found {tokens[at]!r}")
        return int(tokens[at]), at + 1
    tree, at = _parse_level(tokens, at, level + 1)
    while _PRECEDENCE.get(tokens[at]) == level:
        right, end = _parse_level(tokens, at + 1, level + 1)
        tree, at = (tokens[at], tree, right), end
    return tree, at


def reducible(tree: Tree, address: Address = ()) -> Iterator[tuple[Address, str, int, int]]:
    """The operations on two plain numbers, left to right: (address, operator, left, right)."""
    if isinstance(tree, int):
        return
    operator, left, right = tree
    if isinstance(left, int) and isinstance(right, int):
        yield address, operator, left, right
    yield from reducible(left, (*address, 1))
    yield from reducible(right, (*address, 2))


def replace(tree: Tree, address: Address, value: int) -> Tree:
    """The tree with the node at `address` replaced by a number."""
    if not address:
        return value
    assert not isinstance(tree, int)
    operator, left, right = tree
    if address[0] == 1:
        return operator, replace(left, address[1:], value), right
    return operator, left, replace(right, address[1:], value)


def evaluate(tree: Tree) -> int:
    """The value of an expression."""
    if isinstance(tree, int):
        return tree
    return apply(tree[0], evaluate(tree[1]), evaluate(tree[2]))


# ---------------------------------------------------------------------------------- problems


@dataclass(frozen=True)
class Difficulty:
    """What kind of expressions are drawn.

    Attributes
    ----------
    operators : smallest and largest number of operators.
    products : chance that an operation on two plain numbers is a multiplication.
    long_products : chance that such a multiplication has two factors of two digits.
    inner_products : chance that any other operation is a multiplication, where its value allows.
    wide_products : chance that a multiplication of plain numbers is three digits by one.
    """

    operators: tuple[int, int]
    products: float
    long_products: float
    inner_products: float
    wide_products: float


DEFAULT = Difficulty(
    operators=(6, 8), products=0.6, long_products=0.4, inner_products=0.8, wide_products=0.2
)
HARD = Difficulty(
    operators=(10, 11), products=0.6, long_products=0.4, inner_products=0.3, wide_products=0.0
)
TRAINING = Difficulty(
    operators=(2, 9), products=0.75, long_products=0.5, inner_products=0.3, wide_products=0.0
)


def make_tree(rng: random.Random, n_operators: int, difficulty: Difficulty) -> tuple[Tree, int]:
    """A random expression with `n_operators` operators, and its value."""
    if n_operators == 0:
        value = rng.randint(2, 9) if rng.random() < 0.4 else rng.randint(10, 99)
        return value, value
    if n_operators == 1 and rng.random() < difficulty.products:
        left = rng.randint(11, 90)
        if difficulty.wide_products and rng.random() < difficulty.wide_products:
            right = rng.randint(3, 8)
            left = rng.randint(101, MAX_VALUE // right)
        elif rng.random() < difficulty.long_products:
            right = rng.randint(11, max(11, MAX_VALUE // left))
        else:
            right = rng.randint(3, 9)
        if left * right <= MAX_VALUE:
            if rng.random() < 0.5:
                left, right = right, left
            return ("*", left, right), left * right
    split = rng.randrange(n_operators)
    left, left_value = make_tree(rng, split, difficulty)
    right, right_value = make_tree(rng, n_operators - 1 - split, difficulty)
    if rng.random() < difficulty.inner_products and left_value * right_value <= MAX_VALUE:
        return ("*", left, right), left_value * right_value
    if rng.random() < 0.5 and left_value + right_value <= MAX_VALUE:
        return ("+", left, right), left_value + right_value
    if left_value < right_value:
        left, left_value, right, right_value = right, right_value, left, left_value
    return ("-", left, right), left_value - right_value


def draw_problem(rng: random.Random, difficulty: Difficulty) -> tuple[str, str]:
    """A random question and its answer."""
    tree, value = make_tree(rng, rng.randint(*difficulty.operators), difficulty)
    return to_text(tree), str(value)


def make_problem(rng: random.Random, hard: bool = False) -> tuple[str, str]:
    """A random question of the evaluation difficulty and its answer."""
    return draw_problem(rng, HARD if hard else DEFAULT)


def split_of(question: str) -> str:
    """The split a question belongs to: a hash of its text decides, whatever the seed."""
    bucket = hashlib.sha256(question.encode()).digest()[0] % 16
    return next(split for split, buckets in SPLITS.items() if bucket in buckets)


def make_problems(
    seed: int, n: int, split: str, hard: bool = False, difficulty: Difficulty | None = None
) -> list[tuple[str, str]]:
    """`n` different problems of a split (`eval`, `train` or `labels`), the same for a seed.

    `difficulty` overrides what `hard` chooses. Splits never share a question.
    """
    rng = random.Random(f"{split}-{seed}")
    chosen = difficulty or (HARD if hard else DEFAULT)
    problems: dict[str, str] = {}
    while len(problems) < n:
        question, answer = draw_problem(rng, chosen)
        if split_of(question) == split:
            problems[question] = answer
    return list(problems.items())


# --------------------------------------------------------------------------------- checking


def extract_answer(text: str) -> str | None:
    """The number of the last answer line, or None."""
    found = _ANSWER.findall(text)
    return str(int(found[-1])) if found else None


def check_prefix(question: str, text: str) -> bool:
    """Whether every finished line of `text` is right; the unfinished last line is ignored.

    A line marked `!` is void, whatever it says. A line marked `.` must be one reduction of the
    current expression, or that expression with the reduced operation replaced by its value.
    The answer line must give the value of the question.
    """
    tree = parse(question)
    rewritten: list[Tree] = []  # what the next line may be, after a reduction
    for line in text.split("\n")[:-1]:
        if line.startswith("A"):
            if not isinstance(tree, int) or line != f"A{tree}":
                return False
            continue
        body, mark = line[:-1], line[-1:]
        if mark == WRONG:
            continue
        if mark != RIGHT:
            return False
        if rewritten:
            if body not in map(to_text, rewritten):
                return False
            tree, rewritten = parse(body), []
            continue
        rewritten = list(_after_reduction(tree, body))
        if not rewritten:
            return False
        if isinstance(rewritten[0], int):
            tree, rewritten = rewritten[0], []
    return True


def _after_reduction(tree: Tree, line: str) -> Iterator[Tree]:
    """The expressions that a right reduction line leads to; none when it is wrong."""
    match = _REDUCTION.fullmatch(line.lstrip(BULLETS))
    if not match:
        return
    left, operator, right, value = match.groups()
    operation = {(operator, int(left), int(right))}
    if operator != "-":
        operation.add((operator, int(right), int(left)))
    if apply(operator, int(left), int(right)) != int(value):
        return
    for address, *node in reducible(tree):
        if tuple(node) in operation:
            yield replace(tree, address, int(value))


# ---------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Habits:
    """How one writer writes.

    Attributes
    ----------
    order : which reducible operation goes first: `left`, `right` or `any`.
    swap : chance that the operands of a sum or product are swapped.
    bullets : the symbols a reduction line may begin with, one drawn per line; may be empty.
    """

    order: str
    swap: float
    bullets: str

    @classmethod
    def draw(cls, rng: random.Random) -> Habits:
        style = rng.random()
        return cls(
            order=rng.choice(("any", "any", "left", "right")),
            swap=rng.choice((0.0, 0.0, 0.5, 1.0)),
            bullets=BULLETS if style < 0.25 else rng.choice(BULLETS) if style < 0.5 else "",
        )


Piece = tuple[str, bool]
"""A stretch of solution text, and whether the model should learn to write it."""


def write_solution(question: str, rng: random.Random, slips: float = 0.2) -> list[Piece]:
    """A worked solution by a writer with random habits.

    Each line is first written wrong with chance `slips` (again and again, until the draw says
    otherwise), marked `!`, and redone. Wrong lines are not to be learnt, their marks are.
    """
    habits = Habits.draw(rng)
    tree = parse(question)
    pieces: list[Piece] = []

    def write(line: str, wrong: list[str], bullets: str = "") -> None:
        while True:
            slip = rng.choice(wrong) if rng.random() < slips else line
            if bullets:
                pieces.append((rng.choice(bullets), True))
            pieces.append((slip, slip == line))
            pieces.append((f"{RIGHT if slip == line else WRONG}\n", True))
            if slip == line:
                return

    while not isinstance(tree, int):
        choices = list(reducible(tree))
        at = {"left": 0, "right": -1}.get(habits.order)
        address, operator, left, right = rng.choice(choices) if at is None else choices[at]
        value = apply(operator, left, right)
        after = replace(tree, address, value)
        if operator != "-" and rng.random() < habits.swap:
            left, right = right, left
        line = f"{left}{operator}{right}={value}"
        write(line, wrong_reductions(tree, line, rng), habits.bullets)
        if not isinstance(after, int):
            write(to_text(after), wrong_rewrites(tree, after, value, rng))
        tree = after
    pieces.append((f"A{tree}\n", True))
    return pieces


def wrong_reductions(tree: Tree, line: str, rng: random.Random) -> list[str]:
    """Plausible wrong versions of a reduction line: mostly results that are nearly right."""
    match = _REDUCTION.fullmatch(line)
    assert match
    left, right, value = int(match[1]), int(match[3]), int(match[4])
    operator = match[2]
    near = {value + d for d in (1, -1, 2, -2, 10, -10, 20, -20, 100, -100)}
    near |= {value + left, value - left, value + right, value - right}
    near.add(_other_digit(value, rng))
    results = [f"{left}{operator}{right}={v}" for v in near if 0 <= v <= MAX_VALUE and v != value]
    slips = [rng.choice(results) for _ in range(4)]
    misread = _other_digit(left, rng)
    other = rng.choice([o for o in "+-*" if o != operator])
    for a, o, b in ((misread, operator, right), (left, other, right)):
        if 0 <= apply(o, a, b) <= MAX_VALUE:
            slips.append(f"{a}{o}{b}={apply(o, a, b)}")
    allowed = {(o, a, b) for _, o, a, b in reducible(tree)}
    for a, o, b in re.findall(r"(?=(?<!\d)(\d+)([-+*])(\d+))", to_text(tree)):
        a, b = int(a), int(b)
        if (o, a, b) not in allowed and (o == "-" or (o, b, a) not in allowed):
            result = apply(o, a, b)
            if 0 <= result <= MAX_VALUE:
                slips.append(f"{a}{o}{b}={result}")
                break
    return [s for s in slips if next(_after_reduction(tree, s), None) is None] or results


def wrong_rewrites(before: Tree, after: Tree, value: int, rng: random.Random) -> list[str]:
    """Plausible wrong versions of a rewritten expression."""
    text = to_text(after)
    numbers = list(_NUMBER.finditer(text))
    at = rng.choice(numbers)
    slips = [text[: at.start()] + str(_other_digit(int(at[0]), rng)) + text[at.end() :]]
    dropped = list(re.finditer(r"[-+*]\d+", text))
    if dropped:
        at = rng.choice(dropped)
        slips.append(text[: at.start()] + text[at.end() :])
    at = rng.choice(list(re.finditer(r"[-+*]", text)))
    slips.append(text[: at.start()] + rng.choice("+-*") + text[at.end() :])
    if "(" in text:
        slips.append(text.replace("(", "", 1).replace(")", "", 1))
    others = [address for address, *_ in reducible(before)]
    slips.append(to_text(replace(before, rng.choice(others), value)))
    slips.append(to_text(before))
    return [s for s in slips if s != text]


def _other_digit(number: int, rng: random.Random) -> int:
    """The number with one digit changed."""
    digits = list(str(number))
    at = rng.randrange(len(digits))
    digits[at] = rng.choice([d for d in "0123456789" if d != digits[at]])
    return int("".join(digits))

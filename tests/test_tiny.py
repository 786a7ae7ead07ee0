"""The embedded model: task, checker, tokenizer, splits and the shipped weights."""

import ast
import json
import random
import re

import pytest

from prunebench.tiny import task
from prunebench.tiny.tokenizer import END, build_tokenizer
from prunebench.tiny.train import WEIGHTS

OPERATIONS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}


def tree_of(text: str):
    """The expression tree as Python's own parser reads it."""

    def convert(node):
        if isinstance(node, ast.Constant):
            return node.value
        return OPERATIONS[type(node.op)], convert(node.left), convert(node.right)

    return convert(ast.parse(text, mode="eval").body)


def intermediate_values(tree) -> list[int]:
    if isinstance(tree, int):
        return [tree]
    operator, left, right = tree
    below = intermediate_values(left) + intermediate_values(right)
    return [*below, eval(f"{task.evaluate(left)}{operator}{task.evaluate(right)}")]


def solution(question: str, seed: int, slips: float = 0.2) -> str:
    return "".join(text for text, _ in task.write_solution(question, random.Random(seed), slips))


@pytest.mark.parametrize("hard", [False, True])
def test_problems_agree_with_python(hard):
    for question, answer in task.make_problems(3, 100, "eval", hard=hard):
        assert eval(question) == int(answer)
        assert task.parse(question) == tree_of(question)
        assert task.to_text(task.parse(question)) == question
        assert all(0 <= v <= task.MAX_VALUE for v in intermediate_values(tree_of(question)))


@pytest.mark.parametrize("text", ["", "1+", "(1", "1)", "1 + 2", "*3", "a", "1+(2*3"])
def test_parse_refuses_what_is_no_expression(text):
    with pytest.raises(ValueError):  # noqa: PT011  any message will do
        task.parse(text)


def test_splits_share_no_question():
    drawn = {
        split: {q for seed in range(3) for q, _ in task.make_problems(seed, 150, split)}
        for split in task.SPLITS
    }
    assert all(len(questions) > 400 for questions in drawn.values())
    assert not drawn["eval"] & drawn["train"]
    assert not drawn["eval"] & drawn["labels"]
    assert not drawn["labels"] & drawn["train"]


def test_problems_depend_on_the_seed_alone():
    assert task.make_problems(1, 20, "eval") == task.make_problems(1, 30, "eval")[:20]
    assert task.make_problems(1, 20, "eval") != task.make_problems(2, 20, "eval")


def test_written_solutions_are_right_line_by_line():
    """Python's own evaluator confirms every line that is marked as right."""
    for seed, (question, answer) in enumerate(task.make_problems(5, 100, "labels")):
        text = solution(question, seed)
        for line in text.split("\n")[:-2]:
            body, mark = line[:-1].lstrip(task.BULLETS), line[-1]
            if mark == task.WRONG:
                continue
            if "=" in body:
                left, right = body.split("=")
                assert eval(left) == int(right)
            else:
                assert eval(body) == int(answer)
        assert text.endswith(f"A{answer}\n")
        assert task.extract_answer(text) == answer
        assert task.check_prefix(question, text)


def test_checker_finds_a_changed_digit_in_any_right_line():
    rng = random.Random(0)
    for seed, (question, _) in enumerate(task.make_problems(6, 60, "labels")):
        lines = solution(question, seed).split("\n")[:-1]
        right = [i for i, line in enumerate(lines) if line[-1] != task.WRONG]
        i = rng.choice(right)
        at = rng.choice([m.start() for m in re.finditer(r"\d", lines[i])])
        digit = rng.choice([d for d in "0123456789" if d != lines[i][at]])
        changed = lines[i][:at] + digit + lines[i][at + 1 :]
        before = "\n".join([*lines[:i], ""])
        assert task.check_prefix(question, before)
        assert not task.check_prefix(question, before + changed + "\n")
        assert task.check_prefix(question, before + changed)  # not finished yet


def test_wrong_lines_are_wrong():
    """What training marks with `!` would not pass the checker with the mark `.`."""
    wrong = passed = 0
    for seed, (question, _) in enumerate(task.make_problems(7, 100, "labels")):
        done = ""
        for line in solution(question, seed, slips=0.4).splitlines(keepends=True):
            if line.endswith(task.WRONG + "\n"):
                wrong += 1
                passed += task.check_prefix(question, done + line[:-2] + task.RIGHT + "\n")
            done += line
    assert wrong > 300
    assert passed / wrong < 0.01


@pytest.mark.parametrize(
    ("text", "answer"),
    [("A12\n", "12"), ("1+1=2.\nA2\n", "2"), ("A1\nA007\n", "7"), ("A\n", None), ("2\n", None)],
)
def test_extract_answer(text, answer):
    assert task.extract_answer(text) == answer


def test_tokenizer_survives_auto_tokenizer():
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(WEIGHTS)
    text = "12*(3+4)\n>3+4=7.\n 12*7 !\n\nA84\n"
    ids = loaded(text)["input_ids"]
    assert ids == build_tokenizer()(text)["input_ids"]
    assert len(ids) == len(text)
    assert loaded.decode(ids) == text
    assert loaded.eos_token == END


def test_what_ships_names_no_folder_of_the_machine_that_made_it():
    files = [f for f in WEIGHTS.parent.rglob("*.json") if "tokenizer" not in f.name]
    assert len(files) > 8
    assert not [f for f in files if re.search(r'"(/|[A-Za-z]:)', f.read_text())]


def test_weights_are_small_and_load():
    from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

    files = [f for f in WEIGHTS.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 8_000_000
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS)
    assert isinstance(model, Qwen2ForCausalLM)
    config = model.config
    assert config.hidden_size // config.num_attention_heads in (32, 64)
    record = json.loads((WEIGHTS / "training.json").read_text())
    assert record["parameters"] == sum(p.numel() for p in model.parameters())


def test_training_rows_learn_no_wrong_line():
    """Weights are zero exactly on questions and on corrupted text."""
    from prunebench.tiny import train

    tokenizer = build_tokenizer()
    encode = {chr(c): tokenizer(chr(c)).input_ids[0] for c in range(128)}
    tokens, document, weight = train.draw_rows(random.Random(0), encode, tokenizer.eos_token_id)
    assert tokens.shape == document.shape == weight.shape == (train.ROWS, train.ROW + 1)
    row = tokens[0][document[0] == 0].tolist()
    text = tokenizer.decode(row, skip_special_tokens=True)
    learnt = weight[0][document[0] == 0].tolist()
    question = text.split("\n")[0]
    assert not any(learnt[: len(question) + 1])
    at = len(question) + 1
    for line in text[at:].splitlines(keepends=True):
        if line.endswith("!\n"):
            body = line[:-2].lstrip(task.BULLETS)
            assert not any(learnt[at + len(line) - 2 - len(body) : at + len(line) - 2])
        assert learnt[at + len(line) - 1] or line[-1] != "\n"
        at += len(line)

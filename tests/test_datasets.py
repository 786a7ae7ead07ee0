"""Problems from files and the hub, and the guard against problems that a method was trained on."""

from __future__ import annotations

import io
import json
import logging
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from prunebench import checkpoints, cli, compose, datasets, grading, runner, train
from prunebench.config import to_run
from prunebench.datasets import File, Hub, Local, make_problem
from prunebench.errors import ConfigError, DamagedFile
from prunebench.execution import Execution
from prunebench.lab import Lab
from prunebench.method import LabelledPrefix
from prunebench.methods.linear_probe import LinearProbe
from prunebench.report import records

BENCHMARKS = Path(__file__).parent.parent.parent / "shared" / "data" / "benchmarks"
FAKE = ["backend=fake", "n_paths=8", "keep=2", "prefix_length=24", "workers=1"]
ROWS = [
    {"problem": "1+1", "answer": "2", "extra": {"gold": 2}},
    {"problem": "What is 30 - 5?", "answer": "025", "extra": {"gold": 25}},
]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(rows: Any, name: str = "mine.json") -> str:
    flat = [{k: v for k, v in row.items() if k != "extra"} for row in rows]
    match Path(name).suffix:
        case ".json":
            Path(name).write_text(json.dumps(rows))
        case ".jsonl":
            Path(name).write_text("\n".join(map(json.dumps, rows)) + "\n\n")
        case ".csv":
            pd.DataFrame(flat).to_csv(name, index=False)
        case ".tsv":
            pd.DataFrame(flat).to_csv(name, index=False, sep="\t")
        case ".parquet":
            pd.DataFrame(rows).to_parquet(name)
    return name


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_problems(kind: str) -> None:
    problems = Local(path=written(ROWS, f"mine.{kind}")).problems()
    assert problems == [make_problem("1+1", "2"), make_problem("What is 30 - 5?", "025")]


def test_ids_are_those_of_the_content_that_stored_banks_have() -> None:
    assert make_problem("1+1", "2").id == "p-645b6bf44b44"
    dataset = File(path=written(ROWS))
    assert dataset.identity()["name"] == "file"
    assert Local(path="mine.json").identity()["name"] == "mine"


def test_fields_are_mapped_found_and_nested() -> None:
    path = written([{"q": "1+1", "a": {"b": {"gold": 2.0}}, "id": "I-1 (a)"}])
    (problem,) = Local(path=path, question="q", answer="a.b.gold", id="id").problems()
    assert (problem.question, problem.answer) == ("1+1", "2")
    assert problem.id == f"I-1-a-{make_problem('1+1', '2').id[2:]}"
    path = written([{"puzzle": "There are.", "ask": "Who?", "a.b": "Eric"}])
    (problem,) = Local(path=path, question=["puzzle", "ask"], answer="a.b").problems()
    assert (problem.question, problem.answer) == ("There are.\n\nWho?", "Eric")
    path = written([{"Question": "1+1", "solution": "so\nit is\n#### 1,600"}])
    dataset = Local(path=path, answer="solution", answer_after="####", grading="integer")
    assert [p.answer for p in dataset.problems()] == ["1,600"]


def test_options_are_written_below_the_question() -> None:
    rows = [
        {"problem": "Who? ", "answer": "B", "options": {"A": "Eric", "B": "Bob"}},
        {"problem": "When?", "answer": "(a)", "options": {"A": "May", "B": "June"}},
        {"problem": "Where?", "answer": "at  home", "options": {"A": "here", "B": "at home"}},
    ]
    dataset = Local(path=written(rows), options="options")
    problems = dataset.problems()
    assert problems[0].question == "Who?\n\nA) Eric\nB) Bob"
    assert [p.answer for p in problems] == ["B", "A", "B"]
    assert (dataset.grading, dataset.prompt) == ("choice", datasets.CHOICE_PROMPT)
    assert Local(path="mine.json").grading == "math"
    as_lists = [{**row, "options": list(row["options"].values())} for row in rows]
    for name in ("lists.json", "lists.parquet"):
        assert Local(path=written(as_lists, name), options="options").problems() == problems
    assert Local(path=written(rows, "rows.parquet"), options="options").problems() == problems
    in_text = [{**row, "options": json.dumps(row["options"])} for row in rows]
    assert Local(path=written(in_text, "text.csv"), options="options").problems() == problems


def test_options_of_several_fields_are_shuffled_by_their_content() -> None:
    rows = [{"q": f"Q{i}", "right": f"r{i}", "w1": "x", "w2": "y", "w3": "z"} for i in range(200)]
    fields = {"question": "q", "answer": "right", "options": ["right", "w1", "w2", "w3"]}
    problems = Local(path=written(rows), **fields).problems()
    shares = pd.Series([p.answer for p in problems]).value_counts(normalize=True)
    assert set(shares.index) == set("ABCD")
    assert shares.between(0.12, 0.4).all()
    for i, problem in enumerate(problems):
        assert f"\n{problem.answer}) r{i}" in problem.question
    turned = Local(path=written(rows[::-1]), **{**fields, "options": ["w3", "right", "w2", "w1"]})
    assert turned.problems()[::-1] == problems


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([{"question": "1"}], {}, "usual fields for the answer.*It has: question.*dataset.answer="),
        ([{"text": "1", "answer": 1}], {}, "usual fields for the question.*It has: text"),
        (ROWS, {"answer": "anser"}, "no field 'anser'. Did you mean 'answer'"),
        (ROWS, {"answer": "extra.golt"}, "no field 'extra.golt'"),
        ([*ROWS, {"problem": "1", "answer": None}], {}, "Entry 2 of mine.json.*'answer' is empty"),
        ([{"problem": " ", "answer": 1}], {}, "'problem' is empty"),
        ([{"problem": "1", "answer": float("nan")}], {}, "'answer' is empty"),
        ([{"problem": "1", "answer": ["1"]}], {}, "text or a number. Got a list"),
        ([{"problem": "1", "answer": True}], {}, "text or a number. Got a bool"),
        (["1+1"], {}, "object with fields. Got a str"),
        ([{"problem": "1", "answer": "no"}], {"answer_after": "####"}, "nothing behind '####'"),
        ([{"problem": "1", "answer": "12.5"}], {"grading": "integer"}, "an integer.*'12.5'"),
        ([{"problem": "1", "answer": "both"}], {"grading": "choice"}, "one letter.*'both'"),
        ([], {}, "holds no problems"),
        ([{"problem": "1", "answer": "C", "o": ["x", "y"]}], {"options": "o"}, "'C' with the opt"),
        ([{"problem": "1", "answer": "x", "o": ["x", "x"]}], {"options": "o"}, "of one option"),
        ([{"problem": "1", "answer": "A", "o": ["B", "A"]}], {"options": "o"}, "of one option"),
        ([{"problem": "1", "answer": "A", "o": ["B"]}], {"options": "o"}, "2 to 26 options"),
        ([{"problem": "1", "answer": "A", "o": "x or y"}], {"options": "o"}, "list, or a mapping"),
    ],
)
def test_rows_that_are_no_problems_are_named(rows: Any, options: Any, words: str) -> None:
    Path("mine.json").write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match=words):
        Local(path="mine.json", **options).problems()


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("no.json", None, ConfigError, "does not exist.*jsonl, .csv"),
        ("mine.txt", b"1+1", ConfigError, "no kind that is read"),
        ("mine.json", b'[{"problem": ', DamagedFile, "not valid JSON"),
        ("mine.json", b'{"problem": 1}', ConfigError, "list of objects. It holds one object"),
        ("mine.jsonl", b'{"problem": 1}\n{"pro', DamagedFile, "not valid JSONL: line 2"),
        ("mine.json", b"\xff\xfe\x00", DamagedFile, "not valid JSON"),
        ("mine.csv", b"problem,answer\n1,2,3\n", DamagedFile, "not valid CSV"),
        ("mine.csv", b"", DamagedFile, "not valid CSV"),
        ("mine.parquet", b"PAR1", DamagedFile, "mine.parquet"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    name: str, content: bytes | None, error: type[Exception], words: str
) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(error, match=words):
        Local(path=name).problems()


def test_repeated_problems_are_taken_once_and_contradictions_reported(caplog: Any) -> None:
    rows = [*ROWS, ROWS[0], {"problem": "1+1", "answer": "3"}]
    with caplog.at_level(logging.WARNING):
        problems = Local(path=written(rows)).problems()
    assert [p.answer for p in problems] == ["2", "025", "3"]
    assert "twice, with the answers '2' and '3'" in caplog.text


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmark files are not on this machine")
@pytest.mark.parametrize(
    ("name", "n_problems", "options"),
    [
        ("aime_2024", 30, {}),
        ("aime_2025", 30, {}),
        ("brumo_2025", 30, {}),
        ("hmmt_25", 30, {}),
        ("zebralogic_hard", 593, {"options": "options"}),
    ],
)
def test_the_benchmark_files_load_by_a_mapping(name: str, n_problems: int, options: Any) -> None:
    path = str(BENCHMARKS / f"{name}.json")
    dataset = Local(path=path, question="problem", answer="answer", **options)
    problems = dataset.problems()
    assert len({p.id for p in problems}) == n_problems
    rows = json.loads(Path(path).read_text())
    assert [p.answer for p in problems] == [row["answer"] for row in rows]
    for problem, row in zip(problems, rows, strict=True):
        assert problem.question.startswith(row["problem"].rstrip())
        assert all(f"\n{k}) {v}" in problem.question for k, v in row.get("options", {}).items())
    if options:
        for problem in problems:
            assert grading.grade(f'"ANSWER": "{problem.answer}"', problem.answer, "choice")[1]
            assert not grading.grade('"ANSWER": "Z"', problem.answer, "choice")[1]


def executed(*arguments: str) -> tuple[Execution, pd.DataFrame]:
    """A run of the command line, without its report, and its records."""
    compose.validate(arguments)
    console = Console(file=io.StringIO())
    execution = runner.execute(composed(*arguments), Lab(), console, "run", "method")
    return execution, records.frame(execution.rows)


def test_the_command_line_of_the_documentation_runs() -> None:
    rows = [{"problem": f"{i}+1", "answer": i + 1} for i in range(3)]
    mapping = ["dataset.question=problem", "dataset.answer=answer"]
    path = written(rows, "mine.csv")
    _, table = executed("method=random", "dataset=local", f"dataset.path={path}", *mapping, *FAKE)
    assert set(table.dataset) == {"mine"}
    assert set(table.problem_id) == {p.id for p in Local(path=path).problems()}


def test_a_function_of_ones_own_counts_whatever_the_model_brings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("own_grader.py").write_text("def grade(text, gold):\n    return 'yes', True\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    arguments = ["dataset=local", f"dataset.path={written(ROWS)}", *FAKE, "method=random"]
    _, own = executed(*arguments, "dataset.grading=own_grader:grade")
    _, usual = executed(*arguments)
    accuracy = [table[table.method == "none"].avg.mean() for table in (own, usual)]
    assert accuracy[0] == 1.0 > accuracy[1]
    keys = [json.loads(p.read_text())["key"] for p in Path("results/bank").glob("*/manifest.json")]
    sources = ["grader_source" in key["prompt"] for key in keys]
    assert sorted(sources) == [False, True], "only a function is part of the key of a bank"


def test_a_function_that_fails_is_the_reason_of_its_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = "def grade(text, gold):\n    return {'2': True}[gold]\n"
    Path("half_grader.py").write_text(code)
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = f"dataset.path={written(ROWS)}"
    own = "dataset.grading=half_grader:grade"
    _, table = executed("dataset=local", path, *FAKE, "method=random", own, "bank.group=1")
    none = table[table.method == "none"].set_index("problem_id")
    good, bad = (p.id for p in Local(path="mine.json").problems())
    assert none.avg[good] == 1.0
    assert np.isnan(none.avg[bad])
    assert "'half_grader:grade' raised KeyError: '025'" in none.reason[bad]


# ---- the hub


def composed(*overrides: str) -> Any:
    with compose.hydra_ready():
        return to_run(compose.composed(list(overrides)))


HUB_ROWS = {
    "HuggingFaceH4/aime_2024": [{"problem": "1+1", "answer": "025", "year": "2024"}],
    "math-ai/aime25": [{"problem": "1+1", "answer": "2", "id": "0"}],
    "MathArena/brumo_2025": [{"problem_idx": 1, "problem": "1+1", "answer": "2^{99}"}],
    "MathArena/hmmt_feb_2025": [{"problem_idx": 1, "problem": "1+1", "answer": "2"}],
    "HuggingFaceH4/MATH-500": [{"problem": "1+1", "answer": "2", "solution": "", "unique_id": ""}],
    "openai/gsm8k": [{"question": "1+1", "answer": "<<1+1=2>>\n#### 1,002"}],
    "Idavidrein/gpqa": [
        {"Question": "Why?", "Correct Answer": "so\n", "Record ID": "r"}
        | {f"Incorrect Answer {i}": f"no {i}" for i in (1, 2, 3)}
    ],
    "allenai/ZebraLogicBench-private": [
        {"puzzle": "Two houses.", "question": "Who?", "choices": ["Eric", "Bob"], "answer": "Bob"}
    ],
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in for the library `datasets`; the calls it got."""
    calls: list[Any] = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> Any:
        calls.append((name, config, split))
        return HUB_ROWS[name]

    library = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", library)  # type: ignore[arg-type]
    return calls


@pytest.mark.parametrize(
    ("name", "style", "answer", "call"),
    [
        ("aime24", "math", "025", ("HuggingFaceH4/aime_2024", None, "train")),
        ("aime25", "math", "2", ("math-ai/aime25", None, "test")),
        ("brumo25", "math", "2^{99}", ("MathArena/brumo_2025", None, "train")),
        ("hmmt25", "math", "2", ("MathArena/hmmt_feb_2025", None, "train")),
        ("math500", "math", "2", ("HuggingFaceH4/MATH-500", None, "test")),
        ("gsm8k", "integer", "1,002", ("openai/gsm8k", "main", "test")),
        ("gpqa_diamond", "choice", None, ("Idavidrein/gpqa", "gpqa_diamond", "train")),
        ("zebralogic", "choice", "B", ("allenai/ZebraLogicBench-private", "mc_mode", "test")),
    ],
)
def test_datasets_of_the_hub_by_name(
    hub: list[Any], name: str, style: str, answer: str | None, call: Any
) -> None:
    dataset = composed(f"dataset={name}", "model=qwen1.5b").dataset
    (problem,) = dataset.problems()
    assert hub == [call]
    assert (dataset.name, dataset.grading) == (name, style)
    assert answer in (None, problem.answer)
    assert ("ANSWER" in dataset.prompt) == (style == "choice")
    assert ("boxed" in dataset.prompt) == (style != "choice")
    if name == "gpqa_diamond":
        assert f"\n{problem.answer}) so" in problem.question


def test_a_gated_dataset_says_where_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub.")

    library = types.SimpleNamespace(load_dataset=refuse)
    monkeypatch.setitem(sys.modules, "datasets", library)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"huggingface.co/datasets/Idavidrein/gpqa.*hf auth"):
        composed("dataset=gpqa_diamond", "model=qwen1.5b").dataset.problems()


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"prunebench\[datasets\].*dataset=local"):
        Hub(name="x", id="a/b").problems()


# ---- training problems


def test_questions_are_the_same_whatever_their_typesetting() -> None:
    same = ["What is $x^2$?", "what is\n x^2 ?", " What is ｘ^2?"]
    assert len({checkpoints.question_hash(q) for q in same}) == 1
    others = ["What is $x^3$?", "What is x2?", ""]
    assert len({checkpoints.question_hash(q) for q in [*same, *others]}) == 4


def test_the_record_of_training_problems_comes_back_and_is_small(tmp_path: Path) -> None:
    assert checkpoints.training_problems(tmp_path) is None
    questions = [f"problem {i}" for i in range(12288)]
    checkpoints.record_training(tmp_path, "mine", questions)
    known = checkpoints.training_problems(tmp_path)
    assert known == {checkpoints.question_hash(q) for q in questions}
    assert len(known) == 12288
    assert (tmp_path / checkpoints.RECORD).stat().st_size < 250_000
    (tmp_path / checkpoints.RECORD).write_text("{")
    with pytest.raises(DamagedFile, match="Train again, or delete it"):
        checkpoints.training_problems(tmp_path)


def test_training_records_the_problems_it_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"problem": f"{i}+1", "answer": i + 1} for i in range(20)]
    problems = Local(path=written(rows)).problems()
    nothing = np.zeros(2, np.int32)
    examples = [
        LabelledPrefix(
            problem_id=p.id, prompt_ids=nothing, prefix_ids=nothing, label=label, n_continuations=1
        )
        for p in problems[:12]
        for label in (0.0, 1.0)
    ]
    monkeypatch.setattr(train.labels, "make", lambda *_, **__: None)
    monkeypatch.setattr(train.labels, "read", lambda *_: examples)
    monkeypatch.setattr(LinearProbe, "fit", lambda *_: None)
    monkeypatch.setattr(
        LinearProbe, "save", lambda _, folder: Path(folder).mkdir(parents=True, exist_ok=True)
    )
    arguments = ["method=linear_probe", "dataset=local", "dataset.path=mine.json"]
    assert cli.main(["train", *arguments, "train.valid_share=0.3"]) == 0
    folder = Path("results/trained/tiny/linear_probe")
    used = {checkpoints.question_hash(p.question) for p in problems[:12]}
    assert checkpoints.training_problems(folder) == used


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a run whose method was trained on two of its four problems."""
    shutil.copytree(checkpoints.SHIPPED / "linear_probe", "probe")
    rows = [{"problem": f"{i}+1", "answer": i + 1} for i in range(4)]
    path = written(rows)
    checkpoints.record_training(Path("probe"), "other", ["0 + 1", "3+1", "5+1"])
    monkeypatch.setattr(LinearProbe, "load", lambda self, *_: self)
    monkeypatch.setattr(LinearProbe, "requires", frozenset())
    monkeypatch.setattr(LinearProbe, "setup", lambda self, _: None)
    monkeypatch.setattr(LinearProbe, "score", lambda self, group: np.arange(len(group.paths)) / 2)
    own = ["method=linear_probe", "method.checkpoint=probe", "dataset=local"]
    return [*own, f"dataset.path={path}", *FAKE]


def test_evaluating_on_training_problems_is_refused(trained: list[str], capsys: Any) -> None:
    assert cli.main(trained) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    for word in ("2 of the 4 problems", "'linear_probe' in probe", "'0+1'; '3+1'", "allow_leakage"):
        assert word in error
    assert not Path("results/bank").exists(), "refused before anything is generated"


@pytest.mark.parametrize("mode", ["replay", "online"])
def test_evaluating_on_training_problems_is_noted_when_asked_for(
    trained: list[str], mode: str
) -> None:
    execution, _ = executed(*trained, "allow_leakage=true", f"mode={mode}")
    assert "2 of the 4 problems" in execution.notes[0]
    assert "allow_leakage=true" in execution.notes[0]


def test_problems_that_no_training_saw_pass_without_a_note(trained: list[str]) -> None:
    checkpoints.record_training(Path("probe"), "other", ["5+1"])
    assert Lab().leakage(composed(*trained)) == []


def test_weights_that_weigh_the_votes_are_guarded_too(trained: list[str], capsys: Any) -> None:
    shutil.copytree("probe", "results/trained/tiny/linear_probe")
    arguments = ["method=deepconf", "weights=linear_probe", *trained[2:]]
    assert cli.main([*arguments, "aggregator=score_weighted"]) == 2
    assert "2 of the 4 problems" in capsys.readouterr().err


def test_weights_without_a_record_get_a_note_except_the_shipped_ones_on_their_task(
    trained: list[str],
) -> None:
    (Path("probe") / checkpoints.RECORD).unlink()
    (note,) = Lab().leakage(composed(*trained))
    assert "do not say which problems they were trained on" in note
    assert Lab().leakage(composed("method=linear_probe", *FAKE)) == []
    (note,) = Lab().leakage(composed("method=linear_probe", *trained[2:]))
    assert "trained on" in note
    assert Lab().leakage(composed("method=random", *FAKE)) == []

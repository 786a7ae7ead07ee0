"""Paths made elsewhere: files become banks, and methods run on what the paths hold."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from prunebench import bankfile, cli, compose, engine, imported, runner, samples
from prunebench.backends.imported import ImportedBackend
from prunebench.backends.replay import ReplayBackend
from prunebench.config import to_run
from prunebench.errors import NOT_AVAILABLE, ConfigError, DamagedFile, MissingInput, UnknownName
from prunebench.importing import ImportOptions, describe, import_file
from prunebench.lab import Lab
from prunebench.registry import methods
from prunebench.report import records
from prunebench.types import TOKEN_STATS, Problem

ROOT = Path(__file__).parent.parent
TRACES = ROOT.parent / "shared" / "data" / "traces_qwen3_8b"
QUIET = Console(quiet=True)
ANSWERED = {"n_tokens": 5, "answer": "42"}


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def entry(*paths, problem="6 times 7?", answer="42", **more):
    return {"problem": problem, "answer": answer, "paths": list(paths), **more}


def written(*entries, name="given.jsonl"):
    lines = [e if isinstance(e, str) else json.dumps(e) for e in entries]
    file = Path(name)
    file.write_text("\n".join(lines) + "\n")
    return file


def take(*entries, name="given", **options):
    """The facts and the paths, by problem, of an import."""
    facts = import_file(written(*entries), ImportOptions(name=name, **options), QUIET)
    bank = imported.open_bank("results/bank", name)
    return facts, [bank.read(Problem(**p))[1] for p in facts.problems]


def one(path, **options):
    """The only path of an import of one path."""
    return take(entry(path), **options)[1][0][0]


def cells(*arguments, label="m"):
    """What a run computes: its rows by method, and its records."""
    with compose.hydra_ready():
        run = to_run(compose.composed(compose.named_bank(list(arguments))))
    execution = runner.execute(run, Lab(), QUIET, "run", label)
    rows = records.analyse(records.frame(execution.rows))
    return {row.cell.method: row.line for row in rows}, execution


def left_behind():
    return [p for p in Path("results").rglob("*") if p.is_file()]


# -- what a path says, and what is inferred ----------------------------------------------------


def given_of(trace):
    """A made-up path with everything that a file can say."""
    names = [n for n in TOKEN_STATS if n != "sum_logprobs"]
    stats = {n: getattr(trace.stats, n).astype(float).tolist() for n in names}
    return {
        "text": trace.text,
        "pieces": list(trace.text),
        "token_ids": trace.token_ids.tolist(),
        "answer": trace.answer,
        "correct": trace.correct,
        "early_answers": trace.early_answers,
        "early_every": trace.early_every,
        **stats,
    }


@pytest.mark.parametrize(
    "name",
    [
        "mean_logprob",
        "deepconf",
        "entropy_top20_renorm",
        "repetition",
        "slim_sc",
        "early_consensus",
    ],
)
def test_methods_see_the_same_through_an_import(name):
    """Text, ids, statistics and early answers up to the checkpoint, against the paths."""
    traces = samples.varied()
    problem = {"problem": samples.PROBLEM.question, "answer": samples.PROBLEM.answer}
    facts, stored = take({**problem, "paths": [given_of(t) for t in traces]})
    backend = ImportedBackend(holds=facts.holds)
    replay = ReplayBackend(lookup=lambda _: (samples.PROMPT_IDS, stored[0]), source=backend)
    session = replay.open(samples.PROBLEM, range(len(traces)))
    session.advance(samples.PREFIX_LENGTH)
    method = methods()[name]()
    found = engine.check(
        method, session, replay, engine.Checkpoint(prefix_length=samples.PREFIX_LENGTH)
    )
    expected = method.score(samples.group(traces, method.requires))
    assert found.reason is None
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6)


def test_a_path_is_completed_from_what_it_says():
    path = one({"text": "So \\boxed{ 042 } it is", "logprobs": [-0.5, -1.5, None], "note": {}})
    assert (path.n_tokens, path.answer, path.correct, path.stopped) == (3, "42", True, True)
    np.testing.assert_array_equal(path.stats.logprobs, np.float32([-0.5, -1.5, np.nan]))
    assert path.token_ids is None
    assert path.stats.entropy is None
    cut = path.cut(2, lambda ids: "never called")
    assert (cut.text, cut.n_tokens, cut.answer, cut.stopped) == (None, 2, None, False)


@pytest.mark.parametrize(
    ("given", "answer", "correct"),
    [
        ({"answer": "\\frac{84}{2}"}, "\\frac{84}{2}", True),  # compared as mathematics
        ({"answer": 42}, "42", True),
        ({"answer": "43"}, "43", False),
        ({"answer": None}, None, False),
        ({"answer": "43", "correct": True}, "43", True),  # the file knows better
        ({"text": "\\boxed{41}", "answer": "42"}, "42", True),
        ({"text": "\\boxed{42}", "stopped": False}, None, False),  # cut: as with our own engines
    ],
)
def test_answers_are_read_and_compared(given, answer, correct):
    path = one({"n_tokens": 3, **given})
    assert (path.answer, path.correct) == (answer, correct)


def test_lists_of_alternatives_give_the_statistics_of_the_20_most_likely():
    rng = np.random.default_rng(0)
    tops = np.log(rng.dirichlet(np.ones(40), size=4))[:, :25]
    path = one(
        {"answer": "42", "logprobs": tops[:, 7].tolist(), "top_logprobs": tops.tolist()},
    )
    best = np.sort(tops, axis=1)[:, -20:]
    np.testing.assert_allclose(path.stats.top_logprobs, best.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(path.stats.max_logprobs, best.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(path.stats.top_mass, np.exp(best).sum(axis=1), rtol=1e-5)
    entropy = -(np.exp(best) * best).sum(axis=1)
    np.testing.assert_allclose(path.stats.top_entropy, entropy, rtol=1e-5)
    np.testing.assert_allclose(path.stats.logprobs, tops[:, 7], rtol=1e-5)
    few = one({"answer": "42", "logprobs": [-1.0], "top_logprobs": [[-1.0, -2.0]]}, name="few")
    assert few.stats.top_logprobs is None  # the mean of two is not the mean of twenty
    assert few.stats.logprobs is not None


def test_a_tokenizer_gives_the_text_at_every_token():
    from tokenizers import Tokenizer

    folder = ROOT / "prunebench" / "tiny" / "weights"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "7*6=42\nA42"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    for name, given in {
        "both": {"text": text, "token_ids": ids},
        "ids": {"token_ids": ids},
        "text": {"text": text},
    }.items():
        path = one(given, name=name, grading="line", tokenizer=str(folder))
        assert (path.text, path.token_ids.tolist(), path.answer) == (text, ids, "42")
        for n in range(len(ids) + 1):
            assert path.text_until(n, decode=None) == tokenizer.decode(ids[:n])
    surprisal = ["method=first_token_surprisal", "n_paths=1", "keep=1", "prefix_length=3"]
    given = {"text": text, "token_ids": ids, "logprobs": [-1.0] * len(ids)}
    one(given, name="with", grading="line", tokenizer=str(folder))
    one(given, name="without", grading="line")
    assert cells("bank=with", *surprisal)[0]["m"].status == "ok"
    assert "needs the tokenizer" in cells("bank=without", *surprisal)[0]["m"].reason
    bare = one({"text": text, "token_ids": ids}, name="bare", grading="line")
    assert bare.text_until(2, decode=None) is None
    assert bare.text_until(len(ids), decode=None) == text


def test_early_answers_at_the_checkpoint():
    path = one(
        {"n_tokens": 1700, "answer": "42", "early_answers": ["7", None, "0042"], "early_every": 500}
    )
    assert [path.early_answer(n) for n in (500, 1000, 1500, 2000)] == ["7", None, "42", "42"]
    with pytest.raises(ConfigError, match=r"multiple of 500.*Got 700"):
        path.early_answer(700)
    longer = one(
        {"n_tokens": 1700, "answer": "42", "early_answers": ["7"], "early_every": 500}, name="long"
    )
    with pytest.raises(MissingInput, match=r"at 1000 tokens; the last one.* at 500"):
        longer.early_answer(1000)
    cut = path.cut(1000, decode=None)
    assert (cut.early_answers, cut.early_answer(1000)) == (("7", None), None)


# -- other files -------------------------------------------------------------------------------


def alternatives(chosen, logprob, text):
    """One step of vLLM's log-probabilities: 20 tokens, of which `chosen` was sampled."""
    table = {str(100 + i): {"logprob": -3.0 - i, "rank": 2 + i} for i in range(19)}
    return {str(chosen): {"logprob": logprob, "rank": 1, "decoded_token": text}, **table}


def test_saved_outputs_of_vllm():
    output = {
        "text": "\\boxed{42}",
        "token_ids": [5, 6, 2],
        "finish_reason": "stop",
        "logprobs": [
            alternatives(5, -0.1, "\\boxed{4"),
            alternatives(6, -0.2, "2}"),
            alternatives(2, -0.3, "<|end|>"),
        ],
    }
    cut = {"text": "\\boxed{42}", "token_ids": [5, 6], "finish_reason": "length", "logprobs": None}
    saved = {"problem": "6 times 7?", "answer": "42", "prompt_token_ids": [1, 9]}
    facts, [[first, second]] = take({**saved, "outputs": [output, cut]})
    assert (first.answer, first.correct, first.stopped) == ("42", True, True)
    assert [first.text_until(n, None) for n in range(4)] == ["", "\\boxed{4", *["\\boxed{42}"] * 2]
    np.testing.assert_allclose(first.stats.logprobs, [-0.1, -0.2, -0.3], rtol=1e-6)
    expected = (-0.1 - sum(3.0 + i for i in range(19))) / 20
    np.testing.assert_allclose(first.stats.top_logprobs[0], expected, rtol=1e-6)
    assert (second.answer, second.correct, second.stopped) == (None, False, False)
    assert facts.paths_with["logprobs"] == 1
    prompt, _ = imported.open_bank("results/bank", "given").read(Problem(**facts.problems[0]))
    assert prompt.tolist() == [1, 9]


def test_replies_of_a_server_one_path_per_line():
    completion = {
        "choices": [
            {
                "text": "\\boxed{42}",
                "finish_reason": "stop",
                "logprobs": {
                    "tokens": ["\\boxed{", "42}"],
                    "token_logprobs": [-0.5, -1.0],
                    "top_logprobs": [{"\\boxed{": -0.5}, {"42}": -1.0}],
                },
            }
        ]
    }
    content = [
        {"token": t, "logprob": -0.25, "top_logprobs": [{"token": t, "logprob": -0.25}]}
        for t in ("It is ", "\\boxed{41}")
    ]
    chat = {
        "choices": [
            {
                "message": {"role": "assistant", "content": "It is \\boxed{41}"},
                "finish_reason": "stop",
                "logprobs": {"content": content},
            }
        ]
    }
    Path("known.json").write_text(json.dumps([{"problem": "6 times 7?", "answer": "42"}]))
    body = {"choices": [{"message": {"content": "42"}}], "usage": {"completion_tokens": 7}}
    facts, [paths] = take(
        {"prompt": "Solve: 6 times 7? Box it.", "response": completion},
        {"problem": "6 times 7?", "answer": "42", "response": {"status_code": 200, "body": chat}},
        {"problem": "6 times 7?", "answer": "42", **body},
        problems="known.json",
    )
    assert [(p.index, p.answer, p.correct, p.n_tokens) for p in paths] == [
        (0, "42", True, 2),
        (1, "41", False, 2),
        (2, None, False, 7),
    ]
    assert [p.stats.logprobs.tolist() for p in paths[:2]] == [[-0.5, -1.0], [-0.25, -0.25]]
    assert paths[1].text_until(1, None) == "It is "
    assert facts.n_paths == 3
    with pytest.raises(DamagedFile, match=r"line 1: the right answer is missing.*problems="):
        take({"prompt": "Solve: 6 times 7?", "response": completion}, name="without")


def test_probed_paths():
    probed = {
        "question": "6 times 7?",
        "gold_answer": "42",
        "probe_freq": 10,
        "each_branch": [[["1", "ERR", "42"], 35, "42"], [[], 4, "ERR"]],
    }
    Path("list.json").write_text(json.dumps([probed]))
    facts = import_file(Path("list.json"), ImportOptions(name="list"), QUIET)
    _, [paths] = take(probed, name="lines")
    assert [(p.n_tokens, p.answer, p.correct) for p in paths] == [
        (35, "42", True),
        (4, None, False),
    ]
    assert paths[0].early_answers == ("1", None, "42")
    assert (facts.early_every, facts.holds) == ([10], ["early_answers"])


# -- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2: it is not valid JSON"),
        ("[1]", "line 2: it must be an object"),
        (entry(), "'paths' must be a list of at least one path"),
        ({"answer": "1", "paths": [ANSWERED]}, "'problem' must be the text"),
        ({"problem": "a", "paths": [ANSWERED]}, "the right answer is missing"),
        (entry(ANSWERED), "stands in the file before"),
        (entry(ANSWERED, problem="b", id="../x"), "'id' must be made of letters"),
        ({"n_tokens": 5}, "path 0: the final answer is not known"),
        ({"answer": "1"}, "path 0: the number of tokens is not known"),
        ({**ANSWERED, "answr": 1}, "unknown field 'answr'"),
        ({**ANSWERED, "n_tokens": -1}, "'n_tokens' must be at least 0. Got -1"),
        ({**ANSWERED, "n_tokens": True}, "'n_tokens' must be of type int. Got True"),
        ({**ANSWERED, "token_ids": [1, 2]}, "token_ids has 2, n_tokens has 5"),
        ({**ANSWERED, "token_ids": [1, -2]}, "'token_ids' must be a list of integers"),
        ({"answer": "1", "logprobs": [-1, "x"]}, "'logprobs' must be a list of numbers"),
        ({"answer": "1", "logprobs": [-1, 0.5]}, "'logprobs' must be at most 0. Got 0.5"),
        ({**ANSWERED, "early_answers": ["1"]}, "'early_answers' needs 'early_every'"),
        ({**ANSWERED, "answer": None, "correct": True}, "'correct' is true, but there is no"),
        ({**ANSWERED, "stopped": "yes"}, "'stopped' must be of type bool"),
    ],
)
def test_a_file_with_a_fault_is_refused_whole(line, message):
    if isinstance(line, dict) and "paths" not in line and "problem" not in line:
        line = entry(line, problem="another")
    with pytest.raises(DamagedFile) as raised:
        take(entry(ANSWERED), line)
    assert "line 2" in str(raised.value)
    assert message in str(raised.value)
    assert left_behind() == []


def test_many_faults_are_counted():
    with pytest.raises(DamagedFile, match=r"9 faults(.|\n)*line 5(.|\n)*and 4 more"):
        take(*["{"] * 9)
    with pytest.raises(DamagedFile, match="holds no problems"):
        take("")
    with pytest.raises(DamagedFile, match=r"none of the fields 'paths'.*Found: answer, problem"):
        take({"problem": "a", "answer": "1"})
    with pytest.raises(DamagedFile, match="another path of the problem says or shows the contrary"):
        take(entry({**ANSWERED, "correct": True}, {**ANSWERED, "correct": False}))


def test_options_that_cannot_work():
    with pytest.raises(ConfigError, match=r"Got '\.\./x'"):
        ImportOptions(name="../x")
    with pytest.raises(ConfigError, match="jsonl, vllm, probed"):
        ImportOptions(name="x", format="csv")
    with pytest.raises(ConfigError, match="answer style"):
        ImportOptions(name="x", grading="poetry")
    with pytest.raises(ConfigError, match="does not exist"):
        import_file(Path("nothing.jsonl"), ImportOptions(name="x"), QUIET)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        take(entry(ANSWERED), tokenizer="nowhere")
    assert cli.main(["import", "given.jsonl"]) == 2
    assert cli.main(["import", "given.jsonl", "name=x", "colour=red"]) == 2


def test_the_same_file_again_is_nothing_new_and_another_one_an_error():
    facts, _ = take(entry(ANSWERED))
    before = {f: f.stat().st_mtime_ns for f in left_behind()}
    assert take(entry(ANSWERED))[0] == facts
    assert {f: f.stat().st_mtime_ns for f in left_behind()} == before
    with pytest.raises(ConfigError, match=r"other options \(model=\)"):
        take(entry(ANSWERED), model="another")
    with pytest.raises(ConfigError, match=r"'given'.*holds the paths of given\.jsonl.*others"):
        take(entry({**ANSWERED, "n_tokens": 6}))


def test_names_for_tables_come_from_the_file_or_the_options():
    assert take(entry(ANSWERED, model="m1", dataset="d1"))[0].model == "m1"
    facts, _ = take(entry(ANSWERED, model="m1"), name="b", dataset="d2")
    assert (facts.model, facts.dataset) == ("m1", "d2")
    two = [entry(ANSWERED, model="m1"), entry(ANSWERED, problem="b", model="m2")]
    facts, _ = take(*two, name="c")
    assert (facts.model, facts.dataset) == ("c", "c")
    assert "lengths and answers only" in " ".join(describe(facts))


# -- runs --------------------------------------------------------------------------------------

PATHS = [
    {"n_tokens": 4, "answer": "42", "logprobs": [-1.0, -1.0, -1.0, -1.0]},
    {"n_tokens": 9, "answer": "41", "logprobs": [-2.0, *[-0.1] * 8]},
    {"n_tokens": 9, "answer": "42", "logprobs": [-0.5, -0.1, -0.3, *[-5.0] * 6]},
    {"n_tokens": 9, "answer": "40"},
]


def test_log_probabilities_alone_are_enough_for_mean_logprob():
    """By hand: at 3 tokens the means are -1, -0.733, -0.3 and none; keeping 2 keeps 2 and 1."""
    take(entry(*PATHS))
    lines, execution = cells(
        "bank=given", "method=mean_logprob", "n_paths=4", "keep=2", "prefix_length=3"
    )
    line = lines["m"]
    assert line.status == "ok"
    assert line.avg == pytest.approx(0.5)
    assert line.cons == pytest.approx(0.5)
    assert line.generator_tokens == 4 * 3 + 6 + 6
    assert "1 paths could not be scored" in line.reason
    assert "logprobs of every token" in line.reason
    own = next(row for row in execution.rows if row["method"] == "m")
    assert list(own["kept"]) == [1, 2]


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("mean_logprob", "logprobs"),
        ("stop", "cache_reader"),
        ("repetition", "the text of the paths"),
        ("early_consensus", "early_answers"),
        ("llm_judge", "endpoint"),
    ],
)
def test_what_the_traces_lack_makes_a_method_not_available(name, needs):
    bare = [{k: v for k, v in path.items() if k != "logprobs"} for path in PATHS]
    take(entry(*bare))
    lines, _ = cells("bank=given", f"method={name}", "n_paths=4", "keep=2", "prefix_length=3")
    assert lines["m"].status == "skipped"
    assert lines["m"].reason.startswith(NOT_AVAILABLE)
    assert needs in lines["m"].reason
    assert math.isnan(lines["m"].avg)
    assert lines["none"].avg == lines["random"].avg == 0.5
    assert lines["oracle"].avg == 1.0


def test_the_command_line_from_file_to_tables(capsys):
    bare = [{k: v for k, v in path.items() if k != "logprobs"} for path in PATHS]
    assert cli.main(["import", str(written(entry(*PATHS))), "name=one", "model=big"]) == 0
    assert cli.main(["import", str(written(entry(*bare), name="b.jsonl")), "name=two"]) == 0
    assert "1 problems, 4 paths" in capsys.readouterr().out
    arguments = ["-m", "bank=one,two", "method=mean_logprob"]
    assert cli.main([*arguments, "n_paths=4", "keep=2", "prefix_length=3", "seed=5"]) == 0
    [summary] = Path("results/sweeps").glob("*/*/summary.csv")
    table = pd.read_csv(summary).set_index(["dataset", "method"])
    assert table.status["one", "mean_logprob"] == "ok"
    assert table.status["two", "mean_logprob"] == "skipped"
    assert set(table.model["one"]) == {"big"}
    assert (table.avg[:, "oracle"] == 1.0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bank=givn"], "Unknown imported bank 'givn'. Did you mean 'given'"),
        (["bank=given", "model=tiny"], "bank=given model=tiny"),
        (["bank=given", "mode=online"], "use mode=replay"),
        (["bank=given", "n_paths=5"], "at most 4, .*Got 5"),
        (["bank=given", "n_paths=4", "pool_size=6"], "at most 4, .*Got 6"),
        (["bank.name=given"], "Give bank=given instead"),
        (["backend=imported"], "give bank=NAME"),
        (["dataset=imported"], "give bank=NAME"),
    ],
)
def test_runs_that_cannot_work_say_why(arguments, message):
    take(entry(*PATHS))
    defaults = {"n_paths": "4", "keep": "2", "prefix_length": "3", "method": "random"}
    given = {a.partition("=")[0] for a in arguments}
    rest = [f"{name}={value}" for name, value in defaults.items() if name not in given]
    with pytest.raises((ConfigError, UnknownName), match=message):
        cells(*arguments, *rest)


def test_lost_paths_are_not_generated_again():
    take(entry(*PATHS))
    [file] = Path("results/bank/imported/given/problems").iterdir()
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ConfigError, match=r"lost paths.*import given\.jsonl again"):
        cells("bank=given", "method=random", "n_paths=4", "keep=2", "prefix_length=3")


def test_files_of_our_own_paths_have_no_further_columns(tmp_path):
    own = samples.trace(0, 5, seed=1)
    data = bankfile.encode(samples.PROBLEM, samples.PROMPT_IDS, [own], bank="b")
    (tmp_path / "f.parquet").write_bytes(data)
    assert list(pd.read_parquet(tmp_path / "f.parquet").columns) == list(bankfile.COLUMNS)


# -- the two methods ---------------------------------------------------------------------------


def test_shortest_finished_and_early_consensus_by_hand():
    take(
        entry(
            {"n_tokens": 30, "answer": "1", "early_answers": ["5", "1", "1"]},
            {"n_tokens": 12, "answer": "1", "early_answers": ["5"]},
            {"n_tokens": 20, "answer": "42", "early_answers": ["5", "42"]},
            {"n_tokens": 45, "answer": "42", "early_answers": [None, "42", None, "42"]},
            {"n_tokens": 45, "answer": None, "early_answers": ["42"]},
            early_every=10,
        )
    )
    expected = {
        "shortest_finished": [-1, 8, 0, -1, -1],
        "early_consensus": [0.4, 0.4, 0.4, 0.4, None],
    }
    for name, scores in expected.items():
        _, execution = cells(
            "bank=given", f"method={name}", "n_paths=5", "keep=2", "prefix_length=20"
        )
        [table] = Path("results/bank/imported/given/scores").glob(f"{name}-*")
        [_, batch] = map(json.loads, table.read_text().splitlines())
        assert batch["scores"] == scores
        assert execution.rows[0]["status"] == "ok"


# -- real traces -------------------------------------------------------------------------------

L, N, K = 4000, 64, 8


@pytest.fixture(scope="module")
def aime24(tmp_path_factory):
    """Twelve problems with 128 paths of Qwen3-8B: the file's content and the imported bank."""
    file = TRACES / "aime24.json"
    if not file.is_file():
        pytest.skip(f"no real traces: {file} is absent")
    folder = tmp_path_factory.mktemp("real")
    problems = json.loads(file.read_text())[:12]
    (folder / "some.json").write_text(json.dumps(problems))
    options = ImportOptions(name="aime24", dir=str(folder), model="qwen3_8b")
    facts = import_file(folder / "some.json", options, QUIET)
    return problems, facts, f"bank.dir={folder}"


def test_plain_numbers_of_real_traces(aime24):
    """No pruning and random, recomputed from the file without the code under test."""
    problems, facts, where = aime24
    assert (len(facts.problems), facts.n_paths) == (12, 128)
    lines, _ = cells(
        "bank=aime24", where, "method=shortest_finished", "n_paths=128", "keep=16",
        f"prefix_length={L}",
    )  # fmt: skip
    right, votes, full, pruned = [], [], [], []
    for problem in problems:
        finals = [final for *_, final in problem["each_branch"]]
        lengths = np.array([n for _, n, _ in problem["each_branch"]])
        same = {f: f != "ERR" and int_of(f) == int(problem["gold_answer"]) for f in set(finals)}
        right.append(np.mean([same[f] for f in finals]))
        ballots = Counter(int_of(f) for f in finals if f != "ERR")
        winners = [f for f, n in ballots.items() if n == max(ballots.values())]
        votes.append(np.mean([f == int(problem["gold_answer"]) for f in winners]))
        full.append(lengths.sum())
        after = np.maximum(0, lengths - L).sum()
        pruned.append(np.minimum(lengths, L).sum() + 16 / 128 * after)
    assert lines["none"].avg == pytest.approx(np.mean(right))
    assert lines["none"].cons == pytest.approx(np.mean(votes))
    assert lines["none"].generator_tokens == pytest.approx(np.mean(full))
    assert lines["random"].avg == pytest.approx(np.mean(right))
    assert lines["random"].generator_tokens == pytest.approx(np.mean(pruned))
    assert lines["oracle"].avg >= lines["m"].avg


def int_of(answer):
    """An integer as a number, anything else as its text: all right answers here are integers."""
    return int(answer) if answer.lstrip("-").isdigit() else answer


def test_the_closed_form_of_random_agrees_with_simulation(aime24):
    problems, _, where = aime24
    arguments = ["bank=aime24", where, "pool_size=128", f"n_paths={N}", f"keep={K}"]
    lines, _ = cells(
        *arguments,
        f"prefix_length={L}",
        "method=random",
        "evaluation.n_subsets=100",
        label="random",
    )
    rng = np.random.default_rng(1)
    accuracy, tokens = [], []
    for problem in problems:
        lengths = np.array([n for _, n, _ in problem["each_branch"]])
        gold = problem["gold_answer"]
        right = np.array([int_of(f) == int_of(gold) for *_, f in problem["each_branch"]])
        drawn = np.array([rng.permutation(128)[:N] for _ in range(2000)])  # the first K are kept
        accuracy.append(right[drawn[:, :K]].mean())
        after = np.maximum(0, lengths - L)[drawn[:, :K]].sum(axis=1)
        tokens.append((np.minimum(lengths, L)[drawn].sum(axis=1) + after).mean())
    # 12 problems x 2000 draws of 8 paths: a standard error below 0.002 and 0.3 %
    assert lines["random"].avg == pytest.approx(np.mean(accuracy), abs=0.006)
    assert lines["random"].generator_tokens == pytest.approx(np.mean(tokens), rel=0.01)
    assert lines["none"].avg == pytest.approx(lines["random"].avg)


@pytest.mark.parametrize("n_paths", [1, 7, 128])
def test_early_answers_run_at_multiples_of_500_tokens_for_any_number_of_paths(aime24, n_paths):
    _, _, where = aime24
    arguments = ["bank=aime24", where, "method=early_consensus", "dataset.limit=3"]
    arguments += [f"n_paths={n_paths}", f"keep={(n_paths + 3) // 4}"]
    for prefix_length in (500, 6500):
        lines, _ = cells(*arguments, f"prefix_length={prefix_length}")
        assert lines["m"].status == "ok"
        assert lines["random"].avg <= lines["oracle"].avg + 1e-12
        assert lines["m"].avg <= lines["oracle"].avg + 1e-12


def test_right_answers_of_real_traces_in_other_spellings():
    """Answers with fractions, roots and pi: equal texts up to blanks are right, and right ones
    may differ more than that. The file is read in place."""
    file = TRACES / "hmmt25.json"
    if not file.is_file():
        pytest.skip(f"no real traces: {file} is absent")
    golds = ("\\frac{9 \\sqrt{23}}{23}", "1-\\frac{2}{\\pi}")
    problems = [p for p in json.loads(file.read_text()) if p["gold_answer"] in golds]
    assert len(problems) == 2
    Path("some.json").write_text(json.dumps(problems))
    facts = import_file(Path("some.json"), ImportOptions(name="some"), QUIET)
    bank = imported.open_bank("results/bank", "some")
    for given, problem in zip(problems, facts.problems, strict=True):
        bare = given["gold_answer"].replace(" ", "")
        paths = bank.read(Problem(**problem))[1]
        same = [f.replace(" ", "") == bare for *_, f in given["each_branch"]]
        assert all(t.correct for t, equal in zip(paths, same, strict=True) if equal)
        assert 0 < sum(same) <= sum(t.correct for t in paths) < len(paths)
        assert given["gold_answer"] not in {f for *_, f in given["each_branch"]}

"""The engine behind a completions server: against a local server whose abilities and faults are
set, and against a real vLLM server. References: the made-up model's own probabilities, and the
transformers engine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
from faultyserver import error
from safetensors.numpy import load_file
from tokenserver import END, TOKENIZER, TokenModel, TokenServer, logprobs_after

import prunebench.tiny
from prunebench.backend import ModelSpec, ReaderWeights, Sampling
from prunebench.backends._openaidraw import Refused
from prunebench.backends.openai import OpenAIBackend
from prunebench.backends.transformers import TransformersBackend
from prunebench.cli import main
from prunebench.errors import ConfigError, DamagedFile, EndpointError, ModelNotFound, Unavailable
from prunebench.types import TOKEN_STATS, Capability, Problem, Trace

pytest.importorskip("openai")

C = Capability
PROBLEMS = [Problem(id=f"p{i}", question=f"{i}+{i}*2", answer=str(3 * i)) for i in range(1, 4)]
FROM_TOP = {C.TOP_LOGPROBS, C.MAX_LOGPROBS, C.TOP_MASS, C.TOP_ENTROPY}
KEY = "sk-very-secret-0123456789"

Make = Callable[..., OpenAIBackend]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes engines that pause no longer than 10 ms and close at the end."""
    engines = []

    def engine(base_url: str | None, sampling: Sampling | None = None, **options: Any):
        settings: dict[str, Any] = {
            "base_url": base_url,
            "model_name": "judge",
            "max_wait": 0.01,
            "max_attempts": 3,
            "timeout": 5.0,
        }
        made = OpenAIBackend(**{**settings, **options})
        sampling = sampling or Sampling(temperature=1.0, top_p=0.95, top_k=40, max_new_tokens=60)
        made.bind(ModelSpec(name="tiny", id="embedded:tiny", sampling=sampling, answer="line"), 0)
        engines.append(made)
        return made

    yield engine
    for made in engines:
        made.close()


def ids(traces: list[Trace]) -> list[list[int]]:
    return [trace.token_ids.tolist() for trace in traces]


def complete(engine: OpenAIBackend, n: int = 4, problem: Problem = PROBLEMS[0]) -> list[Trace]:
    [(_, _, traces)] = engine.generate([problem], range(n))
    return traces


# What the server can do.


def test_the_probe_is_short_stored_and_read_again(make: Make, tmp_path: Path) -> None:
    with TokenServer() as server:
        engine = make(server.base_url)
        given = engine.provides
        assert 5 <= len(server.requests) <= 15
        assert all(body["max_tokens"] <= 16 for body in server.completions())
        server.requests.clear()
        again = make(server.base_url + "/")
        assert again.provides == given == {C.LOGPROBS, C.CONTINUE, *FROM_TOP}
        assert again.identity() == engine.identity()
        assert not server.requests
    [file] = tmp_path.rglob("*.json")
    assert json.loads(file.read_text())["asked"].startswith("20")
    file.write_text("{")
    with pytest.raises(DamagedFile, match="Delete it"):
        _ = make(server.base_url).provides


@pytest.mark.parametrize(
    ("model", "expected", "abilities"),
    [
        (TokenModel(logprobs=0), set(), {"logprobs": 0, "token_prompts": True}),
        (TokenModel(logprobs=5, strict=True), {C.LOGPROBS}, {"logprobs": 5, "plain": {}}),
        (TokenModel(logprobs=1), {C.LOGPROBS}, {"logprobs": 1}),
        (TokenModel(names_ids=False), {C.LOGPROBS, *FROM_TOP}, {"token_ids": False}),
        (TokenModel(token_prompts=False, logprobs=0), set(), {"token_prompts": False}),
        (TokenModel(tempered=True), set(), {"logprobs": 0}),
        (TokenModel(noise=True), {C.LOGPROBS, *FROM_TOP}, {"path_noise": True}),
    ],
    ids=["no logprobs", "five", "one", "no ids", "text", "tempered", "path noise"],
)
def test_what_a_server_can_do_is_what_it_provides(
    make: Make, model: TokenModel, expected: set, abilities: dict[str, Any]
) -> None:
    with TokenServer(model) as server:
        engine = make(server.base_url, Sampling(top_p=1.0, top_k=0, max_new_tokens=60))
        assert engine.provides == {C.CONTINUE, *expected}
        found = json.loads(next(Path("results/endpoint").glob("*.json")).read_text())["abilities"]
        assert found.items() >= abilities.items()
        stats = complete(engine)[0].stats
        given = {name for name in TOKEN_STATS if getattr(stats, name) is not None}
        assert given == {c.value for c in expected}


def test_without_an_address_it_provides_what_a_full_server_gives(make: Make) -> None:
    engine = make(None)
    assert engine.provides == {C.LOGPROBS, C.CONTINUE, *FROM_TOP}
    assert make(None, reader="stop").provides == engine.provides | {C.CACHE_READER}
    with pytest.raises(ConfigError, match=r"backend\.base_url="):
        engine.identity()


def test_the_only_model_is_found_and_several_are_named(make: Make, monkeypatch) -> None:
    with TokenServer() as server:
        with pytest.raises(ConfigError, match=r"has 2 models \(judge, other\).*model_name=NAME"):
            _ = make(server.base_url, model_name=None).provides
        engine = make(server.base_url, model_name=None, reader="other")
        assert engine.identity()["served"] == "judge"


def test_no_server_and_a_wrong_model_are_said_as_for_a_judge(make: Make) -> None:
    nowhere = "http://127.0.0.1:9/v1"
    with pytest.raises(EndpointError, match=r"No server answers at .*backend\.base_url"):
        _ = make(nowhere).provides
    with pytest.raises(EndpointError, match=r"does not list its models, or none answers"):
        _ = make(nowhere, model_name=None).provides
    with (
        TokenServer(script=[error(404, "The model `x` does not exist.")] * 9) as server,
        pytest.raises(EndpointError, match=r"Its models: judge, other.*backend\.model_name=NAME"),
    ):
        _ = make(server.base_url, model_name="x").provides
    assert not list(Path.cwd().rglob("*.json")), "nothing was learnt"


def test_a_server_that_is_gone_is_noticed_before_work_begins(make: Make) -> None:
    with TokenServer() as server:
        engine = make(server.base_url)
        engine.load()
    with pytest.raises(EndpointError, match="No server answers"):
        make(server.base_url).load()
    assert engine.provides, "what is stored needs no server"


@pytest.mark.parametrize("setting", ["temperature", "top_p", "top_k"])
def test_a_setting_that_the_server_ignores_is_refused(make: Make, setting: str) -> None:
    model = TokenModel(obeys=frozenset({"temperature", "top_p", "top_k", "seed"} - {setting}))
    off = {"top_p": 1.0, "top_k": 0, "temperature": 0.0}[setting]
    plain = Sampling(temperature=1.0, top_p=0.9, top_k=5, max_new_tokens=20)
    with TokenServer(model) as server:
        with pytest.raises(ConfigError, match=rf"obey model\.sampling\.{setting}=.*Delete .*json"):
            make(server.base_url, plain).load()
        setattr(plain, setting, off)
        make(server.base_url, plain).load()


def test_seeds_are_not_taken_for_temperature(make: Make) -> None:
    model = TokenModel(obeys=frozenset({"seed", "top_k"}), fixed=1.0)
    plain = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=20)
    with (
        TokenServer(model) as server,
        pytest.raises(ConfigError, match=r"obey model\.sampling\.temperature="),
    ):
        make(server.base_url, plain).load()


def test_tokenizer_files_are_enough_and_needed(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    TOKENIZER.save_pretrained(folder)
    with TokenServer() as server:
        engine = make(server.base_url)
        engine.spec.path = str(folder)
        with pytest.raises(ModelNotFound, match=r"config\.json"):
            engine.identity()
        (folder / "config.json").write_text('{"model_type": "qwen2"}')
        assert engine.identity()["tokenizer_sha256"]
        assert engine.tokenize("1+2").shape == (3,)
        engine.spec.path, engine.spec.id = None, "nobody/nothing"
        with pytest.raises(ModelNotFound, match=r"tokenizer of nobody/nothing.*hf download"):
            engine.identity()


# Paths.


def test_requests_and_paths_of_a_full_server(make: Make) -> None:
    with TokenServer() as server:
        engine = make(server.base_url)
        engine.load()
        server.requests.clear()
        traces = complete(engine)
        bodies = server.completions()
        assert ids(traces) == [server.model.draw(body) for body in by_seed(bodies, traces, server)]
    assert len({body["seed"] for body in bodies}) == len(bodies) == 4
    for body in bodies:
        assert body["prompt"] == engine.prompt_ids(PROBLEMS[0].question).tolist()
        assert (body["max_tokens"], body["temperature"], body["top_p"]) == (60, 1.0, 0.95)
        assert (body["top_k"], body["repetition_penalty"], body["min_p"]) == (40, 1.0, 0.0)
        assert body["stop_token_ids"] == engine.eos_ids
    for trace in traces:
        assert trace.stopped == (trace.token_ids[-1] == END)
        assert trace.text == TOKENIZER.decode(trace.token_ids, skip_special_tokens=True)
    assert len({len(trace.token_ids) for trace in traces}) > 1


def by_seed(bodies: list[dict], traces: list[Trace], server: TokenServer) -> list[dict]:
    """The bodies in the order of the paths they were sent for."""
    drawn = {tuple(server.model.draw(body)): body for body in bodies}
    return [drawn[tuple(trace.token_ids.tolist())] for trace in traces]


def test_a_path_does_not_depend_on_the_others(make: Make) -> None:
    with TokenServer() as server:
        engine = make(server.base_url, cache_dir=None)
        together = [ids(t) for _, _, t in engine.generate(PROBLEMS, range(4))]
        [(_, _, alone)] = engine.generate([PROBLEMS[1]], [2])
        assert ids(alone) == [together[1][2]]
        engine.bind(engine.spec, 1)
        assert ids(complete(engine)) != together[0]


def test_problems_share_the_requests_in_flight(make: Make) -> None:
    with TokenServer(delay=0.05) as server:
        engine = make(server.base_url, concurrency=6)
        engine.load()
        server.most_in_flight = 0
        assert len(list(engine.generate(PROBLEMS, range(2)))) == 3
    assert 2 < server.most_in_flight <= 6


def test_a_session_launches_drops_and_continues_from_token_ids(make: Make) -> None:
    with TokenServer() as server:
        engine = make(server.base_url)
        whole = complete(engine, 6)
        session = engine.open(PROBLEMS[0], range(6))
        server.requests.clear()
        session.advance(8)
        launched = session.traces()
        assert ids(launched) == [path[:8] for path in ids(whole)]
        assert {body["max_tokens"] for body in server.completions()} == {8}
        assert [t.stopped for t in launched] == [t.n_tokens <= 8 and t.stopped for t in whole]
        session.keep(np.array([True, False] * 3))
        server.requests.clear()
        finished = session.finish()
        going_on = [t for t in launched[::2] if not t.stopped]
        bodies = server.completions()
        prompt = session.prompt_ids.tolist()
        assert {tuple(b["prompt"]) for b in bodies} == {
            (*prompt, *t.token_ids.tolist()) for t in going_on
        }
        assert {body["max_tokens"] for body in bodies} == {60 - 8}
        assert [t.index for t in finished] == [0, 2, 4]
        for before, after in zip(launched[::2], finished, strict=True):
            assert after.token_ids[: before.n_tokens].tolist() == before.token_ids.tolist()
            assert len(after.stats.logprobs) == after.n_tokens
        session.close()
        assert session.overrun == 0


def test_statistics_are_those_of_the_raw_distribution(make: Make) -> None:
    """Against the made-up model's own probabilities; the sampling is far from raw."""
    with TokenServer() as server:
        sampling = Sampling(temperature=0.7, top_p=0.9, top_k=5, max_new_tokens=40)
        engine = make(server.base_url, sampling)
        for _ in range(2):  # fresh, then from the cache
            traces = complete(engine, 3)
            for trace in traces:
                row = [*engine.prompt_ids(PROBLEMS[0].question), *trace.token_ids]
                logp = np.stack([logprobs_after(int(t), False) for t in row[-1 - trace.n_tokens :]])
                logp = logp[: trace.n_tokens]
                best = -np.sort(-logp, axis=1)[:, :20]
                p = np.exp(best)
                stats, at = trace.stats, np.arange(trace.n_tokens)
                expected = {
                    "logprobs": logp[at, trace.token_ids],
                    "top_logprobs": best.mean(axis=1),
                    "max_logprobs": best[:, 0],
                    "top_mass": p.sum(axis=1),
                    "top_entropy": -(p * best).sum(axis=1),
                }
                for name, values in expected.items():
                    found = getattr(stats, name)
                    assert found.dtype == np.float32
                    assert found == pytest.approx(values, abs=1e-5), name
                assert stats.entropy is None
                assert stats.sum_logprobs is None
        sent = len(server.requests)
        complete(engine, 3)
        assert len(server.requests) == sent
    assert any("from the disk cache" in note for note in engine.notes())
    assert engine.notes() == []


def test_too_few_alternatives_of_different_names_are_nan(make: Make) -> None:
    """By text alone, tokens that are no whole character cannot be told apart."""
    with TokenServer(TokenModel(names_ids=False, wild=True)) as server:
        traces = complete(make(server.base_url), 8)
        top = np.concatenate([trace.stats.top_logprobs for trace in traces])
    assert np.isnan(top).any()


def test_a_server_that_takes_only_text(make: Make, caplog) -> None:
    """It reads ASCII as the tokens that it was; bytes that are no character it does not."""
    tame = TokenModel(token_prompts=False, names_ids=False, logprobs=0, strict=True)
    with TokenServer(tame) as server:
        sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=200)
        engine = make(server.base_url, sampling)
        session = engine.open(PROBLEMS[0], range(4))
        session.advance(6)
        server.requests.clear()
        traces = session.finish()
        assert all(isinstance(body["prompt"], str) for body in server.completions())
        for body in server.completions():
            assert body["prompt"].startswith(TOKENIZER.decode(session.prompt_ids))
    assert all(trace.token_ids[-1] == END for trace in traces), "the end is added"
    assert engine.notes() == []
    assert not caplog.records

    wild = TokenModel(token_prompts=False, names_ids=False, logprobs=0, strict=True, wild=True)
    with TokenServer(wild) as server:
        engine = make(server.base_url, sampling)
        session = engine.open(PROBLEMS[0], range(4))
        session.advance(6)
        assert session.traces()[0].n_tokens > 0
        session.finish()
        notes = engine.notes()
    assert any("may have been sampled as other tokens" in note for note in notes)


def test_retokenised_prefixes_are_counted_and_warned_of_once(make: Make, caplog) -> None:
    """Ids are known, so prefixes hold bytes that are no character; text prompts lose them."""
    model = TokenModel(token_prompts=False, wild=True)
    with TokenServer(model) as server:
        engine = make(server.base_url)
        session = engine.open(PROBLEMS[0], range(5))
        session.advance(6)
        launched = session.traces()
        assert engine.notes() == []
        server.requests.clear()
        session.finish()
        [note] = engine.notes()
        n = len([t for t in launched if not t.stopped])
        changed = sum(
            TOKENIZER(TOKENIZER.decode(t.token_ids))["input_ids"] != t.token_ids.tolist()
            for t in launched
            if not t.stopped
        )
    assert f"{changed} replies of {n} followed a prompt" in note
    assert len([r for r in caplog.records if "slightly different prefixes" in r.message]) == 1


def test_a_cut_by_the_server_ends_a_path_and_a_long_problem_fails_alone(make: Make) -> None:
    long = Problem(id="long", question="1+" * 60 + "1", answer="61")
    with TokenServer(TokenModel(context=120)) as server:
        engine = make(server.base_url)
        found = engine.generate([PROBLEMS[0], long, PROBLEMS[1]], range(2))
        assert [(problem.id, len(traces)) for problem, _, traces in (next(found), next(found))] == [
            ("p1", 2), ("p2", 2),
        ]  # fmt: skip
        with pytest.raises(Refused, match=r"refuses 2 of .*maximum context length"):
            next(found)
        session = engine.open(long, range(2))
        with pytest.raises(Refused, match="refuses 2 of 2 paths, the first with index 0"):
            session.advance(60)


def test_a_reply_cut_by_the_server_is_said_and_asked_again(make: Make) -> None:
    model = TokenModel(longest=20)
    with TokenServer(model) as server:
        engine = make(server.base_url)
        cut = [trace for trace in complete(engine, 6) if not trace.stopped]
        assert cut
        assert {trace.n_tokens for trace in cut} == {20}
        [note] = engine.notes()
        assert f"{len(cut)} replies of 6 ended before max_new_tokens" in note
        model.longest = 10_000
        server.requests.clear()
        again = complete(make(server.base_url), 6)
        assert len(server.completions()) == len(cut), "the others are kept"
        assert max(trace.n_tokens for trace in again) > 20


@pytest.mark.parametrize("reason", ["eos_token", "stop_sequence"])
@pytest.mark.parametrize("piece", ["", None])
def test_ends_are_known_by_other_names(make: Make, reason: str, piece: str | None) -> None:
    with TokenServer() as server:
        expected = complete(make(server.base_url, cache_dir=None), 6)
    model = TokenModel(names_ids=False, end_reason=reason, end_piece=piece)
    with TokenServer(model) as server:
        engine = make(server.base_url)
        found = complete(engine, 6)
        assert engine.notes() == []
    assert any(trace.stopped for trace in found)
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.stopped == other.stopped
        assert one.stats.logprobs == pytest.approx(other.stats.logprobs, abs=1e-6)


def test_sessions_that_were_started_together_are_drawn_together(make: Make) -> None:
    with TokenServer(delay=0.05) as server:
        engine = make(server.base_url, concurrency=6)
        alone = engine.open(PROBLEMS[0], range(2))
        expected = ids(alone.finish())
        server.requests.clear()
        server.most_in_flight = 0
        sessions = engine.open_together(PROBLEMS, range(2))
        for session in sessions:
            session.start(8)
        sessions[0].advance(8)
        assert len(server.completions()) == 6
        assert server.most_in_flight > 2
        for session in sessions:
            session.advance(8)
        assert len(server.completions()) == 6
        assert ids(sessions[0].traces()) == [path[:8] for path in expected]


def test_log_probabilities_in_the_form_of_the_chat_api_are_read() -> None:
    from prunebench.backends._openaireply import Drawn, drawn_of

    tops = [{"id": i, "token": "\ufffd", "logprob": float(-i)} for i in range(1, 22)]
    token = {"id": 7, "token": "\ufffd", "logprob": -6.0, "top_logprobs": tops}
    choice = {"text": "x", "finish_reason": "length", "logprobs": {"content": [token]}}
    drawn = drawn_of(json.dumps({"choices": [choice]}))
    assert isinstance(drawn, Drawn)
    assert drawn.token_ids is not None
    assert drawn.token_ids.tolist() == [7]
    assert drawn.stats["top_logprobs"] == pytest.approx([-10.5])
    assert drawn.stats["max_logprobs"] == pytest.approx([-1.0])


def test_minus_infinity_is_written_as_a_floor() -> None:
    from prunebench.backends._openaireply import statistics

    found = statistics([-9999.0], [[0.0] + [-9999.0] * 19])
    assert np.isneginf(found["logprobs"]).all()
    assert found["top_entropy"] == pytest.approx([0.0])
    assert found["top_mass"] == pytest.approx([1.0])


# Path noise and learned readers.


def test_with_path_noise_a_pause_changes_nothing(make: Make) -> None:
    with TokenServer(TokenModel(noise=True)) as server:
        engine = make(server.base_url, path_noise=True)
        whole = complete(engine, 6)
        session = engine.open(PROBLEMS[0], range(6))
        session.advance(7)
        assert ids(session.finish()) == ids(whole)
        body = server.completions()[-1]
        assert body["temperature"] == 0
        assert "seed" not in body
        assert body["vllm_xargs"]["prunebench_temperature"] == 1.0
        assert body["vllm_xargs"]["prunebench_top_k"] == 40
    with (
        TokenServer() as server,
        pytest.raises(ConfigError, match="--logits-processors"),
    ):
        make(server.base_url, path_noise=True).load()


def reader(m: int = 3) -> ReaderWeights:
    return ReaderWeights(
        embeddings=np.zeros((m, 4), np.float32),
        head_weight=np.zeros(4, np.float32),
        head_bias=0.0,
        adapter=None,
    )


@pytest.mark.parametrize("cached", [None, 5])
def test_a_reader_on_the_server_scores_prefixes(make: Make, cached: int | None) -> None:
    with TokenServer(TokenModel(cached=cached)) as server:
        engine = make(server.base_url, reader="stop")
        assert C.CACHE_READER in engine.provides
        engine.load_reader("mine", reader())
        session = engine.open(PROBLEMS[0], range(4))
        session.advance(5)
        server.requests.clear()
        internals = session.internals()
        few = internals.subset([2, 0])
        prompts = [[*session.prompt_ids, *trace.token_ids] for trace in session.traces()]
        expected = [sum(map(int, prompt)) / 100 for prompt in prompts]
        scores = few.reader_scores("mine")
        assert scores.dtype == np.float64
        assert scores == pytest.approx([expected[2], expected[0]])
        bodies = server.completions()
    assert all(body["prompt"][-3:] == [0, 1, 2] for body in bodies)
    assert {(b["model"], b["max_tokens"], b["logprobs"]) for b in bodies} == {("stop", 1, 2)}
    n_read = sum(len(prompts[i]) + 3 - (cached or 0) for i in (2, 0))
    assert internals.forwarded_tokens == n_read


def test_a_server_without_the_plug_in_is_told_from_one_with_it(make: Make) -> None:
    with TokenServer(TokenModel(reader_bias=-0.5)) as server:
        engine = make(server.base_url, reader="stop")
        engine.load_reader("mine", reader())
        internals = engine.encode(np.arange(3), [np.arange(4)])
        with pytest.raises(EndpointError, match="does not run prunebench's plug-in"):
            internals.reader_scores("mine")
        with pytest.raises(ConfigError, match=r"backend\.reader=NAME"):
            make(server.base_url).encode(np.arange(3), [np.arange(4)])


def test_scores_belong_to_one_checkpoint_of_the_reader(make: Make) -> None:
    with TokenServer() as server:
        engine = make(server.base_url, reader="stop")
        for name in ("stop_old", "stop_new"):
            engine.load_reader(name, reader())
        internals = engine.encode(np.arange(3), [np.arange(4)])
        sent = [len(server.requests)]
        for name in ("stop_old", "stop_old", "stop_new"):
            internals.reader_scores(name)
            sent.append(len(server.requests))
        assert np.diff(sent).tolist() == [1, 0, 1]
        assert "about" not in server.completions()[-1]
        [note] = engine.notes()[-1:]
        assert "3 scores counts its whole prefix" in note
        assert "--enable-prompt-tokens-details" in note


def test_a_reader_that_the_server_lacks_is_named(make: Make) -> None:
    with TokenServer() as server:
        engine = make(server.base_url, reader="stp")
        engine.load_reader("mine", reader())
        complete(engine, 1)
        internals = engine.encode(np.arange(3), [np.arange(4)])
        server.requests.clear()
        server.script = [error(404, "The model `stp` does not exist.")]
        with pytest.raises(EndpointError, match=r"backend\.reader=.*--lora-modules stp"):
            internals.reader_scores("mine")


def test_the_name_of_the_reader_is_part_of_the_key_of_scores() -> None:
    from prunebench import compose, scoring
    from prunebench.config import to_run
    from prunebench.lab import Lab

    stop, other = ["method=stop"], ["method=mean_logprob", "backend.reader=a"]
    with compose.hydra_ready():
        runs = [
            to_run(compose.composed(["backend=openai", *more]))
            for more in (stop, [*stop, "backend.reader=a"], other)
        ]
    found = [scoring._servers(run, Lab()) for run in runs]
    assert found == [None, {"reader": "a"}, None]


# Faults.


@pytest.mark.parametrize("fault", ["429", "500", "503", "drop", "half", "broken_json", "slow"])
def test_a_fault_is_tried_again_and_changes_nothing(make: Make, fault: str) -> None:
    with TokenServer() as server:
        expected = ids(complete(make(server.base_url, cache_dir=None)))
        server.requests.clear()
        server.script = [fault, None, fault]
        engine = make(server.base_url, cache_dir=None, concurrency=2, timeout=0.5)
        assert ids(complete(engine)) == expected
        assert len(server.requests) == 6


def test_a_server_that_dies_costs_the_requests_in_flight(make: Make) -> None:
    n, concurrency, lives_for = 8, 4, 13
    with TokenServer() as server:
        whole = {p.id: ids(t) for p, _, t in make(server.base_url).generate(PROBLEMS, range(n))}
    with TokenServer(port=server.port) as server:
        engine = make(server.base_url, concurrency=concurrency, cache_dir="fresh")
        engine.load()
        server.answered.clear()
        server.requests.clear()
        server.lives_for = lives_for
        done: list[Any] = []
        with pytest.raises(Unavailable, match=r"11 of 24 requests.*Start the same command again"):
            done.extend(engine.generate(PROBLEMS, range(n)))
        by_prompt = {tuple(engine.prompt_ids(p.question)): p.id for p in PROBLEMS}
        reached = Counter(by_prompt[tuple(body["prompt"])] for body in server.answered)
        complete = {name: whole[name] for name in reached if reached[name] == n}
        assert {p.id: ids(traces) for p, _, traces in done} == complete
        assert len(server.requests) <= lives_for + concurrency, "nobody asks a dead server"
        with pytest.raises(Unavailable, match=r"No server answers.*only for what is missing"):
            list(engine.generate(PROBLEMS, range(n)))
        answered = {body["seed"] for body in server.answered}
    with TokenServer(port=server.port) as server:
        again = make(server.base_url, concurrency=concurrency, cache_dir="fresh")
        assert {p.id: ids(t) for p, _, t in again.generate(PROBLEMS, range(n))} == whole
        asked = {body["seed"] for body in server.completions()}
    assert len(answered) == lives_for
    assert len(asked) == 3 * n - lives_for
    assert not asked & answered


RUN = ["method=mean_logprob", "backend=openai", "backend.model_name=judge", "n_paths=6", "keep=2"]
RUN += ["prefix_length=8", "model.sampling.max_new_tokens=60", "dataset.limit=6", "bank.group=2"]
RUN += ["backend.max_attempts=2", "backend.max_wait=0.01", "backend.concurrency=4"]


def test_a_run_says_that_the_server_died_and_continues(make: Make, caplog) -> None:
    with TokenServer() as server:
        where = f"backend.base_url={server.base_url}"
        assert make(server.base_url).provides
        server.answered.clear()
        server.lives_for = 1 + 20  # the question whether it is there, and 20 of 36 paths
        main([*RUN, where, "hydra.run.dir=run1"])
    records = pd.read_parquet("run1/records.parquet")
    own = records[records["method"] == "mean_logprob"]
    failed = own[own["status"] == "failed"]
    assert 3 <= len(failed) <= 5
    assert failed["reason"].str.contains("tart the same command again").all()
    assert "tart the same command again" in caplog.text
    with TokenServer(port=server.port) as server:
        assert main([*RUN, where, "hydra.run.dir=run2"]) == 0
        n_pinged = sum(body["max_tokens"] == 1 for body in server.completions())
        assert len(server.requests) - n_pinged == 36 - 20
    records = pd.read_parquet("run2/records.parquet")
    assert (records[records["method"] == "mean_logprob"]["status"] == "ok").all()


def test_a_method_that_reads_more_than_the_server_gives_is_sent_elsewhere(capsys) -> None:
    with TokenServer(TokenModel(logprobs=0)) as server:
        where = f"backend.base_url={server.base_url}"
        assert main([*RUN, where, "method=deepconf"]) == 2
    told = capsys.readouterr().err
    assert "Missing: top_logprobs" in told
    assert "backend=transformers" in told


# The key.


@pytest.mark.parametrize("sweep", [[], ["-m", "keep=1,2"]])
@pytest.mark.parametrize(
    ("option", "secret"),
    [
        ("key_env", KEY),
        ("base_url", "https://me:pass1234@host/v1"),
        ("base_url", f"https://host/v1?{KEY}"),
    ],
)
def test_a_secret_in_an_option_is_written_nowhere(
    tmp_path: Path, capsys, option: str, secret: str, sweep: list[str]
) -> None:
    assert main([*sweep, *RUN, f"backend.{option}={secret}"]) == 2
    told = capsys.readouterr()
    assert f"backend.{option}" in told.err
    assert secret not in told.err + told.out
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and secret in f.read_text()]


def test_the_key_is_sent_and_stands_nowhere_else(tmp_path: Path, monkeypatch, caplog, capsys):
    monkeypatch.setenv("SERVER_KEY", KEY)
    caplog.set_level("DEBUG")
    with TokenServer() as server:
        more = [f"backend.base_url={server.base_url}", "backend.key_env=SERVER_KEY"]
        assert main([*RUN, *more, "dataset.limit=1"]) == 0
        sent = {headers["authorization"] for _, _, headers in server.requests}
    assert sent == {f"Bearer {KEY}"}
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"SERVER_KEY" in data for data in files)
    told = capsys.readouterr()
    for data in [*files, *(text.encode() for text in (caplog.text, told.out, told.err))]:
        assert KEY.encode() not in data


def test_doctor_wants_to_know_whose_options_it_gets(capsys) -> None:
    assert main(["doctor", f"backend.base_url=https://host/{KEY}"]) == 2
    told = capsys.readouterr().err
    assert "backend.base_url. Name the engine too" in told
    assert KEY not in told


@pytest.mark.parametrize("option", ["concurrency", "max_attempts", "timeout"])
def test_bad_options_are_named(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"'backend\.{option}'"):
        OpenAIBackend(**{option: 0})


# A real server. See `conftest.py`.

TINY = ModelSpec(
    name="tiny",
    id="embedded:tiny",
    prompt="{question}\n",
    answer="line",
    sampling=Sampling(temperature=0.8, top_p=0.9, top_k=12, max_new_tokens=80),
)


@pytest.fixture
def real(server_url: str) -> Iterator[Make]:
    engines = []

    def engine(**options: Any) -> OpenAIBackend:
        engines.append(OpenAIBackend(base_url=server_url, concurrency=16, **options))
        engines[-1].bind(TINY, 0)
        return engines[-1]

    yield engine
    for made in engines:
        made.close()


def reference() -> TransformersBackend:
    engine = TransformersBackend(device="cpu")
    engine.bind(TINY, 0)
    return engine


def check_statistics(engine: TransformersBackend, prompt: np.ndarray, trace: Trace) -> None:
    """Against what the transformers engine says of every next token of the same text."""
    row = np.concatenate([prompt, trace.token_ids]).astype(np.int32)
    ends = range(len(prompt), len(row))
    states = engine.encode(prompt[:-1], [row[len(prompt) - 1 : end - 1] for end in ends])
    logp = states.next_logprobs([row[end - 1 : end] for end in ends]).double().numpy()
    best = -np.sort(-logp, axis=1)[:, :20]
    stats = trace.stats
    assert stats.logprobs == pytest.approx(logp[np.arange(len(ends)), trace.token_ids], abs=1e-4)
    assert stats.top_logprobs == pytest.approx(best.mean(axis=1), abs=1e-4)
    assert stats.max_logprobs == pytest.approx(best[:, 0], abs=1e-4)
    assert stats.top_mass == pytest.approx(np.exp(best).sum(axis=1), abs=1e-4)
    assert stats.top_entropy == pytest.approx(-(np.exp(best) * best).sum(axis=1), abs=1e-4)


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_statistics_are_those_of_the_model_also_after_a_pause(real: Make) -> None:
    engine, model = real(), reference()
    assert engine.identity()["served"] == "tiny", "its adapter is no choice"
    assert engine.provides == {C.LOGPROBS, C.CONTINUE, *FROM_TOP}
    session = engine.open(PROBLEMS[1], range(4))
    session.advance(20)
    launched = ids(session.traces())
    whole = complete(engine, 4, PROBLEMS[1])
    assert launched == [path[:20] for path in ids(whole)]
    finished = session.finish()
    for path, trace in zip(launched, finished, strict=True):
        assert trace.token_ids[: len(path)].tolist() == path
    assert any(trace.stopped for trace in finished)
    for trace in (whole[0], finished[1]):
        check_statistics(model, session.prompt_ids, trace)
    assert engine.notes() == [], "no prefix was read as other tokens"


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_with_path_noise_draws_what_the_transformers_engine_draws(real: Make) -> None:
    engine, model = real(path_noise=True), reference()
    [(_, _, expected)] = model.generate([PROBLEMS[2]], range(6))
    session = engine.open(PROBLEMS[2], range(6))
    session.advance(11)
    session.keep(np.array([True, False, True, True, True, True]))
    kept = [expected[i] for i in (0, 2, 3, 4, 5)]
    for found, trace in zip(session.finish(), kept, strict=True):
        assert found.token_ids.tolist() == trace.token_ids.tolist()
        assert (found.index, found.text, found.stopped) == (trace.index, trace.text, trace.stopped)
        assert found.stats.top_logprobs == pytest.approx(trace.stats.top_logprobs, abs=1e-4)


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_runs_stop_on_its_own_cache(server_url: str, real: Make) -> None:
    with urlopen(f"{server_url}/models") as answer:
        if "stop" not in {model["id"] for model in json.load(answer)["data"]}:
            pytest.skip("the server does not find prunebench's plug-in: install prunebench there")
    engine, model = real(path_noise=True, reader="stop"), reference()
    long = Problem(id="long", question="9*(8-3)+7*5-2*(6-4)", answer="76")
    folder = Path(prunebench.tiny.__file__).parent / "trained" / "stop"
    tensors = load_file(folder / "stop.safetensors")
    weights = ReaderWeights(
        embeddings=tensors["embeddings"],
        head_weight=tensors["head.weight"],
        head_bias=float(tensors["head.bias"]),
        adapter=folder / "adapter",
    )
    scores, read = [], []
    for own in (engine, model):
        own.load_reader("stop", weights)
        session = own.open(long, range(5))
        session.advance(40)
        internals = session.internals()
        scores.append(internals.reader_scores("stop"))
        read.append(internals.forwarded_tokens)
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert np.ptp(scores[1]) > 0.01
    n_prefixes = sum(len(session.prompt_ids) + trace.n_tokens for trace in session.traces())
    assert read[1] <= read[0] < n_prefixes, "the prefix was in the server's cache"
    again = real(path_noise=True, reader="stop")
    again.load_reader("stop", weights)
    session = again.open(long, range(5))
    session.advance(40)
    internals = session.internals()
    assert internals.reader_scores("stop").tolist() == scores[0].tolist()
    assert internals.from_cache
    assert internals.forwarded_tokens == read[0]


@pytest.mark.slow
@pytest.mark.vllm
def test_the_command_line_generates_judges_and_resumes_over_http(server_url: str) -> None:
    command = ["method=deepconf", "backend=openai", f"backend.base_url={server_url}", "keep=2"]
    command += ["n_paths=6", "dataset.limit=2"]
    for run in ("mode=replay", "mode=online"):
        assert main([*command, run, f"hydra.run.dir={run[5:]}"]) == 0
        records = pd.read_parquet(f"{run[5:]}/records.parquet")
        own = records[records["method"] == "deepconf"]
        assert own["status"].tolist() == ["ok", "ok"]
    judge = ["method=llm_judge", "method.per_line=true", "endpoint=local"]
    judge += [f"endpoint.base_url={server_url}", "hydra.run.dir=judge"]
    assert main([*command, *judge]) == 0
    assert pd.read_csv("judge/summary.csv", index_col="method").loc["llm_judge", "calls"] > 0

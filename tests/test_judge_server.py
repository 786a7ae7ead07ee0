"""The embedded model judges its own task behind a real OpenAI-compatible server (vLLM, CPU).

Reference: the next-token log-probabilities of the transformers backend.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prunebench.backend import ModelSpec
from prunebench.backends.transformers import TransformersBackend
from prunebench.cli import main
from prunebench.cost import Ledger
from prunebench.endpoint import EndpointConfig
from prunebench.endpointclient import OpenAIEndpoint
from prunebench.method import Context, PathGroup, SignalGenerator
from prunebench.methods._judge import Aggregation
from prunebench.methods.deepprune import DeepPrune
from prunebench.methods.gen_prm import GenPRM
from prunebench.methods.llm_judge import Ask, LLMJudge, Mode
from prunebench.methods.mav import MAV
from prunebench.methods.think_prm import ThinkPRM
from prunebench.tiny import task
from prunebench.types import Problem, TokenStats, Trace, view

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

SPEC = ModelSpec(name="tiny", id="embedded:tiny", prompt="{question}\n", answer="line")
QUESTION = "7*11+3"
TEXTS = [
    "7*11=77.\n77+3.\n77+3=80.\nA80\n",
    "7*11=77.\n77+3.\n77+3=81.\nA81\n",
    "7*11=76.\n76+3.\n76+3=79.\nA79\n",
    ">11*7=77.\n77+3.\n>77+3=81!\n>77+3=80.\n",
]


@pytest.fixture
def base_url(server_url: str) -> str:
    return server_url


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def endpoint(base_url: str, ledger: Ledger) -> Iterator[OpenAIEndpoint]:
    config = EndpointConfig(base_url=base_url, model="tiny", cache_dir=None, timeout=60)
    client = OpenAIEndpoint(config, ledger)
    yield client
    client.close()


@pytest.fixture(scope="module")
def backend() -> TransformersBackend:
    engine = TransformersBackend(device="cpu")
    engine.bind(SPEC, 0)
    return engine


def group(question: str, texts: list[str]) -> PathGroup:
    traces = [
        Trace(
            index=i,
            token_ids=np.frombuffer(text.encode(), np.uint8).astype(np.int32),
            text=text,
            stats=TokenStats(),
            stopped=True,
            answer=None,
            correct=False,
        )
        for i, text in enumerate(texts)
    ]
    return view(
        Problem(id="p", question=question, answer=""),
        np.zeros(1, np.int32),
        traces,
        4000,
        decode=lambda ids: "",
        granted=LLMJudge.requires,
        seed=0,
    )


def judged(
    method: SignalGenerator,
    endpoint: OpenAIEndpoint,
    backend: TransformersBackend,
    paths: PathGroup,
) -> np.ndarray:
    method.setup(Context(model_name="tiny", backend=backend, endpoint=endpoint))
    return method.score(paths)


def p_right(backend: TransformersBackend, pieces: list[str]) -> np.ndarray:
    """P(.) / (P(.) + P(!)) after these texts, by the transformers backend."""
    prompt = backend.tokenize(f"{QUESTION}\n")
    internals = backend.encode(prompt, [backend.tokenize(piece[:-1]) for piece in pieces])
    table = internals.next_logprobs([backend.tokenize(piece[-1]) for piece in pieces])
    [right], [wrong] = backend.tokenize("."), backend.tokenize("!")
    p = np.exp(table.double().numpy()[:, [right, wrong]])
    return p[:, 0] / p.sum(axis=1)


def test_the_embedded_model_judges_the_last_line(
    endpoint: OpenAIEndpoint, backend: TransformersBackend, ledger: Ledger
) -> None:
    scores = judged(LLMJudge(), endpoint, backend, group(QUESTION, TEXTS))
    pieces = [text[: text.rindex(".\n")] for text in TEXTS]
    assert scores == pytest.approx(p_right(backend, pieces), abs=1e-4)
    assert scores[0] > 0.5 > scores[1]
    assert ledger.spent.calls == len(TEXTS)
    assert ledger.spent.verifier_tokens == sum(len(f"{QUESTION}\n{p}") + 1 for p in pieces)


def test_line_by_line_it_is_a_generative_process_reward_model(
    endpoint: OpenAIEndpoint, backend: TransformersBackend, ledger: Ledger
) -> None:
    method = LLMJudge(per_line=True, aggregation=Aggregation.min)
    scores = judged(method, endpoint, backend, group(QUESTION, TEXTS))
    expected = []
    for text in TEXTS:
        ends = [i for i in range(len(text)) if text.startswith(".\n", i)]
        expected.append(p_right(backend, [text[:end] for end in ends]).min())
    assert scores == pytest.approx(expected, abs=1e-4)
    assert (scores[[0, 3]] > 0.5).all()
    assert (scores[[1, 2]] < 0.5).all()


def test_it_tells_right_lines_from_wrong_ones_over_problems(
    endpoint: OpenAIEndpoint, backend: TransformersBackend
) -> None:
    import random

    rng = random.Random(0)
    right, wrong = [], []
    for question, _ in task.make_problems(3, 15, "eval"):
        tree = task.parse(question)
        [_, operator, a, b] = next(iter(task.reducible(tree)))
        line = f"{a}{operator}{b}={task.apply(operator, a, b)}"
        slip = rng.choice(task.wrong_reductions(tree, line, rng))
        paths = group(question, [f"{line}.\n", f"{slip}.\n"])
        good, bad = judged(LLMJudge(), endpoint, backend, paths)
        right.append(good)
        wrong.append(bad)
    above = np.mean([r > w for r in right for w in wrong])  # AUROC
    assert above > 0.8


def test_sampled_verdicts_agree_with_their_probability(
    endpoint: OpenAIEndpoint, backend: TransformersBackend
) -> None:
    method = LLMJudge(mode=Mode.sampled, n_samples=64, temperature=1.0)
    paths = group(QUESTION, TEXTS)
    share = judged(method, endpoint, backend, paths)
    p = judged(LLMJudge(), endpoint, backend, paths)
    assert np.abs(share - p).max() < 5 * np.sqrt(0.25 / 64)


@pytest.mark.parametrize(
    "method",
    [
        LLMJudge(api=Ask.chat, no_think=True, mode=Mode.sampled, max_tokens=8),
        MAV(aspects="logic"),
        DeepPrune(),
        ThinkPRM(max_tokens=32),
        GenPRM(max_tokens=32),
    ],
    ids=lambda method: type(method).__name__,
)
def test_the_server_takes_the_requests_of_every_judge(
    method: SignalGenerator, endpoint: OpenAIEndpoint, backend: TransformersBackend, ledger: Ledger
) -> None:
    """The embedded model speaks no English, so a path may have no verdict, but never a refusal."""
    paths = group(QUESTION, TEXTS[:2])
    judged(method, endpoint, backend, paths)
    assert ledger.spent.calls > 0
    assert ledger.spent.failed_calls == 0
    for reason in paths.unscored.values():
        assert "refused" not in reason
        assert "log-prob" not in reason


def test_the_command_line_judges_over_http_and_pays_once(
    base_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["method=llm_judge", "method.per_line=true", "method.aggregation=min"]
    command += ["endpoint=local", f"endpoint.base_url={base_url}", "endpoint.price_prompt=1"]
    command += ["endpoint.price_completion=2", "n_paths=6", "keep=2", "dataset.limit=3"]
    tables = []
    for _ in range(2):
        assert main([*command, f"hydra.run.dir=run{len(tables)}"]) == 0
        table = pd.read_csv(f"run{len(tables)}/summary.csv", index_col="method")
        tables.append(table.loc["llm_judge"])
    first, again = tables
    assert first["status"] == "ok"
    assert first["calls"] > 6, "several lines a path"
    # each request reads its prompt at 1 and writes one token at 2, per million
    assert first["money"] * 1e6 == pytest.approx(first["verifier_tokens"] + first["calls"])
    assert first["avg"] == again["avg"]
    [cache] = tmp_path.rglob("replies.sqlite")
    shutil.rmtree(tmp_path / "results" / "bank", ignore_errors=True)
    monkeypatch.setenv("NO_PROXY", "*")
    assert main([*command, "endpoint.max_attempts=1", "hydra.run.dir=run2"]) == 0
    assert cache.stat().st_size > 0
    fresh = pd.read_csv("run2/summary.csv", index_col="method").loc["llm_judge"]
    assert fresh["verifier_tokens"] == first["verifier_tokens"], "cached replies cost the same"
    assert np.isnan(fresh["score_seconds"]), "but their time is not known"


def test_a_request_that_is_too_long_is_refused_by_itself(
    endpoint: OpenAIEndpoint, backend: TransformersBackend
) -> None:
    paths = group(QUESTION, [TEXTS[0], "1+1=2.\n" * 200])
    scores = judged(LLMJudge(), endpoint, backend, paths)
    assert np.isnan(scores).tolist() == [False, True]
    assert "refused" in paths.unscored[1]

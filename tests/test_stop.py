"""STOP: what it reads, what it leaves alone, what it learns, and that it comes back from disk."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from transformers import Qwen2Config, Qwen2ForCausalLM

from prunebench import cachereader, labels
from prunebench.backend import ModelSpec, Sampling
from prunebench.backends.transformers import TransformersBackend
from prunebench.errors import NotTrained
from prunebench.method import Context, LabelledPrefix
from prunebench.methods.stop import Stop
from prunebench.prefixstore import PrefixStore
from prunebench.tiny.tokenizer import build_tokenizer
from prunebench.train import split
from prunebench.types import Capability, Problem, TokenStats, Trace, view


@pytest.fixture(scope="module")
def backend(tmp_path_factory) -> TransformersBackend:
    """A tiny random model."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = TransformersBackend(threads=1)
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=24)
    spec = ModelSpec(
        name="x", id="x", path=str(folder), prompt="{question}\n", answer="line", sampling=sampling
    )
    made.bind(spec, 0)
    return made


@pytest.fixture(scope="module")
def examples() -> list[LabelledPrefix]:
    """Prefixes whose label is whether they hold more low than high token ids; some nested."""
    rng = np.random.default_rng(0)
    found = []
    for problem in range(24):
        prompt = rng.integers(0, 250, 3 + problem % 4).astype(np.int32)
        for k in range(8):
            low = k % 2 == 0
            path = rng.integers(0, 60, 12) + (0 if low else 150)
            for n in (8, 12):
                found.append(
                    LabelledPrefix(
                        problem_id=f"p{problem}",
                        prompt_ids=prompt,
                        prefix_ids=path[:n].astype(np.int32),
                        label=float(low),
                        n_continuations=1,
                    )
                )
    return found


@pytest.fixture(scope="module")
def fitted(backend, examples, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    train, valid = split(examples, 0.3, 0)
    method = Stop(n_tokens=3, rank=4, epochs=12, batch_size=32, eval_every=20, warmup=2)
    before = {k: v.clone() for k, v in backend.model().state_dict().items()}
    method.fit(train, valid, Context(model_name="x", backend=backend, work_dir=work))
    after = {k.replace(".base_layer", ""): v for k, v in backend.model().state_dict().items()}
    assert all(torch.equal(before[k], after[k]) for k in before)
    folder = tmp_path_factory.mktemp("stop")
    method.save(folder)
    method.load(folder, Context(model_name="x", backend=backend))
    return method, folder


def group_of(backend, prefixes, granted=frozenset({Capability.CACHE_READER, Capability.KV_CACHE})):
    prompt = backend.prompt_ids("12+3")
    traces = [
        Trace(
            index=i,
            token_ids=np.asarray(p, dtype=np.int32),
            text="",
            stats=TokenStats(),
            stopped=False,
            answer=None,
            correct=False,
        )
        for i, p in enumerate(prefixes)
    ]
    internals = backend.encode(prompt, [t.token_ids for t in traces])
    group = view(
        Problem(id="p", question="12+3", answer="15"),
        prompt,
        traces,
        max(len(p) for p in prefixes),
        decode=backend.decode,
        granted=granted,
        seed=0,
        internals=lambda: internals,
    )
    return group, internals


def test_unfitted_says_how_to_train():
    with pytest.raises(NotTrained, match="prunebench train method=stop"):
        Stop().score(None)  # type: ignore[arg-type]


def test_learns_what_is_in_the_cache(fitted):
    assert fitted[0].metrics_["valid_auroc"] > 0.9


def test_reads_m_tokens_a_path_and_leaves_the_cache_alone(backend, fitted):
    group, internals = group_of(backend, [[5, 6, 7, 8]] * 2 + [[9, 10, 11, 12], [1, 2]])
    caches = [block.cache for block in internals._blocks]
    before = [
        [b[:, :, : layer.filled].clone() for b in layer.buffers]
        for cache in caches
        for layer in cache.layers
    ]
    filled = [cache.filled for cache in caches]
    first = fitted[0].score(group)
    assert internals.forwarded_tokens == 4 * fitted[0].n_tokens
    assert [cache.filled for cache in caches] == filled
    layers = [layer for cache in caches for layer in cache.layers]
    for layer, held in zip(layers, before, strict=True):
        for buffer, old in zip(layer.buffers, held, strict=True):
            assert torch.equal(buffer[:, :, : layer.filled], old)
    assert first.shape == (4,)
    assert first[0] == pytest.approx(first[1], abs=1e-5)
    np.testing.assert_allclose(fitted[0].score(group), first, atol=1e-5)


def test_equals_one_pass_with_peft(backend, fitted):
    """Reference: the prefix through the plain model, the [STOP] tokens through PEFT's own."""
    method = fitted[0]
    prefix = [5, 77, 130, 8, 9]
    group, _ = group_of(backend, [prefix])
    plain = Qwen2ForCausalLM.from_pretrained(backend.spec.path).eval()
    config = LoraConfig(
        r=method.rank, lora_alpha=method.alpha, target_modules="all-linear", lora_dropout=0.0
    )
    peft_model = get_peft_model(plain, config, adapter_name="stop").eval()
    set_peft_model_state_dict(peft_model, method.adapter_, adapter_name="stop")
    ids = torch.tensor([[*group.prompt_ids.tolist(), *prefix]])
    with torch.no_grad():
        with peft_model.disable_adapter():
            cache = peft_model(input_ids=ids, use_cache=True).past_key_values
        output = peft_model(
            inputs_embeds=method.weights_["embeddings"][None],
            past_key_values=cache,
            output_hidden_states=True,
        )
    state = output.hidden_states[-1][0, -1]
    expected = state @ method.weights_["head.weight"] + method.weights_["head.bias"]
    assert method.score(group)[0] == pytest.approx(float(expected), abs=1e-4)


def test_adapter_changes_the_score(backend, fitted):
    _, internals = group_of(backend, [[5, 77, 130, 8, 9]])
    with_adapter = internals.read(fitted[0].weights_["embeddings"], adapter=fitted[0].name_)
    without = internals.read(fitted[0].weights_["embeddings"])
    assert not torch.allclose(with_adapter, without, atol=1e-3)


def test_comes_back_from_disk(backend, fitted):
    method, folder = fitted
    group, _ = group_of(backend, [[5, 6, 7, 8], [1, 2, 3, 4]])
    expected = method.score(group)
    again = Stop(n_tokens=3, rank=4).load(folder, Context(model_name="x", backend=backend))
    np.testing.assert_allclose(again.score(group), expected, atol=1e-6)
    assert sum(f.stat().st_size for f in folder.rglob("*")) < 3_000_000


def test_kept_states_equal_states_encoded_anew(backend, examples):
    """Nested prefixes share one row, and the memory bound changes no result."""
    model, chosen = backend.model(), examples[:20]
    kept, fresh = PrefixStore(model, chosen, 10**9), PrefixStore(model, chosen, 0)
    assert len(kept.rows) == 10
    assert kept.n_bytes > 0
    assert not fresh.kept
    pick = [3, 0, 7, 12]
    for a, b in zip(kept.batch(pick)[1:], fresh.batch(pick)[1:], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(kept.batch(pick)[0].layers, fresh.batch(pick)[0].layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys, atol=0.05, rtol=0.02)


def test_within_problem_auroc_ignores_differences_between_problems(examples):
    problems = sorted({e.problem_id for e in examples})
    by_problem = np.array([problems.index(e.problem_id) for e in examples], dtype=float)
    assert cachereader.within_problem_auroc(by_problem, examples) == 0.5
    by_label = np.array([e.label for e in examples])
    assert cachereader.within_problem_auroc(by_label, examples) == 1.0


def test_labels_are_shares_of_a_tree(backend):
    plan = labels.Plan(roots=3, prefix_lengths=(4, 8, 12), n_continuations=4, seed=5)
    assert sorted(plan.copies) == [1, 2, 2]
    problems = [Problem(id=f"q{i}", question=f"{i}+1", answer=str(i + 1)) for i in range(3)]
    found = labels.grow(backend, problems, plan)
    first = [e for e in found if len(e.prefix_ids) == 4]
    assert first
    for example in first:
        below = {
            tuple(e.prefix_ids)
            for e in found
            if e.problem_id == example.problem_id
            and len(e.prefix_ids) > 4
            and np.array_equal(e.prefix_ids[:4], example.prefix_ids)
        }
        assert below
    assert all(0.0 <= e.label <= 1.0 for e in found)
    again = labels.grow(backend, problems, plan)
    assert all(
        np.array_equal(a.prefix_ids, b.prefix_ids) for a, b in zip(found, again, strict=True)
    )

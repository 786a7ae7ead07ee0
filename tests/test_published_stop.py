"""Published STOP checkpoints: the same scores as their two-stage forward, and what is refused.

The reference knows transformers and PEFT only: prompts with their prefixes in one padded batch
without the adapter, then the extra tokens with it on top of that cache.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache

from prunebench import cli
from prunebench.backend import ModelSpec, Sampling
from prunebench.backends.transformers import TransformersBackend
from prunebench.checkpoints import SHIPPED
from prunebench.errors import ConfigError, DamagedFile
from prunebench.method import Context
from prunebench.methods.stop import Stop
from prunebench.tiny.tokenizer import build_tokenizer
from prunebench.types import Capability, PathGroup, Problem, TokenStats, Trace, view

HIDDEN, M = 64, 3
QUESTION = "12+3*4"
PREFIXES = [list(range(3, 20)), [7] * 17, [100, 3, 5], [9], [201, 4, 60, 61, 62, 8, 8, 1, 90]]
HEAD, CONFIG, EMBEDDING = (
    "classifier_head.pth",
    "assess_token_config.json",
    "assess_token_embedding.pth",
)


def write_model(folder: Path, **changed: int) -> None:
    tokenizer = build_tokenizer()
    sizes: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **changed,
    }
    config = Qwen2Config(
        vocab_size=260,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
        tie_word_embeddings=False,
        dtype="float32",
        **sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_checkpoint(folder: Path, model_folder: Path) -> None:
    """A random checkpoint in the published layout."""
    names = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=names, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        plain = Qwen2ForCausalLM.from_pretrained(model_folder)
        adapted = get_peft_model(plain, lora, adapter_name="classifier")
        adapted.save_pretrained(str(folder / "adapter"))
        head = torch.nn.Linear(HIDDEN, 2)
        row = torch.randn(1, HIDDEN)
    torch.save(head.state_dict(), folder / HEAD)
    torch.save({"input_embedding": row.bfloat16()}, folder / EMBEDDING)
    config = {
        "assess_token": "[ASSESS]",
        "special_token_id": 260,
        "num_assess_tokens": M,
        "tokenizer_dir": "elsewhere",
        "embedding_path": "elsewhere",
    }
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model_folder) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_checkpoint(folder, model_folder)
    return folder


@pytest.fixture
def copy(tmp_path, checkpoint) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def bound(folder: Path) -> TransformersBackend:
    made = TransformersBackend(threads=1)
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=24)
    spec = ModelSpec(
        name="x", id="x", path=str(folder), prompt="{question}\n", answer="line", sampling=sampling
    )
    made.bind(spec, 0)
    return made


@pytest.fixture(scope="module")
def backend(model_folder) -> TransformersBackend:
    return bound(model_folder)


def loaded(folder: Path, backend: TransformersBackend) -> Stop:
    method = Stop(checkpoint=str(folder), n_tokens=7, rank=99)  # what the folder says counts
    return method.load(folder, Context(model_name="x", backend=backend))


def group_of(backend: TransformersBackend, prefixes: list[list[int]]) -> PathGroup:
    prompt = backend.prompt_ids(QUESTION)
    traces = [
        Trace(
            index=i,
            token_ids=np.asarray(prefix, dtype=np.int32),
            text="",
            stats=TokenStats(),
            stopped=False,
            answer=None,
            correct=False,
        )
        for i, prefix in enumerate(prefixes)
    ]
    return view(
        Problem(id="p", question=QUESTION, answer="24"),
        prompt,
        traces,
        max(map(len, prefixes)),
        decode=backend.decode,
        granted=frozenset({Capability.CACHE_READER}),
        seed=0,
        internals=lambda: backend.encode(prompt, [t.token_ids for t in traces]),
    )


def probabilities(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))


def two_stages(
    model_folder: Path, checkpoint: Path, prompt: list[int], prefixes: list[list[int]], side: str
) -> np.ndarray:
    """`softmax[1]` of every prefix, in one padded batch."""
    plain = Qwen2ForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(
        plain, str(checkpoint / "adapter" / "classifier"), adapter_name="classifier"
    ).eval()
    head = torch.nn.Linear(HIDDEN, 2)
    head.load_state_dict(torch.load(checkpoint / HEAD, weights_only=True))
    row = torch.load(checkpoint / EMBEDDING, weights_only=True)["input_embedding"].float()
    rows = [[*prompt, *prefix] for prefix in prefixes]
    lengths = torch.tensor([len(r) for r in rows])
    width = int(lengths.max())
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, tokens in enumerate(rows):
        at = slice(width - len(tokens), None) if side == "left" else slice(0, len(tokens))
        ids[i, at] = torch.tensor(tokens)
        mask[i, at] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        with model.disable_adapter():
            cache = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=DynamicCache(),
                use_cache=True,
            ).past_key_values
        output = model(
            inputs_embeds=row.reshape(1, 1, HIDDEN).expand(len(rows), M, HIDDEN),
            attention_mask=torch.cat([mask, torch.ones(len(rows), M, dtype=torch.long)], 1),
            position_ids=lengths[:, None] + torch.arange(M),
            past_key_values=cache,
            output_hidden_states=True,
        )
        return head(output.hidden_states[-1][:, -1]).softmax(-1)[:, 1].double().numpy()


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_those_of_the_two_stage_forward(backend, model_folder, checkpoint, side):
    method = loaded(checkpoint, backend)
    prompt = backend.prompt_ids(QUESTION).tolist()
    expected = two_stages(model_folder, checkpoint, prompt, PREFIXES, side)
    assert expected.std() > 0.05  # a test that could not tell them apart would show nothing
    assert ((expected > 0.01) & (expected < 0.99)).all()
    batched = probabilities(method.score(group_of(backend, PREFIXES)))
    np.testing.assert_allclose(batched, expected, rtol=0, atol=1e-5)
    alone = [probabilities(method.score(group_of(backend, [p])))[0] for p in PREFIXES]
    np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-5)
    backwards = probabilities(method.score(group_of(backend, PREFIXES[::-1])))
    np.testing.assert_allclose(backwards[::-1], expected, rtol=0, atol=1e-5)


def test_scores_of_live_paths_are_the_same(backend, model_folder, checkpoint):
    method = loaded(checkpoint, backend)
    problem = Problem(id="p", question=QUESTION, answer="24")
    session = backend.open(problem, range(4))
    session.advance(8)
    traces, internals = session.traces(), session.internals()
    prefixes = [trace.token_ids.tolist() for trace in traces]
    expected = two_stages(model_folder, checkpoint, session.prompt_ids.tolist(), prefixes, "right")
    got = probabilities(internals.reader_scores(method.name_))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert internals.forwarded_tokens == M * len(traces)
    session.close()


def test_names_in_the_head_may_carry_those_of_outer_modules(backend, checkpoint, copy):
    state = torch.load(copy / HEAD, weights_only=True)
    torch.save({f"classifier.0.{k}": v for k, v in state.items()}, copy / HEAD)
    group = group_of(backend, PREFIXES)
    expected = loaded(checkpoint, backend).score(group)
    np.testing.assert_array_equal(loaded(copy, backend).score(group), expected)


def test_two_checkpoints_with_one_adapter_do_not_mix(backend, checkpoint, copy):
    state = torch.load(copy / HEAD, weights_only=True)
    torch.save({k: -v for k, v in state.items()}, copy / HEAD)
    first, second = loaded(checkpoint, backend), loaded(copy, backend)
    group = group_of(backend, PREFIXES)
    np.testing.assert_array_equal(first.score(group), -second.score(group))


def test_embeddings_saved_beside_the_adapter_leave_the_model_alone(backend, checkpoint, copy):
    """PEFT saves them when the vocabulary was resized for the new token."""
    file = copy / "adapter" / "classifier" / "adapter_model.safetensors"
    extra = {
        f"base_model.model.{name}.weight": torch.ones(260, HIDDEN)
        for name in ("model.embed_tokens", "lm_head")
    }
    save_file(load_file(file) | extra, file)
    before = backend.model().get_input_embeddings().weight.clone()
    group = group_of(backend, PREFIXES)
    expected = loaded(checkpoint, backend).score(group)
    np.testing.assert_array_equal(loaded(copy, backend).score(group), expected)
    assert torch.equal(backend.model().get_input_embeddings().weight, before)


@pytest.mark.parametrize("name", [HEAD, CONFIG, EMBEDDING])
def test_files_that_are_missing_or_cut_off_are_named(backend, copy, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedFile, match=f"published STOP .*{name}: "):
        loaded(copy, backend)
    (copy / name).unlink()
    with pytest.raises(DamagedFile, match=f"{name}: it is missing"):
        loaded(copy, backend)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_adapter_is_named(backend, copy, name):
    (copy / "adapter" / "classifier" / name).unlink()
    with pytest.raises(DamagedFile, match=f"classifier.{name}: it is missing"):
        loaded(copy, backend)


class Evil:
    """Pickled as a call."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code from a file ran')",)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (HEAD, {"weight": torch.ones(1, HIDDEN), "bias": torch.ones(1)}, r"not \(1, 64\)"),
        (HEAD, {"weight": torch.ones(2, HIDDEN)}, "0 tensors named 'bias'"),
        (HEAD, {"weight": torch.ones(2, 9), "bias": torch.ones(2)}, "9 wide and .* is 64 wide"),
        (HEAD, {"weight": torch.ones(2, HIDDEN) / 0, "bias": torch.ones(2)}, "not finite"),
        (HEAD, [1, 2], "holds a list"),
        (HEAD, Evil(), "cannot read it as tensors"),
        (EMBEDDING, {"output_embedding": torch.ones(HIDDEN)}, "has no 'input_embedding'"),
        (EMBEDDING, {"input_embedding": torch.ones(2, HIDDEN)}, "must be one row"),
        (CONFIG, {"num_assess_tokens": 0}, "'num_assess_tokens' .*not 0"),
        (CONFIG, {}, "'num_assess_tokens' .*not None"),
        (CONFIG, [], "'num_assess_tokens' .*not None"),
    ],
)
def test_contents_that_are_no_checkpoint_are_refused(backend, copy, name, content, told):
    if name == CONFIG:
        (copy / name).write_text(json.dumps(content))
    else:
        torch.save(content, copy / name)
    with pytest.raises(DamagedFile, match=f"{name}.*{told}"):
        loaded(copy, backend)


@pytest.mark.parametrize(
    ("changed", "error", "told"),
    [
        ({"hidden_size": 32}, ConfigError, "width 32. Got embeddings of width 64"),
        ({"intermediate_size": 80}, DamagedFile, "does not fit .*size mismatch"),
        ({"num_hidden_layers": 3}, DamagedFile, r"does not fit .*layers\.2\..*is missing"),
        ({"num_hidden_layers": 1}, DamagedFile, r"does not fit .*layers\.1\..*is not part of it"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(checkpoint, tmp_path, changed, error, told):
    write_model(tmp_path, **changed)
    backend = bound(tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    before = backend.model()(ids).logits
    with pytest.raises(error, match=told):
        loaded(checkpoint, backend)
    assert torch.equal(backend.model()(ids).logits, before)


def test_a_run_with_a_published_checkpoint_makes_the_same_table(tmp_path, monkeypatch):
    """The shipped STOP with one row for all its tokens, in both layouts."""
    monkeypatch.chdir(tmp_path)
    ours = Path(shutil.copytree(SHIPPED / "stop", tmp_path / "ours"))
    tensors = load_file(ours / "stop.safetensors")
    row = tensors["embeddings"][:1]
    tensors["embeddings"] = row.expand_as(tensors["embeddings"]).contiguous()
    save_file(tensors, ours / "stop.safetensors")
    theirs = tmp_path / "theirs"
    shutil.copytree(ours / "adapter", theirs / "adapter" / "classifier")
    weight = torch.stack([torch.zeros_like(tensors["head.weight"]), tensors["head.weight"]])
    bias = torch.stack([torch.zeros(()), tensors["head.bias"].reshape(())])
    torch.save({"weight": weight, "bias": bias}, theirs / HEAD)
    torch.save({"input_embedding": row[0]}, theirs / EMBEDDING)
    (theirs / CONFIG).write_text(json.dumps({"num_assess_tokens": len(tensors["embeddings"])}))

    tables, seen = [], set()
    for folder in (ours, theirs):
        options = ["model=tiny", "dataset.limit=2", "n_paths=8", "keep=2", "prefix_length=32"]
        assert cli.main(["method=stop", f"method.checkpoint={folder}", *options]) == 0
        [made] = set(Path("results/runs").glob("*/*/summary.csv")) - seen
        seen.add(made)
        tables.append(pd.read_csv(made).filter(regex="^(?!score_seconds)"))
    assert "stop" in set(tables[0].method)
    pd.testing.assert_frame_equal(*tables)


def test_a_served_reader_holds_the_adapter_alone(tmp_path: Path) -> None:
    """PEFT may save embeddings beside an adapter; a server would refuse them."""
    from safetensors.torch import load_file, save_file

    from prunebench import readerfiles
    from prunebench.backend import ReaderWeights

    lora = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors = {lora: torch.ones(2, 8, dtype=torch.bfloat16)}
    beside = {"base_model.model.model.embed_tokens.weight": torch.zeros(4, 8)}
    (tmp_path / "adapter").mkdir()
    save_file(tensors | beside, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 2, "modules_to_save": ["x"]}')
    weights = ReaderWeights(
        embeddings=np.full((3, 8), 0.5, np.float32),
        head_weight=np.arange(8, dtype=np.float32),
        head_bias=-0.25,
        adapter=tmp_path / "adapter",
    )
    readerfiles.write(tmp_path / "served", weights)
    assert list(load_file(tmp_path / "served" / "adapter_model.safetensors")) == [lora]
    back = readerfiles.read(tmp_path / "served")
    np.testing.assert_array_equal(back.embeddings, weights.embeddings)
    np.testing.assert_array_equal(back.head_weight, weights.head_weight)
    assert back.head_bias == -0.25
    assert readerfiles.rank(back) == 2
    config = json.loads((tmp_path / "served" / "adapter_config.json").read_text())
    assert config["alora_invocation_tokens"] == [0, 1, 2], "a server without the plug-in refuses"

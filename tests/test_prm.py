"""Reward models: formats token by token, heads against plain computations, training of `tiny`."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
)

from prunebench import rmtrain
from prunebench.backend import ModelSpec
from prunebench.backends.fake import FakeBackend
from prunebench.compose import composed, hydra_ready
from prunebench.config import to_run
from prunebench.conformance import check_method
from prunebench.cost import Ledger
from prunebench.endpoint import EndpointConfig
from prunebench.errors import (
    ConfigError,
    DamagedFile,
    EndpointError,
    ModelNotFound,
    NotTrained,
    Unavailable,
)
from prunebench.lab import Lab
from prunebench.method import Context, LabelledPrefix
from prunebench.methods._reward import RewardMethod
from prunebench.methods.labor import LaBoR
from prunebench.methods.prm import PRM, Aggregation
from prunebench.prmformats import (
    FORMATS,
    Encoded,
    Family,
    Format,
    Steps,
    Unfinished,
    encode_own,
    encode_path,
    fit,
    split_path,
)
from prunebench.rewardmodel import RewardModel
from prunebench.types import Capability, Problem, TokenStats, Trace, view

QUESTION = "What is 2+3?"
STEPS = ["Add 2 and 3.", "It is 5.", "Done"]

CHATML = (
    "{%- if messages[0].role != 'system' -%}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    "{%- endif -%}"
    "{%- for m in messages -%}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
    "{%- endfor -%}"
)
LLAMA = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday<|eot_id|>"
    "{%- for m in messages -%}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim "
    "+ '<|eot_id|>' }}"
    "{%- endfor -%}"
)


def byte_tokenizer(special: list[str], template: str | None = None, **names):
    """One token per byte, then the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in special])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    made.chat_template = template
    return made


@pytest.fixture(scope="module")
def qwen():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
    return byte_tokenizer(
        special, CHATML, eos_token="<|im_end|>", bos_token="<|endoftext|>", pad_token=special[0]
    )


@pytest.fixture(scope="module")
def llama():
    special = ["<|begin|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    return byte_tokenizer(special, LLAMA, bos_token="<|begin|>", eos_token="<|eot_id|>")


@pytest.fixture(scope="module")
def mistral():
    """Like SentencePiece: a space belongs to the word behind it, and one stands before the text."""
    words = ["▁ки", "▁+", "▁-", "▁к"]
    letters = "▁\n" + "".join(map(chr, range(33, 127))) + "ки"
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for token in [*letters, *words]:
        vocab[token] = len(vocab)
    merges = [("▁", "к"), ("▁к", "и"), ("▁", "+"), ("▁", "-")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in ("<s>", "</s>")])
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def plain(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


# ------------------------------------------------------------------------------- the formats


def test_qwen_puts_a_mark_after_every_step(qwen):
    found = encode_path(Family.qwen25_math_prm, qwen, QUESTION, STEPS, 4096)
    text = (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within "
        "\\boxed{}.<|im_end|>\n<|im_start|>user\nWhat is 2+3?<|im_end|>\n<|im_start|>assistant\n"
        "Add 2 and 3.<extra_0>It is 5.<extra_0>Done<extra_0><|im_end|>\n"
    )
    expected = plain(qwen, text)
    assert found.ids.tolist() == expected
    tag = qwen.convert_tokens_to_ids("<extra_0>")
    assert found.read.tolist() == [i == tag for i in expected]
    assert found.read.sum() == 3
    assert not found.cut


def test_reasonflux_leaves_the_system_turn_to_the_template(qwen):
    found = encode_path(Family.reasonflux_prm, qwen, QUESTION, STEPS[:1], 4096)
    text = (
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nWhat is 2+3?<|im_end|>\n"
        "<|im_start|>assistant\nAdd 2 and 3.<extra_0><|im_end|>\n"
    )
    assert found.ids.tolist() == plain(qwen, text)
    assert qwen.decode(found.ids[found.read]) == "<extra_0>"


def test_reasonflux_small_reads_the_end_of_the_raw_text(qwen):
    found = encode_path(Family.reasonflux_prm_outcome, qwen, QUESTION, STEPS, 2048)
    assert found.ids.tolist() == plain(qwen, QUESTION + "Add 2 and 3.\n\nIt is 5.\n\nDone")
    assert found.read.nonzero()[0].tolist() == [len(found.ids) - 1]
    assert FORMATS[Family.reasonflux_prm_outcome].longest == 2048


def test_skywork_closes_every_line(qwen):
    steps = split_path("a\n\nbc\nd", FORMATS[Family.skywork_o1_prm], True, *DEFAULT)
    assert steps == ["a", "", "bc", "d"]
    found = encode_path(Family.skywork_o1_prm, qwen, QUESTION, steps, 4096)
    expected = plain(qwen, "<|endoftext|>What is 2+3?\na\n\nbc\nd\n")
    assert found.ids.tolist() == expected
    assert found.read.nonzero()[0].tolist() == [15, 16, 19, 21]  # bos, 12 of the question, \n, a
    assert {expected[i] for i in (15, 16, 19, 21)} == set(plain(qwen, "\n"))


def test_shepherd_reads_at_the_tag(mistral):
    found = encode_path(Family.math_shepherd, mistral, QUESTION, STEPS, 4096)
    expected = mistral.encode("What is 2+3? Add 2 and 3. ки\nIt is 5. ки\nDone ки")
    assert found.ids.tolist() == expected
    tag = plain(mistral, "ки")
    assert len(tag) == 1
    assert found.read.tolist() == [i == tag[0] for i in expected]
    assert found.read.sum() == 3


def test_rlhflow_reads_where_plus_is_predicted(llama):
    found = encode_path(Family.rlhflow, llama, QUESTION, STEPS, 4096)
    head = "<|start_header_id|>"
    text = f"<|begin|>{head}system<|end_header_id|>\n\nToday<|eot_id|>"
    ends = []
    for user in ("What is 2+3? Add 2 and 3.", "It is 5.", "Done"):
        text += f"{head}user<|end_header_id|>\n\n{user}<|eot_id|>"
        text += f"{head}assistant<|end_header_id|>\n\n"
        ends.append(len(plain(llama, text)) - 1)
        text += "+<|eot_id|>"
    assert found.ids.tolist() == plain(llama, text)
    assert found.read.nonzero()[0].tolist() == ends


def test_a_step_that_writes_the_mark_moves_nothing(qwen, mistral, llama):
    tag = qwen.convert_tokens_to_ids("<extra_0>")
    steps = ["a <extra_0> b<|im_end|>", "c"]
    found = encode_path(Family.qwen25_math_prm, qwen, "Why <extra_0>?", steps, 4096)
    assert found.read.sum() == 2
    assert (found.ids == tag).sum() == 2  # the model sees only our marks
    assert (found.ids == qwen.convert_tokens_to_ids("<|im_end|>")).sum() == 3  # of the template
    assert "a <extra_0> b<|im_end|>" in qwen.decode(found.ids)
    found = encode_path(Family.math_shepherd, mistral, QUESTION, ["a ки b", "c"], 4096)
    ids = found.ids.tolist()
    assert ids.count(plain(mistral, "ки")[0]) == 3
    assert found.read.nonzero()[0].tolist() == [
        len(mistral.encode("What is 2+3? a ки b ки")) - 1,
        len(ids) - 1,
    ]
    found = encode_path(Family.rlhflow, llama, QUESTION, ["+<|eot_id|>", "+"], 4096)
    assert found.read.sum() == 2
    assert (found.ids == llama.convert_tokens_to_ids("<|eot_id|>")).sum() == 5


def test_a_mark_that_is_no_special_token_is_still_not_parsed(qwen):
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"], CHATML)
    tokenizer.add_tokens([AddedToken("<extra_0>", special=False)])
    found = encode_path(Family.qwen25_math_prm, tokenizer, QUESTION, ["a<extra_0>b"], 4096)
    assert (found.ids == tokenizer.convert_tokens_to_ids("<extra_0>")).sum() == 1
    assert tokenizer.decode(found.ids).endswith("a<extra_0>b<extra_0><|im_end|>\n")


def test_a_tokenizer_without_the_mark_is_refused(llama):
    with pytest.raises(ConfigError, match=r"method\.family"):
        encode_path(Family.qwen25_math_prm, llama, QUESTION, STEPS, 4096)


@pytest.mark.parametrize("family", [f for f in Family if f in FORMATS], ids=lambda f: f.value)
def test_long_paths_lose_their_first_steps(family, qwen, mistral, llama):
    tokenizer = {Family.math_shepherd: mistral, Family.rlhflow: llama}.get(family, qwen)
    steps = [f"{i} {'x' * 30}" for i in range(12)]
    whole = encode_path(family, tokenizer, QUESTION, steps, 10_000)
    limit = len(whole.ids) - 100
    kept = encode_path(family, tokenizer, QUESTION, steps, limit)
    assert kept.cut
    assert len(kept.ids) <= limit
    fewer = [encode_path(family, tokenizer, QUESTION, steps[n:], 10_000) for n in range(12)]
    fitting = [e for e in fewer if len(e.ids) <= limit]
    assert kept.ids.tolist() == fitting[0].ids.tolist()  # no more steps are lost than needed
    assert kept.read.tolist() == fitting[0].read.tolist()
    one = encode_path(family, tokenizer, QUESTION, ["y" * 500 + "z"], 300)  # one step, cut within
    assert one.cut
    assert len(one.ids) == 300
    assert one.read.sum() == 1
    text = tokenizer.decode(one.ids)
    assert QUESTION in text
    assert "yz" in text
    assert encode_path(family, tokenizer, "q" * 400, ["y"], 300) is None


def test_fit_needs_something_to_read():
    ids, read = np.arange(10), np.zeros(10, dtype=bool)
    read[3] = True
    assert fit(ids, read, 2, 10).ids.tolist() == list(range(10))
    assert fit(ids, read, 2, 5) is None
    assert fit(ids, read, 2, 9).ids.tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9]


DEFAULT = (Steps.marked, Unfinished.close)
BLANKS, LINES = Format(encode=lambda *_: ([], [], 0)), FORMATS[Family.skywork_o1_prm]


@pytest.mark.parametrize(
    ("text", "form", "finished", "steps", "unfinished", "expected"),
    [
        ("a\n\n b \n\nc", BLANKS, False, "marked", "close", ["a", "b", "c"]),
        ("a\n\n b \n\nc", BLANKS, False, "marked", "drop", ["a", "b"]),
        ("a\n\n b \n\nc", BLANKS, True, "marked", "drop", ["a", "b", "c"]),
        ("a\n\nb\n\n", BLANKS, False, "marked", "drop", ["a", "b"]),
        ("only this", BLANKS, False, "marked", "drop", ["only this"]),
        ("a\n\nb\n\nc ", BLANKS, False, "whole", "drop", ["a\n\nb\n\nc"]),
        ("a\nb\nc", LINES, False, "marked", "drop", ["a", "b"]),
        (" \n\n ", BLANKS, True, "marked", "close", []),
        (" \n\n ", LINES, True, "marked", "close", []),
        ("", BLANKS, True, "whole", "close", []),
    ],
)
def test_steps_of_a_path(text, form, finished, steps, unfinished, expected):
    assert split_path(text, form, finished, Steps(steps), Unfinished(unfinished)) == expected


def test_tiny_reads_line_ends_and_the_last_token():
    def read(text, finished=False, steps="marked", unfinished="close", longest=100):
        found = encode_own(
            np.frombuffer(b"7*2\n", dtype=np.uint8),
            np.frombuffer(text.encode(), dtype=np.uint8),
            lambda token: token == 10,
            finished=finished,
            steps=Steps(steps),
            unfinished=Unfinished(unfinished),
            max_length=longest,
        )
        return found and (bytes(found.ids.astype(np.uint8)), found.read.nonzero()[0].tolist())

    whole = b"7*2\nab\nc\nde"
    assert read("ab\nc\nde") == (whole, [6, 8, 10])
    assert read("ab\nc\nde", unfinished="drop") == (whole, [6, 8])
    assert read("ab\nc\nde", unfinished="drop", finished=True) == (whole, [6, 8, 10])
    assert read("ab\nc\nde", steps="whole") == (whole, [10])
    assert read("ab", unfinished="drop") == (b"7*2\nab", [5])
    assert read("ab\n", unfinished="drop") == (b"7*2\nab\n", [6])
    assert read("ab\nc\nde", longest=8) == (b"7*2\nc\nde", [5, 7])
    assert read("ab\nc\nde", longest=7) == (b"7*2\n\nde", [4, 6])
    assert read("ab", longest=4) is None


# ---------------------------------------------------------------------- running a reward model


class Line(torch.nn.Module):
    """A backbone whose state at a token is the token's id."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, input_ids, attention_mask, use_cache):
        self.shapes.append(tuple(input_ids.shape))
        return SimpleNamespace(last_hidden_state=input_ids[..., None].float())


def line(batch_tokens=100):
    ledger = Ledger()
    return RewardModel(
        Line(), lambda s: s[:, 0], max_length=64, batch_tokens=batch_tokens, ledger=ledger
    ), ledger


def coded(ids, read):
    mask = np.zeros(len(ids), dtype=bool)
    mask[read] = True
    return Encoded(np.array(ids, dtype=np.int32), mask, 0)


def test_a_probability_of_exactly_zero_counts():
    model, _ = line()
    [steps] = model.read([coded([0, -900, 2, 900], [0, 1, 3])])
    assert steps.tolist() == [0.5, 0.0, 1.0]
    assert [PRM(aggregation=a).aggregated(steps) for a in Aggregation] == [1.0, 0.0, 0.5, 0.0]


def test_aggregations_by_hand():
    steps = np.array([0.5, 0.25, 0.75])
    scores = {a.value: PRM(aggregation=a).aggregated(steps) for a in Aggregation}
    assert scores == {"last": 0.75, "min": 0.25, "mean": 0.5, "product": 0.09375}


def test_equal_inputs_run_once_and_every_token_is_counted():
    model, ledger = line(batch_tokens=8)
    inputs = [
        coded([1, 2, 3], [2]),
        coded([4, 5], [0, 1]),
        coded([1, 2, 3], [2]),
        coded([6] * 20, [19]),
        coded([1, 2, 3], [1]),
    ]
    found = model.read(inputs)
    expected = [[3], [4, 5], [3], [6], [2]]
    for steps, logits in zip(found, expected, strict=True):
        assert steps == pytest.approx(1 / (1 + np.exp(-np.array(logits, dtype=float))), rel=1e-12)
    assert ledger.spent.verifier_tokens == 3 + 2 + 20 + 3  # padding is not counted
    assert all(rows * width <= 8 or rows == 1 for rows, width in model.backbone.shapes)
    assert model.read([]) == []


# ------------------------------------------------------- published models, small and random ones

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,
}
TEXTS = ["Add 2.\n\nIt is 5.\n\nDo", "No <extra_0> way", "", "One.\n\nTwo.\n\nThree.\n\nFour"]


def group_of(texts, *, finished=False, question=QUESTION):
    traces = [
        Trace(
            index=i,
            token_ids=np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32),
            text=text,
            stats=TokenStats(),
            stopped=finished,
            answer=None,
            correct=False,
        )
        for i, text in enumerate(texts)
    ]
    problem = Problem(id="p", question=question, answer="5")
    prompt = np.frombuffer(question.encode() + b"\n", dtype=np.uint8).astype(np.int32)
    return view(problem, prompt, traces, 400, decode=lambda i: "", granted=frozenset(), seed=0)


def ready(method, ledger=None):
    backend = FakeBackend()
    backend.bind(ModelSpec(name="fake", id="fake"), 0)
    method.setup(Context(model_name="fake", backend=backend, ledger=ledger or Ledger()))
    return method


def heads(hidden):
    torch.manual_seed(5)
    return {
        "score.0.weight": torch.randn(hidden, hidden),
        "score.0.bias": torch.randn(hidden),
        "score.2.weight": torch.randn(2, hidden),
        "score.2.bias": torch.randn(2),
        "v_head.summary.weight": torch.randn(1, hidden),
        "v_head.summary.bias": torch.randn(1),
    }


def save(folder, model, tokenizer, extra):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prefix = "" if any(k.startswith("model.") for k in model.state_dict()) else "model."
    state = {f"{prefix}{k}": v.clone() for k, v in model.state_dict().items()}
    save_file({**state, **extra}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def qwen_folder(qwen, tmp_path_factory):
    """Both Qwen heads beside one backbone, and the reward head of ReasonFlux-PRM-1.5B."""
    folder = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    model = Qwen2Model(Qwen2Config(vocab_size=len(qwen), **SMALL)).eval()
    save(folder, model, qwen, heads(16))
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Qwen2ForProcessRewardModel"]
    config["auto_map"] = {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text("raise RuntimeError('remote code ran')\n")
    torch.save(
        {"weight": torch.full((1, 16), 0.3), "bias": torch.tensor([0.1])}, folder / "reward_head.pt"
    )
    return folder, model


def test_qwen_process_reward_model(qwen_folder, qwen):
    folder, model = qwen_folder
    ledger = Ledger()
    method = PRM(family=Family.qwen25_math_prm, path=str(folder), aggregation=Aggregation.min)
    group = group_of(TEXTS)
    scores = ready(method, ledger).score(group)
    h, expected, total = heads(16), [], 0
    for text in TEXTS:
        if not text:
            expected.append(np.nan)
            continue
        body = "".join(
            s.replace("<extra_0>", "<extra_~0>") + "<extra_0>" for s in text.split("\n\n")
        )
        ids = plain(
            qwen,
            "<|im_start|>system\nPlease reason step by step, and put your final answer within "
            f"\\boxed{{}}.<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n"
            f"<|im_start|>assistant\n{body}<|im_end|>\n",
        )
        tilde = plain(qwen, "~")[0]
        ids = [i for i in ids if i != tilde]
        total += len(ids)
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0]
        hidden = torch.relu(states @ h["score.0.weight"].T + h["score.0.bias"])
        classes = torch.softmax(hidden @ h["score.2.weight"].T + h["score.2.bias"], -1)[:, 1]
        marks = [i for i, t in enumerate(ids) if t == qwen.convert_tokens_to_ids("<extra_0>")]
        expected.append(float(classes[marks].min()))
    assert scores == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert len(set(np.round(scores[[0, 1, 3]], 6))) == 3
    assert ledger.spent.verifier_tokens == total
    assert group._granted.unscored == {2: "empty prefix"}


def test_the_scores_of_a_batch_are_those_of_single_paths(qwen_folder):
    folder, _ = qwen_folder
    scores = [
        ready(PRM(family=Family.reasonflux_prm, path=str(folder), batch_tokens=n)).score(
            group_of(TEXTS)
        )
        for n in (1, 10_000)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6, nan_ok=True)


def test_skywork_value_head(qwen_folder, qwen):
    folder, model = qwen_folder
    method = PRM(family=Family.skywork_o1_prm, path=str(folder), aggregation=Aggregation.product)
    scores = ready(method).score(group_of(["ab\ncd\ne"]))
    ids = plain(qwen, f"<|endoftext|>{QUESTION}\nab\ncd\ne\n")
    h = heads(16)
    with torch.no_grad():
        states = model(torch.tensor([ids])).last_hidden_state[0]
    values = torch.sigmoid(states @ h["v_head.summary.weight"][0] + h["v_head.summary.bias"])
    expected = values[[16, 19, 21]].prod()
    assert [qwen.decode(ids[i]) for i in (16, 19, 21)] == ["\n"] * 3
    assert scores == pytest.approx([float(expected)], abs=1e-6)


def test_reasonflux_small_outcome_head(qwen_folder, qwen):
    folder, model = qwen_folder
    method = PRM(family=Family.reasonflux_prm_outcome, path=str(folder))
    scores = ready(method).score(group_of(["ab c"]))
    with torch.no_grad():
        states = model(torch.tensor([plain(qwen, QUESTION + "ab c")])).last_hidden_state
    expected = torch.sigmoid(0.3 * states[0, -1].sum() + 0.1)
    assert scores == pytest.approx([float(expected)], abs=1e-6)


def test_shepherd_compares_two_tokens(mistral, tmp_path):
    torch.manual_seed(1)
    config = MistralConfig(vocab_size=len(mistral), sliding_window=None, **SMALL)
    model = MistralForCausalLM(config).eval()
    save(tmp_path, model, mistral, {})
    method = PRM(family=Family.math_shepherd, path=str(tmp_path), aggregation=Aggregation.mean)
    scores = ready(method).score(group_of(["Add 2.\n\nIt is 5."]))
    ids = mistral.encode("What is 2+3? Add 2. ки\nIt is 5. ки")
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    plus, minus = mistral.convert_tokens_to_ids(["▁+", "▁-"])
    right = torch.softmax(logits[:, [plus, minus]], -1)[:, 0]
    tag = mistral.convert_tokens_to_ids("▁ки")
    expected = right[[i for i, t in enumerate(ids) if t == tag]]
    assert len(expected) == 2
    assert scores == pytest.approx([float(expected.mean())], abs=1e-6)


def test_rlhflow_step_by_step(llama, tmp_path):
    torch.manual_seed(2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(llama), **SMALL)).eval()
    save(tmp_path, model, llama, {})
    scores = {
        a.value: ready(PRM(family=Family.rlhflow, path=str(tmp_path), aggregation=a)).score(
            group_of(["Add 2.\n\nIt is 5.\n\nSo"])
        )[0]
        for a in Aggregation
    }
    steps, chat = [], []
    pair = [plain(llama, "+")[-1], plain(llama, "-")[-1]]
    for user in (f"{QUESTION} Add 2.", "It is 5.", "So"):
        chat += [{"role": "user", "content": user}, {"role": "assistant", "content": "+"}]
        ids = plain(llama, llama.apply_chat_template(chat, tokenize=False))
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -3, pair]
        steps.append(float(logits.softmax(-1)[0]))
    expected = {
        "last": steps[-1],
        "min": min(steps),
        "mean": sum(steps) / 3,
        "product": steps[0] * steps[1] * steps[2],
    }
    assert scores == pytest.approx(expected, abs=1e-6)


def test_labor_is_one_step(qwen_folder):
    folder, _ = qwen_folder
    options = {"family": Family.qwen25_math_prm, "path": str(folder)}
    whole = ready(LaBoR(**options)).score(group_of(TEXTS))
    same = ready(PRM(**options, steps=Steps.whole)).score(group_of(TEXTS))
    steps = ready(PRM(**options)).score(group_of(TEXTS))
    assert whole == pytest.approx(same, abs=0, nan_ok=True)
    assert abs(whole[0] - steps[0]) > 1e-6
    assert whole[1] == pytest.approx(steps[1], abs=1e-6)  # has a single step


def test_cuts_are_counted_and_told_once(qwen_folder, caplog):
    folder, _ = qwen_folder
    options = {"family": Family.qwen25_math_prm, "path": str(folder), "max_length": 250}
    method = ready(PRM(**options))
    texts = ["x" * 300, "short", "\n\n".join(["y" * 40] * 6)]
    scores = method.score(group_of(texts))
    method.score(group_of(texts))
    assert np.isfinite(scores).all()
    assert method.n_cut_ == 4
    assert sum("lose their first steps" in r.message for r in caplog.records) == 1
    group = group_of(["a"], question="q" * 300)
    assert np.isnan(method.score(group)).all()
    assert "no room" in group._granted.unscored[0]


def test_models_that_are_not_there_or_not_whole(qwen_folder, qwen, tmp_path):
    with pytest.raises(ModelNotFound, match=r"hf download Qwen/Qwen2\.5-Math-PRM-7B"):
        ready(PRM(family=Family.qwen25_math_prm, model_id="Qwen/Qwen2.5-Math-PRM-7B"))
    with pytest.raises(ModelNotFound, match=r"method\.path"):
        ready(PRM(family=Family.qwen25_math_prm, path=str(tmp_path)))
    with pytest.raises(ConfigError, match="model_id"):
        PRM(family=Family.rlhflow)
    with pytest.raises(ConfigError, match="max_length"):
        PRM(max_length=-1)
    with pytest.raises(ConfigError, match="batch_tokens"):
        LaBoR(batch_tokens=0)
    model = Qwen2Model(Qwen2Config(vocab_size=len(qwen), **SMALL))
    save(tmp_path, model, qwen, {})
    for family, name in (
        (Family.qwen25_math_prm, "score.0.weight"),
        (Family.skywork_o1_prm, "v_head.summary.weight"),
        (Family.reasonflux_prm_outcome, "reward_head"),
    ):
        with pytest.raises(DamagedFile, match=name):
            ready(PRM(family=family, path=str(tmp_path)))


# ---------------------------------------------------------------------------- training of tiny


@pytest.fixture(scope="module")
def backend():
    made = FakeBackend()
    made.bind(ModelSpec(name="fake", id="fake"), 0)
    return made


def labelled(n_problems, seed):
    """Nested prefixes of paths that hold low letters (right) or high ones (wrong)."""
    rng = np.random.default_rng(seed)
    examples = []
    for p in range(n_problems):
        prompt = rng.integers(48, 58, 4).astype(np.int32)
        for k in range(4):
            path = (rng.integers(0, 8, 12) + (97 if k % 2 else 110)).astype(np.int32)
            for n in (6, 9, 12):
                examples.append(
                    LabelledPrefix(
                        problem_id=f"{seed}-{p}",
                        prompt_ids=prompt,
                        prefix_ids=path[:n],
                        label=float(k % 2),
                        n_continuations=1,
                    )
                )
    return examples


@pytest.fixture(scope="module")
def fitted(backend):
    before = {k: v.clone() for k, v in backend.model().state_dict().items()}
    method = PRM(epochs=6, batch_size=8, eval_every=10, warmup=2, learning_rate=5e-3)
    method.fit(labelled(20, 1), labelled(8, 2), Context(model_name="fake", backend=backend))
    after = backend.model().state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)  # the generator is not touched
    return method


def letters(text):
    return "".join(chr(c) for c in np.frombuffer(text.encode(), dtype=np.uint8))


def test_training_learns_what_there_is_to_learn(fitted):
    assert fitted.metrics_["valid_auroc"] > 0.95
    scores = fitted.score(group_of(["abcabcabc", "nopqnopq", "", "abcabcabc"], question="4711"))
    assert scores[0] > scores[1]
    assert np.isnan(scores[2])
    assert scores[3] == scores[0]


def test_saved_weights_score_the_same_and_serve_labor(fitted, backend, tmp_path):
    fitted.save(tmp_path)
    context = Context(model_name="fake", backend=backend)
    texts = ["abc\nnop", "nopq\nab", "cab"]
    expected = fitted.score(group_of(texts))
    assert (PRM().load(tmp_path, context).score(group_of(texts)) == expected).all()
    labor = LaBoR().load(tmp_path, context)
    assert (
        labor.score(group_of(texts)) == expected
    ).all()  # the last step ends where the path does
    assert LaBoR.weights_of == "prm"
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 200_000  # float16
    (tmp_path / "prm.safetensors").write_bytes(b"x")
    with pytest.raises(DamagedFile, match="prm"):
        PRM().load(tmp_path, context)


def test_scores_are_those_of_a_plain_forward_pass(fitted, backend):
    """Every read position against the same weights in an unpadded pass of their own."""
    text = "abc\nno\nca"
    weights = {k: torch.as_tensor(v).double() for k, v in fitted.weights_.items()}
    model = Qwen2Model(Qwen2Config.from_dict(fitted.metrics_["config"])).double().eval()
    model.load_state_dict({k[6:]: v for k, v in weights.items() if k.startswith("model.")})
    ids = list(QUESTION.encode() + b"\n" + text.encode())
    with torch.no_grad():
        states = model(torch.tensor([ids])).last_hidden_state[0]
    p = torch.sigmoid(states @ weights["head.weight"][0] + weights["head.bias"][0]).numpy()
    at = [len(QUESTION) + 1 + i for i in (3, 6, 8)]
    for aggregation, expected in (
        ("last", p[at[2]]),
        ("min", p[at].min()),
        ("mean", p[at].mean()),
        ("product", p[at].prod()),
    ):
        fitted.aggregation = Aggregation(aggregation)
        scores = fitted.score(group_of([text, "abcabcabcabcabc"]))
        assert scores[0] == pytest.approx(expected, rel=1e-9)
    fitted.aggregation = Aggregation.last
    fitted.unfinished = Unfinished.drop
    assert fitted.score(group_of([text]))[0] == pytest.approx(p[at[1]], rel=1e-9)
    assert fitted.score(group_of([text], finished=True))[0] == pytest.approx(p[at[2]], rel=1e-9)
    fitted.unfinished = Unfinished.close


def test_nested_prefixes_run_once_and_give_the_logits_of_single_runs(backend):
    examples = labelled(3, 7)
    rows = rmtrain._Examples(examples, centred=False)
    assert len(rows.rows) == 12  # 36 examples
    assert sorted(i for row in rows.rows for _, i in row.ends) == list(range(36))
    torch.manual_seed(0)
    backbone = backend.model().base_model.eval()
    head = torch.nn.Linear(32, 1)
    with torch.no_grad():
        for batch in rows.batches(5, torch.Generator().manual_seed(0)):
            logits, chosen = rmtrain._logits(backbone, head, batch)
            for logit, i in zip(logits, chosen, strict=True):
                ids = np.concatenate([examples[i].prompt_ids, examples[i].prefix_ids])
                alone = backbone(torch.as_tensor(ids)[None]).last_hidden_state[0, -1]
                assert float(logit) == pytest.approx(float(head(alone)), abs=1e-5)


def test_training_is_reproducible(backend):
    def weights():
        method = PRM(epochs=1, batch_size=8, warmup=1)
        method.fit(labelled(6, 3), labelled(3, 4), Context(model_name="fake", backend=backend))
        return method.weights_

    a, b = weights(), weights()
    assert all((a[k] == b[k]).all() for k in a)


def test_only_tiny_is_trained(backend):
    method = PRM(family=Family.rlhflow, model_id="x/y")
    assert not method.needs_training
    assert PRM().needs_training
    with pytest.raises(ConfigError, match="come trained"):
        method.fit([], [], Context(model_name="fake", backend=backend))
    with pytest.raises(NotTrained, match="train method=prm"):
        PRM().score(group_of(["a"]))


@pytest.mark.parametrize(("cls", "name"), [(PRM, "prm"), (LaBoR, "labor")])
def test_the_contract_is_kept(cls, name):
    assert issubclass(cls, RewardMethod)
    assert check_method(cls, name=name) == []


def test_generator_weights_are_no_part_of_the_reward_model(qwen):
    """A tied embedding table is the backbone's; the output head is left out."""
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=300, **SMALL))
    learnt = rmtrain.train_reward_model(
        model, rmtrain.Recipe(epochs=1), labelled(4, 5), labelled(2, 6), seed=0
    )
    assert not any("lm_head" in name for name in learnt.weights)


# ------------------------------------------------------------------------------ behind a server


class Pooling(BaseHTTPRequestHandler):
    """Logits from token ids: of class 1 against class 0, the token's place over 10."""

    per_mark, status, seen = True, [], []

    def do_GET(self):
        self.reply(200, {"data": [{"id": "prm", "max_model_len": 300}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).seen.append((self.path, body, self.headers.get("Authorization")))
        if self.status:
            status = self.status.pop(0)
            return self.reply(status, {"error": {"message": "no: sk-secret-1234"}})
        data = []
        for index, ids in enumerate(body["input"]):
            if self.per_mark:
                rows = [[1.0, 1.0 + i / 10] for i, token in enumerate(ids) if token == 259]
            else:
                rows = [[i / 10] for i in range(len(ids))]
            data.append({"index": index, "object": "pooling", "data": rows})
        total = sum(map(len, body["input"]))
        return self.reply(200, {"data": data[::-1], "usage": {"prompt_tokens": total}})

    def reply(self, status, content):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("PRM_KEY", "sk-secret-1234")
    Pooling.per_mark, Pooling.status, Pooling.seen = True, [], []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Pooling)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{httpd.server_port}/v1"
    yield EndpointConfig(base_url=url, model="prm", key_env="PRM_KEY", max_attempts=2, timeout=5)
    httpd.shutdown()
    httpd.server_close()


def served(config, ledger=None, **options):
    method = PRM(server=True, aggregation=Aggregation.product, **options)
    backend = FakeBackend()
    backend.bind(ModelSpec(name="fake", id="fake"), 0)
    endpoint: Any = SimpleNamespace(config=config)
    ledger = ledger or Ledger()
    method.setup(Context(model_name="fake", backend=backend, endpoint=endpoint, ledger=ledger))
    return method


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_a_served_reward_model_reads_its_marks(server, qwen_folder, qwen):
    folder, _ = qwen_folder
    ledger = Ledger()
    method = served(server, ledger, family=Family.qwen25_math_prm, path=str(folder))
    assert method.model_.max_length == 300
    scores = method.score(group_of(TEXTS))
    expected, total = [], 0
    for text in TEXTS:
        steps = [s for s in text.split("\n\n") if s]
        if not steps:
            expected.append(np.nan)
            continue
        coded = encode_path(Family.qwen25_math_prm, qwen, QUESTION, steps, 4096)
        total += len(coded.ids)
        places = [i for i, token in enumerate(coded.ids) if token == 259]
        expected.append(math.prod(sigmoid(i / 10) for i in places))
    assert scores == pytest.approx(expected, rel=1e-9, nan_ok=True)
    [(path, body, key)] = Pooling.seen
    assert path == "/pooling"
    assert (body["model"], body["task"], body["use_activation"]) == (
        "prm",
        "token_classify",
        False,
    )
    assert key == "Bearer sk-secret-1234"
    spent = ledger.spent
    assert (spent.verifier_tokens, spent.calls) == (total, 1)
    assert math.isnan(spent.priced(None, None).money)


def test_a_server_that_gives_a_value_per_token(server, qwen_folder):
    folder, _ = qwen_folder
    Pooling.per_mark = False
    server.price_prompt = 2.0
    ledger = Ledger()
    method = served(server, ledger, family=Family.skywork_o1_prm, path=str(folder))
    scores = method.score(group_of(["ab\nc"]))
    assert scores == pytest.approx([sigmoid(1.6) * sigmoid(1.8)], rel=1e-9)
    assert ledger.spent.priced(*server.prices).money == pytest.approx(19 * 2 / 1e6)


def test_what_a_server_can_do_wrong(server, qwen_folder):
    folder, _ = qwen_folder
    options = {"family": Family.qwen25_math_prm, "path": str(folder)}
    method = served(server, **options)
    Pooling.status = [503]
    assert np.isfinite(method.score(group_of(["a"]))).all()  # asked again
    Pooling.status = [503, 503]
    with pytest.raises(Unavailable, match="did not answer"):
        method.score(group_of(["a"]))
    Pooling.status = [401]
    with pytest.raises(EndpointError, match="refused") as caught:
        method.score(group_of(["a"]))
    assert "sk-secret" not in str(caught.value)
    rows = served(server, family=Family.skywork_o1_prm, path=str(folder))
    with pytest.raises(EndpointError, match="0 rows for a path with 1 steps"):
        rows.score(group_of(["a"]))
    server.model = "other"
    with pytest.raises(EndpointError, match="serves: prm"):
        served(server, **options)
    with pytest.raises(ConfigError, match="endpoint=server"):
        ready(PRM(server=True, **options))
    with pytest.raises(ModelNotFound, match="hf download Qwen/no-such-prm"):
        served(server, family=Family.qwen25_math_prm, model_id="Qwen/no-such-prm")
    with pytest.raises(ConfigError, match="server"):
        PRM(server=True, family=Family.rlhflow, model_id="x/y")


def test_only_a_served_model_needs_a_server(qwen_folder):
    folder, _ = qwen_folder
    options = {"family": Family.qwen25_math_prm, "path": str(folder)}
    assert PRM(server=True, **options).requires == {Capability.ENDPOINT}
    assert PRM(server=True, **options).published_weights() is None
    assert PRM(**options).requires == PRM.requires == frozenset()
    assert PRM(**options).published_weights() is not None


def test_a_run_finds_the_weights_of_prm_and_known_published_ones(qwen_folder, tmp_path):
    trained = tmp_path / "tiny" / "prm"
    trained.mkdir(parents=True)
    (trained / "prm.json").write_text("{}")
    folder, _ = qwen_folder
    published = f"method.path={folder}"
    found = []
    for overrides in ([f"train.output={tmp_path}"], ["method.family=skywork_o1_prm", published]):
        with hydra_ready():
            run = to_run(composed(["method=labor", *overrides]))
        found.append(Lab().prepared(run))
    assert found[0].checkpoint == trained
    assert found[1].checkpoint is None
    hashes = [prepared.checkpoint_hash for prepared in found]
    assert None not in hashes
    with (folder / "special.safetensors").open("wb") as file:
        file.write(b"other weights")
    with hydra_ready():
        run = to_run(composed(["method=labor", "method.family=skywork_o1_prm", published]))
    assert Lab().prepared(run).checkpoint_hash not in hashes  # scores are not taken for old ones
    (folder / "special.safetensors").unlink()


PRESETS = sorted(p.stem for p in (Path(__file__).parent.parent / "conf" / "method").glob("*.yaml"))


@pytest.mark.parametrize("name", [p for p in PRESETS if p.startswith(("prm_", "labor_"))])
def test_presets_name_a_published_model(name):
    with hydra_ready():
        method = to_run(composed([f"method={name}"])).method
    assert type(method) is (PRM if name.startswith("prm_") else LaBoR)
    assert not method.needs_training
    assert "/" in method.model_id
    size = name.split("_")[-1] if name[-1] == "b" else name.split("_")[2]
    assert size in method.model_id.lower()


def test_every_family_has_a_preset():
    with hydra_ready():
        found = {to_run(composed([f"method={n}"])).method.family for n in PRESETS if "prm_" in n}
    assert found == set(FORMATS)

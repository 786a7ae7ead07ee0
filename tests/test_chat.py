"""Prompts and texts of reasoning models: the template's own tokens, `</think>` and Harmony.

Small byte-level tokenizers with the special tokens, files and templates' structure of three
families. Reference: the tokenizers library on tokenizer.json alone.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from prunebench import grading
from prunebench.backend import ModelSpec
from prunebench.backends import _harmony
from prunebench.backends._records import Record
from prunebench.backends.transformers import TransformersBackend
from prunebench.errors import ConfigError
from prunebench.types import Problem, TokenStats

BOS, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"

DEEPSEEK_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
    "{% endif %}{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% else %}"
    "{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
HARMONY_TEMPLATE = (
    "{{- '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '\\n\\n' }}"
    "{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}"
    "{{- 'Reasoning: ' + reasoning_effort + '\\n\\n# Valid channels: analysis, final.<|end|>' }}"
    "{%- for message in messages %}"
    "{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}<|start|>assistant{%- endif %}"
)
HARMONY_TOKENS = {
    **dict.fromkeys(("<|startoftext|>", "<|endoftext|>", *_harmony.MARKERS), True),
    "<|reserved_200000|>": True,
}
QWEN_TOKENS = {
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<think>": False,
    "</think>": False,
}
DEEPSEEK_TOKENS = {
    BOS: True,
    END: True,
    USER: False,
    ASSISTANT: False,
    "<think>": False,
    "</think>": False,
}


def write(
    folder: Path,
    tokens: dict[str, bool],
    *,
    template: str = "",
    model_type: str = "qwen2",
    tokenizer_class: str = "PreTrainedTokenizerFast",
    bos: str | None = None,
    eos: str,
) -> Path:
    """A model folder whose weights are a dummy. `tokens` says which added tokens are special."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("1", "2"), ("12", "3"), ("Ġ", "a"), ("Ċ", "Ċ"), ("t", "h")]
    vocab = {s: i for i, s in enumerate([*symbols, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for name, special in tokens.items():
        added = AddedToken(name, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": tokenizer_class,
        "add_bos_token": bos is not None,
        "bos_token": bos,
        "eos_token": eos,
        "clean_up_tokenization_spaces": False,
        **({"chat_template": template} if template else {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    save_file({"dummy": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def deepseek(folder: Path, model_type: str = "qwen2") -> Path:
    return write(
        folder,
        DEEPSEEK_TOKENS,
        template=DEEPSEEK_TEMPLATE,
        model_type=model_type,
        tokenizer_class="LlamaTokenizerFast",
        bos=BOS,
        eos=END,
    )


def qwen3(folder: Path) -> Path:
    return write(
        folder,
        QWEN_TOKENS,
        template=QWEN_TEMPLATE,
        model_type="qwen3",
        tokenizer_class="Qwen2Tokenizer",
        eos="<|im_end|>",
    )


def gpt_oss(folder: Path) -> Path:
    return write(
        folder, HARMONY_TOKENS, template=HARMONY_TEMPLATE, model_type="gpt_oss", eos="<|return|>"
    )


def bound(folder: Path, **chat_kwargs: Any) -> TransformersBackend:
    backend = TransformersBackend()
    prompt = "{question}\nAnswer in \\boxed{}, please."
    spec = ModelSpec(name="m", path=str(folder), prompt=prompt, chat=True, answer="math")
    backend.bind(replace(spec, chat_kwargs=chat_kwargs), 0)
    return backend


def encode(folder: Path, text: str) -> list[int]:
    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return stored.encode(text, add_special_tokens=False).ids


QUESTION = "What is 123 + a  12?"
ASKED = f"{QUESTION}\nAnswer in \\boxed{{}}, please."
DEEPSEEK_PROMPT = f"{BOS}{USER}{ASKED}{ASSISTANT}<think>\n"
QWEN_PROMPT = f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"


def harmony_prompt(effort: str) -> str:
    return (
        f"<|start|>system<|message|>Current date: 2025-06-28\n\nReasoning: {effort}\n\n"
        f"# Valid channels: analysis, final.<|end|><|start|>user<|message|>{ASKED}<|end|>"
        f"<|start|>assistant"
    )


@pytest.mark.parametrize(
    ("make", "chat_kwargs", "prompt"),
    [
        (deepseek, {}, DEEPSEEK_PROMPT),
        (lambda folder: deepseek(folder, "qwen3"), {}, DEEPSEEK_PROMPT),
        (qwen3, {}, QWEN_PROMPT),
        (qwen3, {"enable_thinking": True}, QWEN_PROMPT),
        (qwen3, {"enable_thinking": False}, f"{QWEN_PROMPT}<think>\n\n</think>\n\n"),
        (gpt_oss, {"strftime_now": "2025-06-28"}, harmony_prompt("medium")),
        (
            gpt_oss,
            {"strftime_now": "2025-06-28", "reasoning_effort": "high"},
            harmony_prompt("high"),
        ),
    ],
)
def test_prompts_are_those_of_the_template(tmp_path, make, chat_kwargs, prompt):
    backend = bound(make(tmp_path), **chat_kwargs)
    ids = backend.prompt_ids(QUESTION)
    assert ids.dtype == np.int32
    assert ids.tolist() == encode(tmp_path, prompt)
    own = backend.tokenizer.apply_chat_template(
        [{"role": "user", "content": ASKED}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=False,
        **backend._chat_kwargs(),
    )
    assert ids.tolist() == own
    assert backend.tokenizer.decode(ids.tolist()) == prompt


def test_the_day_of_the_prompt_is_todays_unless_it_is_given(tmp_path):
    today, fixed = bound(gpt_oss(tmp_path)), bound(tmp_path, strftime_now="1999-12-31")
    texts = [b.tokenizer.decode(b.prompt_ids(QUESTION).tolist()) for b in (today, fixed)]
    assert "Current date: 1999-12-31\n" in texts[1]
    assert "1999" not in texts[0]
    with pytest.raises(ConfigError, match=r"chat_kwargs.strftime_now' must be a day.*'today'"):
        bound(tmp_path, strftime_now="today").prompt_ids(QUESTION)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_a_tokenizer_is_what_its_file_says(tmp_path, model_type):
    """A class named in tokenizer_config.json can put another one together."""
    backend = bound(deepseek(tmp_path, model_type))
    text = "A thing: 123123  a\n\nthe x<think>\nok 12 a don't ½ 中文\t\n "
    ids = backend.tokenize(text)
    assert ids.tolist() == encode(tmp_path, text)
    assert backend.decode(ids) == text


# ---- texts


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("model_type", ["qwen2", "gpt_neox"])
def test_the_end_of_the_thoughts_stays_in_the_text(tmp_path, special, model_type):
    tokens = {**QWEN_TOKENS, "<think>": special, "</think>": special}
    backend = bound(write(tmp_path, tokens, model_type=model_type, eos="<|im_end|>"))
    text = "<think>\n123 a.\n</think>\n\nIt is 12."
    ids = np.array(encode(tmp_path, f"{text}<|im_end|><|endoftext|>"), dtype=np.int32)
    assert backend.decode(ids) == text
    assert backend.decode(ids[:-2]) == text


def test_texts_without_thoughts_are_as_before(tmp_path):
    tokens = {"<|endoftext|>": True, "<|extra|>": False}
    backend = bound(write(tmp_path, tokens, eos="<|endoftext|>"))
    ids = np.array(encode(tmp_path, "a 12<|extra|> b<|endoftext|>"), dtype=np.int32)
    assert backend.decode(ids) == "a 12<|extra|> b"


ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"
TOOL = "<|channel|>commentary to=functions.sum <|constrain|>json<|message|>"


@pytest.mark.parametrize(
    ("harmony", "text"),
    [
        (f"{ANALYSIS}Add 12.{NEXT}{FINAL}It is 24.<|return|>", "Add 12.\n</think>\n\nIt is 24."),
        (f"{ANALYSIS}Add 12.{NEXT}{FINAL}", "Add 12.\n</think>\n\n"),
        (f"{ANALYSIS}Add 12.{NEXT}<|channel|>final", "Add 12."),
        (f"{ANALYSIS}Add 12.{NEXT}<|channel|>", "Add 12."),
        (f"{ANALYSIS}Add 12.<|end|><|start|>assis", "Add 12."),
        (f"{ANALYSIS}Add 12.<|end|>", "Add 12."),
        ("<|channel|>analysis", ""),
        (f"{FINAL}It is 24.<|return|>", "</think>\n\nIt is 24."),
        (f"{ANALYSIS}a{NEXT}{ANALYSIS}b{NEXT}{FINAL}c", "a\n\nb\n</think>\n\nc"),
        (f'{ANALYSIS}a{NEXT}{TOOL}{{"x": 1}}<|call|>', 'a\n\n{"x": 1}'),
        (f"{TOOL}1{NEXT}{FINAL}2", "1\n</think>\n\n2"),
        (f"{FINAL}a{NEXT}{ANALYSIS}b", "</think>\n\na\n\n<think>\nb"),
        (f"{FINAL}a{NEXT}{FINAL}b", "</think>\n\na\n\nb"),
        (f"{FINAL}a<|end|><|start|>assistant<|message|>b", "</think>\n\na\n\n<think>\nb"),
        ("in the middle of 12", "in the middle of 12"),
        (f"middle{NEXT}{FINAL}12<|return|>", "middle\n</think>\n\n12"),
        ("", ""),
    ],
)
def test_harmony_shows_thoughts_and_answer_apart(tmp_path, harmony, text):
    assert _harmony.plain(harmony.replace("<|return|>", "")) == text
    backend = bound(gpt_oss(tmp_path))
    ids = np.array(encode(tmp_path, harmony), dtype=np.int32)
    assert backend.decode(ids) == text
    for n in range(len(ids)):
        assert text.startswith(backend.decode(ids[:n])), n


def test_harmony_is_known_by_the_vocabulary(tmp_path):
    """Another model may write such words as text."""
    text = f"{ANALYSIS}a{NEXT}{FINAL}b"
    backend = bound(qwen3(tmp_path))
    assert backend.decode(backend.tokenize(text)) == text


# ---- answers


@pytest.mark.parametrize(
    ("text", "style", "answer"),
    [
        (r"so \boxed{1}</think> it is \boxed{2}", "math", "2"),
        (r"so \boxed{1}</think> it is one.", "math", "1"),
        (r"so \boxed{1}, but \boxed{3", "math", "1"),
        (r"so \boxed{1</think>\boxed{2} and }", "math", "2"),
        (r"a \boxed{1</think> it is {two} }", "math", None),
        (r"\boxed{1}</think>\boxed{2}<think>\boxed{3}</think>", "math", "3"),
        (r"\boxed{1}</think>", "math", "1"),
        ('"answer": "A"</think>\n"answer": "B"', "choice", "B"),
        ('"answer": "A"</think>\nIt is the first.', "choice", "A"),
        ("1+1\nA2</think>\n", "line", "2"),
        ("1+1</think>A2\n", "line", "2"),
        ("never closed, \\boxed{5}, and stopped", "math", "5"),
        ("<think>never closed", "math", None),
    ],
)
def test_the_answer_is_looked_for_after_the_thoughts_first(text, style, answer):
    assert grading.extract(text, style) == answer


@pytest.mark.parametrize(
    ("make", "generated"),
    [
        (deepseek, f"Perhaps \\boxed{{7}}.\n</think>\n\nIt is \\boxed{{123}}.{END}"),
        (qwen3, "<think>\nPerhaps \\boxed{7}.\n</think>\n\nIt is \\boxed{123}.<|im_end|>"),
        (
            gpt_oss,
            f"{ANALYSIS}Perhaps \\boxed{{7}}.{NEXT}{FINAL}It is \\boxed{{123}}.<|return|>",
        ),
    ],
)
def test_paths_of_all_families_are_graded_and_read_alike(tmp_path, make, generated):
    backend = bound(make(tmp_path))
    ids = np.array(encode(tmp_path, generated), dtype=np.int32)
    record = Record(token_ids=ids, stats=TokenStats(), stopped=True)
    problem = Problem(id="p", question=QUESTION, answer="123")
    [trace] = backend._reader().traces(problem, [0], [record])
    assert (trace.answer, trace.correct) == ("123", True)
    thoughts, final = trace.text.split("\n</think>\n\n")
    assert thoughts.removeprefix("<think>\n") == "Perhaps \\boxed{7}."
    assert final == "It is \\boxed{123}."
    assert ids[-1] in backend.eos_ids

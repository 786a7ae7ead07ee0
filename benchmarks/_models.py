"""Models with random weights and the shapes of real ones, in folders as a download would make them.

Their tokens are made-up words, and every fortieth begins a paragraph, so that texts, steps and
token counts look like those of a real model. The end-of-text token never comes: its row of the
output layer is zero, far from the most likely tokens. What they write means nothing; what they cost
is real.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from prunebench import registry

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2048,
        "max_position_embeddings": 16384,
    },
    "1.5b": {  # DeepSeek-R1-Distill-Qwen-1.5B
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 131072,
    },
    "7b": {  # DeepSeek-R1-Distill-Qwen-7B
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
    },
}
END, SPECIAL = "<|endoftext|>", ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>")
CHAT = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- endfor -%}"
)
PARAGRAPH = 40
"""Every so many tokens of the vocabulary one begins a paragraph."""
LINEAR = {
    "self_attn.q_proj": ("hidden", "heads"),
    "self_attn.k_proj": ("hidden", "kv"),
    "self_attn.v_proj": ("hidden", "kv"),
    "self_attn.o_proj": ("heads", "hidden"),
    "mlp.gate_proj": ("hidden", "inner"),
    "mlp.up_proj": ("hidden", "inner"),
    "mlp.down_proj": ("inner", "hidden"),
}
"""The linear layers of a block, from which width to which."""


def shape_config(shape: str) -> Qwen2Config:
    """The configuration of a model of this shape."""
    end = SHAPES[shape]["vocab_size"] - len(SPECIAL)
    return Qwen2Config(
        **SHAPES[shape],
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        dtype="bfloat16",
    )


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs that grow to syllables, then to words of 1, 2, 3 syllables behind a blank ("Ġ")."""
    yield "Ċ", "Ċ"
    syllables = ["".join(pair) for pair in itertools.product("bcdfghjklmnpqrstvwxz", "aeiou")]
    yield from ((first, second) for first, second in syllables)
    for n in range(3):
        for *head, last in itertools.product(*[syllables] * (n + 1)):
            yield "Ġ" + "".join(head), last


def word_tokenizer(n_vocab: int) -> PreTrainedTokenizerFast:
    """A vocabulary of made-up words: what was decoded is tokenized the same, but for paragraphs."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = list(itertools.islice(_merges(), n_vocab - len(vocab) - len(SPECIAL)))
    longest = len("".join(merges[-1]))
    opens = [i % PARAGRAPH == 0 and len(a + b) == longest for i, (a, b) in enumerate(merges)]
    for (a, b), new in zip(merges, opens, strict=True):
        vocab[("ĊĊ" if new else "") + a + b] = len(vocab)
    merges = [pair for pair, new in zip(merges, opens, strict=True) if not new]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in SPECIAL])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    made.chat_template = CHAT
    return made


def random_model(shape: str, folder: Path, *, causal: bool = True) -> Path:
    """Write a model of this shape with random weights in bfloat16; without `causal`, only its body,
    with the head of a process reward model in the format of Qwen2.5-Math-PRM."""
    config = shape_config(shape)
    torch.manual_seed(0)
    kind: Any = AutoModelForCausalLM if causal else AutoModel
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = kind.from_config(config, dtype=torch.bfloat16)
    if causal:
        with torch.no_grad():
            model.lm_head.weight[config.eos_token_id] = 0.0
    model.save_pretrained(folder)
    word_tokenizer(config.vocab_size).save_pretrained(folder)
    if not causal:
        n = config.hidden_size
        head = {
            "score.0.weight": torch.randn(n, n) / n**0.5,
            "score.0.bias": torch.zeros(n),
            "score.2.weight": torch.randn(2, n) / n**0.5,
            "score.2.bias": torch.zeros(2),
        }
        save_file(head, folder / "score.safetensors")
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return folder


def random_stop(shape: str, folder: Path, *, rank: int = 128, n_tokens: int = 4) -> Path:
    """Write a STOP for models of this shape with random weights."""
    sizes = SHAPES[shape]
    hidden, n_heads = sizes["hidden_size"], sizes["num_attention_heads"]
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> torch.Tensor:
        return 0.02 * torch.randn(*size, generator=generator)

    widths = {
        "hidden": hidden,
        "heads": hidden,
        "kv": sizes["num_key_value_heads"] * hidden // n_heads,
        "inner": sizes["intermediate_size"],
    }
    options: dict[str, Any] = {"rank": rank, "alpha": 2 * rank, "n_tokens": n_tokens}
    method: Any = registry.method_class("stop")(**options)
    method.adapter_ = {}
    for layer, (name, (a, b)) in itertools.product(
        range(sizes["num_hidden_layers"]), LINEAR.items()
    ):
        module = f"base_model.model.model.layers.{layer}.{name}"
        method.adapter_[f"{module}.lora_A.weight"] = noise(rank, widths[a])
        method.adapter_[f"{module}.lora_B.weight"] = noise(widths[b], rank)
    method.weights_ = {
        "embeddings": noise(n_tokens, hidden),
        "head.weight": noise(hidden),
        "head.bias": torch.zeros(()),
    }
    method.save(folder)
    return folder


def endless(folder: Path) -> Path:
    """A copy of the embedded model whose paths do not end by themselves: end-of-text is now the
    padding token, which it never writes, so that a path has as many tokens as are asked for."""
    import prunebench

    shutil.copytree(Path(prunebench.__file__).parent / "tiny" / "weights", folder)
    padding = json.loads((folder / "config.json").read_text())["pad_token_id"]
    for name in ("config.json", "generation_config.json"):
        _change(folder / name, eos_token_id=padding)
    padding = json.loads((folder / "tokenizer_config.json").read_text())["pad_token"]
    _change(folder / "tokenizer_config.json", eos_token=padding)
    return folder


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def model_options(folder: Path, *, temperature: float = 0.6) -> list[str]:
    """Options that run a random model, with the paper's sampling."""
    return [
        "model=qwen1.5b",
        "model.name=random",
        f"model.path={folder}",
        "model.chat=false",
        f"model.sampling.temperature={temperature}",
    ]

"""The tokenizer of the embedded model: one token per byte, so one per character of the task.

A byte-level BPE without merges. A plain character vocabulary would lose its spaces and newlines:
AutoTokenizer rebuilds the tokenizer of any `qwen2` folder with a byte-level pre-tokenizer.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END, PAD = "<|endoftext|>", "<|pad|>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """256 byte symbols, then the end-of-text and padding tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate([*alphabet, END, PAD])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )

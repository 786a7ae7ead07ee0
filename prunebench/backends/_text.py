"""Text and tokens of a model whose folder is on this machine: prompts, texts, the end of a path.

The engines that run models from such folders inherit it, so that one model has the same prompts and
texts in each. torch and transformers are imported when the tokenizer is first needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from typing import Any, ClassVar

import numpy as np

from prunebench.backend import Backend, ModelSpec
from prunebench.backends import _harmony, _hub
from prunebench.backends._records import Reader
from prunebench.errors import ConfigError
from prunebench.grading import THINK_END, THINK_START, as_style


class HubModel(Backend):
    """A backend with the tokenizer of its model."""

    needs_weights: ClassVar[bool] = True
    """Whether the weights must be on this machine too."""

    _tokenizer: Any = None
    _harmony: bool = False
    _left_out: frozenset[int] | None = None

    def bind(self, spec: ModelSpec, seed: int) -> None:
        super().bind(spec, seed)
        self._tokenizer = None

    def _location(self) -> _hub.Location:
        return _hub.locate(self.spec, weights=self.needs_weights)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; the first use loads it."""
        if self._tokenizer is None:
            location = self._location()
            _hub.check_files(location, weights=self.needs_weights)
            try:
                self._tokenizer = _load(location, self.spec.trust_remote_code)
            except Exception as error:
                raise location.damaged("tokenizer.json", error) from error
            self._harmony = _harmony.CHANNEL in self._tokenizer.get_added_vocab()
            self._left_out = _left_out(self._tokenizer, self._harmony)
        return self._tokenizer

    @property
    def eos_ids(self) -> list[int]:
        """Token ids that end a path, sorted: the tokenizer's and those of the model's files."""
        location = self._location()
        ids = {self.tokenizer.eos_token_id, *_hub.end_tokens(location)} - {None}
        if not ids:
            raise location.damaged("generation_config.json", "no end-of-text token is named")
        return sorted(int(i) for i in ids)

    @property
    def start_token(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eos_ids[0] if bos is None else int(bos)

    def prompt_ids(self, question: str) -> np.ndarray:
        """`(n_prompt,)` int32 token ids of the prompt for a question."""
        # Plain replacement: questions and templates are full of braces.
        text = (self.spec.prompt or "{question}").replace("{question}", question)
        if not self.spec.chat:
            return np.asarray(self.tokenizer(text)["input_ids"], dtype=np.int32)
        if self.tokenizer.chat_template is None:
            raise ConfigError(
                f"The tokenizer of {self.spec.id} has no chat template. Set 'model.chat=false'."
            )
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            **self._chat_kwargs(),
        )
        # The template has written the special tokens already.
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    def _chat_kwargs(self) -> dict[str, Any]:
        kwargs = dict(self.spec.chat_kwargs)
        if "strftime_now" in kwargs:  # what templates call for the day of the prompt
            try:
                kwargs["strftime_now"] = date.fromisoformat(kwargs["strftime_now"]).strftime
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"'model.chat_kwargs.strftime_now' must be a day such as '2025-06-28'. Got "
                    f"{kwargs['strftime_now']!r} instead."
                ) from error
        return kwargs

    def tokenize(self, text: str) -> np.ndarray:
        return np.asarray(
            self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32
        )

    def decode(self, token_ids: np.ndarray) -> str:
        return self._decode_all([token_ids])[0]

    def _decode_all(self, paths: Sequence[np.ndarray]) -> list[str]:
        tokenizer = self.tokenizer
        out = self._left_out
        texts = [
            tokenizer.decode(
                ids.tolist() if out is None else [i for i in ids.tolist() if i not in out],
                skip_special_tokens=out is None,
                clean_up_tokenization_spaces=False,
            )
            for ids in paths
        ]
        return [_harmony.plain(text) for text in texts] if self._harmony else texts

    def _reader(self) -> Reader:
        return Reader(decode=self._decode_all, style=as_style(self.spec.answer))


def _load(location: _hub.Location, trust_remote_code: bool) -> Any:
    """The tokenizer of a folder, as its tokenizer.json has it.

    transformers 5 puts a tokenizer together anew by the class that tokenizer_config.json names.
    DeepSeek's files name Llama's, whose texts and tokens have no spaces then
    (https://github.com/huggingface/transformers/issues/45488).
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(
        location.folder, trust_remote_code=trust_remote_code, local_files_only=True
    )
    if not tokenizer.is_fast or not (location.folder / "tokenizer.json").is_file():
        return tokenizer
    stored = _hub.read_json(location, "tokenizer.json")
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        part = getattr(tokenizer.backend_tokenizer, name)
        if (None if part is None else json.loads(part.__getstate__())) != stored.get(name):
            return PreTrainedTokenizerFast.from_pretrained(location.folder, local_files_only=True)
    return tokenizer


def _left_out(tokenizer: Any, harmony: bool) -> frozenset[int] | None:
    """The special tokens that texts leave out; None means all of them."""
    special = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    shown = {THINK_START, THINK_END, *(_harmony.MARKERS if harmony else ())}
    hidden = frozenset(i for i, name in special.items() if name not in shown)
    return hidden if len(hidden) < len(special) else None

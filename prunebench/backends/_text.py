"""Text and tokens of a model whose folder is on this machine: prompts, texts, the end of a path.

The engines that run models from such folders inherit it, so that one model has the same prompts and
texts in each. torch and transformers are imported when the tokenizer is first needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from prunebench.backend import Backend, ModelSpec
from prunebench.backends import _hub
from prunebench.backends._records import Reader
from prunebench.errors import ConfigError
from prunebench.grading import as_style


class HubModel(Backend):
    """A backend with the tokenizer of its model."""

    needs_weights: ClassVar[bool] = True
    """Whether the weights must be on this machine too."""

    _tokenizer: Any = None

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
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(
                    location.folder,
                    trust_remote_code=self.spec.trust_remote_code,
                    local_files_only=True,
                )
            except Exception as error:
                raise location.damaged("tokenizer.json", error) from error
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
            **self.spec.chat_kwargs,
        )
        # The template has written the special tokens already.
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    def tokenize(self, text: str) -> np.ndarray:
        return np.asarray(
            self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32
        )

    def decode(self, token_ids: np.ndarray) -> str:
        return self._decode_all([token_ids])[0]

    def _decode_all(self, paths: Sequence[np.ndarray]) -> list[str]:
        return [
            self.tokenizer.decode(
                ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for ids in paths
        ]

    def _reader(self) -> Reader:
        return Reader(decode=self._decode_all, style=as_style(self.spec.answer))

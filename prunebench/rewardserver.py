"""Reads a reward model behind a vLLM server: the pooling endpoint, one request per batch.

The server runs the model (`vllm serve Qwen/Qwen2.5-Math-PRM-7B --runner pooling`); token ids are
made here, so the input is the same as in-process and only the tokenizer must be on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from prunebench.backend import ModelSpec
from prunebench.cost import Ledger
from prunebench.endpoint import EndpointConfig
from prunebench.errors import ConfigError, EndpointError, ModelNotFound, Unavailable
from prunebench.prmformats import Encoded, Family
from prunebench.rewardmodel import RewardModel

SERVED = (Family.qwen25_math_prm, Family.reasonflux_prm, Family.skywork_o1_prm)
"""Families whose heads vLLM reads token by token; the others need the output head of a language
model at given positions, which its pooling endpoint does not give."""


class ServedRewardModel(RewardModel):
    """The pooling endpoint of `config.base_url`."""

    def __init__(
        self,
        config: EndpointConfig,
        spec: ModelSpec,
        *,
        batch_tokens: int,
        max_length: int,
        ledger: Ledger,
    ) -> None:
        self.config, self.batch_tokens, self.ledger = config, batch_tokens, ledger
        self.tokenizer = _tokenizer(spec)
        self._client = _client(config)
        try:
            models = self._ask("get", "/v1/models", {})["data"]
        except Unavailable as error:
            raise EndpointError(str(error)) from None
        limits = [m.get("max_model_len") for m in models if m.get("id") == config.model]
        if not limits:
            raise EndpointError(
                f"The server {config.base_url} has no model {config.model!r}. It serves: "
                f"{', '.join(str(m.get('id')) for m in models) or 'none'}."
            )
        self.max_length = min(max_length or 2**31, limits[0] or 2**31)

    def _forward(self, batch: list[Encoded]) -> list[np.ndarray]:
        reply = self._ask(
            "post",
            "/pooling",
            {
                "model": self.config.model,
                "input": [encoded.ids.tolist() for encoded in batch],
                "task": "token_classify",
                "use_activation": False,  # logits
            },
        )
        usage = (reply.get("usage") or {}).get("prompt_tokens")
        n_tokens = sum(len(e.ids) for e in batch) if usage is None else usage
        self.ledger.add(verifier_tokens=n_tokens, prompt_tokens=n_tokens, calls=1)
        rows = {item["index"]: item["data"] for item in reply["data"]}
        return [self._logits(rows.get(i, []), encoded) for i, encoded in enumerate(batch)]

    def _logits(self, data: Sequence[Any], encoded: Encoded) -> np.ndarray:
        """From one row per mark, or one per token."""
        n_marks = int(encoded.read.sum())
        rows = [np.atleast_1d(np.array(row, dtype=np.float64)) for row in data]
        if len(rows) == len(encoded.ids):
            rows = [row for row, is_read in zip(rows, encoded.read, strict=True) if is_read]
        if len(rows) != n_marks or {len(row) for row in rows} not in ({1}, {2}):
            raise EndpointError(
                f"The server returned {len(data)} rows for a path with {n_marks} steps. "
                f"'method.family' must fit the model, and a model other than Qwen2.5-Math-PRM "
                f'needs \'--pooler-config {{"tok_pooling_type": "ALL"}}\'.'
            )
        values = np.stack(rows)
        return values[:, -1] - values[:, 0] if values.shape[1] == 2 else values[:, 0]

    def _ask(self, verb: str, address: str, body: dict[str, Any]) -> Any:
        import openai

        options: dict[str, Any] = {"body": body} if verb == "post" else {}
        where = f"{self.config.model} at {self.config.base_url}"
        try:
            reply = getattr(self._client, verb)(address, cast_to=object, **options)
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as e:
            raise Unavailable(
                f"The reward model {where} did not answer: {self._short(e)}"
            ) from None
        except openai.OpenAIError as e:
            raise EndpointError(f"The reward model {where} refused: {self._short(e)}") from None

        if not isinstance(reply, dict) or not isinstance(reply.get("data"), list):
            raise EndpointError(f"The reward model {where} gave no list under 'data' at {address}.")
        return reply

    def _short(self, error: Exception) -> str:
        """One short line without the key."""
        return " ".join(str(error).replace(self._client.api_key, "***").split())[:300]


def _client(config: EndpointConfig) -> Any:
    try:
        import openai
    except ImportError:
        raise ConfigError(
            "A reward model behind a server needs the package 'openai', which is not installed. "
            "Install it with: pip install openai"
        ) from None
    assert config.base_url is not None
    return openai.OpenAI(
        base_url=config.base_url.rstrip("/").removesuffix("/v1"),
        api_key=os.environ.get(config.key_env or "", "") or "none",
        max_retries=config.max_attempts - 1,
        timeout=config.timeout,
    )


def _tokenizer(spec: ModelSpec) -> Any:
    from transformers import AutoTokenizer

    source = spec.path or spec.id
    try:
        return AutoTokenizer.from_pretrained(
            source, revision=spec.revision, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # many kinds, for files that are missing or broken
        raise ModelNotFound(
            f"The tokenizer of the reward model {source} is not on this machine. Download it with "
            f'\'hf download {spec.id or "<model>"} --include "*.json" "*.txt"\', or set '
            f"'method.path=' to a folder that holds it."
        ) from error

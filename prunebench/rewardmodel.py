"""Runs a reward model over encoded paths and writes down every token that it forwards.

All heads are brought to one form: the logit of a step being right, so that its probability is the
logistic function of one number. Two classes, or the tokens for right and wrong, give the difference
of their logits; a value head gives the logit itself. torch is imported when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np
from scipy.special import expit

from prunebench.backend import ModelSpec
from prunebench.backends import _hub
from prunebench.cost import Ledger
from prunebench.errors import ConfigError, ModelNotFound
from prunebench.prmformats import FORMATS, Encoded, Family, pair_ids
from prunebench.storage import content_hash


class Dtype(Enum):
    """Number format of the reward model."""

    auto = "auto"  # on a GPU what the weights are stored in, on the CPU float32; tiny: float64
    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Runner(Enum):
    """What computes the reward model's states in this process."""

    transformers = "transformers"
    vllm = "vllm"


PAIRS = (Family.math_shepherd, Family.rlhflow)
"""Families whose head is the output embedding of a language model."""


class RewardModel:
    """A loaded reward model.

    Attributes
    ----------
    tokenizer : None for models that read the generator's own tokens.
    max_length : most tokens it can read.
    """

    def __init__(
        self,
        backbone: Any,
        logits: Callable[[Any], Any],
        *,
        tokenizer: Any = None,
        max_length: int,
        batch_tokens: int,
        ledger: Ledger,
    ) -> None:
        self.backbone, self.logits = backbone.eval(), logits
        self.tokenizer, self.max_length = tokenizer, max_length
        self.batch_tokens, self.ledger = batch_tokens, ledger

    def read(self, inputs: Sequence[Encoded]) -> list[np.ndarray]:
        """The probability that each step is right: float64, one per read position, in order.

        Equal inputs run once, so they get equal scores.
        """
        keys = [(e.ids.tobytes(), e.read.tobytes()) for e in inputs]
        unique = dict(zip(keys, inputs, strict=True))
        waiting = sorted(unique, key=lambda key: (len(unique[key].ids), key))
        found: dict[tuple[bytes, bytes], np.ndarray] = {}
        while waiting:
            batch = self._next_batch([unique[key] for key in waiting])
            for key, logits in zip(waiting[: len(batch)], self._forward(batch), strict=True):
                found[key] = expit(logits)
            del waiting[: len(batch)]
        return [found[key] for key in keys]

    def _next_batch(self, inputs: list[Encoded]) -> list[Encoded]:
        """As many as fit, shortest first, padding included; at least one."""
        n = 1
        while n < len(inputs) and (n + 1) * len(inputs[n].ids) <= self.batch_tokens:
            n += 1
        return inputs[:n]

    def _forward(self, batch: list[Encoded]) -> list[np.ndarray]:
        import torch

        device = self.backbone.device
        width = max(len(e.ids) for e in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        read = torch.zeros(len(batch), width, dtype=torch.bool)
        for row, encoded in enumerate(batch):
            n = len(encoded.ids)
            ids[row, :n] = torch.as_tensor(encoded.ids)
            mask[row, :n] = 1
            read[row, :n] = torch.as_tensor(encoded.read)
        self.ledger.add(verifier_tokens=int(mask.sum()))
        with torch.inference_mode():
            output = self.backbone(
                input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
            )
            logits = self.logits(output.last_hidden_state[read.to(device)])
        values = logits.double().cpu().numpy()
        return np.split(values, np.cumsum([int(e.read.sum()) for e in batch])[:-1])

    def close(self) -> None:
        """Free what would outlive this object: here nothing."""


def device_of(device: str) -> str:
    """`auto` is the first GPU, or else the CPU."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def from_weights(
    weights: dict[str, np.ndarray],
    config: dict[str, Any],
    *,
    device: str,
    dtype: Dtype,
    batch_tokens: int,
    max_length: int,
    ledger: Ledger,
) -> RewardModel:
    """A model that `rmtrain` made. In float64, unless told otherwise, so that a score does not
    depend on the batch it was computed in."""
    import torch
    from transformers import AutoConfig, AutoModel

    number = getattr(torch, "float64" if dtype is Dtype.auto else dtype.value)
    values = {name: torch.as_tensor(value) for name, value in weights.items()}
    backbone: Any = AutoModel.from_config(AutoConfig.for_model(**config))
    state = {n.removeprefix("model."): v for n, v in values.items() if n.startswith("model.")}
    backbone.load_state_dict(state)
    backbone = backbone.to(device=device_of(device), dtype=number)
    weight, bias = (values[f"head.{n}"].to(backbone.device, number) for n in ("weight", "bias"))
    return RewardModel(
        backbone,
        lambda states: states @ weight[0] + bias[0],
        max_length=min(max_length or 2**31, backbone.config.max_position_embeddings),
        batch_tokens=batch_tokens,
        ledger=ledger,
    )


def from_hub(
    family: Family,
    spec: ModelSpec,
    *,
    device: str,
    dtype: Dtype,
    batch_tokens: int,
    max_length: int,
    ledger: Ledger,
) -> RewardModel:
    """A published reward model, from a folder or the hub cache. No code that comes with it runs:
    the heads are rebuilt here from their weights.

    Raises
    ------
    ModelNotFound
        With what to download.
    DamagedFile
        When the files are not what the family needs.
    """
    location = located(spec)
    _hub.check_files(location)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Model
    from transformers.utils import logging

    logging.disable_progress_bar()
    loud = logging.get_verbosity()
    logging.set_verbosity_error()  # else it reports the head's weights as unexpected
    device = device_of(device)
    number = "float32" if device == "cpu" else "auto"
    if dtype is not Dtype.auto:
        number = getattr(torch, dtype.value)
    loader: Any = AutoModelForCausalLM if family in PAIRS else Qwen2Model
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            location.folder, local_files_only=True, trust_remote_code=False
        )
        model, report = loader.from_pretrained(
            location.folder,
            dtype=number,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # libraries raise many kinds for a broken or unsuitable model
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise location.damaged("config.json, its tokenizer or its weights", reason) from error
    finally:
        logging.set_verbosity(loud)
    if missing := sorted(report["missing_keys"]):
        raise location.damaged("*.safetensors", f"the weights lack {missing[0]}")
    model = model.to(device)
    if family in PAIRS:
        right, wrong = pair_ids(tokenizer, family)
        rows = model.get_output_embeddings().weight[[right, wrong]].detach().float()
        head = difference(rows)
    else:
        head = head_of(location, family, device)
    return RewardModel(
        model.base_model,
        head,
        tokenizer=tokenizer,
        max_length=longest(family, model.config.max_position_embeddings, max_length),
        batch_tokens=batch_tokens,
        ledger=ledger,
    )


def longest(family: Family, model_limit: int, max_length: int) -> int:
    """Most tokens of an input, by the family, the model and, unless 0, the option."""
    return min(max_length or 2**31, model_limit, FORMATS[family].longest or 2**31)


def identity_of(spec: ModelSpec) -> str:
    """Hash of what determines the numbers of a published reward model. Raises `ModelNotFound`."""
    return content_hash(_hub.fingerprint(located(spec)))


def located(spec: ModelSpec) -> _hub.Location:
    """Like `_hub.locate`, with this method's option names in its errors."""
    try:
        return _hub.locate(spec)
    except (ModelNotFound, ConfigError) as error:
        text = str(error).replace("'model.path", "'method.path")
        raise type(error)(text.replace("'model.id'", "'method.model_id'")) from error


def difference(rows: Any) -> Callable[[Any], Any]:
    """States to the logit of the first row against the second."""
    return lambda states: states.float() @ (rows[0] - rows[1])


def head_of(location: _hub.Location, family: Family, device: str) -> Callable[[Any], Any]:
    """States to the logit of being right."""
    if family is Family.skywork_o1_prm:
        value = _tensors(location, ["v_head.summary.weight", "v_head.summary.bias"], device)
        return lambda states: states.float() @ value[0][0] + value[1][0]
    if family is Family.reasonflux_prm_outcome:
        weight, bias = _reward_head(location, device)
        return lambda states: states.float() @ weight + bias
    names = ["score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"]
    w0, b0, w2, b2 = _tensors(location, names, device)

    def classes(states: Any) -> Any:
        hidden = (states.float() @ w0.T + b0).relu()
        return hidden @ (w2[1] - w2[0]) + (b2[1] - b2[0])

    return classes


def _tensors(location: _hub.Location, names: Sequence[str], device: str) -> list[Any]:
    """These tensors of a model folder, float32."""
    from safetensors import safe_open

    found = {}
    for file in sorted(location.folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            found |= {n: weights.get_tensor(n) for n in set(names) & set(weights.keys())}
    for name in names:
        if name not in found:
            raise location.damaged(
                "*.safetensors", f"the weights lack {name}; 'method.family' may not fit the model"
            )
    return [found[name].to(device).float() for name in names]


def _reward_head(location: _hub.Location, device: str) -> tuple[Any, Any]:
    """Weight `(hidden,)` and bias `()` of a linear head in a file of its own."""
    import torch
    from safetensors.torch import load_file

    for name in ("reward_head.safetensors", "reward_head.pt", "reward_head.bin"):
        file = location.folder / name
        if not file.is_file():
            continue
        try:
            read: Any = load_file if file.suffix == ".safetensors" else _load_pickle_safely
            state: dict[str, Any] = read(file)
            weight = next(v for n, v in state.items() if n.rpartition(".")[2] == "weight")
            bias = [v for n, v in state.items() if n.rpartition(".")[2] == "bias"]
        except Exception as error:
            raise location.damaged(name, error) from error
        b = bias[0].reshape(()) if bias else torch.zeros(())
        return weight.reshape(-1).to(device).float(), b.to(device).float()
    raise location.damaged("reward_head.pt", "there is no such file")


def _load_pickle_safely(file: Any) -> Any:
    """Tensors only: nothing in the file is executed."""
    import torch

    return torch.load(file, weights_only=True, map_location="cpu")

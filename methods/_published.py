"""Reads STOP checkpoints in the layout that its authors publish (arXiv 2604.16029).

    adapter/classifier/          a PEFT adapter
    classifier_head.pth          state dict of a linear layer from the hidden state to two classes
    assess_token_config.json     `num_assess_tokens` is m
    assess_token_embedding.pth   `input_embedding`: one row, shared by all m tokens

Their score is the softmax probability of class 1, the logistic function of ours: w is the
difference of the head's rows, b that of its biases. Knows files only. Nothing in such a folder says
which model it was made for: an engine notices another width or other layers, not another model of
the same shape. Files with pickled tensors are read without running code from them.
"""

import json
import math
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.backend import ReaderWeights
from prunebench.errors import DamagedFile

if TYPE_CHECKING:
    import torch

CONFIG, HEAD, EMBEDDING = FILES = (
    "assess_token_config.json",
    "classifier_head.pth",
    "assess_token_embedding.pth",
)
ADAPTER = FilePath("adapter", "classifier")
ADAPTER_FILES = (ADAPTER / "adapter_config.json", ADAPTER / "adapter_model.safetensors")


def is_published(folder: FilePath) -> bool:
    """Whether a folder has this layout, be it in part."""
    return any((folder / name).exists() for name in (*FILES, *ADAPTER_FILES))


def read_published(folder: FilePath) -> ReaderWeights:
    """The reader in such a folder, in float32. Raises `DamagedFile` naming the file."""
    for name in (*FILES, *ADAPTER_FILES):
        if not (folder / name).is_file():
            raise _damaged(folder, name, "it is missing")
    weight, bias = _head(folder)
    row = _embedding(folder)
    if len(row) != weight.shape[1]:
        raise _damaged(
            folder, HEAD, f"it is {weight.shape[1]} wide and {EMBEDDING} is {len(row)} wide"
        )
    return ReaderWeights(
        embeddings=np.tile(row, (_n_tokens(folder), 1)),
        head_weight=weight[1] - weight[0],
        head_bias=float(bias[1] - bias[0]),
        adapter=folder / ADAPTER,
    )


def _n_tokens(folder: FilePath) -> int:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise _damaged(folder, CONFIG, error) from error
    n_tokens = config.get("num_assess_tokens") if isinstance(config, dict) else None
    if type(n_tokens) is not int or n_tokens < 1:
        raise _damaged(
            folder, CONFIG, f"'num_assess_tokens' must be a whole number above 0, not {n_tokens!r}"
        )
    return n_tokens


def _head(folder: FilePath) -> tuple[np.ndarray, np.ndarray]:
    """Weight `(2, hidden)` and bias `(2,)`; their names may carry those of outer modules."""
    content = _tensors(folder, HEAD)
    found = []
    for name in ("weight", "bias"):
        fitting = [k for k in content if k.rsplit(".", 1)[-1] == name]
        if len(fitting) != 1:
            raise _damaged(folder, HEAD, f"it holds {len(fitting)} tensors named {name!r}, not 1")
        found.append(content[fitting[0]])
    weight, bias = found
    if weight.ndim != 2 or len(weight) != 2 or bias.shape != (2,):
        raise _damaged(
            folder,
            HEAD,
            f"a head of two classes has weights (2, hidden) and biases (2,), not "
            f"{weight.shape} and {bias.shape}",
        )
    return weight, bias


def _embedding(folder: FilePath) -> np.ndarray:
    content = _tensors(folder, EMBEDDING)
    if "input_embedding" not in content:
        raise _damaged(folder, EMBEDDING, "it has no 'input_embedding'")
    row = content["input_embedding"]
    if row.ndim == 0 or row.size != row.shape[-1]:
        raise _damaged(folder, EMBEDDING, f"'input_embedding' must be one row, not {row.shape}")
    return row.reshape(-1)


def _tensors(folder: FilePath, name: str) -> dict[str, np.ndarray]:
    """The tensors of a file by name, as finite float32 arrays."""
    import torch

    try:
        content = torch.load(folder / name, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler has many errors of its own
        reason = str(error).split("\n", 1)[0][:200]
        raise _damaged(folder, name, f"torch cannot read it as tensors: {reason}") from error
    if not isinstance(content, dict):
        raise _damaged(folder, name, f"it holds a {type(content).__name__}, not a dict of tensors")
    arrays = {str(k): _array(v) for k, v in content.items() if isinstance(v, torch.Tensor)}
    for key, array in arrays.items():
        if not math.isfinite(array.sum(dtype=np.float64)):
            raise _damaged(folder, name, f"{key!r} holds numbers that are not finite")
    return arrays


def _array(tensor: "torch.Tensor") -> np.ndarray:
    return tensor.detach().float().numpy()


def _damaged(folder: FilePath, name: str | FilePath, reason: Any) -> DamagedFile:
    return DamagedFile(
        f"The published STOP checkpoint in {folder} cannot be used because of its {name}: "
        f"{reason}. Copy the folder again."
    )

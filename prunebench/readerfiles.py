"""Folders in which a server finds a learned reader of the key-value cache, such as STOP.

A PEFT adapter with the reader's own tensors beside it. The adapter is marked as an activated LoRA,
so that a server without prunebench's plug-in refuses it instead of applying it to whole prompts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from prunebench.backend import ReaderWeights
from prunebench.errors import DamagedFile

MOST_TOKENS = 64
"""Most tokens of a reader that a server runs."""

FILE = "reader.safetensors"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def write(folder: Path, weights: ReaderWeights) -> None:
    """Write the folder; what was in it is replaced."""
    from safetensors.numpy import save_file

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if weights.adapter is None:
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": []}
        save_file({}, folder / ADAPTER[1])
    else:
        config = json.loads((weights.adapter / ADAPTER[0]).read_text(encoding="utf-8"))
        config["modules_to_save"] = None
        _copy_adapter(weights.adapter / ADAPTER[1], folder / ADAPTER[1])
    config["alora_invocation_tokens"] = list(range(len(weights.embeddings)))
    (folder / ADAPTER[0]).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(
        {
            "embeddings": np.ascontiguousarray(weights.embeddings, dtype=np.float32),
            "head.weight": np.ascontiguousarray(weights.head_weight, dtype=np.float32),
            "head.bias": np.array(weights.head_bias, dtype=np.float32),
        },
        folder / FILE,
    )


def _copy_adapter(source: Path, target: Path) -> None:
    """Without what PEFT saves beside an adapter when tokens were added."""
    from safetensors import safe_open

    with safe_open(source, framework="numpy") as file:
        names = list(file.keys())
    if all("lora_" in name for name in names):
        shutil.copyfile(source, target)
        return
    from safetensors.torch import load_file, save_file  # NumPy has no bfloat16

    tensors = load_file(source)
    save_file({name: tensors[name] for name in names if "lora_" in name}, target)


def read(folder: Path) -> ReaderWeights:
    """Read such a folder. Raises `DamagedFile`."""
    from safetensors.numpy import load_file

    try:
        tensors = load_file(folder / FILE)
        return ReaderWeights(
            embeddings=tensors["embeddings"],
            head_weight=tensors["head.weight"],
            head_bias=float(tensors["head.bias"]),
            adapter=folder,
        )
    except Exception as error:  # the reader of safetensors has many errors of its own
        raise DamagedFile(
            f"The learned reader in {folder} cannot be read ({error}). Export it again with "
            f"'prunebench export'."
        ) from error


def is_reader(folder: Path) -> bool:
    """Whether the folder holds a learned reader."""
    return (folder / FILE).is_file()


def rank(weights: ReaderWeights) -> int:
    """The rank of the adapter, 1 without one."""
    if weights.adapter is None:
        return 1
    config = json.loads((weights.adapter / ADAPTER[0]).read_text(encoding="utf-8"))
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])

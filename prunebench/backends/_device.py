"""Where a model runs and in which number format: what all engines that load one decide alike.

Imports torch only where a GPU has been seen.
"""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path as FilePath

from prunebench.backends import _hub
from prunebench.errors import ConfigError

SMALL = 512
"""Width of models up to which one thread is fastest: sharing out such small products costs more
than it gains, many times more when another process uses the cores."""


class Dtype(StrEnum):
    """Number format of weights and cache."""

    auto = "auto"  # float32 on the CPU, else what the weights are stored in
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def as_dtype(value: str) -> Dtype:
    """The option `backend.dtype`. Raises `ConfigError`."""
    try:
        return Dtype(value)
    except ValueError:
        known = ", ".join(d.value for d in Dtype)
        raise ConfigError(f"'backend.dtype' must be one of: {known}. Got {value!r}.") from None


def number_format(dtype: Dtype, location: _hub.Location, *, on_cpu: bool) -> str:
    """The number format that `dtype` means for these weights."""
    if dtype is not Dtype.auto:
        return dtype.value
    return "float32" if on_cpu else _hub.stored_dtype(location)


def torch_device() -> str:
    """`cuda` when torch can use a GPU, else `cpu`."""
    if not (FilePath("/dev/nvidiactl").exists() or shutil.which("nvidia-smi")):
        return "cpu"  # known without the seconds that importing torch takes
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

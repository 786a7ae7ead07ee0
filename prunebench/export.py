"""`prunebench export`: a trained reader of the cache as a folder that a vLLM server loads."""

from __future__ import annotations

import shutil
from pathlib import Path

from prunebench import registry
from prunebench.backends.vllm import VllmBackend
from prunebench.config import RunConfig
from prunebench.errors import ConfigError
from prunebench.lab import Lab
from prunebench.types import Capability


def export(run: RunConfig, output: Path) -> None:
    """Write the adapter folder of a trained reader (`method=stop`, `otv`) to `output`."""
    name = registry.method_name(run.method)
    if Capability.CACHE_READER not in run.method.requires:
        raise ConfigError(f"Only learned readers can be exported: stop, otv. Got {name!r}.")
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"The folder {output} is not empty. Choose a new one with output=.")
    run.backend = VllmBackend()
    lab = Lab()
    lab.ready(lab.prepared(run), run)
    backend = lab.backend(run)
    assert isinstance(backend, VllmBackend)
    [folder] = backend.reader_folders()
    shutil.copytree(folder, output, dirs_exist_ok=True)
    backend.close()

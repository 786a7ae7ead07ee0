"""Fills a trace bank with several engines side by side: one per core, or each on its own GPUs.

The bank's claims keep the processes off each other's problems; knows no method.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunebench.backend import Backend
from prunebench.bank import Bank, FillReport, fill
from prunebench.errors import ConfigError
from prunebench.types import Problem


def fill_beside(
    bank: Bank,
    backend: Backend,
    problems: Sequence[Problem],
    n_paths: int,
    *,
    group: int,
    n_groups: int,
    workers: int,
    progress: Callable[[int], None],
) -> FillReport:
    """Generate what the bank lacks, in this process and in helpers.

    Parameters
    ----------
    group : problems that an engine generates together.
    n_groups : groups that are missing; no more engines than that are started.
    workers : engines to run; 0 is one per core on a CPU, else one.
    """
    gpus = on_gpu(backend)
    n_engines = min(engines_wanted(backend, workers), n_groups)
    devices = [""] * n_engines
    if gpus:
        device = getattr(backend, "device", "auto")
        each = getattr(backend, "tensor_parallel_size", 1)
        devices = gpus_of_engines(n_engines, each, device=device)
    spawn = multiprocessing.get_context("spawn")
    work = (bank.folder, bank.key, backend, list(problems), n_paths, group)
    helpers = [
        # an engine that has processes of its own must not be a daemon
        spawn.Process(target=_help, args=(*work, own), daemon=backend.parallel_fill)
        for own in devices[1:]  # this process takes the first GPUs by itself
    ]
    for helper in helpers:
        helper.start()
    try:
        backend.load()  # decides on the number of threads, which is restored afterwards
        with _single_threaded(bool(helpers)):
            return fill(bank, backend, problems, n_paths, group=group, progress=progress)
    finally:
        for helper in helpers:
            helper.terminate()
            helper.join()


def engines_wanted(backend: Backend, workers: int) -> int:
    """Engines that fill a bank side by side when there is enough to do (`workers` as above)."""
    alone = not backend.parallel_fill or on_gpu(backend)
    return workers or (1 if alone else len(os.sched_getaffinity(0)))


def on_gpu(backend: Backend) -> bool:
    """Whether the engine runs on a GPU, where one process is best."""
    device = getattr(backend, "device", "cpu")
    if device != "auto":
        return device != "cpu"
    import torch

    return torch.cuda.is_available()


def gpus_of_engines(
    n_engines: int, gpus_each: int, visible: str | None = None, device: str = "auto"
) -> list[str]:
    """`CUDA_VISIBLE_DEVICES` of every engine when several run side by side, each on its own GPUs;
    empty when there is only one. `visible` is that of this process.

    Raises `ConfigError` when there are not enough.
    """
    if n_engines == 1:
        return [""]
    if ":" in device:
        raise ConfigError(
            f"'backend.device' must be 'auto' or 'cuda' when 'workers' gives every engine its own "
            f"GPUs. Got {device!r} with workers={n_engines}."
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    if visible is None:
        import torch

        names = [str(i) for i in range(torch.cuda.device_count())]
    else:
        names = [name for name in visible.split(",") if name]
    needed = n_engines * gpus_each
    if needed > len(names):
        raise ConfigError(
            f"'workers={n_engines}' needs {needed} GPUs, {gpus_each} for each engine. This process "
            f"sees {len(names)}. Lower 'workers', or 'backend.tensor_parallel_size'."
        )
    return [",".join(names[i * gpus_each : (i + 1) * gpus_each]) for i in range(n_engines)]


class _single_threaded:
    """One torch thread while other processes use the other cores."""

    def __init__(self, active: bool) -> None:
        self.active = active

    def __enter__(self) -> None:
        if self.active:
            import torch

            self.before = torch.get_num_threads()
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        if self.active:
            import torch

            torch.set_num_threads(self.before)


def _help(
    folder: Path,
    key: dict[str, Any],
    backend: Backend,
    problems: list[Problem],
    n_paths: int,
    group: int,
    gpus: str,
) -> None:
    """A helper process: fills the same bank; claims keep it off what the others are at."""
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    own = replace(backend)  # type: ignore[type-var]  # every backend is a dataclass
    own.bind(backend.spec, backend.seed)
    parent = multiprocessing.parent_process()

    def stop_without_parent(_: int) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit(1)

    with _single_threaded(True):
        fill(
            Bank.at(folder, key),
            own,
            problems,
            n_paths,
            group=group,
            progress=stop_without_parent,
        )

"""What the benchmarks share: engines from options, clocks, peak memory, tables with their hardware.

Knows no measurement by itself. One thread by default, so that a neighbour on the machine changes
as little as possible.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch read it

import numpy as np
import pandas as pd

from prunebench.backend import Backend
from prunebench.compose import composed, hydra_ready
from prunebench.config import RunConfig, to_run
from prunebench.cost import Ledger
from prunebench.environment import environment
from prunebench.errors import Incompatible
from prunebench.lab import Lab
from prunebench.method import SignalGenerator
from prunebench.types import Problem

HERE = Path(__file__).parent


def parser(description: str | None, script: str) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--backend", default="transformers", choices=("transformers", "vllm"))
    found.add_argument("--output", type=Path, default=HERE / Path(script).with_suffix(".csv").name)
    found.add_argument(
        "overrides", nargs="*", help="more options as for prunebench, e.g. backend.device=cpu"
    )
    return found


# ------------------------------------------------------------------------------------- engines


@dataclass(kw_only=True)
class Bench:
    """An engine with its methods, ready to run online.

    Attributes
    ----------
    refused : why a method does not run on this engine.
    ledger : where the methods write down the tokens of other models.
    """

    run: RunConfig
    backend: Backend
    methods: dict[str, SignalGenerator]
    refused: dict[str, str] = field(default_factory=dict)
    ledger: Ledger

    @property
    def problems(self) -> list[Problem]:
        return self.run.dataset.problems()


def prepare(
    backend: str, overrides: Sequence[str], methods: Mapping[str, Sequence[str]] | None = None
) -> Bench:
    """Load an engine and set up methods with their options, as an online run would."""
    methods = {"random": ()} if methods is None else methods
    lab, runs, refused = Lab(), {}, {}
    with hydra_ready():
        for name, options in methods.items():
            chosen = [f"backend={backend}", f"method={name}", "mode=online", *options, *overrides]
            runs[name] = to_run(composed(chosen))
    for name, run in runs.items():
        try:
            lab.pair(run)
            lab.backend(run)  # the engine hears what the method reads before it starts
        except Incompatible as error:
            refused[name] = str(error)
    ready = [name for name in runs if name not in refused]
    run = runs[ready[0]]
    engine = lab.backend(run)
    engine.load()
    return Bench(
        run=run,
        backend=engine,
        methods={name: lab.ready(lab.prepared(runs[name]), runs[name]) for name in ready},
        refused=refused,
        ledger=lab.ledger,
    )


# -------------------------------------------------------------------------- seconds and memory


def _cuda() -> Any:
    """torch.cuda once this process uses a GPU, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


class Meter:
    """Wall time and peak memory of a block.

    Attributes
    ----------
    seconds : with the work that a GPU still had to do.
    cpu_seconds : of the processor, which a neighbour on the machine disturbs less; NaN with a GPU.
    peak_mb : most memory above that at the beginning, in 10^6 bytes: what torch allocated on the
        GPU if there is one, else resident memory of the process (Linux; NaN elsewhere).
    """

    seconds = cpu_seconds = peak_mb = float("nan")

    def __enter__(self) -> Meter:
        if cuda := _cuda():
            cuda.synchronize()
            cuda.reset_peak_memory_stats()
            self._before = cuda.memory_allocated()
        else:
            self._before = _fresh_resident()
        self._start, self._cpu_start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        if cuda := _cuda():
            cuda.synchronize()
        else:
            self.cpu_seconds = time.process_time() - self._cpu_start
        self.seconds = time.perf_counter() - self._start
        peak = cuda.max_memory_allocated() if cuda else _resident("VmHWM")
        self.peak_mb = (peak - self._before) / 1e6


def _fresh_resident() -> float:
    """Resident bytes after everything free was given back, with the peak set back to them."""
    gc.collect(1)  # the oldest generation is large and holds no new arrays
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):  # not Linux with glibc
        return float("nan")
    return _resident("VmRSS")


def _resident(line: str) -> float:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    return 1024.0 * int(status.partition(f"{line}:")[2].split()[0])


def clock() -> float:
    """Seconds, after a GPU has done what it was given."""
    if cuda := _cuda():
        cuda.synchronize()
    return time.perf_counter()


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median of every number over the repeats."""
    return {name: float(np.median([row[name] for row in rows])) for name in rows[0]}


# -------------------------------------------------------------------------------------- tables


def where() -> dict[str, Any]:
    """Columns that say what a row was measured on. Names no host and no path."""
    found = environment()
    hardware, gpus = found["hardware"], found["hardware"]["gpu"]
    versions = {name: found["libraries"][name] for name in ("torch", "transformers", "vllm")}
    if versions["vllm"] is None and "vllm" in sys.modules:  # the package for CPUs has its own name
        versions["vllm"] = sys.modules["vllm"].__version__
    return {
        "hardware": gpus[0] if gpus else hardware["cpu"],
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "python": found["python"],
        "prunebench": found["prunebench"],
        **versions,
    }


def report(
    rows: list[dict[str, Any]], output: Path, *, same: Sequence[str], hide: Sequence[str] = ()
) -> None:
    """Print the rows, without the columns `hide`, and write them to `output`, in place of those
    that are equal in the columns `same` (and in hardware); rows of other engines and machines
    stay."""
    table = pd.DataFrame(rows)
    shown = table.drop(columns=list(hide)).dropna(axis=1, how="all")
    print(shown.to_string(index=False, na_rep="-", float_format=lambda v: f"{v:.4g}"))
    table = table.assign(**where())
    if output.exists():
        old = pd.read_csv(output)
        keys = [*same, "hardware"]
        if set(keys) <= set(old.columns):
            new = set(table[keys].astype(str).itertuples(index=False, name=None))
            known = old[keys].astype(str).itertuples(index=False, name=None)
            old = old[[row not in new for row in known]]
            table = pd.concat([old, table]) if len(old) else table
    table.to_csv(output, index=False, float_format="%.6g")
    print(f"on {where()['hardware']}; written to {output.name}")

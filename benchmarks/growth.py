"""How time and memory grow with the number of paths and with the length of the prefix.

    python benchmarks/growth.py              # 8 ... 1,024 paths, prefixes of 32 ... 4,096 tokens
    python benchmarks/growth.py --full       # every pair of the two
    python benchmarks/growth.py --axes paths --methods polr st_bon

Measured are the launch up to the checkpoint, the checks of one method for each way to score (texts,
pairs of texts, token statistics, the cache, hidden states, probes, a reward model), and the
evaluation of 200 subsets of half the paths. The model is small, has random weights and writes
made-up words until it is stopped.

The exponent is the slope of log time over log size between the largest size and a quarter of it: 1
is linear. Time is that of the processor, which a neighbour disturbs less, and with a GPU that of
the wall. An exponent above 1.2 is marked with its reason. `pairs`: the method compares all paths
with each other, and its docstring says so. `attention`: the model itself reads all earlier tokens
at each token, so that its part grows with the square of the length on any engine. Anything else is
`TOO STEEP`. Times below a millisecond and memory below 20 MB are not judged. All measurements go to
`growth.csv`, exponents to `growth_exponents.csv`.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _measure import Bench, Meter, parser, prepare, report
from _models import model_options, random_model, random_stop

from prunebench.backend import Session
from prunebench.engine import Checkpoint, check
from prunebench.evaluate import ProblemPool, draw_subsets, evaluate_problem
from prunebench.method import SignalGenerator

PATHS = (8, 32, 128, 256, 512, 1024)
TOKENS = (32, 256, 1024, 2048, 4096)
AT_PATHS, AT_TOKENS = 8, 64
"""The one size that stays while the other grows."""
METHODS = (
    "repetition",
    "slim_sc",
    "slim_sc_greedy",
    "slim_sc_embed",
    "polr",
    "deepconf",
    "rpc",
    "stop",
    "coe",
    "st_bon",
    "early_answer",
    "prm",
)
ATTENDS = {"launch", "coe", "st_bon", "prm"}
"""What runs the model over whole prefixes."""
STEEP = 1.2
ENOUGH_S, MOST_TIMES = 0.6, 5
"""A check is repeated until it has taken so many seconds, or so often; the fastest time counts."""
LEAST_S, LEAST_MB = 1e-3, 20.0
"""What is too small to be judged."""
N_SUBSETS = 200


def bench(arguments: argparse.Namespace, folder: Path, longest: int) -> Bench:
    """A small random model with all methods."""
    options: dict[str, list[str]] = {name: [] for name in arguments.methods}
    if "stop" in options:
        stop = random_stop("small", folder / "stop", rank=16)
        options["stop"] = [f"method.checkpoint={stop}"]
    if "prm" in options:
        judge = random_model("small", folder / "judge", causal=False)
        options["prm"] = ["method.family=qwen25_math_prm", f"method.path={judge}"]
    own = [
        *model_options(random_model("small", folder / "model")),
        f"prefix_length={longest}",
        f"model.sampling.max_new_tokens={longest + 1}",
    ]
    return prepare(arguments.backend, [*own, *arguments.overrides], options or None)


def cell(bench: Bench, names: Sequence[str], n_paths: int, length: int) -> list[dict[str, Any]]:
    """Launch, and every check, at one size."""
    size = {"n_paths": n_paths, "prefix_length": length}
    launch = Meter()
    with launch:
        session = bench.backend.open(bench.problems[0], range(n_paths))
        session.advance(length)
    rows = [_row("launch", size, [launch])]
    try:
        for name in names:
            meters: list[Meter] = []
            while len(meters) < MOST_TIMES and sum(m.seconds for m in meters) < ENOUGH_S:
                meters.append(_check(bench, name, session, length))
            rows.append(_row(name, size, meters))
    finally:
        session.close()
    return rows


def _check(bench: Bench, name: str, session: Session, length: int) -> Meter:
    meter = Meter()
    with meter:
        verdict = check(
            bench.methods[name],
            session,
            bench.backend,
            Checkpoint(prefix_length=length),
            bench.ledger,
        )
    if verdict.reason and np.isnan(verdict.scores).all():
        raise SystemExit(f"{name} could not score: {verdict.reason}")
    return meter


def evaluation(n_paths: int) -> dict[str, Any]:
    """Prune and vote on subsets of a made-up pool."""
    rng = np.random.default_rng(n_paths)
    codes = rng.integers(0, 1 + n_paths // 4, n_paths)
    pool = ProblemPool(
        problem_id="made up",
        indices=np.arange(n_paths),
        lengths=rng.integers(1, 1000, n_paths),
        stopped=np.ones(n_paths, dtype=bool),
        codes=codes,
        correct=codes == 0,
        answers=[str(code) for code in range(1 + n_paths // 4)],
    )
    meters = []
    for _ in range(MOST_TIMES):
        subsets = draw_subsets(n_paths, n_paths // 2, N_SUBSETS, rng)
        meter = Meter()
        with meter:
            evaluate_problem(
                pool,
                subsets,
                rng.random(subsets.shape),
                keep=max(1, n_paths // 8),
                prefix_length=AT_TOKENS,
            )
        meters.append(meter)
    return _row("evaluation", {"n_paths": n_paths, "prefix_length": AT_TOKENS}, meters)


def _row(task: str, size: dict[str, int], meters: Sequence[Meter]) -> dict[str, Any]:
    return {
        "task": task,
        **size,
        "seconds": min(m.seconds for m in meters),
        "cpu_seconds": min(m.cpu_seconds for m in meters),
        "peak_mb": max(m.peak_mb for m in meters),
    }


# ----------------------------------------------------------------------------------- exponents


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of log(value) over log(size) between the largest size and a quarter of it, or the next
    larger one; NaN for fewer than two sizes or without positive values."""
    found = sorted(zip(sizes, values, strict=True))
    last_size, last = found[-1]
    size, value = next((s, v) for s, v in found if s >= last_size / 4)
    if size == last_size or not (value > 0 and last > 0):
        return float("nan")
    return float(np.log(last / value) / np.log(last_size / size))


def says_quadratic(method: SignalGenerator) -> bool:
    """Whether the documentation of a method tells that it compares paths in pairs."""
    module = inspect.getmodule(type(method))
    return "quadratic" in f"{getattr(module, '__doc__', '')} {type(method).__doc__}"


def verdict(task: str, axis: str, slope: float, pairwise: bool) -> str:
    """What to say of an exponent."""
    if not slope > STEEP:
        return ""
    if axis == "n_paths":
        return "pairs" if pairwise else "TOO STEEP"
    return "attention" if task in ATTENDS else "TOO STEEP"


def summary(rows: Sequence[dict[str, Any]], pairwise: set[str]) -> list[dict[str, Any]]:
    """One row per task and axis: the smallest and largest size, and the exponents."""
    found = []
    for axis, other, fixed in (
        ("n_paths", "prefix_length", AT_TOKENS),
        ("prefix_length", "n_paths", AT_PATHS),
    ):
        for task in dict.fromkeys(row["task"] for row in rows):
            part = [row for row in rows if row["task"] == task and row[other] == fixed]
            part.sort(key=lambda row: row[axis])
            if len(part) < 2:
                continue
            sizes = [row[axis] for row in part]
            cpu = [row["cpu_seconds"] for row in part]
            slope = exponent(
                sizes, [row["seconds"] for row in part] if np.isnan(cpu).any() else cpu
            )
            memory = exponent(sizes, [row["peak_mb"] for row in part])
            first, last = part[0], part[-1]
            long, large = last["seconds"] >= LEAST_S, last["peak_mb"] >= LEAST_MB
            found.append(
                {
                    "task": task,
                    "axis": axis,
                    "smallest": first[axis],
                    "smallest_s": first["seconds"],
                    "largest": last[axis],
                    "largest_s": last["seconds"],
                    "exponent": slope,
                    "verdict": verdict(task, axis, slope, task in pairwise) if long else "",
                    "largest_peak_mb": last["peak_mb"],
                    "memory_exponent": memory if large else float("nan"),
                    "memory_verdict": verdict(task, axis, memory, task in pairwise)
                    if large
                    else "",
                }
            )
    return found


def main(given: Sequence[str] | None = None) -> None:
    options = parser(__doc__, __file__)
    options.add_argument(
        "--axes", nargs="+", default=["paths", "tokens"], choices=["paths", "tokens"]
    )
    options.add_argument("--paths", nargs="+", type=int, default=PATHS)
    options.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    options.add_argument("--methods", nargs="*", default=METHODS)
    options.add_argument("--full", action="store_true", help="every pair of the two sizes")
    arguments = options.parse_args(given)
    sizes = []
    if "paths" in arguments.axes:
        sizes += [(n, AT_TOKENS) for n in arguments.paths]
    if "tokens" in arguments.axes:
        sizes += [(AT_PATHS, length) for length in arguments.tokens]
    if arguments.full:
        sizes += [(n, length) for n in arguments.paths for length in arguments.tokens]
    sizes = list(dict.fromkeys(sizes))
    with tempfile.TemporaryDirectory() as folder:
        longest = max(length for _, length in sizes)
        engine = bench(arguments, Path(folder), longest)
        names = [name for name in arguments.methods if name in engine.methods]
        cell(engine, names, AT_PATHS, 32)  # what happens only the first time
        rows = []
        for n_paths, length in sizes:
            rows += cell(engine, names, n_paths, length)
            print(
                f"{n_paths} paths, {length} tokens: {rows[-len(names) - 1]['seconds']:.1f} s",
                file=sys.stderr,
            )
        engine.backend.close()
    if "paths" in arguments.axes:
        rows += [evaluation(n_paths) for n_paths in arguments.paths]
    pairwise = {name for name in names if says_quadratic(engine.methods[name])}
    for name, reason in engine.refused.items():
        print(f"{name} was left out: {reason}")
    report(
        [{"backend": arguments.backend, **row} for row in rows],
        arguments.output,
        same=["backend", "task", "n_paths", "prefix_length"],
    )
    report(
        [{"backend": arguments.backend, **row} for row in summary(rows, pairwise)],
        arguments.output.with_stem(f"{arguments.output.stem}_exponents"),
        same=["backend", "task", "axis"],
    )


if __name__ == "__main__":
    main()

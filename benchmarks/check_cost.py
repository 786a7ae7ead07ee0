"""What a check costs: seconds, tokens and memory of each method, as a share of generation.

    python benchmarks/check_cost.py                        # the embedded model
    python benchmarks/check_cost.py --shape 7b             # random weights, 16 paths, 2,048 tokens

One method per type: slim_sc (I), a process reward model (II), deepconf (III), stop (IV). A repeat
launches one problem's paths up to the checkpoint, lets every method check them there, and goes on
to the maximum with all of them; so the parts of a ratio come from the same paths. Two shares are
printed: of the launch, from the prompt to the checkpoint, which is what the paper's overhead table
divides by (its seconds times its tokens/s are 16 x 2,048 tokens), and of the whole generation,
launch included, without pruning.

Real shapes have random weights and paths that do not end before `--max-new-tokens`; the paper's
runs go on to 16,384 tokens, nothing is extrapolated to that here. STOP then has rank 128 and 4
tokens, the reward model the 1.5B shape. On a GPU everything runs in bfloat16.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _measure import Bench, Meter, clock, medians, parser, prepare, report

from prunebench.backend import Session
from prunebench.engine import Checkpoint, check
from prunebench.types import Problem

METHODS = ("slim_sc", "prm", "deepconf", "stop")
PAPER = {
    "slim_sc": {"paper_seconds": 0.38, "paper_pct": 1.74},
    "prm": {"paper_seconds": 1.13, "paper_pct": 3.37},
    "stop": {"paper_seconds": 0.20, "paper_pct": 0.59},
}
"""arXiv 2604.16029, tables 7 and 16: the check of each type, and its percent of generation; 7B, 16
paths, 2,048 tokens, one H100. Its Type II is LaBoR's reward model."""
DEFAULTS = {
    "paths": (64, 16),
    "prefix_length": (64, 2048),
    "max_new_tokens": (320, 4096),
    "repeats": (9, 3),
}
"""For tiny, and for the other shapes."""


def bench(arguments: argparse.Namespace, folder: Path) -> Bench:
    """The engine with all methods."""
    options: dict[str, list[str]] = {name: [] for name in METHODS}
    model = []
    if arguments.shape != "tiny":
        from _models import model_options, random_model, random_stop

        model = model_options(random_model(arguments.shape, folder / "model"))
        verifier = "small" if arguments.shape == "small" else "1.5b"
        judge = random_model(verifier, folder / "judge", causal=False)
        options["prm"] = ["method.family=qwen25_math_prm", f"method.path={judge}"]
        stop = random_stop(arguments.shape, folder / "stop")
        options["stop"] = [f"method.checkpoint={stop}"]
    own = [
        f"n_paths={arguments.paths}",
        f"prefix_length={arguments.prefix_length}",
        f"model.sampling.max_new_tokens={arguments.max_new_tokens}",
        f"keep={min(8, arguments.paths)}",
    ]
    return prepare(arguments.backend, [*model, *own, *arguments.overrides], options)


def measure(
    bench: Bench, problem: Problem, arguments: argparse.Namespace
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """One repeat: what each method's check took, and what generation took."""
    checkpoint = Checkpoint(prefix_length=arguments.prefix_length)
    launch = Meter()
    with launch:
        session = bench.backend.open(problem, range(arguments.paths))
        session.advance(arguments.prefix_length)
    try:
        prefix_tokens = sum(trace.n_tokens for trace in session.traces())
        checks = {name: _check(bench, name, session, checkpoint) for name in bench.methods}
        start = clock()
        tokens = sum(trace.n_tokens for trace in session.finish())
        seconds = launch.seconds + clock() - start
    finally:
        session.close()
    for found in checks.values():
        found["of_launch_pct"] = 100 * found["seconds"] / launch.seconds
        found["of_generation_pct"] = 100 * found["seconds"] / seconds
        found["tokens_pct"] = 100 * found["verifier_tokens"] / tokens
    generation = {
        "launch_s": launch.seconds,
        "generation_s": seconds,
        "launch_peak_mb": launch.peak_mb,
        "prefix_tokens": prefix_tokens,
        "generated_tokens": tokens,
    }
    return checks, generation


def _check(bench: Bench, name: str, session: Session, checkpoint: Checkpoint) -> dict[str, float]:
    method, meter = bench.methods[name], Meter()
    with meter:
        verdict = check(method, session, bench.backend, checkpoint, bench.ledger)
    if verdict.reason:
        raise SystemExit(f"{name} could not score: {verdict.reason}")
    return {
        "seconds": meter.seconds,
        "peak_mb": meter.peak_mb,
        "verifier_tokens": verdict.cost.verifier_tokens,
    }


def warm_up(bench: Bench, arguments: argparse.Namespace) -> None:
    """A short launch and every check once, for what happens only the first time."""
    length = min(64, arguments.prefix_length)
    session = bench.backend.open(bench.problems[-1], range(arguments.paths))
    try:
        session.advance(length)
        for name in bench.methods:
            _check(bench, name, session, Checkpoint(prefix_length=length))
    finally:
        session.close()


def run(bench: Bench, arguments: argparse.Namespace) -> None:
    """Measure and report."""
    warm_up(bench, arguments)
    problems = bench.problems
    checks: dict[str, list[dict[str, float]]] = {name: [] for name in bench.methods}
    generations = []
    for repeat in range(arguments.repeats):
        found, generation = measure(bench, problems[repeat % len(problems)], arguments)
        generations.append(generation)
        for name, row in found.items():
            checks[name].append(row)
    names = ("backend", "shape", "paths", "prefix_length", "max_new_tokens", "repeats")
    setting = {name: getattr(arguments, name) for name in names}
    whole = medians(generations)
    rows: list[dict[str, Any]] = [
        {
            "method": name,
            "type": str(bench.methods[name].type),
            **medians(found),
            **PAPER.get(name, {}),
        }
        for name, found in checks.items()
    ]
    rows += [{"method": name, "reason": reason} for name, reason in bench.refused.items()]
    print(
        "{shape} on {backend}: {paths} paths, checkpoint {prefix_length} tokens, at most "
        "{max_new_tokens}, median of {repeats}".format(**setting)
    )
    print(
        "launch {launch_s:.3f} s ({prefix_tokens:.0f} tokens, {launch_peak_mb:.0f} MB), whole "
        "generation {generation_s:.3f} s ({generated_tokens:.0f} tokens)".format(**whole)
    )
    report(
        [{**setting, **row, **whole} for row in rows],
        arguments.output,
        same=["backend", "shape", "method"],
        hide=[*setting, *whole],
    )


def main(given: Sequence[str] | None = None) -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--shape", default="tiny", choices=["tiny", "small", "1.5b", "7b"])
    for name, (tiny, real) in DEFAULTS.items():
        option = "--" + name.replace("_", "-")
        options.add_argument(option, type=int, help=f"default: {tiny} for tiny, else {real}")
    arguments = options.parse_args(given)
    for name, values in DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, values[arguments.shape != "tiny"])
    with tempfile.TemporaryDirectory() as folder:
        run(bench(arguments, Path(folder)), arguments)


if __name__ == "__main__":
    main()

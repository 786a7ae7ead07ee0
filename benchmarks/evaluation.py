"""How long a grid takes to evaluate: 10 methods x 6 retentions x 6 checkpoints, 1,000 subsets.

Pools of 128 random paths for 30 problems, of which every subset takes 64, with the lengths of real
reasoning paths; scores are random, each method with NaN and ties of its own. Measured is what a
sweep does after scoring: pruning and voting on every subset, records, and the line of every cell
with its intervals. Two processes share the checkpoints, as two workers of a sweep would.

Run: python benchmarks/evaluation.py [--small]
"""

from __future__ import annotations

import csv
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

from prunebench.cells import Cell, summarise
from prunebench.evaluate import ProblemPool, draw_subsets, evaluate_problem
from prunebench.references import no_pruning, oracle_pruning, random_pruning
from prunebench.types import SignalType

N_PROBLEMS, N_POOL, N_PATHS, N_SUBSETS = 30, 128, 64, 1000
METHODS = [f"method_{i}" for i in range(10)]
KEEPS = (32, 16, 8, 4, 2, 1)
CHECKPOINTS = (512, 1024, 2048, 3072, 4096, 6144)
LIMIT_S = 30.0


def pools(n_problems: int) -> list[ProblemPool]:
    """Problems of every difficulty, with up to a dozen different answers."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(n_problems):
        right = rng.random(N_POOL) < rng.beta(0.7, 0.7)
        wrong = rng.geometric(0.3, N_POOL).clip(1, 11)
        codes = np.where(right, 0, wrong)
        found.append(
            ProblemPool(
                problem_id=f"p{number}",
                indices=np.arange(N_POOL),
                lengths=rng.lognormal(9, 0.5, N_POOL).astype(np.int64) + 1,
                stopped=np.ones(N_POOL, dtype=bool),
                codes=codes,
                correct=right,
                answers=[str(code) for code in range(12)],
            )
        )
    return found


def evaluate(prefix_length: int, n_problems: int, methods: list[str], n_subsets: int) -> int:
    """Every cell of one checkpoint; how many there were."""
    problems = pools(n_problems)
    subsets = [
        draw_subsets(N_POOL, N_PATHS, n_subsets, np.random.default_rng([1, i]))
        for i in range(n_problems)
    ]
    pairs = list(zip(problems, subsets, strict=True))
    n_cells = 0
    for keep in KEEPS:
        options = {"keep": keep, "prefix_length": prefix_length}
        none = [no_pruning(p, s, prefix_length=prefix_length) for p, s in pairs]
        rng = np.random.default_rng(2)
        random = [random_pruning(p, s, **options, rng=rng) for p, s in pairs]
        oracle = [oracle_pruning(p, s, **options) for p, s in pairs]
        for number, method in enumerate(methods):
            scores = np.random.default_rng([3, number, prefix_length]).normal(
                size=(n_problems, N_POOL)
            )
            scores[:, : number % 3] = np.nan
            scores = np.round(scores, 1 + number % 4)
            cell = Cell(
                run_id="",
                model="m",
                dataset="d",
                method=method,
                type=SignalType.III,
                mode="replay",
                n_paths=N_PATHS,
                keep=keep,
                prefix_length=prefix_length,
            )
            results = [
                evaluate_problem(p, s, own, **options)
                for (p, s), own in zip(pairs, scores, strict=True)
            ]
            line = summarise(cell, results, none=none, random=random, oracle=oracle)
            assert line.status == "ok", line.reason
            n_cells += 1
    return n_cells


def main() -> None:
    small = "--small" in sys.argv
    shape = (3, METHODS[:2], 50) if small else (N_PROBLEMS, METHODS, N_SUBSETS)
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(2) as workers:
        n_cells = sum(workers.starmap(evaluate, [(length, *shape) for length in CHECKPOINTS]))
    seconds = time.perf_counter() - start
    print(f"{n_cells} cells in {seconds:.1f} s with two processes (limit {LIMIT_S:.0f} s)")
    if not small:
        row = {"cells": n_cells, "subsets": N_SUBSETS, "seconds": round(seconds, 1)}
        with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()

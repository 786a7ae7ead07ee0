"""Records and scores of paths as runs write them, made from simulated pools, for tests of reports.

Right paths score higher by the strength of a method; nothing else is simulated of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from prunebench.cells import Cell
from prunebench.cost import Cost
from prunebench.evaluate import ProblemPool, draw_subsets, evaluate_problem
from prunebench.references import no_pruning, oracle_pruning, random_pruning
from prunebench.report import records
from prunebench.types import SignalType

N_SUBSETS = 8
_PATH_TEXT = ("run_id", "bank", "model", "dataset", "method", "type")
TYPES = {"I": SignalType.I, "II": SignalType.II, "III": SignalType.III, "IV": SignalType.IV}
METHODS = {"stop": ("IV", 1.5), "deepconf": ("III", 1.0), "slim_sc": ("I", 0.1)}


def pool(i: int, n_pool: int, length: int) -> ProblemPool:
    """The paths of problem i, `length` tokens long on average."""
    rng = np.random.default_rng([17, i])
    correct = rng.random(n_pool) < rng.uniform(0.2, 0.8)
    return ProblemPool(
        problem_id=f"p{i}",
        indices=np.arange(n_pool),
        lengths=rng.integers(length // 2, 3 * length // 2, size=n_pool),
        stopped=np.ones(n_pool, dtype=bool),
        codes=np.where(correct, 0, rng.integers(1, 4, size=n_pool)),
        correct=correct,
        answers=["1", "2", "3", "4"],
    )


def scores_of(method: str, strength: float, pool: ProblemPool, checkpoint: int) -> np.ndarray:
    """Probabilities for stop, any number for the others; better at later checkpoints."""
    rng = np.random.default_rng([*method.encode(), checkpoint, *pool.problem_id.encode()])
    noise = rng.normal(size=len(pool.lengths))
    z = noise + strength * (1 + checkpoint / 400) * pool.correct
    return 1 / (1 + np.exp(-z)) if method == "stop" else 3 * z


def made(
    methods: dict[str, tuple[str, float]] | None = None,
    *,
    n_paths: tuple[int, ...] = (16,),
    keeps: tuple[int, ...] = (4,),
    checkpoints: tuple[int, ...] = (32,),
    n_problems: int = 10,
    n_pool: int = 24,
    length: int = 100,
    online: bool = False,
    **names: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(records, paths) of a grid of every method, N, k and checkpoint."""
    methods = METHODS if methods is None else methods
    pools = [pool(i, n_pool, length) for i in range(n_problems)]
    rows: list[dict[str, Any]] = []
    paths: list[dict[str, Any]] = []
    for n in n_paths:
        subsets = [
            draw_subsets(n_pool, n, N_SUBSETS, np.random.default_rng([7, i]))
            for i in range(n_problems)
        ]
        for at in checkpoints:
            for keep in (k for k in keeps if k < n):
                options: dict[str, Any] = {"keep": keep, "prefix_length": at}
                for method, (kind, strength) in methods.items():
                    cell = Cell(
                        **{
                            "run_id": f"{method}-{n}-{keep}-{at}",
                            "bank": "b",
                            "model": "tiny",
                            "dataset": "arithmetic",
                            "method": method,
                            "type": TYPES[kind],
                            "mode": "online" if online else "replay",
                            "n_paths": n,
                            **options,
                            **names,
                        }
                    )
                    for i, (one, own) in enumerate(zip(pools, subsets, strict=True)):
                        scores = scores_of(method, strength, one, at)
                        cost = Cost(seconds=0.2, verifier_tokens=90 if kind in ("II", "IV") else 0)
                        result = evaluate_problem(one, own, scores, costs=[cost], **options)
                        if online:
                            spent = {"launch": 2.0 + 0.1 * i, "check": 0.2 * strength, "resume": 1}
                            timed = {f"{phase}_seconds": s for phase, s in spent.items()}
                            result = replace(result, **timed)
                        rows.append(records.record(cell, result))
                        if n == n_paths[0] and keep == keeps[0]:
                            paths += _paths(cell, at, one, scores)
                cell = replace(cell, run_id="references")
                for i, (one, own) in enumerate(zip(pools, subsets, strict=True)):
                    rng = np.random.default_rng([i, keep])
                    for name, result in (
                        ("none", no_pruning(one, own, prefix_length=at)),
                        ("random", random_pruning(one, own, **options, rng=rng)),
                        ("oracle", oracle_pruning(one, own, **options)),
                    ):
                        rows.append(records.record(cell.reference(name), result))
    frame = pd.DataFrame(paths, columns=records.path_schema().names)
    return records.frame(rows), frame


def _paths(cell: Cell, at: int, pool: ProblemPool, scores: np.ndarray) -> list[dict[str, Any]]:
    """Rows of `paths.parquet`."""
    return [
        {
            **{name: str(getattr(cell, name)) for name in _PATH_TEXT},
            **{"config": "c0", "n_paths": 0, "rule": ""},
            "seed": cell.seed,
            "prefix_length": at,
            "probability": cell.method == "stop",
            "problem_id": pool.problem_id,
            "index": int(index),
            "score": float(scores[index]),
            "n_tokens": int(pool.lengths[index]),
            "stopped": True,
            "answer": pool.answers[pool.codes[index]],
            "correct": bool(pool.correct[index]),
        }
        for index in pool.indices
    ]

"""What pruning really saves: the seconds of an online run against those of no pruning.

    python benchmarks/saving.py                            # 64 paths, keep 8, method=stop
    python benchmarks/saving.py --backend vllm --problems-at-once 6

Every problem runs twice on the live engine, in alternating order: once through
Launch-Check-Resume, and once with all paths to their end. Beside the saving of generated tokens
(what pruned paths generated beyond the checkpoint included) stands the saving of wall time, check
included, and their quotient: 1 when seconds fall as much as tokens do. It is smaller where a step
with few paths takes nearly as long as one with many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from _measure import Bench, clock, parser, prepare, report

from prunebench.engine import Checkpoint, launch_check_resume
from prunebench.types import Problem

AIM = 0.9


def pruned(bench: Bench, problems: Sequence[Problem], name: str) -> dict[str, float]:
    """Tokens and seconds with pruning, of problems that run together."""
    run = bench.run
    start = clock()
    outcomes = launch_check_resume(
        bench.backend,
        problems,
        bench.methods[name],
        Checkpoint(prefix_length=run.prefix_length, seed=run.seed),
        n_paths=run.n_paths,
        pruning=run.pruning,
        ledger=bench.ledger,
    )
    seconds = clock() - start
    tokens = 0
    for outcome in outcomes:
        if outcome.checks[0].reason:
            raise SystemExit(f"{name} could not score: {outcome.checks[0].reason}")
        pairs = zip(outcome.launched, outcome.kept, strict=True)
        tokens += sum(trace.n_tokens for trace, kept in pairs if not kept)
        tokens += outcome.overrun + sum(trace.n_tokens for trace in outcome.finished)
    phases = outcomes[0].seconds
    return {
        "tokens": tokens,
        "verifier_tokens": sum(o.checks[0].cost.verifier_tokens for o in outcomes),
        "seconds": seconds,
        **{f"{phase}_s": sum(o.seconds[phase] for o in outcomes) for phase in phases},
    }


def complete(bench: Bench, problems: Sequence[Problem]) -> dict[str, float]:
    """Tokens and seconds without pruning, of problems that run together."""
    start = clock()
    sessions = bench.backend.open_together(problems, range(bench.run.n_paths))
    try:
        for session in sessions:
            session.start(None)
        tokens = sum(trace.n_tokens for session in sessions for trace in session.finish())
    finally:
        for session in sessions:
            session.close()
    return {"tokens": tokens, "seconds": clock() - start}


def main(given: Sequence[str] | None = None) -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--method", default="stop")
    options.add_argument("--paths", type=int, default=64)
    options.add_argument("--keep", type=int, default=8)
    options.add_argument("--problems", type=int, default=6)
    options.add_argument("--problems-at-once", type=int, default=1)
    options.add_argument("--repeats", type=int, default=3, help="rounds over the problems")
    arguments = options.parse_args(given)
    own = [f"n_paths={arguments.paths}", f"keep={arguments.keep}"]
    bench = prepare(arguments.backend, [*own, *arguments.overrides], {arguments.method: ()})
    problems, n = bench.problems[: arguments.problems], arguments.problems_at_once
    groups = [problems[at : at + n] for at in range(0, len(problems), n)]
    sides = {
        "pruned": lambda group: pruned(bench, group, arguments.method),
        "complete": lambda group: complete(bench, group),
    }
    for measure in sides.values():
        measure(bench.problems[-1:])  # what happens only the first time
    rows = []
    for round_ in range(arguments.repeats):
        found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for at, group in enumerate(groups):
            for side in list(sides)[:: 1 if (at + round_) % 2 else -1]:
                found[side].append(sides[side](group))
        rows.append(_row(found))
    bench.backend.close()
    setting = {
        "backend": arguments.backend,
        "model": bench.run.model.name,
        "method": arguments.method,
        "paths": arguments.paths,
        "keep": arguments.keep,
        "prefix_length": bench.run.prefix_length,
        "max_new_tokens": bench.run.model.sampling.max_new_tokens,
        "problems": len(problems),
        "problems_at_once": n,
        "repeats": arguments.repeats,
    }
    names = list(rows[0])
    median: dict[str, Any] = {n: float(np.median([row[n] for row in rows])) for n in names}
    quotients = [row["time_per_token_saving"] for row in rows]
    spread = {"lowest": min(quotients), "highest": max(quotients), "aim": AIM}
    report(
        [{**setting, **median, **spread}],
        arguments.output,
        same=["backend", "model", "method", "paths", "keep", "prefix_length", "problems_at_once"],
        hide=["model", "repeats"],
    )


def _row(found: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Savings over all problems of one round."""
    with_, without = (
        {name: sum(row[name] for row in found[side]) for name in found[side][0]}
        for side in ("pruned", "complete")
    )
    tokens = 100 * (1 - with_["tokens"] / without["tokens"])
    seconds = 100 * (1 - with_["seconds"] / without["seconds"])
    return {
        "tokens_saved_pct": tokens,
        "time_saved_pct": seconds,
        "time_per_token_saving": seconds / tokens,
        "complete_s": without["seconds"],
        "pruned_s": with_["seconds"],
        **{name: with_[name] for name in ("launch_s", "check_s", "resume_s")},
        "complete_tokens": without["tokens"],
        "pruned_tokens": with_["tokens"],
        "verifier_tokens": with_["verifier_tokens"],
    }


if __name__ == "__main__":
    main()

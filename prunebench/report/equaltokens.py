"""Several checkpoints against one, at equal total tokens: `equal_tokens.csv` and `.md`.

A schedule that keeps as many paths as a single checkpoint spends other tokens, so that comparing
the two compares budgets. Here a schedule stands against the mixture of two single-checkpoint cells
of the same method, one cheaper and one dearer, that costs exactly what the schedule does: what one
gets by keeping k paths of some problems and the next larger budget of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.cells import by_problem
from prunebench.report.numbers import counted, plus_minus
from prunebench.report.records import BOOTSTRAP_SEED, Row, replacing
from prunebench.stats import paired_difference
from prunebench.types import SignalType

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("avg", "cons")


def equal_tokens(rows: Sequence[Row]) -> pd.DataFrame:
    """One row per schedule and checkpoint of the single-checkpoint cells beside it.

    Returns
    -------
    table : model, dataset, method, schedule, n_paths, prefix_length of the single checkpoint,
        total_tokens, keep_low and keep_high of the mixture with the share of the higher one, and
        per measure the schedule's value, that of the mixture, and their difference (paired by
        problem) with `_lo`, `_hi` and p. `reason` says why numbers are missing: no two cells
        enclose the schedule's tokens.
    """
    import pandas as pd

    found = []
    for row in rows:
        if "→" not in row.cell.rule or row.cell.type is SignalType.CONTROL:
            continue
        single: dict[int, list[Row]] = {}
        for other in rows:
            same = replace(
                other.cell,
                run_id=row.cell.run_id,
                rule=row.cell.rule,
                keep=row.cell.keep,
                prefix_length=row.cell.prefix_length,
            )
            if not other.cell.rule and same == row.cell:
                single.setdefault(other.cell.prefix_length, []).append(other)
        found += [_compared(row, length, own) for length, own in sorted(single.items())]
    return pd.DataFrame(found)


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the table where the records hold a schedule; returns the files."""
    table = equal_tokens(rows)
    if table.empty:
        return []
    paths = [folder / "equal_tokens.csv", folder / "equal_tokens.md"]
    with replacing(paths[0]) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    with replacing(paths[1]) as temporary:
        temporary.write_text(_markdown(table), encoding="utf-8")
    return paths


def _compared(row: Row, prefix_length: int, single: Sequence[Row]) -> dict[str, Any]:
    cell, tokens = row.cell, row.line.total_tokens
    facts: dict[str, Any] = {
        "model": cell.model,
        "dataset": cell.dataset,
        "method": cell.method,
        "schedule": cell.rule,
        "n_paths": cell.n_paths,
        "prefix_length": prefix_length,
        "total_tokens": tokens,
        "total_tokens_lo": row.line.total_tokens_lo,
        "total_tokens_hi": row.line.total_tokens_hi,
    }
    known = sorted(
        (r for r in single if r.line.total_tokens == r.line.total_tokens),
        key=lambda r: r.line.total_tokens,
    )
    below = [r for r in known if r.line.total_tokens <= tokens]
    above = [r for r in known if r.line.total_tokens >= tokens]
    if not below or not above:
        spent = [round(r.line.total_tokens) for r in known]
        reason = f"no two cells enclose {tokens:.0f} tokens; they spend {spent}"
        return {**facts, "reason": reason}
    low, high = below[-1], above[0]
    gap = high.line.total_tokens - low.line.total_tokens
    share = (tokens - low.line.total_tokens) / gap if gap else 0.0
    facts |= {"keep_low": low.cell.keep, "keep_high": high.cell.keep, "share_high": share}
    ids = sorted({r.problem_id for r in row.results})
    for name in MEASURES:
        own, cheap, dear = (by_problem(r.results, name, ids) for r in (row, low, high))
        mixed = (1 - share) * cheap + share * dear
        difference = paired_difference(own, mixed, seed=BOOTSTRAP_SEED)
        value = getattr(row.line, name)
        facts |= {
            name: value,
            f"{name}_value_lo": getattr(row.line, f"{name}_lo"),
            f"{name}_value_hi": getattr(row.line, f"{name}_hi"),
            f"{name}_single": value - difference.mean,
            f"{name}_difference": difference.mean,
            f"{name}_lo": difference.lo,
            f"{name}_hi": difference.hi,
            f"{name}_p": difference.p,
        }
    return {**facts, "reason": ""}


def _markdown(table: pd.DataFrame) -> str:
    lines = [
        "# Schedules against one checkpoint at equal total tokens",
        "",
        "| method | schedule | one checkpoint | tokens | avg % | Δ avg | cons % | Δ cons |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in table.to_dict("records"):
        if row["reason"]:
            shown = ["–"] * 4
        else:
            shown = [
                text
                for name in MEASURES
                for text in (
                    plus_minus(
                        (row[name], row[f"{name}_value_lo"], row[f"{name}_value_hi"]), 100, 1
                    ),
                    f"{100 * row[f'{name}_difference']:+.1f} "
                    f"[{100 * row[f'{name}_lo']:.1f}, {100 * row[f'{name}_hi']:.1f}]",
                )
            ]
        cells = (
            *(row["method"], row["schedule"], str(row["prefix_length"])),
            *(
                counted((row["total_tokens"], row["total_tokens_lo"], row["total_tokens_hi"])),
                *shown,
            ),
        )
        lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    notes = sorted({row["reason"] for row in table.to_dict("records") if row["reason"]})
    lines += ["", "Δ: the schedule minus one checkpoint with the same tokens, 95% interval."]
    return "\n".join([*lines, *(f"\n- –: {note}" for note in notes)]) + "\n"

"""What the HTML report shows, as plain data: tables, settings, problems, scores, who was kept.

Takes analysed rows, the frame of scored paths and the `run.json` of runs, and gives lists and
dictionaries that JSON can hold, with None for a number that is missing. Knows no page and no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.cells import ORACLE, RANDOM, Cell, CellResult
from prunebench.evaluate import Status
from prunebench.report.blocks import Block, kind, numbered_names, title
from prunebench.report.numbers import half, measure, number
from prunebench.report.records import Row
from prunebench.report.scorings import SCORING, labels, unique_paths
from prunebench.stats import Comparison
from prunebench.storage import content_hash
from prunebench.types import SignalType

if TYPE_CHECKING:
    import pandas as pd

# Column of CellResult, header, hint, scale, decimals. Columns without a number are left out.
COLUMNS: tuple[tuple[str, str, str, float, int], ...] = (
    ("avg", "avg %", "accuracy of the kept paths", 100, 1),
    ("cons", "cons %", "is the vote of the kept paths right", 100, 1),
    ("total_tokens", "tokens", "generator and verifier tokens per problem", 1, 0),
    ("generator_tokens", "generator", "sampled tokens per problem, probes included", 1, 0),
    ("verifier_tokens", "verifier", "tokens per problem that were only read to judge", 1, 0),
    ("token_reduction_pct", "saved %", "tokens saved against no pruning", 1, 1),
    ("auroc_within", "AUROC", "of the scores against right and wrong, within problems", 1, 3),
    ("headroom", "headroom %", "(method − random) / (oracle − random), of avg", 100, 1),
    ("killed_pct", "killed %", "share of the right paths that was dropped", 1, 1),
    ("lost_votes", "lost %", "votes that are right only without pruning", 100, 1),
    ("won_votes", "won %", "votes that are right only with pruning", 100, 1),
    ("n_kept", "kept", "paths kept per problem", 1, 1),
    ("calls", "calls", "requests to a server per problem", 1, 0),
    ("money", "money", "what the requests cost per problem", 1, 4),
    ("score_seconds", "score s", "seconds to score the paths of a problem", 1, 3),
    ("launch_seconds", "launch s", "seconds per problem, online", 1, 2),
    ("check_seconds", "check s", "seconds per problem, online", 1, 2),
    ("resume_seconds", "resume s", "seconds per problem, online", 1, 2),
    ("wall_seconds", "wall s", "seconds per problem, online", 1, 2),
)
_ONLY_WHEN_THERE = {"calls", "money"}  # 0 everywhere without a server
_MAX_VALUES = 12  # of a setting that differs between runs


def table(block: Block, signals: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A block as a table: one list of cells per row, in the order of its columns.

    Parameters
    ----------
    signals : as from `signal_ids`.
    """
    names = numbered_names(block.rows)
    lines = [row.line for row in block.rows]
    shown = [column for column in COLUMNS if _has_numbers(column[0], lines)]
    if all(line.n_kept == block.cell.keep for line in lines if line.method not in ("none",)):
        shown = [column for column in shown if column[0] != "n_kept"]
    compared = {"avg": block.avg, "cons": block.cons}
    rows = []
    for i, row in enumerate(block.rows):
        cells = [
            _cell(row.line, column, compared[column[0]][i] if column[0] in compared else None)
            for column in shown
        ]
        rows.append(
            {
                "name": names[i],
                "method": row.cell.method,
                "signal": (signals or {}).get(row.cell.run_id),
                "type": kind(row.cell),
                "control": row.cell.type is SignalType.CONTROL,
                "note": _note(row),
                "cells": cells,
            }
        )
    cell = block.cell
    return {
        "title": title(cell, keep=True),
        "where": title(cell, keep=False, checkpoint=False),
        "bank": cell.bank,
        "n_paths": cell.n_paths,
        "keep": cell.keep,
        "length": cell.prefix_length,
        "lengths": _checkpoints(block),
        "seed": cell.seed,
        "columns": [{"label": label, "help": text} for _, label, text, _, _ in shown],
        "rows": rows,
    }


def _has_numbers(column: str, lines: Iterable[CellResult]) -> bool:
    values = [float(getattr(line, column, math.nan)) for line in lines]
    return any(v == v and (v != 0 or column not in _ONLY_WHEN_THERE) for v in values)


def _cell(
    line: CellResult, column: tuple[str, str, str, float, int], comparison: Comparison | None
) -> dict[str, Any]:
    field, _, _, scale, digits = column
    value, lo, hi = measure(line, field)
    cell: dict[str, Any] = {"v": plain(value), "t": number(scale * value, digits)}
    if value == value and lo == lo and lo != hi:
        cell["i"] = half(lo, hi, scale, digits)
        cell["h"] = f"95%: {number(scale * lo, digits)} to {number(scale * hi, digits)}"
    if comparison is None:
        return cell
    if comparison.best or comparison.tied:
        cell["m"] = "best" if comparison.best else "tied"
    difference = comparison.difference
    if difference is not None:
        d = [100 * x for x in (difference.mean, difference.lo, difference.hi)]
        cell["h"] = (
            f"{cell.get('h', '')}\nminus the best: {d[0]:+.1f} [{d[1]:.1f}, {d[2]:.1f}], "
            f"p = {comparison.p_holm:.3g} (paired, Holm)"
        ).strip()
    return cell


def _note(row: Row) -> str:
    failed = row.line.status != Status.OK
    return f"{row.line.status}: {row.line.reason}" if failed else row.line.reason


def _checkpoints(block: Block) -> list[list[int]]:
    """Per row, the checkpoints in tokens: several where the rule says `... at 32, 64, 96`."""
    found = []
    for row in block.rows:
        _, at, places = row.cell.rule.rpartition(" at ")
        stages = [p.strip() for p in places.split(",")]
        own = [int(p) for p in stages] if at and all(p.isdecimal() for p in stages) else []
        found.append(own or [row.cell.prefix_length])
    return found


def outcomes(block: Block) -> dict[str, list[Any]]:
    """What every row of a block did to each problem: avg, cons, the indices kept in the first
    subset, the answer voted there; None where it failed."""
    found: dict[str, list[Any]] = {}
    for i, row in enumerate(block.rows):
        for result in row.results:
            own = found.setdefault(result.problem_id, [None] * len(block.rows))
            if result.status is Status.OK:
                own[i] = [_mean(result.avg), _mean(result.cons), result.kept, result.answer]
    return found


def _mean(values: Any) -> float | None:
    defined = values[values == values]
    return plain(float(defined.mean())) if len(defined) else None


def signal_ids(paths: pd.DataFrame | None) -> dict[str, str]:
    """By run id, what stands for its scores in `scored`."""
    if paths is None or not len(paths):
        return {}
    first = paths.drop_duplicates("run_id")
    return dict(zip(first["run_id"], map(_signal_id, first.to_dict("records")), strict=True))


def _signal_id(row: Any) -> str:
    return content_hash({name: row[name] for name in ("method", *SCORING)})


def scored(paths: pd.DataFrame | None) -> dict[tuple[str, str], dict[str, Any]]:
    """Paths and their scores, by (bank, problem).

    Returns
    -------
    paths : index, n (tokens), stopped, answer, correct, in the order of the index.
    signals : id (see `signal_ids`), method, n_paths and rule (of methods that compare paths),
        length (checkpoint, tokens), seed, probability, and scores in the order of the paths; None =
        could not be scored.
    """
    if paths is None or not len(paths):
        return {}
    paths = unique_paths(paths)
    names = labels(paths)
    own = ["method", *SCORING, "prefix_length", "seed"]
    found = {}
    for key, group in paths.groupby(["bank", "problem_id"], sort=False):
        known_first = group.iloc[np.argsort(group["correct"].isna().to_numpy(), kind="stable")]
        facts = known_first.drop_duplicates("index").sort_values("index")
        order = facts["index"].tolist()
        signals = []
        for signal, rows in group.groupby(own, sort=False):
            values: dict[str, Any] = dict(zip(own, signal, strict=True))  # pyright: ignore
            score = dict(zip(rows["index"], rows["score"], strict=True))
            signals.append(
                {
                    "id": _signal_id(values),
                    "method": names[key[0], values["seed"], values["method"], values["config"]],  # pyright: ignore
                    "n_paths": int(values["n_paths"]),
                    "rule": values["rule"],
                    "length": int(values["prefix_length"]),
                    "seed": int(values["seed"]),
                    "probability": bool(rows["probability"].iloc[0]),
                    "scores": [plain(score.get(index)) for index in order],
                }
            )
        columns = ("index", "n_tokens", "stopped", "answer", "correct")
        found[str(key[0]), str(key[1])] = {  # pyright: ignore[reportIndexIssue]
            "paths": [
                {
                    "index": int(index),
                    "n": int(n_tokens),
                    "stopped": _truth(stopped),
                    "answer": answer if isinstance(answer, str) else None,
                    "correct": _truth(correct),
                }
                for index, n_tokens, stopped, answer, correct in zip(
                    *(facts[c] for c in columns), strict=True
                )
            ],
            "signals": signals,
        }
    return found


def _truth(value: Any) -> bool | None:
    return None if value is None or value != value else bool(value)


def plain(value: Any) -> float | None:
    """The number with six significant digits, None when it is missing."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def settings(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the `run.json` of all runs have in common, where they differ, and their notes."""
    flat = [dict(_flat({k: v for k, v in run.items() if k != "notes"})) for run in facts]
    keys = list(dict.fromkeys(key for run in flat for key in run))
    common, differing = [], []
    for key in keys:
        values = list(dict.fromkeys(run.get(key, "–") for run in flat))
        if len(values) == 1:
            common.append([key, values[0]])
        else:
            more = [f"and {len(values) - _MAX_VALUES} more"] * (len(values) > _MAX_VALUES)
            differing.append([key, ", ".join([*values[:_MAX_VALUES], *more])])
    notes = list(dict.fromkeys(str(note) for run in facts for note in _listed(run.get("notes"))))
    ends = [str(run["finished_at"]) for run in facts if run.get("finished_at")]
    finished = max(ends, default=None)
    return {
        "n_runs": len(facts),
        "finished": finished,
        "common": common,
        "differing": differing,
        "notes": notes,
    }


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        yield prefix, ", ".join(str(v) for v in value)
    else:
        yield prefix, "–" if value is None else str(value)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value in (None, "") else [value]


def heading(cells: Sequence[Cell]) -> str:
    """What a report is about: its models and datasets."""
    models, datasets = (
        ", ".join(dict.fromkeys(getattr(cell, f) for cell in cells)) for f in ("model", "dataset")
    )
    return f"{models} on {datasets}" if cells else "no records"


def default_pair(block: dict[str, Any]) -> tuple[int, int | None]:
    """The rows whose choices are shown first: the first method, and the one after it."""
    rows = block["rows"]
    own = [i for i, row in enumerate(rows) if not row["control"]]
    others = [i for i, row in enumerate(rows) if row["method"] in (RANDOM, ORACLE)]
    chosen = [*own, *others, *range(len(rows))]
    return chosen[0], next((i for i in chosen[1:] if i != chosen[0]), None)

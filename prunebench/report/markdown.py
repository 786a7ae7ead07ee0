"""Blocks as Markdown: every number with its interval, differences to the best, reasons.

Lays out analysed rows and computes nothing but the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from prunebench.cells import CellResult
from prunebench.report.blocks import Block, kind, legend, name, notes, title
from prunebench.report.numbers import (
    bounds,
    measure,
    number,
    plus_minus,
)
from prunebench.report.numbers import seconds as seconds_text
from prunebench.report.records import Row
from prunebench.stats import Comparison

LEGEND = (
    "**bold**: best method; =: not significantly worse than the best (paired bootstrap, Holm); "
    "±: half of the 95% interval, left out where all problems have the same number. Tokens, "
    "calls, money and seconds per problem. Killed: right paths that were dropped; lost, won: "
    "votes that are right only without, only with pruning."
)
_COLUMNS = (
    *("method", "type", "avg %", "95%", "Δ best", "p", "cons %", "95%", "Δ best", "p"),
    "p (McNemar)",
    *("generator tokens", "verifier tokens", "saved %", "AUROC within", "95%", "headroom %"),
    *("killed %", "lost %", "won %", "calls", "money", "score s"),
)


def summary(rows: Sequence[Row], found: Sequence[Block]) -> str:
    """The text of `summary.md`: analysed rows and their blocks."""
    parts = ["# Summary"]
    for block in found:
        parts += ["", f"## {escape(title(block.cell, keep=True))}", "", row_of(_COLUMNS)]
        parts.append("|---|---|" + "--:|" * (len(_COLUMNS) - 2))
        compared = zip(block.rows, block.avg, block.cons, block.votes, strict=True)
        for row, avg, cons, votes in compared:
            values = [
                escape(name(row.cell)),
                kind(row.cell),
                *_accuracy(row.line, "avg", avg),
                *_accuracy(row.line, "cons", cons),
                f"{votes.p:.3g}" if votes else "",
                *_rest(row.line),
            ]
            parts.append(row_of(values))
        parts += _detectable(block)
    parts += ["", legend(LEGEND, rows)]
    parts += [f"\n- {escape(note)}" for note in notes(rows)]
    return "\n".join(parts) + "\n"


def _detectable(block: Block) -> list[str]:
    """What this many problems can tell apart."""
    n = max(row.line.n_problems for row in block.rows)
    known = [
        f"{100 * value:.1f} points of {measured}"
        for measured, value in zip(("avg", "cons"), block.detectable, strict=True)
        if value == value
    ]
    if not known:
        return []
    return [
        "",
        f"Smallest difference from the best that {n} problems can show (power 80%, level 5% over "
        f"all comparisons, median over the rows): {' and '.join(known)}.",
    ]


def row_of(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def escape(text: str) -> str:
    """Keep Markdown from reading a name or a reason as markup."""
    for character in "\\`*_|<[":
        text = text.replace(character, "\\" + character)
    return text


def _accuracy(line: CellResult, column: str, comparison: Comparison) -> tuple[str, str, str, str]:
    value, lo, hi = measure(line, column)
    text = number(100 * value, 1)
    if comparison.best:
        text = f"**{text}**"
    elif comparison.tied:
        text += " ="
    d = comparison.difference
    delta = f"{100 * d.mean:+.1f} {bounds(d.lo, d.hi, 100, 1)}" if d else ""
    p = comparison.p_holm
    return text, bounds(lo, hi, 100, 1), delta, f"{p:.3g}" if p == p else ""


def _rest(line: CellResult) -> list[str]:
    return [
        plus_minus(measure(line, "generator_tokens"), 1, 0),
        plus_minus(measure(line, "verifier_tokens"), 1, 0),
        plus_minus(measure(line, "token_reduction_pct"), 1, 1),
        number(line.auroc_within, 3),
        bounds(line.auroc_lo, line.auroc_hi, 1, 3),
        plus_minus(measure(line, "headroom"), 100, 1),
        plus_minus(measure(line, "killed_pct"), 1, 1),
        plus_minus(measure(line, "lost_votes"), 100, 1),
        plus_minus(measure(line, "won_votes"), 100, 1),
        plus_minus(measure(line, "calls"), 1, 0),
        plus_minus(measure(line, "money"), 1, 4),
        seconds_text(measure(line, "score_seconds")),
    ]

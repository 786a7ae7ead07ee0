"""Tables for people: on the console, and the files `summary.*` and `main_table.*`.

Takes analysed rows and only lays them out. The best method of a block and those tied with it are
marked. Controls (no pruning, oracles) are shown but never marked; random pruning is compared too,
since a method that does not beat it has shown nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.cells import ORACLE, Cell
from prunebench.report import latex, maintable, markdown, published
from prunebench.report.blocks import (
    Block,
    at_budget,
    blocks,
    budget,
    kind,
    legend,
    name,
    notes,
    numbered,
    title,
)
from prunebench.report.numbers import counted, measure, number, plus_minus, seconds
from prunebench.report.records import Row, replacing, summary_of
from prunebench.stats import Comparison
from prunebench.types import SignalType

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_FULL_BLOCKS = 2
"""With more blocks than this the console shows one matrix per checkpoint instead."""

BUDGETS_PER_MATRIX = 2

LEGEND = (
    "bold: best method; =: not significantly worse than the best (paired bootstrap, Holm); "
    "±: half of the 95% interval, left out where it has no width"
)


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `summary.csv`, `.md`, `.tex`; with at least one method `main_table.*`; and where a
    model and dataset stand in published tables `published.csv`, `.md`. Returns their paths."""
    table, text = folder / "summary.csv", folder / "summary.md"
    with replacing(table) as temporary:
        summary_of(rows).to_csv(temporary, index=False, float_format="%.6g")
    found = blocks(rows)
    texts = {text: markdown.summary(rows, found), folder / "summary.tex": latex.summary(found)}
    for path, content in texts.items():
        with replacing(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return [table, *texts, *maintable.write(found, folder), *published.write(rows, folder)]


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the rows: full tables for one or two blocks, matrices methods × budgets for more."""
    from rich.text import Text

    found = blocks(rows)
    if len(found) <= MAX_FULL_BLOCKS:
        tables = [_fitting(console, lambda left_out, b=b: _full_table(b, left_out)) for b in found]
    else:
        tables = [
            _fitting(console, lambda left_out, g=g: _matrix(g, left_out)) for g in _matrices(found)
        ]
    for table in tables:
        console.print(table)
        console.print()
    if any(c.best for block in found for c in block.avg):
        console.print(Text(legend(LEGEND, rows), style="dim"))
    for note in notes(rows):
        console.print(Text(note, style="yellow"))


_DISPENSABLE = ("score\ns", "head-\nroom %", "type", "ver.\ntok.", "AUROC\nwithin")


def _fitting(console: Console, made: Any) -> Table:
    """The table, or as much of it as fits beside long names; summary.md has the rest."""
    boundless = console.options.update(width=10_000)
    table = made(set())
    for left_out in range(1, len(_DISPENSABLE) + 1):
        if console.measure(table, options=boundless).maximum <= console.width:
            break
        table = made(set(_DISPENSABLE[:left_out]))
    return table


def _full_table(block: Block, left_out: set[str]) -> Table:
    avg, cons = (at_budget(measured, block.cell) for measured in ("avg", "cons"))
    columns = [
        *("method", "type", f"{avg}\n%", f"{cons}\n%", "gen.\ntok.", "ver.\ntok."),
        *("saved\n%", "AUROC\nwithin", "head-\nroom %", "score\ns"),
    ]
    judged = any(row.line.calls > 0 for row in block.rows)
    columns += ["calls", "money"] * judged
    shown = [column for column in columns if column not in left_out]
    table = _empty_table(title(block.cell, keep=True), shown, _name_width([block]))
    for row, avg, cons in zip(block.rows, block.avg, block.cons, strict=True):
        line = row.line
        cells = (
            _name(row.cell, avg),
            kind(row.cell),
            _marked(plus_minus(measure(line, "avg"), 100, 1), avg),
            _marked(plus_minus(measure(line, "cons"), 100, 1), cons),
            counted(measure(line, "generator_tokens")),
            counted(measure(line, "verifier_tokens")),
            plus_minus(measure(line, "token_reduction_pct"), 1, 1),
            plus_minus(measure(line, "auroc_within"), 1, 2),
            plus_minus(measure(line, "headroom"), 100, 0),
            seconds(measure(line, "score_seconds")),
            *((number(line.calls, 0), number(line.money, 4)) if judged else ()),
        )
        named = zip(columns, cells, strict=True)
        table.add_row(*(text for column, text in named if column not in left_out))
    return table


def _matrices(found: Sequence[Block]) -> list[list[Block]]:
    """The blocks of one table each: those of one setting and checkpoint, some at a time."""
    groups: dict[Cell, list[Block]] = {}
    for block in found:
        groups.setdefault(replace(budget(block.cell), n_paths=0, keep=0), []).append(block)
    return [
        group[i : i + BUDGETS_PER_MATRIX]
        for group in groups.values()
        for i in range(0, len(group), BUDGETS_PER_MATRIX)
    ]


def _matrix(group: Sequence[Block], left_out: set[str]) -> Table:
    """Methods × budgets: avg and cons at every budget, and the AUROC at the last one."""
    columns = ["method", "type"]
    for block in group:
        at = f"{block.cell.keep or 'rule'}|{block.cell.n_paths}"
        columns += [f"avg@\n{at}", f"cons@\n{at}"]
    columns.append("AUROC\nwithin")
    shown = [column for column in columns if column not in left_out]
    table = _empty_table(title(group[0].cell, keep=False), shown, _name_width(group))
    positions = [numbered(block.rows) for block in group]
    identities = dict.fromkeys(key for places in positions for key in places)
    for identity in sorted(identities, key=lambda key: key[0] == ORACLE):  # stays last
        row, texts = None, []
        for block, places in zip(group, positions, strict=True):
            if identity not in places:
                texts += ["", ""]
                continue
            at = places[identity]
            row = block.rows[at]
            texts += [
                _marked(plus_minus(measure(row.line, "avg"), 100, 1), block.avg[at]),
                _marked(plus_minus(measure(row.line, "cons"), 100, 1), block.cons[at]),
            ]
        assert row is not None
        auroc = plus_minus(measure(row.line, "auroc_within"), 1, 2)
        cells = (_name(row.cell, None), kind(row.cell), *texts, auroc)
        named = zip(columns, cells, strict=True)
        table.add_row(*(text for column, text in named if column not in left_out))
    return table


def _empty_table(heading: str, columns: Sequence[str], name_width: int) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    # Laid out to fit into 80 characters.
    table = Table(
        title=escape(heading),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )
    for i, column in enumerate(columns):
        width = min(name_width, 24) if i == 0 else None
        justify = "left" if column in ("method", "type") else "right"
        table.add_column(escape(column), justify=justify, no_wrap=i > 0, min_width=width)
    return table


def _name_width(found: Sequence[Block]) -> int:
    return max(len(name(row.cell)) for block in found for row in block.rows)


def _name(cell: Cell, comparison: Comparison | None) -> Any:
    from rich.text import Text

    style = "bold" if comparison and comparison.best else ""
    style = "dim" if cell.type is SignalType.CONTROL else style
    return Text(name(cell), style=style)


def _marked(text: str, comparison: Comparison) -> Any:
    """The number with room for its mark, so that columns stay aligned."""
    from rich.text import Text

    if comparison.best:
        return Text(text + " ", style="bold")
    return Text(text + ("=" if comparison.tied else " "))

"""The main table of a paper: model × dataset rows, no pruning and the four types as columns.

Laid out as Table 2 of arXiv 2604.16029: avg@k|N and tokens with the percentage saved, here with
their intervals, and with random pruning and the oracle beside the methods. One table per
(checkpoint, N, k). Takes analysed rows and computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.cells import NONE, ORACLE, RANDOM, Cell
from prunebench.report import latex
from prunebench.report.blocks import Block, at_budget, budget, is_method, kind, numbered, title
from prunebench.report.latex import Footnotes
from prunebench.report.markdown import escape, row_of
from prunebench.report.numbers import MISSING, counted, measure, plus_minus
from prunebench.report.records import Row, replacing

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("avg", "total_tokens", "token_reduction_pct")
LEGEND = (
    "**bold**: best method; *italic*: second; =: not significantly worse than the best (paired "
    "bootstrap, Holm); ±: half of the 95% interval. Tokens are the generator's and the "
    "verifier's, per problem; in brackets the percentage saved against no pruning."
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cell of the table: the row, and how its avg is set off."""

    row: Row
    weight: str
    tied: bool


@dataclass(frozen=True, kw_only=True)
class Main:
    """One table: a budget, its columns and its lines.

    Attributes
    ----------
    cell : any cell of it: the budget.
    columns : (group, column name): no pruning, the methods by type, the controls.
    lines : (model, dataset) -> column name -> entry; a missing one was not run.
    """

    cell: Cell
    columns: list[tuple[str, str]]
    lines: dict[tuple[str, str], dict[str, Entry]]

    @property
    def heading(self) -> str:
        words = title(replace(self.cell, setting=""), keep=True).split(": ", 1)[1]
        return f"{words} ({self.cell.mode})"


def tables(found: Sequence[Block]) -> list[Main]:
    """One table per budget that has at least one method."""
    budgets: dict[Cell, list[Block]] = {}
    for block in found:
        if any(is_method(row) for row in block.rows):
            key = replace(budget(block.cell), model="", dataset="", bank="", setting="")
            budgets.setdefault(key, []).append(block)
    return [_main(key, found) for key, found in budgets.items()]


def main_table(found: Sequence[Main]) -> pd.DataFrame:
    """All budgets as one frame of numbers.

    Returns
    -------
    frame : index (budget, model, dataset); columns (group, method, measure), where the measures
        are avg in 0..1, total_tokens per problem and token_reduction_pct with `_lo` and `_hi`,
        NaN where missing, and the status of the cell ("not run" where there is none).
    """
    import pandas as pd

    records: dict[tuple[str, str, str], dict[tuple[str, str, str], Any]] = {}
    columns = sorted({c for main in found for c in main.columns}, key=_place)
    for main in found:
        for (model, dataset), entries in main.lines.items():
            record = records.setdefault((main.heading, model, dataset), {})
            for group, column in columns:
                entry = entries.get(column)
                for item in MEASURES:
                    values = measure(entry.row.line, item) if entry else (float("nan"),) * 3
                    for end, value in zip(("", "_lo", "_hi"), values, strict=True):
                        record[group, column, item + end] = value
                record[group, column, "status"] = entry.row.line.status if entry else "not run"
    index = pd.MultiIndex.from_tuples(list(records), names=["budget", "model", "dataset"])
    return pd.DataFrame(
        list(records.values()),
        index=index,
        columns=pd.MultiIndex.from_tuples(list(next(iter(records.values()), {}))),
    )


def write(blocks: Sequence[Block], folder: Path) -> list[Path]:
    """Write `main_table.csv`, `.md` and `.tex`; nothing without a method."""
    found = tables(blocks)
    if not found:
        return []
    paths = [folder / f"main_table.{end}" for end in ("csv", "md", "tex")]
    frame = main_table(found)
    frame.columns = [f"{column}: {item}" for _, column, item in frame.columns]
    with replacing(paths[0]) as temporary:
        frame.to_csv(temporary, float_format="%.6g")
    for path, text in zip(paths[1:], (_markdown(found), _latex(found)), strict=True):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def _main(key: Cell, found: Sequence[Block]) -> Main:
    twice = len({(b.cell.model, b.cell.dataset) for b in found}) < len(found)
    columns: dict[tuple[str, str], None] = {}
    lines: dict[tuple[str, str], dict[str, Entry]] = {}
    for block in found:
        dataset = block.cell.dataset
        if twice:  # the same model and data under several settings
            dataset += "".join(f", {w}" for w in (block.cell.setting, block.cell.bank) if w)
        line = lines.setdefault((block.cell.model, dataset), {})
        marks = latex.marks(block, "avg")
        for (column, again), i in numbered(block.rows).items():
            row = block.rows[i]
            column += f" ({again + 1})" if again else ""
            columns[_group(row), column] = None
            line[column] = Entry(row=row, weight=marks[i][0], tied=marks[i][1])
    return Main(cell=key, columns=sorted(columns, key=_place), lines=lines)


def _group(row: Row) -> str:
    if row.cell.method == NONE:
        return ""
    return f"Type {kind(row.cell)}" if kind(row.cell) else "Control"


def _place(column: tuple[str, str]) -> tuple[Any, ...]:
    """No pruning, Types I to IV, controls; methods by name."""
    groups = ("", "Type I", "Type II", "Type III", "Type IV", "Control")
    return groups.index(column[0]), column[1] == ORACLE, column[1] == RANDOM, column[1]


def _texts(entry: Entry | None, footnotes: Footnotes) -> tuple[str, str, str]:
    """avg, tokens with the percentage saved, and the letter of a footnote or nothing."""
    if entry is None:
        return MISSING, MISSING, footnotes.mark("not run")
    line = entry.row.line
    avg = plus_minus(measure(line, "avg"), 100, 1)
    tokens = counted(measure(line, "total_tokens"))
    saved = measure(line, "token_reduction_pct")
    if entry.row.cell.method != NONE and saved[0] == saved[0]:
        tokens += f" ({plus_minus(saved, 1, 1)}%)"
    explained = MISSING in (avg, tokens) or (line.status != "ok" and line.reason)
    return avg, tokens, footnotes.mark(line.reason or "not measured") if explained else ""


def _measure_names(main: Main) -> tuple[str, str]:
    return f"{at_budget('avg', main.cell)} %", "tokens (saved)"


def _markdown(found: Sequence[Main]) -> str:
    parts = ["# Main table"]
    footnotes = Footnotes({})
    for main in found:
        heads = [escape(c) + (f" ({g})" if g not in ("", "Control") else "")
                 for g, c in main.columns]  # fmt: skip
        parts += ["", f"## {escape(main.heading)}", ""]
        parts += [row_of(["model", "dataset", "", *heads])]
        parts.append("|---|---|---|" + "--:|" * len(heads))
        for (model, dataset), entries in main.lines.items():
            first = [escape(model), escape(dataset), escape(_measure_names(main)[0])]
            second = ["", "", _measure_names(main)[1]]
            for _, column in main.columns:
                entry = entries.get(column)
                avg, tokens, letter = _texts(entry, footnotes)
                sign = {"best": "**", "second": "*"}.get(entry.weight if entry else "", "")
                tied = " =" if entry and entry.tied else ""
                note = f"<sup>{letter}</sup>" if letter else ""
                first.append(f"{sign}{avg}{sign}{tied}{note}")
                second.append(tokens + (note if tokens == MISSING else ""))
            parts += [row_of(first), row_of(second)]
    parts += ["", LEGEND]
    parts += [f"\n<sup>{letter}</sup> {escape(r)}" for r, letter in footnotes.reasons.items()]
    return "\n".join(parts) + "\n"


def _latex(found: Sequence[Main]) -> str:
    import pandas as pd

    parts = [latex.PACKAGES]
    for i, main in enumerate(found, start=1):
        footnotes = Footnotes({})
        texts, weights, index = [], [], []
        for (model, dataset), entries in main.lines.items():
            first, second, bold = [], [], []
            for _, column in main.columns:
                entry = entries.get(column)
                avg, tokens, letter = _texts(entry, footnotes)
                note = latex.superscript(letter) if letter else ""
                tied = latex.TIED if entry and entry.tied else ""
                first.append(latex.escape(avg) + tied + note)
                second.append(latex.escape(tokens) + (note if tokens == MISSING else ""))
                bold.append(entry.weight if entry else "")
            texts += [first, second]
            weights += [bold, [""] * len(bold)]
            names = (latex.escape(model), latex.escape(dataset))
            index += [(*names, latex.escape(m)) for m in _measure_names(main)]
        columns = pd.MultiIndex.from_tuples(
            [(latex.escape(group), latex.escape(column)) for group, column in main.columns]
        )
        rows = pd.MultiIndex.from_tuples(index, names=["model", "dataset", "measure"])
        parts.append(
            latex.table(
                pd.DataFrame(texts, index=rows, columns=columns),
                pd.DataFrame(weights, index=rows, columns=columns),
                caption=latex.escape(main.heading)
                + ". Tokens of generator and verifier per problem; in brackets the "
                r"percentage saved.",
                label=f"tab:main-{i}",
                notes=[latex.LEGEND, *latex.notes_of(footnotes)],
                n_text=3,
            )
        )
    return "\n".join(parts)

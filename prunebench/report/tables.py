"""Tables for people: on the console, and `summary.csv` and `summary.md` in the run folder.

Takes analysed rows and only lays them out. Rows of one (checkpoint, N, k) form a block and are
compared with each other; the best method and those tied with it are marked. Controls (no pruning,
oracles) are shown but never marked; random pruning is compared too, since a method that does not
beat it has shown nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.cells import NONE, ORACLE, RANDOM, Cell, CellResult, by_problem
from prunebench.evaluate import Status
from prunebench.report.records import BOOTSTRAP_SEED, Row, replacing, summary_of
from prunebench.stats import Comparison, compare_with_best
from prunebench.types import SignalType

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_FULL_BLOCKS = 2
"""With more blocks than this the console shows one matrix per checkpoint instead."""

BUDGETS_PER_MATRIX = 3

LEGEND = "bold: best method; =: not significantly worse than the best (paired bootstrap, Holm)"
_LABELS = {NONE: "no pruning"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """The rows that share a setting, a checkpoint, N and k, with their comparisons.

    Attributes
    ----------
    cell : any cell of the block: its setting and budget.
    rows : none, random, the methods, oracle.
    avg, cons : one comparison with the best row each, in the order of `rows`.
    """

    cell: Cell
    rows: list[Row]
    avg: list[Comparison]
    cons: list[Comparison]


def blocks(rows: Sequence[Row]) -> list[Block]:
    """Sort analysed rows into blocks, methods by their within-problem AUROC, the highest first.
    The row `none` stands in the block of every k."""
    groups: dict[Cell, list[Row]] = {}
    for row in rows:
        if row.cell.method != NONE:
            groups.setdefault(_budget(row.cell), []).append(row)
    for row in rows:
        if row.cell.method == NONE:
            same = [b for b in groups if replace(b, keep=b.n_paths) == _budget(row.cell)]
            for budget in same or [_budget(row.cell)]:
                groups.setdefault(budget, []).insert(0, row)
    for group in groups.values():
        _sort(group)
    return [
        Block(cell=cell, rows=group, avg=_compare(group, "avg"), cons=_compare(group, "cons"))
        for cell, group in groups.items()
    ]


def _sort(rows: list[Row]) -> None:
    """No pruning, random, the methods, oracle. Rows of one name stay together and in their order,
    by which matrices tell them apart."""
    best: dict[str, float] = {}
    for row in rows:
        auroc = row.line.auroc_within
        best[row.cell.method] = max(best.get(row.cell.method, -1.0), auroc if auroc == auroc else 0)
    roles = {NONE: 0, RANDOM: 1, ORACLE: 3}
    place = {name: i for i, name in enumerate(best)}
    rows.sort(
        key=lambda row: (
            roles.get(row.cell.method, 2),
            -best[row.cell.method],
            place[row.cell.method],
        )
    )


def _budget(cell: Cell) -> Cell:
    """The cell without what differs between rows of a block."""
    return replace(cell, run_id="", method="", type=SignalType.CONTROL)


def _compare(rows: Sequence[Row], name: str) -> list[Comparison]:
    """Methods and random against the best method; controls stay without a comparison."""
    nothing = Comparison(best=False, tied=False, difference=None, p_holm=float("nan"))
    candidates = [row.cell.type is not SignalType.CONTROL for row in rows]
    members = [i for i, row in enumerate(rows) if candidates[i] or row.cell.method == RANDOM]
    ids = sorted({r.problem_id for i in members for r in rows[i].results})
    found = compare_with_best(
        [by_problem(rows[i].results, name, ids) for i in members],
        may_be_best=[candidates[i] for i in members],
        seed=BOOTSTRAP_SEED,
    )
    compared = dict(zip(members, found, strict=True))
    return [compared.get(i, nothing) for i in range(len(rows))]


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `summary.csv` and `summary.md` into `folder` and return their paths."""
    table, text = folder / "summary.csv", folder / "summary.md"
    with replacing(table) as temporary:
        summary_of(rows).to_csv(temporary, index=False, float_format="%.6g")
    with replacing(text) as temporary:
        temporary.write_text(markdown(rows), encoding="utf-8")
    return [table, text]


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the rows: full tables for one or two blocks, matrices methods × budgets for more."""
    from rich.text import Text

    found = blocks(rows)
    if len(found) <= MAX_FULL_BLOCKS:
        tables = [_fitting_table(block, console) for block in found]
    else:
        tables = _matrices(found)
    for table in tables:
        console.print(table)
        console.print()
    if any(c.best for block in found for c in block.avg):
        console.print(Text(LEGEND + "; ±: half of the 95% interval", style="dim"))
    for note in _notes(rows):
        console.print(Text(note, style="yellow"))


def _fitting_table(block: Block, console: Console) -> Table:
    """The full table, or as much of it as fits beside long names; summary.md has the rest."""
    boundless = console.options.update(width=10_000)
    table = _full_table(block, set())
    for left_out in range(1, len(_DISPENSABLE) + 1):
        if console.measure(table, options=boundless).maximum <= console.width:
            break
        table = _full_table(block, set(_DISPENSABLE[:left_out]))
    return table


_DISPENSABLE = ("head-\nroom %", "saved\n%", "score\ns")


def _full_table(block: Block, left_out: set[str]) -> Table:
    k, n = block.cell.keep, block.cell.n_paths
    columns = [
        *("method", "type", f"avg@{k}|{n}\n%", f"cons@{k}|{n}\n%", "tokens\ngen+ver"),
        *("saved\n%", "AUROC\nwithin", "head-\nroom %", "score\ns"),
    ]
    judged = any(row.line.calls > 0 for row in block.rows)
    columns += ["calls", "money"] * judged
    shown = [column for column in columns if column not in left_out]
    table = _empty_table(_title(block.cell, keep=True), shown, _name_width([block]))
    for row, avg, cons in zip(block.rows, block.avg, block.cons, strict=True):
        line = row.line
        cells = (
            _name(row.cell, avg),
            _type(row.cell),
            _marked(_with_interval(line.avg, line.avg_lo, line.avg_hi, 100, 1), avg),
            _marked(_with_interval(line.cons, line.cons_lo, line.cons_hi, 100, 1), cons),
            _tokens(line),
            _number(line.token_reduction_pct, 1),
            _with_interval(line.auroc_within, line.auroc_lo, line.auroc_hi, 1, 2),
            _number(100 * line.headroom, 1),
            f"{line.score_seconds:.2g}" if line.score_seconds == line.score_seconds else "–",
            *((_number(line.calls, 0), _number(line.money, 4)) if judged else ()),
        )
        named = zip(columns, cells, strict=True)
        table.add_row(*(text for column, text in named if column not in left_out))
    return table


def _matrices(found: Sequence[Block]) -> list[Table]:
    """One table per setting and checkpoint (more when there are many budgets)."""
    groups: dict[Cell, list[Block]] = {}
    for block in found:
        groups.setdefault(replace(_budget(block.cell), n_paths=0, keep=0), []).append(block)
    return [
        _matrix(group[i : i + BUDGETS_PER_MATRIX])
        for group in groups.values()
        for i in range(0, len(group), BUDGETS_PER_MATRIX)
    ]


def _matrix(group: Sequence[Block]) -> Table:
    """Methods × budgets: avg and cons at every budget, and the AUROC at the last one."""
    columns = ["method", "type"]
    for block in group:
        budget = f"{block.cell.keep}|{block.cell.n_paths}"
        columns += [f"avg@\n{budget}", f"cons@\n{budget}"]
    columns += ["AUROC\nwithin", "saved\n%"]
    table = _empty_table(_title(group[0].cell, keep=False), columns, _name_width(group))
    positions = [_numbered(block) for block in group]
    identities = dict.fromkeys(key for numbered in positions for key in numbered)
    for identity in sorted(identities, key=lambda key: key[0] == ORACLE):  # stays last
        row, texts = None, []
        for block, numbered in zip(group, positions, strict=True):
            if identity not in numbered:
                texts += ["", ""]
                continue
            at = numbered[identity]
            row = block.rows[at]
            texts += [
                _marked(_number(100 * row.line.avg, 1), block.avg[at]),
                _marked(_number(100 * row.line.cons, 1), block.cons[at]),
            ]
        assert row is not None
        line = row.line
        auroc = _with_interval(line.auroc_within, line.auroc_lo, line.auroc_hi, 1, 2)
        saved = _number(line.token_reduction_pct, 1)
        table.add_row(_name(row.cell, None), _type(row.cell), *texts, auroc, saved)
    return table


def _numbered(block: Block) -> dict[tuple[str, int], int]:
    """Positions of a block's rows by (method, how many-th row of that method): a method that was
    run with two settings has two rows."""
    seen: Counter[str] = Counter()
    positions = {}
    for i, row in enumerate(block.rows):
        positions[row.cell.method, seen[row.cell.method]] = i
        seen[row.cell.method] += 1
    return positions


def markdown(rows: Sequence[Row]) -> str:
    """The blocks as Markdown, with differences to the best method and corrected p-values."""
    header = (
        "| method | type | avg % | 95% | Δ best | p | cons % | 95% | Δ best | p "
        "| generator tokens | verifier tokens | saved % | AUROC within | 95% | headroom % "
        "| calls | money | score s |"
    )
    parts = ["# Summary"]
    for block in blocks(rows):
        parts += ["", f"## {_title(block.cell, keep=True)}", "", header]
        parts.append("|---|---|" + "--:|" * 17)
        for row, avg, cons in zip(block.rows, block.avg, block.cons, strict=True):
            line = row.line
            values = [
                _escape(_LABELS.get(row.cell.method, row.cell.method)),
                _type(row.cell),
                *_markdown_measure(line.avg, line.avg_lo, line.avg_hi, avg),
                *_markdown_measure(line.cons, line.cons_lo, line.cons_hi, cons),
                _number(line.generator_tokens, 0),
                _number(line.verifier_tokens, 0),
                _number(line.token_reduction_pct, 1),
                _number(line.auroc_within, 3),
                _range(line.auroc_lo, line.auroc_hi, 1, 3),
                _number(100 * line.headroom, 1),
                _number(line.calls, 0),
                _number(line.money, 4),
                _number(line.score_seconds, 3),
            ]
            parts.append("| " + " | ".join(values) + " |")
    units = ". Tokens, calls, money and seconds per problem."
    parts += ["", LEGEND.replace("bold", "**bold**") + units]
    parts += [f"\n- {_escape(note)}" for note in _notes(rows)]
    return "\n".join(parts) + "\n"


def _markdown_measure(
    value: float, lo: float, hi: float, comparison: Comparison
) -> tuple[str, str, str, str]:
    text = _number(100 * value, 1)
    if comparison.best:
        text = f"**{text}**"
    elif comparison.tied:
        text += " ="
    d = comparison.difference
    delta = f"{100 * d.mean:+.1f} {_range(d.lo, d.hi, 100, 1)}" if d else ""
    p = comparison.p_holm
    return text, _range(lo, hi, 100, 1), delta, f"{p:.3g}" if p == p else ""


def _empty_table(title: str, columns: Sequence[str], name_width: int) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    # Laid out to fit the nine columns of `_full_table` into 80 characters.
    table = Table(
        title=escape(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )
    for i, column in enumerate(columns):
        width = min(name_width, 24) if i == 0 else None
        justify = "left" if i < 2 else "right"
        table.add_column(escape(column), justify=justify, no_wrap=i > 0, min_width=width)
    return table


def _name_width(found: Sequence[Block]) -> int:
    return max(
        len(_LABELS.get(row.cell.method, row.cell.method)) for block in found for row in block.rows
    )


def _title(cell: Cell, *, keep: bool) -> str:
    budget = f"keep {cell.keep} of {cell.n_paths}, " if keep else ""
    extra = "" if cell.seed == 0 else f", seed {cell.seed}"
    extra += "" if cell.aggregator == "majority" else f", {cell.aggregator}"
    extra += f", {cell.setting}" if cell.setting else ""
    where = f"{cell.model} on {cell.dataset} ({cell.mode})"
    return f"{where}: {budget}checkpoint {cell.prefix_length} tokens{extra}"


def _name(cell: Cell, comparison: Comparison | None) -> Any:
    from rich.text import Text

    style = "bold" if comparison and comparison.best else ""
    style = "dim" if cell.type is SignalType.CONTROL else style
    return Text(_LABELS.get(cell.method, cell.method), style=style)


def _type(cell: Cell) -> str:
    return "" if cell.type is SignalType.CONTROL else str(cell.type)


def _marked(text: str, comparison: Comparison) -> Any:
    """The number with room for its mark, so that columns stay aligned."""
    from rich.text import Text

    if comparison.best:
        return Text(text + " ", style="bold")
    return Text(text + ("=" if comparison.tied else " "))


def _tokens(line: CellResult) -> str:
    if line.generator_tokens != line.generator_tokens:
        return "–"
    return f"{_short(line.generator_tokens)}+{_short(line.verifier_tokens)}"


def _short(n: float) -> str:
    if n != n:
        return "?"
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.0f}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value == value else "–"


def _with_interval(value: float, lo: float, hi: float, scale: float, digits: int) -> str:
    text = _number(scale * value, digits)
    return text if lo != lo else f"{text}±{scale * (hi - lo) / 2:.{digits}f}"


def _range(lo: float, hi: float, scale: float, digits: int) -> str:
    return f"[{scale * lo:.{digits}f}, {scale * hi:.{digits}f}]" if lo == lo else ""


def _notes(rows: Sequence[Row]) -> list[str]:
    """Why numbers are missing, one line per reason."""
    affected: dict[str, list[Cell]] = {}
    for row in rows:
        if row.cell.method != NONE and row.line.reason:
            text = row.line.reason
            if row.line.status != Status.OK:
                text = f"{row.line.status}: {text}"
            affected.setdefault(f"{row.cell.method} {text}", []).append(row.cell)
    return [
        note if len(cells) == 1 else f"{note} ({len(cells)} cells)"
        for note, cells in affected.items()
    ]


def _escape(text: str) -> str:
    """Keep Markdown from reading a name or a reason as markup."""
    for character in "\\`*_|<[":
        text = text.replace(character, "\\" + character)
    return text

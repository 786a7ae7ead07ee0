"""Accuracy against what it cost: by budget, by retention, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunebench.cells import NONE, ORACLE, RANDOM, CellResult
from prunebench.report import style
from prunebench.report.blocks import is_method
from prunebench.report.figures.common import (
    REFERENCE_NAMES,
    Group,
    NotDrawn,
    curve,
    fit,
    note_of,
    some,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {"avg": "kept paths right (avg), %", "cons": "vote right (cons), %"}


@style.styled
def accuracy_vs_tokens(group: Group, width: str = "auto") -> Figure:
    """avg and cons against total tokens at the largest N: one column per checkpoint, a line joins
    the budgets of a method. No pruning is a horizontal line with its interval as a band, and its
    tokens stand in the title."""
    there = group.values("prefix_length")
    n_paths = group.values("n_paths")[-1]
    side_by_side = len(there) == 1 and width != "one"
    checkpoints = some(there, style.across(len(there), width))
    shape = (1, 2) if side_by_side else (2, len(checkpoints))
    share: dict[str, Any] = {} if side_by_side else {"sharex": "col", "sharey": "row"}
    figure, axes = style.panels(*shape, width=width, **share)
    shown = {
        of: [line for at in checkpoints for line in _at(group, of, at, n_paths)]
        for of in (*group.names, RANDOM, ORACLE, NONE)
    }
    everything = [line for lines in shown.values() for line in lines]
    for i, column in enumerate(("avg", "cons")):
        row = [axes[0][i]] if side_by_side else axes[i]
        for axis, at in zip(row, checkpoints, strict=True):
            _tokens_panel(axis, group, at, n_paths, column)
        row[0].set_ylabel(LABELS[column])
        fit(row, everything, column)
    for axis, at in zip(axes[0], checkpoints * (2 if side_by_side else 1), strict=True):
        full = [line.total_tokens for line in _at(group, NONE, at, n_paths)]
        tokens = f"\nno pruning: {style.thousands(float(f'{full[0]:.3g}'))} tokens" if full else ""
        axis.set_title(f"checkpoint {at}{tokens}")
    for axis in axes[-1]:
        axis.set_xlabel("tokens per problem")
    style.legend(figure, style.entries([axis for row in axes for axis in row]))
    note = note_of(group, checkpoints, there, "checkpoints")
    style.heading(figure, f"{group.heading}, N = {n_paths}", note)
    return figure


@style.styled
def accuracy_vs_budget(group: Group, width: str = "auto") -> Figure:
    """cons@N against total tokens at a fixed share of kept paths, N varied (arXiv 2604.16029,
    Figure 4): one panel per checkpoint, at the share that most values of N have."""
    ratios: dict[float, set[int]] = {}
    for row in group.rows:
        if is_method(row) and row.cell.keep:
            ratios.setdefault(row.cell.keep / row.cell.n_paths, set()).add(row.cell.n_paths)
    ratio = max(ratios, key=lambda r: (len(ratios[r]), r), default=None)
    if ratio is None or len(ratios[ratio]) < 2:
        raise NotDrawn("needs two values of n_paths at the same retention")
    there = group.values("prefix_length")
    checkpoints = some(there, style.across(len(there), width))
    figure, axes = style.panels(1, len(checkpoints), width=width, height=2.0, sharey=True)
    drawn: list[CellResult] = []
    for axis, at in zip(axes[0], checkpoints, strict=True):
        for of in (*group.names, RANDOM, NONE):
            lines = [
                line
                for line in group.lines(of, prefix_length=at)
                if of == NONE or (line.keep and abs(line.keep / line.n_paths - ratio) < 1e-9)
            ]
            if len({line.n_paths for line in lines}) > 1:
                _line(axis, group, of, lines, "cons")
                drawn += lines
        style.token_axis(axis, [line.total_tokens for line in drawn])
        axis.set_title(f"checkpoint {at}")
        axis.set_xlabel("tokens per problem")
    axes[0][0].set_ylabel(LABELS["cons"])
    sizes = sorted(ratios[ratio])
    style.legend(figure, style.entries(axes[0]))
    note = note_of(group, checkpoints, there, "checkpoints")
    words = f"keep {_share(ratio)}, N = {', '.join(map(str, sizes))}"
    style.heading(figure, f"{group.heading}: {words}", note)
    return figure


@style.styled
def retention_surfaces(group: Group, width: str = "auto") -> Figure:
    """cons against total tokens for every share of kept paths, one column per checkpoint
    (arXiv 2604.16029, Figures 5 and 9). With several N a line joins the N of one share and every
    method has a row of panels; with one N a line joins the shares of a method."""
    if sum(keep > 0 for keep in group.values("keep")) < 2 or not group.names:
        raise NotDrawn("needs a method with two retentions")
    there = group.values("prefix_length")
    if len(group.values("n_paths")) > 1:
        return _surfaces_over_n(group, there, width)
    if len(there) < 2:
        raise NotDrawn("needs two checkpoints or two values of n_paths")
    checkpoints = some(there, style.across(len(there), width))
    n_paths = group.values("n_paths")[0]
    figure, axes = style.panels(1, len(checkpoints), width=width, height=2.0, sharey=True)
    drawn: list[CellResult] = []
    for axis, at in zip(axes[0], checkpoints, strict=True):
        for of in (*group.names, RANDOM):
            lines = [line for line in _at(group, of, at, n_paths) if line.keep]
            _line(axis, group, of, lines, "cons")
            drawn += lines
        budgets = {line.keep: line.total_tokens for line in drawn if line.prefix_length == at}
        style.token_axis(axis, list(budgets.values()))
        top = axis.secondary_xaxis("top")
        top.set_xticks(list(budgets.values()), [_share(k / n_paths) for k in budgets])
        top.tick_params(length=2, labelsize=6.5, pad=1)
        axis.set_title(f"checkpoint {at}")
        axis.set_xlabel("tokens per problem")
    fit(axes[0], drawn, "cons")
    axes[0][0].set_ylabel(LABELS["cons"])
    style.legend(figure, style.entries(axes[0]))
    note = note_of(group, checkpoints, there, "checkpoints")
    style.heading(figure, f"{group.heading}: share kept of {n_paths}", note)
    return figure


def _surfaces_over_n(group: Group, there: Sequence[int], width: str) -> Figure:
    checkpoints = some(there, style.across(len(there), width))
    best = {of: max((line.cons for line in group.lines(of)), default=-1.0) for of in group.names}
    methods = [of for of in group.names if of in sorted(best, key=lambda m: -best[m])[:4]]
    ratios = sorted(
        {r.cell.keep / r.cell.n_paths for r in group.rows if is_method(r) and r.cell.keep},
        reverse=True,
    )
    looks = dict(zip(ratios, map(style.look, range(len(ratios))), strict=True))
    figure, axes = style.panels(
        len(methods), len(checkpoints), width=width, sharex=True, sharey=True
    )
    drawn: list[CellResult] = []
    for row, of in zip(axes, methods, strict=True):
        for axis, at in zip(row, checkpoints, strict=True):
            for ratio in ratios:
                lines = group.lines(of, prefix_length=at)
                lines = [n for n in lines if abs(n.keep / n.n_paths - ratio) < 1e-9]
                if not lines:
                    continue
                x = [line.total_tokens for line in lines]
                curve(axis, lines, "cons", x=x, label=f"keep {_share(ratio)}", **looks[ratio].line)
                drawn += lines
            if row is axes[0]:
                axis.set_title(f"checkpoint {at}")
        row[0].set_ylabel(f"{of}\n{LABELS['cons']}" if len(methods) > 1 else LABELS["cons"])
    for axis in axes[-1]:
        axis.set_xlabel("tokens per problem")
        style.token_axis(axis, [line.total_tokens for line in drawn])
    style.legend(figure, style.entries([axis for row in axes for axis in row]))
    left_out = f"{len(methods)} of {len(group.names)} methods: the highest cons"
    note = note_of(group, checkpoints, there, "checkpoints")
    note = "; ".join([note] * bool(note) + [left_out] * (len(methods) < len(group.names)))
    words = f": {methods[0]}" if len(methods) == 1 else ""
    style.heading(figure, group.heading + words, note)
    return figure


@style.styled
def pareto(group: Group, width: str = "auto") -> Figure:
    """cons of every row against its total cost, and the front of rows that no cheaper one reaches:
    in tokens, and in seconds where a run measured them."""
    rows = [row for row in group.rows if row.cell.method not in (ORACLE,)]
    if sum(is_method(row) for row in rows) < 3:
        raise NotDrawn("needs three rows of methods")
    timed = [row.line for row in rows if row.line.wall_seconds == row.line.wall_seconds]
    costs = {"total_tokens": "tokens per problem (generator and verifier)"}
    costs |= {"wall_seconds": "seconds per problem"} if timed else {}
    figure, axes = style.panels(1, len(costs), width=width, height=2.3, sharey=True)
    for axis, (cost, words) in zip(axes[0], costs.items(), strict=True):
        for of in (*group.names, RANDOM, NONE):
            lines = [line for line in group.lines(of) if getattr(line, cost) == getattr(line, cost)]
            look = group.looks[of].line | {"linestyle": "none", "alpha": 0.9}
            look |= {"marker": "D", "color": "black"} if of == NONE else {}
            axis.plot(
                [getattr(line, cost) for line in lines],
                [100 * line.cons for line in lines],
                label=REFERENCE_NAMES.get(of, of),
                **look,
            )
        lines = [row.line for row in rows]
        front = _front([(getattr(line, cost), 100 * line.cons) for line in lines])
        x, y = ([*ends] for ends in zip(*front, strict=True))
        dearest = max(cost_of for cost_of in (getattr(line, cost) for line in lines)
                      if cost_of == cost_of)  # fmt: skip
        axis.step(
            [*x, dearest],
            [*y, y[-1]],
            where="post",
            color="black",
            linewidth=0.9,
            linestyle=(0, (4, 2)),
            zorder=1,
            label="Pareto front",
        )
        if cost == "total_tokens":
            style.token_axis(axis, [line.total_tokens for line in lines])
        axis.set_xlabel(words)
    axes[0][0].set_ylabel(LABELS["cons"])
    style.legend(figure, style.entries(axes[0]))
    style.heading(figure, group.heading, group.note)
    return figure


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that nothing cheaper (or equally dear) reaches, by cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda p: (p[0], -p[1])):
        if cost == cost and value == value and (not front or value > front[-1][1]):
            front.append((cost, value))
    return front


def _at(group: Group, of: str, prefix_length: int, n_paths: int) -> list[CellResult]:
    return group.lines(of, prefix_length=prefix_length, n_paths=n_paths)


def _tokens_panel(axis: Axes, group: Group, at: int, n_paths: int, column: str) -> None:
    own = {of: _at(group, of, at, n_paths) for of in (*group.names, RANDOM, ORACLE)}
    tokens = [line.total_tokens for lines in own.values() for line in lines]
    # Methods that keep equally many paths cost nearly the same: set them apart by a hair.
    step = 0.01 * (max(tokens, default=0.0) - min(tokens, default=0.0))
    for i, of in enumerate(group.names):
        _line(axis, group, of, own[of], column, shift=step * (i - (len(group.names) - 1) / 2))
    for of in (RANDOM, ORACLE):
        _line(axis, group, of, own[of], column)
    for line in _at(group, NONE, at, n_paths)[:1]:
        value, lo, hi = (100 * getattr(line, column + end) for end in ("", "_lo", "_hi"))
        axis.axhline(value, color="black", linewidth=0.9, zorder=1, label="no pruning")
        if lo == lo:
            axis.axhspan(lo, hi, color="black", alpha=0.07, linewidth=0, zorder=0)
    style.token_axis(axis, tokens)


def _line(
    axis: Axes,
    group: Group,
    of: str,
    lines: Sequence[CellResult],
    column: str,
    shift: float = 0.0,
) -> None:
    look = group.looks[of].line
    look |= {"zorder": 1.5} if of in REFERENCE_NAMES else {}
    x = [line.total_tokens + shift for line in lines]
    curve(axis, lines, column, x=x, label=REFERENCE_NAMES.get(of, of), **look)


def _share(ratio: float) -> str:
    """1/8 where the share is the inverse of a whole number, else a decimal."""
    inverse = 1 / ratio
    return f"1/{inverse:.0f}" if abs(inverse - round(inverse)) < 1e-6 else f"{ratio:.2g}"

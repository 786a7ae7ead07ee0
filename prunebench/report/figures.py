"""The first figure: accuracy against the tokens it cost, methods beside the references.

Draws lines of the table and computes nothing. Every method has a colour of the Okabe-Ito palette,
safe for colour-blind readers, and a marker of its own, so that a grey print can be read too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.cells import NONE, ORACLE, RANDOM, CellResult
from prunebench.report.records import Row, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito, "Color Universal Design" (2008), without black and yellow: black is for the
# references, yellow is too light for lines on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
_MEASURES = (("avg", "kept paths right (avg), %"), ("cons", "vote right (cons), %"))
_MAX_PANELS = 5


def write_figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw accuracy against tokens, one figure per model, dataset and mode, as PNG and PDF.

    Returns
    -------
    paths : the files written; none when no row has numbers.
    """
    groups: dict[tuple[str, str, str], list[CellResult]] = {}
    for row in rows:
        line = row.line
        if line.avg == line.avg:
            groups.setdefault((line.model, line.dataset, line.mode), []).append(line)
    written = []
    for names, lines in groups.items():
        suffix = "" if len(groups) == 1 else "_" + re.sub(r"[^\w.-]+", "-", "_".join(names))
        written += _save(accuracy_against_tokens(lines), folder, f"accuracy_vs_tokens{suffix}")
    return written


def accuracy_against_tokens(lines: Sequence[CellResult]) -> Figure:
    """One column per (checkpoint, N), one row per measure; a line joins the budgets of a method.

    The references are black or grey. Axes follow the methods: no pruning is a horizontal line with
    its interval as a band and its tokens in the title, and an oracle above the axis is named in
    the corner, instead of flattening everything else.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = sorted({(line.prefix_length, line.n_paths) for line in lines})[:_MAX_PANELS]
    methods = list(
        dict.fromkeys(line.method for line in lines if line.method not in (NONE, RANDOM, ORACLE))
    )
    # Built without pyplot: no global state, no window system.
    figure = Figure(figsize=(1.5 + 2.9 * len(columns) + 1.2, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(columns), squeeze=False, sharex="col", sharey="row")
    for row, (measure, label) in enumerate(_MEASURES):
        for axis, column in zip(axes[row], columns, strict=True):
            own = [line for line in lines if (line.prefix_length, line.n_paths) == column]
            _panel(axis, own, measure, methods)
        axes[row][0].set_ylabel(label)
        shown = [
            line
            for line in lines
            if line.method != ORACLE and (line.prefix_length, line.n_paths) in columns
        ]
        _fit(axes[row], shown, [line for line in lines if line.method == ORACLE], measure)
    for axis, (prefix_length, n_paths) in zip(axes[0], columns, strict=True):
        full = [
            line.total_tokens
            for line in lines
            if line.method == NONE
            and (line.prefix_length, line.n_paths) == (prefix_length, n_paths)
        ]
        tokens = f"\nno pruning: {full[0] / 1000:.3g}k tokens" if full else ""
        axis.set_title(f"checkpoint {prefix_length}, N = {n_paths}{tokens}", fontsize=9)
    for axis in axes[1]:
        axis.set_xlabel("tokens per problem")
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.legend(
        list(handles.values()), list(handles), loc="outside right center", frameon=False, fontsize=9
    )
    first = lines[0]
    figure.suptitle(f"{first.model} on {first.dataset} ({first.mode})", fontsize=11)
    return figure


def _panel(axis: Any, lines: Sequence[CellResult], measure: str, methods: Sequence[str]) -> None:
    tokens = [line.total_tokens for line in lines if line.method != NONE]
    # Methods that keep equally many paths cost nearly the same: set them apart by a hair.
    step = 0.01 * (max(tokens, default=0.0) - min(tokens, default=0.0))
    for i, method in enumerate(methods):
        _curve(
            axis,
            [line for line in lines if line.method == method],
            measure,
            shift=step * (i - (len(methods) - 1) / 2),
            label=method,
            color=_COLOURS[i % len(_COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            linestyle=("-", "--", "-.")[i // len(_COLOURS) % 3],
        )
    for name, linestyle, marker in ((RANDOM, ":", "."), (ORACLE, "--", "*")):
        own = [line for line in lines if line.method == name]
        style = {"linestyle": linestyle, "marker": marker, "color": "#777777", "zorder": 1.5}
        _curve(axis, own, measure, label=name, **style)
    for line in (line for line in lines if line.method == NONE):
        value, lo, hi = (100 * getattr(line, measure + end) for end in ("", "_lo", "_hi"))
        axis.axhline(value, color="black", linewidth=1, zorder=1, label="no pruning")
        if lo == lo:
            axis.axhspan(lo, hi, color="black", alpha=0.07, linewidth=0, zorder=0)
    axis.grid(color="#dddddd", linewidth=0.5)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_formatter(_thousands)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _curve(
    axis: Any, lines: Sequence[CellResult], measure: str, *, shift: float = 0.0, **style: Any
) -> None:
    if not lines:
        return
    lines = sorted(lines, key=lambda line: line.total_tokens)
    y = [100 * getattr(line, measure) for line in lines]
    below = [
        _gap(100 * getattr(line, f"{measure}_lo"), v) for line, v in zip(lines, y, strict=True)
    ]
    above = [
        _gap(v, 100 * getattr(line, f"{measure}_hi")) for line, v in zip(lines, y, strict=True)
    ]
    style = {"markersize": 5, "linewidth": 1.3, "elinewidth": 0.9, "capsize": 2, **style}
    x = [line.total_tokens + shift for line in lines]
    _, caps, bars = axis.errorbar(x, y, yerr=[below, above], **style)
    for part in (*caps, *bars):
        part.set_alpha(0.45)  # intervals overlap; the means must stay readable


def _gap(lo: float, hi: float) -> float:
    """Length of an error bar, 0 without an interval."""
    return max(0.0, hi - lo) if hi == hi and lo == lo else 0.0


def _fit(
    axes: Sequence[Any], shown: Sequence[CellResult], oracle: Sequence[CellResult], measure: str
) -> None:
    """Set the vertical range of a row of panels to the rows without the oracle."""
    ends = [
        100 * value
        for line in shown
        for value in (getattr(line, measure + s) for s in ("", "_lo", "_hi"))
        if value == value
    ]
    if not ends:
        return
    span = max(ends) - min(ends)
    low, high = max(-1.0, min(ends) - 0.06 * span - 0.5), max(ends) + 0.06 * span + 0.5
    outside = [v for v in (100 * getattr(line, measure) for line in oracle) if v > high]
    axes[0].set_ylim(low, high + (0.1 * span if outside else 0.0))  # room for the note
    if outside:
        values = list(dict.fromkeys(f"{v:.0f}" for v in (min(outside), max(outside))))
        axes[0].annotate(
            f"oracle: {' to '.join(values)}, above this axis",
            (0.02, 0.98),
            xycoords="axes fraction",
            va="top",
            fontsize=8,
            color="#777777",
        )


def _thousands(value: float, _position: int) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    paths = [folder / f"{stem}.png", folder / f"{stem}.pdf"]
    for path in paths:
        # Without a date in the file the same records give the same bytes.
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=160, metadata=metadata)
    return paths

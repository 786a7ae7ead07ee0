"""How figures look: sizes, fonts, colours, markers, line styles, hatches. The one style file.

Sizes are those of a two-column paper. Methods are told apart by colour (Okabe and Ito, safe for
colour-blind readers), marker and line style at once, so that a grey print can be read too. Figures
are built without pyplot and without the user's own matplotlib settings, so that the same records
give the same bytes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prunebench.cells import NONE, ORACLE, RANDOM
from prunebench.report.records import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTHS = {"one": 3.3, "two": 6.8}
"""Inches: one column and two."""

ACROSS = {"one": 2, "two": 4}
"""Panels that stand side by side at most."""

MAX_METHODS = 12
DPI = 220
GREY = "#6b6b6b"
_LETTERS_PER_INCH = 16.5  # of a heading

# Okabe & Ito, "Color Universal Design" (2008), without black and yellow: black is for the
# references, yellow is too light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d")
_LINES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1)))
_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "oo")

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "lines.markeredgewidth": 0.8,
    "hatch.linewidth": 0.5,
    "patch.linewidth": 0.6,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "pdf.fonttype": 42,
}

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one method is drawn everywhere: lines by `line`, areas by `area`."""

    colour: str
    marker: str
    linestyle: Any
    hollow: bool = False
    hatch: str = ""

    @property
    def line(self) -> dict[str, Any]:
        face = "white" if self.hollow else self.colour
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.linestyle,
            "markerfacecolor": face,
        }

    @property
    def area(self) -> dict[str, Any]:
        return {"facecolor": self.colour, "hatch": self.hatch, "edgecolor": "white"}


_REFERENCES = {
    NONE: Look(colour="black", marker="_", linestyle="-"),
    RANDOM: Look(colour=GREY, marker=".", linestyle=":"),
    ORACLE: Look(colour=GREY, marker="*", linestyle="--"),
}


def look(i: int) -> Look:
    """The i-th look; the first twelve differ in marker and in (colour, line style)."""
    n = len(COLOURS)
    return Look(
        colour=COLOURS[i % n],
        marker=_MARKERS[i % len(_MARKERS)],
        linestyle=_LINES[i // n % len(_LINES)],
        hollow=i // n % 2 == 1,
        hatch=_HATCHES[(i + i // n) % len(_HATCHES)],
    )


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for every name, and those of the references."""
    return {name: look(i) for i, name in enumerate(names)} | _REFERENCES


@contextmanager
def applied() -> Iterator[None]:
    """matplotlib's own defaults with this style, whatever the user has set."""
    import matplotlib

    keep_out = ("backend", "backend_fallback", "interactive", "toolbar", "timezone")
    settings: Any = {k: v for k, v in matplotlib.rcParamsDefault.items() if k not in keep_out}
    settings |= _RC
    with matplotlib.rc_context(settings):
        yield


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """The function draws in this style."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with applied():
            return draw(*args, **kwargs)

    return wrapper


def panels(
    n_rows: int, n_across: int, *, width: str, height: float = 1.75, **options: Any
) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure of `n_rows` × `n_across` panels.

    Parameters
    ----------
    width : "one" or "two" columns, or "auto": as many as the panels need.
    height : of one row of panels, inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    inches = WIDTHS[width if width in WIDTHS else ("one" if n_across == 1 else "two")]
    figure = Figure(figsize=(inches, 0.35 + height * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, n_across, squeeze=False, **options)
    return figure, [list(row) for row in axes]


def across(n: int, width: str) -> int:
    """How many of n panels stand side by side."""
    return max(1, min(n, ACROSS["one" if width == "one" else "two"]))


def legend(figure: Figure, handles: dict[str, Any]) -> None:
    """One legend for all panels, below them: the figure grows by its height."""
    if not handles:
        return
    inches = figure.get_figwidth()
    longest = max(len(name) for name in handles)
    columns = max(1, min(len(handles), int(inches / (0.48 + 0.064 * longest))))
    figure.set_figheight(figure.get_figheight() + 0.14 * math.ceil(len(handles) / columns) + 0.06)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        borderaxespad=0.2,
        handlelength=2.6,
        columnspacing=1.2,
        labelspacing=0.25,
    )


def heading(figure: Figure, text: str, note: str = "") -> None:
    """What the figure is about, and below it what is left out; the figure grows by its lines."""
    room = int(figure.get_figwidth() * _LETTERS_PER_INCH)
    lines = [line for part in (text, note) if part for line in textwrap.wrap(part, room)]
    figure.suptitle("\n".join(lines))
    figure.set_figheight(figure.get_figheight() + 0.13 * (len(lines) - 1))


def entries(axes: Sequence[Axes]) -> dict[str, Any]:
    """Legend entries of the panels, each name once."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    return handles


def thousands(value: float, _position: int = 0) -> str:
    """A tick: 12k, 1.5M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def token_axis(axis: Axes, values: Sequence[float]) -> None:
    """Name tokens in thousands; logarithmic where they span more than a factor of eight."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    known = [v for v in values if v > 0]
    if known and max(known) > 8 * min(known):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(nbins=_ticks(axis)))
    axis.xaxis.set_major_formatter(FuncFormatter(thousands))


def _ticks(axis: Axes) -> int:
    """How many ticks with four letters each fit below the panel."""
    figure, place = axis.get_figure(root=True), axis.get_subplotspec()
    n_columns = place.get_gridspec().ncols if place else 1
    inches = (figure.get_figwidth() if figure else WIDTHS["one"]) / n_columns
    return min(6, max(3, int(1.8 * inches)))


def save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write `stem.png` and `stem.pdf`, without dates and program versions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    png, pdf = folder / f"{stem}.png", folder / f"{stem}.pdf"
    with applied():
        # Laid out once, for both: savefig would draw five times.
        figure.set_dpi(DPI)
        engine = figure.get_layout_engine()
        if engine is not None:
            engine.execute(figure)
            figure.set_layout_engine("none")
        with replacing(png) as temporary:
            FigureCanvasAgg(figure).print_png(temporary, metadata={"Software": None})
        with replacing(pdf) as temporary:
            unset = dict.fromkeys(("CreationDate", "Creator", "Producer"))
            FigureCanvasPdf(figure).print_pdf(temporary, metadata=unset)
    return [png, pdf]

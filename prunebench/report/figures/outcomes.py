"""What pruning did: right paths killed, votes lost and won; and published numbers beside ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench.cells import ORACLE, RANDOM
from prunebench.report import published, style
from prunebench.report.blocks import kept
from prunebench.report.blocks import name as name_of
from prunebench.report.figures.common import REFERENCE_NAMES, Group, NotDrawn, gap, strongest
from prunebench.report.numbers import measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = (
    ("killed_pct", 1.0, "right paths killed, %"),
    ("lost_votes", 100.0, "votes lost, %"),
    ("won_votes", 100.0, "votes won, %"),
)


@style.styled
def killed_and_flipped(group: Group, width: str = "auto") -> Figure:
    """Bars with intervals: the share of right paths that were dropped, votes that only no pruning
    gets right (lost) and that only pruning gets right (won), at the largest N, its smallest k and
    its longest checkpoint."""
    at = strongest(group)
    if at is None:
        raise NotDrawn("no method has a row")
    found = {of: group.at(of, at) for of in (*group.names, RANDOM, ORACLE)}
    shown = {of: line for of, line in found.items() if line is not None}
    if not any(line.killed_pct == line.killed_pct for line in shown.values()):
        raise NotDrawn("no row says how many right paths were dropped")
    names, lines = list(shown), list(shown.values())
    n_across = 1 if width == "one" else 3
    figure, axes = style.panels(
        3 // n_across,
        n_across,
        width="one" if width == "one" else "two",
        height=0.32 + 0.15 * len(names),
        sharey=True,
    )
    places = list(range(len(names)))[::-1]
    for axis, (column, scale, words) in zip(
        [axis for row in axes for axis in row], _PANELS, strict=True
    ):
        for of, line, place in zip(names, lines, places, strict=True):
            value, lo, hi = (scale * v for v in measure(line, column))
            if value != value:
                axis.annotate("not known", (0, place), fontsize=6, va="center", color=style.GREY)
                continue
            axis.barh(place, value, height=0.72, **group.looks[of].area)
            axis.errorbar(
                value,
                place,
                xerr=[[gap(lo, value)], [gap(value, hi)]],
                color="black",
                elinewidth=0.8,
                capsize=1.5,
            )
        axis.set_xlabel(words)
        axis.set_xlim(left=0)
        axis.grid(axis="y", visible=False)
    labels = [REFERENCE_NAMES.get(of, of) for of in names]
    for row in axes:
        row[0].set_yticks(places, labels)
    budget_words = f"{kept(at)}, checkpoint {at.prefix_length}"
    style.heading(figure, f"{group.heading}: {budget_words}", group.note)
    return figure


@style.styled
def published_and_ours(group: Group, width: str = "auto") -> Figure:
    """avg against total tokens: published (hollow, without intervals) and ours (filled), rows of
    one signal in one colour and joined by a thin line."""
    known = published.main_facts(group.cell.model, group.cell.dataset)
    if known.empty:
        raise NotDrawn("this model and dataset do not stand in the published tables")
    figure, axes = style.panels(1, 1, width=width, height=2.6)
    axis = axes[0][0]
    tokens: list[float] = []
    handles: dict[str, Any] = {}
    for i, fact in enumerate(known.to_dict("records")):
        look = style.look(i)
        marker: dict[str, Any] = {"marker": look.marker, "color": look.colour, "linestyle": "none"}
        x, y = float(fact["total_tokens"]), float(fact["avg_pct"])
        tokens.append(x)
        own = [
            row
            for row in group.rows
            if published.published_method(row.cell) == fact["method"]
            and published.same_budget(row.cell, fact)
        ]
        (point,) = axis.plot([x], [y], markerfacecolor="white", zorder=3, **marker)
        names = [name_of(row.cell) for row in own if name_of(row.cell) != fact["method"]]
        handles["; ".join([fact["method"], *names])] = point
        for row in own:
            value, lo, hi = (100 * v for v in measure(row.line, "avg"))
            ends = [[gap(lo, value)], [gap(value, hi)]]
            own_x = row.line.total_tokens
            axis.errorbar(own_x, value, yerr=ends, elinewidth=0.7, capsize=1.5, **marker)
            axis.plot([x, own_x], [y, value], color=look.colour, linewidth=0.5, linestyle=":")
            tokens.append(own_x)
    style.token_axis(axis, tokens)
    axis.set_xlabel("tokens per problem")
    axis.set_ylabel("kept paths right (avg), %")
    style.legend(figure, handles)
    note = f"hollow: {published.SOURCE}; filled: ours, same N, k, L"
    style.heading(figure, group.heading, note)
    return figure

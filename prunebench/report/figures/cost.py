"""What checking costs: seconds by phase where a run measured them, tokens that only judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench.cells import NONE, RANDOM, CellResult
from prunebench.report import style
from prunebench.report.blocks import kept
from prunebench.report.figures.common import REFERENCE_NAMES, Group, NotDrawn, strongest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PHASES = (
    ("launch_seconds", "launch", "#56B4E9", ""),
    ("check_seconds", "check", "#D55E00", "////"),
    ("resume_seconds", "resume", "#009E73", "...."),
)
_KINDS = (
    ("verifier_tokens", "verifier", "#D55E00", "////"),
    ("probe_tokens", "probes", "#E69F00", "...."),
)


@style.styled
def overhead(group: Group, width: str = "auto") -> Figure:
    """Stacked bars per method at the largest N, smallest k and longest checkpoint: seconds of
    launch, check and resume (online), with no pruning and random pruning, the same work without
    a check, where they were measured, or the tokens read or sampled only to judge as a share of
    all; the share of the check, or of those tokens, stands at the end of each bar."""
    at = strongest(group)
    if at is None:
        raise NotDrawn("no method has a row")
    found = {of: group.at(of, at) for of in group.names}
    lines = {of: line for of, line in found.items() if line is not None}
    timed = {of: n for of, n in lines.items() if n.wall_seconds == n.wall_seconds}
    if timed:
        parts, words = _PHASES, "seconds per problem"
        controls = {of: group.at(of, at) for of in (RANDOM,)}
        controls = {NONE: next(iter(group.lines(NONE, n_paths=at.n_paths)), None), **controls}
        shown = {
            REFERENCE_NAMES[of]: n
            for of, n in controls.items()
            if n is not None and n.wall_seconds == n.wall_seconds
        } | timed
    else:
        parts, words = _KINDS, "share of all tokens, %"
        shown = {of: n for of, n in lines.items() if n.total_tokens == n.total_tokens}
        if len(shown) < 2:
            raise NotDrawn("needs two methods, or a run that measured seconds")
        if not any(n.verifier_tokens > 0 or n.probe_tokens > 0 for n in shown.values()):
            raise NotDrawn("no method spends tokens to judge, and no run measured seconds")
    figure, axes = style.panels(1, 1, width=width, height=0.45 + 0.16 * len(shown))
    axis = axes[0][0]
    places = list(range(len(shown)))[::-1]
    handles: dict[str, Any] = {}
    longest = 0.0
    for place, line in zip(places, shown.values(), strict=True):
        left = 0.0
        for column, label, colour, hatch in parts:
            value = getattr(line, column)
            value = value if value == value else 0.0  # the phase did not happen: no bar
            value = value if timed else 100 * value / line.total_tokens
            look: dict[str, Any] = {"facecolor": colour, "hatch": hatch, "edgecolor": "white"}
            bar = axis.barh(place, value, left=left, height=0.72, **look)
            if value > 0:
                handles.setdefault(label, bar)
            left += value
        end = _ends(line) if timed else None
        if end:
            axis.errorbar(
                line.wall_seconds, place, xerr=end, color="black", elinewidth=0.8, capsize=1.5
            )
            left = max(left, line.wall_seconds + end[1][0])
        share = 100 * line.check_seconds / line.wall_seconds if timed else left
        text = f" {share:.2g}%" if share == share else ""
        axis.annotate(text, (left, place), va="center", fontsize=6.5)
        longest = max(longest, left)
    axis.set_xlim(0, 1.18 * longest)
    axis.set_yticks(places, list(shown))
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(words)
    style.legend(figure, handles)
    words = "% is the check's share" if timed else "tokens that only judge"
    budget_words = f"{kept(at)}, checkpoint {at.prefix_length}: {words}"
    style.heading(figure, group.heading, "; ".join(p for p in (budget_words, group.note) if p))
    return figure


def _ends(line: CellResult) -> list[list[float]] | None:
    value, lo, hi = line.wall_seconds, line.wall_seconds_lo, line.wall_seconds_hi
    return None if lo != lo else [[max(0.0, value - lo)], [max(0.0, hi - value)]]

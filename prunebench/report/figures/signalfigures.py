"""What signals know: AUROC by checkpoint, calibration and risk, scores of right and wrong."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench import calibration as measures
from prunebench.report import style
from prunebench.report.blocks import is_schedule
from prunebench.report.figures.common import Group, NotDrawn, Scores, curve, some

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 10
_SPREAD = 3.0
_FEW = 9  # a risk of fewer paths than ten is noise, and is not drawn


@style.styled
def auroc_vs_prefix(group: Group, width: str = "auto") -> Figure:
    """Within-problem AUROC of every method against the checkpoint, with intervals, at the largest
    N; the dashed line is chance. Schedules, which have several checkpoints, are left out."""
    n_paths = group.values("n_paths")[-1]
    found = {
        of: {
            n.prefix_length: n for n in group.lines(of, n_paths=n_paths) if not is_schedule(n.rule)
        }
        for of in group.names
    }
    checkpoints = sorted({at for by_checkpoint in found.values() for at in by_checkpoint})
    if len(checkpoints) < 2:
        raise NotDrawn("needs a method with two checkpoints")
    figure, axes = style.panels(1, 1, width=width, height=2.2)
    axis = axes[0][0]
    step = 0.012 * (checkpoints[-1] - checkpoints[0])
    for i, (of, by_checkpoint) in enumerate(found.items()):
        lines = [by_checkpoint[at] for at in sorted(by_checkpoint)]
        shift = step * (i - (len(group.names) - 1) / 2)
        x = [line.prefix_length + shift for line in lines]
        curve(axis, lines, "auroc_within", x=x, scale=1.0, label=of, **group.looks[of].line)
    if not axis.containers:
        raise NotDrawn("no problem has both right and wrong paths")
    axis.axhline(0.5, color=style.GREY, linestyle="--", linewidth=0.8, zorder=1)
    axis.set_xticks(some(checkpoints, 8), [str(at) for at in some(checkpoints, 8)])
    axis.set_xlabel("checkpoint, tokens")
    axis.set_ylabel("AUROC within problems")
    style.legend(figure, style.entries([axis]))
    style.heading(figure, group.heading, group.note)
    return figure


@style.styled
def score_distributions(group: Group, width: str = "auto") -> Figure:
    """Scores of right and wrong paths at the longest checkpoint, one panel per method,
    standardised within each problem: what pruning, which compares paths of one problem, sees."""
    at = _checkpoint(group)
    known = {
        method: standardised
        for method, by_checkpoint in group.scores.items()
        if at in by_checkpoint and (standardised := _standardised(by_checkpoint[at])) is not None
    }
    if not known:
        raise NotDrawn("no method has scores of right and of wrong paths in one problem")
    n_across = style.across(len(known), width)
    n_rows = -(-len(known) // n_across)
    figure, axes = style.panels(
        n_rows, n_across, width=width, height=1.05 if n_rows > 1 else 1.4, sharex=True
    )
    flat = [axis for row in axes for axis in row]
    edges = np.linspace(-_SPREAD, _SPREAD, 25)
    looks: dict[str, dict[str, Any]] = {
        "right": {"color": "#0072B2", "linestyle": "-", "alpha": 0.35, "hatch": ""},
        "wrong": {"color": "#D55E00", "linestyle": "--", "alpha": 0.25, "hatch": "/////"},
    }
    handles: dict[str, Any] = {}
    for axis, (method, (z, right)) in zip(flat, known.items(), strict=False):
        for label, chosen in (("right", right), ("wrong", ~right)):
            look = looks[label]
            heights, _ = np.histogram(np.clip(z[chosen], *edges[[0, -1]]), edges, density=True)
            fill = {k: look[k] for k in ("alpha", "hatch")}
            area = axis.stairs(
                heights, edges, fill=True, facecolor=look["color"], edgecolor=look["color"],
                linewidth=0, **fill,
            )  # fmt: skip
            axis.stairs(
                heights, edges, color=look["color"], linewidth=1.0, linestyle=look["linestyle"]
            )
            handles.setdefault(f"{label} paths", area)
        axis.set_title(method)
        axis.set_yticks([])
        axis.grid(visible=False)
        axis.spines["left"].set_visible(False)
        axis.set_xlim(-_SPREAD, _SPREAD)
    for axis in flat[len(known) :]:
        axis.set_visible(False)
    for i, axis in enumerate(flat[: len(known)]):
        if i + n_across >= len(known):
            axis.set_xlabel("standardised score")
            axis.tick_params(labelbottom=True)
    style.legend(figure, handles)
    note = "; ".join(p for p in (f"checkpoint {at}, standardised within problem", group.note) if p)
    style.heading(figure, group.heading, note)
    return figure


@style.styled
def calibration(group: Group, width: str = "auto") -> Figure:
    """At the longest checkpoint: the reliability diagram of signals that claim to be
    probabilities, with 95% intervals, and risk against coverage of every signal (the share of
    wrong paths among those with the highest scores of all problems)."""
    at = _checkpoint(group)
    signals = {m: by_at[at] for m, by_at in group.scores.items() if at in by_at}
    claims = {
        method: found
        for method, found in signals.items()
        if found.probability and found.score.min() >= 0 and found.score.max() <= 1
    }
    if len(signals) < 2 and not claims:
        raise NotDrawn("needs a signal that claims to be a probability, or two signals")
    n_panels = 2 if claims else 1
    stacked = width == "one"
    shape = (n_panels, 1) if stacked else (1, n_panels)
    figure, axes = style.panels(*shape, width=width, height=2.3)
    flat = [axis for row in axes for axis in row]
    if claims:
        axis = flat[0]
        axis.plot([0, 1], [0, 1], color=style.GREY, linestyle="--", linewidth=0.8)
        for method, found in claims.items():
            table = measures.reliability(found.score, found.right, _BINS)
            _reliability(axis, table, method, group.looks[method].line)
        axis.set_xlabel("claimed probability of being right")
        axis.set_ylabel("share of right paths")
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.02, 1.02)
        axis.set_box_aspect(1)
    axis = flat[-1]
    for method, found in signals.items():
        coverage, risk = measures.risk_coverage(found.score, found.right)
        look = group.looks[method].line | {"markevery": 0.12, "markersize": 3}
        axis.plot(coverage[_FEW:], 100 * risk[_FEW:], label=method, **look)
    right = next(iter(signals.values())).right
    axis.axhline(100 * (1 - right.mean()), color=style.GREY, linestyle="--",
                 linewidth=0.8, label="chance")  # fmt: skip
    axis.set_xlabel("coverage: share of paths accepted")
    axis.set_ylabel("risk: wrong among them, %")
    axis.set_xlim(0, 1.02)
    axis.set_ylim(bottom=0)
    style.legend(figure, style.entries(flat[::-1]))
    note = "; ".join(p for p in (f"checkpoint {at}, paths of all problems", group.note) if p)
    style.heading(figure, group.heading, note)
    return figure


def _checkpoint(group: Group) -> int:
    """The longest checkpoint that most methods have scores at."""
    held = Counter(at for by_checkpoint in group.scores.values() for at in by_checkpoint)
    if not held:
        raise NotDrawn("no scores were recorded of paths known to be right or wrong")
    return max(held, key=lambda at: (held[at], at))


def _standardised(scores: Scores) -> tuple[np.ndarray, np.ndarray] | None:
    """(score − mean) / spread within each problem that has right and wrong paths, and which paths
    are right."""
    z = np.full(len(scores.score), np.nan)
    finite = np.isfinite(scores.score)
    for problem in np.unique(scores.problem):
        own = (scores.problem == problem) & finite
        spread = scores.score[own].std() if own.any() else 0.0
        if spread > 0 and 0 < scores.right[own].sum() < own.sum():
            z[own] = (scores.score[own] - scores.score[own].mean()) / spread
    defined = ~np.isnan(z)
    return (z[defined], scores.right[defined]) if defined.any() else None


def _reliability(axis: Any, table: Any, method: str, look: dict[str, Any]) -> None:
    share = table["share_right"]
    axis.errorbar(
        table["mean_p"],
        share,
        yerr=[share - table["share_lo"], table["share_hi"] - share],
        label=method,
        elinewidth=0.7,
        capsize=1.5,
        **look,
    )

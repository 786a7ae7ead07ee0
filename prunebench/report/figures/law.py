"""The retention law on one's own sweep: the best retention of every cell against the fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from prunebench import guideline
from prunebench.errors import ConfigError
from prunebench.report import style
from prunebench.report.figures.common import NotDrawn
from prunebench.report.records import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def retention_law(rows: Sequence[Row], width: str = "auto") -> Figure:
    """The law fitted to the rows of a sweep, drawn; not drawn when they cannot identify it."""
    try:
        fit = guideline.fit(guideline.best_points(rows))
    except ConfigError as reason:
        raise NotDrawn(str(reason)) from None
    return law_figure(fit, width)


@style.styled
def law_figure(fit: guideline.Fit, width: str = "auto") -> Figure:
    """Points against curve (arXiv 2604.16029, Figure 6): the best γ⁻¹ of every cell over the whole
    right-hand side of the law, on logarithmic axes, where the law is the diagonal; the band holds
    95% of the residuals. Hollow points are the smallest or largest retention that was tried."""
    points = fit.points
    kinds = list(dict.fromkeys(zip(points["model"], points["dataset"], strict=True)))
    looks = dict(zip(kinds, map(style.look, range(len(kinds))), strict=True))
    figure, axes = style.panels(1, 1, width=width, height=2.5)
    axis = axes[0][0]
    ends = [points[["predicted", "best"]].to_numpy().min(), points["best"].max()]
    line = np.geomspace(ends[0] / 1.5, max(ends[1], points["predicted"].max()) * 1.5, 50)
    axis.plot(line, line, color="black", linewidth=0.9, label="fitted law", zorder=1)
    spread = np.exp(1.96 * fit.residual_sd)
    axis.fill_between(
        line, line / spread, line * spread, color="black", alpha=0.08, linewidth=0, zorder=0
    )
    for (model, dataset), look in looks.items():
        own = points[(points["model"] == model) & (points["dataset"] == dataset)]
        for edge, face in ((False, look.colour), (True, "white")):
            some = own[own["at_edge"].astype(bool) == edge]
            axis.plot(
                some["predicted"],
                some["best"],
                marker=look.marker,
                color=look.colour,
                markerfacecolor=face,
                linestyle="none",
                alpha=0.9,
                label=f"{model}, {dataset}" + (" (edge of the sweep)" if edge else ""),
            ) if len(some) else None
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(lambda value, _: f"{value:g}")
    k = fit.coefficients
    axis.set_xlabel(r"$a\,C^{b}\,L_{\mathrm{prefix}}^{c}\,/\,L_{\mathrm{task}}^{d}$")
    axis.set_ylabel(r"best $\gamma^{-1}$ = N / k")
    words = ", ".join(
        f"{n} = {getattr(k, n):.3g} [{lo:.3g}, {hi:.3g}]" for n, (lo, hi) in fit.intervals.items()
    )
    first, second = words.split(", c = ")
    style.legend(figure, style.entries([axis]))
    style.heading(figure, first, f"c = {second}; R² = {fit.r2:.2f}, {fit.n} cells")
    return figure

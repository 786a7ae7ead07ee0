"""Records to figures: every figure whose data the records hold, as PDF and PNG.

Each family of figures has a file; each draws rows of the table or scores of paths, computes nothing
of its own, and raises `NotDrawn` with the reason where the records lack what it shows. Loads
matplotlib only when something is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.report import style
from prunebench.report.figures import compute, cost, law, outcomes, signalfigures
from prunebench.report.figures.common import NotDrawn, groups
from prunebench.report.records import Row

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FIGURES = {
    "accuracy_vs_tokens": compute.accuracy_vs_tokens,
    "accuracy_vs_budget": compute.accuracy_vs_budget,
    "retention_surfaces": compute.retention_surfaces,
    "pareto": compute.pareto,
    "killed_and_flipped": outcomes.killed_and_flipped,
    "auroc_vs_prefix": signalfigures.auroc_vs_prefix,
    "score_distributions": signalfigures.score_distributions,
    "calibration": signalfigures.calibration,
    "overhead": cost.overhead,
    "published": outcomes.published_and_ours,
}
"""Name of the file: function of (group, width) that draws it."""

LAW = "retention_law"
"""Drawn once, of all rows: it needs several models or datasets."""


def write_figures(
    rows: Sequence[Row], paths: pd.DataFrame | None, folder: Path, *, width: str = "auto"
) -> tuple[list[Path], dict[str, str]]:
    """Draw what the records hold, one set of figures per model, dataset and setting.

    Parameters
    ----------
    rows : analysed rows.
    paths : rows of `paths.parquet`, or None: then figures of scores are left out.
    width : "one" or "two" columns of a paper for all figures, or "auto": as the panels need.

    Returns
    -------
    written, skipped : the files, and by name why a figure was not drawn.
    """
    found = groups(rows, paths)
    if not found:
        return [], dict.fromkeys([*FIGURES, LAW], "no row has numbers")
    wanted: dict[str, Callable[[], Figure]] = {}
    for group in found:
        suffix = "_" * bool(group.suffix) + re.sub(r"[^\w.-]+", "-", group.suffix)
        wanted |= {name + suffix: partial(draw, group, width) for name, draw in FIGURES.items()}
    wanted[LAW] = partial(law.retention_law, rows, width)
    written: list[Path] = []
    skipped: dict[str, str] = {}
    for stem, draw in wanted.items():
        try:
            figure = draw()
        except NotDrawn as reason:
            skipped[stem] = str(reason)
        else:
            written += style.save(figure, folder, stem)
    return written, skipped

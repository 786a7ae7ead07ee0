"""Faulty on purpose: imports a heavy package when it is listed."""

from dataclasses import dataclass

import pandas as pd

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class HeavyImport(PathSignal):
    """Higher = keep: longer text."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"

    def score_path(self, path: Path) -> float:
        return float(pd.Series([len(path.text)]).sum())

"""Scores by Python's hash of the text, which differs from process to process."""

from dataclasses import dataclass

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class HashDependent(PathSignal):
    """Higher = keep."""

    type = SignalType.I
    paper = "https://example.org"

    def score_path(self, path: Path) -> float:
        return float(hash(path.text) % 1000)

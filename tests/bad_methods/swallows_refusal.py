"""Reads what it did not declare and hides the error."""

from dataclasses import dataclass

from prunebench.method import Path, PathSignal, SignalType


@dataclass(kw_only=True)
class SwallowsRefusal(PathSignal):
    """Higher = keep."""

    type = SignalType.I
    paper = "https://example.org"

    def score_path(self, path: Path) -> float:
        try:
            return float(path.entropy.mean())
        except Exception:
            return float(path.n_tokens)

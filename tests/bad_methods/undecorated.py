"""Faulty on purpose: an option that is none, since the class is not a dataclass of its own."""

from prunebench.method import Path, PathSignal, SignalType


class Undecorated(PathSignal):
    """Higher = keep: longer text, up to a limit."""

    type = SignalType.I
    paper = "https://arxiv.org/abs/2604.16029"

    limit: int = 100

    def score_path(self, path: Path) -> float:
        return float(min(self.limit, len(path.text)))

"""The oracle: keeps the paths that will end right. The bound that no signal can pass.

Formula: S_i = 1 if the complete path ends in the gold answer, else 0.

Source: a control of ours, the upper end of "headroom recovered" = (method - random) /
(oracle - random) on the protocol of arXiv 2604.16029 (https://arxiv.org/abs/2604.16029).
It reads past the checkpoint, so it exists in replay only.
"""

from dataclasses import dataclass

from prunebench.method import Capability, Path, PathSignal, SignalType


@dataclass(kw_only=True)
class Oracle(PathSignal):
    """Higher = keep: 1.0 for a path that ends right, 0.0 otherwise; empty prefixes included."""

    type = SignalType.CONTROL
    paper = "control; arXiv 2604.16029, https://arxiv.org/abs/2604.16029"
    requires = frozenset({Capability.OUTCOME})

    def score_path(self, path: Path) -> float:
        return float(path.correct)

"""The step oracle: what a perfect reader of the prefix could know.

Formula: S_i = 1 while every finished line of the prefix is right, 0 from the first error on.

Source: a control of ours on the protocol of arXiv 2604.16029 (https://arxiv.org/abs/2604.16029).
Unlike `oracle` it looks at the prefix only: a right prefix may still go wrong later, and a wrong
line may be repaired, so it bounds a reader that judges steps, not every conceivable signal.
Needs a dataset that knows the truth of a step (`arithmetic`, `arithmetic_hard`).
"""

from dataclasses import dataclass

from prunebench.method import Capability, Path, PathSignal, SignalType


@dataclass(kw_only=True)
class StepOracle(PathSignal):
    """Higher = keep: 1.0 for a prefix without an error, 0.0 otherwise; an empty prefix has none."""

    type = SignalType.CONTROL
    paper = "control; arXiv 2604.16029, https://arxiv.org/abs/2604.16029"
    requires = frozenset({Capability.STEP_CHECK})

    def score_path(self, path: Path) -> float:
        return float(path.steps_correct)

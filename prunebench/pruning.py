"""When paths are pruned, and by what rule: one checkpoint, or several in turn.

Knows arrays only; what a rule does to scores is in `select`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prunebench.errors import ConfigError
from prunebench.select import Finished, Select, above_threshold, softmax_mass, top_k


@dataclass(frozen=True)
class Pruning:
    """Checkpoints with their budgets.

    Attributes
    ----------
    stages : `(prefix_length, keep)` of each checkpoint; tokens ascend, budgets do not.
    policy : what happens to paths that ended before a checkpoint.
    rule : what decides how many paths stay; all but TOP_K have one checkpoint and ignore `keep`.
    threshold, mass : of the rules with these names.
    """

    stages: tuple[tuple[int, int], ...]
    policy: Finished = Finished.compete
    rule: Select = Select.top_k
    threshold: float = float("nan")
    mass: float = float("nan")

    def __post_init__(self) -> None:
        lengths = [length for length, _ in self.stages]
        keeps = [keep for _, keep in self.stages]
        ascending = all(a < b for a, b in pairwise(lengths))
        shrinking = all(a >= b for a, b in pairwise(keeps))
        if not self.stages or not ascending or not shrinking or min(*lengths, *keeps) < 1:
            raise ConfigError(
                f"The 'schedule' parameter must be a list of [prefix_length, keep] with ascending "
                f"lengths and budgets that do not grow, all at least 1. Got "
                f"{[list(stage) for stage in self.stages]} instead."
            )
        if self.rule is not Select.top_k and len(self.stages) > 1:
            raise ConfigError(
                f"select={self.rule} works with one checkpoint. Got a schedule of "
                f"{len(self.stages)}; leave 'schedule' or 'select' out."
            )
        if self.rule is Select.threshold and self.threshold != self.threshold:
            raise ConfigError(
                "select=threshold needs 'threshold', the score from which on a path is kept. Give "
                "for example threshold=0.5."
            )
        if self.rule is Select.mass and not 0 < self.mass <= 1:
            raise ConfigError(
                f"The 'mass' parameter must be above 0 and at most 1. Got {self.mass} instead."
            )

    @property
    def prefix_length(self) -> int:
        """The last checkpoint."""
        return self.stages[-1][0]

    @property
    def keep(self) -> int:
        """Paths that the last checkpoint leaves."""
        return self.stages[-1][1]

    @property
    def is_plain(self) -> bool:
        """The best k at one checkpoint, where everybody competes."""
        return (
            self.rule is Select.top_k and len(self.stages) == 1 and self.policy is Finished.compete
        )

    def describe(self, n_paths: int) -> str:
        """In words for tables; "" for the best k at one checkpoint."""
        if self.rule is Select.threshold:
            return f"threshold {self.threshold:g}"
        if self.rule is Select.mass:
            return f"mass {self.mass:g}"
        if len(self.stages) == 1:
            return ""
        budgets = "→".join(str(k) for k in (n_paths, *(keep for _, keep in self.stages)))
        return f"{budgets} at {', '.join(str(length) for length, _ in self.stages)}"

    def survivors(
        self, stage: int, scores: np.ndarray, finished: np.ndarray, alive: np.ndarray
    ) -> np.ndarray:
        """`(R, n)` bool, the paths that a checkpoint leaves.

        Parameters
        ----------
        scores : `(R, n)` float at this checkpoint, higher = keep.
        finished : `(R, n)` bool, ended at or before it.
        alive : `(R, n)` bool, not dropped before.
        """
        if self.rule is Select.threshold:
            return above_threshold(scores, self.threshold, finished=finished, policy=self.policy)
        if self.rule is Select.mass:
            return softmax_mass(scores, self.mass, finished=finished, policy=self.policy)
        keep = self.stages[stage][1]
        return top_k(scores, keep, finished=finished, policy=self.policy, alive=alive)

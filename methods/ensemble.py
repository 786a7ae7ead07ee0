"""Ensemble: the scores of several methods, combined into one.

    rank_mean   S_i = mean over the members j of (r_ij - 1/2) / n_j, with r_ij the rank of path i
                among the n_j live paths that member j could score (1 = lowest, ties share their
                mean rank)
    logistic    S_i = sum over the members j of w_j s_ij / sigma_j + b, a logistic regression on the
                members' scores s_ij

Source: averaging ranks is Borda's rule for combining rankings, as in "Rank Aggregation Methods for
the Web" (https://doi.org/10.1145/371920.372165); learning the combination is "Stacked
Generalization" (https://doi.org/10.1016/S0893-6080(05)80023-1). Ours: the regression learns from
soft labels and from scores that are centred on the mean of each problem and length and divided by
their spread sigma_j there, so that it learns nothing about how hard a problem is; as a constant of
the problem does not change a ranking, a path is then scored by itself. It sees training problems
only, and if a member has learned from those, only the ones that were held out of its training.

`method.members=[deepconf,stop]` names the members, `+method.options.deepconf.window=32` sets
options of theirs. What they read and cost is what the ensemble reads and costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path as FilePath
from typing import Any, Self

import numpy as np

from prunebench.errors import ConfigError
from prunebench.method import (
    Capability,
    Context,
    LabelledPrefix,
    PathGroup,
    SignalGenerator,
    SignalType,
    Trainable,
)
from prunebench.metrics import mid_ranks

from ._learned import Learned

NAME = "ensemble"


class How(Enum):
    """How scores are combined."""

    rank_mean = "rank_mean"
    logistic = "logistic"


@dataclass(kw_only=True)
class Ensemble(Learned):
    """Higher = keep: the mean rank, or the logit of the regression (up to a constant of the
    problem).

    NaN where no member could score the path (rank_mean), or where one could not (logistic).

    Attributes
    ----------
    checkpoint : folder with a trained combination; None takes the one for the model at hand. The
        members bring their own.
    members : names of at least two methods.
    options : options of members, by name.
    how : rank_mean needs no training, logistic does.
    """

    type = SignalType.III
    paper = "https://doi.org/10.1145/371920.372165, https://doi.org/10.1016/S0893-6080(05)80023-1"
    requires = frozenset({Capability.TOP_LOGPROBS, Capability.ENTROPY})  # of the default members
    joint = True
    fit_requires = frozenset({Capability.HIDDEN_STATES})
    structure = ("members", "options", "how")

    members: list[str] = field(default_factory=lambda: ["deepconf", "entropy"])
    options: dict[str, Any] = field(default_factory=dict)
    how: How = How.rank_mean

    def __post_init__(self) -> None:
        from prunebench.members import make

        super().__post_init__()
        self.ready_ = False
        names = list(self.members)
        if len(names) < 2 or len(set(names)) < len(names) or NAME in names:
            raise ConfigError(
                "The 'members' parameter of Ensemble must name at least two different methods, and "
                f"no ensemble. Got {names} instead."
            )
        if strangers := sorted(set(self.options) - set(names)):
            raise ConfigError(
                f"The 'options' parameter of Ensemble sets options of {strangers[0]!r}, which is "
                f"not among its members: {', '.join(names)}."
            )
        self.members_ = [make(name, self.options.get(name) or {}) for name in names]
        types = {member.type for member in self.members_}
        if SignalType.CONTROL in types:
            control = names[[m.type for m in self.members_].index(SignalType.CONTROL)]
            raise ConfigError(
                f"The member {control!r} is a control, which no deployed signal can be: leave it "
                "out of 'method.members'."
            )
        if self.how is How.logistic and SignalType.II in types:
            external = names[[m.type for m in self.members_].index(SignalType.II)]
            raise ConfigError(
                f"The member {external!r} reads the question, which training prefixes do not hold "
                "apart from the prompt: use method.how=rank_mean, or leave it out."
            )
        # What the class says is true of the default members; this is what these members are.
        internal = bool(types & {SignalType.III, SignalType.IV})
        learnt = bool(types & {SignalType.II, SignalType.IV}) or self.how is How.logistic
        kinds = {
            (False, False): SignalType.I,
            (False, True): SignalType.II,
            (True, False): SignalType.III,
            (True, True): SignalType.IV,
        }
        vars(self).update(
            type=kinds[internal, learnt],
            requires=frozenset().union(*(member.requires for member in self.members_)),
            joint=self.how is How.rank_mean or any(member.joint for member in self.members_),
        )

    @property
    def parts(self) -> Sequence[SignalGenerator]:
        return self.members_

    @property
    def needs_training(self) -> bool:
        return self.how is How.logistic

    @property
    def is_fitted(self) -> bool:
        return self.ready_ and (self.weights_ is not None or not self.needs_training)

    def setup(self, context: Context) -> None:
        from prunebench.members import prepare

        if not self.ready_:
            prepare(self.members_, context)
            self.ready_ = True

    def close(self) -> None:
        for member in self.members_:
            member.close()
        self.ready_ = False

    def score(self, group: PathGroup) -> np.ndarray:
        self.check_fitted()
        scores = self.member_scores(group)
        if self.how is How.rank_mean:
            return rank_mean(scores)
        return combined(self.weights_, scores)

    def member_scores(self, group: PathGroup) -> np.ndarray:
        """`(n_paths, n_members)` float64."""
        return np.stack([member.score(group) for member in self.members_], axis=1)

    def fit(
        self, train: Sequence[LabelledPrefix], valid: Sequence[LabelledPrefix], context: Context
    ) -> Self:
        self.setup(context)
        if self.how is How.rank_mean:
            return self
        from prunebench.cachereader import within_problem_auroc

        learnt = any(isinstance(m, Trainable) and m.needs_training for m in self.members_)
        seen = valid if learnt else train
        self.weights_, n_used = regression(self._scored(seen, context), seen)
        self.metrics_ = {"n_prefixes": n_used, "held_out_only": learnt}
        if not learnt:
            logits = combined(self.weights_, self._scored(valid, context))
            self.metrics_["valid_auroc"] = within_problem_auroc(logits, valid)
        self.metrics_["model"] = context.backend.identity()
        return self

    def load(self, folder: FilePath, context: Context) -> Self:
        super().load(folder, context)
        self.setup(context)
        return self

    def _scored(self, examples: Sequence[LabelledPrefix], context: Context) -> np.ndarray:
        """`(n, n_members)` scores of training prefixes."""
        from prunebench.members import groups

        scores = np.full((len(examples), len(self.members_)), np.nan)
        for numbers, group in groups(context.backend, examples, self.requires, context.seed):
            scores[numbers] = self.member_scores(group)
        return scores

    def _arrays(self) -> dict[str, Any]:
        return self.weights_ or {}


def rank_mean(scores: np.ndarray) -> np.ndarray:
    """`(n,)` mean over the members of the share of paths ranked below, from `(n, members)`: in
    (0, 1). A member that could not score a path has no say on it."""
    ranks = mid_ranks(scores.T)  # (members, n), NaN lowest
    missing = np.isnan(scores.T)
    n_missing = missing.sum(axis=1, keepdims=True)
    share = (ranks - n_missing - 0.5) / np.maximum(scores.shape[0] - n_missing, 1)
    n_members = (~missing).sum(axis=0)
    total = np.where(missing, 0.0, share).sum(axis=0)
    return np.where(n_members > 0, total / np.maximum(n_members, 1), np.nan)


def regression(
    scores: np.ndarray, examples: Sequence[LabelledPrefix]
) -> tuple[dict[str, np.ndarray], int]:
    """Learn the weights of the members, and from how many prefixes.

    Parameters
    ----------
    scores : `(n, members)`; prefixes with a NaN, and those alone in their problem and length, teach
        nothing.
    """
    from .linear_probe import regression as fit

    groups: dict[tuple[str, int], list[int]] = {}
    for i in np.flatnonzero(~np.isnan(scores).any(axis=1)):
        key = (examples[i].problem_id, len(examples[i].prefix_ids))
        groups.setdefault(key, []).append(int(i))
    used = [numbers for numbers in groups.values() if len(numbers) > 1]
    chosen = np.array([i for numbers in used for i in numbers], dtype=np.int64)
    if len(chosen) < 4 * scores.shape[1]:
        raise ConfigError(
            f"There is too little to learn a combination of {scores.shape[1]} members from: "
            f"{len(chosen)} prefixes that all of them scored and that stand beside another one of "
            f"their problem and length. Raise 'train.n_problems' or 'train.prefixes_per_problem'."
        )
    low, high = _limits(scores[chosen])
    clipped = np.clip(scores, low, high)
    centred = np.concatenate([clipped[n] - clipped[n].mean(axis=0) for n in used])
    weights = fit(centred, np.array([examples[i].label for i in chosen]), 1.0)
    return {**weights, "mean": clipped[chosen].mean(axis=0), "low": low, "high": high}, len(chosen)


def _limits(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest finite score of each member; 0 where it has none."""
    finite = np.isfinite(scores)
    some = finite.any(axis=0)
    low, high = np.where(finite, scores, np.inf).min(0), np.where(finite, scores, -np.inf).max(0)
    return np.where(some, low, 0.0), np.where(some, high, 0.0)


def combined(weights: dict[str, np.ndarray], scores: np.ndarray) -> np.ndarray:
    """`(n,)` logits from `(n, members)`. Infinite scores count as the smallest or largest that
    training saw."""
    from .linear_probe import logits

    finite = np.where(np.isinf(scores), np.clip(scores, weights["low"], weights["high"]), scores)
    return logits(weights, finite).astype(np.float64)

r"""Early answers: paths that agree on the answer they give when they are made to answer now.

Formula: a text that demands the answer is forced after each prefix, and the short reply is read.

    consensus  S_i = (1/N) #{j : a_j = a_i}, a_i the greedy reply of path i, N the paths
    stability  S_i = (1/m) max over a of #{k : a_ik = a}, a_i1 ... a_im sampled replies of path i

Source: "Efficiently Scaling LLM Reasoning with Certaindex" (Dynasor), arXiv 2412.20993
(https://arxiv.org/abs/2412.20993): the forcing text for `math`, what counts as hesitation, and
agreement of probed answers as certainty.
Ours: Certaindex compares answers at several points of a path and stops reasoning when they
agree; a probe only sees the prefix as it is, so `stability` samples m replies there instead.
`consensus` probes greedily, where Dynasor samples. Answers are equal when their normal forms are,
as in the vote. A reply without an answer agrees with none, itself included. How replies are read
per answer style: `methods/_forced.py`. Keeping the majority's early answer removes the diversity
that a vote needs: read avg@k and cons@k together.
"""

from collections import Counter
from dataclasses import dataclass
from enum import Enum

import numpy as np

from prunebench.method import Capability, PathGroup, SignalType

from ._forced import AnswerForcing, check_positive


class Measure(Enum):
    """Whose early answers are compared."""

    consensus = "consensus"
    stability = "stability"


class Keep(Enum):
    """Which end of the ranking survives."""

    agreeing = "agreeing"
    dissenting = "dissenting"


@dataclass(kw_only=True)
class EarlyAnswer(AnswerForcing):
    """Higher = keep: the early answer is shared by many paths, or by many replies of this path.

    In [0, 1]; with `keep=dissenting` in [-1, 0]. A path without an early answer gets the lowest
    score, 0 or -1. A path that has ended is not probed: its own answer counts, and is stable. NaN
    for an empty prefix.

    Attributes
    ----------
    measure : `consensus` among the paths, or `stability` of one path.
    keep : `agreeing` is the method, `dissenting` the control.
    samples, temperature : of the replies for `stability`; `consensus` is greedy.
    suffix : the text that demands the answer, up to where the answer begins; empty takes the one
        for the model's answer style.
    max_new_tokens : length of a reply.
    """

    type = SignalType.I
    paper = "arXiv 2412.20993, https://arxiv.org/abs/2412.20993"
    requires = frozenset({Capability.PROBE})
    joint = True

    measure: Measure = Measure.consensus
    keep: Keep = Keep.agreeing
    samples: int = 8
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "samples", "temperature")

    def score(self, group: PathGroup) -> np.ndarray:
        if self.measure is Measure.consensus:
            answers = self.answers(group)
            given = Counter(own[0].value for own in answers if own)
            shares = [given[own[0].value] / len(group) if own else 0.0 for own in answers]
        else:
            answers = self.answers(group, self.samples, self.temperature)
            given = [Counter(a.value for a in own if a.value is not None) for own in answers]
            shares = [max(counts.values(), default=0) / self.samples for counts in given]
        scores = []
        for path, own, share in zip(group.paths, answers, shares, strict=True):
            if not own:
                scores.append(path.unscored("the prefix is empty"))
            elif all(answer.value is None for answer in own):
                scores.append(0.0 if self.keep is Keep.agreeing else -1.0)
            else:
                scores.append(share if self.keep is Keep.agreeing else -share)
        return np.array(scores, dtype=np.float64)

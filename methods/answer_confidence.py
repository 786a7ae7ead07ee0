r"""Answer confidence: how sure the model is of the answer that the prefix leads to.

Formula: a text that demands the answer is forced after each prefix, and the short reply is read.

    logprob  S_i = (1/|a_i|) sum over its tokens of log P(token), a_i the greedy answer, in nats
    entropy  S_i = sum over a of q(a) log q(a), an estimate of -H(A | x, p_i); q are the shares of
             m sampled answers
    entropy_reduction  S_i = H(A | x) - H(A | x, p_i), what the prefix has settled; H(A | x) is
             estimated from answers forced after the prompt alone. It is the same for all paths of a
             problem, so that they rank as by `entropy`; the number compares problems.

Source: `logprob` follows DEER, which stops reasoning when the mean probability of the tokens of a
trial answer is high ("Dynamic Early Exit in Reasoning Models", arXiv 2504.15895,
https://arxiv.org/abs/2504.15895); `entropy` follows Certaindex, which takes it of sampled answers
(arXiv 2412.20993, https://arxiv.org/abs/2412.20993).
Ours: the mean of logarithms; the forcing text and how replies are read (`methods/_forced.py`); the
score ranks and stops nothing; replies without an answer count as answers that no other reply gives,
since a path that never answers is not certain. Nothing can be forced after the end of a path: one
that has ended with an answer scores by the tokens of that answer, which were sampled and not
greedy, and has entropy 0.
"""

from collections import Counter
from dataclasses import dataclass
from enum import Enum

import numpy as np

from prunebench.method import Capability, Path, PathGroup, SignalType

from ._forced import Answer, AnswerForcing, check_positive


class Measure(Enum):
    """What is measured of the forced answers."""

    logprob = "logprob"
    entropy = "entropy"
    entropy_reduction = "entropy_reduction"


@dataclass(kw_only=True)
class AnswerConfidence(AnswerForcing):
    """Higher = keep: the model is sure of its early answer.

    `logprob` is at most 0, and -inf without an answer; `entropy` lies in [-log samples, 0], its
    reduction within log samples of 0. NaN for an empty prefix.

    Attributes
    ----------
    measure : `logprob` of the greedy answer, `entropy` of sampled ones, or its reduction.
    samples, temperature : of the replies for the entropies; 1.0 is the model's own distribution.
    suffix : the text that demands the answer, up to where the answer begins; empty takes the one
        for the model's answer style.
    max_new_tokens : length of a reply.
    """

    type = SignalType.III
    paper = "arXiv 2504.15895, https://arxiv.org/abs/2504.15895"
    requires = frozenset({Capability.PROBE, Capability.LOGPROBS})
    joint = False

    measure: Measure = Measure.logprob
    samples: int = 8
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "samples", "temperature")

    def score(self, group: PathGroup) -> np.ndarray:
        drawn = (1, 0.0) if self.measure is Measure.logprob else (self.samples, self.temperature)
        answers = self.answers(group, *drawn)
        scores = [self._score(path, own) for path, own in zip(group.paths, answers, strict=True)]
        if self.measure is Measure.entropy_reduction:
            prior = plug_in_entropy([a.value for a in self.prior_answers(group, *drawn)])
            scores = [prior + score for score in scores]
        # Equal prefixes must tie, whatever the last bits of their batch.
        return np.round(np.array(scores, dtype=np.float64), 4)

    def _score(self, path: Path, own: list[Answer]) -> float:
        if not own:
            return path.unscored("the prefix is empty")
        if self.measure is not Measure.logprob:
            return -plug_in_entropy([answer.value for answer in own])
        return self.own_logprob(path) if self.settled(path) else own[0].logprob


def plug_in_entropy(values: list[str | None]) -> float:
    """Entropy of the shares of the values, nats; each None is a value of its own."""
    counts = Counter(value for value in values if value is not None)
    q = np.array([*sorted(counts.values()), *[1] * values.count(None)]) / len(values)
    return max(0.0, -float(np.sum(q * np.log(q))))

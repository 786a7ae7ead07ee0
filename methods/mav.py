"""MAV: several verifiers look at one aspect each, and their approvals are counted.

Formula: S_i = (1/m) sum_a [p_a > 1/2] + (1/1000) (1/m) sum_a p_a, where p_a is the probability of
True against False in the reply of the verifier of aspect a.

Source: "Multi-Agent Verification", arXiv 2502.20379 (https://arxiv.org/abs/2502.20379): binary
approvals of m aspect verifiers are summed. Not confirmed: the paper's own prompts.
Ours: one model plays all verifiers, each asked once and directly; the aspects and their wording;
the second term, which breaks the frequent ties among m + 1 levels and can never outweigh a vote.
Without log-probabilities p_a is 1 or 0 as the reply says, and ties stay.
"""

from dataclasses import dataclass

import numpy as np

from prunebench.endpoint import Reply, Request
from prunebench.method import PathGroup

from . import _judge, _prompts
from ._judge import Mode, Unjudged
from ._prompts import Api

ASPECTS = {
    "correctness": "everything stated so far is correct",
    "calculation": "every calculation so far is right",
    "logic": "every step follows from what stands before it",
    "units": "quantities, units and signs are used consistently",
    "cases": "no case, condition or restriction has been overlooked so far",
    "understanding": "the solution answers the question that was asked",
    "approach": "the approach can lead to the answer",
}
TIE = 1e-3


@dataclass(kw_only=True)
class MAV(_judge.Judge):
    """Higher = keep: more verifiers approve. In [0, 1.001].

    NaN for an empty prefix, and, with the reason, for a path of which the server leaves any aspect
    unjudged.

    Attributes
    ----------
    aspects : names separated by blanks: correctness, calculation, logic, units, cases,
        understanding, approach.
    api : `chat` or `completions`.
    max_tokens : of a reply.
    no_think : tell a chat model not to think (`enable_thinking=False` of its chat template).
    """

    paper = "arXiv 2502.20379, https://arxiv.org/abs/2502.20379"

    aspects: str = "correctness calculation logic units cases"
    api: Api = Api.chat
    max_tokens: int = 1
    no_think: bool = False

    def __post_init__(self) -> None:
        names = self.aspects.split()
        good = bool(names) and len(set(names)) == len(names) and set(names) <= ASPECTS.keys()
        self.require("aspects", good, f"different names among {', '.join(ASPECTS)}")
        self.require_least(max_tokens=1)

    def judge(self, group: PathGroup) -> list[float | Unjudged]:
        asked = [self._requests(group.question, path.text) for path in group.paths]
        replies = _judge.ask_each(self._endpoint, asked)
        data = [(group.question, path.text) for path in group.paths]
        return [_judge.attempt(_value, *both) for both in zip(replies, data, strict=True)]

    def _requests(self, question: str, text: str) -> list[Request]:
        template = _prompts.direct(self.api, _prompts.ASPECT)
        data = {"question": question, "solution": text}
        return [
            _prompts.request(
                self.api,
                _prompts.render(template, {"aspect": ASPECTS[name]}, data),
                no_think=self.no_think,
                max_tokens=self.max_tokens,
                top_logprobs=_judge.TOP,
            )
            for name in self.aspects.split()
        ]


def _value(replies: list[Reply], data: tuple[str, str]) -> float:
    p = np.array([_approval(reply, data) for reply in replies])
    return float(np.mean(p > 0.5) + TIE * np.mean(p))


def _approval(reply: Reply, data: tuple[str, str]) -> float:
    """p(True), or the vote itself where there are no log-probabilities."""
    mode = Mode.logprob if _judge.choices_of(reply)[0].tokens else Mode.sampled
    return mode.read(reply, "True", "False", data)

"""DeepPrune: a judge says which paths will end in the same answer, and one of each kind is kept.

Paths are taken in the order of their indices. A path joins the first cluster for whose
representative r the judge gives J(r, i) >= threshold, and opens a new one otherwise; J is the
probability of yes to "will these two end in the same answer?".

Formula: S_i = [i is a representative] + n_c / (N + 1), where n_c is the size of i's cluster and N
the number of paths: one path of every cluster first, large clusters before small ones.

Source: "DeepPrune: Parallel Scaling without Inter-trace Redundancy", arXiv 2510.08483
(https://arxiv.org/abs/2510.08483), which trains a judge for this (DeepPrune-Judge-4B), clusters
greedily and lets one path per cluster survive. Not confirmed: the default threshold, and the prompt
of that judge.
Ours: the score, which fills up to k paths by cluster size where the paper keeps as many as there
are clusters; a cluster is represented by its first path alone; each pair is judged once, smaller
index first; the judge is whichever model the server has, asked by our template. `keep=similar` is
the control that prunes what differs.
"""

from dataclasses import dataclass
from enum import Enum

from prunebench.endpoint import Reply, Request
from prunebench.method import PathGroup

from . import _judge, _prompts
from ._judge import Unjudged
from ._prompts import Api


class Keep(Enum):
    """Which end of the ranking survives."""

    different = "different"
    similar = "similar"


@dataclass(kw_only=True)
class DeepPrune(_judge.Judge):
    """Higher = keep: represents its cluster; then, of a large cluster. In (0, 2).

    With `keep=similar` in (-2, 0). NaN for an empty prefix. A pair that the server will not judge
    counts as different; a path of which no pair was judged scores NaN, with the reason. The
    server gets at most one request per path and cluster, in as many rounds as there are clusters:
    quadratic in the number of paths when all of them differ.

    Attributes
    ----------
    threshold : least J for the same cluster, in (0, 1].
    keep : `different` is the method, `similar` the control.
    template : the whole question, with {question}, {first}, {second}, {yes}, {no}; empty takes
        ours.
    yes, no : the verdict words.
    api : `chat` or `completions`.
    max_tokens : of a reply.
    no_think : tell a chat model not to think (`enable_thinking=False` of its chat template).
    """

    paper = "arXiv 2510.08483, https://arxiv.org/abs/2510.08483"
    joint = True

    threshold: float = 0.5
    keep: Keep = Keep.different
    template: str = ""
    yes: str = "Yes"
    no: str = "No"
    api: Api = Api.chat
    max_tokens: int = 1
    no_think: bool = False

    def __post_init__(self) -> None:
        self.require("threshold", 0 < self.threshold <= 1, "in (0, 1]")
        self.require_least(max_tokens=1)
        self.require_places("{first}", "{second}")
        self.require_words(self.yes, self.no)

    def judge(self, group: PathGroup) -> list[float | Unjudged]:
        n, sign = len(group), 1.0 if self.keep is Keep.different else -1.0
        scores: list[float | Unjudged] = [Unjudged("")] * n
        reasons: dict[int, Unjudged] = {}
        judged: set[int] = set()
        open_ = sorted(range(n), key=lambda i: group.paths[i].index)  # without a cluster so far
        while open_:
            first, *others = open_
            replies = self._endpoint.ask([self._request(group, first, i) for i in others])
            cluster, open_ = [first], []
            for i, reply in zip(others, replies, strict=True):
                p = _judge.attempt(self._same, reply)
                if isinstance(p, Unjudged):
                    reasons[first] = reasons[i] = p
                else:
                    judged |= {first, i}
                (open_ if isinstance(p, Unjudged) or p < self.threshold else cluster).append(i)
            for i in cluster:
                scores[i] = sign * ((i == first) + len(cluster) / (n + 1))
            if replies and not judged and all(reply.refusal is None for reply in replies):
                break  # it is not about these paths: this server gives no verdicts
        return [scores[i] if i in judged or i not in reasons else reasons[i] for i in range(n)]

    def _request(self, group: PathGroup, i: int, j: int) -> Request:
        first, second = group.paths[i].text, group.paths[j].text
        data = {"question": group.question, "first": first, "second": second}
        template = self.template or _prompts.direct(self.api, _prompts.SAME_ANSWER)
        text = _prompts.render(template, {"yes": self.yes, "no": self.no}, data)
        return _prompts.request(
            self.api,
            text,
            no_think=self.no_think,
            max_tokens=self.max_tokens,
            top_logprobs=_judge.TOP,
        )

    def _same(self, reply: Reply) -> float:
        return _judge.verdict_probability(_judge.tokens_of(reply), self.yes, self.no)

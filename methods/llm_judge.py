"""LLM judge: a model behind a server says whether the path is on track.

Formula, by mode:

    logprob   S_i = p(yes) / (p(yes) + p(no)) of the next token after the question, each the sum
              over the surface variants of the word; a missing word gets the smallest probability
              that the server returned
    sampled   S_i = share of yes among the verdicts of n sampled replies
    score     S_i = mean over n sampled replies of the number they give, from 0 to 100, over 100

Source: LLM-as-a-judge, arXiv 2306.05685 (https://arxiv.org/abs/2306.05685); the rule for a missing
word is GenPRM's, arXiv 2504.00891 (https://arxiv.org/abs/2504.00891).
Ours: the question, which asks about an unfinished solution, and all defaults. Paths of a model
whose answer style is `line` (the embedded model) are judged in their own language unless a template
or `api` is chosen: the completions API goes on after the last complete line, its mark removed, and
the words are the marks `.` and `!`. Lines that a path itself marked `!` are void and not judged.
`per_line` asks after every line, which makes the judge a generative process reward model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunebench.endpoint import Reply, Request
from prunebench.errors import ConfigError
from prunebench.method import Context, Path, PathGroup

from . import _judge, _prompts
from ._judge import Aggregation, Mode, Unjudged
from ._prompts import Api, Ask


@dataclass(kw_only=True)
class LLMJudge(_judge.Judge):
    """Higher = keep: the judge finds the path more likely to end right. In [0, 1].

    NaN for an empty prefix, and, with the reason, for a path that the server will not judge.

    Attributes
    ----------
    mode : how the verdict is read: `logprob`, `sampled` or `score`.
    api : `chat`, `completions` or `auto`: `chat`, except for `line` paths (see above).
    template : the whole question, with {question}, {solution}, {yes}, {no}; empty takes ours.
    yes, no : the verdict words, each best one token of the judge; empty takes Yes and No, or the
        marks `.` and `!`.
    n_samples : replies per question in the modes `sampled` and `score`.
    temperature : of those replies.
    max_tokens : of a reply; 0 takes 1 for log-probabilities, else 1024 (chat) or 16. A mark is 1.
    per_line : ask after every complete line instead of once.
    aggregation : of the lines' scores.
    no_think : tell a chat model not to think (`enable_thinking=False` of its chat template).
    """

    paper = "arXiv 2306.05685, https://arxiv.org/abs/2306.05685"

    mode: Mode = Mode.logprob
    api: Ask = Ask.auto
    template: str = ""
    yes: str = ""
    no: str = ""
    n_samples: int = 5
    temperature: float = 0.6
    max_tokens: int = 0
    per_line: bool = False
    aggregation: Aggregation = Aggregation.min
    no_think: bool = False

    def probabilities(self, scores: np.ndarray) -> np.ndarray | None:
        return scores

    def __post_init__(self) -> None:
        self.require_least(n_samples=1, temperature=0, max_tokens=0)
        varied = self.mode is Mode.logprob or self.n_samples == 1 or self.temperature > 0
        self.require("temperature", varied, "above 0 for more than one sample")
        self.require_places("{solution}")
        self.require_words(self.yes or "Yes", self.no or "No")

    def setup(self, context: Context) -> None:
        super().setup(context)
        spec = context.backend.spec
        self._marks = spec.answer == "line" and self.api is Ask.auto and not self.template
        if self._marks and self.mode is Mode.score:
            raise ConfigError(
                "The embedded model marks lines and gives no scores: use method.mode=logprob, or "
                "name another judge and set method.api=chat."
            )
        self._api = Api.completions if self.api is Ask.completions else Api.chat
        self._prompt = spec.prompt or "{question}\n"
        usual = (".", "!") if self._marks else ("Yes", "No")
        self._words = (self.yes or usual[0], self.no or usual[1])
        self.require_words(*self._words)

    def judge(self, group: PathGroup) -> list[float | Unjudged]:
        pieces = [self._pieces(path) for path in group.paths]
        asked = [[self._request(group, piece) for piece in own] for own in pieces]
        both = zip(pieces, _judge.ask_each(self._endpoint, asked), strict=True)
        return [_judge.attempt(self._value, group.question, *own) for own in both]

    def _pieces(self, path: Path) -> list[str]:
        """The beginnings of the path that are judged, shortest first."""
        if self._marks:
            pieces = _prompts.beginnings(path, self._words[0])
        else:
            pieces = (self.per_line and _prompts.beginnings(path)) or [path.text]
        return pieces if self.per_line else pieces[-1:]

    def _request(self, group: PathGroup, piece: str) -> Request:
        fields: dict[str, Any] = {"top_logprobs": _judge.TOP}
        usual = 1
        if self.mode is not Mode.logprob:
            fields = {"temperature": self.temperature, "n": self.n_samples, "seed": group.seed}
            usual = 1024 if self._api is Api.chat else 16
        if self._marks:
            prompt = self._prompt.replace("{question}", group.question) + piece
            return Request(prompt=prompt, max_tokens=1, **fields)
        question = _prompts.SCORE if self.mode is Mode.score else _prompts.VERDICT
        text = _prompts.render(
            self.template or _prompts.direct(self._api, question),
            dict(zip(("yes", "no"), self._words, strict=True)),
            {"question": group.question, "solution": piece},
        )
        fields["max_tokens"] = self.max_tokens or usual
        return _prompts.request(self._api, text, no_think=self.no_think, **fields)

    def _value(self, question: str, pieces: list[str], replies: list[Reply]) -> float:
        if not pieces:
            raise Unjudged("the path has no complete line to judge")
        pairs = zip(replies, pieces, strict=True)
        read = self.mode.read
        return self.aggregation.of([read(r, *self._words, (question, p)) for r, p in pairs])

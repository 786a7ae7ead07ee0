r"""GenPRM: a judge analyses a step, may check it by running code, and gives a boxed verdict.

Calls per step: the analysis, up to the point where the model would write code or its output; then
the forced text "<output>\n**Judgement**: $\boxed" and the verdict. With p from the last Yes or No
token before the closing brace, the score of a step is p(Yes) / (p(Yes) + p(No)), where a word that
the server did not return gets the smallest probability that it did.

Formula: S_i = min, mean or last over the complete steps, each judged with the steps before it.

Source: "GenPRM: Scaling Test-Time Compute of Process Reward Models via Generative Reasoning", arXiv
2504.00891 (https://arxiv.org/abs/2504.00891): temperature 0.6, top-p 0.95, at most 3 rounds of
code, 2048 tokens. Checkpoint: GenPRM/GenPRM-7B.
Ours: the wording (`template` takes another); top-k stays the server's; every step is asked about on
its own, not in one long conversation, so that all requests of a group go together and `last`, the
default, judges one step per path; without a verdict in the box a path is NaN, with the reason,
where the authors take 0.5; code runs only with `execute`, in `prunebench.sandbox`.
"""

import re
from dataclasses import dataclass

import numpy as np

from prunebench import sandbox
from prunebench.endpoint import Reply, Request
from prunebench.method import PathGroup

from . import _judge, _prompts
from ._judge import Aggregation, Unjudged
from ._prompts import Api


@dataclass(kw_only=True)
class GenPRM(_judge.Judge):
    """Higher = keep: the judge finds the steps correct. In [0, 1].

    NaN for an empty prefix, and, with the reason, when any of its judged steps has no verdict.

    Attributes
    ----------
    aggregation : of the steps' scores; `last` asks about the last complete step only.
    mark : what separates steps; empty takes a blank line or, where there is none, a line break.
    temperature, top_p : of the analysis.
    max_tokens : of the analysis, in each round.
    execute : run the Python code that the judge writes, on this machine.
    rounds : of code, at most.
    template : the whole request, with {question}, {previous}, {step}, {code}; empty takes ours.
    api : `chat` continues a begun reply, which vLLM and SGLang can; `completions` works anywhere.
    """

    paper = "arXiv 2504.00891, https://arxiv.org/abs/2504.00891"

    aggregation: Aggregation = Aggregation.last
    mark: str = ""
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 2048
    execute: bool = False
    rounds: int = 3
    template: str = ""
    api: Api = Api.chat

    def probabilities(self, scores: np.ndarray) -> np.ndarray | None:
        return scores

    def __post_init__(self) -> None:
        self.require_least(temperature=0, max_tokens=1, rounds=1)
        self.require("top_p", 0 < self.top_p <= 1, "in (0, 1]")
        self.require_places("{step}")

    def judge(self, group: PathGroup) -> list[float | Unjudged]:
        steps = [_prompts.steps_of(path, self.mark) for path in group.paths]
        start = -1 if self.aggregation is Aggregation.last else 0
        texts = [
            [self._text(group.question, own, n) for n in range(len(own))[start:]] for own in steps
        ]
        scores = iter(self._judge_steps([text for own in texts for text in own], group.seed))
        return [_judge.attempt(self.aggregation.of, [next(scores) for _ in own]) for own in texts]

    def _text(self, question: str, steps: list[str], n: int) -> str:
        data = {"question": question, "previous": "\n\n".join(steps[:n]), "step": steps[n]}
        code = _prompts.CODE if self.execute else ""
        return _prompts.render(self.template or _prompts.JUDGE_STEP, {"code": code}, data)

    def _judge_steps(self, texts: list[str], seed: int) -> list[float | Unjudged]:
        """The score of every request's step, or why it has none."""
        said = ["<analyze>\n"] * len(texts)
        results: list[float | Unjudged] = [Unjudged("")] * len(texts)
        going, done = list(range(len(texts))), []
        for left in reversed(range(self.rounds + 1 if self.execute else 1)):
            replies = self._endpoint.ask([self._analysis(texts[i], said[i], seed) for i in going])
            asked, going = going, []
            for i, reply in zip(asked, replies, strict=True):
                new = _judge.attempt(_judge.choices_of, reply)
                if isinstance(new, Unjudged):
                    results[i] = new
                    continue
                printed = run_code(new[0].text) if left else None
                said[i] += new[0].text + (printed or "")
                (done if printed is None else going).append(i)
        forced = self._endpoint.ask([self._verdict(texts[i], said[i]) for i in done])
        for i, reply in zip(done, forced, strict=True):
            results[i] = _judge.attempt(boxed_probability, reply)
        return results

    def _analysis(self, text: str, start: str, seed: int) -> Request:
        stop = ("</verify>", "<output>") if self.execute else ("<verify>", "```py", "<output>")
        how = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        return _prompts.continued(self.api, text, start, stop=stop, seed=seed, **how)

    def _verdict(self, text: str, said: str) -> Request:
        start = said.rstrip() + _prompts.BOX
        return _prompts.continued(self.api, text, start, max_tokens=8, top_logprobs=_judge.TOP)


def boxed_probability(reply: Reply) -> float:
    """p(Yes) / (p(Yes) + p(No)) at the last Yes or No token before the first closing brace."""
    tokens = _judge.tokens_of(reply)
    end = next((n for n, token in enumerate(tokens, start=1) if "}" in token.text), len(tokens))
    if not any(_judge.same_word(t.text, word) for t in tokens[:end] for word in ("Yes", "No")):
        raise Unjudged(f"the box holds neither Yes nor No: {reply.choices[0].text!r}")
    return _judge.verdict_probability(tokens[:end], "Yes", "No")


def run_code(said: str) -> str | None:
    """What the last complete Python block of an analysis prints, as the judge gets to see it."""
    blocks = re.findall(r"```python\n(.*?)```", said, re.DOTALL)
    if not blocks:
        return None
    return _prompts.PRINTED.format(output=sandbox.run_python(blocks[-1]).output.strip())

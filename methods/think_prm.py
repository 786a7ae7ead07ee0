"""ThinkPRM: a judge thinks through every step before it says whether the solution is correct.

A chain is two calls: the judge writes a critique of the steps until it is about to give its
verdict; then the question "Is the solution correct?" is put behind the critique, and the
probabilities of yes and no are read at the next token.

Formula: S_i = mean over n chains of p(yes) / (p(yes) + p(no)).

Source: "Process Reward Models That Think", arXiv 2504.16828 (https://arxiv.org/abs/2504.16828), its
parallel scaling with n = 4 chains at temperature 0.4 (n = 1 and temperature 0 is the single chain),
up to 8192 tokens each. Checkpoints: launch/ThinkPRM-1.5B, -7B, -14B.
Ours: the wording (`template` takes the one a checkpoint was trained with); one next-token
distribution, summed over surface variants, where the paper compares two forced answers by their
mean log-probability; the space before the verdict belongs to it; the unfinished step at the
checkpoint is left out, and the judge is told that the solution is incomplete; a chain that runs
into its length limit gives no verdict, and a path without any is NaN where the authors' code makes
it 0.27.
"""

from dataclasses import dataclass

import numpy as np

from prunebench.endpoint import Reply, Request
from prunebench.method import Path, PathGroup

from . import _judge, _prompts
from ._judge import Unjudged
from ._prompts import Api

START = "Let's verify step by step:"
QUESTION = "Is the solution correct?"


@dataclass(kw_only=True)
class ThinkPRM(_judge.Judge):
    r"""Higher = keep: the judge, after thinking, finds the steps correct. In [0, 1].

    NaN for an empty prefix, and, with the reason, for a path whose chains give no verdict.

    Attributes
    ----------
    n_chains : critiques per path.
    temperature : of the critiques.
    max_tokens : of a critique.
    mark : what separates steps; empty takes a blank line or, where there is none, a line break.
    template : the whole request, with {question}, {solution}, {incomplete}; empty takes ours.
    api : `chat` continues a begun reply, which vLLM and SGLang can; `completions` works anywhere.
    """

    paper = "arXiv 2504.16828, https://arxiv.org/abs/2504.16828"

    n_chains: int = 4
    temperature: float = 0.4
    max_tokens: int = 8192
    mark: str = ""
    template: str = ""
    api: Api = Api.chat

    def probabilities(self, scores: np.ndarray) -> np.ndarray | None:
        return scores

    def __post_init__(self) -> None:
        self.require_least(n_chains=1, temperature=0, max_tokens=1)
        several = self.n_chains == 1 or self.temperature > 0
        self.require("temperature", several, "above 0 for more than one chain")
        self.require_places("{solution}")

    def judge(self, group: PathGroup) -> list[float | Unjudged]:
        steps = [_prompts.steps_of(path, self.mark) for path in group.paths]
        texts = [
            self._text(group.question, path, own)
            for path, own in zip(group.paths, steps, strict=True)
        ]
        replies = self._endpoint.ask(
            [
                self._critique(text, len(own) + 1, group.seed)
                for text, own in zip(texts, steps, strict=True)
            ]
        )
        ended = [[c for c in r.choices if c.finish_reason != "length"] for r in replies]
        asked = [
            [self._verdict(text, chain.text) for chain in chains]
            for text, chains in zip(texts, ended, strict=True)
        ]
        verdicts = _judge.ask_each(self._endpoint, asked)
        both = zip(replies, verdicts, strict=True)
        return [_judge.attempt(self._value, critiques, own) for critiques, own in both]

    def _value(self, critiques: Reply, verdicts: list[Reply]) -> float:
        """Mean over the chains that give a verdict."""
        _judge.choices_of(critiques)
        if not verdicts:
            raise Unjudged(f"no critique ended within {self.max_tokens} tokens")
        scores = [_judge.attempt(_yes, verdict) for verdict in verdicts]
        given = [score for score in scores if not isinstance(score, Unjudged)]
        if not given:
            raise Unjudged(str(scores[0]))
        return float(np.mean(given))

    def _text(self, question: str, path: Path, steps: list[str]) -> str:
        numbered = "\n\n".join(f"Step {i}: {step}" for i, step in enumerate(steps, start=1))
        return _prompts.render(
            self.template or _prompts.CRITIQUE,
            {"incomplete": "" if path.finished else _prompts.INCOMPLETE},
            {"question": question, "solution": numbered},
        )

    def _critique(self, text: str, next_step: int, seed: int) -> Request:
        return _prompts.continued(
            self.api,
            text,
            START,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            n=self.n_chains,
            stop=(QUESTION, "</think>", f"Step {next_step}:"),
            seed=seed,
        )

    def _verdict(self, text: str, critique: str) -> Request:
        start = f"{START}{critique.rstrip()}\n{QUESTION}"
        return _prompts.continued(self.api, text, start, max_tokens=1, top_logprobs=_judge.TOP)


def _yes(reply: Reply) -> float:
    return _judge.verdict_probability(_judge.tokens_of(reply), "yes", "no")

r"""P(True): the model is asked whether its own early answer is true.

Formula: the early answer a_i is forced and read; then a question about it is forced,

    S_i = P(True) / (P(True) + P(False)),

the probabilities of the next token, summed over the spellings of either option.

Source: "Language Models (Mostly) Know What They Know", arXiv 2207.05221
(https://arxiv.org/abs/2207.05221): the question "Is the proposed answer: (A) True (B) False", and
that showing other samples first, as brainstormed ideas, helps (`brainstorm=true`).
Ours: the answer is forced after an unfinished path (`methods/_forced.py`) and the question follows
it; the ideas are the other paths' early answers, the most frequent first, each once, up to 5. A
path that has ended cannot be asked: it scores the geometric mean of the probabilities of its own
answer's tokens, which is another scale. The score is a ratio, whatever probability both options
have together. The embedded model understands no question: with style `line` the template is empty
and the options are its marks for a line it believes, "." and "!", here after the answer line. It
never marks answer lines in training, and the score does not tell its right paths from wrong ones.
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from prunebench.errors import ConfigError
from prunebench.grading import Style
from prunebench.method import Capability, Context, Path, PathGroup, SignalType

from ._forced import Answer, AnswerForcing

IDEAS = "\n\nHere are some brainstormed ideas:\n{ideas}"
QUESTION = (
    "\n\nProposed Answer: {answer}\nIs the proposed answer:\n (A) True\n (B) False\n"
    "The proposed answer is: ("
)
MOST_IDEAS = 5


@dataclass(kw_only=True)
class PTrue(AnswerForcing):
    """Higher = keep: the model believes its early answer. In [0, 1].

    0 for a path without an early answer; NaN for an empty prefix.

    Attributes
    ----------
    template : the question, `{answer}` and `{ideas}` are replaced; empty takes the one for the
        model's answer style.
    true, false : the options; empty takes those of the style, "A" and "B" or "." and "!".
    brainstorm : list the other paths' early answers first.
    suffix : the text that demands the answer, up to where the answer begins; empty takes the one
        for the model's answer style.
    max_new_tokens : length of a reply.
    """

    type = SignalType.III
    paper = "arXiv 2207.05221, https://arxiv.org/abs/2207.05221"
    requires = frozenset({Capability.PROBE, Capability.LOGPROBS})
    joint = True

    template: str = ""
    true: str = ""
    false: str = ""
    brainstorm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.true) != bool(self.false) or (self.true and self.true == self.false):
            raise ConfigError(
                f"The 'true' and 'false' parameters of PTrue must be two different options, or "
                f"both empty. Got {self.true!r} and {self.false!r} instead."
            )

    def setup(self, context: Context) -> None:
        super().setup(context)
        line = self.style_ is Style.LINE
        template = "" if line else IDEAS * self.brainstorm + QUESTION
        self.template_ = self.template or template
        if self.brainstorm and "{ideas}" not in self.template_:
            raise ConfigError(
                "The 'brainstorm' parameter of PTrue needs a template with {ideas} in it. "
                f"Got {self.template_!r} instead; set 'method.template='."
            )
        words = (self.true, self.false) if self.true else (".", "!") if line else ("A", "B")
        first = [self._first_tokens(word) for word in words]
        self.options_ = [sorted(first[0] - first[1]), sorted(first[1] - first[0])]
        if not all(self.options_):
            raise ConfigError(
                f"The 'true' and 'false' parameters of PTrue must differ in their first token. "
                f"Got {words[0]!r} and {words[1]!r} instead."
            )

    def _first_tokens(self, word: str) -> set[int]:
        """The first tokens of the spellings of an option."""
        cases = {word, word.lower(), word.upper()} if len(word) > 1 else {word}
        return {int(self.backend_.tokenize(pad + case)[0]) for case in cases for pad in ("", " ")}

    def probabilities(self, scores: np.ndarray) -> np.ndarray | None:
        return scores

    def score(self, group: PathGroup) -> np.ndarray:
        answers = [own[0] if own else Answer(value=None) for own in self.answers(group)]
        given = Counter(answer.value for answer in answers)
        asked = [
            self.backend_.tokenize(self._question(path, answer, given))
            if answer.value is not None and not self.settled(path)
            else None
            for path, answer in zip(group.paths, answers, strict=True)
        ]
        logprobs = group.internals.next_logprobs(asked).double()
        true, false = (logprobs[:, ids].logsumexp(-1) for ids in self.options_)
        ratio = (true - false).sigmoid().tolist()  # NaN where nothing was asked
        scores = []
        for path, question, score in zip(group.paths, asked, ratio, strict=True):
            if not path.n_tokens:
                scores.append(path.unscored("the prefix is empty"))
            elif self.settled(path):
                scores.append(np.exp(self.own_logprob(path)))
            else:
                scores.append(0.0 if question is None else score)
        # Equal prefixes must tie, whatever the last bits of their batch.
        return np.round(np.array(scores, dtype=np.float64), 4)

    def _question(self, path: Path, answer: Answer, given: Counter[str | None]) -> str:
        others = given - Counter([answer.value])
        ideas = sorted((v for v in others if v is not None), key=lambda v: (-others[v], v))
        values = {"answer": answer.text, "ideas": "\n".join(ideas[:MOST_IDEAS]) or "(none)"}
        text = self.forced_text(path)
        closing = "}" * (text.count("{") - text.count("}"))
        question = re.sub(r"\{(answer|ideas)\}", lambda m: values[m[1]], self.template_)
        return text + answer.text + closing + question

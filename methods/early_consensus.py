r"""Early consensus: paths that agree on the answer that was recorded at the checkpoint are kept.

Formula: S_i = (1/N) #{j : a_j = a_i}, a_i the recorded early answer of path i, N the paths.

Source: answers probed at fixed intervals and their agreement are those of "Efficiently Scaling LLM
Reasoning with Certaindex" (Dynasor), arXiv 2412.20993 (https://arxiv.org/abs/2412.20993).
Ours: agreement among the paths of a problem instead of along one path. It is `early_answer` with
`measure=consensus` for imported paths whose answers were probed when they were made, and costs
nothing here: what the probes cost then is not known, and is not counted. The checkpoint must be a
multiple of the distance of the probes. Answers are equal when their normal forms are, as in the
vote; no answer agrees with none, itself included. A path that has ended gives its final answer.
Keeping the majority's answer removes the diversity that a vote needs: read avg@k and cons@k
together.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from prunebench.errors import MissingInput
from prunebench.method import Capability, Path, PathGroup, SignalGenerator, SignalType


@dataclass(kw_only=True)
class EarlyConsensus(SignalGenerator):
    """Higher = keep: the early answer is shared by many paths. In [0, 1]; 0 for a path without an
    early answer, NaN for one whose early answer was not recorded at the checkpoint."""

    type = SignalType.I
    paper = "arXiv 2412.20993, https://arxiv.org/abs/2412.20993"
    requires = frozenset({Capability.EARLY_ANSWERS})
    joint = True

    def score(self, group: PathGroup) -> np.ndarray:
        answers = [early_answer(path) for path in group.paths]
        given = Counter(answer for answer in answers if isinstance(answer, str))
        shares = [
            path.unscored(str(answer))
            if isinstance(answer, MissingInput)
            else (0.0 if answer is None else given[answer] / len(group))
            for path, answer in zip(group.paths, answers, strict=True)
        ]
        return np.array(shares, dtype=np.float64)


def early_answer(path: Path) -> str | MissingInput | None:
    """The early answer of a path, None when it gave none, or what is missing."""
    try:
        return path.early_answer
    except MissingInput as error:
        return error

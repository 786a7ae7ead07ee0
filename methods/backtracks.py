r"""Backtracks: paths that turn back often are pruned.

Formula: S_i = -(number of matches of `pattern` in prefix i), or -(number of its steps); with
`per_token` divided by the length of the prefix in tokens.

Source: "Don't Overthink it", arXiv 2505.17813 (https://arxiv.org/abs/2505.17813): among the chains
for one question, shorter ones are right more often and backtrack less.
Ours: the pattern, and counting at a checkpoint, where unfinished paths are equally long. The
default pattern counts lines and sentences that begin with "wait", "hmm", "hold on", "but",
"however", "alternatively", "actually", "going back" or "not sure", and the lines that the embedded
model `tiny` marks as void: no white space, a digit or bracket and "!" at the end (`7*11=78!`).
"""

import re
from dataclasses import dataclass
from enum import Enum

import numpy as np

from prunebench.errors import ConfigError
from prunebench.method import Path, PathSignal, SignalType

from ._steps import pivot_pattern, split_steps

TURNS = (
    "wait",
    "hmm+",
    "hold on",
    "but",
    "however",
    "alternatively",
    "actually",
    "going back",
    "not sure",
)
VOID_LINE = r"^\W?[\d()+*=-]*[-+*=][\d()+*=-]*!$"  # no factorial: an operator, no letter


class What(Enum):
    """What is counted."""

    pivots = "pivots"
    steps = "steps"


class Keep(Enum):
    """Which end of the ranking survives."""

    fewer = "fewer"
    more = "more"


@dataclass(kw_only=True)
class Backtracks(PathSignal):
    """Higher = keep: few backtracks (or, with `keep=more`, many). At most 0, or at least 0.

    Small whole numbers, so ties are frequent, unless `per_token`. NaN for an empty prefix.

    Attributes
    ----------
    what : matches of `pattern` (`pivots`), or lines that are not blank (`steps`).
    keep : `fewer` is the method, `more` the control.
    per_token : divide by the number of tokens of the prefix.
    pattern : regular expression of a backtrack; case does not matter, ^ and $ stand for the ends
        of a line.
    """

    type = SignalType.I
    paper = "arXiv 2505.17813, https://arxiv.org/abs/2505.17813"

    what: What = What.pivots
    keep: Keep = Keep.fewer
    per_token: bool = False
    pattern: str = f"{pivot_pattern(TURNS)}|{VOID_LINE}"

    def __post_init__(self) -> None:
        try:
            self.regex_ = re.compile(self.pattern, re.IGNORECASE | re.MULTILINE)
        except re.error as error:
            raise ConfigError(
                "The 'pattern' parameter of Backtracks must be a regular expression. "
                f"Got {self.pattern!r} instead ({error})."
            ) from error
        if self.regex_.search(""):
            raise ConfigError(
                "The 'pattern' parameter of Backtracks must not match the empty text, which is "
                f"everywhere. Got {self.pattern!r} instead."
            )

    def score_path(self, path: Path) -> float:
        if path.n_tokens == 0:
            return np.nan
        if self.what is What.steps:
            count = float(len(split_steps(path.text, "\n")))
        else:
            count = float(sum(1 for _ in self.regex_.finditer(path.text)))
        if self.per_token:
            count /= path.n_tokens
        return count if self.keep is Keep.more else 0.0 - count

"""Repetition: a prefix that repeats itself is pruned, a cheap detector of degenerate loops.

Formula, with n = 4:

    distinct_n  S_i = number of different n-grams of token ids / number of n-grams
    zlib        S_i = length of the text compressed by zlib / length of the text, in bytes of UTF-8
    suffix      S_i = -(length of the longest end of the text that stands in it twice) / length of
                the text, in characters; the two places may overlap, as in a loop

Source: distinct-n is from "A Diversity-Promoting Objective Function for Neural Conversation
Models", arXiv 1510.03055 (https://arxiv.org/abs/1510.03055); the zlib ratio is a common filter of
text corpora.
Ours: using them to prune reasoning paths, and the suffix measure. Enumerations and tables repeat
themselves too, and zlib favours short texts, so compare within a problem and at equal lengths.
"""

import zlib
from dataclasses import dataclass
from enum import Enum

import numpy as np

from prunebench.errors import ConfigError
from prunebench.method import Path, PathSignal, SignalType


class Measure(Enum):
    """How repetition is measured."""

    distinct_n = "distinct_n"
    zlib = "zlib"
    suffix = "suffix"


class Keep(Enum):
    """Which end of the ranking survives."""

    varied = "varied"
    repetitive = "repetitive"


@dataclass(kw_only=True)
class Repetition(PathSignal):
    """Higher = keep: does not repeat itself (or, with `keep=repetitive`, does).

    `distinct_n` is in (0, 1], `zlib` positive (above 1 for a few characters), `suffix` in (-1, 0];
    `keep=repetitive` changes the sign. A prefix shorter than n has one n-gram, itself. NaN for an
    empty prefix.

    Attributes
    ----------
    measure : `distinct_n`, `zlib` or `suffix`.
    n : length of the n-grams, in tokens.
    keep : `varied` is the method, `repetitive` the control.
    """

    type = SignalType.I
    paper = "distinct-n of arXiv 1510.03055, https://arxiv.org/abs/1510.03055"

    measure: Measure = Measure.distinct_n
    n: int = 4
    keep: Keep = Keep.varied

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(
                f"The 'n' parameter of Repetition must be at least 1 token. Got {self.n!r} instead."
            )

    def score_path(self, path: Path) -> float:
        if path.n_tokens == 0 or not path.text:
            return np.nan
        if self.measure is Measure.distinct_n:
            variety = distinct_n(path.token_ids, self.n)
        elif self.measure is Measure.zlib:
            data = path.text.encode("utf-8", "surrogatepass")
            variety = len(zlib.compress(data)) / len(data)
        else:
            variety = 0.0 - repeated_suffix(path.text) / len(path.text)
        return variety if self.keep is Keep.varied else 0.0 - variety


def distinct_n(token_ids: np.ndarray, n: int) -> float:
    """Share of different n-grams among all: `(n_tokens,)`, n_tokens >= 1."""
    ids = token_ids.tolist()
    ngrams = list(zip(*(ids[k:] for k in range(min(n, len(ids)))), strict=False))
    return len(set(ngrams)) / len(ngrams)


def repeated_suffix(text: str) -> int:
    """Length of the longest end of the text that also stands earlier in it."""
    low, high = 0, len(text) - 1  # a repeated end has only repeated ends, so bisection finds it
    while low < high:
        middle = (low + high + 1) // 2
        if text[-middle:] in text[:-1]:
            low = middle
        else:
            high = middle - 1
    return low

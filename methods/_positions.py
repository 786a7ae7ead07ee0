r"""Where the steps of a path lie among its tokens. Knows no method and no model.

A path's statistics belong to tokens, its steps to text (see `_steps`), so this module joins the
texts of single tokens and looks for the separator in there. With byte-level tokenizers, which all
current families use, the joined texts are the text, but for characters split over several tokens;
others may lose spaces, never line breaks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from prunebench.method import Context, Path, PathSignal

from ._steps import step_mark_of


@dataclass(frozen=True, kw_only=True)
class Span:
    """The tokens `start <= t < stop` of one step, the separator after it included.

    Attributes
    ----------
    complete : a separator closes the step; False for what the checkpoint or the end cut off.
    """

    start: int
    stop: int
    complete: bool


def token_reader(decode: Callable[[np.ndarray], str]) -> Callable[[int], str]:
    """The text of one token; each is decoded once."""
    return cache(lambda token: decode(np.array([token], dtype=np.int32)))


def step_spans(token_ids: np.ndarray, text_of: Callable[[int], str], mark: str = "") -> list[Span]:
    """The steps of a path, in order, without blank ones and the blank tokens before them.

    Parameters
    ----------
    text_of : from `token_reader`.
    mark : the separator; empty means a blank line if this path has one, else a line break. A token
        that contains the end of a separator still belongs to the step before it.
    """
    pieces = [text_of(token) for token in token_ids.tolist()]
    text = "".join(pieces)
    mark = step_mark_of([text], mark)
    ends = np.cumsum([len(piece) for piece in pieces])  # characters up to and with each token
    spans, start, at = [], 0, text.find(mark)
    while at >= 0:
        stop = int(np.searchsorted(ends, at + len(mark)))  # the token with the mark's last one
        spans.append((start, stop + 1, True))
        start, at = stop + 1, text.find(mark, at + len(mark))
    spans.append((start, len(pieces), False))
    found = []
    for start, stop, complete in spans:
        first = next((t for t in range(start, stop) if pieces[t].strip()), None)
        if first is not None:
            found.append(Span(start=first, stop=stop, complete=complete))
    return found


@dataclass(kw_only=True)
class StepSignal(PathSignal):
    """A method whose score of a path is made of its steps.

    Attributes
    ----------
    mark : what separates steps; empty means a blank line, or a line break in paths without one.
    """

    mark: str = ""

    def setup(self, context: Context) -> None:
        self._text_of = token_reader(context.backend.decode)

    def spans(self, path: Path) -> list[Span]:
        """The steps of a path as spans of its tokens."""
        return step_spans(path.token_ids, self._text_of, self.mark)

    def finished_spans(self, path: Path) -> list[Span]:
        """The steps without one that the checkpoint cut, unless there is no other."""
        spans = self.spans(path)
        whole = [span for span in spans if span.complete or path.finished]
        return whole or spans

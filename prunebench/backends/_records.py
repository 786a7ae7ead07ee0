"""What an engine recorded of a path, and the step from records to traces.

Knows problems, texts and answers; holds no torch and computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prunebench import grading
from prunebench.types import Problem, TokenStats, Trace

Decode = Callable[[Sequence[np.ndarray]], list[str]]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one path has become so far."""

    token_ids: np.ndarray
    stats: TokenStats
    stopped: bool


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Turns records into traces: `decode` gives the texts, `style` says how answers look."""

    decode: Decode
    style: str

    def traces(
        self, problem: Problem, indices: Sequence[int], records: Sequence[Record]
    ) -> list[Trace]:
        """Only a path that ended by itself has an answer."""
        traces = []
        texts = self.decode([record.token_ids for record in records])
        for index, record, text in zip(indices, records, texts, strict=True):
            answer, correct = None, False
            if record.stopped:
                answer, correct = grading.grade(text, problem.answer, self.style)
            traces.append(
                Trace(
                    index=index,
                    token_ids=record.token_ids,
                    text=text,
                    stats=record.stats,
                    stopped=record.stopped,
                    answer=answer,
                    correct=correct,
                )
            )
        return traces

"""What a file says of paths, turned into problems and traces as banks hold them.

Infers what a path does not say and can be known: the number of tokens, the answer, right or wrong,
and which characters each token wrote. Knows no file format and writes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from prunebench import grading
from prunebench.datasets import make_problem
from prunebench.errors import ConfigError
from prunebench.traceformats import Fault, GivenPath, GivenProblem
from prunebench.types import TOKEN_STATS, Problem, TokenStats, Trace

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(kw_only=True)
class Reader:
    """Turns what a file says into problems and traces, and counts what they hold.

    Attributes
    ----------
    style : how answers are read and compared (see `grading`).
    tokenizer : gives texts up to a checkpoint; None for none.
    known : problems with answers, for entries of the file that have none.
    problems, n_paths : what was read, and how many paths each problem has.
    paths_with : how many paths have each of the fields that may be missing, and in all.
    early_every : distances between early answers that occur.
    longest : tokens of the longest path.
    """

    style: str
    tokenizer: Tokenizer | None
    known: list[Problem]
    problems: dict[str, Problem] = field(default_factory=dict)
    n_paths: Counter[str] = field(default_factory=Counter)
    paths_with: Counter[str] = field(default_factory=Counter)
    early_every: set[int] = field(default_factory=set)
    longest: int = 0
    names: dict[str, set[str]] = field(default_factory=lambda: {"model": set(), "dataset": set()})

    def named(self, what: str) -> str | None:
        """The model or dataset that the file names; None when it names none or several."""
        found = self.names[what]
        return next(iter(found)) if len(found) == 1 else None

    def read(self, given: GivenProblem) -> tuple[Problem, list[Trace]]:
        """Raises `Fault`."""
        problem = self._problem(given)
        if problem.id in self.problems and not given.mergeable:
            raise Fault(f"the problem {problem.id!r} stands in the file before")
        if self.problems.setdefault(problem.id, problem) != problem:
            raise Fault(f"another problem has the id {problem.id!r} too")
        judge = Judge(gold=problem.answer, style=self.style)
        first, traces = self.n_paths[problem.id], []
        for number, path in enumerate(given.paths):
            try:
                traces.append(self._trace(path, first + number, judge))
            except Fault as fault:
                raise Fault(f"path {number}: {fault}") from None
        self.n_paths[problem.id] += len(traces)
        for trace in traces:
            self._count(trace)
        for what, names in self.names.items():
            names |= {name for name in [getattr(given, what)] if name is not None}
        return problem, traces

    def _problem(self, given: GivenProblem) -> Problem:
        question, gold = given.question, given.answer
        if gold is None:
            fitting = [p for p in self.known if p.question.strip() in question]
            if not fitting:
                hint = "; no question of that file is part of its prompt" if self.known else ""
                raise Fault(
                    f"the right answer is missing: add 'answer' to the entry, or name a file of "
                    f"problems with problems={hint}"
                )
            best = max(fitting, key=lambda p: len(p.question))
            question, gold = best.question, best.answer
        question, gold = _unicode(question), _unicode(gold)
        if fault := grading.gold_fault(gold, self.style):
            raise Fault(f"the right answer {fault} with grading={self.style}. Got {gold!r}")
        problem = make_problem(question, gold)
        if given.id is None:
            return problem
        if not NAME.fullmatch(given.id):
            raise Fault(f"'id' must be made of letters, digits, '-', '_' and '.'. Got {given.id!r}")
        return replace(problem, id=given.id)

    def _trace(self, given: GivenPath, index: int, judge: Judge) -> Trace:
        ids, text = given.token_ids, None if given.text is None else _unicode(given.text)
        if self.tokenizer is not None:
            if text is None and ids is not None:
                text = self.tokenizer.decode(ids)
            elif ids is None and text is not None and given.n_tokens is None and not given.stats:
                ids = self.tokenizer.encode(text)
        lists = {"token_ids": ids, "pieces": given.pieces, **given.stats}
        counts = {name: len(values) for name, values in lists.items() if values is not None}
        counts |= {} if given.n_tokens is None else {"n_tokens": given.n_tokens}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} has {n}" for name, n in counts.items())
            raise Fault(f"the numbers of tokens differ: {listed}")
        if not counts:
            raise Fault(
                "the number of tokens is not known: give 'n_tokens', 'token_ids' or 'logprobs', or "
                "name a tokenizer with tokenizer="
            )
        answer, correct = judge.verdict(given, text)
        return Trace(
            index=index,
            token_ids=ids,
            text=text,
            stats=TokenStats(**given.stats),  # type: ignore[arg-type]  # arrays by name
            stopped=given.stopped,
            answer=answer,
            correct=correct,
            length=next(iter(counts.values())),
            pieces=self._pieces(given, ids, text),
            early_answers=None
            if given.early_answers is None
            else tuple(a if a is None else judge.normal(a) for a in given.early_answers),
            early_every=given.early_every,
        )

    def _pieces(
        self, given: GivenPath, ids: np.ndarray | None, text: str | None
    ) -> np.ndarray | None:
        """`(n_tokens,)` int32 characters of the text that each token wrote, or None."""
        if text is None:
            return None
        written = given.pieces
        if written is None and ids is not None and self.tokenizer is not None:
            written = self.tokenizer.pieces(ids)
        if written is None or not "".join(written).startswith(text):
            return None
        ends = np.minimum(np.cumsum([len(piece) for piece in written]), len(text))
        return np.diff(ends, prepend=0).astype(np.int32)

    def _count(self, trace: Trace) -> None:
        has = {
            "text": trace.text is not None,
            "token_ids": trace.token_ids is not None,
            "text up to a checkpoint": trace.pieces is not None,
            "early_answers": trace.early_answers is not None,
            **{name: getattr(trace.stats, name) is not None for name in TOKEN_STATS},
        }
        self.paths_with.update(["all", *(name for name, there in has.items() if there)])
        self.early_every |= {trace.early_every} - {None}  # type: ignore[arg-type]  # None taken out
        self.longest = max(self.longest, trace.n_tokens)


@dataclass(kw_only=True)
class Judge:
    """Reads and compares the answers of one problem; equal answers once."""

    gold: str
    style: str
    right: dict[str, bool] = field(default_factory=dict)

    def verdict(self, given: GivenPath, text: str | None) -> tuple[str | None, bool]:
        """The answer in normal form, and whether it is right. Raises `Fault`."""
        if given.answers is None and text is None:
            raise Fault("the final answer is not known: give 'answer' (null for none) or 'text'")
        try:
            answer = self._answer(given, text)
            if answer is not None and answer not in self.right:
                self.right[answer] = (
                    grading.equal(answer, self.gold, self.style)
                    if given.correct is None
                    else given.correct
                )
        except grading.GradingFault as error:
            raise Fault(str(error)) from error
        if answer is None:
            if given.correct:
                raise Fault("'correct' is true, but there is no answer")
            return None, False
        if given.correct not in (None, self.right[answer]):
            raise Fault(
                f"'correct' is {str(given.correct).lower()} for the answer {answer!r}, but another "
                f"path of the problem says or shows the contrary"
            )
        return answer, self.right[answer]

    def _answer(self, given: GivenPath, text: str | None) -> str | None:
        if given.answers is not None:
            return None if given.answers[0] is None else self.normal(given.answers[0])
        if not given.stopped or text is None:  # as for engines: a path that was cut has no answer
            return None
        if not grading.is_function(self.style):
            return grading.extract(text, self.style)
        answer, right = grading.grade(text, self.gold, self.style)
        if answer is not None and given.correct is None:
            self.right.setdefault(answer, right)
        return answer

    def normal(self, answer: str) -> str:
        """The normal form in which answers vote; the text itself where it has none."""
        answer = _unicode(answer)
        line = self.style == grading.Style.LINE
        written = f"A{answer}" if line else f"\\boxed{{{answer}}}"
        return grading.extract(written, self.style) or answer


class Tokenizer:
    """The part of a tokenizer that turns texts into tokens and back."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"The tokenizer {file} cannot be read: {error}") from error

    def decode(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=True)

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def pieces(self, ids: np.ndarray) -> list[str]:
        """What each token adds to the text; a character of several tokens counts with its last."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return [stream.step(self._tokenizer, token) or "" for token in ids.tolist()]


def tokenizer_file(given: str) -> Path:
    path = Path(given)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"'tokenizer=' must name a tokenizer.json, or a folder that holds one. Got {given!r}."
        )
    return file


def _unicode(text: str) -> str:
    """The text without halves of characters, which no file can hold."""
    return SURROGATES.sub("\ufffd", text)

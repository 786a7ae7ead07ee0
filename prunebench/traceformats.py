"""Files of paths that were made elsewhere, read into `GivenProblem` and `GivenPath`.

Three kinds: prunebench's own JSONL, saved outputs of vLLM or of an OpenAI-compatible server, and
paths whose answers were probed every few hundred tokens. docs/traces.md describes them. Everything
that is wrong with a file is collected in `Faults`. This module grades nothing and writes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from prunebench.backends import _openaireply as openai
from prunebench.errors import DamagedFile
from prunebench.types import TOKEN_STATS

N_SHOWN = 5
"""Faults that an error message names."""

STATS = tuple(name for name in TOKEN_STATS if name not in ("sum_logprobs",))
"""Per-token statistics that files may hold."""

PATH_FIELDS = frozenset(
    {
        *("text", "token_ids", "n_tokens", "answer", "correct", "stopped", "pieces"),
        *("early_answers", "early_every", "note"),
        *STATS,
    }
)


class Format(StrEnum):
    """Kinds of files."""

    jsonl = "jsonl"  # one problem with its paths per line
    vllm = "vllm"  # saved `RequestOutput`s, or replies of an OpenAI-compatible server
    probed = "probed"  # {"question", "gold_answer", "probe_freq", "each_branch"}


@dataclass(frozen=True, kw_only=True)
class GivenPath:
    """What a file says of a path; None where it says nothing.

    Attributes
    ----------
    answers : the final answer as a list of one, `[None]` when the path gave none; None when the
        file does not say.
    pieces : text of each token.
    stats : some of `STATS`, `(n_tokens,)` each.
    early_answers, early_every : see `Trace`.
    """

    text: str | None = None
    token_ids: np.ndarray | None = None
    n_tokens: int | None = None
    answers: list[str | None] | None = None
    correct: bool | None = None
    stopped: bool = True
    pieces: list[str] | None = None
    stats: dict[str, np.ndarray] = field(default_factory=dict)
    early_answers: tuple[str | None, ...] | None = None
    early_every: int | None = None


@dataclass(frozen=True, kw_only=True)
class GivenProblem:
    """A problem of a file: `where` it stands there, for messages."""

    where: str
    question: str
    answer: str | None
    paths: list[GivenPath]
    id: str | None = None
    model: str | None = None
    dataset: str | None = None
    prompt_ids: np.ndarray | None = None
    mergeable: bool = False  # other entries may hold further paths of the problem


@dataclass(kw_only=True)
class Faults:
    """What is wrong with a file."""

    path: Path
    found: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        self.found.append(f"{where}: {what}")

    def check(self) -> None:
        """Raise `DamagedFile` when there are any: the first few and how many there are."""
        if not self.found:
            return
        shown = "\n".join(f"  {fault}" for fault in self.found[:N_SHOWN])
        rest = len(self.found) - N_SHOWN
        more = f"\n  and {rest} more" if rest > 0 else ""
        number = "one fault" if len(self.found) == 1 else f"{len(self.found)} faults"
        raise DamagedFile(
            f"Nothing was imported from {self.path}: it has {number}.\n{shown}{more}\n"
            f"docs/traces.md describes the formats."
        )


class Fault(Exception):
    """One thing that is wrong at a place of the file."""


def read(path: Path, format: Format | None, faults: Faults) -> Iterator[tuple[GivenProblem, int]]:
    """The problems of a file, in order, each with the bytes read so far.

    Parameters
    ----------
    format : None finds it out from the first entry.
    faults : what is wrong with an entry goes there, and the entry is left out.
    """
    converter: Callable[[Any, str], GivenProblem] | None = None
    for where, entry, position in _entries(path, faults):
        try:
            if not isinstance(entry, dict):
                raise Fault(f"it must be an object. Got {type(entry).__name__} instead")
            if converter is None:
                converter = _CONVERT[format or detect(entry)]
            problem = converter(entry, where)
        except Fault as fault:
            faults.add(where, str(fault))
            continue
        yield problem, position


def detect(entry: dict[str, Any]) -> Format:
    """The format of a file with this entry."""
    if "each_branch" in entry:
        return Format.probed
    if "paths" in entry:
        return Format.jsonl
    if {"outputs", "choices", "response"} & entry.keys():
        return Format.vllm
    raise Fault(
        f"it has none of the fields 'paths' (jsonl), 'outputs', 'choices', 'response' (vllm) and "
        f"'each_branch' (probed). Found: {', '.join(sorted(entry)) or 'nothing'}"
    )


def _entries(path: Path, faults: Faults) -> Iterator[tuple[str, Any, int]]:
    """The objects of a JSON list, or of a file with one object per line."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()[:1]
        file.seek(0)
        if start == b"[":
            try:
                entries = json.loads(file.read())
            except ValueError as error:
                raise DamagedFile(f"The file {path} is not valid JSON: {error}.") from error
            size = path.stat().st_size
            for number, entry in enumerate(entries, 1):
                yield f"problem {number}", entry, size * number // len(entries)
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                faults.add(f"line {number}", f"it is not valid JSON ({error})")
                continue
            yield f"line {number}", entry, file.tell()


# ------------------------------------------------------------------------------- jsonl


def _from_jsonl(entry: dict[str, Any], where: str) -> GivenProblem:
    paths = entry.get("paths")
    if not isinstance(paths, list) or not paths:
        raise Fault(f"'paths' must be a list of at least one path. Got {_short(paths)} instead")
    given = []
    for number, path in enumerate(paths):
        try:
            given.append(_path(path, entry.get("early_every")))
        except Fault as fault:
            raise Fault(f"path {number}: {fault}") from None
    return _problem(entry, where, given)


def _problem(
    entry: dict[str, Any], where: str, paths: list[GivenPath], **others: Any
) -> GivenProblem:
    names = {"id": str, "model": str, "dataset": str}
    texts = {name: _optional(entry, name, kind) for name, kind in names.items()}
    question = entry.get("problem", entry.get("question", others.pop("question", None)))
    if not isinstance(question, str) or not question.strip():
        raise Fault(f"'problem' must be the text of the question. Got {_short(question)} instead")
    gold = entry.get("answer", entry.get("gold_answer"))
    if gold is not None and (isinstance(gold, bool) or not isinstance(gold, str | int | float)):
        raise Fault(f"'answer' must be the right answer as text. Got {_short(gold)} instead")
    answer = None if gold is None else " ".join(str(gold).split())
    return GivenProblem(
        where=where, question=question, answer=answer, paths=paths, **texts, **others
    )


def _path(path: Any, early_every: Any) -> GivenPath:
    if not isinstance(path, dict):
        raise Fault(f"it must be an object. Got {_short(path)} instead")
    if unknown := sorted(path.keys() - PATH_FIELDS):
        raise Fault(
            f"unknown field {unknown[0]!r}. Known: {', '.join(sorted(PATH_FIELDS))}; 'note' may "
            f"hold anything"
        )
    n_tokens = _optional(path, "n_tokens", int)
    if n_tokens is not None and n_tokens < 0:
        raise Fault(f"'n_tokens' must be at least 0. Got {n_tokens} instead")
    stopped = _optional(path, "stopped", bool)
    early = path.get("early_answers")
    every = path.get("early_every", early_every)
    if early is not None:
        if not isinstance(early, list):
            raise Fault(f"'early_answers' must be a list. Got {_short(early)} instead")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise Fault(
                f"'early_answers' needs 'early_every', the tokens between two of them, at least 1. "
                f"Got {_short(every)} instead"
            )
        early = tuple(_answer(value, "early_answers") for value in early)
    return GivenPath(
        text=_optional(path, "text", str),
        token_ids=_ids(path.get("token_ids"), "token_ids"),
        n_tokens=n_tokens,
        answers=[_answer(path["answer"], "answer")] if "answer" in path else None,
        correct=_optional(path, "correct", bool),
        stopped=True if stopped is None else stopped,
        pieces=_optional(path, "pieces", list),
        stats=_statistics(path),
        early_answers=early,
        early_every=every if early is not None else None,
    )


def _answer(value: Any, name: str) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Fault(f"'{name}' must be text, a number or null. Got {_short(value)} instead")
    return str(value).strip()


def _ids(value: Any, name: str) -> np.ndarray | None:
    if value is None:
        return None
    numbers = value if isinstance(value, list) else [None]
    if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < 2**31 for i in numbers):
        raise Fault(f"'{name}' must be a list of integers from 0. Got {_short(value)} instead")
    return np.array(numbers, dtype=np.int32)


def _statistics(path: dict[str, Any]) -> dict[str, np.ndarray]:
    """The per-token lists of a path; `top_logprobs` may list the alternatives of every token."""
    stats, tops = {}, path.get("top_logprobs")
    for name in STATS:
        if path.get(name) is None or (name == "top_logprobs" and _nested(tops)):
            continue
        column = _column(path[name], name)
        if name.endswith("logprobs") and (column > 1e-3).any():
            raise Fault(f"'{name}' must be at most 0. Got {column[column > 1e-3][0]:g} in it")
        stats[name] = column
    if _nested(tops):
        columns = [_column(top or [], "top_logprobs").tolist() for top in tops]
        values = stats.get("logprobs", np.full(len(tops), np.nan))
        if len(values) != len(tops):
            raise Fault(f"{len(values)} 'logprobs', but {len(tops)} 'top_logprobs'")
        found = _of_alternatives(values.tolist(), columns)
        stats = {**found, **stats}
    return stats


def _nested(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and any(isinstance(top, list) for top in value)


def _of_alternatives(
    values: Sequence[float], tops: Sequence[Sequence[float]]
) -> dict[str, np.ndarray]:
    """Statistics of the sampled tokens and, where it is known, of the most likely ones."""
    found = openai.statistics(values, tops)
    return {n: c for n, c in found.items() if not (len(c) and np.isnan(c).all())}


def _column(values: Any, name: str) -> np.ndarray:
    numbers = values if isinstance(values, list) else ["no list"]
    if any(isinstance(v, bool) or not isinstance(v, int | float | None) for v in numbers):
        raise Fault(f"'{name}' must be a list of numbers, one per token. Got {_short(values)}")
    return np.array([math.nan if v is None else v for v in numbers], dtype=np.float32)


def _optional(entry: dict[str, Any], name: str, kind: type) -> Any:
    value = entry.get(name)
    if value is not None and (
        not isinstance(value, kind) or (kind is int and isinstance(value, bool))
    ):
        raise Fault(f"'{name}' must be of type {kind.__name__}. Got {_short(value)} instead")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ------------------------------------------------------------------------------- vllm


def _from_vllm(entry: dict[str, Any], where: str) -> GivenProblem:
    reply = entry.get("response") or entry
    reply = reply.get("body", reply) if isinstance(reply, dict) else {}
    outputs = reply.get("outputs", reply.get("choices"))
    if not isinstance(outputs, list) or not outputs:
        raise Fault("it holds no 'outputs' and no 'choices'")
    n_tokens = (reply.get("usage") or {}).get("completion_tokens")
    paths = []
    for number, output in enumerate(outputs):
        try:
            paths.append(_output(output, n_tokens if len(outputs) == 1 else None))
        except Fault as fault:
            raise Fault(f"output {number}: {fault}") from None
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Fault(f"output {number} cannot be read ({error})") from None
    prompt = reply.get("prompt", entry.get("prompt"))
    return _problem(
        entry,
        where,
        paths,
        question=prompt,
        prompt_ids=_ids(reply.get("prompt_token_ids"), "prompt_token_ids"),
        mergeable=True,
    )


def _output(output: dict[str, Any], n_tokens: int | None) -> GivenPath:
    """A path; `n_tokens`, which the server counted, is for paths whose tokens are unknown."""
    text = output["message"].get("content") if "message" in output else output["text"]
    ids, logprobs = _ids(output.get("token_ids"), "token_ids"), output.get("logprobs")
    pieces, values, tops = None, None, []
    if isinstance(logprobs, list):  # of vLLM: one table per token, by token id
        if ids is None or len(ids) != len(logprobs):
            raise Fault(f"{len(logprobs)} 'logprobs' need as many 'token_ids'")
        chosen = [table[str(token)] for token, table in zip(ids.tolist(), logprobs, strict=True)]
        values = [float(token["logprob"]) for token in chosen]
        tops = [[float(token["logprob"]) for token in table.values()] for table in logprobs]
        names = [token.get("decoded_token") for token in chosen]
        pieces = None if None in names else names
    elif logprobs:
        pieces, values, tables = openai.columns(logprobs)
        tops = [list(table.values()) for table in tables]
        if pieces and all(piece.startswith(openai.ID_MARK) for piece in pieces):
            ids = _ids([int(p.removeprefix(openai.ID_MARK)) for p in pieces], "token_ids")
            pieces = None
    return GivenPath(
        text=text or "",
        token_ids=ids,
        n_tokens=n_tokens if ids is None and values is None else None,
        stopped=output.get("finish_reason") in (None, *openai.STOPPED),
        pieces=pieces,
        stats={} if values is None else _of_alternatives(values, tops),
    )


# ------------------------------------------------------------------------------- probed


def _from_probed(entry: dict[str, Any], where: str) -> GivenProblem:
    every, branches = entry.get("probe_freq"), entry["each_branch"]
    paths = []
    for number, branch in enumerate(branches if isinstance(branches, list) else []):
        if not isinstance(branch, list) or len(branch) != 3:
            raise Fault(f"branch {number} must be [answers, total tokens, final answer]")
        early, n_tokens, final = branch
        if not isinstance(early, list):
            raise Fault(f"branch {number}: the answers must be a list. Got {_short(early)}")
        fields = {
            "early_answers": [_no_error(answer) for answer in early],
            "n_tokens": n_tokens,
            "answer": _no_error(final),
        }
        try:
            paths.append(_path(fields, every))
        except Fault as fault:
            raise Fault(f"branch {number}: {fault}") from None
    if not paths:
        raise Fault("'each_branch' must be a list of at least one branch")
    return _problem(entry, where, paths)


def _no_error(answer: Any) -> Any:
    return None if answer == "ERR" else answer


_CONVERT: dict[Format, Callable[[dict[str, Any], str], GivenProblem]] = {
    Format.jsonl: _from_jsonl,
    Format.vllm: _from_vllm,
    Format.probed: _from_probed,
}

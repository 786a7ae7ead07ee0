"""How process reward models read a path: token ids, and the positions where a score is read.

Pure functions of a tokenizer; nothing here loads a model. The positions are those where a mark was
put, never those where a token or a score happens to look like one, so a path that writes the mark
itself moves nothing.

An input that is longer than the model allows loses its leading steps, then the leading tokens of
the step that is left; the question stays. One whose question alone is too long cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from prunebench.errors import ConfigError


class Family(Enum):
    """Whose input format and head."""

    tiny = "tiny"
    qwen25_math_prm = "qwen25_math_prm"
    reasonflux_prm = "reasonflux_prm"
    reasonflux_prm_outcome = "reasonflux_prm_outcome"
    skywork_o1_prm = "skywork_o1_prm"
    math_shepherd = "math_shepherd"
    rlhflow = "rlhflow"


class Steps(Enum):
    """What counts as a step."""

    marked = "marked"
    whole = "whole"


class Unfinished(Enum):
    """What happens to a last step that the checkpoint cut."""

    close = "close"
    drop = "drop"


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a reward model reads of one path.

    Attributes
    ----------
    ids : `(n,)` int32 token ids.
    read : `(n,)` bool, True where a step's score is read.
    n_fixed : leading tokens that hold the question.
    cut : the path did not fit and lost its beginning.
    """

    ids: np.ndarray
    read: np.ndarray
    n_fixed: int
    cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Format:
    """Input format of a family.

    Attributes
    ----------
    encode : (tokenizer, question, steps) -> token ids, read positions, tokens of the question.
    separator : between the steps of a path, as the family was trained.
    blank : blank lines are steps too, and steps keep the space around them.
    longest : most tokens, beside the limit in the model's configuration.
    """

    encode: Callable[[Any, str, Sequence[str]], tuple[list[int], list[int], int]]
    separator: str = "\n\n"
    blank: bool = False
    longest: int | None = None


# ------------------------------------------------------------------------------------- steps


def split_path(
    text: str, form: Format, finished: bool, steps: Steps, unfinished: Unfinished
) -> list[str]:
    """The steps of a path, in order.

    A last step that the checkpoint cut counts when `unfinished` is `close`, or when it is the only
    one. A blank text has no steps.
    """
    if steps is Steps.whole:
        return [text.strip()] if text.strip() else []
    done, found, rest = text.rpartition(form.separator)
    complete = done.split(form.separator) if found else []
    if not form.blank:
        complete, rest = [s.strip() for s in complete if s.strip()], rest.strip()
    elif not any(s.strip() for s in [*complete, rest]):
        return []
    if rest and (finished or unfinished is Unfinished.close or not complete):
        complete.append(rest)
    return complete


def encode_path(
    family: Family, tokenizer: Any, question: str, steps: Sequence[str], max_length: int
) -> Encoded | None:
    """What a reward model of this family reads; None when the question leaves no room."""
    encode, question = FORMATS[family].encode, question.strip()

    def without(n_dropped: int) -> tuple[list[int], list[int], int]:
        return encode(tokenizer, question, steps[n_dropped:])

    ids, marks, n_fixed = without(0)
    n_dropped = 0
    if len(ids) > max_length:  # the fewest leading steps whose loss makes it fit
        low, n_dropped = 0, len(steps) - 1
        while n_dropped - low > 1:
            middle = (low + n_dropped) // 2
            low, n_dropped = (
                (low, middle) if len(without(middle)[0]) <= max_length else (middle, n_dropped)
            )
        ids, marks, n_fixed = without(n_dropped)
    read = np.zeros(len(ids), dtype=bool)
    read[marks] = True
    fitted = fit(np.array(ids, dtype=np.int32), read, n_fixed, max_length)
    if fitted is None or not n_dropped:
        return fitted
    return Encoded(fitted.ids, fitted.read, fitted.n_fixed, cut=True)


def fit(ids: np.ndarray, read: np.ndarray, n_fixed: int, max_length: int) -> Encoded | None:
    """At most `max_length` tokens: those after the question go first, oldest first. None when
    nothing to read would be left."""
    excess = len(ids) - max_length
    if excess <= 0:
        return Encoded(ids, read, n_fixed)
    if n_fixed >= max_length:
        return None
    kept = np.ones(len(ids), dtype=bool)
    kept[n_fixed : n_fixed + excess] = False
    return Encoded(ids[kept], read[kept], n_fixed, cut=True) if read[kept].any() else None


# -------------------------------------------------------------------------------- the families


def encode_own(
    prompt_ids: np.ndarray,
    token_ids: np.ndarray,
    ends_step: Callable[[int], bool],
    *,
    finished: bool,
    steps: Steps,
    unfinished: Unfinished,
    max_length: int,
) -> Encoded | None:
    """`tiny`: the generator's own tokens, read at every token that ends a line (`ends_step`) and
    at the last one, unless it belongs to an unfinished step that is dropped."""
    read = np.zeros(len(prompt_ids) + len(token_ids), dtype=bool)
    if steps is Steps.marked:
        known = {int(i): ends_step(int(i)) for i in np.unique(token_ids)}
        read[len(prompt_ids) :] = [known[int(i)] for i in token_ids]
    if finished or unfinished is Unfinished.close or not read.any():
        read[-1] = True
    ids = np.concatenate([prompt_ids, token_ids]).astype(np.int32)
    return fit(ids, read, len(prompt_ids), max_length)


STEP_TAG, SHEPHERD_TAG = "<extra_0>", "ки"
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


def _tagged_chat(
    system: str | None,
) -> Callable[[Any, str, Sequence[str]], tuple[list[int], list[int], int]]:
    """Qwen2.5-Math-PRM, ReasonFlux-PRM-7B: one chat, the tag after every step."""

    def encode(
        tokenizer: Any, question: str, steps: Sequence[str]
    ) -> tuple[list[int], list[int], int]:
        tag = special_id(tokenizer, STEP_TAG)
        turns = [("user", question), ("assistant", None)]
        before, after = _rendered(tokenizer, [("system", system), *turns] if system else turns)
        ids, marks = list(before), []
        for step in steps:
            ids += plain_ids(tokenizer, step, STEP_TAG)
            marks.append(len(ids))
            ids.append(tag)
        return ids + after, marks, len(before)

    return encode


def _rendered(tokenizer: Any, turns: Sequence[tuple[str, str | None]]) -> tuple[list[int], ...]:
    """Ids of the chat, cut where a turn's content is None: those contents are left out."""
    contents = [content for _, content in turns]
    chat = [{"role": role, "content": f"\0{i}\0"} for i, (role, _) in enumerate(turns)]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    parts: list[list[int]] = [[]]
    for i, piece in enumerate(re.split(r"\0(\d+)\0", text)):
        if i % 2 == 0:
            parts[-1] += tokenizer.encode(piece, add_special_tokens=False)
        elif (content := contents[int(piece)]) is None:
            parts.append([])
        else:
            parts[-1] += plain_ids(tokenizer, content, STEP_TAG)
    return tuple(parts)


def _turns(tokenizer: Any, question: str, steps: Sequence[str]) -> tuple[list[int], list[int], int]:
    """RLHFlow: a user turn per step, answered with "+"; read at the token that predicts it."""
    plus = plain_ids(tokenizer, "+")
    chat: list[tuple[str, str | None]] = []
    for i, step in enumerate(steps):
        chat += [("user", f"{question} {step}" if i == 0 else step), ("assistant", None)]
    *parts, after = _rendered(tokenizer, chat)
    ids, marks = [], []
    for part in parts:
        ids += part
        marks.append(len(ids) - 1)
        ids += plus
    before, *_ = _rendered(tokenizer, [("user", None)])
    return ids + after, marks, len(before) + len(plain_ids(tokenizer, question))


def _lines(tokenizer: Any, question: str, steps: Sequence[str]) -> tuple[list[int], list[int], int]:
    """Skywork-o1-PRM: the question on a line of its own, a line break closes every step."""
    end_of_line = tokenizer.encode("\n", add_special_tokens=False)[-1]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = bos + plain_ids(tokenizer, question + "\n")
    n_fixed, marks = len(ids), []
    for step in steps:
        ids += plain_ids(tokenizer, step)
        marks.append(len(ids))
        ids.append(end_of_line)
    return ids, marks, n_fixed


def _tagged_text(
    tokenizer: Any, question: str, steps: Sequence[str]
) -> tuple[list[int], list[int], int]:
    """Math-Shepherd: running text, a tag after every step.

    The tokenizer joins a word with the space before it, so the text is encoded at once and the
    marks are found by where they stand in the text.
    """
    text, ends = f"{question} ", []
    for i, step in enumerate(steps):
        text += ("\n" if i else "") + f"{step} {SHEPHERD_TAG}"
        ends.append(len(text))
    coded = tokenizer(text, return_offsets_mapping=True, split_special_tokens=True)
    stops = {end: i for i, (start, end) in enumerate(coded["offset_mapping"]) if end > start}
    n_fixed = sum(1 for _, end in coded["offset_mapping"] if end <= len(question))
    try:
        marks = [stops[end] for end in ends]
    except KeyError:
        raise _wrong_tokenizer(SHEPHERD_TAG) from None
    return list(coded["input_ids"]), marks, n_fixed


def _outcome(
    tokenizer: Any, question: str, steps: Sequence[str]
) -> tuple[list[int], list[int], int]:
    """ReasonFlux-PRM-1.5B: question and path as one text, read at its last token."""
    n_fixed = len(plain_ids(tokenizer, question))
    ids = plain_ids(tokenizer, question + "\n\n".join(steps))
    return ids, [len(ids) - 1], min(n_fixed, len(ids) - 1)


FORMATS = {
    Family.qwen25_math_prm: Format(encode=_tagged_chat(SYSTEM)),
    Family.reasonflux_prm: Format(encode=_tagged_chat(None)),
    Family.reasonflux_prm_outcome: Format(encode=_outcome, longest=2048),
    Family.skywork_o1_prm: Format(encode=_lines, separator="\n", blank=True),
    Family.math_shepherd: Format(encode=_tagged_text),
    Family.rlhflow: Format(encode=_turns),
}


def plain_ids(tokenizer: Any, text: str, tag: str | None = None) -> list[int]:
    """Token ids of text in which nothing is special, also not a `tag` that it spells out."""
    ids = []
    for i, piece in enumerate(text.split(tag) if tag else [text]):
        for part in [piece] if i == 0 or not tag else [tag[:1], tag[1:] + piece]:
            ids += tokenizer.encode(part, add_special_tokens=False, split_special_tokens=True)
    return ids


def special_id(tokenizer: Any, token: str) -> int:
    """The id of a token that must be one token."""
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1:
        raise _wrong_tokenizer(token)
    return int(ids[0])


def pair_ids(tokenizer: Any, family: Family) -> tuple[int, int]:
    """The tokens whose probabilities say that a step is right, and wrong."""
    if family is Family.math_shepherd:
        right, wrong = tokenizer.encode("+ -", add_special_tokens=False)[-2:]
    else:
        right, wrong = (tokenizer.encode(t, add_special_tokens=False)[-1] for t in "+-")
    return right, wrong


def _wrong_tokenizer(token: str) -> ConfigError:
    return ConfigError(
        f"The reward model's tokenizer does not know the step mark {token!r} as one token: "
        f"'method.family' does not fit the model."
    )

"""Made-up paths for checking methods without a model: small, varied, the same on every machine.

The statistics of a path come from real (random) distributions, so they agree with each other, but
the text means nothing: nothing here says how good a signal is. Knows no method and no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from prunebench.backend import Internals
from prunebench.method import LabelledPrefix
from prunebench.types import (
    TOKEN_STATS,
    Capability,
    PathGroup,
    Problem,
    TokenStats,
    Trace,
    view,
)

PREFIX_LENGTH = 24
EARLY = 8  # tokens between recorded early answers
PROBLEM = Problem(id="sample-0", question="(7*11)+3", answer="80")
PROMPT_IDS = np.arange(3, 11, dtype=np.int32)

_FIRST_ID = 3  # below lie the special tokens of most small tokenizers
_ALPHABET = "0123456789+-*=.!A ab \n "  # id - _FIRST_ID -> character; blanks make words
_WIDTH = 40  # entries of the distributions the statistics are taken from
_TOP = 20


def decode(token_ids: np.ndarray) -> str:
    """The text of made-up tokens: one character each."""
    return "".join(_ALPHABET[int(i) - _FIRST_ID] for i in token_ids)


def check_steps(question: str, text: str) -> bool:
    """Stands in for a step checker: a finished line with a '!' is wrong."""
    return "!" not in text[: text.rfind("\n") + 1]


def trace(index: int, n_tokens: int, seed: int) -> Trace:
    """A path of `n_tokens` random tokens with consistent statistics."""
    rng = np.random.default_rng([seed, index])
    ids = rng.integers(_FIRST_ID, _FIRST_ID + len(_ALPHABET), n_tokens).astype(np.int32)
    sharpness = rng.uniform(0.5, 4.0, (n_tokens, 1))  # tokens differ in confidence
    logits = sharpness * rng.normal(size=(n_tokens, _WIDTH))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))  # (n_tokens, _WIDTH)
    top = np.sort(log_p, axis=1)[:, -_TOP:]
    stats = TokenStats(
        logprobs=log_p[np.arange(n_tokens), ids].astype(np.float32),
        top_logprobs=top.mean(axis=1).astype(np.float32),
        entropy=-(np.exp(log_p) * log_p).sum(axis=1).astype(np.float32),
        sum_logprobs=log_p.sum(axis=1).astype(np.float32),
        max_logprobs=top[:, -1].astype(np.float32),
        top_mass=np.exp(top).sum(axis=1).astype(np.float32),
        top_entropy=-(np.exp(top) * top).sum(axis=1).astype(np.float32),
        vocab_size=_WIDTH,
    )
    right = bool(rng.random() < 0.5)
    return Trace(
        index=index,
        token_ids=ids,
        text=decode(ids),
        stats=stats,
        stopped=True,
        answer="80" if right else "13",
        correct=right,
        early_answers=tuple(rng.choice(["80", "13", ""]) or None for _ in range(n_tokens // EARLY)),
        early_every=EARLY,
    )


def varied() -> list[Trace]:
    """Twelve paths: unlike lengths, two that end before the checkpoint, two with equal text."""
    lengths = [60, 31, 9, 44, 25, 24, 52, 70, 33, 90, 41, 28]
    traces = [trace(i, n, seed=1) for i, n in enumerate(lengths)]
    twin = replace(traces[3], index=12)
    return [*traces[:-1], twin]


def identical() -> list[Trace]:
    """Four paths that differ in nothing but their index."""
    return [replace(trace(0, 40, seed=2), index=i) for i in range(4)]


def with_empty_prefix() -> list[Trace]:
    """Three usual paths and one without a token."""
    return [*(trace(i, 40, seed=3) for i in range(3)), trace(3, 0, seed=3)]


def many() -> list[Trace]:
    """As many paths as the papers use: 64."""
    return [trace(i, 20 + i, seed=4) for i in range(64)]


def unfinished() -> list[Trace]:
    """Eight paths that all go on after the checkpoint."""
    return [trace(i, PREFIX_LENGTH + 6 + i, seed=5) for i in range(8)]


def with_another_ending(traces: Sequence[Trace]) -> list[Trace]:
    """The same prefixes with other continuations, of other lengths, and the opposite outcome."""
    return [_another_ending(old, trace(old.index, 50, seed=6)) for old in traces]


def _another_ending(old: Trace, new: Trace) -> Trace:
    def join(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([a[:PREFIX_LENGTH], b])

    ids = join(old.known_ids, new.known_ids)
    joined = {
        name: join(getattr(old.stats, name), getattr(new.stats, name)) for name in TOKEN_STATS
    }
    return Trace(
        index=old.index,
        token_ids=ids,
        text=decode(ids),
        stats=replace(old.stats, **joined),
        stopped=not old.stopped,
        answer="13" if old.correct else "80",
        correct=not old.correct,
        early_answers=(old.early_answers or ())[: PREFIX_LENGTH // EARLY]
        + (new.early_answers or ()),
        early_every=EARLY,
    )


def group(
    traces: Sequence[Trace],
    granted: frozenset[Capability],
    internals: Callable[[Sequence[np.ndarray]], Internals] | None = None,
) -> PathGroup:
    """What a method with these `requires` sees; `internals` encodes the given prefixes."""
    prefixes = [t.known_ids[:PREFIX_LENGTH] for t in traces]
    return view(
        PROBLEM,
        PROMPT_IDS,
        traces,
        PREFIX_LENGTH,
        decode=decode,
        granted=granted,
        seed=7,
        check_steps=check_steps,
        internals=(lambda: internals(prefixes)) if internals else None,
    )


def labelled_prefixes(n_problems: int, per_problem: int, seed: int) -> list[LabelledPrefix]:
    """Training examples; the label is the share of digits, which a prefix does show."""
    examples = []
    for p in range(n_problems):
        for i in range(per_problem):
            ids = trace(i, PREFIX_LENGTH, seed=100 * seed + p).known_ids
            share = float(np.mean(ids < _FIRST_ID + 10))
            examples.append(
                LabelledPrefix(
                    problem_id=f"sample-{seed}-{p}",
                    prompt_ids=PROMPT_IDS,
                    prefix_ids=ids,
                    label=share,
                    n_continuations=8,
                )
            )
    return examples

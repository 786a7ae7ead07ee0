"""The data that flows through prunebench: problems, traces, and what a method sees of them.

A `Trace` is a complete sampled path, with everything recorded about it. A method never sees a
trace: it sees a `PathGroup` of `Path` objects, cut at the checkpoint and restricted to the
capabilities it declared. This module knows no method, no engine and no file format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.errors import MissingInput, UndeclaredCapability
from prunebench.traces import TOKEN_STATS, Problem, Trace, frozen
from prunebench.traces import TokenStats as TokenStats

if TYPE_CHECKING:  # the internals hold torch tensors; this module stays importable without torch
    from prunebench.backend import Internals


class SignalType(StrEnum):
    """The four-type taxonomy of path-pruning signals (arXiv 2604.16029, Table 1)."""

    I = "I"  # noqa: E741  external signal, not learnable: text heuristics
    II = "II"  # external signal, learnable: reward models, judges
    III = "III"  # internal signal, not learnable: confidence, entropy
    IV = "IV"  # internal signal, learnable: STOP, probes
    CONTROL = "control"  # a reference row, not a signal anyone could deploy: random, oracles


class Capability(StrEnum):
    """What a method may read beyond text and token ids. Declared in `requires`.

    The comment says which attribute of `Path` or `PathGroup` it opens.
    """

    LOGPROBS = "logprobs"  # path.logprobs
    TOP_LOGPROBS = "top_logprobs"  # path.top_logprobs
    ENTROPY = "entropy"  # path.entropy
    SUM_LOGPROBS = "sum_logprobs"  # path.sum_logprobs
    MAX_LOGPROBS = "max_logprobs"  # path.max_logprobs
    TOP_MASS = "top_mass"  # path.top_mass
    TOP_ENTROPY = "top_entropy"  # path.top_entropy
    HIDDEN_STATES = "hidden_states"  # group.internals.hidden_states(), .unembed()
    KV_CACHE = "kv_cache"  # group.internals.read()
    CACHE_READER = "cache_reader"  # group.internals.reader_scores()
    PROBE = "probe"  # group.internals.probe(), .next_logprobs()
    GRADIENTS = "gradients"  # context.backend.model(), to train
    CONTINUE = "continue"  # the engine can resume a path from its prefix
    ENDPOINT = "endpoint"  # an OpenAI-compatible server for judges
    STEP_CHECK = "step_check"  # path.steps_correct: ground truth of every finished step
    EARLY_ANSWERS = "early_answers"  # path.early_answer: recorded with the path, not probed now
    OUTCOME = "outcome"  # path.correct: how the path ends, past the checkpoint (controls only)


INTERNAL = frozenset(
    {
        Capability.LOGPROBS,
        Capability.TOP_LOGPROBS,
        Capability.ENTROPY,
        Capability.SUM_LOGPROBS,
        Capability.MAX_LOGPROBS,
        Capability.TOP_MASS,
        Capability.TOP_ENTROPY,
        Capability.HIDDEN_STATES,
        Capability.KV_CACHE,
        Capability.CACHE_READER,
    }
)
"""Capabilities that read the generating model itself: what makes a signal Type III or IV."""

STATES = frozenset(
    {
        Capability.HIDDEN_STATES,
        Capability.KV_CACHE,
        Capability.CACHE_READER,
        Capability.PROBE,
    }
)
"""Capabilities that open `group.internals`."""

CONTROLS_ONLY = frozenset({Capability.STEP_CHECK, Capability.OUTCOME})
"""Ground truth: what no deployed signal can read."""


class Granted(frozenset[Capability]):
    """What a method may read. Remembers what it was refused, also when it swallowed the error, and
    why it could not score a path."""

    refused: set[str]
    unscored: dict[int, str]
    ask_again: bool

    def refuse(self, attribute: str, capability: Capability) -> UndeclaredCapability:
        """The error to raise, after taking a note of it."""
        message = (
            f"The method read {attribute} without declaring it: add "
            f"Capability.{capability.name} to its 'requires'."
        )
        self.refused.add(message)
        return UndeclaredCapability(message)


def granting(capabilities: frozenset[Capability]) -> Granted:
    """Those capabilities, with nothing refused yet."""
    granted = Granted(capabilities)
    granted.refused = set()
    granted.unscored = {}
    granted.ask_again = False
    return granted


@dataclass(frozen=True, eq=False)
class Path:
    """What a method sees of one path: its first `prefix_length` generated tokens.

    Text, token ids and `finished` are always there, except that imported traces may lack text and
    token ids: reading them raises `MissingInput` then, and the method is reported as not available.
    The statistics are opened by the capability of the same name in the method's `requires`; reading
    one that was not declared raises `UndeclaredCapability`. All arrays are read-only.

    Attributes
    ----------
    index : identity of the path within its problem; use it only to break ties.
    n_tokens : generated tokens up to the checkpoint.
    finished : the path ended at or before the checkpoint, so the prefix is the whole path.
    """

    index: int
    n_tokens: int
    finished: bool
    _token_ids: np.ndarray | None = field(repr=False)
    _text: str | None = field(repr=False)
    _readings: Mapping[Capability, Any] = field(repr=False)
    _granted: Granted = field(repr=False)

    @property
    def token_ids(self) -> np.ndarray:
        """`(n_tokens,)` int32, generated tokens up to the checkpoint."""
        if self._token_ids is None:
            raise MissingInput("the token ids of the paths")
        return self._token_ids

    @property
    def text(self) -> str:
        """The text of the tokens up to the checkpoint."""
        if self._text is None:
            raise MissingInput("the text of the paths up to the checkpoint")
        return self._text

    @property
    def logprobs(self) -> np.ndarray:
        """`(n_tokens,)` log-probability of each sampled token, nats, before temperature."""
        return self._read(Capability.LOGPROBS, "logprobs")

    @property
    def top_logprobs(self) -> np.ndarray:
        """`(n_tokens,)` mean of the 20 largest log-probabilities at each token, nats."""
        return self._read(Capability.TOP_LOGPROBS, "top_logprobs")

    @property
    def entropy(self) -> np.ndarray:
        """`(n_tokens,)` exact entropy of each next-token distribution, nats."""
        return self._read(Capability.ENTROPY, "entropy")

    @property
    def sum_logprobs(self) -> np.ndarray:
        """`(n_tokens,)` sum over the vocabulary of the log-probabilities, nats."""
        return self._read(Capability.SUM_LOGPROBS, "sum_logprobs")

    @property
    def vocab_size(self) -> int:
        """Number of terms in `sum_logprobs`."""
        self._read(Capability.SUM_LOGPROBS, "vocab_size")
        return self._readings["vocab_size"]  # type: ignore[index]

    @property
    def max_logprobs(self) -> np.ndarray:
        """`(n_tokens,)` the largest log-probability at each token, nats."""
        return self._read(Capability.MAX_LOGPROBS, "max_logprobs")

    @property
    def top_mass(self) -> np.ndarray:
        """`(n_tokens,)` sum of the 20 largest probabilities at each token."""
        return self._read(Capability.TOP_MASS, "top_mass")

    @property
    def top_entropy(self) -> np.ndarray:
        """`(n_tokens,)` -sum of P log P over the 20 largest probabilities at each token, nats,
        not renormalised."""
        return self._read(Capability.TOP_ENTROPY, "top_entropy")

    @property
    def steps_correct(self) -> bool:
        """Ground truth: every finished step of the prefix is right."""
        return self._read(Capability.STEP_CHECK, "steps_correct")()

    @property
    def early_answer(self) -> str | None:
        """The recorded answer that the path gave when it was made to answer at the checkpoint, in
        normal form; that of its end when it has finished; None when it gave no answer."""
        return self._read(Capability.EARLY_ANSWERS, "early_answer")()

    @property
    def correct(self) -> bool:
        """How the whole path ends. Lies past the checkpoint: for controls only."""
        return self._read(Capability.OUTCOME, "correct")

    def unscored(self, reason: str, *, ask_again: bool = False) -> float:
        """NaN, after a note of why this path could not be scored; the table shows the reason.

        With `ask_again` the scores of the problem are not stored: next time it may be different.
        """
        self._granted.unscored[self.index] = reason
        self._granted.ask_again |= ask_again
        return float("nan")

    def _read(self, capability: Capability, attribute: str) -> Any:
        if capability not in self._granted:
            raise self._granted.refuse(f"path.{attribute}", capability)
        value = self._readings[capability]
        if value is None:
            raise MissingInput(f"{attribute} of every token")
        return value


@dataclass(frozen=True, eq=False)
class PathGroup:
    """All live paths of one problem at one checkpoint: the argument of `score`.

    Attributes
    ----------
    problem_id, question : the problem, without its answer.
    prompt_ids : `(n_prompt,)` int32, the tokens before the paths.
    prefix_length : the checkpoint L, in generated tokens.
    paths : the live paths; `len(group)` of them.
    seed : seed for methods that draw random numbers; use `group.rng()`.
    """

    problem_id: str
    question: str
    prompt_ids: np.ndarray
    prefix_length: int
    paths: tuple[Path, ...]
    seed: int
    _internals: Callable[[], Internals] | None = field(default=None, repr=False)
    _granted: Granted = field(default_factory=lambda: granting(frozenset()), repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def internals(self) -> Internals:
        """The generating model's states at the checkpoint, in the order of `paths`."""
        if not self._granted & STATES:
            raise self._granted.refuse("group.internals", Capability.KV_CACHE)
        assert self._internals is not None, "pairing let a method pass without internals"
        return self._internals()

    @property
    def granted(self) -> Granted:
        """What the method may read."""
        return self._granted

    @property
    def refused(self) -> set[str]:
        """What a method tried to read without declaring it, one message each."""
        return self._granted.refused

    def rng(self, path: Path | None = None) -> np.random.Generator:
        """A generator that depends on the seed, the problem and, if given, the path only."""
        words = [self.seed, *self.problem_id.encode()]
        return np.random.default_rng(words if path is None else [*words, 1 + path.index])

    @property
    def unscored(self) -> dict[int, str]:
        """Why paths could not be scored, by path index."""
        return self._granted.unscored

    @property
    def ask_again(self) -> bool:
        """Whether a path could not be scored this time, and may be another time."""
        return self._granted.ask_again

    def subset(self, order: Sequence[int] | np.ndarray) -> PathGroup:
        """The group of `paths[i] for i in order`, in that order."""
        order = [int(i) for i in order]
        source = self._internals
        return replace(
            self,
            paths=tuple(self.paths[i] for i in order),
            _internals=(lambda: source().subset(order)) if source else None,
        )


def view(
    problem: Problem,
    prompt_ids: np.ndarray,
    traces: Sequence[Trace],
    prefix_length: int,
    *,
    decode: Callable[[np.ndarray], str],
    granted: frozenset[Capability],
    seed: int,
    check_steps: Callable[[str, str], bool] | None = None,
    internals: Callable[[], Internals] | None = None,
) -> PathGroup:
    """Cut traces at the checkpoint and keep only what `granted` opens.

    Nothing past the checkpoint is reachable from the result, except `path.correct` when OUTCOME
    is granted.
    """
    paths = []
    grants = granting(granted)
    for trace in traces:
        ids = frozen(trace.token_ids, prefix_length)
        whole = trace.n_tokens <= prefix_length
        text = trace.text_until(prefix_length, decode)
        stats = trace.stats.cut(prefix_length)
        readings: dict[Any, Any] = {
            c: getattr(stats, c.value)
            for c in Capability
            if c in granted and c.value in TOKEN_STATS
        }
        if Capability.SUM_LOGPROBS in granted:
            readings["vocab_size"] = stats.vocab_size
        if Capability.STEP_CHECK in granted and check_steps is not None and text is not None:
            readings[Capability.STEP_CHECK] = lambda check=check_steps, text=text: check(
                problem.question, text
            )
        if Capability.EARLY_ANSWERS in granted:
            readings[Capability.EARLY_ANSWERS] = lambda trace=trace: trace.early_answer(
                prefix_length
            )
        if Capability.OUTCOME in granted:
            readings[Capability.OUTCOME] = trace.correct
        n_tokens, finished = min(trace.n_tokens, prefix_length), whole and trace.stopped
        paths.append(Path(trace.index, n_tokens, finished, ids, text, readings, grants))
    prompt = frozen(prompt_ids, len(prompt_ids))
    assert prompt is not None
    return PathGroup(
        problem.id,
        problem.question,
        prompt,
        prefix_length,
        tuple(paths),
        seed,
        internals,
        grants,
    )

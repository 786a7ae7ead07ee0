"""Launch, Check, Resume, Vote. The same code for stored traces and live engines.

Knows no method and no engine by name: a session advances, a method scores, the core selects.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prunebench.backend import Backend, Internals, Session
from prunebench.cost import Cost, Ledger
from prunebench.errors import (
    ContractViolation,
    MissingInput,
    PrunebenchError,
    Unavailable,
    UndeclaredCapability,
)
from prunebench.granted import GrantedInternals
from prunebench.method import SignalGenerator
from prunebench.pruning import Pruning
from prunebench.types import STATES, Capability, PathGroup, Problem, Trace, view

StepCheck = Callable[[str, str], bool]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where and how the check happens.

    Attributes
    ----------
    prefix_length : generated tokens of every path at the check.
    seed : for methods that draw random numbers.
    check_steps : ground truth of the dataset, for methods that require STEP_CHECK.
    """

    prefix_length: int
    seed: int = 0
    check_steps: StepCheck | None = None


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a method said about the live paths of a problem, and what that cost.

    Attributes
    ----------
    scores : `(n_live,)` float64, higher = keep, NaN = could not be scored.
    cost : of `score`, without `reencode_s`.
    reencode_s : time to rebuild states that a live engine still has (replay only).
    reason : why scores are NaN, or None.
    lasting : False when asking again may help, so that the scores must not be stored.
    """

    scores: np.ndarray
    cost: Cost
    reencode_s: float
    reason: str | None
    lasting: bool = True


@dataclass(kw_only=True)
class ProblemRun:
    """One problem that went through Launch, Check, Resume.

    Attributes
    ----------
    launched : the paths at the checkpoint, as far as they had come.
    kept : `(n_paths,)` bool.
    finished : the kept paths, complete.
    checks : per checkpoint, the scores of all launched paths (NaN for those gone by then), and
        what they cost.
    tokens : `(n_paths,)` int, generated of each path: up to the checkpoint that dropped it, or to
        its end.
    check_bytes : memory that the checks took beyond what the paths hold, NaN where not measured.
    seconds : wall time by phase: launch, check, resume.
    overrun : tokens that pruned paths generated beyond the checkpoint before they were dropped.
    """

    problem: Problem
    launched: list[Trace]
    kept: np.ndarray
    finished: list[Trace]
    checks: list[Check]
    tokens: np.ndarray
    check_bytes: float = float("nan")
    seconds: dict[str, float] = field(default_factory=dict)
    overrun: int = 0


def check(
    method: SignalGenerator,
    session: Session,
    backend: Backend,
    checkpoint: Checkpoint,
    ledger: Ledger | None = None,
) -> Check:
    """Let a method score the live paths of a session, on a view of what it declared.

    `ledger` is the one of the method's context; what it gains meanwhile is the method's. A method
    that breaks the contract raises; one that fails on this problem gives NaN with the reason.
    """
    opened: list[Internals] = []

    def internals() -> Internals:
        if not opened:
            opened.append(session.internals())
        return opened[0]

    traces = session.traces()
    if Capability.OUTCOME in method.requires:
        pairs = zip(traces, session.outcomes(), strict=True)
        traces = [replace(trace, correct=correct) for trace, correct in pairs]
    group = view(
        session.problem,
        session.prompt_ids,
        traces,
        checkpoint.prefix_length,
        decode=backend.decode,
        granted=method.requires,
        seed=checkpoint.seed,
        check_steps=checkpoint.check_steps,
        internals=lambda: GrantedInternals(internals(), group.granted),
    )
    ledger = ledger or Ledger()
    ledger.take()  # what was spent before belongs to nobody here
    reason, unavailable = None, False
    start = time.perf_counter()
    try:
        if method.requires & STATES:
            internals()  # so that re-encoding is over before the clock of the method starts
        start = time.perf_counter()
        scores = _validated(method, group)
    except PrunebenchError:
        raise
    except Exception as error:  # a bad problem is a fact, not the end of the run
        scores = np.full(len(traces), np.nan)
        unavailable = _may_pass(error)
        reason = (
            str(error)
            if isinstance(error, (Unavailable, MissingInput))
            else f"{type(error).__name__}: {error}"
        )
    seconds = time.perf_counter() - start
    if reason is None and np.isnan(scores).any():
        reason = _why_nan(group, scores)
    spent = ledger.take()
    from_cache = any(states.from_cache for states in opened)
    states = Cost(
        verifier_tokens=sum(states.forwarded_tokens for states in opened),
        probe_tokens=sum(states.sampled_tokens for states in opened),
        # A reply from the cache takes no time, which says nothing about the method.
        seconds=float("nan") if spent.cached_calls or from_cache else seconds,
    )
    return Check(
        scores=scores,
        cost=spent + states,
        reencode_s=getattr(session, "reencode_s", 0.0),
        reason=reason,
        lasting=not (unavailable or group.ask_again),
    )


def _may_pass(error: Exception) -> bool:
    """Whether the next run may do better: no reply, no memory, no disk."""
    passing = (Unavailable, OSError, MemoryError)
    return isinstance(error, passing) or type(error).__name__ == "OutOfMemoryError"


def _why_nan(group: PathGroup, scores: np.ndarray) -> str:
    """The reasons that the method gave, each with its number of paths."""
    nan = [path.index for path, score in zip(group.paths, scores, strict=True) if np.isnan(score)]
    reasons = Counter(group.unscored.get(i, "the method returned NaN") for i in nan)
    return "; ".join(f"{reason} ({n} paths)" for reason, n in sorted(reasons.items()))


def _validated(method: SignalGenerator, group: PathGroup) -> np.ndarray:
    scores = method.score(group)
    if group.refused:  # the method swallowed the error and scored something else
        raise UndeclaredCapability("; ".join(sorted(group.refused)))
    expected = (len(group),)
    if not isinstance(scores, np.ndarray) or scores.shape != expected:
        got = getattr(scores, "shape", type(scores).__name__)
        raise ContractViolation(
            f"{type(method).__name__}.score must return an array of shape {expected}, one score "
            f"per path. Got {got} instead."
        )
    if scores.dtype != np.float64:
        raise ContractViolation(
            f"{type(method).__name__}.score must return float64. Got {scores.dtype} instead; "
            f"use scores.astype(np.float64)."
        )
    return scores


def launch_check_resume(
    backend: Backend,
    problems: Sequence[Problem],
    method: SignalGenerator,
    checkpoint: Checkpoint,
    *,
    n_paths: int,
    pruning: Pruning,
    ledger: Ledger | None = None,
) -> list[ProblemRun]:
    """Run problems for real, all at once: pruned paths are dropped, kept ones resume from their
    cache, to the next checkpoint or to their end. `checkpoint.prefix_length` is that of each stage
    in turn. The seconds of a phase are shared out evenly among the problems: `launch` is the way to
    the first checkpoint, `resume` everything generated after it."""
    clock = time.perf_counter
    spent = {"launch": 0.0, "check": 0.0, "resume": 0.0}
    since = clock()

    def lap(phase: str) -> None:
        nonlocal since
        now = clock()
        spent[phase] += now - since
        since = now

    sessions = backend.open_together(problems, range(n_paths))
    runs = [
        ProblemRun(
            problem=session.problem,
            launched=[],
            kept=np.ones(n_paths, dtype=bool),
            finished=[],
            checks=[],
            tokens=np.zeros(n_paths, dtype=np.int64),
        )
        for session in sessions
    ]
    memory = PeakMemory()
    try:
        for stage, (prefix_length, _) in enumerate(pruning.stages):
            for session in sessions:
                session.start(prefix_length)
            for session in sessions:
                session.advance(prefix_length)
            for run, session in zip(runs, sessions, strict=True):
                run.launched = run.launched or session.traces()
            lap("resume" if stage else "launch")
            here = replace(checkpoint, prefix_length=prefix_length)
            with memory:
                masks = [
                    _prune_at(run, check(method, session, backend, here, ledger), session, pruning)
                    for run, session in zip(runs, sessions, strict=True)
                ]
            lap("check")
            for session, mask in zip(sessions, masks, strict=True):
                session.keep(mask)
        for session in sessions:
            session.start(None)
        for run, session in zip(runs, sessions, strict=True):
            run.finished = session.finish()
            run.tokens[run.kept] = [trace.n_tokens for trace in run.finished]
        lap("resume")
    finally:
        for session in sessions:
            session.close()
    for run, session in zip(runs, sessions, strict=True):
        run.seconds = {phase: seconds / len(sessions) for phase, seconds in spent.items()}
        run.overrun = session.overrun
        run.check_bytes = memory.bytes / len(sessions)
    return runs


def _prune_at(run: ProblemRun, verdict: Check, session: Session, pruning: Pruning) -> np.ndarray:
    """Note what a check said and whom it drops; `(n_live,)` bool, who stays."""
    stage = len(run.checks)
    prefix_length = pruning.stages[stage][0]
    live = run.kept.copy()
    scores = np.full(len(live), np.nan)
    scores[live] = verdict.scores
    traces = session.traces()
    run.tokens[live] = [trace.n_tokens for trace in traces]
    finished = np.zeros(len(live), dtype=bool)
    finished[live] = [t.stopped and t.n_tokens <= prefix_length for t in traces]
    kept = pruning.survivors(stage, scores[None], finished[None], live[None])[0]
    run.checks.append(replace(verdict, scores=scores))
    run.kept = kept
    return kept[live]


class PeakMemory:
    """Adds up how far the blocks under it raised GPU memory above where they began, in bytes; NaN
    on a machine without a GPU in use."""

    def __init__(self) -> None:
        self.bytes = float("nan")

    def __enter__(self) -> None:
        torch = sys.modules.get("torch")  # an engine that uses the GPU has loaded it
        self._cuda = torch.cuda if torch is not None and torch.cuda.is_initialized() else None
        if self._cuda is not None:
            self._cuda.reset_peak_memory_stats()
            self._before = self._cuda.memory_allocated()

    def __exit__(self, *_: object) -> None:
        if self._cuda is not None:
            raised = self._cuda.max_memory_allocated() - self._before
            self.bytes = float(np.nansum([self.bytes, raised]))

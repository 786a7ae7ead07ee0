"""Short probes of an engine and of a method: how long a token and a scored prefix take here.

Used by the dry run. A few paths of a few problems, for a few seconds; nothing is stored. Knows
neither what is missing nor how it is printed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from prunebench.backend import Backend
from prunebench.bankfile import StatsDtype, encode
from prunebench.config import RunConfig
from prunebench.engine import Checkpoint, check
from prunebench.evaluate import pool_of
from prunebench.lab import Lab, Stored
from prunebench.types import TOKEN_STATS, Problem

LIMIT_S = 4.0
"""Seconds after which a probe begins no further step; a step at least is made."""
N_PROBLEMS, N_PATHS = 4, 16
FIRST_STEP = 32
"""Tokens of the first step, whose time is not counted; every step doubles the length."""


@dataclass(frozen=True, kw_only=True)
class GenerationProbe:
    """What a few paths told.

    Attributes
    ----------
    seconds_per_token : of one engine with this many paths in a batch.
    lengths : tokens of each path; those that had not ended count as `max_new_tokens`.
    bytes_per_token : in the format of the trace bank.
    n_open : paths that had not ended, so that their lengths are upper bounds.
    stored : the paths as far as they came, to score them.
    about : what was done, for people.
    """

    seconds_per_token: float
    lengths: np.ndarray
    bytes_per_token: float
    n_open: int
    stored: list[Stored]
    about: str


def probe_generation(
    backend: Backend, problems: list[Problem], n_paths: int, stats_dtype: StatsDtype
) -> GenerationProbe:
    """Launch the first paths of the first problems and let them run for a few seconds."""
    problems, indices = problems[:N_PROBLEMS], list(range(min(n_paths, N_PATHS)))
    longest = backend.spec.sampling.max_new_tokens
    backend.load()
    sessions = backend.open_together(problems, indices)
    begun, warm_s, warm_tokens, target, n_tokens = time.perf_counter(), 0.0, 0, 0, 0
    while True:
        target = min(longest, 2 * target or FIRST_STEP)
        for session in sessions:
            session.start(target)
        for session in sessions:
            session.advance(target)
        spent = time.perf_counter() - begun
        traces = [session.traces() for session in sessions]
        lengths = np.array([t.n_tokens for group in traces for t in group])
        stopped = np.array([t.stopped for group in traces for t in group])
        n_tokens = int(lengths.sum())
        if target >= longest or stopped.all() or spent >= LIMIT_S:
            break
        if not warm_tokens:
            warm_s, warm_tokens = spent, n_tokens
    stored = [
        Stored(
            problem=session.problem,
            prompt_ids=session.prompt_ids,
            traces=group,
            pool=pool_of(session.problem.id, group),
        )
        for session, group in zip(sessions, traces, strict=True)
    ]
    for session in sessions:
        session.close()
    is_open = ~stopped & (lengths < longest)
    sizes = [
        len(encode(s.problem, s.prompt_ids, s.traces, bank="", stats_dtype=stats_dtype))
        for s in stored
    ]
    return GenerationProbe(
        seconds_per_token=(spent - warm_s) / max(1, n_tokens - warm_tokens),
        lengths=np.where(is_open, longest, lengths),
        bytes_per_token=sum(sizes) / max(1, n_tokens),
        n_open=int(is_open.sum()),
        stored=stored,
        about=f"{len(lengths)} paths of {len(problems)} problems, {n_tokens:,} tokens in "
        f"{spent:.1f} s",
    )


def raw_bytes_per_token(stats_dtype: StatsDtype) -> int:
    """Of the trace bank's format, before compression: token id, statistics, some text."""
    each = np.dtype(stats_dtype.value).itemsize
    return 4 + each * (len(TOKEN_STATS) - 1) + 4 + 4  # sum_logprobs is always float32


def probe_scoring(
    run: RunConfig, lab: Lab, stored: list[Stored], prefix_length: int
) -> tuple[float, str]:
    """Let the method of `run` score a few prefixes of the first problems.

    Returns
    -------
    seconds : per prefix of `prefix_length` tokens, states that are rebuilt included; prefixes that
        were shorter are scaled up linearly.
    about : what was done, for people.
    """
    stored = stored[:N_PROBLEMS]
    replay = lab.replay(run, {item.problem.id: item for item in stored})
    method = lab.ready(lab.prepared(run), run)
    at = min(prefix_length, max(int(item.pool.lengths.max()) for item in stored))
    checkpoint = Checkpoint(prefix_length=at, seed=run.seed, check_steps=run.dataset.check_steps)
    rates, n_scored, reason, begun = [], 0, None, 0.0
    for item in [stored[0], *stored]:
        session = replay.open(item.problem, item.pool.indices[:N_PATHS].tolist())
        session.advance(at)
        start = time.perf_counter()
        verdict = check(method, session, replay, checkpoint, lab.ledger)
        session.close()
        if not begun:  # the first time is warming up
            begun = time.perf_counter()
            continue
        rates.append((time.perf_counter() - start) / len(verdict.scores))
        n_scored += len(verdict.scores)
        if np.isnan(verdict.scores).all():
            reason = verdict.reason
        if time.perf_counter() - begun >= LIMIT_S:
            break
    about = f"{n_scored} prefixes of {at} tokens in {time.perf_counter() - begun:.2g} s"
    if reason is not None:
        about += f" (without a score: {reason})"
    return float(np.median(rates)) * prefix_length / max(1, at), about

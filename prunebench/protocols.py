"""Runs of rules that decide which paths are sampled at all, replayed on a bank's paths.

The rules themselves are pure functions in `stopping`; this module gives them orders of drawing, and
turns what they did into a problem's result. No signal is involved, so nothing is scored.
"""

from __future__ import annotations

import numpy as np

from prunebench import stopping
from prunebench.config import RunConfig
from prunebench.errors import NOT_AVAILABLE
from prunebench.evaluate import ProblemResult, failed_problem, sampled_outcome
from prunebench.lab import Stored
from prunebench.modes import Protocol
from prunebench.types import SignalType


def sampled(run: RunConfig, stored: Stored, subsets: np.ndarray) -> ProblemResult:
    """What the rule of `run.protocol` does to one problem, over random orders of drawing.

    Parameters
    ----------
    subsets : `(R, n)` int positions in the pool; a single one is drawn in
        `evaluation.n_subsets` orders.
    """
    pool, options = stored.pool, run.stopping
    if len(subsets) == 1:
        subsets = np.repeat(subsets, run.evaluation.n_subsets, axis=0)
    rng = np.random.default_rng([run.seed, 3, *stored.problem.id.encode()])
    order = rng.permuted(subsets, axis=1)
    codes, lengths = pool.codes[order], pool.lengths[order]
    weights = None
    if run.protocol is Protocol.adaptive_consistency:
        stopped = stopping.adaptive_consistency(codes, lengths, threshold=options.threshold)
    elif run.protocol is Protocol.esc:
        stopped = stopping.esc(codes, lengths, window=options.window)
    else:
        confidence = [trace.stats.top_logprobs for trace in stored.traces]
        if any(values is None for values in confidence):
            return failed_problem(
                stored.problem.id, f"{NOT_AVAILABLE} top_logprobs, which the paths lack"
            )
        stopped = stopping.deepconf_online(
            codes,
            lengths,
            order,
            [
                stopping.group_minima(-values, options.group)
                for values in confidence
                if values is not None
            ],
            n_warmup=options.n_warmup,
            top=options.top,
            consensus=options.consensus,
        )
        weights = stopped.weights
    return sampled_outcome(
        pool, order, voters=stopped.voters, tokens=stopped.tokens, weights=weights
    )


def describe(run: RunConfig) -> str:
    """The rule with its parameters, in words for tables."""
    options = run.stopping
    return {
        Protocol.prune: "",
        Protocol.adaptive_consistency: f"threshold {options.threshold:g}",
        Protocol.esc: f"windows of {options.window}",
        Protocol.deepconf_online: (
            f"warm-up {options.n_warmup}, top {options.top:g}%, groups of {options.group}, "
            f"consensus {options.consensus:g}"
        ),
    }[run.protocol]


def type_of(run: RunConfig) -> SignalType:
    """Place in the taxonomy: of the method, or of the rule: answers are text, confidence is the
    model's own."""
    return {
        Protocol.prune: run.method.type,
        Protocol.adaptive_consistency: SignalType.I,
        Protocol.esc: SignalType.I,
        Protocol.deepconf_online: SignalType.III,
    }[run.protocol]

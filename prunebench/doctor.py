"""`prunebench doctor`: what is installed, what each engine gives, and whether two engines agree.

The self-test draws a few prefixes on one engine, scores them there, scores the same prefixes with
transformers, and compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from prunebench import registry
from prunebench.backend import Backend
from prunebench.backends.replay import ReplayBackend
from prunebench.config import RunConfig
from prunebench.engine import Checkpoint, check
from prunebench.environment import environment
from prunebench.errors import ConfigError
from prunebench.lab import Lab
from prunebench.types import Capability, Problem, Trace

TOLERANCE = {"float32": 1e-4}
"""Largest difference of scores that is rounding, by number format."""
SHORT_TOLERANCE = 0.25
"""The same for formats with fewer digits: scores are logits."""

Pools = dict[str, tuple[np.ndarray, list[Trace]]]


def report(console: Console) -> None:
    """Print versions, hardware and what the engines provide."""
    found = environment()
    console.print(f"prunebench {found['prunebench']}, Python {found['python']}", markup=False)
    for name, version in found["libraries"].items():
        console.print(f"  {name:13}{version or 'not installed'}", markup=False)
    hardware = found["hardware"]
    gpus = ", ".join(hardware["gpu"]) or "no GPU"
    console.print(f"  {hardware['cpu']}, {hardware['cores']} cores, {gpus}", markup=False)
    for name, cls in registry.engines().items():
        backend = cls()
        gives = ", ".join(c.value for c in Capability if c in backend.provides)
        state = backend.unusable or f"gives {gives}"
        console.print(f"backend={name}: {state}", markup=False)


def self_test(run: RunConfig, console: Console, n_paths: int = 8) -> float:
    """The largest difference of scores between the engine of `run` and transformers.

    Raises `ConfigError` when the method has no scores on both, or when they differ by more than
    rounding.
    """
    name = registry.method_name(run.method)
    if run.method.joint or Capability.CACHE_READER not in run.method.requires:
        raise ConfigError(
            f"The self-test compares scores of a learned reader: method=stop or otv. Got "
            f"method={name}."
        )
    problems = run.dataset.problems()[:3]
    if hasattr(run.backend, "cache_dir"):  # replies of a server from before would prove nothing
        run = replace(run, backend=replace(run.backend, cache_dir=None))  # type: ignore[type-var]
    here, pools = _score(run, problems, n_paths, None)
    reference = registry.backends()["transformers"]()
    if hasattr(run.backend, "dtype"):
        setattr(reference, "dtype", run.backend.dtype)  # noqa: B010  no option of every engine
    other = replace(run, backend=reference)
    there, _ = _score(other, problems, n_paths, pools)
    largest = float(np.abs(here - there).max())
    dtype = str(run.backend.identity().get("dtype", "number format unknown"))
    limit = TOLERANCE.get(dtype, SHORT_TOLERANCE)
    console.print(
        f"{name} on {run.model.name}, {here.size} prefixes of {run.prefix_length} tokens: "
        f"largest difference of scores between backend={_stem(run.backend)} and "
        f"backend=transformers {largest:.1e} ({dtype}; scores spread over {np.ptp(there):.2f})",
        markup=False,
    )
    if not largest <= limit:
        raise ConfigError(
            f"The scores of backend={_stem(run.backend)} must agree with those of "
            f"backend=transformers to {limit:g}. They differ by {largest:.2g}: do not use this "
            f"engine for {name}, and report the versions above."
        )
    return largest


def _score(
    run: RunConfig, problems: Sequence[Problem], n_paths: int, pools: Pools | None
) -> tuple[np.ndarray, Pools]:
    """Scores `(n_problems, n_paths)` of live prefixes, or of those in `pools`, and the prefixes."""
    lab = Lab()
    backend: Backend = lab.backend(run)
    method = lab.ready(lab.prepared(run), run)
    source = backend
    if pools is not None:
        known = pools
        source = ReplayBackend(lookup=lambda problem: known[problem.id], source=backend)
        source.bind(backend.spec, run.seed)
    checkpoint = Checkpoint(prefix_length=run.prefix_length, seed=run.seed)
    rows, drawn = [], {}
    try:
        for problem in problems:
            session = source.open(problem, range(n_paths))
            session.advance(run.prefix_length)
            drawn[problem.id] = (session.prompt_ids, session.traces())
            verdict = check(method, session, source, checkpoint)
            session.close()
            if verdict.reason is not None:
                raise ConfigError(f"backend={_stem(backend)} cannot score: {verdict.reason}")
            rows.append(verdict.scores)
    finally:
        backend.close()
    return np.stack(rows), drawn


def _stem(backend: Any) -> str:
    return type(backend).__module__.rsplit(".", 1)[-1]

"""What a run would do, without doing it: `dry_run=true`.

Counts the paths and scores that are not stored, estimates tokens, bytes and seconds from what is
stored or from a short probe (`probing.py`), and says which cells cannot run and why. Makes no bank,
no score and no record. What becomes of the plans is in `plans.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from prunebench import compat, registry, trainfirst
from prunebench.bank import Bank
from prunebench.cells import REFERENCES
from prunebench.config import RunConfig, plain
from prunebench.errors import ConfigError, Incompatible, PrunebenchError
from prunebench.execution import plan as draw_plan
from prunebench.filling import engines_wanted
from prunebench.lab import Lab, Stored
from prunebench.modes import Mode, Protocol
from prunebench.plans import UNKNOWN, Owed, Plan, leave, lines
from prunebench.probing import (
    GenerationProbe,
    probe_generation,
    probe_scoring,
    raw_bytes_per_token,
)
from prunebench.scoring import table_of
from prunebench.storage import content_hash
from prunebench.types import STATES, Capability, Problem

SCORE_BYTES = 20
"""Of one score in a table: an index, and a number with 17 digits."""

_PROBES: dict[str, GenerationProbe] = {}
_RATES: dict[tuple[str, str], tuple[float, str]] = {}
"""Seconds per token of a prefix, and what was probed, by bank and method."""


def show(run: RunConfig, lab: Lab, console: Console, label: str, folder: Path) -> bool:
    """Print what a run would do and leave its plan in `folder`; False when the run would fail."""
    plan = Plan(
        label=label,
        where=f"{run.model.name} on {run.dataset.name}, {run.mode.value}",
        method=registry.method_name(run.method),
        backend=type(run.backend).__module__.rpartition(".")[2],
    )
    try:
        _fill_in(plan, run, lab)
    except Incompatible as error:
        plan.reason, plan.skipped = str(error), run.imported
    except (PrunebenchError, OSError) as error:
        plan.reason = str(error)
    except Exception as error:  # a cell that cannot even be planned is a fact about that cell
        if run.debug:
            raise
        plan.reason = f"{type(error).__name__}: {error}"
    for line in lines(plan):
        console.print(line, markup=False, highlight=False)
    leave(plan, folder)
    return not plan.reason or plan.skipped


def _fill_in(plan: Plan, run: RunConfig, lab: Lab) -> None:
    """Raises when the run could not begin, with the error that it would meet."""
    extra = lab.beside_engine(run)
    engines = {n: cls().provides for n, cls in registry.engines().items()}
    engines[plan.backend] = run.backend.provides
    plan.lacks = {
        name: [c.value for c in compat.missing(run.method.requires, provides | extra)]
        for name, provides in engines.items()
    }
    run.validate()
    plan.where += f", checkpoint {run.prefix_length}"
    backend = lab.backend(run)
    lab.pair(run)
    if run.backend.unusable is not None:
        raise Incompatible(run.backend.unusable)
    backend.identity()
    trained = trainfirst.weights_place(run)
    untrained = trained is not None and not trainfirst.is_trained(trained)
    if untrained:
        plan.notes.append("trains its method first; how long that and scoring take is unknown")
    elif trained is not None:
        run.method.checkpoint = str(trained)
    if not untrained:
        plan.notes += lab.leakage(run)
    problems = run.dataset.problems()
    plan.n_problems = len(problems)
    whole, sample = _plan_paths(plan, run, lab, problems)
    run.settle([item.pool.lengths for item in whole.values()])
    runs = [run]
    if run.weights is not None:
        other = replace(run, method=registry.method_class(run.weights)(), weights=None)
        lab.pair(other)
        lab.leakage(other)
        runs.append(other)
    joint = any(r.method.joint for r in runs)
    options = run.evaluation
    plan.n_subsets = options.n_subsets_joint if joint else options.n_subsets
    if run.protocol is not Protocol.prune:
        return
    if run.pool == run.n_paths or run.mode is Mode.online:
        plan.n_subsets = 1
    if run.mode is Mode.replay and plan.label in REFERENCES:
        return
    if untrained:  # a table of scores is found by the weights
        per_problem = {p.id: run.pool for p in problems}
        plan.scores = [
            Owed(
                place=f"{trained} at {length}",
                things=per_problem,
                n_stored=0,
                bytes_each=SCORE_BYTES,
            )
            for length, _ in run.pruning.stages
        ]
        return
    for own in runs:
        stages = run.pruning.stages
        if own is not run:
            stages = ((run.longest if run.weights_at_end else run.pruning.prefix_length, run.keep),)
        plan.scores += _owed_scores(own, lab, plan, problems, whole, stages, joint)
        for owed, (length, _) in zip(plan.scores[-len(stages) :], stages, strict=True):
            owed.bytes_each = SCORE_BYTES
            if owed.things:
                owed.seconds_each = _rate(own, lab, plan, sample, length)


def _plan_paths(
    plan: Plan, run: RunConfig, lab: Lab, problems: Sequence[Problem]
) -> tuple[dict[str, Stored], list[Stored]]:
    """Put the missing paths into the plan. Returns the problems that the bank holds whole, and a
    few with paths to score in a probe."""
    folder, _ = lab.bank_place(run)
    bank = lab.bank(run) if (folder / "manifest.json").exists() else None
    whole = lab.stored(run) if bank is not None else {}
    if run.mode is Mode.online:
        return whole, _plan_live_paths(plan, run, lab, problems, whole)
    missing = {p.id: bank.missing(p, run.pool) if bank else range(run.pool) for p in problems}
    owed = Owed(
        place=str(folder.absolute()),
        things={f"{name} {index}": 1 for name, indices in missing.items() for index in indices},
        n_stored=len(problems) * run.pool - sum(map(len, missing.values())),
    )
    plan.paths.append(owed)
    if not owed.things:
        return whole, list(whole.values())
    if run.imported:
        raise ConfigError(
            f"The imported bank {run.bank.name!r} lacks {owed.n} of the {run.pool} paths for each "
            f"of its {len(problems)} problems, and nothing here can make them. Lower 'n_paths' or "
            f"'pool_size'."
        )
    probe = _probe(plan, run, lab, owed.place, problems)
    lengths, size = _stored_sizes(bank, problems) if bank is not None else ([], 0)
    if lengths:
        plan.notes.append(f"length and size of a path: mean of {len(lengths)} stored ones")
        owed.tokens_each, owed.bytes_each = float(np.mean(lengths)), size / len(lengths)
    else:
        owed.tokens_each = run.longest if probe is None else float(probe.lengths.mean())
        dtype = run.bank.stats_dtype
        each = raw_bytes_per_token(dtype) if probe is None else probe.bytes_per_token
        owed.bytes_each = owed.tokens_each * each
    if probe is not None:
        n_engines = engines_wanted(run.backend, run.workers)
        owed.seconds_each = owed.tokens_each * probe.seconds_per_token / n_engines
    return whole, list(whole.values()) or ([] if probe is None else probe.stored)


def _plan_live_paths(
    plan: Plan, run: RunConfig, lab: Lab, problems: Sequence[Problem], whole: dict[str, Stored]
) -> list[Stored]:
    """An online run launches all paths anew, and finishes the kept ones only."""
    probe = _probe(plan, run, lab, str(lab.bank_place(run)[0].absolute()), problems)
    lengths = np.array([run.longest]) if probe is None else probe.lengths
    if whole:
        lengths = np.concatenate([item.pool.lengths for item in whole.values()])
    tokens, before, share = 0.0, np.zeros(len(lengths)), 1.0
    for until, keep in [*run.pruning.stages, (run.longest, 0)]:
        reached = np.minimum(lengths, until)
        tokens += share * float((reached - before).mean())
        before, share = reached, keep / run.n_paths
    live = Owed(
        place=f"live: {plan.label}, {plan.where}, {run.pruning.stages}",
        things={f"{p.id} {i}": 1 for p in problems for i in range(run.n_paths)},
        n_stored=0,
        tokens_each=tokens,
        bytes_each=0.0,
    )
    if probe is not None:
        live.seconds_each = tokens * probe.seconds_per_token
    plan.paths.append(live)
    return [] if probe is None else probe.stored


def _probe(
    plan: Plan, run: RunConfig, lab: Lab, place: str, problems: Sequence[Problem]
) -> GenerationProbe | None:
    """The probe of the engine for this bank, made once; None for a server."""
    backend = lab.backend(run)
    if backend.remote:
        plan.notes.append("no probe of a server, whose requests cost: seconds unknown")
        return None
    if place not in _PROBES:
        dtype = run.bank.stats_dtype
        _PROBES[place] = probe_generation(backend, list(problems), run.pool, dtype)
    probe = _PROBES[place]
    note = f"generation probe: {probe.about}, extrapolated linearly"
    if probe.n_open:
        note += f"; {probe.n_open} paths had not ended and count as {run.longest:,} tokens"
    plan.notes.append(note)
    return probe


def _stored_sizes(bank: Bank, problems: Sequence[Problem]) -> tuple[list[int], int]:
    """Tokens of every stored path of these problems, and bytes of their files."""
    lengths, size = [], 0
    for problem in problems:
        if (content := bank.read(problem)) is not None:
            lengths += [trace.n_tokens for trace in content[1]]
            size += bank.size(problem)
    return lengths, size


def _owed_scores(
    run: RunConfig,
    lab: Lab,
    plan: Plan,
    problems: Sequence[Problem],
    whole: dict[str, Stored],
    stages: Sequence[tuple[int, int]],
    joint: bool,
) -> list[Owed]:
    """What the method of `run` still has to score, per checkpoint.

    Parameters
    ----------
    joint : the subsets are those of a joint method (see `execution.plan`).
    """
    if run.mode is Mode.online:
        counts = [run.n_paths, *(keep for _, keep in stages)]
        place = plan.paths[0].place
        return [
            Owed(place=f"{place} at {at}", things={p.id: n for p in problems}, n_stored=0)
            for (at, _), n in zip(stages, counts, strict=False)
        ]
    folder, key = lab.bank_place(run)
    found, n_rows = [], plan.n_subsets
    subsets = draw_plan(run, whole.values(), joint=joint)
    alive = {name: np.ones(rows.shape, dtype=bool) for name, rows in subsets.items()}
    for stage, (length, _) in enumerate(stages):
        table = table_of(run, lab, folder, content_hash(key), length)
        every: dict[str, int] = {}
        things: dict[str, int] = {}
        for problem in problems:
            if not run.method.joint:
                missing = table.missing(problem.id, list(range(run.pool)), joint=False)
                every |= {f"{problem.id} {index}": 1 for index in range(run.pool)}
                things |= {f"{problem.id} {index}": 1 for index in missing}
                continue
            if problem.id not in alive:  # nobody knows yet which paths these are
                n_paths = stages[stage - 1][1] if stage else run.n_paths
                unknown = {f"{problem.id} {n_paths} #{row}": n_paths for row in range(n_rows)}
                every |= unknown
                things |= unknown
                continue
            pool, rows = whole[problem.id].pool, subsets[problem.id]
            mask, scores = alive.pop(problem.id), np.full(rows.shape, np.nan)
            complete = True
            for row, left in enumerate(mask):
                indices = pool.indices[rows[row, left]].tolist()
                name = f"{problem.id} {indices}"
                every[name] = len(indices)
                batch = table.get(problem.id, indices, joint=True)
                if batch is None:
                    things[name], complete = len(indices), False
                else:
                    scores[row, left] = batch.scores
            if complete:
                finished = pool.finished(length)[rows]
                alive[problem.id] = run.pruning.survivors(stage, scores, finished, mask)
        n_stored = sum(every.values()) - sum(things.values())
        found.append(Owed(place=str(table.path.absolute()), things=things, n_stored=n_stored))
    return found


def _rate(run: RunConfig, lab: Lab, plan: Plan, sample: list[Stored], length: int) -> float:
    """Seconds per prefix of `length` tokens; a method is probed once per bank."""
    name = registry.method_name(run.method)
    states = run.method.requires & (STATES | {Capability.PROBE})
    if lab.judge(run) is not None or (run.backend.remote and states):
        plan.notes.append(f"{name} asks a server, whose requests cost: seconds unknown")
        return UNKNOWN
    if not sample:
        plan.notes.append(f"no paths to probe {name} with: seconds unknown")
        return UNKNOWN
    key = (
        str(lab.bank_place(run)[0]),
        repr((plain(run.method), lab.prepared(run).checkpoint_hash)),
    )
    if key not in _RATES:
        seconds, about = probe_scoring(run, lab, sample, length)
        _RATES[key] = (seconds / length, about)
    seconds, about = _RATES[key]
    plan.notes.append(f"probe of {name}: {about}, extrapolated linearly")
    return seconds * length

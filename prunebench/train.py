"""`prunebench train`: Monte-Carlo labels, then fit, then save, for any `Trainable` method."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from prunebench import compat, grading, labels, registry
from prunebench.backend import Backend
from prunebench.backends.transformers import TransformersBackend
from prunebench.checkpoints import record_training, trained_folder
from prunebench.config import RunConfig
from prunebench.datasets import Arithmetic, make_problem
from prunebench.errors import ConfigError
from prunebench.filling import on_gpu
from prunebench.lab import found_weights
from prunebench.method import Context, LabelledPrefix, Trainable
from prunebench.types import Capability, Problem

MOST = 4
"""Prefixes of one problem and length to learn from: more problems teach more than more paths."""


def train(run: RunConfig, console: Console) -> Path:
    """Train the run's method for its model; the folder with the trained weights.

    Interrupted, it continues where it stopped: labels are kept chunk by chunk, and a method may
    keep its own state in the labels' folder.
    """
    name, options = registry.method_name(run.method), run.train
    method: Any = run.method
    if not isinstance(method, Trainable):
        raise ConfigError(
            f"The method {name!r} has nothing to train. Learnable methods: "
            f"{', '.join(n for n, c in registry.methods().items() if issubclass(c, Trainable))}."
        )
    if not method.needs_training:
        raise ConfigError(
            f"With these options the method {name!r} takes weights that were published; there is "
            f"nothing to train. Leave them out to train it for {run.model.name!r}."
        )
    run.validate()
    # found first: without them there is nothing to combine
    found = {registry.method_name(part): found_weights(part, run)[0] for part in run.method.parts}
    parts = {part: folder for part, folder in found.items() if folder is not None}
    backend = run.backend
    backend.bind(run.spec(), options.seed)
    compat.check(
        name,
        run.method.requires | method.fit_requires | {Capability.CONTINUE},
        backend=type(backend).__module__.rsplit(".", 1)[-1],
        provides=backend.provides,
        providers={n: c().provides for n, c in registry.engines().items()},
    )
    if not isinstance(backend, TransformersBackend):
        raise ConfigError(
            f"Training runs on backend=transformers. Got "
            f"backend={type(backend).__module__.rsplit('.', 1)[-1]} instead."
        )
    plan = labels.Plan(
        roots=options.prefixes_per_problem,
        prefix_lengths=tuple(sorted(options.prefix_lengths or around(run.prefix_length))),
        n_continuations=options.n_continuations,
        seed=options.seed,
        rows=options.rows,
    )
    problems = training_problems(run, console)
    sampler = labels.quick(backend)
    folder = labels.folder_for(Path(options.label_dir), label_identity(run, sampler), plan)
    console.print(f"Labels of {len(problems)} problems: {folder}")
    with Progress(console=console) as progress:
        bar = progress.add_task("labelling", total=len(problems))
        labels.make(
            folder,
            sampler,
            problems,
            plan,
            workers=1 if on_gpu(backend) else run.n_workers,
            progress=lambda n: progress.advance(bar, n),
        )
    found = mixed(labels.read(folder, problems, plan))
    train_set, valid_set = split(found, options.valid_share, options.seed)
    if not train_set or not valid_set:
        raise ConfigError(
            f"There is nothing to learn from: of {len(problems)} problems, those with both right "
            f"and wrong continuations give {len(train_set)} prefixes to train on and "
            f"{len(valid_set)} held out. Raise 'train.n_problems', or take problems that the model "
            f"solves sometimes."
        )
    console.print(f"{len(train_set)} prefixes to train on, {len(valid_set)} held out.")
    method.fit(
        train_set,
        valid_set,
        Context(
            model_name=run.model.name,
            backend=backend,
            seed=options.seed,
            work_dir=folder,
            part_weights=parts,
        ),
    )
    output = trained_folder(options.output, run.model.name, method.weights_of or name)
    method.save(output)
    used = {example.problem_id for example in (*train_set, *valid_set)}
    record_training(output, run.dataset.name, [p.question for p in problems if p.id in used])
    return output


def around(prefix_length: int) -> list[int]:
    """The prefix lengths that are labelled for a checkpoint: half of it to twice as long."""
    return sorted({max(1, round(prefix_length * f)) for f in (0.5, 0.75, 1, 1.5, 2)})


def label_identity(run: RunConfig, sampler: Backend) -> dict[str, Any]:
    """What determines the labels, beside the plan."""
    spec = sampler.spec
    return {
        "engine": sampler.identity(),
        "prompt": [spec.prompt, spec.chat, spec.answer],
        **grading.identity(spec.answer),
        **({"chat_kwargs": spec.chat_kwargs} if spec.chat_kwargs else {}),
        "sampling": vars(spec.sampling),
        "dataset": run.dataset.name,
    }


def training_problems(run: RunConfig, console: Console) -> list[Problem]:
    """Problems to label: the embedded task's own split for labels, or the dataset as it is."""
    n = run.train.n_problems
    if not isinstance(run.dataset, Arithmetic):
        console.print(
            "The training problems are those of the dataset itself. They are recorded beside the "
            "weights, and a run that would evaluate the method on them is refused.",
            style="yellow",
        )
        return run.dataset.problems()[:n]
    from prunebench.tiny.task import make_problems

    drawn = make_problems(run.train.seed, n, "labels", hard=run.dataset.hard)
    return [make_problem(question, answer) for question, answer in drawn]


def mixed(examples: Sequence[LabelledPrefix]) -> list[LabelledPrefix]:
    """The examples of problems that have both right and wrong continuations, at most `MOST` of a
    problem and length."""
    right: dict[str, float] = {}
    total: dict[str, int] = {}
    for e in examples:
        right[e.problem_id] = right.get(e.problem_id, 0.0) + e.label
        total[e.problem_id] = total.get(e.problem_id, 0) + 1
    taken: dict[tuple[str, int], int] = {}
    kept = []
    for e in examples:
        group = (e.problem_id, len(e.prefix_ids))
        if 0.0 < right[e.problem_id] < total[e.problem_id] and taken.get(group, 0) < MOST:
            taken[group] = taken.get(group, 0) + 1
            kept.append(e)
    return kept


def split(
    examples: Sequence[LabelledPrefix], valid_share: float, seed: int
) -> tuple[list[LabelledPrefix], list[LabelledPrefix]]:
    """Training and held-out examples. A hash of the problem decides, so none is on both sides."""

    def held_out(problem_id: str) -> bool:
        digest = hashlib.sha256(f"{seed}-{problem_id}".encode()).digest()
        return int.from_bytes(digest[:4], "big") < valid_share * 2**32

    train_set = [e for e in examples if not held_out(e.problem_id)]
    return train_set, [e for e in examples if held_out(e.problem_id)]

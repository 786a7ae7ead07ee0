"""Trains a method with the very options of a run before the run: what an ablation needs.

Weights are found by what determines them, so that a sweep trains each variant once. How a method
is trained is in `train`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from prunebench import registry
from prunebench.checkpoints import trained_folder
from prunebench.config import RunConfig, plain
from prunebench.method import SignalGenerator, Trainable
from prunebench.scores import source_hash
from prunebench.storage import content_hash


def train_first(run: RunConfig, console: Console) -> None:
    """With `train.first`, point the method of a run at weights that were trained with its options,
    training them when there are none. Methods with nothing to train are left alone."""
    folder = weights_place(run)
    if folder is None:
        return
    if not is_trained(folder):
        from prunebench import train

        own = replace(  # the training binds its engine to another seed and fits its method
            run,
            method=replace(run.method, checkpoint=None),
            backend=replace(run.backend),
            train=replace(run.train, output=str(folder.parent.parent)),
        )
        train.train(own, console)
        own.backend.close()
    run.method.checkpoint = str(folder)


def weights_place(run: RunConfig) -> Path | None:
    """The folder of the weights that `train_first` makes or finds; None where it does nothing."""
    method = run.method
    if not run.train.first or not isinstance(method, Trainable) or not method.needs_training:
        return None
    assert isinstance(method, SignalGenerator)
    name = registry.method_name(method)
    where = {"output", "label_dir", "rows", "first"}  # no influence on the weights
    options = {k: v for k, v in plain(run.train).items() if k not in where}
    key = {
        "method": {**plain(method), "checkpoint": None},
        "source": source_hash(type(method)),
        "model": plain(run.spec()),
        "dataset": run.dataset.name,
        "prefix_length": run.prefix_length,
        "train": options,
    }
    output = Path(run.train.output) / "first" / content_hash(key)
    return trained_folder(str(output), run.model.name, method.weights_of or name)


def is_trained(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())

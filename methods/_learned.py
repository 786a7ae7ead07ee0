"""What learnable methods share: weights and a record that are saved, loaded and checked.

Knows files and which model they belong to; knows nothing of what the weights mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path as FilePath
from typing import Any, ClassVar, Self

from prunebench.checkpoints import check_model
from prunebench.errors import ConfigError, DamagedFile
from prunebench.method import Context, SignalGenerator, SignalType, Trainable


@dataclass(kw_only=True)
class Learned(SignalGenerator, Trainable):
    """A learnable method whose state is `weights_` (arrays by name) and `metrics_` (for JSON).

    Class attributes
    ----------------
    weight_names : the arrays that scoring needs.
    structure : options that the weights were made for; scoring with others is refused.
    """

    type = SignalType.IV
    joint = False
    weight_names: ClassVar[frozenset[str]] = frozenset()
    structure: ClassVar[tuple[str, ...]] = ()

    checkpoint: str | None = None

    def __post_init__(self) -> None:
        self.weights_: Any = None
        self.metrics_: dict[str, Any] = {}

    @property
    def is_fitted(self) -> bool:
        return self.weights_ is not None

    @property
    def file_stem(self) -> str:
        """The name of the method and of its files."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def save(self, folder: FilePath) -> None:
        from safetensors.numpy import save_file

        self.check_fitted()
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._arrays(), folder / f"{self.file_stem}.safetensors")
        record = {"options": self._options(), "metrics": self.metrics_}
        (folder / f"{self.file_stem}.json").write_text(json.dumps(record, indent=2) + "\n")

    def load(self, folder: FilePath, context: Context) -> Self:
        from safetensors.numpy import load_file

        name = self.file_stem
        try:
            weights = load_file(folder / f"{name}.safetensors")
            record = json.loads((folder / f"{name}.json").read_text())
            made_with, metrics = record["options"], record["metrics"]
            if lacking := sorted(self.weight_names - weights.keys()):
                raise ValueError(f"{name}.safetensors lacks {lacking[0]!r}")
        except Exception as error:  # readers of JSON and safetensors have many errors of their own
            raise damaged(name, folder, error) from error
        check_model(name, metrics.get("model", {}), context.backend.identity())
        self._check_options(made_with, folder)
        self.weights_, self.metrics_ = weights, metrics
        return self

    def check_weights(self, folder: FilePath) -> None:
        if not self.structure:
            return
        try:
            made_with = dict(json.loads((folder / f"{self.file_stem}.json").read_text())["options"])
        except FileNotFoundError:
            return  # published weights have no record; of ours `load` says that it is missing
        except Exception as error:  # as in `load`
            raise damaged(self.file_stem, folder, error) from error
        self._check_options(made_with, folder)

    def _check_options(self, made_with: dict[str, Any], folder: FilePath) -> None:
        options = self._options()
        for option in self.structure:
            if options[option] != made_with.get(option):
                raise ConfigError(
                    f"The {option!r} parameter of {type(self).__name__} must be that of the "
                    f"trained weights in {folder}, {made_with.get(option)!r}. Got "
                    f"{options[option]!r} instead; train it again for that."
                )

    def _arrays(self) -> dict[str, Any]:
        """The weights as NumPy arrays."""
        return self.weights_

    def _options(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "checkpoint"}
        return {k: v.value if isinstance(v, Enum) else v for k, v in values.items()}


def damaged(name: str, folder: FilePath, error: Exception) -> DamagedFile:
    """The error for files that cannot be read."""
    return DamagedFile(
        f"The trained {name} in {folder} cannot be read ({error}). Train it again, or copy it "
        f"again."
    )

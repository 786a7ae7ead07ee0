"""A reader of the path's own key-value cache: learned tokens, a LoRA adapter and a linear head.

Shared by `stop` and `otv`, which differ in their targets and defaults.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path as FilePath
from typing import Any, Self

import numpy as np

from prunebench.backend import ReaderWeights
from prunebench.checkpoints import fingerprint
from prunebench.method import Capability, Context, LabelledPrefix, PathGroup

from ._learned import Learned, damaged


@dataclass(kw_only=True)
class CacheReader(Learned):
    """Scores by the logit of a head on the last learned token's last-layer state.

    Files: `<method>.safetensors` (embeddings, head), `<method>.json` and a PEFT folder `adapter`.
    """

    requires = frozenset({Capability.CACHE_READER})
    weight_names = frozenset({"embeddings", "head.weight", "head.bias"})
    structure = ("centred",)  # which says whether scores are logits of a probability

    n_tokens: int = 4
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.1
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 50
    batch_size: int = 128
    epochs: float = 2.0
    eval_every: int = 150
    cache_gb: float = 8.0
    centred: bool = True
    adapter: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weights_: Any = None  # embeddings (m, hidden), head.weight (hidden,), head.bias ()
        self.name_ = ""  # of the reader in the engine, which may hold those of other checkpoints
        self.adapter_: Any = None  # LoRA matrices by PEFT's names

    def score(self, group: PathGroup) -> np.ndarray:
        self.check_fitted()
        logits = group.internals.reader_scores(self.name_)
        # Equal prefixes must tie, whatever the last bits of their batch.
        first: dict[bytes, int] = {}
        for i, path in enumerate(group.paths):
            logits[i] = logits[first.setdefault(path.token_ids.tobytes(), i)]
        return np.round(logits, 5)

    def probabilities(self, scores: np.ndarray) -> np.ndarray | None:
        return None if self.centred else 1 / (1 + np.exp(-scores))

    def targets(self, examples: Sequence[LabelledPrefix]) -> Sequence[LabelledPrefix]:
        """The examples with the labels that the reader learns."""
        return examples

    def fit(
        self, train: Sequence[LabelledPrefix], valid: Sequence[LabelledPrefix], context: Context
    ) -> Self:
        from prunebench.cachereader import train_reader

        learnt = train_reader(
            context.backend.model(),
            self._recipe(),
            self.targets(train),
            self.targets(valid),
            seed=context.seed,
            work_dir=context.work_dir,
        )
        self.weights_, self.adapter_ = learnt.weights, learnt.adapter
        self.metrics_ = {**learnt.metrics, "model": context.backend.identity()}
        with tempfile.TemporaryDirectory() as folder:  # ready to score, like after load
            self.save(FilePath(folder))
            return self.load(FilePath(folder), context)

    def save(self, folder: FilePath) -> None:
        from prunebench.cachereader import save_adapter

        self.check_fitted()
        save_adapter(folder / "adapter", self._recipe(), self.adapter_)
        super().save(folder)

    def load(self, folder: FilePath, context: Context) -> Self:
        from safetensors.torch import load_file

        super().load(folder, context)
        file = folder / "adapter" / "adapter_model.safetensors"
        try:
            self.adapter_ = load_file(file)
        except Exception as error:  # the reader of safetensors has many errors of its own
            self.weights_ = None
            raise damaged(self.file_stem, folder, error) from error
        reader = ReaderWeights(
            embeddings=self.weights_["embeddings"],
            head_weight=self.weights_["head.weight"],
            head_bias=float(self.weights_["head.bias"]),
            adapter=folder / "adapter",
        )
        return self.use(reader, folder, context)

    def use(self, reader: ReaderWeights, folder: FilePath, context: Context) -> Self:
        """Score with a reader that was read from a folder."""
        import torch

        name = f"{self.file_stem}_{fingerprint(folder)}"
        context.backend.load_reader(name, reader)
        self.name_ = name
        self.weights_ = {
            "embeddings": torch.from_numpy(reader.embeddings),
            "head.weight": torch.from_numpy(reader.head_weight),
            "head.bias": torch.tensor(reader.head_bias),
        }
        return self

    def _arrays(self) -> dict[str, Any]:
        return {name: value.numpy() for name, value in self.weights_.items()}

    def _recipe(self) -> Any:
        from prunebench.cachereader import Recipe

        return Recipe(**{f.name: getattr(self, f.name) for f in fields(Recipe)})

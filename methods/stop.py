"""STOP: a few learned tokens read the path's own cache and say how likely it is to end right.

m `[STOP]` tokens with learned embeddings e_1..e_m run after the prefix, on a temporary view of its
key-value cache, with a LoRA adapter that is active for these tokens only. A linear head on the
last-layer state h of the last one gives the score S_i = w . h + b, the logit of the probability
that the path ends right. The generating model itself stays frozen.

Training: soft binary cross-entropy against Monte-Carlo labels, the share of continuations of a
prefix that end right (`prunebench train`); the state with the best within-problem AUROC on
held-out problems is kept.

Source: "Cut Your Losses! Learning to Prune Paths Early for Efficient Parallel Reasoning", arXiv
2604.16029, section 3 (https://arxiv.org/abs/2604.16029). The paper trains with rank 128 and up,
alpha twice the rank, learning rate 2e-5 and 15 epochs on models of 1.5B parameters and more.
Ours: defaults for the embedded model; one output instead of two classes (the same function); labels
from several prefix lengths, each continued in a branching tree; each token has its own embedding;
with `centred`, the logit of the problem's mean label is added in the loss, so that nothing is spent
on learning how hard a problem is (the score then ranks paths and is no probability).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from prunebench.checkpoints import check_model
from prunebench.errors import DamagedFile
from prunebench.method import (
    Capability,
    Context,
    LabelledPrefix,
    PathGroup,
    SignalGenerator,
    SignalType,
    Trainable,
)


@dataclass(kw_only=True)
class Stop(SignalGenerator, Trainable):
    """Higher = keep: the logit of the probability that the path ends right.

    Attributes
    ----------
    checkpoint : folder with trained weights; None takes the ones for the model at hand.
    n_tokens : m, number of `[STOP]` tokens.
    rank, alpha, dropout : of the LoRA adapter on all linear layers.
    learning_rate, weight_decay, warmup : of AdamW; the rate falls along a half cosine after
        `warmup` steps.
    batch_size : prefixes per step.
    epochs : passes over the training prefixes.
    eval_every : steps between looks at the held-out problems.
    cache_gb : memory, in GB, for prefix keys and values that are computed once and kept (bf16);
        what does not fit is encoded anew in each step.
    centred : learn the difference to the problem's mean label (its logit is added in the loss),
        which is all that ranking paths of one problem needs, instead of the probability itself.
    """

    type = SignalType.IV
    paper = "arXiv 2604.16029, section 3, https://arxiv.org/abs/2604.16029"
    requires = frozenset({Capability.KV_CACHE})
    joint = False

    checkpoint: str | None = None
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

    def __post_init__(self) -> None:
        self.name_ = ""  # of the adapter in the engine, which may hold those of other checkpoints
        self.weights_: Any = None  # embeddings (m, hidden), head.weight (hidden,), head.bias ()
        self.adapter_: Any = None  # LoRA matrices by PEFT's names
        self.metrics_: dict[str, Any] = {}

    @property
    def is_fitted(self) -> bool:
        return self.weights_ is not None

    def score(self, group: PathGroup) -> np.ndarray:
        self.check_fitted()
        states = group.internals.read(self.weights_["embeddings"], adapter=self.name_)
        logits = states[:, -1] @ self.weights_["head.weight"] + self.weights_["head.bias"]
        # Equal prefixes must tie, whatever the last bits of their batch: four decimals are coarser
        # than float32 rounding across batch shapes.
        return np.round(logits.double().numpy(), 4)

    def fit(
        self, train: Sequence[LabelledPrefix], valid: Sequence[LabelledPrefix], context: Context
    ) -> Stop:
        from prunebench.cachereader import train_reader

        learnt = train_reader(
            context.backend.model(),
            self._recipe(),
            train,
            valid,
            seed=context.seed,
            work_dir=context.work_dir,
        )
        self.weights_, self.adapter_ = learnt.weights, learnt.adapter
        self.metrics_ = {**learnt.metrics, "model": context.backend.identity()}
        with tempfile.TemporaryDirectory() as folder:  # ready to score, like after load
            self.save(FilePath(folder))
            return self.load(FilePath(folder), context)

    def save(self, folder: FilePath) -> None:
        from safetensors.torch import save_file

        from prunebench.cachereader import save_adapter

        self.check_fitted()
        save_adapter(folder / "adapter", self._recipe(), self.adapter_)
        save_file(self.weights_, folder / "stop.safetensors")
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        record = {"options": options, "metrics": self.metrics_}
        (folder / "stop.json").write_text(json.dumps(record, indent=2) + "\n")

    def load(self, folder: FilePath, context: Context) -> Stop:
        from safetensors.torch import load_file

        try:
            weights = load_file(folder / "stop.safetensors")
            adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
            metrics = json.loads((folder / "stop.json").read_text())["metrics"]
        except Exception as error:  # readers of JSON and safetensors have many errors of their own
            raise DamagedFile(
                f"The trained STOP in {folder} cannot be read ({error}). Train it again, or copy "
                f"it again."
            ) from error
        check_model("stop", metrics.get("model", {}), context.backend.identity())
        content = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
        self.name_ = f"stop_{hashlib.sha256(content).hexdigest()[:12]}"
        context.backend.load_adapter(self.name_, folder / "adapter")
        self.weights_, self.adapter_, self.metrics_ = weights, adapter, metrics
        return self

    def _recipe(self) -> Any:
        from prunebench.cachereader import Recipe

        return Recipe(**{f.name: getattr(self, f.name) for f in fields(Recipe)})

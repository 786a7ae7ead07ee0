"""Trains a reader of the key-value cache: learned tokens, a LoRA adapter and a linear head.

The prefix's keys and values come from the frozen model without the adapter; they never change, so
they are computed once and kept while memory lasts. Only methods import this file, and only inside
`fit`: it loads torch and PEFT.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor
from transformers import DynamicCache

from prunebench.method import LabelledPrefix
from prunebench.metrics import auroc
from prunebench.prefixstore import PrefixStore

SMOOTHING = 0.98
"""Weight of the past in the training loss that is shown."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a reader is trained; the fields are those of the method `stop`."""

    n_tokens: int
    rank: int
    alpha: int
    dropout: float
    learning_rate: float
    weight_decay: float
    warmup: int
    batch_size: int
    epochs: float
    eval_every: int
    cache_gb: float
    centred: bool
    adapter: bool

    def lora(self) -> LoraConfig:
        """The adapter: all linear layers."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules="all-linear",
        )

    def rate(self, step: int, n_steps: int) -> float:
        """Learning rate of a step: a linear warm-up under a half cosine."""
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / n_steps))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * cosine


@dataclass(kw_only=True)
class Learnt:
    """The best state seen: `weights` of the reader, `adapter` by PEFT's names, `metrics`."""

    weights: dict[str, Tensor]
    adapter: dict[str, Tensor]
    metrics: dict[str, Any]


def train_reader(
    model: Any,
    recipe: Recipe,
    train: Sequence[LabelledPrefix],
    valid: Sequence[LabelledPrefix],
    *,
    seed: int,
    work_dir: FilePath | None,
) -> Learnt:
    """Train on `train`, keep the state with the best within-problem AUROC on `valid`.

    The model's own weights stay as they are. With `work_dir` an interrupted training continues.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # adapter initialisation and dropout
    frozen = [p for p in model.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    budget = int(recipe.cache_gb * 1e9)
    train_set = PrefixStore(model, train, budget, recipe.centred)
    valid_set = PrefixStore(model, valid, budget - train_set.n_bytes, recipe.centred)
    adapted = get_peft_model(model, recipe.lora(), adapter_name=_NAME)
    try:
        return _train(adapted, recipe, train_set, valid_set, generator, work_dir)
    finally:
        adapted.unload()
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(True)


def save_adapter(folder: FilePath, recipe: Recipe, adapter: dict[str, Tensor]) -> None:
    """Write a PEFT adapter folder."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe.lora().save_pretrained(str(folder))
    save_file(adapter, folder / "adapter_model.safetensors")


_NAME = "reader"


def _train(
    adapted: Any,
    recipe: Recipe,
    train: PrefixStore,
    valid: PrefixStore,
    generator: torch.Generator,
    work_dir: FilePath | None,
) -> Learnt:
    model = train.model
    reader = Reader(model, recipe.n_tokens, generator)
    adapter = [p for p in adapted.parameters() if p.requires_grad]
    if not recipe.adapter:  # it stays as it begins: it adds nothing
        for parameter in adapter:
            parameter.requires_grad_(False)
        adapter = []
    groups = [
        {"params": adapter, "weight_decay": recipe.weight_decay},
        {"params": reader.parameters(), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    per_epoch = max(1, len(train.examples) // recipe.batch_size)
    n_steps = max(1, round(recipe.epochs * per_epoch))
    step, history, best = 0, [], None
    resume = work_dir / f"fit-{_fingerprint(recipe, train, valid)}.pt" if work_dir else None
    if resume and resume.exists():
        state = torch.load(resume, weights_only=True)
        set_peft_model_state_dict(adapted, state["adapter"], adapter_name=_NAME)
        reader.load_state_dict(state["reader"])
        optimizer.load_state_dict(state["optimizer"])
        step, history = state["step"], state["history"]
        best = Learnt(**state["best"])
    with Progress() as progress:
        bar = progress.add_task("training the reader", total=n_steps, completed=step)
        mean_loss, order = math.nan, []
        while step < n_steps:
            at = step % per_epoch
            if at == 0 or not order:
                order = train.order(generator.manual_seed(1 + step // per_epoch))
            batch = order[at * recipe.batch_size : (at + 1) * recipe.batch_size]
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step, n_steps)
            model.train()
            logits = reader(*train.batch(batch))
            loss = F.binary_cross_entropy_with_logits(
                logits + train.offsets[batch], train.labels[batch]
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*adapter, *reader.parameters()], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            value = float(loss.detach())
            started = not math.isnan(mean_loss)
            mean_loss = SMOOTHING * mean_loss + (1 - SMOOTHING) * value if started else value
            step += 1
            progress.update(bar, completed=step)
            if step % recipe.eval_every and step != n_steps:
                continue
            scores = predict(model, reader, valid)
            found = {
                "step": step,
                "train_loss": round(mean_loss, 4),
                "valid_loss": round(valid_loss(scores, valid), 4),
                "valid_auroc": round(within_problem_auroc(scores, valid.examples), 4),
            }
            history.append(found)
            progress.console.print(
                "step {step}: loss {train_loss}, held out: loss {valid_loss}, "
                "within-problem AUROC {valid_auroc}".format(**found)
            )
            if best is None or _rank(found) > _rank(best.metrics):
                sizes = {"n_train": len(train.examples), "n_valid": len(valid.examples)}
                best = Learnt(
                    weights=_copy(reader.weights()),
                    adapter=_copy(get_peft_model_state_dict(adapted, adapter_name=_NAME)),
                    metrics={**found, **sizes},
                )
            if resume:
                state = {
                    "adapter": get_peft_model_state_dict(adapted, adapter_name=_NAME),
                    "reader": reader.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "history": history,
                    "best": vars(best),
                }
                torch.save(state, resume.with_suffix(".tmp"))
                resume.with_suffix(".tmp").replace(resume)
    assert best is not None, "the last step is always evaluated"
    best.metrics["history"] = history
    return best


def _rank(metrics: dict[str, Any]) -> tuple[float, float]:
    """Higher = better: within-problem AUROC, if there is one, then the loss."""
    found = metrics["valid_auroc"]
    return (-1.0 if math.isnan(found) else found, -metrics["valid_loss"])


def _fingerprint(recipe: Recipe, train: PrefixStore, valid: PrefixStore) -> str:
    """Hash of what determines a training, so that only the same one is continued."""
    digest = hashlib.sha256(repr({**vars(recipe), "cache_gb": 0}).encode())
    for store in (train, valid):
        digest.update(store.labels.cpu().numpy().tobytes())
        for row in store.rows:
            digest.update(row.tobytes())
    return digest.hexdigest()[:12]


class Reader(torch.nn.Module):
    """The learned embeddings and the linear head, around a frozen model with an adapter."""

    def __init__(self, model: Any, n_tokens: int, generator: torch.Generator) -> None:
        super().__init__()
        table = model.get_input_embeddings().weight.detach()
        noise = torch.randn(n_tokens, table.shape[1], generator=generator).to(table.device)
        self.embeddings = torch.nn.Parameter(table.float().mean(0) + noise * table.float().std())
        self.head = torch.nn.Linear(table.shape[1], 1).to(table.device)
        self._model = [model]  # in a list, so that it is no submodule

    def forward(self, cache: DynamicCache, mask: Tensor, lengths: Tensor) -> Tensor:
        """Logits `(rows,)` for caches of `lengths` tokens, of which `mask` hides the padding."""
        model = self._model[0]
        rows, m = len(lengths), len(self.embeddings)
        output = model.base_model(
            inputs_embeds=self.embeddings.to(model.dtype).expand(rows, m, -1),
            past_key_values=cache,
            attention_mask=torch.cat([mask, mask.new_ones(rows, m)], 1),
            position_ids=lengths[:, None] + torch.arange(m, device=lengths.device),
            use_cache=True,
        )
        return self.head(output.last_hidden_state[:, -1].float())[:, 0]

    def weights(self) -> dict[str, Tensor]:
        """What scoring needs, by name, on the CPU."""
        return {
            "embeddings": self.embeddings.float().cpu(),
            "head.weight": self.head.weight[0].float().cpu(),
            "head.bias": self.head.bias[0].float().cpu(),
        }


@torch.no_grad()
def predict(model: Any, reader: Reader, store: PrefixStore, batch_size: int = 256) -> np.ndarray:
    """Logits `(n_examples,)` of all examples of a store."""
    model.eval()
    order = sorted(range(len(store.examples)), key=lambda i: store.lengths[i])
    scores = np.empty(len(order))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        scores[chosen] = reader(*store.batch(chosen)).cpu().numpy()
    return scores


def valid_loss(scores: np.ndarray, store: PrefixStore) -> float:
    """Mean soft binary cross-entropy of logits."""
    logits = torch.as_tensor(scores, dtype=torch.float32) + store.offsets.cpu()
    return float(F.binary_cross_entropy_with_logits(logits, store.labels.cpu()))


def within_problem_auroc(scores: np.ndarray, examples: Sequence[LabelledPrefix]) -> float:
    """Mean over (problem, prefix length) of the AUROC between labels above and below one half.

    Prefixes with a label of exactly one half belong to neither side.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for i, example in enumerate(examples):
        if example.label != 0.5:
            groups.setdefault((example.problem_id, len(example.prefix_ids)), []).append(i)
    values = [
        auroc(scores[group], np.array([examples[i].label > 0.5 for i in group]))
        for group in groups.values()
    ]
    return float(np.nanmean(values)) if values else math.nan


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}

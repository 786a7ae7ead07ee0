# (lead: see /tmp/LEAD_NOTE.md, remove this line)
"""STOP: a few learned tokens read the path's own cache and say how likely it is to end right.

m `[STOP]` tokens with learned embeddings are run after the prefix, on a temporary view of its
key-value cache, with a LoRA adapter that is active for these tokens only. A linear head on the
last one's last hidden state gives the score. The generating model itself stays frozen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path as FilePath
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

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
from prunebench.metrics import auroc

ADAPTER = "stop"


@dataclass(kw_only=True)
class Stop(SignalGenerator, Trainable):
    """Learned reader of the cache (Type IV).

    Attributes
    ----------
    checkpoint : folder with trained weights; None takes the ones for the model at hand.
    n_tokens : m, number of `[STOP]` tokens.
    rank, alpha, dropout : of the LoRA adapter on all linear layers.
    learning_rate, weight_decay, warmup : of AdamW; the rate falls along a half cosine.
    batch_size : prefixes per step.
    epochs : passes over the training prefixes.
    eval_every : steps between looks at the held-out problems.
    cache_gb : memory for prefix keys and values that are computed once and kept (bf16); what
        does not fit is encoded anew in each step.
    """

    type: ClassVar[SignalType] = SignalType.IV
    paper: ClassVar[str] = "arXiv 2604.16029 https://arxiv.org/abs/2604.16029"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.KV_CACHE})
    joint: ClassVar[bool] = False

    checkpoint: str | None = None
    n_tokens: int = 4
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 50
    batch_size: int = 128
    epochs: float = 3.0
    eval_every: int = 100
    cache_gb: float = 8.0

    weights_: dict[str, Tensor] | None = field(default=None, init=False, repr=False)
    adapter_: dict[str, Tensor] | None = field(default=None, init=False, repr=False)
    metrics_: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    # ------------------------------------------------------------------------------- scoring

    @property
    def is_fitted(self) -> bool:
        return self.weights_ is not None

    def score(self, group: PathGroup) -> np.ndarray:
        self.check_fitted()
        assert self.weights_ is not None
        states = group.internals.read(self.weights_["embeddings"], adapter=ADAPTER)
        logits = states[:, -1] @ self.weights_["head.weight"] + self.weights_["head.bias"]
        return logits.double().numpy()

    def save(self, folder: FilePath) -> None:
        self.check_fitted()
        assert self.weights_ is not None
        assert self.adapter_ is not None
        adapter = folder / "adapter"
        adapter.mkdir(parents=True, exist_ok=True)
        self._lora_config().save_pretrained(str(adapter))
        save_file(self.adapter_, adapter / "adapter_model.safetensors")
        save_file(self.weights_, folder / "stop.safetensors")
        record = {"options": self._options(), "metrics": self.metrics_}
        (folder / "stop.json").write_text(json.dumps(record, indent=2) + "\n")

    def load(self, folder: FilePath, context: Context) -> Stop:
        try:
            self.weights_ = load_file(folder / "stop.safetensors")
            self.adapter_ = load_file(folder / "adapter" / "adapter_model.safetensors")
            self.metrics_ = json.loads((folder / "stop.json").read_text())["metrics"]
        except Exception as error:  # readers of JSON and safetensors have many errors of their own
            self.weights_ = self.adapter_ = None
            raise DamagedFile(
                f"The trained STOP in {folder} cannot be read ({error}). Train or copy it again."
            ) from error
        context.backend.load_adapter(ADAPTER, folder / "adapter")
        return self

    # ------------------------------------------------------------------------------ training

    def fit(
        self, train: Sequence[LabelledPrefix], valid: Sequence[LabelledPrefix], context: Context
    ) -> Stop:
        model = context.backend.model()
        generator = torch.Generator().manual_seed(context.seed)
        torch.manual_seed(context.seed)  # adapter initialisation and dropout
        frozen = [p for p in model.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        budget = int(self.cache_gb * 1e9)
        train_set = PrefixStore(model, train, budget)
        valid_set = PrefixStore(model, valid, budget - train_set.n_bytes)
        adapted = get_peft_model(model, self._lora_config(), adapter_name=ADAPTER)
        try:
            self._train(adapted, train_set, valid_set, generator, context.work_dir)
        finally:
            adapted.unload()
            model.eval()
            for parameter in frozen:
                parameter.requires_grad_(True)
        return self

    def _train(
        self,
        adapted: PeftModel,
        train: PrefixStore,
        valid: PrefixStore,
        generator: torch.Generator,
        work_dir: FilePath | None,
    ) -> None:
        model = train.model
        reader = Reader(model, self.n_tokens, generator)
        adapter = [p for p in adapted.parameters() if p.requires_grad]
        groups = [
            {"params": adapter, "weight_decay": self.weight_decay},
            {"params": reader.parameters(), "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        per_epoch = max(1, len(train.examples) // self.batch_size)
        n_steps = max(1, round(self.epochs * per_epoch))
        best, step, history = -math.inf, 0, []
        resume = work_dir / "fit.pt" if work_dir else None
        if resume and resume.exists():
            state = torch.load(resume, weights_only=False)
            set_peft_model_state_dict(adapted, state["adapter"], adapter_name=ADAPTER)
            reader.load_state_dict(state["reader"])
            optimizer.load_state_dict(state["optimizer"])
            best, step, history = state["best"], state["step"], state["history"]
            self.weights_, self.adapter_ = state["weights"], state["best_adapter"]
            self.metrics_ = state["metrics"]
        with Progress() as progress:
            bar = progress.add_task("training STOP", total=n_steps, completed=step)
            mean_loss = math.nan
            while step < n_steps:
                generator.manual_seed(1 + step // per_epoch)
                order = torch.randperm(len(train.examples), generator=generator)
                at = step % per_epoch
                batch = order[at * self.batch_size : (at + 1) * self.batch_size].tolist()
                rate = min(1.0, (step + 1) / self.warmup) * 0.5
                rate *= 1.0 + math.cos(math.pi * step / n_steps)
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * rate
                model.train()
                logits = reader(*train.batch(batch))
                loss = F.binary_cross_entropy_with_logits(logits, train.labels[batch])
                loss.backward()
                torch.nn.utils.clip_grad_norm_([*adapter, *reader.parameters()], 1.0)
                optimizer.step()
                optimizer.zero_grad()
                value = float(loss.detach())
                mean_loss = value if step == 0 or math.isnan(mean_loss) else (
                    0.98 * mean_loss + 0.02 * value
                )
                step += 1
                progress.update(bar, completed=step)
                if step % self.eval_every and step != n_steps:
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
                if found["valid_auroc"] > best:
                    best = found["valid_auroc"]
                    self.weights_ = {k: v.detach().clone() for k, v in reader.weights().items()}
                    self.adapter_ = _copy(get_peft_model_state_dict(adapted, adapter_name=ADAPTER))
                    self.metrics_ = {
                        **found,
                        "n_train": len(train.examples),
                        "n_valid": len(valid.examples),
                        "history": history,
                    }
                if resume:
                    state = {
                        "adapter": get_peft_model_state_dict(adapted, adapter_name=ADAPTER),
                        "reader": reader.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "best": best,
                        "step": step,
                        "history": history,
                        "weights": self.weights_,
                        "best_adapter": self.adapter_,
                        "metrics": self.metrics_,
                    }
                    torch.save(state, resume.with_suffix(".tmp"))
                    resume.with_suffix(".tmp").replace(resume)

    def _lora_config(self) -> LoraConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules="all-linear",
        )

    def _options(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}


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


class PrefixStore:
    """Keys and values of labelled prefixes, from the model without the adapter.

    Prefixes of one path share its memory: only the longest is encoded. Rows are kept in bf16
    while `budget` bytes last; the others are encoded whenever a batch needs them.
    """

    def __init__(self, model: Any, examples: Sequence[LabelledPrefix], budget: int) -> None:
        self.model, self.examples = model, list(examples)
        self.device = model.device
        self.labels = torch.tensor([e.label for e in examples], device=self.device).float()
        tokens = [np.concatenate([e.prompt_ids, e.prefix_ids]) for e in examples]
        self.lengths = [len(t) for t in tokens]
        self.row_of = [0] * len(tokens)
        self.rows: list[np.ndarray] = []
        last = b""
        for i in sorted(range(len(tokens)), key=lambda i: tokens[i].tobytes(), reverse=True):
            content = tokens[i].tobytes()
            if not last.startswith(content):
                self.rows.append(tokens[i])
                last = content
            self.row_of[i] = len(self.rows) - 1
        self.n_bytes = 0
        self.kept: dict[int, Tensor] = {}
        with Progress() as progress:
            bar = progress.add_task("encoding prefixes", total=len(self.rows))
            for start in range(0, len(self.rows), 64):
                chunk = list(range(start, min(start + 64, len(self.rows))))
                if self.n_bytes < budget:
                    for row, states in zip(chunk, self._encode(chunk), strict=True):
                        self.kept[row] = states.bfloat16()
                        self.n_bytes += self.kept[row].nbytes
                progress.update(bar, completed=chunk[-1] + 1)

    @torch.no_grad()
    def _encode(self, rows: list[int]) -> Iterator[Tensor]:
        """Keys and values of each row: `(layers, 2, heads, tokens, head_dim)`."""
        width = max(len(self.rows[r]) for r in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(self.rows[row])] = torch.as_tensor(self.rows[row])
        self.model.eval()
        cache = DynamicCache(config=self.model.config)
        with adapter_off(self.model):
            self.model.base_model(
                input_ids=ids.to(self.device), past_key_values=cache, use_cache=True
            )
        pairs = [torch.stack([layer.keys, layer.values]) for layer in cache.layers]
        states = torch.stack(pairs)
        for i, row in enumerate(rows):
            yield states[:, :, i, :, : len(self.rows[row])].clone()

    def batch(self, chosen: list[int]) -> tuple[DynamicCache, Tensor, Tensor]:
        """The cache of these examples, padded on the left; its mask; their lengths."""
        rows = [self.row_of[i] for i in chosen]
        missing = sorted({row for row in rows if row not in self.kept})
        fresh = dict(zip(missing, self._encode(missing), strict=True)) if missing else {}
        lengths = [self.lengths[i] for i in chosen]
        width = max(lengths)
        first = self.kept.get(rows[0], fresh.get(rows[0]))
        assert first is not None
        layers, _, heads, _, size = first.shape
        dtype = self.model.dtype
        states = torch.zeros(layers, 2, len(rows), heads, width, size, dtype=dtype)
        states = states.to(self.device)
        mask = torch.zeros(len(rows), width, dtype=torch.long, device=self.device)
        for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
            source = self.kept[row] if row in self.kept else fresh[row]
            states[:, :, i, :, width - n :] = source[:, :, :, :n]
            mask[i, width - n :] = 1
        cache = DynamicCache(config=self.model.config)
        for index in range(layers):
            cache.update(states[index, 0], states[index, 1], index)
        return cache, mask, torch.tensor(lengths, device=self.device)


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
    logits = torch.as_tensor(scores, dtype=torch.float32)
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


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Run the body on the frozen model alone."""
    for layer in _tuner_layers(model):
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in _tuner_layers(model):
            layer.enable_adapters(True)


def _tuner_layers(model: Any) -> Iterator[BaseTunerLayer]:
    return (m for m in model.modules() if isinstance(m, BaseTunerLayer))


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}

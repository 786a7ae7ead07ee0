"""Trains a reward model: a copy of a generator, all of its weights, with a scalar head.

Labelled prefixes of one path are nested and the model is causal, so the longest prefix of a path
runs once and the head is read at all of its labelled ends. Only methods import this file, and only
inside `fit`: it loads torch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from prunebench.cachereader import within_problem_auroc
from prunebench.method import LabelledPrefix
from prunebench.prefixstore import problem_logits

BATCHES_SORTED = 16
"""Rows of this many batches are sorted by length before they are cut into batches."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a reward model is trained; the fields are those of the method `prm`."""

    learning_rate: float = 3e-4
    weight_decay: float = 0.05
    warmup: int = 50
    batch_size: int = 32
    epochs: float = 3.0
    eval_every: int = 200
    centred: bool = True

    def rate(self, step: int, n_steps: int) -> float:
        """Learning rate of a step: a linear warm-up under a half cosine."""
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / n_steps))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * cosine


@dataclass(kw_only=True)
class Learnt:
    """The best state seen: `weights` of backbone and head by name, the backbone's configuration
    and `metrics`."""

    weights: dict[str, Tensor]
    config: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(kw_only=True)
class _Row:
    """One path up to its last labelled end: `(position, example)` of every labelled end."""

    tokens: np.ndarray
    ends: list[tuple[int, int]]


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the folder it was read from."""
    return {name: value for name, value in config.items() if name != "_name_or_path"}


class _Examples:
    """Labelled prefixes, gathered into rows that hold every prefix once."""

    def __init__(self, examples: Sequence[LabelledPrefix], centred: bool) -> None:
        self.examples = list(examples)
        self.labels = torch.tensor([e.label for e in examples], dtype=torch.float32)
        offsets = problem_logits(examples) if centred else [0.0] * len(examples)
        self.offsets = torch.tensor(offsets, dtype=torch.float32)
        tokens = [np.concatenate([e.prompt_ids, e.prefix_ids]).astype(np.int32) for e in examples]
        self.rows: list[_Row] = []
        last = b""
        for i in sorted(range(len(tokens)), key=lambda i: tokens[i].tobytes(), reverse=True):
            content = tokens[i].tobytes()
            if not last.startswith(content):
                self.rows.append(_Row(tokens=tokens[i], ends=[]))
                last = content
            self.rows[-1].ends.append((len(tokens[i]) - 1, i))

    def batches(self, size: int, generator: torch.Generator | None) -> list[list[_Row]]:
        """All rows in batches of similar length, in random order when there is a generator."""
        n = len(self.rows)
        order = list(range(n))
        if generator is not None:
            order = torch.randperm(n, generator=generator).tolist()
        span = size * BATCHES_SORTED if generator is not None else n
        cut = []
        for start in range(0, n, span):
            chunk = sorted(order[start : start + span], key=lambda i: len(self.rows[i].tokens))
            cut += [chunk[i : i + size] for i in range(0, len(chunk), size)]
        if generator is not None:
            cut = [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]
        return [[self.rows[i] for i in batch] for batch in cut]


def train_reward_model(
    model: Any,
    recipe: Recipe,
    train: Sequence[LabelledPrefix],
    valid: Sequence[LabelledPrefix],
    *,
    seed: int,
) -> Learnt:
    """Train on `train`, keep the state with the best within-problem AUROC on `valid`.

    `model` is a causal language model of transformers; it stays as it is.
    """
    backbone = copy.deepcopy(model.base_model).float().train().requires_grad_(True)
    head = torch.nn.Linear(backbone.config.hidden_size, 1).to(backbone.device)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    parameters = [*backbone.parameters(), *head.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    train_set, valid_set = _Examples(train, recipe.centred), _Examples(valid, recipe.centred)
    per_epoch = len(train_set.batches(recipe.batch_size, generator.manual_seed(seed)))
    n_steps = max(1, round(recipe.epochs * per_epoch))
    best, history = None, []
    losses: list[float] = []
    batches: list[list[_Row]] = []
    with Progress() as progress:
        bar = progress.add_task("training the reward model", total=n_steps)
        for step in range(1, n_steps + 1):
            if not batches:
                batches = train_set.batches(recipe.batch_size, generator)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step - 1, n_steps)
            logits, chosen = _logits(backbone, head, batches.pop())
            loss = F.binary_cross_entropy_with_logits(
                logits + train_set.offsets[chosen].to(logits.device),
                train_set.labels[chosen].to(logits.device),
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            progress.update(bar, completed=step)
            if step % recipe.eval_every and step != n_steps:
                continue
            found = {
                "step": step,
                "train_loss": round(float(np.mean(losses)), 4),
                **_measure(backbone, head, valid_set, recipe.batch_size),
            }
            losses.clear()
            history.append(found)
            progress.console.print(
                "step {step}: loss {train_loss}, held out: loss {valid_loss}, "
                "within-problem AUROC {valid_auroc}".format(**found)
            )
            if best is None or _rank(found) > _rank(best.metrics):
                sizes = {"n_train": len(train), "n_valid": len(valid)}
                best = Learnt(
                    weights=_weights(backbone, head),
                    config=_portable(backbone.config.to_dict()),
                    metrics={**found, **sizes},
                )
    assert best is not None, "the last step is always evaluated"
    best.metrics["history"] = history
    return best


def _logits(backbone: Any, head: Any, rows: list[_Row]) -> tuple[Tensor, list[int]]:
    """Logits at all labelled ends of these rows, and the examples they belong to.

    Rows are padded on the right, where a causal model does not look back from.
    """
    ids = torch.zeros(len(rows), max(len(row.tokens) for row in rows), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.tokens)] = torch.as_tensor(row.tokens)
    states = backbone(input_ids=ids.to(backbone.device), use_cache=False).last_hidden_state
    where = [(i, position) for i, row in enumerate(rows) for position, _ in row.ends]
    at_row, at_position = map(list, zip(*where, strict=True))
    chosen = [example for row in rows for _, example in row.ends]
    return head(states[at_row, at_position])[:, 0], chosen


@torch.no_grad()
def _measure(backbone: Any, head: Any, held_out: _Examples, size: int) -> dict[str, float]:
    """Loss and within-problem AUROC on held-out problems."""
    scores = torch.zeros(len(held_out.examples))
    for rows in held_out.batches(size, None):
        logits, chosen = _logits(backbone, head, rows)
        scores[chosen] = logits.float().cpu()
    loss = F.binary_cross_entropy_with_logits(scores + held_out.offsets, held_out.labels)
    auroc = within_problem_auroc(scores.double().numpy(), held_out.examples)
    return {"valid_loss": round(float(loss), 4), "valid_auroc": round(auroc, 4)}


def _rank(metrics: dict[str, Any]) -> tuple[float, float]:
    """Higher = better: within-problem AUROC, if there is one, then the loss."""
    found = metrics["valid_auroc"]
    return (-1.0 if math.isnan(found) else found, -metrics["valid_loss"])


def _weights(backbone: Any, head: Any) -> dict[str, Tensor]:
    """A float16 copy on the CPU, by name."""
    state = {f"model.{name}": value for name, value in backbone.state_dict().items()}
    state |= {f"head.{name}": value for name, value in head.state_dict().items()}
    return {name: value.detach().half().cpu().clone() for name, value in state.items()}

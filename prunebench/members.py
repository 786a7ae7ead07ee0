"""Methods whose scores another method combines: made from names, made ready, and shown training
prefixes as they would see live paths.

Knows no method by name and not how scores are combined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prunebench import registry, statestore
from prunebench.backend import Backend
from prunebench.errors import ConfigError, NotTrained
from prunebench.granted import GrantedInternals
from prunebench.method import Context, LabelledPrefix, PathGroup, SignalGenerator, Trainable
from prunebench.types import (
    STATES,
    TOKEN_STATS,
    Capability,
    Problem,
    TokenStats,
    Trace,
    granting,
    view,
)

_TOKENS_AT_ONCE = 512
"""Distributions over the vocabulary in memory at a time."""


def make(name: str, options: Mapping[str, Any]) -> SignalGenerator:
    """The method `name` with some of its options set. Raises errors that name the method."""
    cls = registry.method_class(name)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), dict(options))
        method = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"The options {dict(options)} do not suit {name!r}: {reason}.") from error
    assert isinstance(method, SignalGenerator)
    return method


def prepare(members: Sequence[SignalGenerator], context: Context) -> None:
    """Load the trained weights of every member, found by the core, and set it up."""
    for member in members:
        name = registry.method_name(member)
        if isinstance(member, Trainable) and member.needs_training:
            if name not in context.part_weights:
                raise NotTrained(
                    f"The member {name!r} has no trained weights for {context.model_name!r}. Train "
                    f"it with 'python -m prunebench train method={name} "
                    f"model={context.model_name}', or leave it out of 'method.members'."
                )
            member.load(context.part_weights[name], context)
        member.setup(context)


def groups(
    backend: Backend,
    examples: Sequence[LabelledPrefix],
    granted: frozenset[Capability],
    seed: int,
) -> Iterator[tuple[list[int], PathGroup]]:
    """Training prefixes as groups of paths: those of one problem and length together.

    The statistics of given tokens come from running the prefixes through the model. What training
    prefixes do not have: the question apart from the prompt, and whether a path had ended.

    Yields
    ------
    numbers, group : which examples they are, in the order of the group's paths.
    """
    stats = _token_stats(backend, examples) if granted & _STATISTICS else {}
    together: dict[tuple[str, int], list[int]] = {}
    for i, example in enumerate(examples):
        together.setdefault((example.problem_id, len(example.prefix_ids)), []).append(i)
    for (problem_id, length), numbers in together.items():
        prompt_ids = examples[numbers[0]].prompt_ids
        prefixes = [examples[i].prefix_ids for i in numbers]
        traces = [
            Trace(
                index=k,
                token_ids=ids,
                text=backend.decode(ids),
                stats=stats.get(i, TokenStats()),
                stopped=False,
                answer=None,
                correct=False,
            )
            for k, (i, ids) in enumerate(zip(numbers, prefixes, strict=True))
        ]
        problem = Problem(id=problem_id, question=backend.decode(prompt_ids), answer="")
        internals = None
        if granted & STATES:
            internals = lambda p=prompt_ids, x=prefixes: GrantedInternals(  # noqa: E731
                backend.encode(p, x), granting(granted)
            )
        yield (
            numbers,
            view(
                problem,
                prompt_ids,
                traces,
                length,
                decode=backend.decode,
                granted=granted,
                seed=seed,
                internals=internals,
            ),
        )


_STATISTICS = frozenset(c for c in Capability if c.value in TOKEN_STATS)


def _token_stats(backend: Backend, examples: Sequence[LabelledPrefix]) -> dict[int, TokenStats]:
    """Statistics of the tokens of every example, by its number: the last layer's states, read by
    the output head. The state before the first token is that of the prompt's last token."""
    import torch

    from prunebench.backends._sampling import TOP, measure

    if any(len(e.prompt_ids) < 2 for e in examples):
        raise ConfigError("A prompt of a training prefix has fewer than two tokens: there is none "
                          "before its paths. Use a longer prompt.")  # fmt: skip
    moved = [
        replace(
            e,
            prompt_ids=e.prompt_ids[:-1],
            prefix_ids=np.concatenate([e.prompt_ids[-1:], e.prefix_ids]),
        )
        for e in examples
    ]
    head = backend.encode(moved[0].prompt_ids, [moved[0].prefix_ids[:1]])
    found = {}
    for i, states in statestore.iter_states(backend, moved, [statestore.n_layers(backend)]):
        before = torch.from_numpy(np.array(states[0, :-1]))
        tokens = torch.from_numpy(examples[i].prefix_ids.astype(np.int64))
        parts, n_vocab = [], 0
        for start in range(0, len(tokens), _TOKENS_AT_ONCE):
            place = slice(start, start + _TOKENS_AT_ONCE)
            logits = head.unembed(before[place], normed=True)
            n_vocab = logits.shape[-1]
            top = logits.topk(min(TOP, n_vocab), dim=-1).values
            parts.append(measure(logits, tokens[place], top))
        values = torch.cat(parts, dim=1).numpy() if parts else np.zeros((len(TOKEN_STATS), 0))
        named = dict(zip(TOKEN_STATS, values.astype(np.float32), strict=True))
        found[i] = TokenStats(**named, vocab_size=n_vocab)
    return found

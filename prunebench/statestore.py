"""Hidden states of labelled prefixes, for any method that learns from states.

Prefixes of one path are nested and the model is causal, so the states of a shorter prefix are the
first states of a longer one: only the longest prefix of each path is run. Knows nothing of what is
learned from the states.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from rich.progress import Progress

from prunebench.backend import Backend
from prunebench.errors import ConfigError
from prunebench.method import LabelledPrefix

Pool = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From the states `(n_layers, n_tokens, hidden)` and token ids `(n_tokens,)` of a prefix to what
is kept of it."""


def iter_states(
    backend: Backend, examples: Sequence[LabelledPrefix], layers: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """`(i, states)` of every example i, problem by problem: `(len(layers), n_tokens, hidden)`
    float32, as `Internals.iter_hidden_states`. Copy what you keep."""
    by_prompt: dict[bytes, list[int]] = {}
    for i, example in enumerate(examples):
        by_prompt.setdefault(example.prompt_ids.tobytes(), []).append(i)
    with Progress() as progress:
        bar = progress.add_task("reading states", total=len(examples))
        for members in by_prompt.values():
            paths = _by_longest(examples, members)
            prompt, prefixes = (
                examples[members[0]].prompt_ids,
                [examples[i].prefix_ids for i in paths],
            )
            states = backend.encode(prompt, prefixes).iter_hidden_states(layers)
            for own, nested in zip(states, paths.values(), strict=True):
                for i in nested:
                    yield i, own[:, : len(examples[i].prefix_ids)].numpy()
            progress.advance(bar, len(members))


def pooled(
    backend: Backend, examples: Sequence[LabelledPrefix], layers: Sequence[int], pool: Pool
) -> list[np.ndarray]:
    """What `pool` keeps of each example, in the order of the examples."""
    kept: list[np.ndarray] = [np.zeros(0)] * len(examples)
    for i, states in iter_states(backend, examples, layers):
        kept[i] = np.array(pool(states, examples[i].prefix_ids))  # a view would hold all states
    return kept


def _by_longest(examples: Sequence[LabelledPrefix], members: list[int]) -> dict[int, list[int]]:
    """For every path the example with its longest prefix, and all examples that lie in it."""
    content = {i: examples[i].prefix_ids.tobytes() for i in members}
    found: dict[int, list[int]] = {}
    longest = -1
    for i in sorted(members, key=lambda i: content[i], reverse=True):
        if longest < 0 or not content[longest].startswith(content[i]):
            longest = i
        found.setdefault(longest, []).append(i)
    return found


def n_layers(backend: Backend) -> int:
    """The number of the last layer; 0 is the embeddings. Found by asking, so that engines that do
    not show their model can be asked too."""
    token = np.array([backend.start_token], dtype=np.int32)
    internals = backend.encode(token, [token])
    for layer in itertools.count():
        try:
            next(internals.iter_hidden_states([layer]))
        except IndexError:
            return layer - 1
    raise AssertionError("a model has an end")


def layers_to_try(backend: Backend, layer: int | None) -> list[int]:
    """Layers from 0 (embeddings) up: the one that is asked for (negative counts from the end), or
    for None all but the embeddings."""
    last = n_layers(backend)
    if layer is None:
        return list(range(1, last + 1))
    if not -last - 1 <= layer <= last:
        raise ConfigError(
            f"The 'layer' parameter must be between {-last - 1} and {last}, the last layer of the "
            f"model, or null for the best. Got {layer} instead."
        )
    return [layer % (last + 1)]


def problem_centred(values: np.ndarray, examples: Sequence[LabelledPrefix]) -> np.ndarray:
    """`(n, ...)` values minus their mean over the examples of the same problem.

    What is left are differences between paths that compete with each other, so that nothing can
    be learned about how hard a problem is.
    """
    number: dict[str, int] = {}
    group = np.array([number.setdefault(e.problem_id, len(number)) for e in examples])
    sums = np.zeros((len(number), *values.shape[1:]))
    np.add.at(sums, group, values)
    shape = (-1,) + (1,) * (values.ndim - 1)
    return values - (sums / np.bincount(group).reshape(shape))[group]

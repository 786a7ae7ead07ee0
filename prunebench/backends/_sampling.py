"""Draws the next token with noise that belongs to the path, not to the batch.

The noise of a token is a pure function of (seed, problem, path, position, token id), so a path is
the same alone, in a batch, after a pause and next to pruned neighbours. Knows tensors only: no
model, no cache.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

from prunebench.backend import Sampling

TOP = 20
"""How many of the largest log-probabilities `TokenStats.top_logprobs` averages."""

_WORD = 1 << 64


def _signed(value: int) -> int:
    """The int64 with the same 64 bits: torch has no full set of unsigned operations."""
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's own fills in the sign bit."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def mix(words: torch.Tensor) -> torch.Tensor:
    """The SplitMix64 output function on int64 words (Steele, Lea and Flood 2014,
    doi 10.1145/2660193.2660195). Integer arithmetic wraps, so CPU and GPU give equal bits."""
    words = (words ^ _shift(words, 30)) * _MIX_1
    words = (words ^ _shift(words, 27)) * _MIX_2
    return words ^ _shift(words, 31)


def path_keys(seed: int, problem_id: str, indices: Sequence[int]) -> torch.Tensor:
    """`(n_paths,)` int64 keys that start the noise of each path."""
    words = [
        hashlib.blake2b(f"{seed}/{index}/{problem_id}".encode(), digest_size=8).digest()
        for index in indices
    ]
    return torch.tensor([int.from_bytes(w, "little", signed=True) for w in words])


def gumbel(
    keys: torch.Tensor, position: int | torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    """Standard Gumbel noise, float64.

    Parameters
    ----------
    keys : `(rows,)` int64 from `path_keys`.
    position : number of tokens that the paths have generated before this one: one for all, or
        `(rows,)` int64.
    token_ids : `(rows, n)` or `(n,)` int64, the candidates.
    """
    if isinstance(position, torch.Tensor):
        offset = (position + 1) * _GOLDEN
    else:
        offset = _signed((position + 1) * _GOLDEN)
    at_position = mix(keys + offset)
    words = mix(at_position[:, None] + (token_ids + 1) * _GOLDEN)
    # 52 bits and a half keep the number strictly between 0 and 1 in float64.
    uniform = (_shift(words, 12).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))


def n_candidates(n_vocab: int, sampling: Sampling) -> int:
    """How many of the likeliest tokens a draw looks at."""
    return min(sampling.top_k, n_vocab) if sampling.top_k > 0 else n_vocab


def truncates(n_vocab: int, sampling: Sampling) -> bool:
    """Whether top-k or top-p leave tokens out."""
    return sampling.top_p < 1.0 or n_candidates(n_vocab, sampling) < n_vocab


def choose(
    logits: torch.Tensor,
    keys: torch.Tensor,
    position: int | torch.Tensor,
    sampling: Sampling,
    likeliest: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """One token per row, `(rows,)` int64.

    Temperature, top-k and top-p are applied in that order, as the logits warpers of transformers
    do; a token is kept while the probability above it is less than top_p. The choice is the
    arg max of logits / T + Gumbel noise, which is an exact draw from the softmax.

    Parameters
    ----------
    logits : `(rows, vocab)` raw logits, float32.
    keys, position : see `gumbel`.
    likeliest : values and ids of at least the candidates in falling order, if they are known.
    """
    n_vocab = logits.shape[-1]
    if sampling.temperature == 0:
        return logits.argmax(-1) if likeliest is None else likeliest[1][:, 0]
    if not truncates(n_vocab, sampling):
        everything = torch.arange(n_vocab, device=logits.device)
        noise = gumbel(keys, position, everything)
        return (logits.double() / sampling.temperature + noise).argmax(-1)
    top_k = n_candidates(n_vocab, sampling)
    values, ids = logits.topk(top_k, dim=-1) if likeliest is None else likeliest
    warm = values[:, :top_k].double() / sampling.temperature
    if sampling.top_p < 1.0:
        probability = warm.softmax(-1)
        above = probability.cumsum(-1) - probability
        kept = above < sampling.top_p
        kept[:, 0] = True
        warm = warm.masked_fill(~kept, -math.inf)
    noise = gumbel(keys, position, ids[:, :top_k])
    best = (warm + noise).argmax(-1, keepdim=True)
    return ids.gather(-1, best)[:, 0]


def entropy_and_sum(
    logits: torch.Tensor, normaliser: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What only the whole vocabulary tells: the exact entropy and the sum of all log-probabilities,
    each `(rows,)` in nats, with `normaliser` the log-sum-exp of `logits`."""
    # A probability of 0 contributes 0; the product would be nan where a logit is -inf.
    weighted = torch.softmax(logits, -1) * logits.clamp(min=torch.finfo(logits.dtype).min)
    return normaliser - weighted.sum(-1), logits.sum(-1) - logits.shape[-1] * normaliser


def step(
    logits: torch.Tensor, keys: torch.Tensor, position: int, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose one token per row (see `choose`) and measure the distribution it came from.

    Returns
    -------
    chosen : `(rows,)` int64 token ids.
    stats : `(7, rows)` float32 in nats, in the order of `TOKEN_STATS`, of the raw distribution.
    """
    n_vocab = logits.shape[-1]
    n_top = min(TOP, n_vocab)
    # One partial sort serves the top-20 statistic and both truncations.
    sort_more = truncates(n_vocab, sampling) and sampling.temperature > 0
    n_sorted = max(n_top, n_candidates(n_vocab, sampling)) if sort_more else n_top
    values, ids = logits.topk(n_sorted, dim=-1)
    chosen = choose(logits, keys, position, sampling, (values, ids))
    return chosen, measure(logits, chosen, values[:, :n_top])


def measure(logits: torch.Tensor, chosen: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """The statistics of the distributions that tokens were drawn from.

    Parameters
    ----------
    logits : `(rows, vocab)`.
    chosen : `(rows,)` int64 token ids.
    top : `(rows, 20)` the largest logits, in descending order (fewer in a smaller vocabulary).

    Returns
    -------
    stats : `(7, rows)` float32 in nats, in the order of `TOKEN_STATS`, of the raw distribution.
    """
    normaliser = logits.logsumexp(-1)
    logprob = logits.gather(-1, chosen[:, None])[:, 0] - normaliser
    top_logprobs = top - normaliser[:, None]
    top_p = top_logprobs.exp()
    # A probability of 0 contributes 0 to an entropy, not nan.
    top_entropy = -(top_p * top_logprobs.clamp(min=torch.finfo(logits.dtype).min)).sum(-1)
    entropy, total = entropy_and_sum(logits, normaliser)
    return torch.stack(
        (
            logprob,
            top_logprobs.mean(-1),
            entropy,
            total,
            top_logprobs[:, 0],
            top_p.sum(-1).clamp(max=1.0),  # rounding may add up to a little more
            top_entropy,
        )
    )

"""Seconds to score 64 prefixes x 30 problems, for every method that reads text or token statistics.

    python benchmarks/scoring.py [prefix length in tokens, default 2048]

Prefixes are made-up reasoning in English, one token per word, with statistics of real
distributions; reading text is not in the time. Prints a table and writes `scoring.csv` beside this
file.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from prunebench import registry
from prunebench.backend import ModelSpec
from prunebench.backends.fake import FakeBackend
from prunebench.method import Context, PathGroup, Trainable
from prunebench.types import TOKEN_STATS, Capability, Problem, TokenStats, Trace, view

N_PROBLEMS, N_PATHS, TOP, VOCAB = 30, 64, 20, 1000
READABLE = {Capability(name) for name in TOKEN_STATS}
SENTENCE = """so we have the sum of two terms and then x equals 12 which gives 7*8=56 modulo 13 but
wait let me check this again since if n is even the factor 2 divides both sides hence"""
WORDS = SENTENCE.split()


class WordBackend(FakeBackend):
    """One token per word, so that a prefix of 2,048 tokens has the text of a real one."""

    def decode(self, token_ids: np.ndarray) -> str:
        return "".join(
            "\n\n" if i == len(WORDS) else f" {WORDS[i]}" for i in np.asarray(token_ids).tolist()
        )


def trace(index: int, n_tokens: int, rng: np.random.Generator, backend: WordBackend) -> Trace:
    """A path whose statistics come from one distribution per token."""
    ids = rng.integers(0, len(WORDS), n_tokens).astype(np.int32)
    ids[rng.random(n_tokens) < 1 / 40] = len(WORDS)
    scale = rng.gamma(2.0, 1.5, n_tokens)[:, None]
    logits = np.sort(scale * rng.normal(size=(n_tokens, TOP)), axis=1)[:, ::-1]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)) - 0.02
    p = np.exp(log_p)
    stats = TokenStats(
        logprobs=log_p[:, 0].astype(np.float32),
        top_logprobs=log_p.mean(axis=1).astype(np.float32),
        entropy=-(p * log_p).sum(axis=1).astype(np.float32),
        sum_logprobs=(-12.0 * VOCAB * np.ones(n_tokens)).astype(np.float32),
        max_logprobs=log_p[:, 0].astype(np.float32),
        top_mass=p.sum(axis=1).astype(np.float32),
        top_entropy=-(p * log_p).sum(axis=1).astype(np.float32),
        vocab_size=VOCAB,
    )
    return Trace(
        index=index,
        token_ids=ids,
        text=backend.decode(ids),
        stats=stats,
        stopped=False,
        answer=None,
        correct=False,
    )


def main(n_tokens: int) -> None:
    backend = WordBackend()
    backend.bind(ModelSpec(name="words", id="words"), 0)
    chosen = {
        name: cls
        for name, cls in registry.methods().items()
        if cls.requires <= READABLE and not issubclass(cls, Trainable)
    }
    everything = frozenset().union(*(cls.requires for cls in chosen.values()))
    groups: list[PathGroup] = []
    for p in range(N_PROBLEMS):
        rng = np.random.default_rng(p)
        traces = [trace(i, n_tokens, rng, backend) for i in range(N_PATHS)]
        problem = Problem(id=f"p{p}", question="What is the remainder?", answer="")
        groups.append(
            view(
                problem,
                np.zeros(1, np.int32),
                traces,
                n_tokens,
                decode=backend.decode,
                granted=everything,
                seed=0,
            )
        )
    rows = []
    for name, cls in chosen.items():
        method = cls()
        method.setup(Context(model_name="words", backend=backend))
        method.score(groups[0])  # imports and caches
        start = time.perf_counter()
        for group in groups:
            method.score(group)
        rows.append({"method": name, "type": str(cls.type), "seconds": time.perf_counter() - start})
    table = pd.DataFrame(rows).sort_values("seconds", ascending=False)
    table["prefix_length"] = n_tokens
    print(table.to_string(index=False, float_format="%.3f"))
    total = table.seconds.sum()
    print(f"all together: {total:.2f} s for {N_PATHS} prefixes x {N_PROBLEMS} problems")
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.4f")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2048)

"""A stand-in engine and the processes that the bank's tests start, kill and start again.

python crash_bank.py fill FOLDER     fill one bank
python crash_bank.py crash FOLDER    kill -9 ten such runs at random moments, then finish
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunebench.backend import Backend, Sampling, Session
from prunebench.bank import Bank, bank_key, fill
from prunebench.bankfile import decode, encode
from prunebench.types import TOKEN_STATS, Capability, Problem, TokenStats, Trace


def make_problems(n_problems: int) -> list[Problem]:
    return [
        Problem(id=f"p{i:03d}", question=f"{i}+{i}=?", answer=str(2 * i)) for i in range(n_problems)
    ]


def make_key(seed: int = 0) -> dict[str, Any]:
    prompt = {"template": "{question}"}
    return bank_key({"engine": "stand-in"}, Sampling(), prompt, {"name": "sums"}, seed)


@dataclass(kw_only=True)
class StandIn(Backend):
    """Paths from hashes. As on a real engine, the last bits of the statistics depend on which
    other paths share the batch. Every generated problem is a line in `log`."""

    delay_s: float = 0.0
    log: Path | None = None

    @property
    def provides(self) -> frozenset[Capability]:
        return frozenset()

    def identity(self) -> dict[str, Any]:
        return {"engine": "stand-in"}

    def open(self, problem: Problem, indices: Sequence[int]) -> Session:
        raise NotImplementedError("this engine only generates whole paths")

    def decode(self, token_ids: np.ndarray) -> str:
        return "".join(chr(97 + int(token)) for token in token_ids)

    def generate(
        self, problems: Sequence[Problem], indices: Sequence[int]
    ) -> Iterator[tuple[Problem, np.ndarray, list[Trace]]]:
        batch = repr(([p.id for p in problems], list(indices)))
        noise = int.from_bytes(hashlib.sha256(batch.encode()).digest()[:2], "big") * 1e-9
        for problem in problems:
            time.sleep(self.delay_s)
            if self.log is not None:
                with self.log.open("a") as file:
                    file.write(f"{problem.id}\n")
            prompt_ids = np.frombuffer(problem.question.encode(), np.uint8).astype(np.int32)
            yield problem, prompt_ids, [self.trace(problem, i, noise) for i in indices]

    def trace(self, problem: Problem, index: int, noise: float) -> Trace:
        rng = np.random.default_rng([*problem.id.encode(), index])
        token_ids = rng.integers(0, 26, rng.integers(5, 60)).astype(np.int32)
        stats = {
            name: (noise - rng.exponential(size=len(token_ids))).astype(np.float32)
            for name in TOKEN_STATS
        }
        answer = None if index % 5 == 4 else str(2 * int(problem.id[1:]) + index % 2)
        return Trace(
            index=index,
            token_ids=token_ids,
            text=self.decode(token_ids),
            stats=TokenStats(**stats, vocab_size=26),
            stopped=index % 7 != 6,
            answer=answer,
            correct=answer == problem.answer,
        )


def filled(folder: Path, n_problems: int = 6, n_paths: int = 5, group: int = 3) -> Bank:
    bank = Bank.at(folder, make_key())
    report = fill(bank, StandIn(), make_problems(n_problems), n_paths, group=group)
    assert report.failures == []
    return bank


def data_of(path: Path) -> bytes:
    """The data columns as bytes, without prunebench's own code: an Arrow stream, no metadata."""
    table = pq.read_table(path).combine_chunks().replace_schema_metadata()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def assert_same(trace: Trace, expected: Trace) -> None:
    for name in ("index", "text", "stopped", "answer", "correct"):
        assert getattr(trace, name) == getattr(expected, name)
    assert trace.token_ids.dtype == np.int32
    np.testing.assert_array_equal(trace.token_ids, expected.token_ids)
    assert trace.stats.vocab_size == expected.stats.vocab_size
    for name in TOKEN_STATS:
        values, wanted = getattr(trace.stats, name), getattr(expected.stats, name)
        if wanted is None:
            assert values is None
        else:
            assert values.dtype == np.float32
            assert values.tobytes() == wanted.astype(np.float32).tobytes()


def fill_bank(folder: Path, options: argparse.Namespace) -> None:
    while not (options.start is None or options.start.exists()):
        time.sleep(0.001)
    engine = StandIn(delay_s=options.delay, log=options.log)
    problems = make_problems(options.problems)
    report = fill(Bank.at(folder, make_key()), engine, problems, options.paths, group=options.group)
    assert not report.failures, report.failures
    print(report.n_generated)


def crash_bank(folder: Path, options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)
    engine, problem = StandIn(), make_problems(1)[0]
    # the first use of pyarrow is slow; done here, the children are killed while they work
    data = encode(problem, np.arange(3), [engine.trace(problem, 0, 0.0)], bank="none")
    decode(data, problem, bank="none")
    for _ in range(10):
        child = os.fork()  # cheaper than a new interpreter
        if child == 0:
            fill_bank(folder, options)
            os._exit(0)
        time.sleep(rng.uniform(0.01, 0.17))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, "the run ended before it was killed"
    fill_bank(folder, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["fill", "crash"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--paths", type=int, default=6)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--delay", type=float, default=0.01, help="seconds per problem")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--start", type=Path, help="begin when this file exists")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    {"fill": fill_bank, "crash": crash_bank}[arguments.command](arguments.folder, arguments)

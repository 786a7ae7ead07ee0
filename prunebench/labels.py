"""Monte-Carlo labels: how often a prefix, continued again and again, ends in the right answer.

For each problem a few paths are begun; at chosen lengths every one of them goes on in two copies.
So each prefix is the root of a small tree, and its label is the share of the tree's leaves that
end right. No sampled token is wasted: the continuations of a prefix are themselves longer
prefixes, with labels of their own. Labels are stored as Parquet, one file per chunk of problems,
and a second run reads what the first one made.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunebench import grading
from prunebench.backend import ModelSpec
from prunebench.errors import ConfigError
from prunebench.method import LabelledPrefix
from prunebench.storage import canonical, content_hash, write_atomic
from prunebench.types import Problem

LEAVE_SHARE = 0.15
"""Ended rows leave the batch when they are this share of it: leaving costs a copy of the rest."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is labelled.

    Attributes
    ----------
    roots : paths begun per problem.
    prefix_lengths : lengths at which prefixes are labelled, in generated tokens, ascending.
    n_continuations : leaves per root, a power of two: the K of the first label.
    seed : of the sampling noise.
    rows : paths that one chunk of problems grows into, if those of one problem are not more.
    """

    roots: int
    prefix_lengths: tuple[int, ...]
    n_continuations: int
    seed: int
    rows: int = 512

    def __post_init__(self) -> None:
        k = self.n_continuations
        if k < 1 or k & (k - 1) or k > 2 ** len(self.prefix_lengths):
            raise ConfigError(
                f"The 'train.n_continuations' parameter must be a power of two, at most 2 to the "
                f"number of prefix lengths ({len(self.prefix_lengths)}). Got {k} instead."
            )

    @property
    def copies(self) -> list[int]:
        """Into how many copies a path splits at each prefix length: 1 or 2, spread evenly."""
        n = len(self.prefix_lengths)
        splits = self.n_continuations.bit_length() - 1
        at = {(2 * i + 1) * n // (2 * splits) for i in range(splits)}
        return [2 if i in at else 1 for i in range(n)]

    @property
    def problems_per_chunk(self) -> int:
        return max(1, self.rows // (self.roots * self.n_continuations))


@dataclass(eq=False)
class _Node:
    """A path up to a checkpoint or to its end. `right` of its `leaves` end right."""

    problem: int
    name: str
    tokens: np.ndarray
    ended: bool
    children: list[_Node] = field(default_factory=list)
    right: int = 0
    leaves: int = 0

    def settle(self, is_right: Callable[[_Node], bool]) -> None:
        """Count the leaves below, and those that end right."""
        for child in self.children:
            child.settle(is_right)
        self.right = sum(c.right for c in self.children) if self.children else is_right(self)
        self.leaves = sum(c.leaves for c in self.children) or 1


def grow(backend: Any, problems: Sequence[Problem], plan: Plan) -> list[LabelledPrefix]:
    """The labelled prefixes of a few problems; `backend` is the transformers backend."""
    style = grading.as_style(backend.spec.answer)
    prompts = [backend.prompt_ids(problem.question) for problem in problems]
    nothing = np.zeros(0, dtype=np.int32)
    origins = [_Node(i, problem.id, nothing, False) for i, problem in enumerate(problems)]
    prefixes = _grow_trees(backend, prompts, origins, plan)

    def is_right(node: _Node) -> bool:
        if not node.ended:
            return False
        text = backend.decode(node.tokens)
        return grading.grade(text, problems[node.problem].answer, style)[1]

    for origin in origins:
        origin.settle(is_right)
    return [
        LabelledPrefix(
            problem_id=problems[node.problem].id,
            prompt_ids=prompts[node.problem],
            prefix_ids=node.tokens,
            label=node.right / node.leaves,
            n_continuations=node.leaves,
        )
        for node in prefixes
    ]


def _grow_trees(
    backend: Any, prompts: list[np.ndarray], origins: list[_Node], plan: Plan
) -> list[_Node]:
    """Decode all trees in one batch, in which rows split and leave; the nodes to be labelled."""
    import torch

    from prunebench.backends._cache import GrowingCache
    from prunebench.backends._sampling import path_keys, step

    engine, sampling = backend.engine, backend.spec.sampling
    width = max(map(len, prompts))
    pads = torch.tensor([width - len(p) for p in prompts], device=engine.device)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt)
    slots = torch.arange(width, device=engine.device)
    cache = GrowingCache()
    logits = engine.logits(
        ids.to(engine.device),
        cache,
        (slots - pads[:, None]).clamp(min=0),
        slots >= pads[:, None],
    )
    parents, prefixes = origins, []
    starts = [0, *plan.prefix_lengths]
    ends = [*plan.prefix_lengths, sampling.max_new_tokens]
    for start, end, copies in zip(starts, ends, [plan.roots, *plan.copies], strict=True):
        names = [f"{parent.name}/{i}" for parent in parents for i in range(copies)]
        parents = [parent for parent in parents for _ in range(copies)]
        split = torch.arange(len(pads), device=engine.device).repeat_interleave(copies)
        cache.select(split)
        pads, logits = pads[split], logits[split]
        keys = torch.cat([path_keys(plan.seed, name, [0]) for name in names]).to(engine.device)
        mask = engine.mask(pads, width + end)
        written = torch.zeros(len(names), end - start, dtype=torch.int32, device=engine.device)
        length = torch.full((len(names),), end - start, device=engine.device)
        rows = torch.arange(len(names), device=engine.device)
        ended = torch.zeros(len(names), dtype=torch.bool, device=engine.device)
        for position in range(start, end):
            chosen, _ = step(logits, keys, position, sampling)
            written[rows, position - start] = chosen.int()
            ends_here = (chosen[:, None] == engine.eos_ids).any(-1) & ~ended
            length[rows[ends_here]] = position - start + 1
            ended |= ends_here
            last = position + 1 == end
            if ended.sum() > LEAVE_SHARE * len(rows) or (last and bool(ended.any())):
                stay = (~ended).nonzero()[:, 0]
                cache.select(stay)
                pads, keys, rows, mask = pads[stay], keys[stay], rows[stay], mask[stay]
                chosen, ended = chosen[stay], ended[stay]
            if not len(rows):
                break
            at = width + position
            logits = engine.logits(chosen[:, None], cache, at - pads[:, None], mask[..., : at + 1])
        tokens, n_tokens = written.cpu().numpy(), length.tolist()
        running = set(rows.tolist())
        nodes = [
            _Node(parent.problem, name, np.concatenate([parent.tokens, new[:n]]), i not in running)
            for i, (parent, name, new, n) in enumerate(
                zip(parents, names, tokens, n_tokens, strict=True)
            )
        ]
        for parent, node in zip(parents, nodes, strict=True):
            parent.children.append(node)
        if end != sampling.max_new_tokens:
            prefixes += nodes
        parents = [nodes[i] for i in rows.tolist()]
        if not parents:
            break
    return prefixes


# ----------------------------------------------------------------------------------- storage


def quick(backend: Any) -> Any:
    """The same engine, in bf16 where the CPU multiplies it natively: labels are averages, so
    their paths need not be equal to the last bit."""
    flags = Path("/proc/cpuinfo")
    native = flags.is_file() and "amx_bf16" in flags.read_text()
    faster = replace(backend, dtype="bfloat16") if native else replace(backend)
    faster.bind(backend.spec, backend.seed)
    return faster


def folder_for(root: Path, identity: dict[str, Any], plan: Plan) -> Path:
    """Where the labels of this model and plan are kept."""
    key = canonical(
        {
            "model": identity,
            "roots": plan.roots,
            "prefix_lengths": plan.prefix_lengths,
            "n_continuations": plan.n_continuations,
            "seed": plan.seed,
        }
    )
    folder = root / content_hash(key)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key.json").write_text(json.dumps(key, indent=2) + "\n")
    return folder


def make(
    folder: Path,
    backend: Any,
    problems: Sequence[Problem],
    plan: Plan,
    *,
    workers: int,
    progress: Callable[[int], None],
) -> None:
    """Label all problems, a file per chunk, in `workers` processes; existing files stay."""
    missing = []
    for file, chunk in _chunks(folder, problems, plan):
        if file.exists():
            progress(len(chunk))
        else:
            missing.append((file, chunk))
    if not missing:
        return
    settings = (backend, backend.spec, backend.seed, plan)
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start, initargs=settings
    ) as pool:
        futures = {pool.submit(_label_chunk, *work): len(work[1]) for work in missing}
        for future in as_completed(futures):
            future.result()
            progress(futures[future])


_worker: dict[str, Any] = {}


def _start(backend: Any, spec: ModelSpec, seed: int, plan: Plan) -> None:
    import torch

    torch.set_num_threads(1)
    backend.bind(spec, seed)
    _worker.update(backend=backend, plan=plan)


def _label_chunk(file: Path, problems: list[Problem]) -> None:
    examples = grow(_worker["backend"], problems, _worker["plan"])
    columns = {
        "problem_id": [e.problem_id for e in examples],
        "prompt_ids": [e.prompt_ids for e in examples],
        "prefix_ids": [e.prefix_ids for e in examples],
        "label": [e.label for e in examples],
        "n_continuations": [e.n_continuations for e in examples],
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    write_atomic(file, buffer.getvalue())


def _chunks(
    folder: Path, problems: Sequence[Problem], plan: Plan
) -> Iterator[tuple[Path, list[Problem]]]:
    """Problems that are labelled together, and the file with their labels."""
    size = plan.problems_per_chunk
    for start in range(0, len(problems), size):
        chunk = list(problems[start : start + size])
        digest = content_hash({"problems": [problem.id for problem in chunk]})
        yield folder / f"labels-{start:06d}-{digest}.parquet", chunk


def read(folder: Path, problems: Sequence[Problem], plan: Plan) -> list[LabelledPrefix]:
    """The labels of these problems; `make` has been there before."""
    examples = []
    for file, _ in _chunks(folder, problems, plan):
        for row in pq.read_table(file).to_pylist():
            row["prompt_ids"] = np.asarray(row["prompt_ids"], dtype=np.int32)
            row["prefix_ids"] = np.asarray(row["prefix_ids"], dtype=np.int32)
            examples.append(LabelledPrefix(**row))
    return examples

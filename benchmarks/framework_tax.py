"""What prunebench costs on top of the engine alone, and what its own decoding loop gains.

    python benchmarks/framework_tax.py                     # against model.generate of transformers
    python benchmarks/framework_tax.py --backend vllm      # against LLM.generate of vLLM

The same model generates the same number of paths of the same problems, with the same sampling, once
through `backend.generate` and once through the engine alone; tokens per second of both, and their
ratio, are the median over repeats that take turns. `cpu_time_ratio` counts seconds of the processor
instead of the wall, which a neighbour on the machine disturbs less.

prunebench gives exact per-path seeds and seven statistics of every token beside the text. vLLM
alone is asked for what these need: one request per path with its own seed and the 20 largest
log-probabilities, in flat form, without detokenizing; `backend.exact_stats=true` adds on our side
the statistics over the whole vocabulary that a trace bank holds. `model.generate` is asked for the
tokens alone.

`--ends never` runs a copy of the model whose end-of-text token never comes, so that all paths have
`--tokens` tokens on both sides; with `own` they end as they do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _measure import Bench, clock, parser, prepare, report

from prunebench.types import Problem

Generate = Callable[[Problem], int]
"""Generates the paths of a problem and returns how many tokens they have."""
VLLM = ("backend.exact_stats=false", "backend.gpu_memory_utilization=0.4")
"""The same log-probabilities on both sides, and two engines side by side on a GPU."""


def through_prunebench(bench: Bench, n_paths: int) -> Generate:
    """Complete paths with their statistics and answers."""

    def generate(problem: Problem) -> int:
        [(_, _, traces)] = bench.backend.generate([problem], range(n_paths))
        return sum(trace.n_tokens for trace in traces)

    return generate


def transformers_alone(bench: Bench, n_paths: int) -> Generate:
    """`model.generate` of the very model that prunebench runs."""
    import torch

    backend: Any = bench.backend
    model, sampling = backend.model(), bench.run.model.sampling
    ends = torch.tensor(backend.eos_ids, device=model.device)

    def generate(problem: Problem) -> int:
        prompt = torch.tensor(backend.prompt_ids(problem.question).tolist(), device=model.device)
        torch.manual_seed(0)
        found = model.generate(
            prompt.expand(n_paths, -1),
            attention_mask=torch.ones_like(prompt).expand(n_paths, -1),
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=ends.tolist(),
            pad_token_id=int(ends[0]),
        )[:, len(prompt) :]
        before_end = ~torch.isin(found, ends).cummax(dim=1).values
        ended = ~before_end.all(dim=1)
        return int(before_end.sum() + ended.sum())

    return generate


def vllm_alone(bench: Bench, n_paths: int) -> Generate:
    """`LLM.generate` of an engine with the options that prunebench's has, but for its own parts."""
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    backend: Any = bench.backend
    config, sampling = backend.llm.llm.vllm_config, bench.run.model.sampling
    llm = LLM(
        model=config.model_config.model,
        skip_tokenizer_init=True,
        generation_config="vllm",
        dtype=config.model_config.dtype,
        max_model_len=config.model_config.max_model_len,
        enforce_eager=config.model_config.enforce_eager,
        tensor_parallel_size=config.parallel_config.tensor_parallel_size,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
        block_size=config.cache_config.block_size,
        enable_prefix_caching=config.cache_config.enable_prefix_caching,
        gpu_memory_utilization=config.cache_config.gpu_memory_utilization,
        kv_cache_memory_bytes=config.cache_config.kv_cache_memory_bytes,
        disable_log_stats=True,
    )

    def generate(problem: Problem) -> int:
        ids = backend.prompt_ids(problem.question).tolist()
        requests = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=path,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=backend.eos_ids,
                logprobs=20,
                flat_logprobs=True,
                detokenize=False,
            )
            for path in range(n_paths)
        ]
        found = llm.generate([{"prompt_token_ids": ids}] * n_paths, requests, use_tqdm=False)
        return sum(len(request.outputs[0].token_ids) for request in found)

    return generate


def main(given: Sequence[str] | None = None) -> None:
    options = parser(__doc__, __file__)
    options.add_argument("--paths", type=int, default=64)
    options.add_argument("--tokens", type=int, default=256, help="most tokens of a path")
    options.add_argument("--ends", nargs="+", default=["never", "own"], choices=["never", "own"])
    options.add_argument("--repeats", type=int, default=5)
    arguments = options.parse_args(given)
    rows = []
    for ends in arguments.ends:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(arguments, ends, Path(folder)))
    report(rows, arguments.output, same=["backend", "ends", "exact_stats"])


def measure(arguments: argparse.Namespace, ends: str, folder: Path) -> dict[str, Any]:
    """The row of one way for paths to end."""
    own = [
        f"n_paths={arguments.paths}",
        f"keep={arguments.paths}",
        f"model.sampling.max_new_tokens={arguments.tokens}",
        "prefix_length=1",
        *(VLLM if arguments.backend == "vllm" else ()),
        *arguments.overrides,
    ]
    if ends == "never":
        from _models import endless

        own.append(f"model.path={endless(folder / 'model')}")
    bench = prepare(arguments.backend, own)
    alone = transformers_alone if arguments.backend == "transformers" else vllm_alone
    sides = {
        "prunebench": through_prunebench(bench, arguments.paths),
        "alone": alone(bench, arguments.paths),
    }
    problems = bench.problems
    for generate in sides.values():
        generate(problems[-1])  # what happens only the first time
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    tokens: dict[str, int] = dict.fromkeys(sides, 0)
    for repeat in range(arguments.repeats):
        problem = problems[repeat % len(problems)]
        for side in list(sides)[:: 1 if repeat % 2 else -1]:
            start, cpu_start = clock(), time.process_time()
            n_tokens = sides[side](problem)
            speeds[side].append(n_tokens / (clock() - start))
            cpu[side].append(n_tokens / (time.process_time() - cpu_start))
            tokens[side] += n_tokens
    bench.backend.close()
    ratios = np.array(speeds["prunebench"]) / speeds["alone"]
    return {
        "backend": arguments.backend,
        "ends": ends,
        "paths": arguments.paths,
        "tokens": arguments.tokens,
        "repeats": arguments.repeats,
        "exact_stats": getattr(bench.backend, "exact_stats", True) is not False,
        "prunebench_tokens_per_s": float(np.median(speeds["prunebench"])),
        "alone_tokens_per_s": float(np.median(speeds["alone"])),
        "ratio": float(np.median(ratios)),
        "cpu_time_ratio": float(np.median(np.array(cpu["prunebench"]) / cpu["alone"])),
        "lowest_ratio": float(ratios.min()),
        "highest_ratio": float(ratios.max()),
        "aim": 2.0 if arguments.backend == "transformers" else 0.9,
        "prunebench_tokens": tokens["prunebench"],
        "alone_tokens": tokens["alone"],
    }


if __name__ == "__main__":
    main()

"""LaBoR: a reward model judges the beginning of a path as one step.

Formula: S_i = the probability that a process reward model gives to the prefix, read at a single
mark behind it.

Source: "Lost at the Beginning of Reasoning", arXiv 2506.22058 (https://arxiv.org/abs/2506.22058):
of 64 beginnings the best by Qwen2.5-Math-PRM-7B go on, and the answers of those are voted on. The
paper takes the first 512 tokens of a path for its first reasoning step; set `prefix_length=512`
(arXiv 2604.16029 compares at 2048). Preset: `method=labor_qwen25_math_7b`.
Ours: the reward models, options and training of `prm`, without its steps; `family=tiny` uses the
weights that `prunebench train method=prm` makes.
"""

from dataclasses import dataclass

import numpy as np

from ._reward import RewardMethod


@dataclass(kw_only=True)
class LaBoR(RewardMethod):
    """Higher = keep: the reward model believes the prefix. In [0, 1].

    NaN for an empty prefix, and when the question alone is too long for the reward model.

    Attributes
    ----------
    checkpoint : folder with a trained `tiny` reward model; None takes that of the method `prm` for
        the model at hand.
    family : input format and head of the reward model.
    model_id, revision : of the reward model on the hub.
    path : folder with the reward model, instead of the hub cache.
    max_length : most tokens it reads; 0 takes its own limit.
    batch_tokens : most tokens per forward pass, padding included.
    device, dtype : where it runs, and its number format.
    runner : `transformers`, or `vllm` for vLLM's pooling engine; both on this machine.
    gpu_memory_utilization : with `runner=vllm`, its share of a GPU's memory; with `backend=vllm` on
        the same GPU, it and `backend.gpu_memory_utilization` must stay below 1 together.
    processes : with `runner=vllm`, run the engine in a process of its own.
    engine : with `runner=vllm`, any other option of vLLM's `EngineArgs`
        (`+method.engine.tensor_parallel_size=2`).
    server : ask the server of the group `endpoint` (vLLM's pooling API) instead of loading it.
    """

    paper = "arXiv 2506.22058, https://arxiv.org/abs/2506.22058"

    def aggregated(self, steps: np.ndarray) -> float:
        return float(steps[-1])

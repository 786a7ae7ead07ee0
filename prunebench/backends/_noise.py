"""The extra arguments of a request whose tokens are drawn with prunebench's noise.

vLLM's processes (`_vllm_sampling.PathNoise`) read them, and both engines that send requests write
them; holds neither vLLM nor torch.
"""

from __future__ import annotations

from typing import Any

from prunebench.backend import Sampling

KEY = "prunebench_key"
"""The path's noise key, an int64, as a string since JSON readers may round it."""
START = "prunebench_start"
"""Tokens of the path that are part of the prompt already (default 0)."""
TEMPERATURE, TOP_P, TOP_K = "prunebench_temperature", "prunebench_top_p", "prunebench_top_k"


def noise_args(key: int, sampling: Sampling, start: int = 0) -> dict[str, Any]:
    """The extra arguments of a request that is drawn with prunebench's noise."""
    return {
        KEY: str(key),
        START: start,
        TEMPERATURE: sampling.temperature,
        TOP_P: sampling.top_p,
        TOP_K: sampling.top_k,
    }

"""Process reward models: the probability that the steps of a prefix are right.

Formula: a reward model reads the question and the steps s_1 ... s_n of the prefix and gives each
the probability p_j that it is right. The score S_i is p_n (`last`), the minimum, the mean or the
product of the p_j. The product falls with the number of steps, so it compares paths by their
length; the others do not.

`family` names the input format, the step mark and the head of the reward model. Presets:
`method=prm_qwen25_math_7b`, ... (`conf/method/`). `family=tiny`, the default, is a copy of the
generator's own weights, trained as a reward model on the Monte-Carlo labels that STOP learns from
(`prunebench train method=prm`): the control "Type II retrained" of arXiv 2604.16029.

Source: Qwen2.5-Math-PRM, arXiv 2501.07301 (https://arxiv.org/abs/2501.07301); ReasonFlux-PRM,
2506.18896; Skywork-o1-PRM; Math-Shepherd, 2312.08935; RLHFlow, 2405.07863. The Type II row of
arXiv 2604.16029 (https://arxiv.org/abs/2604.16029) uses Qwen2.5-Math-PRM-7B.
Ours: which steps of a cut prefix are scored (`unfinished`); a prefix that is too long for the
reward model loses its first steps, and then the beginning of the last; space around steps is
dropped, except for Skywork, where every line is a step, blank ones too. `tiny` reads the
generator's tokens, a line is a step; its last layer has a linear head, trained with soft
cross-entropy at the ends of labelled prefixes, wherever in a line they lie.
"""

from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from prunebench.prmformats import Steps, Unfinished

from ._reward import RewardMethod

if TYPE_CHECKING:
    from prunebench.rmtrain import Recipe


class Aggregation(Enum):
    """How the probabilities of the steps become one score."""

    last = "last"
    min = "min"
    mean = "mean"
    product = "product"


@dataclass(kw_only=True)
class PRM(RewardMethod):
    """Higher = keep: the reward model believes the steps. In [0, 1].

    NaN for an empty prefix, and when the question alone is too long for the reward model.

    Attributes
    ----------
    checkpoint : folder with a trained `tiny` reward model; None takes the one for the model at
        hand.
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
    aggregation : of the steps' probabilities.
    steps : `marked` cuts the prefix at blank lines (Skywork and tiny: line breaks), `whole` takes
        it as one step.
    unfinished : `close` scores a step that the checkpoint cut as if it ended there, `drop` leaves
        it out, unless it is the only one.
    learning_rate, weight_decay, warmup, batch_size, epochs, eval_every : of the training of `tiny`,
        as for `stop`; `batch_size` counts paths.
    centred : learn the difference to the problem's mean label (its logit is added in the loss);
        scores then rank paths of one problem and are no probabilities.
    """

    paper = "arXiv 2501.07301, https://arxiv.org/abs/2501.07301"
    structure = ("centred",)

    aggregation: Aggregation = Aggregation.last
    steps: Steps = Steps.marked
    unfinished: Unfinished = Unfinished.close
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    warmup: int = 50
    batch_size: int = 32
    epochs: float = 3.0
    eval_every: int = 100
    centred: bool = True

    @property
    def splitting(self) -> tuple[Steps, Unfinished]:
        return self.steps, self.unfinished

    def aggregated(self, steps: np.ndarray) -> float:
        match self.aggregation:
            case Aggregation.last:
                return float(steps[-1])
            case Aggregation.min:
                return float(steps.min())
            case Aggregation.mean:
                return float(steps.mean())
            case Aggregation.product:
                return float(steps.prod())

    def recipe(self) -> "Recipe":
        from prunebench.rmtrain import Recipe

        return Recipe(**{f.name: getattr(self, f.name) for f in fields(Recipe)})

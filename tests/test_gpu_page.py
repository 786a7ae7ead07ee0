"""Every prunebench command of docs/gpu.md runs, at reduced size, on a random-weight Qwen2 on disk.

The commands are read from the page, so a new one is run without an edit here. The model has the
architecture, the tokenizer's special tokens and the chat template of the DeepSeek distills; its
tokenizer also has two boxed answers as tokens, which random text hits now and then, so that there
are right and wrong paths to learn from. Not run: downloads, a cluster's job queue (Hydra's own
launcher takes its place) and more than one GPU.
"""

import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, _wait_until_ready
from omegaconf import OmegaConf
from test_chat import BOS, DEEPSEEK_TEMPLATE, DEEPSEEK_TOKENS, END, write
from test_published_stop import HIDDEN, write_checkpoint
from transformers import Qwen2Config, Qwen2ForCausalLM

from prunebench import compose
from prunebench.cli import main
from prunebench.config import TrainOptions
from prunebench.errors import UnknownName
from prunebench.labels import Plan
from prunebench.train import around

PAGE = ROOT / "docs" / "gpu.md"
RIGHT, WRONG = "\\boxed{7}", "\\boxed{8}"
REDUCED = {
    "n_paths": "8",
    "keep": "2",
    "prefix_length": "6",
    "model.sampling.max_new_tokens": "40",
    "dataset.limit": "8",
    "workers": "1",
    "train.n_problems": "8",
    "train.prefixes_per_problem": "1",
    "train.prefix_lengths": "[2,3,4,5,6]",
    "train.valid_share": "0.6",
    "method.epochs": "1",
    "backend.tensor_parallel_size": "1",
}
"""What is smaller than on the page; a command gets those that it has and those of `ALWAYS`."""
ALWAYS = ("prefix_length", "model.sampling.max_new_tokens", "dataset.limit", "workers")
REPLACED = {
    r"dataset=(aime|hmmt|brumo).*": "dataset=file dataset.path=eval.jsonl",
    r"keep=\d+,.*": "keep=2,4",
    r"workers=\d+": "workers=2",
    r"hydra/launcher=.*": "hydra/launcher=basic",
    r"hydra\.launcher\..*": "",
    r"model\.path=.*": "",
}
"""What is smaller in a sweep or with processes, or needs a network or a cluster. `model.path` is
put behind every command."""
SERVER = {"--dtype": "float32", "--max-model-len": "1024", "--max-num-seqs": "16"}
SERVER |= {"--kv-cache-memory-bytes": str(1 << 28), "--block-size": "32"}

HAS_VLLM = importlib.util.find_spec("vllm") is not None


def shell_lines() -> list[str]:
    """The commands of the page's sh blocks, continued lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip()]


START = "python -m prunebench "
COMMANDS = [line.removeprefix(START) for line in shell_lines() if line.startswith(START)]
TRAIN = [c for c in COMMANDS if c.startswith("train ")]
ON_SERVER = [c for c in COMMANDS if "backend=openai" in c]
OTHERS = [c for c in COMMANDS if c not in TRAIN + ON_SERVER]


def reduced(command: str, model: Path, **more: str) -> list[str]:
    """The arguments of a command of the page, at reduced size, on the model in a folder."""
    words = []
    for word in shlex.split(command):
        for pattern, other in REPLACED.items():
            if re.fullmatch(pattern, word):
                words += other.split()
                break
        else:
            name, _, value = word.partition("=")
            words.append(f"{name}={REDUCED[name]}" if name in REDUCED and value else word)
    present = {word.partition("=")[0] for word in words}
    always = (*ALWAYS, "train.valid_share") if command in TRAIN else ALWAYS
    words += [f"{name}={REDUCED[name]}" for name in always if name not in present]
    words += [f"{name}={value}" for name, value in more.items()]
    if any(word.startswith("model=") for word in words):
        words.append(f"model.path={model}")
    return words


def test_the_page_has_no_other_kind_of_command():
    kinds = (START, "pip install ", "pip uninstall ", "hf download ", "VLLM_USE_V2_MODEL_RUNNER=0 ")
    assert [line for line in shell_lines() if not line.startswith(kinds)] == []
    assert COMMANDS
    assert sum("vllm.entrypoints" in line for line in shell_lines()) == len(ON_SERVER) == 1


def write_model(folder: Path) -> None:
    """A random Qwen2 with grouped keys and untied embeddings, as the distills have them."""
    folder.mkdir()
    tokens = {**DEEPSEEK_TOKENS, RIGHT: False, WRONG: False}
    write(
        folder,
        tokens,
        template=DEEPSEEK_TEMPLATE,
        tokenizer_class="LlamaTokenizerFast",
        bos=BOS,
        eos=END,
    )
    n_plain = 261  # bytes and merges of the tokenizer; what is added follows
    ids = {name: n_plain + i for i, name in enumerate(tokens)}
    config = Qwen2Config(
        vocab_size=n_plain + len(tokens),
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        bos_token_id=ids[BOS],
        eos_token_id=ids[END],
        initializer_range=0.2,
        tie_word_embeddings=False,
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name in (RIGHT, WRONG, END):  # larger: the answers and the end come up more often
            model.lm_head.weight[ids[name]] *= 2
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the page's commands take from theirs."""
    folder = tmp_path_factory.mktemp("gpu")
    write_model(folder / "model")
    write_checkpoint(folder / "stop-1.5b", folder / "model")
    for name, asked in (("train", "What is"), ("eval", "Compute")):
        rows = [f'{{"problem": "{asked} {i}+{7 - i}.", "answer": "7"}}\n' for i in range(8)]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    """The same folder after the page's training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert len(TRAIN) == 1
        assert main(reduced(TRAIN[0], home / "model")) == 0
    assert (home / "results" / "trained" / "qwen1.5b" / "stop" / "adapter").is_dir()
    return home


def run(home: Path, arguments: list[str]) -> pd.DataFrame | None:
    """Run a command in `home`; the records that a run or a sweep has written."""
    before = set(home.glob("results/*/*/*"))
    assert main(arguments) == 0
    new = set(home.glob("results/*/*/*")) - before
    files = [file for folder in new for file in folder.rglob("records.parquet")]
    return pd.concat(map(pd.read_parquet, files)) if files else None


def check(records: pd.DataFrame | None) -> None:
    assert records is not None
    assert set(records["status"]) == {"ok"}
    assert (records["generator_tokens"] > 0).all()


def on_vllm(command: str) -> bool:
    return "backend=vllm" in command


def params() -> Iterator:
    for command in OTHERS:
        marks = [pytest.mark.vllm, pytest.mark.slow] if on_vllm(command) else []
        if on_vllm(command) and not HAS_VLLM:
            marks.append(pytest.mark.skip(reason="vLLM is not installed"))
        yield pytest.param(command, marks=marks, id=command[:70])


@pytest.mark.parametrize("command", params())
def test_the_command_runs(trained, monkeypatch, capsys, command):
    monkeypatch.chdir(trained)
    records = run(trained, reduced(command, trained / "model"))
    if command.startswith("doctor"):
        assert "backend=transformers: gives" in capsys.readouterr().out
    elif command.startswith("export"):
        [output] = re.findall(r"output=(\S+)", command)
        assert (trained / output / "adapter_config.json").is_file()
    else:
        check(records)


def test_downloads_name_the_models_of_the_presets():
    presets = [OmegaConf.load(file) for file in (ROOT / "conf" / "model").glob("*.yaml")]
    known = {preset.id for preset in presets}
    named = re.findall(r"hf download (\S+/\S+)|--model (\S+)", "\n".join(shell_lines()))
    assert named
    assert {first or second for first, second in named} <= known


def test_the_sizes_are_those_of_the_shapes():
    """Parameters, GB in bf16 and MB of cache per 1,000 tokens, from the published config.json."""
    shapes = {  # vocabulary, width, MLP, layers, heads, key-value heads, query and key biases
        "qwen1.5b": (151936, 1536, 8960, 28, 12, 2, True),
        "qwen7b": (152064, 3584, 18944, 28, 28, 4, True),
        "qwen3_8b": (151936, 4096, 12288, 36, 32, 8, False),
    }
    page = PAGE.read_text()
    for name, (vocab, width, mlp, layers, heads, kv, bias) in shapes.items():
        config = Qwen2Config(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            tie_word_embeddings=False,
        )
        with torch.device("meta"):
            model = Qwen2ForCausalLM(config)
        n = sum(p.numel() for k, p in model.named_parameters() if bias or "bias" not in k)
        n += 0 if bias else layers * 2 * 128  # Qwen3 norms queries and keys instead
        cache = 2 * layers * kv * 128 * 2 / 1000
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert f"{n / 1e9:.2f} B | {2 * n / 1e9:.1f} GB | {cache:.0f} MB" in row


def test_the_cost_of_labels_is_that_of_the_plan():
    """Tokens of a begun path, when all that branches from it have the paper's mean length."""
    mean = 782_300 / 64

    def per_root(plan: Plan) -> float:
        n, at, total = 1, 0, 0.0
        for length, copies in zip(plan.prefix_lengths, plan.copies, strict=True):
            total += n * (length - at)
            n, at = n * copies, length
        return total + n * (mean - at)

    given = dict(w.split("=", 1) for w in TRAIN[0].split() if w.startswith("train."))
    lengths = tuple(json.loads(given["train.prefix_lengths"]))
    roots, k = (int(given[f"train.{n}"]) for n in ("prefixes_per_problem", "n_continuations"))
    own = Plan(roots=roots, prefix_lengths=lengths, n_continuations=k, seed=0, rows=64)
    assert own.problems_per_chunk * roots * k == int(given["train.rows"])
    options = TrainOptions()
    usual = Plan(
        roots=options.prefixes_per_problem,
        prefix_lengths=tuple(around(2048)),
        n_continuations=options.n_continuations,
        seed=0,
        rows=options.rows,
    )
    paper = 1000 * 32 * (mean - 2048)
    n_own = roots * int(given["train.n_problems"])
    n_usual = usual.roots * options.n_problems
    page = PAGE.read_text()
    for tokens in (paper, n_own * per_root(own), n_usual * per_root(usual)):
        slow, fast = (round(tokens / speed / 3600) for speed in (1000, 5000))
        assert f"| {tokens / 1e6:,.0f} M | {slow} | {fast} |" in page
    for plan in (own, usual):
        assert f"{per_root(plan) / 1000:.0f},000" in page


def test_a_launcher_of_hydra_is_a_known_option():
    compose.validate(["hydra/launcher=basic", "keep=2"])
    with pytest.raises(UnknownName, match="launcher"):
        compose.validate(["launcher=basic"])


@pytest.mark.slow
@pytest.mark.vllm
def test_stop_on_the_server_of_the_page(trained, monkeypatch):
    python = os.environ.get("PRUNEBENCH_SERVER_PYTHON", sys.executable)
    if not HAS_VLLM and python == sys.executable:
        pytest.skip("vLLM is not installed: name a python with PRUNEBENCH_SERVER_PYTHON")
    monkeypatch.chdir(trained)
    [line] = [text for text in shell_lines() if "vllm.entrypoints" in text]
    folder = re.findall(r"stop=(\S+)", line)[0]
    if not Path(folder).exists():
        [export] = [c for c in OTHERS if c.startswith("export")]
        assert main(reduced(export, trained / "model")) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = shlex.split(line)
    variables = dict(w.split("=") for w in words[: words.index("python")])
    command = [python, *words[words.index("python") + 1 :]]
    command[command.index("--model") + 1] = str(trained / "model")
    command += ["--port", str(port), "--host", "127.0.0.1", "--enforce-eager"]
    # seeded requests and prompts in parts do not go together on a CPU (vLLM 0.32)
    command += [w for pair in SERVER.items() for w in pair] + ["--no-enable-chunked-prefill"]
    offline = ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "TORCHDYNAMO_DISABLE")
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", *offline), "1"), **variables}
    environment["PYTHONPATH"] = str(ROOT)
    with Path("server.log").open("wb") as log:
        server = subprocess.Popen(
            command,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(server, f"http://127.0.0.1:{port}/v1", Path("server.log"))
        for text in ON_SERVER:
            own = text.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
            check(run(trained, reduced(own, trained / "model")))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)

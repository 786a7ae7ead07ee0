"""A real server for all tests that need one: it starts once, with the first of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from prunebench.cli import main
from prunebench.report import figures

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
LONGEST = ("test_main_job", "test_methods", "test_html", "test_launchers", "test_cli")
"""Files that begin first, so that no worker is left with one of them at the end."""
START_S = 240
PLUG_INS = """
import vllm
from importlib.metadata import entry_points
print([entry.name for entry in entry_points(group="vllm.general_plugins")])
"""
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}\n{% endif %}{% endfor %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


DRAW = figures.write_figures


@pytest.fixture(scope="module", autouse=True)
def _few_pictures(request) -> Iterator[None]:
    """Runs draw no figures, the slowest part of a small run, but where those are what is tested
    (`pytestmark = pytest.mark.pictures`, or the fixture `pictures`)."""
    if request.node.get_closest_marker("pictures") is not None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "write_figures", lambda *_, **__: ([], {}))
        yield


@pytest.fixture
def pictures(monkeypatch) -> None:
    """Let runs draw their figures."""
    monkeypatch.setattr(figures, "write_figures", DRAW)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM server (CPU) that serves the embedded model as `tiny`, and its STOP as
    `stop` where prunebench's plug-in is found.

    Set PRUNEBENCH_SERVER_PYTHON to the interpreter of an environment that has vLLM, if this one has
    not.
    """
    python = os.environ.get("PRUNEBENCH_SERVER_PYTHON", sys.executable)
    offline = ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "TORCHDYNAMO_DISABLE")
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", *offline), "1")}
    environment["PYTHONPATH"] = str(ROOT)
    asked = subprocess.run([python, "-c", PLUG_INS], capture_output=True, env=environment)
    if asked.returncode:
        pytest.skip(f"{python} cannot import vllm: name one with PRUNEBENCH_SERVER_PYTHON")
    folder = tmp_path_factory.mktemp("server")
    (folder / "chat.jinja").write_text(CHAT_TEMPLATE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(ROOT / "prunebench" / "tiny" / "weights")]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
    command += ["--kv-cache-memory-bytes", str(1 << 28), "--max-num-seqs", "16"]
    # seeded requests and prompts in parts do not go together on a CPU (vLLM 0.32)
    command += ["--no-enable-chunked-prefill", "--block-size", "32"]
    command += ["--logits-processors", "prunebench.backends._vllm_sampling:PathNoise"]
    command += ["--chat-template", str(folder / "chat.jinja")]
    if b"prunebench" in asked.stdout:
        assert main(["export", "method=stop", "model=tiny", f"output={folder / 'stop'}"]) == 0
        command += ["--enable-lora", "--max-lora-rank", "16", "--enable-prompt-tokens-details"]
        command += ["--lora-modules", f"stop={folder / 'stop'}"]
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(server, f"http://127.0.0.1:{port}/v1", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def _wait_until_ready(server: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if server.poll() is not None:
            pytest.fail(f"The server ended:\n{log.read_text()[-3000:]}")
        with suppress(OSError), urllib.request.urlopen(f"{url}/models", timeout=5):
            return
        time.sleep(0.5)
    pytest.fail(f"The server was not ready after {START_S} s:\n{log.read_text()[-3000:]}")

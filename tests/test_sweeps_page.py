"""The commands of docs/sweeps.md: all compose, and those that need no cluster plan what they say.

The commands are read from the page, so a new one is checked without an edit here. The launchers
themselves run in `test_launchers.py`.
"""

import re
import shlex
from pathlib import Path

import pytest

from prunebench import cli, compose

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "sweeps.md").read_text()
BLOCKS = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
LINES = [line for line in BLOCKS.replace("\\\n", " ").splitlines() if line]
START = "python -m prunebench "
COMMANDS = [line.removeprefix(START) for line in LINES if line.startswith(START)]
SWEEPS = [c for c in COMMANDS if c.startswith("-m ")]


def test_the_page_holds_commands_of_two_kinds():
    assert [line for line in LINES if not line.startswith((START, "pip install "))] == []
    assert len(SWEEPS) >= 10
    assert [c for c in COMMANDS if c not in SWEEPS] == ["list compatibility"]


def test_every_extra_on_the_page_is_there():
    extras = set(re.findall(r'\.\[(\w+)\]"', BLOCKS))
    assert extras == set(compose.PLUG_INS.values())
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)


@pytest.mark.parametrize("command", SWEEPS)
def test_every_sweep_composes(command):
    overrides = [word for word in shlex.split(command)[1:] if "=" in word]
    launcher = next((o for o in overrides if o.startswith("hydra/launcher=")), None)
    with compose.hydra_ready() as loader:
        known = loader.get_group_options(compose.LAUNCHER)
    if launcher is not None and launcher.partition("=")[2] not in known:
        pytest.skip(f"{launcher} is not installed")
    compose.validate(overrides)


def test_a_dry_run_of_the_page_plans_every_cell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (command,) = (c for c in SWEEPS if "llm_judge" in c and "dry_run=true" in c)
    assert cli.main([*shlex.split(command), "backend=fake", "dataset.limit=2"]) == 1
    out = capsys.readouterr().out
    assert "4 cells, 2 of which cannot run" in out
    assert "generate 128 paths" in out

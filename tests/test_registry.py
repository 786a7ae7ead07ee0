"""How methods are found, and what happens to those that do not load."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import prunebench.methods
from prunebench import registry
from prunebench.errors import ConfigError, UnknownName
from prunebench.methods.entropy import Entropy

ROOT = Path(__file__).parent


@pytest.fixture(autouse=True)
def _fresh():
    registry._discover_methods.cache_clear()
    yield
    registry._discover_methods.cache_clear()


def with_entry_points(monkeypatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


def test_every_file_is_a_method_under_its_stem():
    stems = {p.stem for p in (ROOT.parent / "methods").glob("[!_]*.py")}
    assert set(registry.methods()) == stems
    assert registry.method_name(Entropy()) == "entropy"


def test_another_package_adds_a_method_by_an_entry_point(monkeypatch):
    point = EntryPoint("theirs", "prunebench.methods.entropy:Entropy", "prunebench.methods")
    with_entry_points(monkeypatch, point)
    assert registry.methods()["theirs"] is Entropy


def test_a_broken_entry_point_takes_nothing_else_away_and_says_why(monkeypatch):
    with_entry_points(
        monkeypatch,
        EntryPoint("gone", "no_such_package:Method", "prunebench.methods"),
        EntryPoint("entropy", "prunebench.methods.entropy:Entropy", "prunebench.methods"),
        EntryPoint("number", "math:pi", "prunebench.methods"),
    )
    assert "entropy" in registry.methods()
    reasons = {fault.name: fault.reason for fault in registry.broken_methods()}
    assert "no_such_package" in reasons["gone"]
    assert "taken" in reasons["entropy"]
    assert "not a SignalGenerator class" in reasons["number"]
    with pytest.raises(ConfigError, match=r"'gone' does not load: .*no_such_package"):
        registry.method_class("gone")


def test_a_broken_file_takes_nothing_else_away(monkeypatch, tmp_path):
    (tmp_path / "half_written.py").write_text("def score(")
    (tmp_path / "nothing_in_it.py").write_text("x = 1")
    (tmp_path / "_helper.py").write_text("x = 1")
    monkeypatch.setattr(
        prunebench.methods, "__path__", [*prunebench.methods.__path__, str(tmp_path)]
    )
    assert "entropy" in registry.methods()
    reasons = {fault.name: fault.reason for fault in registry.broken_methods()}
    assert set(reasons) == {"half_written", "nothing_in_it"}
    assert "SyntaxError" in reasons["half_written"]
    assert "exactly one SignalGenerator" in reasons["nothing_in_it"]


def test_an_unknown_name_gets_near_matches():
    with pytest.raises(UnknownName, match=r"'entropi'. Did you mean 'entropy'"):
        registry.method_class("entropi")

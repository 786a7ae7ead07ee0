"""What a method's class says about itself, checked without scoring a path.

Used by `prunebench.conformance`, which checks what the method does. Reports through a callback
and knows no method by name.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import keyword
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from prunebench import registry
from prunebench.method import SignalGenerator, Trainable
from prunebench.types import INTERNAL, Capability, SignalType

Report = Callable[[str, str], None]
"""Takes the short name of a check and the message of its fault."""

_HEAVY = {"torch", "transformers", "peft", "vllm", "pandas", "matplotlib", "sklearn"}


def check_declaration(cls: type[SignalGenerator], name: str, report: Report) -> None:
    """Name, class attributes, docstring, imports, fields, and that construction does nothing.

    The method can be scored unless `declaration` or `construction` is reported.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        report("name", f"{name!r} cannot be a method's name: rename the file, e.g. my_method.py.")
    kind, paper, requires = (getattr(cls, a, None) for a in ("type", "paper", "requires"))
    if not isinstance(kind, SignalType):
        report("declaration", f"'type' must be a SignalType, e.g. SignalType.I. Got {kind!r}.")
    if not (isinstance(paper, str) and re.search(r"https?://\S+", paper)):
        report("paper", f"'paper' must say where the formula is from, with a URL. Got {paper!r}.")
    if not isinstance(requires, frozenset) or not all(isinstance(c, Capability) for c in requires):
        report(
            "declaration",
            "'requires' must be a frozenset of Capability, e.g. "
            f"frozenset({{Capability.ENTROPY}}). Got {requires!r}.",
        )
    elif isinstance(kind, SignalType):
        _check_type(kind, requires, report)
    told = [inspect.getmodule(cls), cls, vars(cls).get("score"), vars(cls).get("score_path")]
    docs = " ".join(getattr(part, "__doc__", None) or "" for part in told)
    if not re.search(r"\bhigher\b", docs, re.IGNORECASE):
        report("docstring", "The docstring must say what a score means: 'Higher = keep: ...'.")
    for package in sorted(_heavy_imports(cls)):
        report(
            "heavy_import",
            f"The file imports {package} when it is loaded, which makes every command slow: "
            "import it inside setup, fit or score (or under TYPE_CHECKING).",
        )
    _check_construction(cls, report)


def _check_type(kind: SignalType, requires: frozenset[Capability], report: Report) -> None:
    listed = ", ".join(sorted(c.name for c in requires)) or "nothing"
    if kind is not SignalType.CONTROL and Capability.STEP_CHECK in requires:
        report(
            "ground_truth",
            "The method reads the truth of every step (STEP_CHECK), which no deployed signal has. "
            "Only a SignalType.CONTROL may; remove it.",
        )
        return
    # A probe makes the model write: its text is external (I, II), its probabilities internal.
    if kind in {SignalType.III, SignalType.IV} and not requires & (INTERNAL | {Capability.PROBE}):
        report(
            "type_mismatch",
            f"Type {kind} reads the generating model, but the method requires {listed}: declare "
            "an internal capability, or call it type I or II.",
        )
    if kind in {SignalType.I, SignalType.II} and requires & INTERNAL:
        report(
            "type_mismatch",
            f"Type {kind} reads no internals of the model, but the method requires {listed}: "
            "call it type III or IV.",
        )
    if kind is not SignalType.CONTROL and Capability.OUTCOME in requires:
        report(
            "past_checkpoint",
            "The method looks past the checkpoint: it requires OUTCOME, which tells how a path "
            "ends. Only a SignalType.CONTROL may; remove it.",
        )


def _heavy_imports(cls: type) -> set[str]:
    file = inspect.getsourcefile(cls)
    assert file is not None
    found = set()
    for node in ast.parse(Path(file).read_bytes()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found & _HEAVY


def _check_construction(cls: type[SignalGenerator], report: Report) -> None:
    own = {k for k, v in vars(cls).get("__annotations__", {}).items() if "ClassVar" not in str(v)}
    undecorated = sorted(own - {f.name for f in dataclasses.fields(cls)})
    if undecorated:
        report(
            "declaration",
            f"{', '.join(undecorated)} of {cls.__name__} would be no option: decorate the class "
            "with @dataclass(kw_only=True).",
        )
        return
    registry.methods()  # a method of methods finds them there: not what its constructor touches
    try:
        with _watch_files() as touched:
            cls()
    except Exception as error:
        report(
            "construction",
            f"{cls.__name__}() raised {type(error).__name__}: {error}. Every field needs a "
            "default that works.",
        )
        return
    if touched:
        report(
            "construction",
            f"{cls.__name__}() touched {touched[0]}. Construction must only store the options: "
            "load files and open connections in setup.",
        )
    if issubclass(cls, Trainable) and "checkpoint" not in {f.name for f in dataclasses.fields(cls)}:
        report("declaration", "A Trainable needs the field 'checkpoint: str | None = None'.")
    try:
        OmegaConf.structured(cls)
    except Exception as error:
        reason = str(error).splitlines()[0]
        report(
            "options",
            f"The fields of {cls.__name__} cannot become options ({reason}). Use bool, int, float, "
            "str, an Enum instead of Literal, and Any for learned state.",
        )


_watched = threading.local()  # the audit hook cannot be removed, so it idles without a list
_hook_installed = False


@contextmanager
def _watch_files() -> Iterator[list[str]]:
    """Collects files opened and hosts contacted by this thread, except Python's own modules."""
    global _hook_installed
    if not _hook_installed:
        sys.addaudithook(_on_audit_event)
        _hook_installed = True
    _watched.seen = []
    try:
        yield _watched.seen
    finally:
        _watched.seen = None


def _on_audit_event(event: str, args: tuple[Any, ...]) -> None:
    seen = getattr(_watched, "seen", None)
    if seen is None:
        return
    if event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so")):
        seen.append(f"the file {args[0]!r}")
    elif event == "socket.connect":
        seen.append(f"the network address {args[1]!r}")

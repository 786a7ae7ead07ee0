"""Finds methods and backends: one file, one class, one name.

The stem of a file in `methods/` is the method's name, its Hydra option and its row in tables.
Packages outside prunebench add methods through the entry-point group `prunebench.methods`
(entry-point name = method name, value = the class).
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import TypeVar

from omegaconf import OmegaConf

from prunebench.backend import Backend
from prunebench.errors import ConfigError, UnknownName
from prunebench.method import SignalGenerator

T = TypeVar("T")
ENTRY_POINT_GROUP = "prunebench.methods"


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A method file or entry point that could not be loaded, and why."""

    name: str
    reason: str


def the_class(module: ModuleType, base: type[T]) -> type[T]:
    """The one concrete subclass of `base` that `module` itself defines."""
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, base)
        and member.__module__ == module.__name__
        and not inspect.isabstract(member)
    ]
    if len(found) != 1:
        names = ", ".join(sorted(c.__name__ for c in found)) or "none"
        raise ConfigError(
            f"The file {module.__file__} must define exactly one {base.__name__} with all its "
            f"methods written. Found: {names}."
        )
    return found[0]


@cache
def _discover_methods() -> tuple[dict[str, type[SignalGenerator]], list[Broken]]:
    package = importlib.import_module("prunebench.methods")

    found: dict[str, type[SignalGenerator]] = {}
    broken: list[Broken] = []
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        try:
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            found[info.name] = _configurable(the_class(module, SignalGenerator))
        except (Exception, SystemExit) as error:  # one broken file must not take the rest away
            broken.append(Broken(name=info.name, reason=f"{type(error).__name__}: {error}"))
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            if entry.name in found:
                raise ConfigError(f"the name {entry.name!r} is taken by a method of prunebench")
            cls = entry.load()
            if not (inspect.isclass(cls) and issubclass(cls, SignalGenerator)):
                raise ConfigError(f"{entry.value} is not a SignalGenerator class")
            found[entry.name] = _configurable(cls)
        except Exception as error:
            broken.append(Broken(name=entry.name, reason=f"{type(error).__name__}: {error}"))
    return dict(sorted(found.items())), broken


def _configurable(cls: type[SignalGenerator]) -> type[SignalGenerator]:
    """`cls`, if its fields can be options; raises OmegaConf's error otherwise."""
    OmegaConf.structured(cls)
    return cls


def methods() -> dict[str, type[SignalGenerator]]:
    """Every method by name, sorted."""
    return _discover_methods()[0]


def broken_methods() -> list[Broken]:
    """Files and entry points that look like methods but do not load."""
    return _discover_methods()[1]


@cache
def backends() -> dict[str, type[Backend]]:
    """Every backend that a user can choose, by name. Their modules import torch lazily."""
    import prunebench.backends as package

    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        cls = the_class(importlib.import_module(f"{package.__name__}.{info.name}"), Backend)
        # replay takes a bank, which no option can name: the core alone makes it
        if all(has_default(f) for f in dataclasses.fields(cls)):  # type: ignore[arg-type]  # a dataclass
            found[info.name] = cls
    return found


def engines() -> dict[str, type[Backend]]:
    """The backends that run a model: what an error can recommend."""
    return {name: cls for name, cls in backends().items() if name not in ("fake", "imported")}


def has_default(field: dataclasses.Field) -> bool:
    """Whether a dataclass can be made without naming this field."""
    return not field.init or any(
        default is not dataclasses.MISSING for default in (field.default, field.default_factory)
    )


def method_class(name: str) -> type[SignalGenerator]:
    """The class of a method. Raises `UnknownName` with near matches, or says why it is broken."""
    known, broken = _discover_methods()
    if name in known:
        return known[name]
    for fault in broken:
        if fault.name == name:
            raise ConfigError(f"The method {name!r} does not load: {fault.reason}")
    raise UnknownName("method", name, known)


def method_name(method: SignalGenerator | type[SignalGenerator]) -> str:
    """The registry name of a method or its class."""
    cls = method if inspect.isclass(method) else type(method)
    for name, known in methods().items():
        if known is cls:
            return name
    return cls.__module__.rsplit(".", 1)[-1]

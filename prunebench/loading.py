"""Loads a method from a file that lies anywhere, so that it can be checked before it is added.

Knows how to find the one class of a file, and nothing about what a good method is.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path as FilePath
from types import ModuleType

from prunebench.errors import ConfigError
from prunebench.method import SignalGenerator
from prunebench.registry import the_class


def load_method_file(path: str | FilePath) -> type[SignalGenerator]:
    """The one method that a file defines. Raises `ConfigError` naming the file and the reason."""
    path = FilePath(path).resolve()
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"There is no Python file {path}. Give the path of a method's file.")
    try:
        module = _import_file(path)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"The file {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    for cls in vars(module).values():
        if inspect.isabstract(cls) and cls.__module__ == module.__name__:
            gaps = ", ".join(sorted(cls.__abstractmethods__))
            raise ConfigError(f"The class {cls.__name__} in {path} has no method {gaps}: write it.")
    return the_class(module, SignalGenerator)


def _import_file(path: FilePath) -> ModuleType:
    package = importlib.import_module("prunebench.methods")
    if str(path.parent) in {str(FilePath(p).resolve()) for p in package.__path__}:
        return importlib.import_module(f"{package.__name__}.{path.stem}")
    # Two files may share a stem; dataclasses and inspect look modules up by their full name.
    full_name = f"_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}.{path.stem}"
    spec = importlib.util.spec_from_file_location(full_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[full_name]
        raise
    return module

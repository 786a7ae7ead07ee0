"""Composes configurations with Hydra, and turns its errors into sentences for people.

Overrides are checked here before Hydra starts a run, so a misspelt name costs no time and names
its near matches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prunebench import config, registry
from prunebench.errors import ConfigError, UnknownName

MODULE = "prunebench.conf"
GROUPS = ("method", "model", "dataset", "backend")


@contextmanager
def hydra_ready(overrides: Sequence[str] = ()) -> Iterator[ConfigLoader]:
    """Hydra's config loader with all schemas registered, for the time of the block."""
    config.register()
    GlobalHydra.instance().clear()
    with initialize_config_module(MODULE, version_base=None):
        yield GlobalHydra.instance().config_loader()


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration under `overrides`. Call inside `hydra_ready`."""
    return hydra_compose("config", overrides=list(overrides))


def config_dir(arguments: Sequence[str]) -> str | None:
    """The folder given with `--config-dir`, which adds the user's own option files."""
    for at, argument in enumerate(arguments):
        if argument in ("--config-dir", "-cd") and at + 1 < len(arguments):
            return arguments[at + 1]
        if argument.startswith("--config-dir="):
            return argument.split("=", 1)[1]
    return None


def validate(overrides: Sequence[str], config_dir: str | None = None) -> None:
    """Raise `ConfigError` for overrides that cannot be composed.

    Of a sweep, every option of a group is checked, and the rest with the first value.
    """
    overrides = [o for o in overrides if o != config_dir]
    extra = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise ConfigError(f"An override cannot be read: {_first_lines(error)}") from error
    with hydra_ready() as loader:
        for override in parsed:
            if override.key_or_group in GROUPS:
                _check_options(override, loader)
        chosen = [o for o in parsed if o.key_or_group in GROUPS]
        plain = [o for o in parsed if o not in chosen]
        base = _compose([*extra, *map(_first, chosen)])
        for override in plain:
            _check_key(override, base)
        _compose([*extra, *map(_first, parsed)])


def _compose(overrides: list[str]) -> DictConfig:
    try:
        return composed(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        raise ConfigError(f"The configuration cannot be composed: {_first_lines(cause)}") from error


def _values(override: Override) -> list[str]:
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    return [override.get_value_element_as_str()]


def _first(override: Override) -> str:
    assert override.input_line is not None
    if not override.is_sweep_override():
        return override.input_line
    return f"{override.input_line.split('=', 1)[0]}={_values(override)[0]}"


def _check_options(override: Override, loader: ConfigLoader) -> None:
    group = override.key_or_group
    known = loader.get_group_options(group)
    for value in _values(override):
        if value not in known:
            if group == "method":
                registry.method_class(value)  # says so when the file exists but is broken
            raise UnknownName(group, value, known)


def _check_key(override: Override, base: DictConfig) -> None:
    """Raise `UnknownName` when an override names an option that is not there."""
    key = override.key_or_group
    if key.split(".")[0] == "hydra" or override.is_add() or override.is_force_add():
        return
    node: Any = base
    for depth, part in enumerate(key.split(".")):
        if not isinstance(node, DictConfig):
            return
        if part not in node:
            prefix = ".".join([*key.split(".")[:depth], ""])
            raise UnknownName("option", key, [f"{prefix}{name}" for name in node])
        if OmegaConf.is_missing(node, part):
            return
        node = node._get_node(part) if OmegaConf.is_interpolation(node, part) else node[part]


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith("object_type"))[:500]

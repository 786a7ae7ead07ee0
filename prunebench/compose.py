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
from prunebench.endpoint import check_secrets
from prunebench.errors import ConfigError, UnknownName

MODULE = "prunebench.conf"
LAUNCHER = "hydra/launcher"
PLUG_INS = {
    "joblib": "joblib",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "ray": "ray",
}
"""Launchers that are no part of Hydra, and the extra that brings each."""
GROUPS = ("method", "model", "dataset", "backend", "endpoint")


@contextmanager
def hydra_ready() -> Iterator[ConfigLoader]:
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
    extra = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
    foreign = config_dir is not None or any("hydra.searchpath" in o for o in overrides)
    with hydra_ready() as loader:
        try:
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
            values = {id(o): _values(o) for o in parsed}
        except (HydraException, ValueError) as error:
            raise ConfigError(f"An override cannot be read: {first_lines(error)}") from error
        firsts = [_first(o, values[id(o)]) for o in parsed]
        groups = [o.key_or_group in GROUPS for o in parsed]
        for override, is_group in zip(parsed, groups, strict=True):
            if is_group and not foreign:  # options of other folders are left to Hydra
                _check_options(override, values[id(override)], loader)
        for override in parsed:
            if override.key_or_group == LAUNCHER:
                _check_launcher(override.get_value_element_as_str(), loader)
            for value in values[id(override)]:
                _check_secrets(override.key_or_group, value.strip("'\""))
        base = _compose([*extra, *(f for f, g in zip(firsts, groups, strict=True) if g)])
        for override, is_group in zip(parsed, groups, strict=True):
            if not is_group:
                _check_key(override, base)
        _compose([*extra, *firsts])


def named_bank(arguments: Sequence[str]) -> list[str]:
    """Arguments in which `bank=NAME`, an imported bank, is spelt out for Hydra."""
    banks = [a for a in arguments if a.startswith("bank=")]
    if not banks:
        return list(arguments)
    brings = ("model", "dataset", "backend")
    taken = [a for a in arguments if a.partition("=")[0] in brings]
    if len(banks) > 1 or taken:
        raise ConfigError(
            f"'bank=NAME' brings its own model, dataset and backend. Got "
            f"{' '.join(banks + taken)}; give one bank= only (in a sweep: bank=first,second)."
        )
    chosen = [f"bank.name={banks[0].removeprefix('bank=')}", *(f"{b}=imported" for b in brings)]
    return [a for a in arguments if a != banks[0]] + chosen


def for_sweep(arguments: Sequence[str]) -> list[str]:
    """Arguments of a sweep, such that options of a group that is swept reach its cells only.

    Hydra composes a sweep once without what is swept, where `method.keep=similar` would meet the
    default method. As a choice of one value it is swept too.
    """
    with hydra_ready() as loader:
        parser = OverridesParser.create(config_loader=loader)
        parsed = {a: parser.parse_override(a) for a in arguments if "=" in a and a[:1] != "-"}
    swept = {o.key_or_group for o in parsed.values() if o.is_sweep_override()} & set(GROUPS)
    return [
        f"{a.partition('=')[0]}=choice({a.partition('=')[2] or repr('')})"
        if a in parsed
        and not parsed[a].is_sweep_override()
        and parsed[a].key_or_group.partition(".")[0] in swept
        and "." in parsed[a].key_or_group
        else a
        for a in arguments
    ]


def _compose(overrides: list[str]) -> DictConfig:
    try:
        return composed(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        raise ConfigError(f"The configuration cannot be composed: {first_lines(cause)}") from error


def _values(override: Override) -> list[str]:
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    return [override.get_value_element_as_str()]


def _first(override: Override, values: list[str]) -> str:
    assert override.input_line is not None
    if not override.is_sweep_override():
        return override.input_line
    return f"{override.input_line.split('=', 1)[0]}={values[0]}"


def _check_options(override: Override, values: list[str], loader: ConfigLoader) -> None:
    group = override.key_or_group
    known = loader.get_group_options(group)
    for value in values:
        if value not in known:
            if group == "method":
                registry.method_class(value)  # says so when the file exists but is broken
            raise UnknownName(group, value, known)


def _check_launcher(name: str, loader: ConfigLoader) -> None:
    known = loader.get_group_options(LAUNCHER)
    if name in known:
        return
    if name in PLUG_INS:
        raise ConfigError(
            f"'{LAUNCHER}={name}' needs a plug-in of Hydra that is not installed here. Install it "
            f"with 'pip install prunebench[{PLUG_INS[name]}]'; see docs/sweeps.md."
        )
    raise UnknownName("launcher", name, {*known, *PLUG_INS})


def _check_secrets(key: str, value: str) -> None:
    group, _, name = key.partition(".")
    if value != "null" and group in ("endpoint", "backend"):
        check_secrets(
            value if name == "key_env" else None, value if name == "base_url" else None, group
        )


def _check_key(override: Override, base: DictConfig) -> None:
    """Raise `UnknownName` when an override names an option that is not there."""
    key = override.key_or_group
    hydras_own = key.replace("/", ".").split(".")[0] == "hydra"  # hydra.sweep.dir, hydra/launcher
    if hydras_own or override.is_add() or override.is_force_add():
        return
    node: Any = base
    for depth, part in enumerate(key.split(".")):
        if not isinstance(node, DictConfig):
            return
        if part not in node.keys():  # noqa: SIM118  'in' is False for values that are not set
            prefix = ".".join([*key.split(".")[:depth], ""])
            raise UnknownName("option", key, [f"{prefix}{name}" for name in node])
        if OmegaConf.is_missing(node, part):
            return
        node = node._get_node(part) if OmegaConf.is_interpolation(node, part) else node[part]


def first_lines(error: BaseException) -> str:
    """The message of an error of Hydra as one line, without its technical tail."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith("object_type"))[:500]

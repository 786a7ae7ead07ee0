"""One Hydra job: a composed configuration becomes a run with its folder, tables and figure."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from prunebench import compose, config, runner
from prunebench.errors import ConfigError, PrunebenchError
from prunebench.evaluate import Status
from prunebench.execution import Execution, failed_execution, write_run
from prunebench.lab import Lab
from prunebench.report import records, tables
from prunebench.types import Capability

logger = logging.getLogger(__name__)

LAB = Lab()
"""Shared by the cells that a process runs one after the other."""


@dataclass
class _Result:
    error: PrunebenchError | None = None
    n_failed: int = 0


_RESULT = _Result()


def run(arguments: Sequence[str]) -> int:
    """Hand over to Hydra; returns the exit code. Raises the error of a single run."""
    config.register()
    before = sys.argv
    sys.argv = ["prunebench", *arguments]
    _RESULT.error, _RESULT.n_failed = None, 0
    try:
        hydra.main(version_base=None, config_path=f"pkg://{compose.MODULE}", config_name="config")(
            task
        )()
    finally:
        sys.argv = before
    if _RESULT.error is not None:
        raise _RESULT.error
    return 1 if _RESULT.n_failed else 0


def task(cfg: DictConfig) -> None:
    """The function that Hydra calls for every cell."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    sweep = settings.mode == RunMode.MULTIRUN
    label = _label(settings, cfg) if sweep else str(settings.runtime.choices["method"])
    run_id = "/".join(folder.parts[-2:])
    console = Console()
    run = None
    try:
        run = _objects(cfg)
        execution = runner.execute(run, LAB, console, run_id, label)
        _report(execution, run, folder, run_id, label, console, sweep, settings)
        return
    except (PrunebenchError, OSError) as error:
        if cfg.debug:
            traceback.print_exc()
        if not sweep:
            if not isinstance(error, PrunebenchError):
                raise
            _RESULT.error = error
            return
        reason = str(error)
    except Exception as error:
        if not sweep:
            raise
        if cfg.debug:
            traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    _RESULT.n_failed += 1
    console.print(f"[{settings.job.num}] failed: {reason}", markup=False)
    if run is not None:
        failed = failed_execution(run, run_id, label, reason)
        write_run(failed, run, folder, run_id)


def _label(settings: Any, cfg: DictConfig) -> str:
    """The method's name in a sweep's table, with its own options, so that settings differ."""
    name = str(settings.runtime.choices["method"])
    task = settings.overrides.task
    options = [o.removeprefix("method.") for o in task if o[:7] == "method."]
    if Capability.ENDPOINT in getattr(OmegaConf.get_type(cfg, "method"), "requires", ()):
        judges = ("endpoint=", "endpoint.model=", "endpoint.base_url=")
        options += [o for o in task if o.startswith(judges)]
    return f"{name}({', '.join(options)})" if options else name


def _objects(cfg: DictConfig) -> config.RunConfig:
    try:
        return config.to_run(cfg)
    except OmegaConfBaseException as error:
        missing = [k for k in OmegaConf.missing_keys(cfg) if not k.startswith("hydra")]
        what = f"Set {', '.join(f'{k}=' for k in sorted(missing))}." if missing else str(error)
        raise ConfigError(f"The configuration is not complete. {what}") from error


def _report(
    execution: Execution,
    run: config.RunConfig,
    folder: Path,
    run_id: str,
    label: str,
    console: Console,
    sweep: bool,
    settings: Any,
) -> None:
    table = write_run(execution, run, folder, run_id)
    with records.replacing(folder / "config.yaml") as temporary:
        OmegaConf.save(OmegaConf.create(config.plain(run)), temporary)
    rows = records.analyse(table)
    tables.write(rows, folder)
    for note in execution.notes:
        console.print(note, markup=False)
    line = next(row.line for row in rows if row.cell.method == label)
    if line.status == Status.FAILED:
        _RESULT.n_failed += 1
    if sweep:
        overrides = " ".join(settings.overrides.task)
        console.print(
            f"[{settings.job.num}] {overrides}: avg {line.avg:.3f}, cons {line.cons:.3f}",
            markup=False,
        )
        return
    from prunebench.report import figures

    tables.show(rows, console)
    figures.write_figures(rows, folder)
    spent = ", ".join(f"{phase} {value:.1f} s" for phase, value in execution.seconds.items())
    console.print(f"Seconds by phase: {spent}", markup=False)
    console.print(f"Results in {folder}", markup=False)

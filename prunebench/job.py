"""One Hydra job: a composed configuration becomes a run with its folder, tables and figure."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from prunebench import compose, config, plans, registry, runner
from prunebench.cells import REFERENCES
from prunebench.environment import code_hash
from prunebench.errors import ConfigError, NotTrained, PrunebenchError
from prunebench.evaluate import Status
from prunebench.execution import Execution, failed_execution, write_run
from prunebench.lab import Lab
from prunebench.modes import Protocol
from prunebench.report import records, tables
from prunebench.report.build import build
from prunebench.scores import source_hash
from prunebench.storage import content_hash
from prunebench.sweep import CombinedTable
from prunebench.trainfirst import train_first
from prunebench.types import Capability

logger = logging.getLogger(__name__)

LAB = Lab()
"""Shared by the cells that a process runs one after the other."""


SHARING = ("joblib", "submitit_local", "ray")
"""Launchers that run cells side by side on one machine; a cell then fills banks with one engine,
unless `workers` says more."""


@dataclass
class _Result:
    error: PrunebenchError | None = None
    n_failed: int = 0


_RESULT = _Result()


def run(arguments: Sequence[str]) -> int:
    """Hand over to Hydra; returns the exit code. Raises the error of a single run."""
    config.register()
    scratch = None
    if any(a.lower() == "dry_run=true" for a in arguments):
        scratch = Path("results") / f".dry-run-{os.getpid()}"
        own = ("hydra.run.dir=", "hydra.sweep.dir=")
        arguments = [a for a in arguments if not a.startswith(own)]
        at = [a.lower() for a in arguments].index("dry_run=true")  # flags may follow
        arguments[at:at] = [*(f"{name}{scratch}" for name in own), "hydra.output_subdir=null"]
    before = sys.argv
    sys.argv = ["prunebench", *arguments]
    _RESULT.error, _RESULT.n_failed = None, 0
    CombinedTable.n_failed = 0
    try:
        hydra.main(version_base=None, config_path=f"pkg://{compose.MODULE}", config_name="config")(
            task
        )()
    finally:
        sys.argv = before
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
            with suppress(OSError):  # others use it too
                scratch.parent.rmdir()
    if _RESULT.error is not None:
        raise _RESULT.error
    return 1 if _RESULT.n_failed or CombinedTable.n_failed else 0


def task(cfg: DictConfig) -> None:
    """The function that Hydra calls for every cell."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    sweep = settings.mode == RunMode.MULTIRUN
    label = _label(settings, cfg, sweep)
    run_id = "/".join(folder.parts[-2:])
    console = Console()
    run = None
    _share_cores(settings)
    try:
        run = _objects(cfg)
        run.workers = run.workers or (1 if _launcher(settings) in SHARING else 0)
        if run.dry_run:
            from prunebench import dryrun

            can_run = dryrun.show(run, LAB, console, label, folder)
            _RESULT.n_failed += not (sweep or can_run)  # those of a sweep are summed at its end
            return
        train_first(run, console)
        key = _key(run)
        if sweep and _is_done(folder, key):
            console.print(f"[{settings.job.num}] done before: {_overrides(settings)}", markup=False)
            return
        execution = runner.execute(run, LAB, console, run_id, label)
        write_run(execution, run, folder, run_id, key)
        if run.report.texts and execution.store_traces is not None:
            execution.store_traces((folder.parent if sweep else folder) / "traces")
        with records.replacing(folder / "config.yaml") as temporary:
            OmegaConf.save(OmegaConf.create(config.plain(run)), temporary)
        for note in execution.notes:
            console.print(note, markup=False)
        (_report_cell if sweep else _report)(execution, run, folder, label, console, settings)
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
    console.print(f"[{settings.job.num}] failed: {reason}", markup=False)
    if cfg.dry_run:
        plans.leave(plans.Plan(label=label, reason=reason), folder)
    elif run is not None:
        failed = failed_execution(run, run_id, label, reason)
        write_run(failed, run, folder, run_id)
    else:
        _RESULT.n_failed += 1  # no record tells


def _launcher(settings: Any) -> str:
    return str(settings.runtime.choices["hydra/launcher"])


def _share_cores(settings: Any) -> None:
    """Keep the threads of cells that run side by side to their share of the cores. In time when
    torch is not imported yet, as in a launcher's new process."""
    if _launcher(settings) in SHARING:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # joblib and ray have set a share already


def _key(run: config.RunConfig) -> str:
    """Identifies what a cell computes: configuration, problems, code and weights."""
    weights = None
    with suppress(NotTrained):  # which the run itself reports
        weights = LAB.prepared(run).checkpoint_hash
    return content_hash(
        {
            "config": {**config.plain(run), "debug": None, "workers": None},
            "dataset": run.dataset.identity(),
            "method": source_hash(type(run.method)),
            "checkpoint": weights,
            "bank": LAB.bank_place(run)[1],
            "law": None if run.coefficients is None else Path(run.coefficients).read_text(),
            "weights": None if run.weights is None else _weights_key(run),
            "code": code_hash(),
        }
    )


def _weights_key(run: config.RunConfig) -> list[Any]:
    """What determines the scores that weigh the votes."""
    assert run.weights is not None
    method = registry.method_class(run.weights)()
    weights = None
    with suppress(NotTrained):
        weights = LAB.prepared(replace(run, method=method, weights=None)).checkpoint_hash
    return [source_hash(type(method)), weights]


def _is_done(folder: Path, key: str) -> bool:
    """Whether the folder holds this very cell without a failure; it then counts as written now."""
    try:
        facts = json.loads((folder / "run.json").read_text())
        table = records.read([folder / "records.parquet"])
    except (OSError, ValueError, PrunebenchError):
        return False
    skipped = table[(table["status"] == str(Status.SKIPPED)) & table["method"].isin(REFERENCES)]
    if facts.get("key") != key or str(Status.FAILED) in set(table["status"]) or len(skipped):
        return False  # references are skipped online as long as there is no bank
    (folder / "records.parquet").touch()
    return True


def _label(settings: Any, cfg: DictConfig, sweep: bool) -> str:
    """The method's name in a sweep's table, with its own options, so that settings differ."""
    if cfg.protocol is not Protocol.prune:
        return str(cfg.protocol.value)
    name = str(settings.runtime.choices["method"])
    variant = settings.runtime.choices.get("ablation")
    if not sweep:
        return name
    if variant is not None:
        return f"{name} {variant}"
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


def _overrides(settings: Any) -> str:
    return " ".join(settings.overrides.task)


def _report_cell(
    execution: Execution,
    run: config.RunConfig,
    folder: Path,
    label: str,
    console: Console,
    settings: Any,
) -> None:
    """One line for a cell of a sweep, whose tables and figures come at the end."""
    rows = records.analyse(records.frame(execution.rows))
    line = next((row.line for row in rows if row.cell.method == label), rows[0].line)
    numbers = f"avg {line.avg:.3f}, cons {line.cons:.3f}"
    if line.status in (Status.FAILED, Status.SKIPPED):
        numbers = f"{line.status}: {line.reason}"
    console.print(f"[{settings.job.num}] {_overrides(settings)}: {numbers}", markup=False)


def _report(
    execution: Execution,
    run: config.RunConfig,
    folder: Path,
    label: str,
    console: Console,
    settings: Any,
) -> None:
    """Table on the console; tables, figures and the page in the folder of the run."""
    report = build(
        [folder / "records.parquet"], folder, max_mb=run.report.max_mb, width=run.report.width
    )
    line = next((row.line for row in report.rows if row.cell.method == label), None)
    if line is not None and line.status == Status.FAILED:
        _RESULT.n_failed += 1
    tables.show(report.rows, console)
    spent = ", ".join(f"{phase} {value:.1f} s" for phase, value in execution.seconds.items())
    console.print(f"Seconds by phase: {spent}", markup=False)
    console.print(f"Results in {folder}; open report.html there", markup=False)

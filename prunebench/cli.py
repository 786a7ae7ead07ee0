"""The command line: words without `=` are commands, everything else are Hydra overrides.

Turns every `PrunebenchError` into one sentence and an exit code; tracebacks only for bugs and
with `debug=true`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prunebench import __version__
from prunebench.errors import ConfigError, ConformanceError, PrunebenchError, UnknownName
from prunebench.vote import Aggregator

HELP = """prunebench: compare path-pruning signals for parallel reasoning

Usage
  python -m prunebench [OVERRIDE ...]            run one experiment and print its table
  python -m prunebench -m [OVERRIDE ...]         sweep: comma-separated values, one table at the end
  python -m prunebench train [OVERRIDE ...]      train a learnable method for a model
  python -m prunebench export [OVERRIDE ...] output=FOLDER    a trained reader, for a vLLM server
  python -m prunebench doctor [OVERRIDE ...]     versions, engines, and a self-test of their scores
  python -m prunebench report FOLDER [...] [output=FOLDER] [width=one|two]    tables, figures and
                                                 report.html, from the records alone
  python -m prunebench retention budget=TOKENS prefix_length=L task_length=TOKENS [--json]
                                                 how many paths to keep, by the retention law
  python -m prunebench fit-retention FOLDER [output=FILE]     the law, fitted to your own sweep
  python -m prunebench import FILE name=NAME     a bank from paths made elsewhere; run: bank=NAME
  python -m prunebench list KIND [--json]        methods, models, datasets, backends, endpoints,
                                                 compatibility (which method runs on which engine)
  python -m prunebench check FILE                check a method file against the contract
  python -m prunebench --help | --version

Examples
  python -m prunebench method=deepconf n_paths=64 keep=8 prefix_length=96
  python -m prunebench -m method=stop,deepconf,random prefix_length=32,64 keep=2,4,8
  python -m prunebench mode=online method=stop
  python -m prunebench train method=stop model=tiny

Option groups (GROUP=NAME)
{groups}

Options
  mode=replay|online       replay stored paths, or Launch-Check-Resume on the live engine
  n_paths=64 keep=8        N paths are launched, k are finished
  retention=0.125|auto     keep this share; auto asks the retention law
  schedule=[[L,k],[L,k]]   several checkpoints; select=threshold|mass keeps as many as score well
  weights=METHOD           the votes weigh by another method's scores than the one that selects
  protocol=adaptive_consistency|esc|deepconf_online    rules that stop sampling, as rows to compare
  prefix_length=L          the checkpoint, in generated tokens (default: the model's)
  pool_size=N              paths generated per problem; above n_paths, random subsets are averaged
  finished=compete|keep_free   what happens to paths that end before the checkpoint
  aggregator={aggregators}
  seed=0 workers=0         sampling seed; processes that generate (0: one per core on a CPU)
  bank.dir= bank.path=     where traces are kept
  bank=NAME                an imported bank, in place of model, dataset and backend
  method.*, model.*, dataset.*, backend.*, endpoint.*, train.*
                           fields of the chosen option; to see them:
                           python -m prunebench --cfg job [OVERRIDE ...]
  dry_run=true             only say what would be generated and scored, and what cannot run
  debug=true               show tracebacks
Hydra's own flags (--cfg, --info, --config-dir, --multirun, ...) work as usual: --hydra-help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    debug = any(a.lower() == "debug=true" for a in arguments)
    try:
        return _dispatch(arguments)
    except PrunebenchError as error:
        if debug:
            raise
        print(f"prunebench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "prunebench: interrupted. What is done is stored; the same command continues.",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        return 1


def _dispatch(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(HELP.format(groups=_groups(), aggregators="|".join(Aggregator)))
        return 0
    if "--version" in arguments:
        print(f"prunebench {__version__}")
        return 0
    words = [a for a in arguments if not a.startswith("-") and "=" not in a and a[:1] not in "~+"]
    # the value of a flag (--config-dir FOLDER) is no command
    words = [w for w in words if arguments.index(w) == 0 or w in COMMANDS]
    if not words:
        return _run(arguments)
    command = words[0]
    if command not in COMMANDS:
        raise UnknownName("command", command, COMMANDS)
    rest = list(arguments)
    rest.remove(command)
    return COMMANDS[command](rest)


# ------------------------------------------------------------------------------------ commands


def _list(arguments: list[str]) -> int:
    kinds = {
        "methods": _list_methods,
        "models": lambda: _describe_options("model", "id"),
        "datasets": lambda: _describe_options("dataset", "limit", "grading"),
        "backends": _list_backends,
        "compatibility": _list_compatibility,
        "endpoints": lambda: _describe_options("endpoint", "base_url", "model", "key_env"),
    }
    as_json = "--json" in arguments
    names = [a for a in arguments if a != "--json"]
    if len(names) != 1:
        raise ConfigError(
            f"'prunebench list' takes one of {', '.join(kinds)}. Got {' '.join(names) or 'nothing'}"
            f" instead."
        )
    if names[0] not in kinds:
        raise UnknownName("kind", names[0], kinds)
    rows = kinds[names[0]]()
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            *(escape(", ".join(v) if isinstance(v, list) else str(v)) for v in row.values())
        )
    Console().print(table)
    return 0


def _list_methods() -> list[dict[str, Any]]:
    from prunebench import registry

    for fault in registry.broken_methods():
        print(f"prunebench: method {fault.name!r} does not load: {fault.reason}", file=sys.stderr)
    return [
        {
            "name": name,
            "type": str(cls.type),
            "requires": sorted(c.value for c in cls.requires),
            "paper": cls.paper,
        }
        for name, cls in registry.methods().items()
    ]


def _list_backends() -> list[dict[str, Any]]:
    from prunebench import registry

    return [
        {"name": name, "provides": sorted(c.value for c in cls().provides)}
        for name, cls in registry.backends().items()
    ]


def _list_compatibility() -> list[dict[str, Any]]:
    """Which method runs on which engine with its defaults, and what it needs beside one."""
    from prunebench import compat, registry

    engines = {name: cls().provides for name, cls in registry.engines().items()}
    rows = []
    for name, cls in registry.methods().items():
        beside = [c.value for c in compat.missing(cls.requires, compat.OF_ENGINES)]
        row: dict[str, Any] = {"method": name}
        for engine, provides in engines.items():
            lacking = compat.missing(cls.requires & compat.OF_ENGINES, provides)
            row[engine] = compat.verdict([c.value for c in lacking])
        rows.append({**row, "also needs": beside})
    return rows


def _describe_options(group: str, *names: str) -> list[dict[str, Any]]:
    from omegaconf import OmegaConf

    from prunebench import compose

    rows = []
    with compose.hydra_ready() as loader:
        for option in sorted(loader.get_group_options(group)):
            node = compose.composed([f"{group}={option}"])[group]
            row: dict[str, Any] = {"name": option}
            for name in names:
                missing = name not in node or OmegaConf.is_missing(node, name)
                row[name] = None if missing else node[name]
            rows.append(row)
    return rows


def _groups() -> str:
    from prunebench import compose

    with compose.hydra_ready() as loader:
        return "\n".join(
            f"  {group:9}{', '.join(sorted(loader.get_group_options(group)))}"
            for group in compose.GROUPS
        )


def _check(arguments: list[str]) -> int:
    from prunebench import conformance

    if len(arguments) != 1:
        raise ConfigError(
            "'prunebench check' takes one file: prunebench check methods/my_method.py"
        )
    path = Path(arguments[0])
    faults = conformance.check_method_file(path)
    if faults:
        listing = "\n".join(f"  {fault.check}: {fault.message}" for fault in faults)
        number = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConformanceError(f"{path} breaks the contract: {number}.\n{listing}")
    print(f"{path}: the method {path.stem!r} keeps the contract.")
    return 0


def _composed(command: str, arguments: list[str]) -> Any:
    """The run that overrides describe."""
    from prunebench import compose
    from prunebench.config import to_run

    flags = [a for a in arguments if "=" not in a]
    if flags:
        raise ConfigError(
            f"'prunebench {command}' takes overrides only. Got {' '.join(flags)} too."
        )
    compose.validate(arguments)
    with compose.hydra_ready():
        run = to_run(compose.composed(arguments))
    return run


def _export(arguments: list[str]) -> int:
    from prunebench.export import export

    folders = [a.partition("=")[2] for a in arguments if a.startswith("output=")]
    if len(folders) != 1 or not folders[0]:
        raise ConfigError(
            "'prunebench export' needs a folder to write: prunebench export method=stop "
            "model=tiny output=stop-for-vllm"
        )
    overrides = [a for a in arguments if not a.startswith("output=")]
    export(_composed("export", overrides), Path(folders[0]))
    print(
        f"Written to {folders[0]}. Serve it where prunebench is installed beside vLLM, with "
        f"'--enable-lora --lora-modules stop={folders[0]}' and room for its rank "
        f"(--max-lora-rank)."
    )
    return 0


def _doctor(arguments: list[str]) -> int:
    from rich.console import Console

    from prunebench import doctor, registry

    chosen = any(a.startswith("backend=") for a in arguments)
    names = [a.partition("=")[0] for a in arguments]  # a value may be a secret
    options = [name for name in names if name.lstrip("+~").startswith("backend.")]
    if options and not chosen:
        raise ConfigError(
            f"'prunebench doctor' needs to know whose options these are: {' '.join(options)}. "
            f"Name the engine too, for example backend=vllm."
        )
    console = Console()
    doctor.report(console)
    run = _composed("doctor", arguments)
    if not chosen:
        run.backend = registry.backends()["vllm"]()
    if run.backend.unusable is None:
        doctor.self_test(run, console)
    return 0


def _train(arguments: list[str]) -> int:
    from rich.console import Console

    from prunebench import train

    folder = train.train(_composed("train", arguments), Console())
    print(f"Trained weights are in {folder}; runs with this model use them from now on.")
    return 0


REPORT_OPTIONS = ("output", "max_mb", "width")


def _report(arguments: list[str]) -> int:
    from prunebench.report import build

    given = {a.partition("=")[0]: a.partition("=")[2] for a in arguments if "=" in a}
    folders = [Path(a) for a in arguments if "=" not in a]
    if unknown := sorted(given.keys() - set(REPORT_OPTIONS)):
        raise UnknownName("option of 'prunebench report'", unknown[0], REPORT_OPTIONS)
    if not folders or (len(folders) > 1 and "output" not in given):
        raise ConfigError(
            "'prunebench report' takes folders of runs and sweeps, and with several of them a "
            f"folder to write: prunebench report RUN SWEEP output=paper. Got "
            f"{' '.join(arguments) or 'nothing'} instead."
        )
    try:
        max_mb = float(given.get("max_mb", build.MAX_MB))
    except ValueError:
        raise ConfigError(
            f"The 'max_mb' parameter must be a number. Got {given['max_mb']!r} instead."
        ) from None
    output = Path(given.get("output", folders[0]))
    files = build.records_below(folders)
    found = build.build(files, output, max_mb=max_mb, width=given.get("width", "auto"))
    for file in found.written:
        print(file)
    for figure, reason in found.skipped.items():
        print(f"not drawn: {figure}: {reason}")
    return 0


def _import(arguments: list[str]) -> int:
    from rich.console import Console

    from prunebench import importing

    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    files = [a for a in arguments if "=" not in a]
    known = [f.name for f in dataclasses.fields(importing.ImportOptions)]
    for option in given:
        if option not in known:
            raise UnknownName("option", option, known)
    if len(files) != 1 or "name" not in given:
        raise ConfigError(
            "'prunebench import' takes one file and a name: prunebench import paths.jsonl "
            "name=my_paths"
        )
    options = importing.ImportOptions(**given)
    facts = importing.import_file(Path(files[0]), options, Console())
    print("\n".join(importing.describe(facts)))
    return 0


def _retention(arguments: list[str]) -> int:
    from prunebench import advice

    return advice.retention(arguments)


def _fit_retention(arguments: list[str]) -> int:
    from prunebench import advice

    return advice.fit_retention(arguments)


def _run(arguments: list[str]) -> int:
    from prunebench import compose, job

    arguments = compose.named_bank(arguments)
    # Hydra's parser wants all overrides in one row
    rows = [a for a in arguments if a[:1] in "~+" or ("=" in a and a[:1] != "-")]
    arguments = [a for a in arguments if a not in rows] + rows
    overrides = [a for a in arguments if a[:1] in "~+" or ("=" in a and a[:1] != "-")]
    if not any(a in ("--hydra-help", "--info", "-i", "--cfg", "-c") for a in arguments):
        compose.validate(overrides, config_dir=compose.config_dir(arguments))
    sweep = any(a in ("-m", "--multirun") for a in arguments)
    return job.run(compose.for_sweep(arguments) if sweep else arguments)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "list": _list,
    "check": _check,
    "train": _train,
    "export": _export,
    "doctor": _doctor,
    "report": _report,
    "import": _import,
    "retention": _retention,
    "fit-retention": _fit_retention,
}

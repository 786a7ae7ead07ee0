"""The commands `retention` and `fit-retention`: arguments in, the law's advice or its fit printed.

Knows how to read and print; the law is in `guideline`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from prunebench.errors import ConfigError, UnknownName
from prunebench.guideline import (
    INPUTS,
    NAMES,
    PUBLISHED,
    best_points,
    beyond,
    fit,
    load,
    retention_for,
    save,
)


def retention(arguments: list[str]) -> int:
    """`prunebench retention budget=… prefix_length=… task_length=… [n_paths=64]
    [coefficients=FILE] [--json]`."""
    known = (*INPUTS, "n_paths", "coefficients")
    given, words = _parsed("retention", arguments, known, flags=("--json",))
    if words:
        raise ConfigError(f"'prunebench retention' takes NAME=VALUE only. Got {words[0]!r} too.")
    if lacking := [name for name in INPUTS if name not in given]:
        raise ConfigError(
            f"'prunebench retention' needs {', '.join(lacking)}, in tokens: prunebench retention "
            "budget=158000 prefix_length=2048 task_length=8650"
        )
    numbers = {name: _number(name, given[name]) for name in INPUTS}
    n_paths = _number("n_paths", given.get("n_paths", "64"))
    file = given.get("coefficients")
    coefficients = PUBLISHED if file is None else load(Path(file))
    inverse, share, keep = retention_for(n_paths, **numbers, coefficients=coefficients)  # type: ignore[arg-type]
    notes = beyond(coefficients, **numbers, inverse_retention=inverse)
    if inverse < 1:
        notes.append(f"the law asks for {inverse:.3g} < 1: nothing is worth pruning here")
    if "--json" in arguments:
        found = {"inverse_retention": inverse, "retention": share, "keep": keep}
        inputs = {**numbers, "n_paths": int(n_paths), "coefficients": asdict(coefficients)}
        print(json.dumps({**found, **inputs, "notes": notes}, indent=2))
        return 0
    print(f"inverse retention {inverse:.4g}, retention {share:.4g}")
    print(f"keep {keep} of {int(n_paths)} paths")
    print(f"coefficients: {coefficients.source}")
    for note in notes:
        print(f"note: {note}")
    return 0


def fit_retention(arguments: list[str]) -> int:
    """`prunebench fit-retention SWEEP_FOLDER [...] [method=NAME] [output=FILE.json]`. The figure is
    written beside the file, or into the first folder."""
    from prunebench.report import records

    given, words = _parsed("fit-retention", arguments, ("method", "output"))
    if not words:
        raise ConfigError(
            "'prunebench fit-retention' needs the folder of a sweep: prunebench fit-retention "
            "results/sweeps/…"
        )
    files = []
    for word in words:
        below = sorted(Path(word).rglob("records.parquet"))
        if not below:
            raise ConfigError(
                f"There is no records.parquet below {word!r}. Give the folder that a sweep wrote."
            )
        files += below
    rows = records.analyse(records.read(files))
    if "method" in given:
        names = sorted({row.cell.method for row in rows})
        if given["method"] not in names:
            raise UnknownName("method in these records", given["method"], names)
        rows = [row for row in rows if row.cell.method == given["method"]]
    found = fit(best_points(rows))
    k = found.coefficients
    print(f"{k.source}; r2 {found.r2:.3f}, sd of log {found.residual_sd:.3f}")
    for name in NAMES:
        lo, hi = found.intervals[name]
        published = getattr(PUBLISHED, name)
        print(f"{name} = {getattr(k, name):.4g} [{lo:.4g}, {hi:.4g}], published {published:g}")
    shown = found.points.drop(columns=["at_edge", "tied"])
    print(shown.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    for note in found.notes:
        print(f"note: {note}")
    from prunebench.report import style
    from prunebench.report.figures.law import law_figure

    place = Path(given["output"]) if "output" in given else Path(words[0]) / "retention_law"
    for path in style.save(law_figure(found), place.parent, place.stem):
        print(path)
    if "output" in given:
        save(found, Path(given["output"]))
        print(f"Written to {given['output']}: use it with coefficients={given['output']}.")
    return 0


def _parsed(
    command: str, arguments: Sequence[str], known: Sequence[str], flags: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """`name=value` arguments, and the words that are none."""
    given, words = {}, []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument in flags or name == "debug":
            continue
        if argument.startswith("-"):
            raise UnknownName(f"flag of 'prunebench {command}'", argument, flags)
        if not equals:
            words.append(argument)
        elif name not in known:
            raise UnknownName(f"option of 'prunebench {command}'", name, known)
        elif name in given:
            raise ConfigError(f"The option '{name}' is given twice. Give it once.")
        else:
            given[name] = value
    return given, words


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(
            f"The '{name}' parameter must be a number. Got {text!r} instead."
        ) from None
    return int(value) if value.is_integer() else value

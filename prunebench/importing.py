"""`prunebench import`: a file of paths that were made elsewhere becomes a trace bank.

Refuses a file that has any fault, and leaves a bank that is whole or not there. The kinds of files
are in `traceformats.py`, what becomes of their paths in `tracereader.py`, runs on such banks in
`imported.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from prunebench import grading
from prunebench.bank import Bank
from prunebench.bankfile import FORMAT
from prunebench.datasets import Local
from prunebench.errors import ConfigError
from prunebench.imported import FACTS, TOKENIZER, Facts, folder_of, read_facts
from prunebench.storage import canonical, not_writable
from prunebench.traceformats import Fault, Faults, Format, GivenProblem, read
from prunebench.tracereader import NAME, Reader, Tokenizer, tokenizer_file
from prunebench.types import TOKEN_STATS, Capability


@dataclass(kw_only=True)
class ImportOptions:
    """Options of `prunebench import`.

    Attributes
    ----------
    name : of the bank: letters, digits, '-', '_' and '.'.
    dir : parent folder of all banks, `bank.dir` of runs.
    format : `jsonl`, `vllm` or `probed`; empty finds it out.
    tokenizer : a `tokenizer.json`, or a folder that holds one: gives texts up to a checkpoint.
    model, dataset : names for tables; empty takes what the file says, else the bank's name.
    grading : how answers are read and compared, as `dataset.grading`.
    problems : a file of problems with answers (`dataset=local`), for outputs that lack them.
    """

    name: str
    dir: str = "results/bank"
    format: str = ""
    tokenizer: str = ""
    model: str = ""
    dataset: str = ""
    grading: str = "math"
    problems: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"The name of an imported bank must be made of letters, digits, '-', '_' and '.', "
                f"and begin with a letter or digit. Got {self.name!r} instead."
            )
        if self.format and self.format not in list(Format):
            raise ConfigError(
                f"The 'format' option must be one of {', '.join(Format)}. Got {self.format!r} "
                f"instead; leave it out to have it found out."
            )
        grading.as_style(self.grading)


def import_file(path: Path, options: ImportOptions, console: Console) -> Facts:
    """Make the bank `<dir>/imported/<name>/` from a file, unless it is there already.

    Raises `ConfigError` when the name is taken by other paths, `DamagedFile` naming the first
    faults of the file when it has any; nothing is left behind then.
    """
    if not path.is_file():
        raise ConfigError(f"The file {str(path)!r} does not exist.")
    key = _key(path, options)
    folder = folder_of(options.dir, options.name)
    if folder.exists():
        return _the_same(folder, key, path)
    temporary = folder.with_name(f".{options.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        facts = _fill(temporary, key, path, options, console)
        if options.tokenizer:
            shutil.copyfile(tokenizer_file(options.tokenizer), temporary / TOKENIZER)
        content = json.dumps(asdict(facts), indent=1, ensure_ascii=False) + "\n"
        (temporary / FACTS).write_text(content, encoding="utf-8")
        if folder.exists():  # another process was faster
            return _the_same(folder, key, path)
        temporary.rename(folder)
    except OSError as error:
        raise not_writable(folder.parent, error, "The banks there are") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


def _key(path: Path, options: ImportOptions) -> dict[str, Any]:
    """What determines the bank: the contents of the files and the options."""
    tokenizer = tokenizer_file(options.tokenizer) if options.tokenizer else None
    return canonical(
        {
            "imported": options.name,
            "content": _sha256(path),
            "options": {
                "format": options.format,
                "model": options.model,
                "dataset": options.dataset,
                "grading": options.grading,
                "tokenizer": _sha256(tokenizer) if tokenizer else "",
                "problems": _sha256(Path(options.problems)) if options.problems else "",
            },
            "format": FORMAT,
        }
    )


def _the_same(folder: Path, key: dict[str, Any], path: Path) -> Facts:
    facts = read_facts(folder)
    if facts.key == key:
        return facts
    if facts.key["content"] != key["content"]:
        what = f"holds the paths of {facts.source}, which are others than those of {path}"
    else:
        there, here = facts.key["options"], key["options"]
        names = ", ".join(f"{name}=" for name in here if here[name] != there.get(name))
        what = f"was made from the same paths with other options ({names})"
    raise ConfigError(
        f"The imported bank {facts.name!r} in {folder} {what}. Choose another name=, or delete "
        f"that folder first."
    )


def _fill(
    folder: Path, key: dict[str, Any], path: Path, options: ImportOptions, console: Console
) -> Facts:
    faults = Faults(path=path)
    chosen, known = options.tokenizer, options.problems
    reader = Reader(
        style=options.grading,
        tokenizer=Tokenizer(tokenizer_file(chosen)) if chosen else None,
        known=Local(path=known).load_all() if known else [],
    )
    bank = Bank.at(folder, key)
    kind = Format(options.format) if options.format else None
    size = path.stat().st_size
    with Progress(
        TextColumn("importing"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("importing", total=size)
        for given, position in _together(read(path, kind, faults)):
            try:
                problem, traces = reader.read(given)
            except Fault as fault:
                faults.add(given.where, str(fault))
            else:
                if not faults.found:
                    prompt = np.empty(0, np.int32) if given.prompt_ids is None else given.prompt_ids
                    bank.append(problem, prompt, traces)
            bar.update(task, completed=position)
    if not faults.found and not reader.problems:
        faults.add("the file", "it holds no problems")
    faults.check()
    return Facts(
        name=options.name,
        model=options.model or reader.named("model") or options.name,
        dataset=options.dataset or reader.named("dataset") or options.name,
        grading=options.grading,
        source=str(path),
        key=bank.key,
        holds=[c.value for c in Capability if c.value in reader.paths_with],
        n_paths=min(reader.n_paths.values()),
        longest=reader.longest,
        early_every=sorted(reader.early_every),
        paths_with=dict(reader.paths_with),
        problems=[asdict(problem) for problem in reader.problems.values()],
    )


def _together(
    entries: Iterator[tuple[GivenProblem, int]],
) -> Iterator[tuple[GivenProblem, int]]:
    """Entries of one problem that follow each other, as one: a server's replies may have one path
    each."""
    waiting: GivenProblem | None = None
    position = 0
    for given, position in entries:
        same = (
            waiting is not None
            and given.mergeable
            and (given.question, given.answer) == (waiting.question, waiting.answer)
        )
        if same:
            waiting.paths.extend(given.paths)  # type: ignore[union-attr]  # same
            continue
        if waiting is not None:
            yield waiting, position
        waiting = given
    if waiting is not None:
        yield waiting, position


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"The file {str(path)!r} does not exist.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(facts: Facts) -> Sequence[str]:
    """Lines for people: what was imported and what is missing."""
    has, n = facts.paths_with, facts.paths_with["all"]
    held = [
        f"{name}" if has[name] == n else f"{name} ({has[name]} of {n} paths)"
        for name in ("text", "token_ids", "text up to a checkpoint", *TOKEN_STATS)
        if has.get(name)
    ]
    if has.get("early_answers"):
        held.append(f"early_answers (every {', '.join(map(str, facts.early_every))} tokens)")
    return (
        f"{facts.name}: {len(facts.problems)} problems, {n} paths, at least {facts.n_paths} each; "
        f"the longest has {facts.longest} tokens.",
        f"Model {facts.model}, dataset {facts.dataset}. The paths hold: "
        f"{', '.join(held) or 'lengths and answers only'}.",
        f"Next: python -m prunebench bank={facts.name} method=shortest_finished "
        f"n_paths={min(64, facts.n_paths)} keep={max(1, min(64, facts.n_paths) // 8)}",
    )

"""The trace bank: a folder of complete paths, found by what determines them, safe to interrupt.

Paths are the dearest thing prunebench makes, so a bank never redoes a stored path, never serves a
damaged one, and can be filled by several processes and over several interrupted runs. It knows no
method and no engine by name; the layout of the files inside is in `bankfile.py`.

    <label>-<hash>/manifest.json          what determines the paths, for people to read
                   problems/<id>.parquet  the paths of one problem
                   damaged/               files that failed their check, moved out of the way
                   locks/                 empty files that running processes lock
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from prunebench.backend import Backend, Sampling
from prunebench.bankfile import FORMAT, StatsDtype, check_manifest, decode, encode, encode_manifest
from prunebench.errors import BankMismatch, ConfigError, ContractViolation, DamagedFile
from prunebench.storage import (
    DISK_FULL,
    NotWritable,
    acquire,
    canonical,
    content_hash,
    not_writable,
    release,
    write_atomic,
)
from prunebench.types import Problem, Trace

logger = logging.getLogger(__name__)

POLL_S = 0.2
"""Seconds between looks at problems that another process is generating."""


@dataclass(frozen=True, kw_only=True)
class FillReport:
    """What one call of `fill` did.

    Attributes
    ----------
    n_generated : problems to which this process added paths.
    failures : `(problem_id, reason)` of every problem that still misses paths.
    """

    n_generated: int
    failures: list[tuple[str, str]]


def bank_key(
    identity: dict[str, Any],
    sampling: Sampling,
    prompt: dict[str, Any],
    dataset: dict[str, Any],
    seed: int,
    stats_dtype: StatsDtype = StatsDtype.float32,
) -> dict[str, Any]:
    """Everything that determines the contents of a bank.

    `identity` is `Backend.identity()`; `prompt` the template and chat settings; `dataset` what
    fixes the problems' content, without how many of them are used.
    """
    return canonical(
        {
            "identity": identity,
            "sampling": asdict(sampling),
            "prompt": prompt,
            "dataset": dataset,
            "seed": seed,
            "stats_dtype": stats_dtype,
            "format": FORMAT,  # banks of different formats lie beside each other
        }
    )


class Bank:
    """A trace bank in `folder` for the paths that `key` determines (see `bank_key`).

    `warnings` collects what was found damaged, for the report of the run.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder = folder.absolute()
        self.key = canonical(key)
        self.hash = content_hash(key)
        self.stats_dtype = StatsDtype(self.key.get("stats_dtype", StatsDtype.float32))
        self.warnings: list[str] = []
        self._mine: set[str] = set()  # problems this object has claimed
        self._verified: dict[str, tuple[tuple[int, int, int], frozenset[int]]] = {}
        self._open_manifest()

    @classmethod
    def open(cls, root: Path, key: dict[str, Any], label: str) -> Self:
        """The bank of this key under `root`, made when there is none. `label` is for people."""
        return cls(cls.folder_of(root, key, label), key)

    @staticmethod
    def folder_of(root: Path, key: dict[str, Any], label: str) -> Path:
        """Where `open` looks for this bank, or would make it."""
        name = re.sub(r"[^\w.-]+", "_", label)
        return root / f"{name}-{content_hash(key)}"

    @classmethod
    def at(cls, folder: Path, key: dict[str, Any]) -> Self:
        """The bank in exactly this folder, made when there is none.

        Raises `BankMismatch`, naming the keys, when it was filled under another configuration.
        """
        return cls(folder, key)

    def read(self, problem: Problem) -> tuple[np.ndarray, list[Trace]] | None:
        """`(prompt_ids, traces in order of index)`, every bit verified; None when not stored.

        A damaged file is moved to `damaged/` with a warning, and the problem is not stored then.
        """
        path = self._path(problem)
        try:
            with path.open("rb") as file:
                signature = _signature(os.fstat(file.fileno()))
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedFile(
                f"Cannot read {path}: {error.strerror}. Check the disk and the permissions, or "
                f"delete the file to have its paths generated again."
            ) from error
        try:
            prompt_ids, traces = decode(data, problem, bank=self.hash)
        except DamagedFile as error:
            self._set_aside(problem, signature, str(error))
            return None
        indices = frozenset(trace.index for trace in traces)
        self._verified[problem.id] = (signature, indices)
        return prompt_ids, traces

    def missing(self, problem: Problem, n_paths: int) -> list[int]:
        """Which of the indices 0..n_paths-1 are not stored, ascending.

        What counts as stored has been verified by this process since the file last changed.
        """
        try:
            signature = _signature(self._path(problem).stat())
        except FileNotFoundError:
            return list(range(n_paths))
        known = self._verified.get(problem.id)
        if known is None or known[0] != signature:
            self._verified.pop(problem.id, None)
            self.read(problem)
            known = self._verified.get(problem.id)
        stored = known[1] if known else frozenset()
        return [index for index in range(n_paths) if index not in stored]

    def size(self, problem: Problem) -> int:
        """Bytes on disk of a stored problem's paths."""
        return self._path(problem).stat().st_size

    def append(self, problem: Problem, prompt_ids: np.ndarray, traces: Sequence[Trace]) -> int:
        """Add paths; those already stored stay as they are. Returns how many were added.

        Raises `BankMismatch` when the stored paths follow another prompt, and `NotWritable`
        when the disk is full; the file is then as it was.
        """
        while problem.id not in self._mine:
            with self.claim(problem) as mine:
                if mine:
                    return self.append(problem, prompt_ids, traces)
            time.sleep(POLL_S / 4)
        stored = self.read(problem)
        merged = {trace.index: trace for trace in stored[1]} if stored else {}
        if stored and not np.array_equal(stored[0], prompt_ids):
            raise BankMismatch(
                f"The paths of problem {problem.id!r} in {self.folder} follow another prompt than "
                f"the new ones, although the configuration is the same. Use an empty folder, or "
                f"the tokenizer and template that filled this one."
            )
        n_before = len(merged)
        for trace in traces:
            merged.setdefault(trace.index, trace)
        if len(merged) > n_before:
            data = encode(
                problem,
                prompt_ids,
                list(merged.values()),
                bank=self.hash,
                stats_dtype=self.stats_dtype,
            )
            path = self._path(problem)
            with self._writing():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, data)
            self._verified[problem.id] = (_signature(path.stat()), frozenset(merged))
        return len(merged) - n_before

    @contextmanager
    def claim(self, *problems: Problem) -> Iterator[bool]:
        """Claim problems for this object: True inside the block when all of them were free.

        Claims are POSIX record locks, so the kernel gives a killed process's claims back at
        once. On network file systems this holds where the mount passes locks to the server (NFS
        v4, NFS v3 with lockd, most cluster file systems); where it does not, two machines may
        generate the same paths, but atomic renames and checksums still keep the files whole.
        """
        folder = self.folder / "locks"
        # sorted, so that two overlapping claims meet at the same file first
        wanted = sorted({p.id for p in problems} - self._mine)
        taken: dict[str, int] = {}
        try:
            with self._writing():
                folder.mkdir(parents=True, exist_ok=True)
                for problem_id in wanted:
                    descriptor = acquire(folder / problem_id)
                    if descriptor is None:
                        break
                    taken[problem_id] = descriptor
            complete = len(taken) == len(wanted)
            if not complete:
                self._give_back(folder, taken)
            self._mine |= taken.keys()
            yield complete
        finally:
            self._give_back(folder, taken)

    def _path(self, problem: Problem) -> Path:
        if Path(problem.id).name != problem.id or problem.id.startswith("."):
            raise ConfigError(
                f"The problem id {problem.id!r} is not a file name. The dataset must give ids of "
                f"letters, digits, '-' and '_'."
            )
        return self.folder / "problems" / f"{problem.id}.parquet"

    def _give_back(self, folder: Path, taken: dict[str, int]) -> None:
        while taken:
            problem_id, descriptor = taken.popitem()
            self._mine.discard(problem_id)
            release(folder / problem_id, descriptor)

    def _set_aside(self, problem: Problem, signature: tuple[int, int, int], reason: str) -> None:
        path = self._path(problem)
        target = self.folder / "damaged" / f"{problem.id}.{time.time_ns()}.parquet"
        with self._writing():
            target.parent.mkdir(exist_ok=True)
            try:
                # another process may have replaced the file by a good one since it was read
                if _signature(path.stat()) != signature:
                    return
                path.rename(target)
            except FileNotFoundError:
                return
        warning = (
            f"The stored paths of problem {problem.id!r} are damaged: {reason}. The file was "
            f"moved to {target}, and its paths will be generated again."
        )
        self.warnings.append(warning)
        logger.warning(warning)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.not_writable(error) from error

    def not_writable(self, error: OSError) -> NotWritable:
        """The error to raise when the disk refuses a write into the bank."""
        n_stored = sum(1 for _ in self.folder.glob("problems/[!.]*.parquet"))
        return not_writable(self.folder, error, f"{n_stored} problems are")

    def _open_manifest(self) -> None:
        """Check the manifest against `key`, or write one into a new folder."""
        path = self.folder / "manifest.json"
        if not path.exists():
            with self._writing():
                lock = self.folder / "locks" / ".manifest"  # no problem's name starts with a dot
                lock.parent.mkdir(parents=True, exist_ok=True)
                while (descriptor := acquire(lock)) is None:
                    time.sleep(POLL_S / 4)
                try:
                    if not path.exists():  # another process may have been faster
                        self._write_manifest(path)
                finally:
                    release(lock, descriptor)
        check_manifest(path, self.key)

    def _write_manifest(self, path: Path) -> None:
        if any(self.folder.glob("problems/[!.]*.parquet")):
            raise DamagedFile(
                f"The trace bank {self.folder} holds paths but no manifest.json, so nobody can "
                f"tell how they were made. Restore the manifest, or delete the folder to have "
                f"its paths generated again."
            )
        write_atomic(path, encode_manifest(self.key))


def _signature(stat: os.stat_result) -> tuple[int, int, int]:
    """Changes whenever the file is replaced."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def fill(
    bank: Bank,
    backend: Backend,
    problems: Sequence[Problem],
    n_paths: int,
    *,
    group: int,
    progress: Callable[[int], None] | None = None,
) -> FillReport:
    """Generate what is missing of the paths 0..n_paths-1 of every problem.

    Problems go to the backend in groups of `group` consecutive ones. A group of which
    anything is missing is generated whole, once for every distinct set of missing indices,
    and only what is missing is stored: so batches, and the last bits of their floats, do not
    depend on where an earlier run was interrupted. Groups that another process has claimed
    are looked at again at the end, until they are complete.

    Parameters
    ----------
    progress : called with the number of problems that came to their end, whether they were
        stored before, generated here or elsewhere, or failed.

    A backend's exception is recorded for the problems it concerns and the rest goes on.
    Errors that every group would meet are raised: `ConfigError`, `DamagedFile` (weights) and
    `NotWritable` (full disk); what is stored by then stays.
    """
    if group < 1:
        raise ConfigError(f"The 'group' parameter of fill must be at least 1. Got {group}.")
    report = progress or (lambda n_problems: None)
    problems = list({problem.id: problem for problem in problems}.values())
    waiting = [problems[i : i + group] for i in range(0, len(problems), group)]
    n_generated, failures = 0, []
    while waiting:
        postponed = []
        for members in waiting:
            n_new, reasons = 0, {}
            if any(bank.missing(problem, n_paths) for problem in members):
                with bank.claim(*members) as mine:
                    if not mine:
                        postponed.append(members)
                        continue
                    n_new, reasons = _fill_group(bank, backend, members, n_paths, report)
            n_generated += n_new
            failures += reasons.items()
            report(len(members) - n_new)
        if len(postponed) == len(waiting):
            time.sleep(POLL_S)
        waiting = postponed
    return FillReport(n_generated=n_generated, failures=failures)


def _fill_group(
    bank: Bank,
    backend: Backend,
    members: Sequence[Problem],
    n_paths: int,
    report: Callable[[int], None],
) -> tuple[int, dict[str, str]]:
    """Fill a claimed group: how many problems got paths, and why others still miss some."""
    owed = {problem.id: tuple(bank.missing(problem, n_paths)) for problem in members}
    n_new = 0
    errors: dict[str, str] = {}
    for indices in sorted(set(owed.values()) - {()}):
        due = {problem.id for problem in members if owed[problem.id] == indices}
        try:
            for problem, prompt_ids, traces in backend.generate(members, list(indices)):
                if problem.id not in due:
                    continue
                due.discard(problem.id)
                wanted = [trace for trace in traces if trace.index in indices]
                try:
                    n_added = bank.append(problem, prompt_ids, wanted)
                except (ContractViolation, ValueError) as error:  # this problem's data only
                    errors[problem.id] = _describe(error)
                    continue
                n_new += n_added > 0
                report(n_added > 0)
        except (ConfigError, DamagedFile, NotWritable):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise bank.not_writable(error) from error
            errors |= dict.fromkeys(due, _describe(error))
    reasons = {
        problem.id: errors.get(problem.id, f"the backend returned no path with index {lost}")
        for problem in members
        if (lost := bank.missing(problem, n_paths))
    }
    for problem_id, reason in reasons.items():
        logger.warning("No complete paths for problem %r: %s", problem_id, reason)
    return n_new, reasons


def _describe(error: Exception) -> str:
    logger.debug("the traceback of a failure that is recorded as a fact", exc_info=error)
    return f"{type(error).__name__}: {error}"

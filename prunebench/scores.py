"""Score tables: what a method thought of every path at a checkpoint, and what that cost.

A table belongs to one bank, method configuration, source code, checkpoint and prefix length, so
that nothing is scored twice and nothing stale is served. It knows no method by name and computes
no score.

A table is one text file, `<bank>/scores/<method>-L<prefix>-<hash>.jsonl`: a header with the key,
then one line per scored batch. Lines are only ever appended, each by a single write, so several
processes may add at once; a line torn by a crash is owed again.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from prunebench import __version__
from prunebench.cost import Cost
from prunebench.errors import ContractViolation, DamagedFile
from prunebench.storage import canonical, content_hash, differing_keys, not_writable
from prunebench.types import Capability

logger = logging.getLogger(__name__)

FORMAT = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredBatch:
    """The scores of some paths of one problem, made by one call, and their cost.

    Attributes
    ----------
    problem : id of the problem.
    indices : the paths that were scored together, as `Trace.index`.
    scores : `(n_indices,)` float64 in the order of `indices`, higher = keep, NaN = could not be
        scored, infinities allowed.
    cost : of the method's scoring, for all these paths together.
    reencode_seconds : wall time of rebuilding the states that a live engine would still hold; not
        a cost of the method, kept apart.
    reason : why there is a NaN; None when there is none.
    """

    problem: str
    indices: tuple[int, ...]
    scores: np.ndarray
    cost: Cost = field(default_factory=Cost)
    reencode_seconds: float = 0.0
    reason: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.indices)) != len(self.indices) or self.scores.shape != (len(self.indices),):
            raise ContractViolation(
                f"The scores of problem {self.problem!r} must be one per distinct path. Got "
                f"shape {self.scores.shape} for the paths {list(self.indices)}."
            )


def score_key(
    *,
    bank_hash: str,
    method_name: str,
    method_config: dict[str, Any],
    source_hash: str,
    checkpoint_hash: str | None,
    prefix_length: int,
    seed: int,
    granted: Iterable[Capability] = (),
    endpoint: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that determines the scores in a table (see `source_hash`)."""
    return canonical(
        {
            "bank": bank_hash,
            "method": method_name,
            "config": method_config,
            "source": source_hash,
            "checkpoint": checkpoint_hash,
            "prefix_length": prefix_length,
            "seed": seed,
            "granted": sorted(capability.value for capability in granted),
            "endpoint": endpoint,
            "format": FORMAT,
        }
    )


def source_hash(method: type) -> str:
    """12 hexadecimal digits of the source files of a method class, of all its base classes, and of
    the modules beside the method that they import.

    Editing any of them makes the old scores unreachable. Modules elsewhere are not covered.
    """
    files = [
        Path(inspect.getfile(cls))
        for cls in method.__mro__
        if cls.__module__.partition(".")[0] not in sys.stdlib_module_names
    ]
    digest = hashlib.sha256()
    for file in files:  # grows while it is read
        digest.update(file.read_bytes())
        files += [f for f in _imported_beside(file) if f not in files]
    return digest.hexdigest()[:12]


def _imported_beside(file: Path) -> list[Path]:
    """The modules in the folder of a method that its source imports, in order of appearance."""
    if file.parent.name == "prunebench":  # the contract, which every method imports
        return []
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module or "", *(alias.name for alias in node.names)]
    beside = [file.with_name(f"{name.rpartition('.')[2]}.py") for name in names]
    return [f for f in dict.fromkeys(beside) if f.is_file()]


class ScoreTable:
    """The score table of `key` in the folder of its bank."""

    def __init__(self, bank_folder: Path, key: dict[str, Any]) -> None:
        self.key = canonical(key)
        name = f"{self.key['method']}-L{self.key['prefix_length']}-{content_hash(key)}.jsonl"
        self.path = bank_folder / "scores" / name
        self._batches: dict[tuple[str, frozenset[int]], ScoredBatch] = {}
        self._by_path: dict[tuple[str, int], tuple[ScoredBatch, int]] = {}
        self._n_read = 0  # bytes of the file already in memory
        self._has_header = False
        self._refresh()

    @classmethod
    def open(cls, bank_folder: Path, key: dict[str, Any]) -> Self:
        """The table of `key` (see `score_key`), empty when nothing is stored yet.

        Raises `DamagedFile` when the file of that name belongs to another key.
        """
        return cls(bank_folder, key)

    def get(self, problem_id: str, indices: Sequence[int], joint: bool) -> ScoredBatch | None:
        """The stored scores of these paths, in this order, or None when any is not stored.

        Parameters
        ----------
        joint : the scores depend on which paths were scored together, so only a batch of exactly
            these paths counts. Otherwise batches are combined path by path, and a path bears an
            equal share of its batch's cost.
        """
        batch = self._find(problem_id, indices, joint)
        if batch is None and self._refresh():  # another process may have been faster
            batch = self._find(problem_id, indices, joint)
        return batch

    def missing(self, problem_id: str, indices: Sequence[int], joint: bool) -> list[int]:
        """The paths that have to be scored so that `get` finds all of `indices`."""
        if self.get(problem_id, indices, joint) is not None:
            return []
        if joint:
            return list(indices)
        return [index for index in indices if (problem_id, index) not in self._by_path]

    def put(self, batch: ScoredBatch) -> None:
        """Store a batch, for good: what is stored first is what `get` serves.

        Raises `NotWritable` when the disk is full; the batch is owed again then.
        """
        self._refresh()
        if (batch.problem, frozenset(batch.indices)) in self._batches:
            return
        header = {"format": FORMAT, "prunebench": __version__, "key": self.key}
        self._append([_to_json(batch)] if self._has_header else [header, _to_json(batch)])
        self._refresh()

    def _find(self, problem_id: str, indices: Sequence[int], joint: bool) -> ScoredBatch | None:
        exact = self._batches.get((problem_id, frozenset(indices)))
        if joint or exact is not None:
            return None if exact is None else _reordered(exact, indices)
        found = [self._by_path.get((problem_id, index)) for index in indices]
        if None in found:
            return None
        parts = [part for part in found if part is not None]
        shares = [(batch, 1 / len(batch.indices)) for batch, _ in parts]
        scores = np.array([batch.scores[at] for batch, at in parts], dtype=np.float64)
        reasons = {batch.reason for batch, at in parts if np.isnan(batch.scores[at])}
        return ScoredBatch(
            problem=problem_id,
            indices=tuple(indices),
            scores=scores,
            cost=sum((batch.cost.times(part) for batch, part in shares), start=Cost()),
            reencode_seconds=sum(batch.reencode_seconds * part for batch, part in shares),
            reason="; ".join(sorted(filter(None, reasons))) or None,
        )

    def _refresh(self) -> bool:
        """Take in what was appended since the last look; True when there was something."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._n_read)
                data = file.read()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DamagedFile(
                f"Cannot read {self.path}: {error.strerror}. Check the disk and the permissions."
            ) from error
        whole = data[: data.rfind(b"\n") + 1]  # the rest is torn, or still being written
        self._n_read += len(whole)
        for line in whole.splitlines():
            if line:
                self._take(line)
        return bool(whole)

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            if "key" in row:
                self._check_header(row)
                return
            batch = _from_json(row)
        except (ValueError, LookupError, TypeError, AttributeError, ContractViolation) as error:
            logger.warning("a damaged line in %s is scored again: %s", self.path, error)
            return
        if not self._has_header:  # nobody can tell for which key it was written
            return
        key = (batch.problem, frozenset(batch.indices))
        if key not in self._batches:
            self._batches[key] = batch
            for at, index in enumerate(batch.indices):
                self._by_path.setdefault((batch.problem, index), (batch, at))

    def _check_header(self, header: dict[str, Any]) -> None:
        differences = differing_keys(header["key"], self.key)
        if header["format"] != FORMAT or differences:
            raise DamagedFile(
                f"The score table {self.path} holds other scores than its name says (format "
                f"{header['format']!r}; {'; '.join(differences) or 'same key'}). Delete it to have "
                f"them computed again."
            )
        self._has_header = True

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        data = b"".join(json.dumps(row, allow_nan=False).encode() + b"\n" for row in rows)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    data = b"\n" + data  # closes a line that a crash has torn
                n_written = os.write(descriptor, data)
            finally:
                os.close(descriptor)
            if n_written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            stored = f"The scores of {len(self._batches)} batches are"
            raise not_writable(self.path.parent, error, stored) from error


def _reordered(batch: ScoredBatch, indices: Sequence[int]) -> ScoredBatch:
    if tuple(indices) == batch.indices:
        return batch
    at = [batch.indices.index(index) for index in indices]
    return replace(batch, indices=tuple(indices), scores=batch.scores[at])


def _to_json(batch: ScoredBatch) -> dict[str, Any]:
    def number(value: float) -> float | str | None:
        if np.isnan(value):
            return None
        return value if np.isfinite(value) else str(value)  # JSON has no infinity

    scores = [number(value) for value in batch.scores.astype(np.float64).tolist()]
    return {
        "problem": batch.problem,
        "indices": [int(index) for index in batch.indices],
        "scores": scores,
        "cost": {name: number(value) for name, value in vars(batch.cost).items() if value},
        "reencode_seconds": float(batch.reencode_seconds),
        "reason": batch.reason or ("the method returned NaN" if None in scores else None),
    }


def _from_json(row: dict[str, Any]) -> ScoredBatch:
    scores = np.array([np.nan if value is None else float(value) for value in row["scores"]])
    scores.setflags(write=False)  # shared by everyone who asks
    cost = {name: np.nan if value is None else value for name, value in row["cost"].items()}
    return ScoredBatch(
        **{**row, "indices": tuple(row["indices"]), "scores": scores, "cost": Cost(**cost)}
    )

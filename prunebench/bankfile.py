"""The files in a trace bank as bytes: one problem's paths, and the manifest; checked on reading.

Writes nothing and knows no lock and no engine (that is `bank.py`). Anyone can open the
problem files with a Parquet reader: one row per path, lists per token, the rest as JSON under the
metadata key `prunebench`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunebench import __version__
from prunebench.errors import BankMismatch, ConfigError, ContractViolation, DamagedFile
from prunebench.storage import content_hash, differing_keys
from prunebench.types import TOKEN_STATS, Problem, TokenStats, Trace

FORMAT = 2
META = b"prunebench"

COLUMNS = {
    "index": "position of the path in its problem's pool",
    "token_ids": "generated tokens, the end-of-text token included; int32",
    "logprobs": "log P_t of the sampled token; nats, before temperature, top-p and top-k",
    "top_logprobs": "mean of the 20 largest log P_t; nats",
    "entropy": "entropy of P_t; nats",
    "sum_logprobs": "sum over the vocabulary of log P_t; nats, always float32",
    "max_logprobs": "the largest log P_t; nats",
    "top_mass": "sum of the 20 largest P_t",
    "top_entropy": "-sum of P log P over the 20 largest P_t, not renormalised; nats",
    "text": "the generated text without special tokens",
    "stopped": "the model ended the path itself (false: cut at max_new_tokens)",
    "answer": "the answer read from the text, null when it holds none",
    "correct": "the answer equals the gold answer",
}
OF_IMPORTED = {
    "length": "number of tokens of the path",
    "pieces": "characters of the text that each token wrote; int32",
    "early_answers": "answers given when asked every early_every tokens; a list as JSON",
    "early_every": "tokens between two early answers",
}
"""Further columns of paths that were made elsewhere, where token_ids and text may be null."""


class StatsDtype(StrEnum):
    """Precision of the per-token statistics on disk."""

    float32 = "float32"
    float16 = "float16"


def encode(
    problem: Problem,
    prompt_ids: np.ndarray,
    traces: Sequence[Trace],
    *,
    bank: str,
    stats_dtype: StrEnum = StatsDtype.float32,
) -> bytes:
    """The Parquet file of one problem's traces, rows in order of their index.

    Parameters
    ----------
    prompt_ids : `(n_prompt,)` int32 tokens before the paths.
    traces : complete paths with distinct indices.
    bank : hash of the bank, so that a file copied from another bank is noticed.
    stats_dtype : float16 halves the statistics at a relative error of 2**-11. `sum_logprobs`
        stays float32: for a vocabulary of 150,000 it lies far below float16's -65504.
    """
    traces = sorted(traces, key=lambda trace: trace.index)
    for trace in traces:
        _check(problem, trace)
    table = pa.table(
        {
            "index": pa.array([trace.index for trace in traces], pa.int32()),
            "token_ids": _list_array([trace.token_ids for trace in traces], np.dtype(np.int32)),
            **{
                name: _list_array(
                    [getattr(trace.stats, name) for trace in traces],
                    np.dtype("float32" if name == "sum_logprobs" else stats_dtype.value),
                )
                for name in TOKEN_STATS
            },
            "text": pa.array([trace.text for trace in traces], pa.string()),
            "stopped": pa.array([bool(trace.stopped) for trace in traces], pa.bool_()),
            "answer": pa.array([trace.answer for trace in traces], pa.string()),
            "correct": pa.array([bool(trace.correct) for trace in traces], pa.bool_()),
            **_of_imported(traces),
        }
    )
    meta = {
        "format": FORMAT,
        "bank": bank,
        "problem_id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "prompt_ids": np.asarray(prompt_ids).tolist(),
        "vocab_size": max((trace.stats.vocab_size for trace in traces), default=0),
    }
    meta["checksum"] = checksum(table, meta)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({META: json.dumps(meta)}),
        sink,
        compression="zstd",
        use_dictionary=False,  # floats hardly repeat, and token ids gain 2% only
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue().to_pybytes()


def decode(data: bytes, problem: Problem, *, bank: str) -> tuple[np.ndarray, list[Trace]]:
    """What `encode` was given: `(prompt_ids, traces)`, arrays read-only, statistics float32.

    Raises `DamagedFile`, with the bare reason as its message, when any value differs from what
    was written or the file belongs to another problem or bank.
    """
    try:
        # the bytes are in memory, so an OSError from here on is pyarrow's word for damage
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        meta = json.loads((file.schema_arrow.metadata or {})[META])
        table = file.read(use_threads=False).combine_chunks()
        stored = meta.pop("checksum")
        sound = checksum(table, meta) == stored
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError, MemoryError) as error:
        # the first line is enough: pyarrow appends its own source positions
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFile(f"it is not a readable Parquet file of traces: {reason}") from error
    if not sound:
        raise DamagedFile("its contents do not match their checksum")
    expected = {
        "format": FORMAT,
        "bank": bank,
        "problem_id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
    }
    for name, value in expected.items():
        if meta[name] != value:
            raise DamagedFile(f"its {name} is {meta[name]!r} instead of {value!r}")
    prompt_ids = np.array(meta["prompt_ids"], dtype=np.int32)
    prompt_ids.setflags(write=False)
    return prompt_ids, _traces(table, meta["vocab_size"])


def encode_manifest(key: dict[str, Any]) -> bytes:
    """The manifest of a bank with this key, for people and for `check_manifest`."""
    manifest = {
        "format": FORMAT,
        "prunebench": __version__,
        "hash": content_hash(key),
        "key": key,
        "columns": COLUMNS | (OF_IMPORTED if "imported" in key else {}),
    }
    return json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n"


def check_manifest(path: Path, key: dict[str, Any]) -> None:
    """Raise when the manifest is damaged, of another format or of another key than `key`."""
    folder = path.parent
    try:
        manifest = json.loads(path.read_bytes())
        there, stored_hash, version = manifest["key"], manifest["hash"], manifest["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DamagedFile(
            f"The manifest {path} cannot be read ({error}). Restore it, or delete the folder "
            f"{folder} to have its paths generated again."
        ) from error
    if version != FORMAT:
        raise ConfigError(
            f"The trace bank {folder} has format {version!r}; prunebench {__version__} reads "
            f"format {FORMAT}. Use the version that wrote it ({manifest.get('prunebench')}), or "
            f"another folder."
        )
    if stored_hash != content_hash(there):
        raise DamagedFile(
            f"The manifest {path} was changed after it was written: its key does not have the "
            f"hash {stored_hash!r}. Restore it, or delete the folder {folder} to have its paths "
            f"generated again."
        )
    if differences := differing_keys(there, key):
        raise BankMismatch(
            f"The trace bank {folder} was filled under another configuration: "
            f"{'; '.join(differences)}. Use these settings, or another folder."
        )


def checksum(table: pa.Table, meta: dict[str, Any]) -> str:
    """sha256 over the data columns and the metadata, independent of how Parquet encodes them."""
    digest = hashlib.sha256()
    plain: dict[str, Any] = dict(meta)
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_list(column.type):
            values, offsets, valid = _list_parts(column)
            plain[f"dtype {name}"] = str(column.type.value_type)
            for part in (values, np.diff(offsets), valid):
                digest.update(part.tobytes())
        else:
            plain[f"column {name}"] = column.to_pylist()
    digest.update(json.dumps(plain, sort_keys=True).encode())
    return digest.hexdigest()


def _check(problem: Problem, trace: Trace) -> None:
    for name in TOKEN_STATS:
        values = getattr(trace.stats, name)
        if values is not None and len(values) != trace.n_tokens:
            raise ContractViolation(
                f"The backend returned {len(values)} values of {name!r} for the {trace.n_tokens} "
                f"tokens of path {trace.index} of problem {problem.id!r}; they must be as many."
            )


def _of_imported(traces: Sequence[Trace]) -> dict[str, pa.Array]:
    if all(trace.length is None for trace in traces):
        return {}
    early = [None if t.early_answers is None else json.dumps(t.early_answers) for t in traces]
    return {
        "length": pa.array([trace.length for trace in traces], pa.int32()),
        "pieces": _list_array([trace.pieces for trace in traces], np.dtype(np.int32)),
        "early_answers": pa.array(early, pa.string()),
        "early_every": pa.array([trace.early_every for trace in traces], pa.int32()),
    }


def _list_array(rows: Sequence[np.ndarray | None], dtype: np.dtype) -> pa.ListArray:
    lengths = [0 if row is None else len(row) for row in rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    present = [np.asarray(row) for row in rows if row is not None]
    values = np.concatenate(present).astype(dtype) if present else np.empty(0, dtype)
    mask = pa.array([row is None for row in rows], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=mask)


def _list_parts(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(values, offsets, valid)` of a list column: row i is `values[offsets[i]:offsets[i + 1]]`."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    offsets = array.offsets.to_numpy()
    values = array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    values.setflags(write=False)
    return values, offsets - offsets[0], array.is_valid().to_numpy(zero_copy_only=False)


def _traces(table: pa.Table, vocab_size: int) -> list[Trace]:
    names = ["token_ids", *TOKEN_STATS, *({"pieces"} & set(table.column_names))]
    lists = {name: _rows(table.column(name)) for name in names}
    for name in TOKEN_STATS:
        lists[name] = [_float32(row) for row in lists[name]]
    scalars = table.drop_columns(names).to_pylist()
    for row in scalars:
        if row.get("early_answers") is not None:
            row["early_answers"] = tuple(json.loads(row["early_answers"]))
    return [
        Trace(
            token_ids=lists["token_ids"][i],
            stats=TokenStats(
                **{name: lists[name][i] for name in TOKEN_STATS}, vocab_size=vocab_size
            ),
            pieces=lists["pieces"][i] if "pieces" in lists else None,
            **row,
        )
        for i, row in enumerate(scalars)
    ]


def _float32(row: np.ndarray | None) -> np.ndarray | None:
    if row is None or row.dtype == np.float32:
        return row
    wide = row.astype(np.float32)
    wide.setflags(write=False)
    return wide


def _rows(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    """The rows of a list column, read-only."""
    values, bounds, valid = _list_parts(column)
    return [values[bounds[i] : bounds[i + 1]] if valid[i] else None for i in range(len(valid))]

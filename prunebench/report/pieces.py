"""The texts of paths, token by token, with the model's confidence: `traces/<bank>.parquet`.

A report shows texts long after the bank and its tokenizer are gone, so what a tokenizer knows
(which characters a token stands for) is written down while it is at hand. This module knows nothing
of pages; it turns traces into rows, and rows into files and back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.errors import ConfigError, DamagedFile
from prunebench.report.records import replacing
from prunebench.types import Problem, Trace

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = "1"
COLUMNS = (
    *("problem_id", "question", "gold", "index", "text", "pieces", "confidence", "n_tokens"),
)
Decode = Callable[[np.ndarray], str]

_SURROGATES = re.compile("[\ud800-\udfff]")
_PATIENCE = 8  # tokens that may wait for a character they share
_MAX_LOOKS_BACK = 64  # times that a path's text may be decoded from its beginning


def trace_rows(problem: Problem, traces: Sequence[Trace], decode: Decode) -> list[dict[str, Any]]:
    """One row per path of a problem, for `write_traces`.

    Parameters
    ----------
    decode : text of generated tokens, special tokens left out (`Backend.decode`).

    Returns
    -------
    rows : problem_id, question, gold, index, text (None when not recorded), n_tokens, and
        pieces : `(n_tokens,)` uint32, characters (Unicode code points) of the text that each token
            adds, or None without token ids or when they do not give the text;
        confidence : `(n_tokens,)` uint8, 255 · probability of the sampled token, or None.
    """

    @cache
    def piece(token_id: int) -> str:
        return decode(np.array([token_id], dtype=np.int32))

    return [
        {
            "problem_id": problem.id,
            "question": _unicode(problem.question),
            "gold": _unicode(problem.answer),
            "index": trace.index,
            "text": None if trace.text is None else _unicode(trace.text),
            "pieces": _pieces(trace, decode, piece),
            "confidence": _confidence(trace),
            "n_tokens": trace.n_tokens,
        }
        for trace in traces
    ]


def _pieces(trace: Trace, decode: Decode, piece: Callable[[int], str]) -> np.ndarray | None:
    if trace.text is None:
        return None
    if trace.length is not None:  # imported: known since then, or never
        if trace.pieces is None or int(trace.pieces.sum()) != len(trace.text):
            return None
        return trace.pieces.astype(np.uint32)
    return text_pieces(trace.known_ids, trace.text, decode, piece)


def text_pieces(
    token_ids: np.ndarray, text: str, decode: Decode, piece: Callable[[int], str]
) -> np.ndarray | None:
    """How many characters of `text` each token adds.

    Tokens are decoded one by one. Where that is not what the text says (a character spread over
    several tokens, a blank that a tokenizer drops at a beginning), the tokens wait until together
    they give the text, and the last of them gets the characters; where they never do (tags that
    depend on what stood before), the path is decoded from its beginning.

    Returns
    -------
    pieces : `(n_tokens,)` uint32 that add up to `len(text)`; None when no division does.
    """
    pieces = np.zeros(len(token_ids), dtype=np.uint32)
    at = begun = looks_back = 0  # characters so far; first token that waits
    for i in range(len(token_ids)):
        one = i == begun
        said = piece(int(token_ids[i])) if one else decode(token_ids[begun : i + 1])
        if text.startswith(said, at):
            end = at + len(said)
        elif text[at : at + 1].isspace() and said and text.startswith(said, at + 1):
            end = at + 1 + len(said)
        elif i + 1 - begun >= _PATIENCE and looks_back < _MAX_LOOKS_BACK:
            looks_back += 1
            at = _look_back(token_ids, text, decode, pieces, (begun, i + 1), at)
            begun = i + 1
            continue
        else:
            continue
        pieces[i] = end - at
        at, begun = end, i + 1
    if at < len(text) and len(token_ids) - begun <= _PATIENCE:
        at = _look_back(token_ids, text, decode, pieces, (begun, len(token_ids)), at)
    return pieces if at == len(text) else None


def _look_back(
    token_ids: np.ndarray,
    text: str,
    decode: Decode,
    pieces: np.ndarray,
    waiting: tuple[int, int],
    at: int,
) -> int:
    """Write the pieces of the waiting tokens, from the texts of the whole prefixes that end with
    them; the new number of characters so far."""
    for i in range(*waiting):
        said = decode(token_ids[: i + 1])
        if len(said) >= at and text.startswith(said):
            pieces[i] = len(said) - at
            at = len(said)
    return at


def _confidence(trace: Trace) -> Any:
    logprobs = trace.stats.logprobs if trace.stats is not None else None
    if logprobs is None or len(logprobs) != trace.n_tokens:
        return None
    values = np.rint(255 * np.exp(np.asarray(logprobs, dtype=np.float64)))
    known = np.isfinite(values)
    values = np.where(known, values, 0).clip(0, 255).astype(np.uint8)
    if known.all():
        return values
    return [int(v) if ok else None for v, ok in zip(values, known, strict=True)]


def _unicode(text: str) -> str:
    """The text with lone surrogates, which no file can hold, replaced one for one."""
    return _SURROGATES.sub("\ufffd", text)


def schema(meta: dict[str, str] | None = None) -> pa.Schema:
    """Columns of a traces file, with its description in the metadata."""
    import pyarrow as pa

    types = {
        "index": pa.int32(),
        "n_tokens": pa.int32(),
        "pieces": pa.list_(pa.uint32()),
        "confidence": pa.list_(pa.uint8()),
    }
    description = json.dumps({"version": VERSION, **(meta or {})}, sort_keys=True)
    return pa.schema(
        [(name, types.get(name, pa.string())) for name in COLUMNS],
        metadata={"prunebench_traces": description},
    )


def write_traces(path: Path, rows: Iterable[dict[str, Any]], meta: dict[str, str]) -> None:
    """Write rows of `trace_rows` to `path`, one problem in memory at a time; at no moment is there
    half a file under that name.

    Parameters
    ----------
    rows : those of one problem stand together.
    meta : bank, model and dataset.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = schema(meta)
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, kind, compression="zstd") as writer,
    ):
        for _, group in groupby(rows, key=lambda row: row["problem_id"]):
            own = list(group)
            columns = [
                pa.array([row[field.name] for row in own], type=field.type) for field in kind
            ]
            writer.write_table(pa.table(columns, schema=kind))


def read_traces(
    path: Path, columns: Sequence[str] = COLUMNS
) -> tuple[dict[str, str], Iterator[list[dict[str, Any]]]]:
    """What a traces file is about, and its rows, problem by problem.

    Returns
    -------
    meta : bank, model and dataset.
    problems : the rows of one problem at a time, read when they are asked for.

    Raises
    ------
    ConfigError : there is no file.
    DamagedFile : it is not a traces file of this version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise ConfigError(
            f"There are no traces at {path}. Give the path of a file in the folder 'traces' of a "
            f"run or sweep."
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    found = (file.schema_arrow.metadata or {}).get(b"prunebench_traces", b"{}")
    meta = json.loads(found)
    if meta.pop("version", None) != VERSION:
        raise DamagedFile(
            f"The file {path} does not hold traces of version {VERSION} (its description: "
            f"{found.decode()}). Make it again with this version of prunebench, or leave it out."
        )
    return meta, _problems(path, file, columns)


def count_rows(path: Path) -> int:
    """How many paths a traces file holds; 0 when it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError):
        return 0


def _problems(path: Path, file: Any, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    import pyarrow as pa

    for i in range(file.num_row_groups):
        try:
            yield file.read_row_group(i, columns=list(columns)).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DamagedFile:
    return DamagedFile(
        f"The traces {path} cannot be read ({error}). Leave this file out, or run the experiment "
        f"again while its bank is there."
    )

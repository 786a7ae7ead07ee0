"""`report.html`: tables, figures and every path in one file that asks nothing of anyone.

Puts data (`pagedata`) and texts (`pieces`) into the page of `report/page/`. Large parts are
compressed pieces that the page opens when they are looked at; a budget bounds the file. All text
stands in JSON and reaches the page as text, never as markup. Computes no number.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench import __version__
from prunebench.report import pagedata
from prunebench.report.blocks import blocks, legend
from prunebench.report.pieces import read_traces
from prunebench.report.records import Row, replacing

if TYPE_CHECKING:
    import pandas as pd

MAX_MB = 64.0
LEGEND = (
    "Bold: best method. =: not significantly worse than the best (paired bootstrap, Holm). "
    "±: half of the 95% interval over problems and subsets. –: missing, with its reason below. "
    "Tokens, calls, money and seconds per problem."
)
_SCRIPTS = ("base.js", "results.js", "paths.js", "text.js", "main.js")
_ZOOM = 1.3  # of figures, whose letters are sized for paper
_TAG = 80  # bytes around a piece, and of its name in the data
_MARKER = re.compile(r"\{\{(\w+)\}\}")


def write_html(
    rows: Sequence[Row],
    paths: pd.DataFrame | None,
    traces_files: Sequence[Path],
    figures: Sequence[Path],
    folder: Path,
    facts: Sequence[dict[str, Any]],
    *,
    max_mb: float = MAX_MB,
) -> Path:
    """Write `report.html` into `folder`. The same records give the same bytes.

    Parameters
    ----------
    rows : analysed records.
    paths : the rows of `paths.parquet` of all runs; None or empty without any.
    traces_files : `traces/<bank>.parquet` of the banks; a bank without one has no texts.
    figures : pictures to show; those that are no PNG are left out.
    facts : the `run.json` of the runs.
    max_mb : size of the file in MB that texts may fill it to; those of later problems are left out,
        and the page says so.

    Raises
    ------
    DamagedFile, ConfigError : a traces file cannot be read.
    """
    page = files("prunebench.report") / "page"
    style = (page / "report.css").read_text(encoding="utf-8")
    script = "".join((page / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    pictures = "".join(_picture(path) for path in figures if path.suffix.lower() == ".png")
    found = blocks(rows)
    signals = pagedata.signal_ids(paths)
    shown = [pagedata.table(block, signals) for block in found]
    done = [pagedata.outcomes(block) for block in found]
    data = {
        "version": __version__,
        "blocks": shown,
        "legend": legend(LEGEND, rows),
        "settings": pagedata.settings(facts),
    }
    pieces = _Pieces(limit=int(max_mb * 1e6))
    pieces.size = sum(map(len, (style, script, pictures, in_script(data))))
    for block, outcome in zip(shown, done, strict=True):
        block["piece"] = pieces.add(outcome)
        block["pair"] = pagedata.default_pair(block)
    scored = pagedata.scored(paths)
    data["banks"] = _banks(shown, done, scored, traces_files, pieces, max_mb)
    title = pagedata.heading([block.cell for block in found])
    filled = {
        "title": escape(title),
        "csp": escape(_policy(style, script)),
        "style": style,
        "script": script,
        "figures": pictures,
        "data": in_script(data),
        "pieces": pieces.html(),
    }
    template = (page / "report.html").read_text(encoding="utf-8")
    # one pass: what is put in is not looked through again
    text = _MARKER.sub(lambda marker: filled[marker[1]], template)
    path = folder / "report.html"
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())
    return path


def in_script(data: Any) -> str:
    """JSON that can stand in a script element: pure ASCII, and nothing in it ends the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class _Pieces:
    """Compressed parts of the page and the bytes they take."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._parts: list[str] = []

    def add(self, data: Any) -> str:
        """Put in whatever it takes; the id of the piece."""
        return self._put(_packed(data))

    def add_all(self, data: Iterable[Any]) -> list[str] | None:
        """Put in several if all of them fit below the limit; None if not."""
        packed, size = [], self.size
        for one in data:
            packed.append(_packed(one))
            size += len(packed[-1]) + _TAG
            if size > self.limit:
                return None
        return [self._put(text) for text in packed]

    def _put(self, packed: str) -> str:
        self._parts.append(packed)
        self.size += len(packed) + _TAG
        return f"z{len(self._parts) - 1}"

    def html(self) -> str:
        return "\n".join(
            f'<script type="application/octet-stream" id="z{i}">{part}</script>'
            for i, part in enumerate(self._parts)
        )


def _packed(data: Any) -> str:
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def _policy(style: str, script: str) -> str:
    """The content security policy: this script, this style, pictures in the file, nothing else."""
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; "
        f"script-src 'sha256-{hashes[1]}'; base-uri 'none'; form-action 'none'"
    )


def _picture(path: Path) -> str:
    """A PNG within the page. Its description, for those who do not see it, is the text
    `Description` of the file, or else its name."""
    from PIL import Image

    with Image.open(path) as image:
        dpi = float(image.info.get("dpi", (96, 96))[0])
        width, height = (round(_ZOOM * 96 * pixels / dpi) for pixels in image.size)
        described = image.info.get("Description")
    words = path.stem.replace("_", " ").replace("-", " ")
    text = escape(str(described or f"Figure: {words}"))
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img loading="lazy" decoding="async" width="{width}" height="{height}" '
        f'alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(words)}</figcaption></figure>\n"
    )


def _banks(
    tables: Sequence[dict[str, Any]],
    outcomes: Sequence[dict[str, list[Any]]],
    scored: dict[tuple[str, str], dict[str, Any]],
    traces_files: Sequence[Path],
    pieces: _Pieces,
    max_mb: float,
) -> dict[str, dict[str, Any]]:
    """Per bank its problems: question, gold, and the pieces that hold its paths and their texts."""
    where = _fullest(traces_files)
    banks: dict[str, dict[str, Any]] = {}
    for bank, problem in where:
        banks.setdefault(bank, {"problems": {}})["problems"][problem] = {}
    for bank, problem in scored:
        banks.setdefault(bank, {"problems": {}})["problems"].setdefault(problem, {})
    for table, outcome in zip(tables, outcomes, strict=True):
        own = banks.setdefault(table["bank"], {"problems": {}})["problems"]
        for problem in outcome:
            own.setdefault(problem, {})
    for file in dict.fromkeys(path for path, _ in where.values()):
        meta, problems = read_traces(
            file, ("problem_id", "question", "gold", "index", "n_tokens", "text")
        )
        for traced in problems:
            key = meta["bank"], traced[0]["problem_id"]
            if where.get(key, (None,))[0] == file:
                _describe(banks[key[0]]["problems"][key[1]], traced, scored, key)
    for (bank, problem), content in scored.items():
        own = banks[bank]["problems"][problem]
        right = [path["correct"] for path in content["paths"]]
        own |= {"n": len(right), "right": sum(r is True for r in right)}
        own["piece"] = pieces.add(content)
    pieces.size += len(in_script(banks))
    _texts(banks, where, pieces)
    for bank in banks.values():
        left = sum(bool(p.get("left")) for p in bank["problems"].values())
        if left:
            bank["note"] = (
                f"The texts of {left} of {len(bank['problems'])} problems are left out: with them "
                f"the page would be larger than {max_mb:g} MB (max_mb)."
            )
        bank["problems"] = [{"id": key, **own} for key, own in bank["problems"].items()]
    return banks


def _fullest(traces_files: Sequence[Path]) -> dict[tuple[str, str], tuple[Path, int]]:
    """By (bank, problem), the file that holds most of its paths, and how many."""
    found: dict[tuple[str, str], tuple[Path, int]] = {}
    for file in traces_files:
        meta, problems = read_traces(file, ("problem_id",))
        for traced in problems:
            key = meta["bank"], traced[0]["problem_id"]
            if len(traced) > found.get(key, (file, 0))[1]:
                found[key] = file, len(traced)
    return found


def _describe(
    own: dict[str, Any],
    traced: list[dict[str, Any]],
    scored: dict[tuple[str, str], dict[str, Any]],
    key: tuple[str, str],
) -> None:
    """Question and gold of a problem; its paths too, where no method scored them."""
    own |= {name: traced[0][name] for name in ("question", "gold")}
    content = scored.setdefault(key, {"paths": [], "signals": []})
    known = {path["index"] for path in content["paths"]}
    extra = [
        {"index": t["index"], "n": t["n_tokens"], "stopped": None, "answer": None, "correct": None}
        for t in traced
        if t["index"] not in known
    ]
    content["paths"] += extra
    for signal in content["signals"]:
        signal["scores"] += [None] * len(extra)


def _texts(
    banks: dict[str, dict[str, Any]],
    where: dict[tuple[str, str], tuple[Path, int]],
    pieces: _Pieces,
) -> None:
    """Put the texts in, problem by problem, until the page is full."""
    full = False
    for file in dict.fromkeys(path for path, _ in where.values()):
        meta, problems = read_traces(file, ("problem_id", "index", "text", "pieces", "confidence"))
        for traced in problems:
            key = meta["bank"], traced[0]["problem_id"]
            if where[key][0] != file:
                continue
            own = banks[key[0]]["problems"][key[1]]
            written = [row for row in traced if row["text"] is not None]
            names = None if full and written else pieces.add_all(map(_text, written))
            if names is None:
                full = own["left"] = True
            else:
                indices = [row["index"] for row in written]
                own["texts"] = dict(zip(indices, names, strict=True))


def _text(row: dict[str, Any]) -> dict[str, Any]:
    """A path's text for the page, which counts characters as JavaScript does."""
    text, pieces = row["text"], row["pieces"]
    if pieces is not None and not text.isascii() and max(text) > "\uffff":
        counted, at = [], 0
        for n in pieces:
            piece = text[at : at + n]
            counted.append(n + sum(c > "\uffff" for c in piece))
            at += n
        pieces = counted
    return {"t": text, "p": pieces, "c": row["confidence"]}

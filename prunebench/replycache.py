"""Replies of a server on disk, found by the content of the request: an interrupted or repeated run
pays once.

One SQLite file that several processes may use at once, on a local disk. It knows neither servers
nor keys: it is handed what determines a reply and what to keep of it, and never sees a fault.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunebench.errors import DamagedFile
from prunebench.storage import NotWritable, canonical

FORMAT = 1
"""Part of every key, so that replies kept in another form are not read."""

BUSY_S = 60.0
"""Seconds to wait for another process that is writing."""

DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def reply_key(*, base_url: str, model: str, api: str, body: Mapping[str, Any]) -> str:
    """The key of the reply to this request: equal content, equal key."""
    content = {"base_url": base_url, "model": model, "api": api, "body": dict(body)}
    text = json.dumps(canonical({"format": FORMAT, **content}), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """JSON values by key in `<folder>/replies.sqlite`; `option` names the folder in errors.

    Raises
    ------
    DamagedFile
        When the file is not a cache of replies, or a torn one.
    NotWritable
        When it cannot be opened or written.
    """

    def __init__(self, folder: str | Path, option: str = "endpoint.cache_dir") -> None:
        self.path, self._option = Path(folder) / "replies.sqlite", option
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
            self._write_ahead()
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
            )
        except (sqlite3.Error, OSError) as error:
            raise self._error(error) from error

    def get(self, key: str) -> Any | None:
        """The value, or None."""
        try:
            row = self._connection.execute(
                "SELECT value FROM replies WHERE key = ?", (key,)
            ).fetchone()
            return None if row is None else json.loads(row[0])
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise self._error(error) from error

    def put(self, key: str, value: Any) -> Any:
        """Keep the value and return the one that is kept: the first stays, so that processes
        that asked the same at once go on with the same reply."""
        try:
            self._connection.execute(
                "INSERT OR IGNORE INTO replies VALUES (?, ?)", (key, json.dumps(value))
            )
        except sqlite3.Error as error:
            raise self._error(error) from error
        return self.get(key)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _write_ahead(self) -> None:
        """Switch to the write-ahead log. SQLite does not wait here for another process that
        opens the file at the same moment."""
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _error(self, error: Exception) -> DamagedFile | NotWritable:
        files: Sequence[Path] = [self.path, *self.path.parent.glob(f"{self.path.name}-*")]
        listing = ", ".join(str(file) for file in files)
        code = getattr(error, "sqlite_errorcode", None)
        if isinstance(error, OSError) or (code is not None and code & 0xFF not in DAMAGED):
            return NotWritable(
                f"Cannot use the cache of replies {self.path}: {error}. Make the folder writable "
                f"or free some space, or choose another one with {self._option}=FOLDER."
            )
        return DamagedFile(
            f"The cache of replies {self.path} is damaged ({error}). Delete {listing}: the next "
            f"run asks the server again for the replies it needs."
        )

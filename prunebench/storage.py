"""What trace banks and score tables share: keys, files that are whole or absent, and locks.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import threading
from enum import Enum
from pathlib import Path
from typing import Any

from prunebench.errors import ConfigError, PrunebenchError

logger = logging.getLogger(__name__)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class NotWritable(PrunebenchError):
    """A trace bank or score table cannot be written: full disk, missing permission."""


def not_writable(folder: Path, error: OSError, stored: str) -> NotWritable:
    """The error for a refused write into `folder`; `stored` says what is safe there."""
    remedy = "Free some space" if error.errno in DISK_FULL else "Make the folder writable"
    return NotWritable(
        f"Cannot write to {folder}: {error.strerror or error}. {stored} safely stored there. "
        f"{remedy} and start the same command again: it continues where it stopped."
    )


def canonical(value: Any) -> Any:
    """`value` as plain JSON data in which equal settings look equal (1.0 becomes 1)."""
    if isinstance(value, dict):
        return {str(key): canonical(item) for key, item in sorted(value.items(), key=str)}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, Enum):
        return canonical(value.value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"A key holds {value!r} of type {type(value).__name__}; it must be made of text, numbers, "
        f"lists and dictionaries, so that it can be stored as JSON."
    )


def content_hash(key: dict[str, Any]) -> str:
    """12 hexadecimal digits that stand for `key`."""
    text = json.dumps(canonical(key), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differing_keys(there: Any, here: Any, prefix: str = "") -> list[str]:
    """Sentence parts that name each differing dotted key of two keys with both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        parts = []
        for name in sorted(there.keys() | here.keys()):
            dotted = f"{prefix}.{name}" if prefix else name
            parts += differing_keys(there.get(name, ...), here.get(name, ...), dotted)
        return parts
    if repr(there) == repr(here):  # unlike ==, tells 1 from True and knows nan
        return []
    shown = ["absent" if value is ... else repr(value) for value in (there, here)]
    return [f"{prefix} is {shown[0]} there and {shown[1]} here"]


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is either whole or not there, also after a power cut.

    The temporary name is fixed, so that the next writer reuses what a killed one left; callers
    hold a lock.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# POSIX record locks do not exclude threads and objects of one process: this set does.
_held: set[Path] = set()
_held_guard = threading.Lock()
os.register_at_fork(after_in_child=_held.clear)  # a forked child inherits none of the locks


def acquire(path: Path) -> int | None:
    """Lock the file, made if needed; the open descriptor, or None when someone else has it."""
    with _held_guard:
        if path in _held:
            return None
        _held.add(path)
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor >= 0 and error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            logger.warning("%s does not support locks: two processes may double work", path.parent)
            return descriptor
        release(path, descriptor)
        if error.errno in (errno.EAGAIN, errno.EACCES) and descriptor >= 0:
            return None
        raise
    return descriptor


def release(path: Path, descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)  # gives the lock back
    with _held_guard:
        _held.discard(path)

"""Computed features on disk: bounded in size, what was used least recently goes first. Nothing here loads torch.

An entry is one safetensors file, named after everything that it depends on and put in place by a rename: it is there
whole or not at all, and a file that is there is right. Two processes that write the same entry write the same thing.
"""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polysense.core.errors import InputError
from polysense.core.folders import cache_folder

USUAL_GB = 5.0
ABANDONED = 24 * 3600.0  # seconds after which a half-written file is one of a process that died


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of features."""

    path: Path
    size: int  # bytes
    used: float  # when it was last read or written, in seconds since 1970

    def about(self) -> dict[str, str]:
        """The task, data and number of rows that it was made from; nothing where the file is damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "np") as file:
                return dict(file.metadata() or {})
        except (OSError, SafetensorError):
            return {}


def store_folder() -> Path:
    return cache_folder() / "features"


def limit_bytes() -> int:
    """What the entries may take together: `POLYSENSE_CACHE_GB`; 0 keeps none.

    Raises:
        InputError: It is no size.
    """
    return as_bytes(os.environ.get("POLYSENSE_CACHE_GB") or USUAL_GB, "POLYSENSE_CACHE_GB")


def as_bytes(gigabytes: str | float, name: str) -> int:
    """Bytes of so many GB.

    Raises:
        InputError: It is no size; the message calls it `name`.
    """
    try:
        size = float(gigabytes)
    except ValueError:
        size = math.nan
    if not 0 <= size < math.inf:
        raise InputError(f"{name} {gigabytes}", "it is no size", "give gigabytes, such as 5, or 0 to keep nothing")
    return int(size * 1e9)


def entries() -> list[Entry]:
    """All of them, the one used last first."""
    found = []
    for path in store_folder().glob("*.safetensors"):
        if (entry := _look(path)) is not None:
            found.append(entry)
    return sorted(found, key=lambda entry: -entry.used)


def _look(path: Path) -> Entry | None:
    try:
        told = path.stat()
    except FileNotFoundError:  # another process has just removed it
        return None
    return Entry(path, told.st_size, told.st_mtime)


def find(key: str) -> Path | None:
    """The entry's file, which counts as used from now on."""
    path = store_folder() / f"{key}.safetensors"
    if not path.is_file():
        return None
    with suppress(OSError):  # a cache that may only be read, or another process that removes the file just now
        os.utime(path)
    return path


def room_for(size: int) -> bool:
    """Whether an entry of so many bytes may be kept at all."""
    return size <= limit_bytes()


def put(key: str, content: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Writes an entry, named arrays, and makes room for it.

    Raises:
        OSError: The folder cannot be written to, or the disk is full; nothing is left behind.
    """
    from safetensors.numpy import save_file

    folder = store_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = folder / f"{key}.{uuid.uuid4().hex}.partial"
    try:
        save_file(dict(content), partial, dict(about))
        partial.replace(folder / f"{key}.safetensors")
    finally:
        partial.unlink(missing_ok=True)
    trim(limit_bytes())


def trim(most: int) -> list[Entry]:
    """Removes what was used least recently until the rest takes `most` bytes; and what dead processes left.

    Returns:
        What was removed.
    """
    for path in _abandoned():
        path.unlink(missing_ok=True)
    total, removed = 0, []
    for entry in entries():
        total += entry.size
        if total > most:
            entry.path.unlink(missing_ok=True)
            removed.append(entry)
    return removed


def _abandoned() -> Iterator[Path]:
    for path in store_folder().glob("*.partial"):
        entry = _look(path)
        if entry is not None and time.time() - entry.used > ABANDONED:
            yield path

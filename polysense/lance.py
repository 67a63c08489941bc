"""LanceDB: where a database lies, how it is opened, and its errors as sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polysense.core.errors import InputError


def place_name(place: str | Path) -> str:
    """An address as it is, a folder as a path."""
    return str(place) if "://" in str(place) else str(Path(place).expanduser())


def is_local(name: str) -> bool:
    return "://" not in name


def connect(name: str) -> Any:
    """LanceDB at the place.

    Raises:
        InputError: It is not installed, or LanceDB's cloud is asked without a key.
    """
    os.environ.setdefault("LANCEDB_LOG", "error")  # its notes to developers are no news to users
    os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")  # what says which rows are indexed stays small
    try:
        import lancedb
    except ImportError as error:
        fix = "install the extra: pip install 'polysense[search]'"
        raise InputError("lancedb", "it is not installed, and an index is one of its tables", fix) from error
    if name.startswith("db://") and not (key := os.environ.get("LANCEDB_API_KEY")):
        raise InputError(name, "LanceDB's cloud asks for a key", "set LANCEDB_API_KEY in the environment")
    return lancedb.connect(name, api_key=key) if name.startswith("db://") else lancedb.connect(name)


@contextmanager
def faults(name: str, problem: str) -> Iterator[None]:
    """Whatever LanceDB raises becomes one sentence."""
    import pyarrow as pa

    try:
        yield
    except InputError:
        raise
    except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
        fix = "check the place, or make the index anew with polysense embed FILES --index PLACE"
        raise InputError(name, f"{problem} ({plain(error)})", fix) from error


def plain(error: Exception) -> str:
    """A message of LanceDB's without its prefixes and places in its source."""
    text = re.sub(r",? /\S+\.rs:\d+:\d+", "", " ".join(str(error).split()))
    text = re.sub(r"^(lance error: |LanceError\(\w+\): |Invalid input, |External error: )+", "", text)
    return text if len(text) <= 200 else text[:199] + "…"

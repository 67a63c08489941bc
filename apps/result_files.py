"""Files of results: opened before the work begins, so that a wrong name costs no minutes, complete or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np

from polysense.core.errors import InputError
from polysense.data.writers import Writer

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".parquet")


class Whole(Writer):
    """A file of bytes that appears when its context is left without an exception."""

    binary: ClassVar[bool] = True


@contextmanager
def open_files(data: Path, wanted: Mapping[Path | None, tuple[str, ...]]) -> Iterator[dict[Path, IO[bytes]]]:
    """The files to write, each with the endings that it may have (none: any), complete or not there in the end.

    Raises:
        InputError: There are no data to begin with, or a file cannot be written.
    """
    if not data.exists():
        raise InputError(data, "there is no such file", "check the path")
    named = {path: fitting for path, fitting in wanted.items() if path is not None}
    for path, fitting in named.items():
        if fitting and path.suffix.lower() not in fitting:
            raise InputError(path, f"cannot write {path.suffix or 'a file without ending'}",
                             f"end the name with {' or '.join(fitting)}")  # fmt: skip
    with ExitStack() as stack:
        yield {path: stack.enter_context(Whole(path)).file for path in named}


def write_table(table: pd.DataFrame, file: IO[bytes], ending: str) -> None:
    """A table as .csv or .parquet."""
    if ending == ".parquet":
        table.to_parquet(file, index=False)
    else:
        file.write(table.to_csv(index=False).encode())


def write_json(record: dict[str, Any], file: IO[bytes]) -> None:
    file.write((json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows, JSON-able."""
    return [{str(key): json_value(value) for key, value in row.items()} for row in table.to_dict("records")]


def json_value(value: Any) -> Any:
    """A table's cell as JSON has it; null for what is unknown."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value

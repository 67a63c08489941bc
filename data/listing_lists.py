"""Names of inputs from a list: a text file, a column of a table, or standard input."""

from __future__ import annotations

import csv
import glob
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path

from polysense.core.errors import InputError
from polysense.data.items import is_url, reason_of

COLUMNS = ("path", "file", "filename", "source", "url")


def read_list(source: str | Path, column: str | None = None) -> Iterator[str]:
    """Names in the order of the list, one at a time.

    Args:
        source: A text file with a name a line (blank ones are skipped, nothing is a comment), a csv, tsv or parquet
            file; "-" is standard input, a name a line. Texts are UTF-8.
        column: That of a table which holds the names; None: the first of `COLUMNS` that it has.

    Yields:
        Names. A relative one that is not found from the current folder, but is from the list's, is given from there.

    Raises:
        InputError: There is no such list, it is not UTF-8 or damaged, or has no such column.
    """
    name, path = "standard input" if str(source) == "-" else str(source), Path(source)
    if str(source) == "-":
        return _begun(_lines(sys.stdin, name), name)
    if not path.is_file():
        raise InputError(name, "there is no such list", "give a text, csv or parquet file, or - for standard input")
    ending = path.suffix.lower()
    if ending not in (".csv", ".tsv", ".parquet"):
        if column is not None:
            raise InputError(name, f"a plain list has no column {column!r}", "give a csv or parquet file")
        names = _text(path, name)
    else:
        names = _parquet(path, name, column) if ending == ".parquet" else _csv(path, name, column)
    return (_from_here_or_there(one, path.parent) for one in _begun(names, name))


def _begun(names: Iterator[str], source: str) -> Iterator[str]:
    """The same names; what is wrong with the list as a whole shows at once."""
    first = next(names, None)
    if first is None:
        raise InputError(source, "the list holds no names", "write one a line")
    return chain([first], names)


def _from_here_or_there(name: str, folder: Path) -> str:
    if is_url(name) or os.path.isabs(name) or _found(name):
        return name
    beside = str(folder / name)
    return beside if _found(beside) else name


def _found(name: str) -> bool:
    return os.path.lexists(name) or (glob.has_magic(name) and next(glob.iglob(name, recursive=True), None) is not None)


def _lines(lines: Iterable[str], name: str) -> Iterator[str]:
    try:
        for number, line in enumerate(lines):
            line = line.removeprefix("\ufeff") if number == 0 else line
            if line.strip():
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(name, "it is not UTF-8", "save it again as UTF-8") from error


def _text(path: Path, name: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        yield from _lines(file, name)


def _csv(path: Path, name: str, column: str | None) -> Iterator[str]:
    from polysense.data.table_text import sniff_delimiter

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.read(65_536)
            file.seek(0)
            rows = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else sniff_delimiter(head))
            at = _column([cell.strip() for cell in next(rows, [])], column, name)
            for row in rows:
                if any(cell.strip() for cell in row):
                    if at >= len(row) or not row[at].strip():
                        raise InputError(name, f"line {rows.line_num} has no name", "fill the column, or drop the line")
                    yield row[at]
    except UnicodeDecodeError as error:
        raise InputError(name, "it is not UTF-8", "save it again as UTF-8") from error
    except csv.Error as error:
        raise InputError(name, f"it is no csv file ({reason_of(error)})", "write it again") from error


def _parquet(path: Path, name: str, column: str | None) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with closing(pyarrow.parquet.ParquetFile(path)) as file:
            names = list(file.schema_arrow.names)
            chosen = names[_column(names, column, name)]
            for batch in file.iter_batches(batch_size=10_000, columns=[chosen]):
                for value in batch.column(0).to_pylist():
                    if not isinstance(value, str) or not value.strip():
                        raise InputError(name, f"the column {chosen!r} holds {value!r}, no name", "give it texts alone")
                    yield value
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(name, "the parquet file is truncated or damaged", "write it again") from error


def _column(names: list[str], wanted: str | None, source: str) -> int:
    """The number of the column that holds names."""
    there = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
    if wanted is not None:
        if wanted not in names:
            raise InputError(source, f"there is no column {wanted!r}", f"the list has: {there or '(none)'}")
        return names.index(wanted)
    lower = [name.lower() for name in names]
    for usual in COLUMNS:
        if usual in lower:
            return lower.index(usual)
    problem = f"no column is called {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}"
    raise InputError(source, problem, f"say --column, one of: {there or '(none)'}")

"""What packed files promise, asked before they are unpacked: a few bytes may unfold to more than any memory holds.

gzip is unpacked step by step; zip, npz, xlsx and parquet say sizes in their headers, and what reads them later stops
there (Python's zipfile hands out no more of a member than its header says).
"""

from __future__ import annotations

import gzip
import io
import math
import re
import tokenize
import zipfile
from typing import IO

import numpy as np

from polysense.data.limits import check

CHUNK = 1 << 22  # bytes unpacked at a time
CELL = re.compile(rb"<(?:\w+:)?c\s[^>]*?\br=[\"']([A-Z]{1,3})(\d{1,7})[\"']")  # a cell of a worksheet and its place
LONGEST_CELL = 256  # bytes of such a tag


def gunzip(data: bytes, source: object, kind: str = "unpacked", each: int = 1) -> bytes:
    """Unpacks gzip up to a limit.

    Args:
        data: The packed bytes.
        source: For the message.
        kind: The limit that counts.
        each: Bytes that one of its kind has at the most.

    Raises:
        InputError: It becomes larger than that.
        OSError, EOFError, zlib.error: It is damaged.
    """
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        while chunk := file.read(CHUNK):
            out.write(chunk)
            check(kind, out.tell() / each, source)
    return out.getvalue()


def check_zip(archive: zipfile.ZipFile, source: object) -> None:
    """Refuses an archive whose members are too large together."""
    check("unpacked", sum(member.file_size for member in archive.infolist()), source)


def array_shapes(file: IO[bytes], source: object) -> list[tuple[int, ...]]:
    """Shapes of the arrays of an npy or npz; the file is at its start again.

    Raises:
        InputError: They are too large together.
        ValueError: One is promised that is larger than what holds it.
        zipfile.BadZipFile, zlib.error, ValueError, OSError …: The file is damaged, as `np.load` would say.
    """
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == b"PK":
        shapes = []
        with zipfile.ZipFile(file) as archive:
            check_zip(archive, source)
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    with archive.open(member) as part:
                        shapes.append(_shape(part, member.file_size))
    else:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        shapes = [_shape(file, size)]
    file.seek(0)
    return shapes


def _shape(file: IO[bytes], size: int) -> tuple[int, ...]:
    """The shape that an npy's header says, where the file is as large as that."""
    version = np.lib.format.read_magic(file)
    # 3.0 differs from 2.0 in the encoding of names alone.
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except (tokenize.TokenError, SyntaxError) as error:  # NumPy has Python take headers of old writers apart
        raise ValueError("the header of an array is damaged") from error
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{size} bytes hold no array of shape {shape}")
    return shape


def check_parquet(data: bytes, source: object) -> None:
    """Refuses a parquet file with too many rows, cells or bytes, by its footer.

    Raises:
        InputError: It has.
        pyarrow.ArrowException, OSError: It is damaged.
    """
    import pyarrow.parquet

    footer = pyarrow.parquet.read_metadata(io.BytesIO(data))
    check_table(footer.num_rows, footer.num_columns, source)
    check("unpacked", sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups)), source)


def check_table(rows: int, columns: int, source: object) -> None:
    """Refuses a table of too many rows or cells."""
    check("rows", rows, source)
    check("cells", rows * columns, source)


def check_workbook(data: bytes, source: object) -> None:
    """Refuses an xlsx that is too large once unpacked, or whose cells span too large a table: two of them, at the first
    and the last place of a sheet, are a table of 17 thousand million.

    Raises:
        InputError: It is.
        zipfile.BadZipFile, zlib.error, OSError …: It is damaged.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        check_zip(archive, source)
        for name in archive.namelist():
            if name.startswith("xl/worksheets/") and name.endswith(".xml"):
                with archive.open(name) as sheet:
                    check_table(*_extent(sheet), source)


def _extent(sheet: IO[bytes]) -> tuple[int, int]:
    """The last row and column of a worksheet's cells."""
    rows = columns = 0
    rest = b""
    while chunk := sheet.read(CHUNK):
        found = CELL.findall(rest + chunk)
        rest = (rest + chunk)[-LONGEST_CELL:]  # a tag may lie across
        rows = max(rows, max((int(row) for _, row in found), default=0))
        columns = max(columns, max((_number(letters) for letters in {letters for letters, _ in found}), default=0))
    return rows, columns


def _number(letters: bytes) -> int:
    """b"A" -> 1, b"AA" -> 27."""
    number = 0
    for letter in letters:
        number = 26 * number + letter - 64
    return number

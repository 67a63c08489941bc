"""Opening whatever holds a time series, by its content and not its name: table, arrays or `.ts` text.

Shape legend: n series, t steps, c variates.
"""

from __future__ import annotations

import csv
import io
import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from polysense.core.errors import InputError
from polysense.data.containers import array_shapes, check_parquet, check_workbook, gunzip
from polysense.data.limits import check, check_file
from polysense.data.table_text import check_lines
from polysense.data.time_series_lines import lines_table

if TYPE_CHECKING:
    import pandas as pd

MISSING = ["?", "-", "--", ".", "missing", "Missing"]  # beside pandas' own
# RuntimeError: encrypted members and unknown zip versions.
ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, ValueError, KeyError, OSError, EOFError, RuntimeError)
GIVE = "give csv, parquet, npz or ts"


@dataclass(frozen=True, slots=True)
class Arrays:
    """Numbers (t,), (t, c) or (n, t, c), and what an npz says about them."""

    values: np.ndarray
    times: np.ndarray | None = None
    names: list[str] | None = None
    labels: list[str] | None = None


def source_name(source: Any) -> str:
    """How messages and output rows call a source."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    own = getattr(source, "source", None)  # of a SeriesFrame
    name = own if isinstance(own, str) else getattr(source, "name", None) if hasattr(source, "read") else None
    return name if isinstance(name, str) else "<memory>"


def load(name: str, source: Any) -> pd.DataFrame | Arrays | str:
    """A table, arrays, or the text of a `.ts` file.

    Raises:
        InputError: No such file, a folder, nothing in it, or no series in any known format.
    """
    if isinstance(source, str | os.PathLike):
        return _from_bytes(name, _bytes_of(name, Path(source)))
    if hasattr(source, "read"):
        data = source.read()
        source = data.encode() if isinstance(data, str) else data
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes(name, bytes(source))
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return source
    if isinstance(source, pd.Series):
        return source.to_frame("value" if source.name is None else str(source.name))
    if isinstance(source, dict):
        try:
            return pd.DataFrame(source)
        except ValueError as error:
            raise InputError(name, f"these columns make no table ({error})", "give equally long columns") from error
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().double().numpy()
    if isinstance(source, np.ndarray | list | tuple):
        return _checked(name, Arrays(_array(name, source)))
    raise InputError(name, f"a {type(source).__name__} is not a time series", "give a path, table or array of numbers")


def _bytes_of(name: str, path: Path) -> bytes:
    if path.is_dir():
        raise InputError(name, "it is a folder, not a time series", "give one file")
    if not path.exists():
        raise InputError(name, "there is no such file", "check the path")
    check_file(path)
    return path.read_bytes()


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, None if isinstance(values, np.ndarray) else np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(name, f"these values are no array of numbers ({error})", "give equally long rows") from error


def _checked(name: str, arrays: Arrays) -> Arrays:
    values = arrays.values
    if values.dtype.kind not in "biuf" or values.ndim not in (1, 2, 3):
        raise InputError(name, f"an array of shape {values.shape} and type {values.dtype} is not a time series",
                         "give numbers of shape (steps,), (steps, variates) or (series, steps, variates)")  # fmt: skip
    return arrays


def _from_bytes(name: str, data: bytes) -> pd.DataFrame | Arrays | str:
    if data[:2] == b"\x1f\x8b":
        try:
            data = gunzip(data, name)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(name, "its gzip stream is damaged or cut short", "compress or copy it again") from error
    if not data.strip():
        raise InputError(name, "the file is empty", GIVE + " with at least one row")
    if data[:4] == b"PAR1":
        return _parquet(name, data)
    if data[:4] == b"PK\x03\x04" and b"xl/workbook.xml" in data:
        return _excel(name, data)
    if data[:4] == b"PK\x03\x04" or data[:6] == b"\x93NUMPY":
        return _numpy(name, data)
    text = _text(name, data)
    head = [line.strip().lower() for line in text[:20_000].splitlines() if line.strip() and line.strip()[0] not in "#%"]
    if head and head[0].startswith("@"):
        return text
    return _csv(name, text)


def _parquet(name: str, data: bytes) -> pd.DataFrame:
    import pyarrow
    import pyarrow.parquet

    try:
        check_parquet(data, name)
        table = pyarrow.parquet.read_table(io.BytesIO(data))
        table.validate(full=True)  # text that is no UTF-8 would only show when it is looked at
        return table.to_pandas()
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(name, "its parquet data are damaged or cut short", "write or copy it again") from error


def _excel(name: str, data: bytes) -> pd.DataFrame:
    import pandas as pd

    try:
        check_workbook(data, name)
        return pd.read_excel(io.BytesIO(data), engine="openpyxl", na_values=MISSING)
    except InputError:
        raise
    except ZIP_FAULTS as error:
        raise InputError(name, "its workbook is damaged or cut short", "save or copy it again") from error


def _numpy(name: str, data: bytes) -> Arrays:
    try:
        for shape in array_shapes(io.BytesIO(data), name):
            check("cells", math.prod(shape), name)
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        held = {"values": loaded} if isinstance(loaded, np.ndarray) else dict(loaded.items())
    except InputError:
        raise
    except ZIP_FAULTS as error:
        raise InputError(name, f"its NumPy arrays cannot be read ({error})", "save plain numbers again") from error
    held = {key: array for key, array in held.items() if isinstance(array, np.ndarray)}  # any zip may come this way
    if "values" not in held and len(held) != 1:
        raise InputError(name, f"it holds the arrays {', '.join(held) or '(none)'}, but no 'values'",
                         "save the numbers as 'values', and times as 'times'")  # fmt: skip
    values = held.get("values", next(iter(held.values())))
    names, labels = ([str(v) for v in held[key].ravel()] if key in held else None for key in ("names", "labels"))
    return _checked(name, Arrays(values, held.get("times"), names, labels))


def _text(name: str, data: bytes) -> str:
    garbage = InputError(name, "it is neither a table nor arrays", GIVE)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise garbage from None
    head = data[:4096]
    if b"\0" in head or sum(byte < 32 and byte not in (9, 10, 12, 13) for byte in head) > len(head) / 100:
        raise garbage
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # old spreadsheets; numbers and dates read the same


def _csv(name: str, text: str) -> pd.DataFrame:
    """A delimited table; its delimiter, header and decimal mark are found from the first lines."""
    import pandas as pd

    lines = [line for line in text[:200_000].splitlines() if line.strip()][:50]
    delimiter = _delimiter(lines)
    check("rows", text.count("\n"), name)
    if delimiter and (series := lines_table(text, delimiter, name)) is not None:
        return series
    check_lines(text, delimiter or r"\s+", name)
    first = next(csv.reader([lines[0]], delimiter=delimiter, skipinitialspace=True)) if delimiter else lines[0].split()
    rows = lines[1:]
    headed = not all(_is_data(cell) for cell in first if cell.strip())
    decimal = (
        "," if delimiter == ";" and not any("." in row for row in rows) and any("," in row for row in rows) else "."
    )
    options: dict[str, Any] = {"sep": delimiter or r"\s+", "header": 0 if headed else None, "decimal": decimal,
                               "na_values": MISSING, "skipinitialspace": True, "low_memory": False}  # fmt: skip
    try:
        # Bytes, which pandas reads as they are: a text stream takes four times its size in memory, and as long again.
        table = pd.read_csv(io.BytesIO(text.encode()), **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError, csv.Error) as error:
        problem = f"it cannot be read as a table ({str(error).strip().splitlines()[-1]})"
        raise InputError(name, problem, "give the same number of columns in each row") from error
    if not headed:
        table.columns = [f"x{i + 1}" for i in range(table.shape[1])] if table.shape[1] > 1 else ["value"]
    # A comma at the end of each line makes a column without name and content.
    empty = [c for c in table.columns if str(c).startswith("Unnamed:") and table[c].isna().all()]
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index()
    return table.drop(columns=empty)


def _delimiter(lines: list[str]) -> str | None:
    """The one of `; tab , |` that most lines hold equally often; None for blanks."""
    best, most = ",", 0.0
    for delimiter in (";", "\t", ",", "|"):
        counts = [line.count(delimiter) for line in lines]
        usual = max(set(counts), key=counts.count)
        score = counts.count(usual) / len(counts) if usual else 0
        if score > most:
            best, most = delimiter, score
    if not most and all(len(line.split()) > 1 for line in lines) and all(map(_is_data, lines[-1].split())):
        return None
    return best


def _is_data(cell: str) -> bool:
    """Whether a first row's cell is a value and not a name: a number, a missing mark or a date."""
    cell = cell.strip().strip("\"'")
    if cell in MISSING or cell.lower() in ("nan", "na", "null", ""):
        return True
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return bool(
            cell[:1].isdigit() and sum(c.isdigit() for c in cell) >= 4 and set(cell) <= set("0123456789-/.: TZ+")
        )
    return True

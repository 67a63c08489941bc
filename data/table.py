"""Table reader: csv, tsv, parquet, xlsx and in-memory forms -> a clean DataFrame.

Numbers come as int64 or float64, booleans as bool or "boolean", dates as datetime64, everything else as text; missing
values are NaN, NaT or NA. Pandas is imported where used: it costs half a second.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polysense.core.errors import InputError
from polysense.data.containers import check_parquet, check_workbook, gunzip
from polysense.data.limits import check_file
from polysense.data.table_text import DATE, MISSING, READABLE, Header, column_names, first_row_names, read_text

if TYPE_CHECKING:
    import pandas as pd

TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".data", ".parquet", ".xlsx")
# Tried in this order; a column is dates if one format fits all that is there.
DATE_FORMATS = ("ISO8601", "%Y/%m/%d", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%d.%m.%Y", "%d.%m.%Y %H:%M",
                "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M", "%m/%d/%y", "%d-%m-%Y")  # fmt: skip


def read_table(source: Any, *, header: Header = "auto") -> pd.DataFrame:
    """Reads a whole table.

    Args:
        source: A path or the bytes of a csv / tsv / txt (also gzipped), parquet or xlsx file; a DataFrame; a dict of
            columns, or of one row's values; a list of row dicts.
        header: Whether the first row of a text or xlsx file names the columns. "auto" looks: a first row of numbers, or
            of values that come again below, is data; such columns are called column_0, column_1 …

    Returns:
        A new frame with text column names and the index 0, 1, 2 …

    Raises:
        InputError: The file is missing, binary, ragged, without rows or columns.
    """
    import pandas as pd

    name = str(source) if isinstance(source, str | Path) else "<memory>"
    if isinstance(source, str | Path):
        return _decode(_load(Path(source)), name, header)
    if isinstance(source, bytes):
        return _decode(source, name, header)
    if isinstance(source, pd.DataFrame):
        frame = source.reset_index(drop=True)
    elif isinstance(source, Mapping) or _is_row_list(source):
        frame = _from_mappings(source, name)
    else:
        fix = "give a path, bytes, a DataFrame, a dict of columns or a list of row dicts"
        raise InputError(name, f"a {type(source).__name__} is no table", fix)
    frame = frame.set_axis([str(column).strip() for column in frame.columns], axis=1)
    return _tidy(frame, name)


def require_columns(frame: pd.DataFrame, names: Iterable[str], source: object) -> None:
    """Raises an `InputError` that names the columns which the frame lacks."""
    absent = [name for name in names if name not in frame.columns]
    if absent:
        there = ", ".join(map(str, list(frame.columns)[:20])) + (" …" if frame.shape[1] > 20 else "")
        noun = "column" if len(absent) == 1 else "columns"
        raise InputError(source, f"there is no {noun} {', '.join(map(repr, absent))}", f"the table has: {there}")


def is_headerless(frame: pd.DataFrame) -> bool:
    """Whether the names are those given to a file without a header."""
    return list(frame.columns) == [f"column_{i}" for i in range(frame.shape[1])]


def parse_dates(text: pd.Series) -> pd.Series | None:
    """Text -> datetime64 without time zone, if one format fits every value that is there; else None."""
    import pandas as pd

    present = text.dropna()
    if present.empty or not present.head(50).str.match(DATE).all():
        return None
    for form in DATE_FORMATS:
        if pd.to_datetime(present.head(1000), format=form, errors="coerce", utc=True).isna().any():
            continue
        dates = pd.to_datetime(text, format=form, errors="coerce", utc=True)
        if not (dates.isna() & text.notna()).any():
            return dates.dt.tz_localize(None)
    return None


def _load(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(path, "this is a folder", "give a table file")
    check_file(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(path, "there is no such file", "check the path") from None
    except OSError as error:
        raise InputError(path, f"the file cannot be read ({error.strerror})", "check its permissions") from error


def _is_row_list(source: Any) -> bool:
    return isinstance(source, Sequence) and len(source) > 0 and all(isinstance(row, Mapping) for row in source)


def _from_mappings(source: Any, name: str) -> pd.DataFrame:
    import pandas as pd

    try:
        if isinstance(source, Mapping) and not any(isinstance(v, list | tuple | np.ndarray | pd.Series)
                                                   for v in source.values()):  # fmt: skip
            return pd.DataFrame([dict(source)])
        return pd.DataFrame(source)
    except ValueError as error:
        raise InputError(name, "the columns differ in length", "give one value per row in each column") from error


def _decode(data: bytes, name: str, header: Header) -> pd.DataFrame:
    """The content decides: parquet and xlsx have magic numbers, the rest must be text."""
    import pandas as pd

    if data[:2] == b"\x1f\x8b":
        try:
            data = gunzip(data, name)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(name, "the gzip file is damaged", "compress it again") from error
    if data[:4] == b"PAR1":
        try:
            check_parquet(data, name)
            frame = pd.read_parquet(io.BytesIO(data))
        except (InputError, MemoryError):
            raise
        except Exception as error:  # pyarrow's are of a dozen kinds, pandas' own notes in the footer add theirs
            raise InputError(name, "the parquet file is truncated or damaged", "write it again") from error
        return _tidy(frame.reset_index(drop=True).set_axis([str(c) for c in frame.columns], axis=1), name)
    frame = _read_xlsx(data, name, header) if data[:4] == b"PK\x03\x04" else read_text(data, name, header)
    return _tidy(frame, name)


def _read_xlsx(data: bytes, name: str, header: Header) -> pd.DataFrame:
    """The first sheet, by way of text, so that it is understood as a csv file is."""
    import pandas as pd

    try:
        check_workbook(data, name)
        frame = pd.read_excel(io.BytesIO(data), header=None, dtype=object, engine="openpyxl")
    except InputError:
        raise
    except Exception as error:  # zipfile, xml and openpyxl raise a dozen kinds
        raise InputError(name, "the Excel file cannot be read", "save it again as xlsx, or as csv") from error
    frame = frame.dropna(how="all").reset_index(drop=True)
    if frame.empty:
        raise InputError(name, "the first sheet is empty", READABLE)
    rows = frame.map(lambda value: "" if pd.isna(value) else str(value))
    named = first_row_names(rows) if header == "auto" else header
    if named and len(rows) == 1:
        raise InputError(name, "the table has a header, but no rows", "add rows below the header")
    return rows.iloc[int(named) :].reset_index(drop=True).set_axis(column_names(rows, named), axis=1)


def _tidy(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Strips text, recognises missing values, and turns text columns into what they hold."""
    if frame.shape[1] == 0 or len(frame) == 0:
        raise InputError(name, "the table has no rows" if frame.shape[1] else "the table has no columns", READABLE)
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise InputError(name, f"there are several columns {twice!r}", "give each column its own name")
    return frame.assign(**{column: _tidy_column(frame[column]) for column in frame.columns})


def _tidy_column(column: pd.Series) -> pd.Series:
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return column.dt.tz_convert("UTC").dt.tz_localize(None)
    if pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_datetime64_any_dtype(column.dtype):
        return column  # booleans are numeric here
    if column.dtype == object:
        column = column.infer_objects()
        kinds = {type(value) for value in column.dropna().head(1000)}
        if kinds and kinds <= {bool, np.bool_}:
            return column.astype("boolean")
        if pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_datetime64_any_dtype(column.dtype):
            return column
        column = column.where(column.isna(), column.map(str))
    text = column.astype("str").str.strip()
    text = text.mask(text.str.lower().isin(MISSING))
    present = text.dropna()
    if present.empty:
        return pd.Series(np.nan, text.index, name=column.name)
    if (low := present.str.lower()).isin(["true", "false"]).all():
        flags = (text.str.lower() == "true").astype("boolean").mask(text.isna())
        return flags if len(low) < len(text) else flags.astype(bool)
    numbers = pd.to_numeric(text, errors="coerce")
    if not (numbers.isna() & text.notna()).any():
        return numbers
    dates = parse_dates(text)
    return dates if dates is not None else text

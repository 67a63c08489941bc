"""Text tables: encoding, delimiter, header, and rows of unequal length.

Pandas is imported where used: it costs half a second.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from polysense.core.errors import InputError
from polysense.data.limits import check

if TYPE_CHECKING:
    import pandas as pd

Header = bool | Literal["auto"]
MISSING = ("", "?", "na", "n/a", "nan", "null", "none", "-", "<na>", "#n/a")  # compared in lower case
SPELLINGS = (str.lower, str.upper, str.title, lambda word: "NaN" if word == "nan" else word)
DELIMITERS = (",", ";", "\t", "|")
DATE = r"^\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?$"
READABLE = "give a csv, tsv, parquet or xlsx file with one row per line"
FULL_ROWS = "give every row the same number of cells"


def read_text(data: bytes, name: str, header: Header) -> pd.DataFrame:
    """Bytes of a text table -> named columns; numbers and booleans are parsed, the rest is left as it stands.

    Raises:
        InputError: Binary, empty, ragged or without rows.
    """
    import pandas as pd

    text = to_text(data, name).lstrip("\r\n")
    if not text.strip():
        raise InputError(name, "the file is empty", READABLE)
    delimiter = sniff_delimiter(text)
    check_lines(text, delimiter, name)

    def parse(**options: Any) -> pd.DataFrame:
        return pd.read_csv(io.StringIO(text), sep=delimiter, header=None, keep_default_na=False,
                           skipinitialspace=True, low_memory=False, **options)  # fmt: skip

    try:
        head = parse(dtype=str, nrows=1000)
        named = first_row_names(head) if header == "auto" else header
        frame = parse(skiprows=int(named), na_values=[spell(word) for word in MISSING for spell in SPELLINGS])
    except pd.errors.EmptyDataError:
        raise InputError(name, "the table has a header, but no rows", "add rows below the header") from None
    except pd.errors.ParserError as error:
        detail = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise InputError(name, f"the rows are ragged ({detail})", FULL_ROWS) from error
    if frame.shape[1] != head.shape[1] or frame[frame.columns[-1]].isna().any():
        _require_full_rows(text, delimiter, head.shape[1], name)
    return frame.set_axis(column_names(head, named), axis=1)


def check_lines(text: str, delimiter: str, source: object) -> None:
    """Refuses a text table with too many rows, or cells: short rows are filled up to the width of the first."""
    rows = text.count("\n") + (not text.endswith("\n"))
    check("rows", rows, source)
    first = re.search(r"[^\r\n]+", text)
    if first is not None:
        width = len(first[0].split()) if delimiter == r"\s+" else 1 + first[0].count(delimiter)
        check("cells", rows * width, source)


def column_names(rows: pd.DataFrame, named: bool) -> list[str]:
    """Different names from the first row; column_0, column_1 … where it names nothing."""
    names: list[str] = []
    for i, cell in enumerate(rows.iloc[0] if named else [""] * rows.shape[1]):
        label = cell.strip() or f"column_{i}"
        names.append(label if label not in names else f"{label}.{i}")
    return names


def _require_full_rows(text: str, delimiter: str, width: int, name: str) -> None:
    """Pandas fills short rows with empty cells; the cells that are really there must be counted."""
    if len(delimiter) == 1:
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a cell may hold a book
        file = io.StringIO(text, newline=None)  # a lone carriage return ends a row, as it does for pandas
        rows: Iterable[list[str]] = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
    else:
        rows = (line.split() for line in text.splitlines())
    for number, cells in enumerate(rows, 1):
        if 0 < len(cells) < width and any(cells):
            problem = f"line {number} has {len(cells)} cells, not {width}"
            raise InputError(name, problem, FULL_ROWS)


def to_text(data: bytes, name: str) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data[:65_536] or sum(byte < 9 or 13 < byte < 32 for byte in data[:4096]) > len(data[:4096]) // 50:
        raise InputError(name, "the content is binary, no table", READABLE)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def sniff_delimiter(text: str) -> str:
    """The delimiter that cuts the first lines into equally many cells, most of them; "," for a single column."""
    lines = [line for line in text[:65_536].splitlines()[:50] if line.strip()]
    lines = lines[:-1] if len(lines) > 2 and len(text) > 65_536 else lines  # the last one may be cut
    best, score = ",", (0.0, 1)
    for delimiter in DELIMITERS:
        counts = [len(cells) for cells in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]
        common = max(set(counts), key=counts.count, default=1)
        if common > 1 and (found := (counts.count(common) / len(counts), common)) > score:
            best, score = delimiter, found
    if score[0] == 0.0 and lines:  # none of them: blanks, where they cut every line alike
        counts = [len(line.split()) for line in lines]
        if counts[0] > 1 and len(set(counts)) == 1:
            return r"\s+"
    return best


def first_row_names(rows: pd.DataFrame) -> bool:
    """Whether the first row looks unlike the rows below it."""
    first, below = [cell.strip() for cell in rows.iloc[0]], rows.iloc[1:1001]
    kinds = [_kind(cell) for cell in first]
    if below.empty:
        return set(kinds) == {"text"}
    votes = 0  # of the columns that hold numbers or dates
    for i, kind in enumerate(kinds):
        others = {other for other in map(_kind, below[i].str.strip().head(200)) if other != "missing"}
        if kind == "missing" and others and i > 0:  # a nameless first column is a common index
            return False
        if others in ({"number"}, {"date"}) and kind != "missing":
            votes += 1 if kind == "text" else -1
    if votes:
        return votes > 0
    again = any(cell in set(below[i].str.strip()) for i, cell in enumerate(first))
    return all(kind in ("text", "missing") for kind in kinds) and not again and len(set(first)) == len(first)


def _kind(cell: str) -> str:
    if cell.lower() in MISSING:
        return "missing"
    try:
        float(cell)
    except ValueError:
        return "date" if re.match(DATE, cell) else "text"
    return "number"

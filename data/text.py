"""Text reader: plain text files, tables and jsonl, and in-memory forms -> texts.

A table gives one text a row. Blank rows are never left out, since answers are matched to rows. Pandas is imported where
used: it costs half a second.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polysense.core.errors import InputError
from polysense.data.limits import check
from polysense.data.table import read_table, require_columns
from polysense.data.table_text import FULL_ROWS, column_names, first_row_names
from polysense.data.text_files import PLAIN, decode, load, unzip

if TYPE_CHECKING:
    import pandas as pd

MEMORY = "<memory>"
TEXT_ENDINGS = (".txt", ".md", ".jsonl", ".csv", ".tsv", ".parquet", ".xlsx")
TABLE_ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet", ".xlsx")  # a text a row, the rest are one text a file
USUAL_NAMES = ("text", "sentence", "content", "review", "body", "message", "comment", "abstract", "description",
               "title", "question")  # fmt: skip
CLEARLY = 1.5  # times longer than the next column, and a column is the one that holds the text
SURROGATES = re.compile("[\ud800-\udfff]")
GIVE = "give a string, a path, a table or a Series of strings"
NAME_IT = "name it: --tokenizer column=NAME of fit; elsewhere give a table of that column alone"
FILL = "write its text, or take the row out (words such as NA and none count as missing in a table)"


@dataclass(frozen=True, slots=True)
class Text:
    """A text, and how messages and output rows call it: "a.txt", "reviews.csv#12" or "<memory>"."""

    text: str
    source: str
    column: str = field(default="", compare=False)  # of the table that it stands in


def read_texts(source: Any, column: str | None = None) -> Iterator[Text]:
    """Reads every text of a source.

    Args:
        source: A path, or a string that names a file: there is one, or it has no white space and ends like a text file
            (`TEXT_ENDINGS`). Any other string is itself the text; bytes are a plain text file's. Tables are files of
            `TABLE_ENDINGS` (also gzipped), DataFrames, and lists and dicts as `read_table` takes them; a Series holds
            one text a value. Every other file is one text, in UTF-8, UTF-16 or UTF-32 with their marks, or whatever
            encoding it looks like. A `Text` is given back.
        column: The column or field that holds the text (several: see `texts_of`); None: see `text_column`.

    Yields:
        Texts that are not blank, whose lines end with a line feed alone; a table's rows are counted from 0.

    Raises:
        InputError: The file is missing, binary, too large or damaged, a text is blank, or no column holds the text.
    """
    if isinstance(source, Text):
        yield source
        return
    is_file = isinstance(source, Path) or (isinstance(source, str) and _names_file(source))
    name = str(source) if is_file else MEMORY
    if isinstance(source, bytes):
        yield _plain(unzip(source, name, plain=True), name)
    elif isinstance(source, str) and not is_file:
        yield _checked(source, name)
    elif is_file and _ending(source) not in TABLE_ENDINGS:
        yield _plain(load(Path(source), plain=True), name)
    else:
        import pandas as pd

        if isinstance(source, pd.Series):
            column = column or USUAL_NAMES[0]
            frame = source.reset_index(drop=True).to_frame(column)
            if frame.empty:
                raise InputError(name, "the series is empty", GIVE)
        else:
            frame = read_text_table(source)
        yield from texts_of(frame, column or text_column(frame, name), name)


def read_text_table(source: Any) -> pd.DataFrame:
    """A table one of whose columns holds texts, as `read_table` gives it.

    Unlike there, jsonl is known (nested fields are left out), and rows that tabs cut are lines: a sentence may begin
    with a quotation mark that nothing closes.

    Raises:
        InputError: See `read_table`; or a line is no JSON.
    """
    import pandas as pd

    if not isinstance(source, str | Path):
        if not isinstance(source, pd.DataFrame | Mapping | list | tuple):
            raise InputError(MEMORY, f"a {type(source).__name__} is no text", GIVE)
        return read_table(source)
    path, name, ending = Path(source), str(source), _ending(source)
    if ending in (".csv", ".parquet", ".xlsx"):
        return read_table(path)
    data = load(path)
    if data[:4] in (b"PAR1", b"PK\x03\x04"):
        return read_table(path)
    text = decode(data, name)
    if not text.strip():
        raise InputError(name, "the file is empty", PLAIN)
    if ending == ".jsonl":
        return _json_lines(text, name)
    has_tabs = "\t" in text.lstrip("\n").partition("\n")[0]
    return _tab_rows(text, name) if ending == ".tsv" or has_tabs else read_table(path)


def text_column(frame: pd.DataFrame, source: object = MEMORY, *, without: Collection[str] = ()) -> str:
    """The column that holds the text: the first of the usual names, else the one whose texts are clearly the longest.

    Args:
        frame: As `read_text_table` gives it.
        source: What messages call it.
        without: Columns that are not considered (those of labels).

    Raises:
        InputError: No column holds texts, or several might.
    """
    import pandas as pd

    present = frame.dropna(axis=1, how="all").drop(columns=list(without), errors="ignore").dtypes.items()
    columns = [str(n) for n, t in present if isinstance(t, pd.StringDtype) or pd.api.types.is_object_dtype(t)]
    for usual in USUAL_NAMES:
        for name in columns:
            if name.lower() == usual:
                return name
    if not columns:
        there = ", ".join(map(str, list(frame.columns)[:20])) + (" …" if frame.shape[1] > 20 else "")
        raise InputError(source, f"no column holds texts (there are: {there})", NAME_IT)
    lengths = {name: float(frame[name].dropna().astype(str).str.len().mean()) for name in columns}
    columns.sort(key=lambda name: -lengths[name])
    if len(columns) > 1 and lengths[columns[0]] < CLEARLY * lengths[columns[1]]:
        listed = ", ".join(map(repr, columns[:20])) + (" …" if len(columns) > 20 else "")
        raise InputError(source, f"several columns might hold the text: {listed}", NAME_IT)
    return columns[0]


def texts_of(frame: pd.DataFrame, column: str, source: object = MEMORY) -> list[Text]:
    """The texts of a column, called by the numbers in the frame's index: a part of a table keeps the table's.

    Args:
        frame: As `read_text_table` gives it.
        column: Its name; several names parted by commas give one text of several lines (a title and a body).
        source: What messages call the table.

    Raises:
        InputError: There is no such column, or a row has no text.
    """
    names = [column] if column in frame.columns else [name.strip() for name in column.split(",")]
    require_columns(frame, names, source)
    texts = []
    for row, values in zip(frame.index, frame[names].astype(object).to_numpy(), strict=True):
        text = "\n".join(str(value) for value in values if not _is_missing(value))
        if not text.strip():
            raise InputError(source, f"row {row} has no text in the column {column!r}", FILL)
        texts.append(replace(_checked(text, f"{source}#{row}"), column=column))
    return texts


def _is_missing(value: Any) -> bool:
    import pandas as pd

    return bool(pd.isna(value))


def _names_file(source: str) -> bool:
    return os.path.isfile(source) or (not re.search(r"\s", source) and _ending(source) in TEXT_ENDINGS)


def _ending(source: str | Path) -> str:
    """In lower case; that of the content where the file is gzipped."""
    path = Path(source)
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() if ending == ".gz" else ending


def _plain(data: bytes, source: str) -> Text:
    text = decode(data, source)
    check("characters", len(text), source)
    return _checked(text, source)


def _checked(text: str, source: str) -> Text:
    if not text.strip():
        raise InputError(source, "the text is empty", "give a text with at least one word")
    return Text(_whole(text.replace("\r\n", "\n").replace("\r", "\n")), source)


def _whole(text: str) -> str:
    """Halves of surrogate pairs, which JSON may escape and nothing can encode, joined or replaced."""
    if SURROGATES.search(text):
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _json_lines(text: str, name: str) -> pd.DataFrame:
    """A row a line that is not blank; a line that is a plain string is a text."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(name, f"line {number} is no JSON ({error.msg})", "write one object a line") from error
        except RecursionError as error:
            raise InputError(name, f"line {number} is nested too deeply", "write one flat object a line") from error
        if isinstance(value, str):
            value = {USUAL_NAMES[0]: value}
        if not isinstance(value, dict):
            problem = f"line {number} holds neither an object nor a string"
            raise InputError(name, problem, 'write one object a line, such as {"text": "…"}')
        row = {key: None if isinstance(field, dict | list) else field for key, field in value.items()}
        rows.append({_whole(key): _whole(field) if isinstance(field, str) else field for key, field in row.items()})
    check("cells", len(rows) * len({key for row in rows for key in row}), name)  # each row may have keys of its own
    return _named(name, rows)


def _tab_rows(text: str, name: str) -> pd.DataFrame:
    """Rows that tabs cut, as strings; the first names the columns where it looks so.

    Files of sentences seldom quote, and then a quotation mark is part of a sentence. Only where lines differ in their
    cells, quotes may hold tabs and ends of lines; only where every cell with a leading quote is quoted throughout, the
    quotes are taken off.
    """
    import pandas as pd

    numbered = [(number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1) if line.strip(" ")]
    rows = [cells for _, cells in numbered]
    widths = [len(cells) for cells in rows]
    width = max(set(widths), key=widths.count)
    if len(set(widths)) == 1:
        if all(_is_quoted(cell) for cells in rows for cell in cells if cell.startswith('"')):
            rows = [[_unquote(cell) for cell in cells] for cells in rows]
    elif (quoted := _quoted_rows(text)) is not None:
        rows = quoted
    else:
        number, count = next((number, len(cells)) for number, cells in numbered if len(cells) != width)
        noun = "cell" if count == 1 else "cells"
        raise InputError(name, f"line {number} has {count} {noun}, not {width}", FULL_ROWS)
    frame = pd.DataFrame(rows, dtype=str)
    named = first_row_names(frame.head(1001))
    if named and len(frame) == 1:
        raise InputError(name, "the table has a header, but no rows", "add rows below the header")
    names = column_names(frame, named)
    return _named(name, frame.iloc[int(named) :].set_axis(names, axis=1))


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell.endswith('"') and '"' not in cell[1:-1].replace('""', "")


def _unquote(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if cell.startswith('"') else cell


def _quoted_rows(text: str) -> list[list[str]] | None:
    """The rows of a file with correct quotes and equally many cells in each row, else None."""
    try:
        rows = [cells for cells in csv.reader(io.StringIO(text), delimiter="\t", strict=True) if cells]
    except csv.Error:
        return None
    return rows if len({len(cells) for cells in rows}) == 1 else None


def _named(name: str, table: Any) -> pd.DataFrame:
    """`read_table` of what is in memory, whose messages name the file."""
    try:
        return read_table(table)
    except InputError as error:
        raise InputError(name, error.problem, error.fix) from error

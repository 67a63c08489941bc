"""Tables that hold one series a line: an id, then the values (M4 competition; "wide" tables).

Lines may be of unequal length. A table is read this way only where its first column names each line and the others are
plainly steps: without a header, or with one that counts (V1, V2 … or 1, 2 …) or dates them.

Shape legend: n lines, t steps.
"""

from __future__ import annotations

import csv
import re
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from polysense.data.limits import check
from polysense.data.time_series_axis import Times, parse_times

if TYPE_CHECKING:
    import pandas as pd

LEAST = 4  # values of the longest line: fewer make a table of columns
NUMBERED = re.compile(r"[A-Za-z_. ]{0,12}(\d{1,7})")
ID_NAMES = {"id", "ids", "name", "names", "series", "series_id", "series_name", "unique_id", "item", "item_id", "key",
            "v1", ""}  # fmt: skip
MISSING = {"", "?", "-", "--", ".", "na", "nan", "null", "missing"}


def lines_table(text: str, delimiter: str, source: str) -> pd.DataFrame | None:
    """Lines of unequal length, or without a header, as a table with the columns "id", "1", "2" …; None for others."""
    import pandas as pd

    head = [row for row in csv.reader(text[:200_000].splitlines()[:20], delimiter=delimiter, skipinitialspace=True)]
    later = [row for row in head[1:] if row]
    if later and (not all(map(_is_line, later)) or _dates([row[0] for row in later]) is not None):
        return None  # a look at the first lines saves splitting a long table
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True) if any(row)]
    named = _is_header(rows)
    body, width = rows[named:], max(map(len, rows))
    if width <= LEAST or not body or not all(map(_is_line, body)) or _dates([row[0] for row in body[:20]]) is not None:
        return None  # short, words among the numbers, or times
    if named and len({len(row) for row in rows}) == 1:
        return None  # the ordinary reader understands it, and `series_in_lines` judges its names
    names = rows[0] if named and len(rows[0]) == width else ["id", *map(str, range(1, width))]
    check("cells", len(body) * width, source)
    values = np.full((len(body), width - 1), np.nan)
    for line, row in zip(values, body, strict=True):
        line[: len(row) - 1] = [np.nan if cell.strip().lower() in MISSING else float(cell) for cell in row[1:]]
    table = pd.DataFrame(values, columns=names[1:])
    table.insert(0, names[0], [row[0] for row in body])
    return table if len(set(names)) == len(names) else None


def series_in_lines(table: pd.DataFrame) -> list[tuple[str, np.ndarray, Times | None]] | None:
    """(id, values (t,), times or None) of each line without what is empty at its ends; None where lines are no series.

    Wants ids of words, each once, and columns of numbers whose names count or date the steps.
    """
    import pandas as pd

    if table.shape[1] <= LEAST or not len(table):
        return None
    ids, numbers = table.iloc[:, 0], table.iloc[:, 1:]
    if pd.api.types.is_numeric_dtype(ids) or pd.api.types.is_datetime64_any_dtype(ids) or not ids.is_unique:
        return None
    names = [str(name) for name in numbers.columns]
    times = None
    years = all(re.fullmatch(r"1[6-9]\d\d|2[01]\d\d", name) for name in names)
    if years or not counted(names):
        times = _dates(names)
        if times is None:
            return None
    if not all(pd.api.types.is_numeric_dtype(kind) for kind in numbers.dtypes) or parse_times(ids) is not None:
        return None
    found = []
    for name, row in zip(ids.astype(str), numbers.to_numpy(np.float64, na_value=np.nan), strict=True):
        known = np.flatnonzero(np.isfinite(row))
        part = slice(known[0], known[-1] + 1) if len(known) else slice(0, 1)
        found.append((name, row[part], None if times is None else times[part]))
    return found


def counted(names: list[str]) -> bool:
    """Whether names end in 1, 2, 3 … (or go on from another number)."""
    found = [NUMBERED.fullmatch(name.strip()) for name in names]
    if len(names) < LEAST or not all(found):
        return False
    numbers = [int(match[1]) for match in found if match]
    return all(after == before + 1 for before, after in pairwise(numbers))


def _is_header(rows: list[list[str]]) -> bool:
    """Whether the first line names the steps and is no series itself."""
    first = rows[0]
    if not all(map(_is_value, first[1:])) or first[0].strip().lower() in ID_NAMES:
        return True
    return counted(first[1:]) and not all(counted(row[1:]) for row in rows[1:])


def _is_line(row: list[str]) -> bool:
    """An id that is no number, and values."""
    return not row or (not _is_value(row[0]) and all(map(_is_value, row[1:])))


def _is_value(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.strip().lower() in MISSING
    return True


def _dates(names: list[str]) -> Times | None:
    import pandas as pd

    times = parse_times(pd.Series(names, dtype="str"))
    return None if times is None or np.isnat(times).any() else times

"""Time series: tables, arrays and `.ts` files -> values on an even time axis.

Rules: rows are sorted by time, rows of equal time averaged, uneven steps laid on an even grid (`even_grid` says how),
missing values stay NaN, infinite ones count as missing, times are UTC without a zone (which stands beside them).

A table may hold columns that are no variates (`time_series_roles`): of covariates whose future is known, of features
that are constant in a series, and one that names the series of a long table.

Shape legend: t steps, c variates, n series, u steps that covariates are given for (u ≥ t), k covariates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from polysense.core.errors import InputError
from polysense.data.time_series_axis import (
    Times,
    calendar_features,
    calendar_marks,
    day_zone,
    even_grid,
    future_times,
    parse_times,
    zone_of,
)
from polysense.data.time_series_files import Arrays, load, source_name
from polysense.data.time_series_lines import series_in_lines
from polysense.data.time_series_roles import PLAIN, Roles, apart, statics_of, tables_of
from polysense.data.time_series_ts import parse_ts

if TYPE_CHECKING:
    from datetime import tzinfo

    import pandas as pd

__all__ = ["SERIES_ENDINGS", "SeriesFrame", "calendar_features", "calendar_marks", "future_times", "read_series",
           "read_series_all"]  # fmt: skip
SERIES_ENDINGS = (".csv", ".tsv", ".txt", ".gz", ".parquet", ".xlsx", ".npz", ".npy", ".ts")
TIME_NAMES = {"time", "times", "date", "dates", "datetime", "timestamp", "timestamps", "date_time", "ds", "ts", "epoch",
              "unix", "year", "month", "week", "day", "period", "quarter", "index", "unnamed: 0", ""}  # fmt: skip
NUMERIC = 0.95  # share of a text column that must parse as numbers


@dataclass(frozen=True, slots=True)
class SeriesFrame:
    """One series of one or more variates on an even time axis.

    Attributes:
        values: (t, c) float64 in the file's own units; NaN where missing.
        times: (t,) datetime64[ns], or None where the source has none.
        names: The c variates.
        freq: pandas offset alias of the step, or None.
        label: Class of the series, where the source says (`.ts`).
        source: For messages.
        known: (u, k) covariates of the t steps and of those after them for which they are given; NaN where missing.
        known_names: The k covariates.
        static: Features of the series as a whole, by name: numbers or words.
        zone: That the source wrote its times in; UTC where their texts carry several offsets; None where none is said,
            and where times are days.
        day_zone: That days, weeks or months were of, where a table's times say one.
    """

    values: np.ndarray
    times: Times | None
    names: list[str]
    freq: str | None = None
    label: str | None = None
    source: str = "<memory>"
    known: np.ndarray | None = None
    known_names: tuple[str, ...] = ()
    static: dict[str, float | str] = field(default_factory=dict)
    zone: tzinfo | None = None
    day_zone: tzinfo | None = None


def read_series(
    source: Any, *, time: str | None = None, columns: Sequence[str] | None = None, roles: Roles = PLAIN
) -> SeriesFrame:
    """Reads one series.

    Args:
        source: Path, bytes or open file of csv (any of `, ; tab space`, with or without header, also .gz), parquet,
            xlsx, npz (arrays "values" and "times", or its only array), npy or ts; or a DataFrame, Series, dict of
            columns, array or tensor (t,) or (t, c), or a `SeriesFrame`. A table whose lines are an id and the values
            of steps that are counted (V1, V2 …), dated or nameless is one series a line (`time_series_lines`).
        time: Name of the time column; None finds it: an index or column of datetimes, a column with a usual name, a
            text column that parses as dates.
        columns: Names of the variates to read, in this order; None reads all numeric ones that hold any number.
        roles: Columns of a table that are no variates.

    Raises:
        InputError: Nothing there to read, no number in it, a named column is absent or empty, or it holds several
            series.
    """
    frames = read_series_all(source, time=time, columns=columns, roles=roles)
    if len(frames) != 1:
        raise InputError(source_name(source), f"it holds {len(frames)} series where one is expected",
                         "read them one by one with read_all or read_series_all")  # fmt: skip
    return frames[0]


def read_series_all(
    source: Any, *, time: str | None = None, columns: Sequence[str] | None = None, roles: Roles = PLAIN
) -> list[SeriesFrame]:
    """All series of a source: several for `.ts`, arrays (n, t, c), tables of one series a line and long tables,
    otherwise one.

    See `read_series`; `columns` chooses among lines by their ids. With `roles.known` a series ends with the last known
    value of its variates, and what comes after it are the covariates of the future.
    """
    name = source_name(source)
    if isinstance(source, SeriesFrame):
        frames = [source]
    else:
        content = load(name, source)
        if isinstance(content, str):
            frames = [SeriesFrame(values, None, _names(values.shape[1]), None, label, f"{name}#{i}")
                      for i, (values, label) in enumerate(parse_ts(name, content))]  # fmt: skip
        elif isinstance(content, Arrays):
            frames = _from_arrays(name, content)
        elif time is None and roles.plain and (lines := series_in_lines(content)) is not None:
            return [_checked(frame) for frame in _from_lines(name, lines, columns)]
        else:
            return [_checked(_from_table(one, table, time, columns, roles))
                    for one, table in tables_of(name, content, roles.series)]  # fmt: skip
        frames = [_with_roles(frame, roles) for frame in frames]
    return [_checked(_chosen(frame, columns)) for frame in frames]


def _names(count: int) -> list[str]:
    return ["value"] if count == 1 else [f"x{i + 1}" for i in range(count)]


def _with_roles(frame: SeriesFrame, roles: Roles) -> SeriesFrame:
    """A frame of arrays, all of whose names are variates so far."""
    absent = [name for name in (*roles.columns, *roles.static) if name not in frame.names or name in roles.static]
    if absent or roles.series is not None:
        raise InputError(frame.source, f"arrays have no columns such as {absent[0] if absent else roles.series!r}",
                         "give a table")  # fmt: skip
    return apart(frame, roles.covariates(frame.names), {}) if roles.known else frame


def _chosen(frame: SeriesFrame, columns: Sequence[str] | None) -> SeriesFrame:
    if columns is None:
        return frame
    absent = [column for column in columns if column not in frame.names]
    if absent:
        raise _no_such(frame.source, absent, frame.names)
    return replace(frame, names=list(columns), values=frame.values[:, [frame.names.index(c) for c in columns]])


def _no_such(name: str, absent: Sequence[str], present: Sequence[Any]) -> InputError:
    known = ", ".join(map(str, present[:20])) + (" …" if len(present) > 20 else "")
    return InputError(name, f"it has no column {', '.join(map(repr, absent))}", f"name one of: {known}")


def _checked(frame: SeriesFrame) -> SeriesFrame:
    """The frame with infinities as missing, refused where nothing is left."""
    if not frame.values.size:
        raise InputError(frame.source, "the series is empty", "give at least one row of numbers")
    finite = np.isfinite(frame.values)
    if not finite.any():
        raise InputError(frame.source, "no value in it is a number", "give a series with numbers")
    return frame if finite.all() else replace(frame, values=np.where(finite, frame.values, np.nan))


def _from_arrays(name: str, arrays: Arrays) -> list[SeriesFrame]:
    import pandas as pd

    values = arrays.values.astype(np.float64)
    if values.ndim == 3:
        count, names = len(values), arrays.names or _names(values.shape[2])
        labels = arrays.labels if arrays.labels is not None and len(arrays.labels) == count else [None] * count
        return [SeriesFrame(v, None, names, None, label, f"{name}#{i}")
                for i, (v, label) in enumerate(zip(values, labels, strict=True))]  # fmt: skip
    values = values[:, None] if values.ndim == 1 else values
    names = arrays.names if arrays.names and len(arrays.names) == values.shape[1] else _names(values.shape[1])
    if arrays.times is None or not len(values):
        return [SeriesFrame(values, None, names, source=name)]
    if arrays.times.shape != values.shape[:1]:
        problem = f"it has {len(values)} rows of values but times of shape {arrays.times.shape}"
        raise InputError(name, problem, "give one time for each row")
    return [_with_times(name, pd.Series(arrays.times), values, names)]


def _from_lines(
    name: str, lines: Sequence[tuple[str, np.ndarray, Times | None]], columns: Sequence[str] | None
) -> list[SeriesFrame]:
    """A series for each line, or for those that are asked for by their ids."""
    import pandas as pd

    ids = [line[0] for line in lines]
    if columns is not None and (absent := [column for column in columns if column not in ids]):
        raise _no_such(name, absent, ids)
    chosen = lines if columns is None else [lines[ids.index(column)] for column in columns]
    return [
        SeriesFrame(values[:, None], None, [key], source=f"{name}#{key}") if times is None
        else _with_times(f"{name}#{key}", pd.Series(times), values[:, None], [key])
        for key, values, times in chosen
    ]  # fmt: skip


def _with_times(name: str, column: pd.Series, values: np.ndarray, names: list[str]) -> SeriesFrame:
    """Orders and evens out rows; a time column that holds no dates (0, 1, 2 …) only orders them."""
    import pandas as pd

    times = parse_times(column)
    if times is None:
        steps = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
        order = np.argsort(steps, kind="stable") if np.isfinite(steps).all() else np.arange(len(values))
        return SeriesFrame(values[order], None, names, source=name)
    values = np.where(np.isfinite(values), values, np.nan)  # before an infinity spreads to its neighbours
    known = ~np.isnat(times)
    if not known.any():
        raise InputError(name, "its time column is empty", "give a time for each row")
    grid, values, freq = even_grid(name, times[known], values[known])
    return SeriesFrame(values, grid, names, freq, source=name, zone=zone_of(column), day_zone=day_zone(column))


def _from_table(
    name: str, table: pd.DataFrame, time: str | None, columns: Sequence[str] | None, roles: Roles
) -> SeriesFrame:
    import pandas as pd

    if not len(table):
        raise InputError(name, "the series is empty", "give at least one row of numbers")
    column: Any
    index = table.index
    doubled = table.columns[table.columns.map(str).duplicated()]
    if len(doubled):
        raise InputError(name, f"two columns are called {str(doubled[0])!r}", "give each column its own name")
    if time is None and isinstance(index, pd.DatetimeIndex | pd.PeriodIndex):
        column, table = index.to_series().reset_index(drop=True), table.reset_index(drop=True)
    else:
        worded = index.name is None and index.nlevels == 1 and not pd.api.types.is_numeric_dtype(index)
        if (index.name is not None or worded) and index.name not in table.columns:
            table = table.reset_index()
        table = table.reset_index(drop=True).rename(columns=str)
        key = _time_column(name, table, time, [*(columns or ()), *roles.beside(list(table.columns))])
        column, table = (None, table) if key is None else (table[key], table.drop(columns=key))
    table = table.rename(columns=str)
    names = [str(c) for c in columns] if columns is not None else None
    if absent := [c for c in (*(names or ()), *roles.columns) if c not in table.columns]:
        raise _no_such(name, absent, list(table.columns))
    variates = table[names] if names is not None else table.drop(columns=roles.beside(list(table.columns)))
    values, kept = _numbers(name, variates, required=names is not None)
    values, kept = _known(name, values, kept, required=names is not None)
    if covariates := roles.covariates(list(table.columns)):
        if doubly := [c for c in covariates if c in kept]:
            raise InputError(name, f"column {doubly[0]!r} is both to be forecast and known", "give it one of the two")
        beside, found = _known(name, *_numbers(name, table[covariates], required=True), required=True)
        values, kept = np.concatenate([values, beside], 1), [*kept, *found]
    frame = SeriesFrame(values, None, kept, source=name)
    frame = frame if column is None else _with_times(name, column, values, kept)
    return frame if roles.plain and not roles.known else apart(frame, covariates, statics_of(name, table, roles.static))


def _time_column(name: str, table: pd.DataFrame, time: str | None, others: Sequence[str]) -> str | None:
    """The column that holds times: the named one, one of datetimes, one with a usual name, one that reads as dates.

    `others` are columns known to be something else."""
    import pandas as pd

    if time is not None:
        if time not in table.columns:
            raise _no_such(name, [time], list(table.columns))
        if not pd.api.types.is_numeric_dtype(table[time]) and parse_times(table[time]) is None:
            raise InputError(name, f"the time column {time!r} holds no dates", "write dates as 2024-01-31 12:00:00")
        return time
    free = [c for c in table.columns if c not in others]
    for column in free:
        if pd.api.types.is_datetime64_any_dtype(table[column]) or isinstance(table[column].dtype, pd.PeriodDtype):
            return column
    words = [c for c in free if not pd.api.types.is_numeric_dtype(table[c])]
    for column in free:
        # A "year" or "day" that repeats is one part of a date, not the axis.
        if column.strip().lower() in TIME_NAMES and column not in words and _rises(table[column]):
            return column
    named = [c for c in words if c.strip().lower() in TIME_NAMES]
    for column in [*named, *(c for c in words if c not in named)]:
        if parse_times(table[column]) is not None:
            return column
    first = free[0] if free else None
    if first is not None and first not in words and table[first].min() > 3e8 and _rises(table[first]):
        return first if parse_times(table[first]) is not None and len(free) > 1 else None
    return None


def _rises(column: pd.Series) -> bool:
    """Whether numbers could be an axis: all there and (nearly) all different."""
    return bool(column.notna().all()) and column.nunique() > 0.95 * len(column)


def _numbers(name: str, table: pd.DataFrame, required: bool) -> tuple[np.ndarray, list[str]]:
    """Numeric columns (t, c) and their names; others are left out, or refused where they were asked for."""
    import pandas as pd

    kept, arrays, words = [], [], []
    for column, cells in table.items():
        numbers = cells
        if not pd.api.types.is_numeric_dtype(cells):
            is_text = isinstance(cells.dtype, pd.StringDtype) or cells.dtype == object
            numbers = pd.to_numeric(cells, errors="coerce") if is_text else cells
            if not is_text or numbers.notna().sum() < NUMERIC * max(cells.notna().sum(), 1):
                words.append(str(column))
                continue
        kept.append(str(column))
        arrays.append(numbers.to_numpy(np.float64, na_value=np.nan))
    if (required and words) or not arrays:
        held = f"{', '.join(words[:5])} {'hold' if len(words) > 1 else 'holds'} text" if words else "it has no columns"
        raise InputError(name, f"no series of numbers was found ({held})" if not required else held,
                         "give columns of numbers")  # fmt: skip
    return np.stack(arrays, 1), kept


def _known(name: str, values: np.ndarray, names: list[str], required: bool) -> tuple[np.ndarray, list[str]]:
    """Without columns that hold no number at all, of which nothing can be told; refused where they were asked for."""
    held = np.isfinite(values).any(0)
    if required and not held.all():
        empty = ", ".join(repr(column) for column, any_held in zip(names, held, strict=True) if not any_held)
        raise InputError(name, f"no value in column {empty} is a number", "fill it, or leave it out")
    if held.all() or not held.any():
        return values, names
    return values[:, held], [column for column, any_held in zip(names, held, strict=True) if any_held]

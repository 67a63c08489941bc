"""Which rows of a file the steps of a series were made of, and what was known of a series before each of its steps: an
even axis fills steps from rows on both sides (`even_grid`).

Shape legend: t steps of a series, c variates, u rows of a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Bool, Float

from polysense.core.errors import InputError
from polysense.data.time_series import SeriesFrame, read_series_all
from polysense.data.time_series_axis import Times, even_grid, parse_times, zone_of
from polysense.data.time_series_files import Arrays, load, source_name
from polysense.data.time_series_lines import series_in_lines
from polysense.data.time_series_roles import PLAIN, Roles, tables_of

if TYPE_CHECKING:
    from datetime import tzinfo

    import pandas as pd

WITHIN = 0.5 + 1e-6  # steps from a row at which a step still stands for it


@dataclass(frozen=True)
class Past:
    """A series of which the values before any step can be had as they were known then."""

    frame: SeriesFrame
    truth: Float[np.ndarray, "t c"]  # NaN where missing, and where no row is near
    newest: Times | None  # (t,) the latest row that each step was made of; None: its own
    zone: tzinfo | None  # of the file's times
    axis: str  # how the file calls them

    def history(self, origin: int, most: int | None = None) -> SeriesFrame:
        """What there was before the origin, the reader's filling included; its last `most` steps."""
        frame, begin = self.frame, 0 if most is None else max(origin - most, 0)
        values = frame.values[begin:origin]
        times = None if frame.times is None else frame.times[begin:origin]
        if self.newest is not None and frame.times is not None:
            late = self.newest[begin:origin] >= frame.times[origin]
            values = np.where(late[:, None], np.nan, values)
        return replace(frame, values=values, times=times)

    def known(self, origin: int) -> Float[np.ndarray, "t c"]:
        """The same without the filling."""
        return np.where(np.isnan(self.truth[:origin]), np.nan, self.history(origin).values)


def read_past(
    source: Any, *, time: str | None = None, columns: Sequence[str] | None = None, roles: Roles = PLAIN
) -> list[Past]:
    """Every series of a source; see `read_series_all` for what it may be and for errors."""
    source = source.read() if hasattr(source, "read") else source  # it is looked at twice
    frames = read_series_all(source, time=time, columns=columns, roles=roles)
    content = None
    if not isinstance(source, SeriesFrame) and any(frame.times is not None for frame in frames):
        content = load(source_name(source), source)
    tables: dict[str, Any] = {}
    if content is not None and roles.series is not None:
        tables = dict(tables_of(source_name(source), cast(Any, content), roles.series))
    found = []
    for frame in frames:
        truth, newest, zone, axis = frame.values, None, None, "time"
        if content is not None and frame.times is not None:
            newest, filled, zone, axis = steps_of_rows(tables.get(frame.source, content), frame, time)
            truth = np.where(filled[:, None], np.nan, truth)
        found.append(Past(frame, truth, newest, zone, axis))
    return found


def in_zone(times: Times, zone: tzinfo | None) -> pd.DatetimeIndex:
    """Times as the file's own clock shows them."""
    import pandas as pd

    index = pd.DatetimeIndex(times)
    return index if zone is None else index.tz_localize("UTC").tz_convert(zone)


def steps_of_rows(
    content: Any, frame: SeriesFrame, time: str | None
) -> tuple[Times, Bool[np.ndarray, " t"], tzinfo | None, str]:
    """What a frame with times was made of.

    Args:
        content: What `time_series_files.load` gives for the source that the frame was read from.
        frame: A series of it.
        time: Name of the time column; None where the reader found it.

    Returns:
        The time (t,) of the latest row that each step was made of, NaT where of none; whether (t,) no row is within
        half a step of it; the zone of the file's times; and the name of their column ("time" where it has none).

    Raises:
        InputError: No column gives the frame's times.
    """
    column, rows, ranks = _rows(content, frame, time)
    return *_made_of(cast(Times, frame.times), rows, ranks), zone_of(column), str(column.name or "time")


def _rows(content: Any, frame: SeriesFrame, time: str | None) -> tuple[pd.Series, Times, Float[np.ndarray, " t"]]:
    """The column of times, those of the rows (u,), and the (fractional) number of the row that each step is."""
    for column in _time_columns(content, frame, time):
        rows = parse_times(column)
        rows = None if rows is None else np.unique(rows[~np.isnat(rows)])
        first, last = cast(Times, frame.times)[[0, -1]]
        month = np.timedelta64(32, "D")
        if rows is None or not len(rows) or abs(rows[0] - first) > month or rows[-1] < last - month:
            continue
        grid, ranks, _ = even_grid(frame.source, rows, np.arange(len(rows), dtype=np.float64)[:, None])
        t = len(cast(Times, frame.times))  # where covariates are known ahead, the file goes on
        if np.array_equal(grid[:t], cast(Times, frame.times)):
            return column, rows, ranks[:t, 0]
    raise InputError(frame.source, "which column holds its times is not plain", "name it as time")


def _time_columns(content: Any, frame: SeriesFrame, time: str | None) -> Iterator[pd.Series]:
    """The columns that may hold the times of the frame that was read from this content."""
    import pandas as pd

    if isinstance(content, Arrays):
        yield pd.Series(content.times)
    elif time is None and (lines := series_in_lines(content)) is not None:
        yield pd.Series(next(times for key, _, times in lines if key == frame.names[0]))
    elif time is None and isinstance(content.index, pd.DatetimeIndex | pd.PeriodIndex):
        yield content.index.to_series()
    else:
        table = content if content.index.name in content.columns else content.reset_index()
        for name, cells in table.items():
            if str(name) == time or (time is None and str(name) not in frame.names):
                yield cells


def _made_of(times: Times, rows: Times, ranks: Float[np.ndarray, " t"]) -> tuple[Times, Bool[np.ndarray, " t"]]:
    """The latest row that each step was made of (NaT: none), and whether no row is within half a step of it."""
    known = np.isfinite(ranks)
    place = np.where(known, ranks, 0)
    left, right = np.floor(place + 1e-6).astype(int), np.ceil(place - 1e-6).astype(int)
    newest = np.where(known, rows[right], np.datetime64("NaT"))
    if len(times) < 2:
        return newest, ~known
    gap = (rows[right] - rows[left]) / np.median(np.diff(times))
    away = np.minimum(place - left, right - place) * gap
    return newest, ~known | (away > WITHIN)

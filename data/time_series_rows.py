"""Which rows of a file the steps of a series were made of: an even axis fills steps from rows on both sides.

Shape legend: t steps of a series, u rows of a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Bool, Float

from polysense.core.errors import InputError
from polysense.data.time_series import SeriesFrame
from polysense.data.time_series_axis import Times, even_grid, parse_times, zone_of
from polysense.data.time_series_files import Arrays
from polysense.data.time_series_lines import series_in_lines

if TYPE_CHECKING:
    from datetime import tzinfo

    import pandas as pd

WITHIN = 0.5 + 1e-6  # steps from a row at which a step still stands for it


def steps_of_rows(
    content: Any, frame: SeriesFrame, time: str | None
) -> tuple[Times, Bool[np.ndarray, " t"], tzinfo | None]:
    """What a frame with times was made of.

    Args:
        content: What `time_series_files.load` gives for the source that the frame was read from.
        frame: A series of it.
        time: Name of the time column; None where the reader found it.

    Returns:
        The time (t,) of the latest row that each step was made of, NaT where of none; whether (t,) no row is within
        half a step of it; and the zone of the file's times.

    Raises:
        InputError: No column gives the frame's times.
    """
    rows, ranks, zone = _rows(content, frame, time)
    return *_made_of(cast(Times, frame.times), rows, ranks), zone


def _rows(content: Any, frame: SeriesFrame, time: str | None) -> tuple[Times, Float[np.ndarray, " t"], tzinfo | None]:
    """Times of a file's rows (u,), the (fractional) number of the row that each step of the frame is, and the zone."""
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
            return rows, ranks[:t, 0], zone_of(column)
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

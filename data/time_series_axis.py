"""Time axes: finding dates in a column, laying samples on an even grid, continuing it, and what the calendar says.

Shape legend: t steps, c variates, h future steps.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from polysense.core.errors import InputError
from polysense.data.limits import check

if TYPE_CHECKING:
    from datetime import tzinfo

    import pandas as pd

DATED = 0.95  # share of a column that must parse as dates
LONGEST_GAP = 3  # steps between neighbours across which values are interpolated
DAY = np.timedelta64(1, "D")
ZONE = r":\d{2}(?:[.,]\d+)?\s*(Z|UTC|[+-]\d{2}(?::?\d{2})?)\s*$"  # what a time's text ends in
EPOCHS = ((1e8, 1e11, "s"), (1e11, 1e14, "ms"), (1e14, 1e17, "us"), (1e17, 1e19, "ns"))
Times = np.ndarray  # datetime64[ns] (t,)


def parse_times(column: pd.Series) -> Times | None:
    """A column as UTC times (NaT where a cell is no date), or None where it is not a column of dates.

    Understands datetimes, date strings of any usual order, years and decimal years (1949.0833), YYYYMMDD
    integers and Unix epochs in s, ms, us or ns. Dates outside 1678-2261 are not times here.
    """
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column):
        return _nanoseconds(column)
    if isinstance(column.dtype, pd.PeriodDtype):
        return _nanoseconds(column.dt.to_timestamp())
    if pd.api.types.is_bool_dtype(column):
        return None
    if pd.api.types.is_numeric_dtype(column):
        return _from_numbers(column.to_numpy(np.float64, na_value=np.nan))
    text = column.astype("str").str.strip().where(column.notna())
    return _from_text(text)


def zone_of(column: pd.Series) -> tzinfo | None:
    """The zone of a column of times; UTC where their texts name several, as on both sides of a clock change; None for
    days, which have none."""
    import pandas as pd

    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return column.dt.tz if day_zone(column) is None else None
    if not (isinstance(column.dtype, pd.StringDtype) or column.dtype == object):
        return None
    said = column.dropna().astype(str).str.extract(ZONE)[0].dropna().unique()
    if not len(said):
        return None
    return pd.Timestamp("2000-01-01T00:00" + (str(said[0]) if len(said) == 1 else "Z")).tz


def day_zone(column: pd.Series) -> tzinfo | None:
    """The zone in whose midnights all times of a column with a zone stand: they are days, weeks or months of it."""
    import pandas as pd

    if not isinstance(column.dtype, pd.DatetimeTZDtype):
        return None
    local = column.dropna().dt.tz_localize(None)
    return column.dt.tz if (local == local.dt.normalize()).all() else None


def to_clock(times: Times, zone: tzinfo | None) -> pd.DatetimeIndex:
    """UTC times as times of a zone; as they are where there is none."""
    import pandas as pd

    index = pd.DatetimeIndex(times)
    return index if zone is None else index.tz_localize("UTC").tz_convert(zone)


def _parsed(times: Times, column: pd.Series) -> float:
    return float((~np.isnat(times)).sum() / max(int(column.notna().sum()), 1))


def _nanoseconds(column: pd.Series) -> Times:
    """UTC (or days, see `day_zone`), without a zone, at the one resolution that the rest of the code counts in."""
    if column.dt.tz is not None:  # days stay days: midnight of Berlin is no evening before
        column = (column if day_zone(column) is not None else column.dt.tz_convert("UTC")).dt.tz_localize(None)
    times = column.to_numpy("datetime64[us]")
    inside = (times > np.datetime64("1678-01-01")) & (times < np.datetime64("2262-01-01"))
    return np.where(inside, times, np.datetime64("NaT")).astype("datetime64[ns]")


def _from_numbers(numbers: np.ndarray) -> Times | None:
    import pandas as pd

    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return None
    low, high, whole = known.min(), known.max(), bool((known == np.round(known)).all())
    if whole and low >= 16780101 and high <= 22611231:
        days = pd.to_datetime(pd.Series(numbers).astype("Int64").astype("str"), format="%Y%m%d", errors="coerce")
        if days.notna().mean() >= DATED:
            return _nanoseconds(days)
    for least, most, unit in EPOCHS:
        if least <= low and high < most:
            return _nanoseconds(pd.to_datetime(pd.Series(numbers), unit=unit, errors="coerce"))  # type: ignore[call-overload]
    if low >= 1678 and high < 2262:
        return _from_years(numbers)
    return None


def _from_years(numbers: np.ndarray) -> Times:
    """1949.0833 -> 1949-02-01: snapped to months where twelfths (or quarters) fit, else to days."""
    months = numbers * 12
    if np.nanmax(np.abs(months - np.round(months))) < 0.05:
        count = np.where(np.isnan(numbers), 0, np.round(months)).astype(np.int64) - 1970 * 12
        times = count.astype("datetime64[M]").astype("datetime64[ns]")
    else:
        days = np.where(np.isnan(numbers), 0, np.round((numbers - 1970) * 365.2425)).astype(np.int64)
        times = days.astype("datetime64[D]").astype("datetime64[ns]")
    times[np.isnan(numbers)] = np.datetime64("NaT")
    return times


def _from_text(text: pd.Series) -> Times | None:
    """The reading of date strings under which most cells parse and, among equals, steps are most even.

    01/02/2020 is January or February: a column read the wrong way jumps back and forth.
    """
    import pandas as pd

    known = text.dropna()
    if len(known) > 400 and _from_text(known.head(200)) is None:
        return None  # a look at the first rows saves guessing at thousands of words
    if not len(known) or not known.head(20).str.contains(r"\d").all():
        return None
    if known.head(20).str.fullmatch(r"\d{4}\s*-?W\d{1,2}").all():  # ISO weeks: their Monday
        weeks = text.str.replace(r"^(\d{4})\s*-?W(\d{1,2})$", r"\1-\2-1", regex=True)
        return _nanoseconds(pd.to_datetime(weeks, format="%G-%V-%u", errors="coerce"))
    if known.head(20).str.fullmatch(r"\d{4}\s*-?Q[1-4]").all():
        quarters = pd.PeriodIndex(text.str.replace(r"\s*-?Q", "Q", regex=True), freq="Q")
        return _nanoseconds(pd.Series(quarters.to_timestamp()))
    ambiguous = bool(re.match(r"\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}", str(known.iloc[0])))
    best, best_key = None, (-1.0, 0.0)
    options: list[dict[str, Any]] = [{}, {"dayfirst": True}] if ambiguous else [{}]
    for option in [*options, {"format": "mixed"}]:
        if best is not None and option and best_key[0] >= 1 and "format" in option:
            break
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas announces that it guesses
            parsed = pd.to_datetime(text, errors="coerce", utc=True, **option)
        times = _nanoseconds(parsed)
        key = (_parsed(times, text), -_unevenness(times))
        if key > best_key:
            best, best_key = times, key
    return best if best_key[0] >= DATED else None


def _unevenness(times: Times) -> float:
    steps = np.diff(times[~np.isnat(times)].astype(np.int64)).astype(np.float64)
    return float(steps.std() / (abs(np.median(steps)) + 1)) if len(steps) else 0.0


def even_grid(source: str, times: Times, values: Float[np.ndarray, "t c"]) -> tuple[Times, np.ndarray, str | None]:
    """Sorts, averages rows of equal time and lays them on an even grid.

    An even axis (also by calendar: months, quarters, years, business days) is kept as it is. Otherwise the step is the
    median one; a grid time takes the straight line between its neighbours where these are at most `LONGEST_GAP` steps
    apart, the nearest row within half a step, or else NaN.

    Returns:
        Times (t,), values (t, c) and the pandas frequency alias (None for a single row).
    """
    import pandas as pd

    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    if (np.diff(times) == np.timedelta64(0)).any():
        mean = pd.DataFrame(values).groupby(times).mean()  # NaN are left out of the mean
        times, values = mean.index.to_numpy("datetime64[ns]"), mean.to_numpy()
    if len(times) < 2:
        return times, values, None
    inferred: Any = pd.infer_freq(pd.DatetimeIndex(times)) if len(times) > 2 else None
    if inferred is not None:
        return times, values, getattr(inferred, "freqstr", inferred)  # later pandas return an offset
    step = np.median(np.diff(times)).astype("timedelta64[ns]")
    grid, freq, exact = _grid(source, times, step)
    check("cells", len(grid) * values.shape[1], source)
    if len(times) == len(grid) and (times == grid).all():
        return times, values, freq
    return grid, _on_grid(times, values, grid, exact), freq


def _grid(source: str, times: Times, step: np.timedelta64) -> tuple[Times, str, np.ndarray]:
    """A grid over the axis, its alias, and places (t,) of the rows on it in (fractional) steps."""
    import pandas as pd
    from pandas.tseries.frequencies import to_offset

    index = pd.DatetimeIndex(times)
    if step >= 27 * DAY:
        months = times.astype("datetime64[M]").astype(np.int64)
        every = int(np.median(np.diff(months)))
        if every and (np.diff(months) % every == 0).all() and (np.diff(months) > 0).all():
            # Month ends stay month ends; any other day stands for its month.
            ends = bool(index.is_month_end.all())
            first = index[0] if ends else index[0].to_period("M").to_timestamp()
            unit = {3: "Q", 12: "Y"}.get(every, "M" if every == 1 else f"{every}M")
            anchor = "-" + first.strftime("%b").upper() if unit in ("Q", "Y") else ""
            freq = unit + ("E" if ends else "S") + anchor
            grid = pd.date_range(first.normalize(), periods=(months[-1] - months[0]) // every + 1, freq=freq)
            return grid.to_numpy("datetime64[ns]"), freq, (months - months[0]) / every
    midnight = (index == index.normalize()).all()
    if step == DAY and midnight and len(index) >= 8 and (index.day_of_week < 5).all():
        grid = pd.bdate_range(index[0], index[-1])
        return grid.to_numpy("datetime64[ns]"), "B", grid.get_indexer(index).astype(np.float64)
    length = pd.Timedelta(step)
    count = int((times[-1] - times[0]) / step + 0.5) + 1
    if count > 20 * len(times) + 1000:
        raise InputError(source, f"its times are too uneven: {len(times)} rows over {count} steps of {length}",
                         "resample it to an even step, or split it at the long gaps")  # fmt: skip
    grid = times[0] + np.arange(count) * step
    freq = to_offset(length).freqstr
    if step % DAY == np.timedelta64(0):
        weekly = length.days == 7
        freq = "W-" + index[0].strftime("%a").upper() if weekly else to_offset(f"{length.days}D").freqstr
    return grid, freq, (times - times[0]) / step


def _on_grid(times: Times, values: np.ndarray, grid: Times, places: np.ndarray) -> np.ndarray:
    """Values at 0, 1, 2 … from rows at ascending `places`."""
    at = np.arange(len(grid), dtype=np.float64)
    right = np.clip(np.searchsorted(places, at), 0, len(places) - 1)
    left = np.clip(np.where(places[right] <= at, right, right - 1), 0, None)
    gap = places[right] - places[left]
    share = np.clip((at - places[left]) / np.where(gap > 0, gap, 1), 0, 1)[:, None]
    # A missing neighbour of weight nothing must not make a present value missing.
    line = np.where(share == 0, values[left], np.where(share == 1, values[right], 0))
    inside = (share > 0) & (share < 1)
    line = np.where(inside, (1 - share) * values[left] + share * values[right], line)
    nearest = np.where((at - places[left] <= places[right] - at)[:, None], values[left], values[right])
    near = np.minimum(abs(at - places[left]), abs(places[right] - at)) < 0.5
    far = np.where(near[:, None], nearest, np.nan)
    return np.where((gap <= LONGEST_GAP)[:, None], line, far)


def future_times(times: Times | None, freq: str | None, h: int, zone: tzinfo | None = None) -> list[str]:
    """Names of the h steps after the last one: ISO times, with the offset of a zone where one is given, or "1" … "h"
    where the series has none."""
    if times is None or freq is None or not len(times):
        return [str(i) for i in range(1, h + 1)]
    index = to_clock(times_after(times, freq, h), zone)
    if zone is not None:
        return [t.isoformat() for t in index]
    return [t.isoformat() for t in index] if (index != index.normalize()).any() else list(index.strftime("%Y-%m-%d"))


def times_after(times: Times, freq: str, h: int) -> Times:
    """The h steps after the last one."""
    import pandas as pd

    index = pd.date_range(times[-1], periods=h + 2, freq=freq)
    return index[index > times[-1]][:h].to_numpy("datetime64[ns]")


def calendar_features(times: Times | None, length: int = 0) -> Float[np.ndarray, "t 8"]:
    """Sine and cosine of the hour of the day, day of the week, day of the month and month of the year, in this order.

    What is finer than the step says nothing and is zero (hours of daily data); all is zero for `length` steps
    without times.
    """
    if times is None:
        return np.zeros((length, 8), np.float32)
    turns = _turns(times)
    step = abs(np.median(np.diff(times))) if len(times) > 1 else np.timedelta64(0)  # a reversed axis has the same one
    told = np.array([step < DAY, step < 7 * DAY, step < 28 * DAY, step < 364 * DAY])
    angles = 2 * np.pi * turns
    code = np.stack([np.sin(angles), np.cos(angles)], -1) * told[:, None]
    return code.reshape(len(times), 8).astype(np.float32)


def calendar_marks(times: Times | None, length: int = 0) -> Float[np.ndarray, "t 4"]:
    """Month, day, weekday and hour, each scaled to -.5 … .5 (the time features of Informer and Meta-Transformer)."""
    if times is None:
        return np.zeros((length, 4), np.float32)
    return (_turns(times)[:, ::-1][:, [0, 1, 2, 3]] - 0.5).astype(np.float32)


def _turns(times: Times) -> Float[np.ndarray, "t 4"]:
    """How far the day, week, month and year have gone, 0..1. Weeks begin on Monday."""
    day, month, year = (times.astype(f"datetime64[{unit}]") for unit in "DMY")
    hour = (times - day) / DAY
    weekday = (day.astype(np.int64) + 3) % 7 / 7  # 1970-01-01 was a Thursday
    monthday = (day - month.astype("datetime64[D]")) / DAY / 31
    months = (month - year.astype("datetime64[M]")) / np.timedelta64(1, "M") / 12
    return np.stack([hour, weekday, monthday, months], -1)

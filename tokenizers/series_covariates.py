"""The effect of covariates whose future is known: promotions, holidays, weather that is forecast, the calendar.

The effect is a sum of smooth functions of the covariates (an additive model, Hastie & Tibshirani 1990), solved in
closed form once. It is taken out of the history before that becomes tokens and added to the forecast: a regression
whose errors are a time series. The tokens' path stays as it is, and what they forecast is what covariates leave over.

Shape legend: t steps, u steps that covariates are given for, k covariates, f functions of them, c variates, m blocks of
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from polysense.core.errors import InputError
from polysense.data.time_series import SeriesFrame
from polysense.data.time_series_axis import Times, times_after, to_clock
from polysense.data.time_series_roles import CALENDAR

KNOTS = (0.05, 0.23, 0.41, 0.59, 0.77, 0.95)  # quantiles of a covariate between which its effect is a cubic
DAY, WEEK, YEAR = 1.0, 7.0, 365.2425  # days of a course
HARMONICS = {"day": 6, "daily": 3, "year": 4}  # waves of a course: sine and cosine each
BLOCKS = 5  # of each series in time, by which the strength of the penalty is chosen
STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the penalty, relative to the functions' variances
FOREVER = 1 << 31  # steps ahead of a calendar


@dataclass(frozen=True)
class Covariate:
    """One column as training saw it."""

    name: str
    low: float  # beyond these its effect stays
    high: float
    knots: tuple[float, ...] = ()  # ascending; none: the effect is linear
    daily: bool = False  # the effect is a course over the day: a holiday is a day of another shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "knots", tuple(self.knots))  # lists after JSON

    @classmethod
    def of(cls, name: str, values: Float[np.ndarray, " t"], daily: bool) -> Covariate:
        """Knots at quantiles; a flag, or a column of too few values, has none. `daily`: flags act by the hour."""
        low, high, count = float(values.min()), float(values.max()), len(np.unique(values))
        room = (high - low) / 2  # a line goes on so far beyond what training saw
        knots = np.unique(np.quantile(values, KNOTS))
        smooth = count > len(KNOTS) and len(knots) > 2
        return cls(name, low - room, high + room, tuple(knots.tolist()) if smooth else (), daily and count == 2)

    def functions(self, values: Float[np.ndarray, " u"], times: Times | None) -> Float[np.ndarray, "u f"]:
        """The value and, with knots, a basis of natural cubic splines, which are lines outside (Hastie et al. 2009);
        or the value by itself and with each wave of the day."""
        x = np.clip(values, self.low, self.high)
        if self.daily and times is not None:
            return x[:, None] * np.pad(
                _harmonics(_days(times), HARMONICS["daily"]), ((0, 0), (1, 0)), constant_values=1
            )
        if not self.knots:
            return x[:, None]
        first, last = self.knots[0], self.knots[-1]
        x, knots = (x - first) / (last - first), (np.array(self.knots) - first) / (last - first)
        cubes = np.maximum(x[:, None] - knots, 0) ** 3
        slopes = (cubes[:, :-1] - cubes[:, -1:]) / (1 - knots[:-1])
        return np.concatenate([x[:, None], slopes[:, :-1] - slopes[:, -1:]], 1)


@dataclass(frozen=True)
class Effect:
    """What covariates add to each variate; plain values, for JSON."""

    covariates: tuple[Covariate, ...]
    courses: tuple[str, ...]  # of the calendar: "day", "week", "year"
    mean: tuple[float, ...]  # (f,) of the functions in training: where the effect is nothing
    names: tuple[str, ...]  # the c variates
    weights: tuple[tuple[float, ...], ...]  # (c, f)
    relative: bool = False  # in deviations of each series, as where several teach; a variate of no name gets the mean

    def __post_init__(self) -> None:
        read = (one if isinstance(one, Covariate) else Covariate(**one) for one in self.covariates)
        object.__setattr__(self, "covariates", tuple(read))
        for name in ("courses", "mean", "names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "weights", tuple(map(tuple, self.weights)))

    @cached_property
    def _arrays(self) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, "c1 f"]]:
        """Means, and the weights with those of a variate of no name in the end."""
        mean, weights = np.array(self.mean), np.array(self.weights).reshape(len(self.names), len(self.mean))
        usual = weights.mean(0) if self.relative else np.zeros(len(mean))
        return mean, np.concatenate([weights, usual[None]])

    def at(self, frame: SeriesFrame, begin: int, end: int, ahead: int) -> Float[np.ndarray, "u c"]:
        """The effect from step `begin` on, up to `end` and as far ahead of it as asked and known.

        Raises:
            InputError: A covariate is missing, or the calendar is wanted of a series without times.
        """
        stop = end + min(ahead, self.known_ahead(frame, end)[0])
        told = _functions(frame, begin, stop, self.covariates, self.courses) - self._arrays[0]
        rows = [self.names.index(name) if name in self.names else -1 for name in frame.names]
        # What is missing says nothing.
        effect = np.nan_to_num(told) @ self._arrays[1][rows].T
        return effect * _deviation(frame.values[:end]) if self.relative else effect

    def known_ahead(self, frame: SeriesFrame, end: int) -> tuple[int, str]:
        """For how many steps after the first `end` ones all covariates are known, and the column that says least."""
        least, which = FOREVER, ""
        for covariate in self.covariates:
            seen = np.isfinite(_column(frame, covariate.name))
            steps = max(len(seen) - int(seen[::-1].argmax()) - end, 0) if seen.any() else 0
            if steps < least:
                least, which = steps, covariate.name
        return least, which

    def check(self, frame: SeriesFrame, wanted: int = 1) -> None:
        """Makes sure that covariates are known for so many steps after the last value.

        Raises:
            InputError: They are not.
        """
        steps, name = self.known_ahead(frame, len(frame.values))
        if steps < wanted:
            count = f"{steps} step{'' if steps == 1 else 's'}"
            raise InputError(frame.source, f"column {name!r} is known for {count} after the last value where {wanted} "
                             f"{'is' if wanted == 1 else 'are'} needed",
                             f"add rows with {name} filled in and {', '.join(frame.names[:3])} left empty")  # fmt: skip


def fit_effect(frames: Sequence[SeriesFrame], known: Sequence[str], span: int) -> Effect:
    """Learns the effect of columns, and of the calendar where that is named and no column.

    Against slow changes of level, which a forecaster sees for itself, values and functions are taken as they differ
    from their mean over a `span` of steps around each. The daily and weekly course is allowed for in any case, so that
    a covariate is not given what the clock does.

    Raises:
        InputError: A column is missing, or the calendar is wanted of series without times.
    """
    columns = [name for name in known if name != CALENDAR or name in frames[0].known_names]
    courses, wanted = _courses(frames), len(columns) < len(known)
    if wanted and any(frame.times is None for frame in frames):
        raise InputError(frames[0].source, "its rows have no times, which the calendar needs", "name the time column")
    joined = {name: np.concatenate([_column(frame, name)[: len(frame.values)] for frame in frames]) for name in columns}
    covariates = []
    for name, values in joined.items():
        values = values[np.isfinite(values)]
        if not len(values):
            raise InputError(frames[0].source, f"column {name!r} is empty in the training part", "fill it")
        covariates.append(Covariate.of(name, values, "day" in courses))
    told = [_functions(frame, 0, len(frame.values), covariates, courses) for frame in frames]
    mean = np.nan_to_num(np.nanmean(np.concatenate(told), 0))
    told = [np.nan_to_num(x - mean) for x in told]
    own = told[0].shape[1] if wanted else _functions(frames[0], 0, 1, covariates, ()).shape[1]
    names = tuple(dict.fromkeys(name for frame in frames for name in frame.names))
    moved = [_without_level(x, span) for x in told]
    weights = []
    for name in names:
        rows = [(x, _without_level(frame.values[:, frame.names.index(name)], span)) for x, frame in zip(moved, frames)
                if name in frame.names]  # fmt: skip
        units = [_deviation(frame.values[:, [frame.names.index(name)]])[0] for frame in frames if name in frame.names]
        solved = _ridge([(x, y / unit) for (x, y), unit in zip(rows, units, strict=True)])[:own]
        weights.append(tuple((solved * (1.0 if len(frames) > 1 else units[0])).tolist()))
    return Effect(tuple(covariates), courses if wanted else (), tuple(mean[:own].tolist()), names, tuple(weights),
                  len(frames) > 1)  # fmt: skip


def _column(frame: SeriesFrame, name: str) -> Float[np.ndarray, " u"]:
    if frame.known is None or name not in frame.known_names:
        raise InputError(frame.source, f"it lacks the known column {name!r}", "give the columns of the training data")
    return frame.known[:, frame.known_names.index(name)]


def _functions(
    frame: SeriesFrame, begin: int, stop: int, covariates: Sequence[Covariate], courses: Sequence[str]
) -> Float[np.ndarray, "u f"]:
    """All functions at the steps from `begin` to `stop`, those of the covariates first; NaN where one is missing."""
    times = None
    if courses or any(one.daily for one in covariates):
        times = _times(frame, begin, stop)
    parts = [one.functions(_column(frame, one.name)[begin:stop], times) for one in covariates]
    if courses and times is not None:
        parts.append(_waves(times, courses))
    return np.concatenate(parts, 1) if parts else np.zeros((stop - begin, 0))


def _times(frame: SeriesFrame, begin: int, stop: int) -> Times:
    """Times of steps, those after the series too; NaT where a single row has no step to go on by."""
    if frame.times is None:
        raise InputError(frame.source, "its rows have no times, which the calendar needs", "name the time column")
    times = frame.times[begin:stop]
    if (more := stop - len(frame.times)) > 0 and frame.freq is not None:
        times = np.concatenate([times, times_after(frame.times, frame.freq, more)])
    times = np.pad(times, (0, stop - begin - len(times)), constant_values=np.datetime64("NaT"))
    # People go by their own clock, summer time included.
    return times if frame.zone is None else to_clock(times, frame.zone).tz_localize(None).to_numpy("datetime64[ns]")


def _days(times: Times) -> Float[np.ndarray, " u"]:
    """Since 1970; NaN for NaT."""
    return (times - np.datetime64(0, "D")) / np.timedelta64(1, "D")


def _courses(frames: Sequence[SeriesFrame]) -> tuple[str, ...]:
    """Courses that are coarser than the step and that training saw twice."""
    found = []
    for name, days in (("day", DAY), ("week", WEEK), ("year", YEAR)):
        times = [frame.times for frame in frames if frame.times is not None and len(frame.times) > 2]
        spans = [(one[-1] - one[0]) / np.timedelta64(1, "D") for one in times]
        steps = [np.median(np.diff(one)) / np.timedelta64(1, "D") for one in times]
        if times and max(spans) >= 2 * days * 0.99 and max(steps) < days:
            found.append(name)
    return tuple(found)


def _waves(times: Times, courses: Sequence[str]) -> Float[np.ndarray, "u f"]:
    """Waves of the day (of weekdays and weekends apart, with "week"), each day of the week, waves of the year."""
    days = _days(times)
    weekday = np.where(np.isnan(days), 0, (np.floor(days) + 3) % 7).astype(np.int64)  # 1970-01-01 was a Thursday
    weekend = (weekday > 4).astype(np.float64)[:, None]
    parts: list[np.ndarray] = []
    if "day" in courses:
        day = _harmonics(days, HARMONICS["day"])
        parts += [day * (1 - weekend), day * weekend] if "week" in courses else [day]
    if "week" in courses:
        parts += [weekend, np.eye(7)[weekday]]
    if "year" in courses:
        parts.append(_harmonics(days / YEAR, HARMONICS["year"]))
    told = np.concatenate(parts, 1) if parts else np.zeros((len(times), 0))
    return np.where(np.isnan(days)[:, None], np.nan, told)


def _harmonics(turns: Float[np.ndarray, " u"], count: int) -> Float[np.ndarray, "u f"]:
    angles = 2 * np.pi * np.outer(turns, np.arange(1, count + 1))
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)


def _without_level(x: np.ndarray, span: int) -> np.ndarray:
    """Less the mean of what is known in a span of steps around each."""
    import pandas as pd

    table = pd.DataFrame(x)
    moved = table - table.rolling(span, center=True, min_periods=1).mean()
    return moved.to_numpy().reshape(x.shape)


def _deviation(values: Float[np.ndarray, "t c"]) -> Float[np.ndarray, " c"]:
    """Of what is known of each variate; 1 where it stands still."""
    seen = np.isfinite(values)
    count = np.maximum(seen.sum(0), 1)
    middle = np.where(seen, values, 0).sum(0) / count
    spread = np.sqrt((np.where(seen, values - middle, 0) ** 2).sum(0) / count)
    return np.where(spread > 1e-9 * (np.abs(middle) + 1e-300), spread, 1.0)


def _ridge(series: Sequence[tuple[Float[np.ndarray, "t f"], Float[np.ndarray, " t"]]]) -> Float[np.ndarray, " f"]:
    """The ridge regression of all series, its strength chosen by blocks of time that are foretold from the others;
    nothing where no strength foretells them better than nothing."""
    grams, crosses, powers = [], [], []
    for x, y in series:
        for rows in np.array_split(np.flatnonzero(np.isfinite(y)), BLOCKS):
            grams.append(x[rows].T @ x[rows])
            crosses.append(x[rows].T @ y[rows])
            powers.append(float(y[rows] @ y[rows]))
    gram, cross = np.sum(grams, 0), np.sum(crosses, 0)
    scale = gram.diagonal()
    usable = scale > 1e-9 * max(float(scale.max(initial=0)), 1e-300)
    best, kept = sum(powers), np.zeros(len(gram))
    if not usable.any():
        return kept
    for strength in STRENGTHS:
        # In variances of each function, so that units do not matter.
        penalty = np.diag(np.where(usable, strength * scale, 1.0))
        error = 0.0
        for m in range(BLOCKS):
            held = range(m, len(grams), BLOCKS)
            less, without = sum(grams[i] for i in held), sum(crosses[i] for i in held)
            solved = np.linalg.solve(gram - less + penalty, cross - without) * usable
            error += sum(powers[i] for i in held) - 2 * solved @ without + solved @ less @ solved
        if error < best:
            best, kept = error, np.linalg.solve(gram + penalty, cross) * usable
    return kept

"""Imputation: gaps of series filled by forecasts from both sides.

A gap is forecast from what lies before it and, with time reversed, from what lies after it; between the ends the two
are mixed by distance. Beside that stand the straight line and the values a season before and after, which serve smooth
and strictly seasonal series better: how much of each suits a length of gap, the known values of the same series say,
which are hidden and filled on trial.

Shape legend: t steps of a series, c variates, g steps of a gap.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.optimize import nnls

from polysense.data.time_series import SeriesFrame
from polysense.data.time_series_rows import Past, in_zone, read_past
from polysense.heads.local_forecasts import find_seasons
from polysense.histories import forecast_histories, steps_asked
from polysense.pipeline import Pipeline
from polysense.tokenizers.time_series import TimeSeriesTokenizer

LEAST = 8  # known values on a side before it is forecast from
UNTRIED = (0.5, 0.5, 0.0)  # forecast, line, season: where no trial fits into the series
SEASONS = 8  # seasons that are looked back and ahead
RECENT = 5000  # last known values in which a season is looked for
SURE = 1e3  # weight of the sum of weights in their least squares
TRIALS = 8  # gaps made on trial for each class of lengths (1, 2, 3-4, 5-8 …) and variate


@dataclass(frozen=True)
class Gap:
    """Steps of one variate to fill."""

    variate: int
    begin: int  # first step
    end: int  # after the last step

    @property
    def length(self) -> int:
        return self.end - self.begin

    @property
    def size(self) -> int:
        """Its class: lengths up to 2 ** size, and over half of that."""
        return math.ceil(math.log2(self.length))


def impute(
    pipeline: Pipeline,
    source: Any,
    *,
    time: str | None = None,
    columns: str | Sequence[str] | None = None,
    batch_size: int = 16,
) -> pd.DataFrame:
    """The series of a source without gaps.

    What is missing: cells without a number, and steps that the file has no row for. At an end of a series a gap is
    filled from the one side that there is. A gap longer than the horizon is forecast block by block, each from what
    the ones before it said.

    Args:
        pipeline: A forecaster.
        source: What `read_series_all` takes: path, DataFrame, array …
        time: Name of the time column; None as the pipeline was trained, or found.
        columns: Variates, as names or "a, b"; None as the pipeline was trained, or all.
        batch_size: Sequences that run together.

    Returns:
        A row for each step of the even axis: the time under the file's own name and in its zone (the index, where a
        DataFrame came with one), the variates, and "filled": the names of those that were missing in this row, with
        commas, or "". Several series stand below each other, with a column "series" before; a variate that each has
        one of by another name is called "value" there.

    Raises:
        InputError: The pipeline is no forecaster, or the source cannot be read.
    """
    h = steps_asked(pipeline, None)
    config = cast(TimeSeriesTokenizer, pipeline.tokenizer).config
    time = config.time if time is None else time
    names = [name.strip() for name in columns.split(",")] if isinstance(columns, str) else columns
    pasts = read_past(source, time=time, columns=config.columns if names is None else names)
    table = _table(pasts, [_fill(pipeline, past, h, batch_size) for past in pasts])
    indexed = isinstance(getattr(source, "index", None), pd.DatetimeIndex | pd.PeriodIndex) and time is None
    return table.set_index(pasts[0].axis).rename_axis(source.index.name) if indexed and len(pasts) == 1 else table


def gaps_of(values: Float[np.ndarray, " t"], variate: int) -> list[Gap]:
    """Every stretch without a value."""
    edges = np.flatnonzero(np.diff(np.r_[False, np.isnan(values), False]))
    return [Gap(variate, int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def _fill(pipeline: Pipeline, past: Past, h: int, batch_size: int) -> Float[np.ndarray, "t c"]:
    """The values with every gap filled."""
    truth, frame = past.truth, replace(past.frame, values=past.truth)
    gaps = [gap for i, column in enumerate(truth.T) for gap in gaps_of(column, i)]
    tries = [gap for key in sorted({(gap.variate, gap.size) for gap in gaps}) for gap in trials(truth, *key)]
    seasons = {i: _season(truth[:, i]) for i in {gap.variate for gap in gaps}}
    forecasts = _both_sides(pipeline, frame, [*gaps, *tries], h, batch_size)
    ways = [np.stack([forecast, straight(truth, gap), seasonal(truth, gap, seasons[gap.variate])])
            for gap, forecast in zip([*gaps, *tries], forecasts)]  # fmt: skip
    weights = _weights(truth, tries, ways[len(gaps) :])
    out = truth.copy()
    for gap, way in zip(gaps, ways):
        # At an end of the series a line has nowhere to go.
        ended = gap.begin == 0 or gap.end == len(out)
        weight = np.array([1.0, 0.0, 0.0]) if ended else weights.get((gap.variate, gap.size), np.array(UNTRIED))
        out[gap.begin : gap.end, gap.variate] = way[1] if np.isnan(way).any() else weight @ way
    return out


def _season(values: Float[np.ndarray, " t"]) -> int:
    """The strongest season of what is known; 1 where there is none."""
    seen = np.flatnonzero(np.isfinite(values))[-RECENT:]
    return find_seasons(np.interp(np.arange(seen[0], seen[-1] + 1), seen, values[seen]))[1] if len(seen) else 1


def trials(truth: Float[np.ndarray, "t c"], variate: int, size: int) -> list[Gap]:
    """Gaps to make among the known values of a variate, of a length that stands for the class, spread evenly."""
    g = max(round(0.75 * 2**size), 1)
    before = np.cumsum(np.r_[0, np.isfinite(truth[:, variate])])  # known values before each row
    starts = np.arange(LEAST, len(truth) - g - LEAST + 1)
    starts = starts[before[starts + g + 1] - before[starts - 1] == g + 2]  # and a known one on either side
    chosen = starts[np.unique(np.linspace(0, len(starts) - 1, TRIALS).round().astype(int))] if len(starts) else starts
    return [Gap(variate, begin, begin + g) for begin in chosen.tolist()]


def straight(truth: Float[np.ndarray, "t c"], gap: Gap) -> Float[np.ndarray, " g"]:
    """The line between the values on both sides of a gap; the one that there is, at an end of the series."""
    ends = [gap.begin - 1, gap.end]
    there = [end for end in ends if 0 <= end < len(truth)]
    if not there:
        return np.full(gap.length, np.nan)
    return np.interp(np.arange(gap.begin, gap.end), there, truth[there, gap.variate])


def seasonal(truth: Float[np.ndarray, "t c"], gap: Gap, m: int) -> Float[np.ndarray, " g"]:
    """The mean of the nearest values whole seasons before and after the gap; the line where there are none."""
    out = straight(truth, gap)
    for k in range(gap.begin, gap.end) if m > 1 else ():
        first = k - math.ceil((k - gap.begin + 1) / m) * m
        sides = [truth[first::-m, gap.variate] if first >= 0 else truth[:0, gap.variate],
                 truth[k + math.ceil((gap.end - k) / m) * m :: m, gap.variate]]  # fmt: skip
        known = np.concatenate([side[:SEASONS][np.isfinite(side[:SEASONS])][:1] for side in sides])
        out[k - gap.begin] = known.mean() if len(known) else out[k - gap.begin]
    return out


def _weights(
    truth: Float[np.ndarray, "t c"], tries: Sequence[Gap], ways: Sequence[Float[np.ndarray, "3 g"]]
) -> dict[tuple[int, int], Float[np.ndarray, " 3"]]:
    """How much of each way suits each variate and class of lengths: least squares on trials, positive, 1 in sum."""
    rows: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for gap, way in zip(tries, ways):
        if not np.isnan(way).any():
            rows[gap.variate, gap.size].append((way.T, truth[gap.begin : gap.end, gap.variate]))
    found = {}
    for key, pairs in rows.items():
        x, y = np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])
        unit = np.abs(x - y[:, None]).max()
        if unit > 0:
            # With weights of 1 in sum, what is left over is the weighted sum of the single ways' errors.
            left = np.r_[(x - y[:, None]) / unit, np.full((1, 3), SURE)]
            weight, _ = nnls(left, np.r_[np.zeros(len(y)), SURE])
            found[key] = weight / weight.sum()
    return found


def _both_sides(
    pipeline: Pipeline, frame: SeriesFrame, gaps: Sequence[Gap], h: int, batch_size: int
) -> list[Float[np.ndarray, " g"]]:
    """Forecasts of gaps from the left and the right, mixed by distance; NaN where neither side has enough to say."""
    t = len(frame.values)
    back = replace(frame, values=frame.values[::-1], times=None if frame.times is None else frame.times[::-1])
    mirrored = [Gap(gap.variate, t - gap.end, t - gap.begin) for gap in gaps]
    left = _one_side(pipeline, frame, gaps, h, batch_size)
    right = [steps[::-1] for steps in _one_side(pipeline, back, mirrored, h, batch_size)]
    return [_mixed(before, after, gap.length) for before, after, gap in zip(left, right, gaps)]


def _mixed(left: np.ndarray, right: np.ndarray, g: int) -> Float[np.ndarray, " g"]:
    if not len(left) or not len(right):
        return left if len(left) else right if len(right) else np.full(g, np.nan)
    near = np.arange(1, g + 1) / (g + 1)
    return (1 - near) * left + near * right


def _one_side(
    pipeline: Pipeline, frame: SeriesFrame, gaps: Sequence[Gap], h: int, batch_size: int
) -> list[Float[np.ndarray, " g"]]:
    """Forecasts of gaps from what lies before each; empty where that is too little."""
    context = cast(TimeSeriesTokenizer, pipeline.tokenizer).config.context
    told = [np.empty(0) for _ in gaps]
    pending = []
    for k, gap in enumerate(gaps):
        before = frame.values[max(gap.begin - context, 0) : gap.begin, gap.variate]
        if np.isfinite(before).sum() >= LEAST:
            pending.append(k)
    while pending:
        histories = (_history(frame, gaps[k], told[k], context) for k in pending)
        for k, answer in zip(pending, forecast_histories(pipeline, histories, h, batch_size)):
            told[k] = np.concatenate([told[k], answer.mean[:, 0]])[: gaps[k].length]
        pending = [k for k in pending if len(told[k]) < gaps[k].length]
    return told


def _history(frame: SeriesFrame, gap: Gap, told: Float[np.ndarray, " n"], context: int) -> SeriesFrame:
    """What stands before a gap in its variate, and what has been forecast of the gap so far."""
    end = gap.begin + len(told)
    begin = max(end - context, 0)
    values = np.concatenate([frame.values[begin : gap.begin, gap.variate], told])[-context:, None]
    times = None if frame.times is None else frame.times[begin:end]
    return replace(frame, values=values, times=times, names=[frame.names[gap.variate]])


def _table(pasts: Sequence[Past], filled: Sequence[Float[np.ndarray, "t c"]]) -> pd.DataFrame:
    parts = []
    for past, values in zip(pasts, filled):
        frame = past.frame
        names = ["value"] if len(pasts) > 1 and len(frame.names) == 1 else frame.names
        part = pd.DataFrame(values, columns=names)
        new = np.isnan(past.truth) & np.isfinite(values)
        part[_free("filled", names)] = [",".join(name for name, one in zip(names, row) if one) for row in new]
        times = np.arange(len(values)) if frame.times is None else in_zone(frame.times, past.zone)
        part.insert(0, past.axis if frame.times is not None else _free("step", names), times)
        if len(pasts) > 1:
            part.insert(0, _free("series", names), frame.source.rpartition("#")[2])
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _free(name: str, taken: Sequence[str]) -> str:
    """The name, or one with underscores where a variate is called so."""
    while name in taken:
        name += "_"
    return name

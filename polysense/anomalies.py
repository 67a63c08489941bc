"""Anomaly scores: how far each value lies outside the band that was forecast for it from what came before.

A forecaster goes through the series block by block. For values that lie far outside, later blocks are told what was
expected in their place, as in robust exponential smoothing (Gelper, Fried and Croux 2010), so that a fault does not
spoil what is expected after it. Where most of the values around lie outside, the series itself has changed, and they
are kept.

Shape legend: t steps of a series, c variates, h steps of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import uniform_filter1d

from polysense.core.errors import InputError
from polysense.core.predictions import Series
from polysense.data.time_series import SeriesFrame
from polysense.data.time_series_files import source_name
from polysense.data.time_series_rows import Past, in_zone, read_past
from polysense.histories import forecast_histories, steps_asked
from polysense.pipeline import Pipeline
from polysense.tokenizers.time_series import TimeSeriesTokenizer

if TYPE_CHECKING:
    import pandas as pd

STEP = 24  # rows of a block, at most, where none are asked for
LEAST = 24  # known values of a variate before its first score
THRESHOLD = 3.0  # half bands; of normal errors, in a band of 80%, 3.8 deviations
FAULT = 2.0  # score beyond which a value is not believed by later blocks
AROUND = 48  # rows about a value: where half of them are not believed, the series has changed
FLAT = 1e-3  # least half band, in deviations of the history: what is repeated exactly has a band of no width
MOST = 1e6  # largest score: a history that stands still has no deviation either


@dataclass(frozen=True)
class Anomalies:
    """What `anomalies` found.

    Attributes:
        table: A row for each step and variate of each series: source, variate, time, value, expected (the mean), low,
            high (the outermost band) and score. Times are in the file's zone (UTC where it has several), or row
            numbers where it has no times. NaN where nothing was forecast, or no value is there to be scored.
        moments: A row for each stretch of neighbouring values beyond the threshold, the worst first: source, variate,
            start, end, rows, and of its highest score time, value, expected, score.
        threshold: The score beyond which a value counts as an anomaly.
        series: What was scored; NaN where the file has no row.
        skipped: Series that are too short.
    """

    table: pd.DataFrame
    moments: pd.DataFrame
    threshold: float
    series: tuple[SeriesFrame, ...] = field(default=(), repr=False)
    skipped: tuple[str, ...] = ()


def anomalies(
    pipeline: Pipeline,
    source: Any,
    *,
    time: str | None = None,
    columns: str | Sequence[str] | None = None,
    step: int | None = None,
    threshold: float = THRESHOLD,
    robust: bool = True,
    batch_size: int = 16,
    watch: Callable[[int, int], None] | None = None,
) -> Anomalies:
    """Scores every value of every series of a source by forecasts from its past.

    A score is the distance from the forecast median over the half width of the outermost band on that side: 1 at the
    band's edge. Nothing of a value's block or after it changes its score, and a change of the future none before.

    Args:
        pipeline: A forecaster.
        source: What `read_series_all` takes: path, DataFrame, array …
        time: Name of the time column; None as the pipeline was trained, or found.
        columns: Variates, as names or "a, b"; None as the pipeline was trained, or all.
        step: Rows that are forecast at a time, at most as many as the head was trained for: fewer are slower and react
            faster. None: 24, or as many as the pipeline answers.
        threshold: Score beyond which a value is an anomaly.
        robust: Tell later blocks what was expected in the place of values with a score above 2, unless half of the
            values around have one too.
        batch_size: Sequences that run together.
        watch: Told after each round how many blocks are done, and of how many.

    Raises:
        InputError: The pipeline is no forecaster or has no band, a number is out of range, the source cannot be read,
            or no series is long enough.
    """
    h = steps_asked(pipeline, None)
    h = min(h, STEP) if step is None else steps_asked(pipeline, step, "step")
    if not 0 < threshold < MOST:
        raise InputError(f"threshold {threshold:g}", f"it is not between 0 and {MOST:g}", "give a number such as 3")
    levels = sorted(pipeline.head.config.quantiles)
    if not levels or not levels[0] < 0.5 < levels[-1]:
        raise InputError(pipeline.name, "it forecasts no band", "give one with quantiles below and above 0.5")
    config = cast(TimeSeriesTokenizer, pipeline.tokenizer).config
    time = config.time if time is None else time
    names = [name.strip() for name in columns.split(",")] if isinstance(columns, str) else columns
    pasts = read_past(source, time=time, columns=config.columns if names is None else names)
    scored = [_Scored.make(past, robust) for past in pasts if len(past.truth) > LEAST]
    if not scored:
        problem = f"{max(len(past.truth) for past in pasts)} rows are too few: the first {LEAST} are only learnt from"
        raise InputError(source_name(source), problem, "give a longer series")
    _score_blocks(pipeline, scored, h, robust, batch_size, watch)
    table = _table(scored)
    if table["score"].isna().all():
        raise InputError(source_name(source), "no value is known after enough of a past", "give a longer series")
    return Anomalies(
        table, _moments(scored, table, threshold), threshold,
        tuple(replace(one.past.frame, values=one.past.truth) for one in scored),
        tuple(past.frame.source for past in pasts if len(past.truth) <= LEAST),
    )  # fmt: skip


@dataclass(frozen=True)
class _Scored:
    """A series, and what its forecasts say so far."""

    past: Past
    robust: bool  # replace faults in later histories
    expected: Float[np.ndarray, "t c"]
    low: Float[np.ndarray, "t c"]
    high: Float[np.ndarray, "t c"]
    score: Float[np.ndarray, "t c"]

    @classmethod
    def make(cls, past: Past, robust: bool) -> _Scored:
        return cls(past, robust, *(np.full(past.truth.shape, np.nan) for _ in range(4)))

    def history(self, origin: int, most: int) -> SeriesFrame:
        """The last `most` steps before the origin, what was expected in the place of faults."""
        frame, begin = self.past.history(origin, most), max(origin - most, 0)
        if not self.robust:
            return frame
        near = max(begin - AROUND, 0)
        faults = passing(self.score[near:origin] > FAULT)[begin - near :]
        return replace(frame, values=np.where(faults, self.expected[begin:origin], frame.values))

    def take(self, origin: int, answer: Series, history: Float[np.ndarray, "t c"]) -> None:
        """Scores the block from the origin on; nothing where too little was known before."""
        block = slice(origin, min(origin + len(answer.mean), len(self.score)))
        rows = block.stop - origin
        known = np.isfinite(history).sum(0) >= LEAST
        levels = sorted(answer.quantiles)
        low, high = answer.quantiles[levels[0]][:rows], answer.quantiles[levels[-1]][:rows]
        middle = answer.quantiles.get(0.5, answer.mean)[:rows]
        away = self.past.truth[block] - middle
        least = np.nanstd(np.where(known, history, 0.0), 0) * FLAT
        half = np.maximum(np.where(away < 0, middle - low, high - middle), least)
        score = np.divide(np.abs(away), half, out=np.where(away == 0, 0.0, MOST), where=half > 0)
        for into, values in ((self.expected, answer.mean[:rows]), (self.low, low), (self.high, high),
                             (self.score, np.where(np.isnan(away), np.nan, np.minimum(score, MOST)))):  # fmt: skip
            into[block] = np.where(known, values, np.nan)


def passing(beyond: Bool[np.ndarray, "t c"]) -> Bool[np.ndarray, "t c"]:
    """Which of the values that lie far outside are faults that pass: fewer than half of those around do so too."""
    share = uniform_filter1d(beyond.astype(np.float64), AROUND, 0, mode="constant")
    return beyond & (share < 0.5)


def _score_blocks(
    pipeline: Pipeline, scored: Sequence[_Scored], h: int, robust: bool, batch_size: int,
    watch: Callable[[int, int], None] | None,
) -> None:  # fmt: skip
    """Fills in the scores. Of a series a block waits for the one before, which says what to hide; series need not."""
    context = cast(TimeSeriesTokenizer, pipeline.tokenizer).config.context
    cuts = [(one, origin) for one in scored for origin in range(LEAST, len(one.score), h)]
    rounds = [cuts[start : start + batch_size] for start in range(0, len(cuts), batch_size)]
    if robust:
        starts = range(LEAST, max(len(one.score) for one in scored), h)
        rounds = [[(one, origin) for one in scored if origin < len(one.score)] for origin in starts]
    done = 0
    for cuts_now in rounds:
        histories = (one.history(origin, context) for one, origin in cuts_now)
        for (one, origin), answer in zip(cuts_now, forecast_histories(pipeline, histories, h, batch_size)):
            one.take(origin, answer, one.history(origin, context).values)
        done += len(cuts_now)
        if watch is not None:
            watch(done, len(cuts))


def _table(scored: Sequence[_Scored]) -> pd.DataFrame:
    import pandas as pd

    parts = []
    for one in scored:
        frame = one.past.frame
        t, c = one.score.shape
        times = in_zone(frame.times, one.past.zone) if frame.times is not None else np.arange(t)
        column = {"value": one.past.truth, "expected": one.expected, "low": one.low, "high": one.high,
                  "score": one.score}  # fmt: skip
        parts.append(pd.DataFrame({
            "source": frame.source, "variate": np.repeat(np.array(frame.names, object), t),
            "time": times[np.tile(np.arange(t), c)], **{name: values.T.ravel() for name, values in column.items()},
        }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _moments(scored: Sequence[_Scored], table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Stretches of rows beyond the threshold."""
    import pandas as pd

    beyond = (table["score"] > threshold).to_numpy()
    # A new variate begins a new stretch.
    first = np.zeros(len(table), bool)
    first[np.cumsum([0, *(len(one.score) for one in scored for _ in one.past.frame.names)])[:-1]] = True
    number = np.cumsum(beyond & (first | ~np.r_[False, beyond[:-1]]))[beyond]
    found = table[beyond].groupby(number)
    worst = table.loc[found["score"].idxmax()]
    ends = {"start": found["time"].first(), "end": found["time"].last(), "rows": found.size()}
    moments = worst.reset_index(drop=True).drop(columns=["low", "high"])
    for place, (name, values) in enumerate(ends.items()):
        moments.insert(2 + place, name, pd.Series(values.array))
    return moments.sort_values("score", ascending=False, kind="stable", ignore_index=True)

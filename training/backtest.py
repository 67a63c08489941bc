"""Rolling-origin backtests (Tashman 2000): a series is cut at many moments, the origins; what is forecast from each is
compared with what came.

A forecast sees the rows before its origin alone. On an uneven axis the reader fills steps from rows on both sides
(`even_grid`): such a step is no truth to be measured by, and counts as missing before an origin that its later row does
not precede.

Shape legend: t steps of a series, c variates, h steps of a forecast, m steps of a season, u rows of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float

from polysense.core.errors import InputError
from polysense.core.predictions import Series
from polysense.core.types import Sample
from polysense.data.time_series import SeriesFrame, read_series_all
from polysense.data.time_series_axis import Times
from polysense.data.time_series_files import load, source_name
from polysense.data.time_series_roles import roles_of, tables_of
from polysense.data.time_series_rows import steps_of_rows
from polysense.heads.forecast import ForecastHead
from polysense.heads.local_forecasts import find_seasons, repeat_season
from polysense.pipeline import Pipeline
from polysense.roll_out import check_horizon, check_known, roll_out
from polysense.tokenizers.time_series import TimeSeriesTokenizer
from polysense.training.metrics import score

if TYPE_CHECKING:
    from datetime import tzinfo

    import pandas as pd

BASELINES = ("seasonal naive", "repeat last")


@dataclass(frozen=True)
class Backtest:
    """What `backtest` found.

    Attributes:
        metrics: Over all that was forecast, in the series' own units: mse, mae, rmse, smape, mase, and of the quantiles
            crps, coverage, coverage_wanted.
        baselines: The first five of the same steps for "seasonal naive" and "repeat last".
        by_variate: A row for each variate of each series: source, variate, season, values (true ones that counted), the
            metrics, and those of the baselines ("mae_seasonal_naive" …).
        by_origin: The same for each origin of each series.
        forecasts: A row for each step: source, variate, origin, step (1 is the first), time, true, mean and a column
            for each quantile ("q0.1"). Origin and time are time stamps in the file's zone (UTC where it has several),
            or row numbers where it has no times; an origin is the time of its first step.
        series: What was tested; NaN where the file has no row.
        skipped: Series that are too short for a single origin.
    """

    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    by_variate: pd.DataFrame
    by_origin: pd.DataFrame
    forecasts: pd.DataFrame
    series: tuple[SeriesFrame, ...] = field(default=(), repr=False)
    skipped: tuple[str, ...] = ()


def backtest(
    pipeline: Pipeline,
    source: Any,
    *,
    time: str | None = None,
    target: str | Sequence[str] | None = None,
    horizon: int | None = None,
    origins: int = 10,
    step: int | None = None,
    season: int | None = None,
    batch_size: int = 16,
    watch: Callable[[int, int], None] | None = None,
) -> Backtest:
    """Forecasts from the last rolling origins of every series of a source, and measures.

    `mase` is the mean absolute error over that of the seasonal naive forecast of the history before the origin (Hyndman
    and Koehler 2006): below 1 is better than repeating seasons was there. `crps`, the continuous ranked probability
    score, is twice the mean pinball loss over the quantiles' levels. `coverage` is the share of true values inside the
    outermost band. `smape` is in per cent. Missing true values do not count; nor do steps of which the model says
    nothing, since all of its history is missing. Where variates have units of their own, `smape` and `mase` alone mean
    something over all of them.

    Args:
        pipeline: A forecaster.
        source: What `read_series_all` takes: path, DataFrame, array …
        time: Name of the time column; None as the pipeline was trained, or found.
        target: Variates, as names or "a, b"; None as the pipeline was trained, or all.
        horizon: Steps to forecast, any number (see `roll_out`); None as the pipeline answers.
        origins: How many, at most: each has a row before it and `horizon` rows from it on.
        step: Rows between origins; None: the horizon, so that no step is forecast twice.
        season: Steps of a season, for mase and the seasonal naive forecast; None: the strongest of each variate in what
            is before its first origin, 1 (the last value) where there is none.
        batch_size: Sequences that run together.
        watch: Told after each batch how many origins are done, and of how many.

    Raises:
        InputError: The pipeline is no forecaster, a number is out of range, the source cannot be read, not one origin
            fits, or there is nothing to compare with.
    """
    h = _checked_horizon(pipeline, horizon)
    for name, number in {"origins": origins, "step": step, "season": season, "batch size": batch_size}.items():
        if number is not None and number < 1:
            raise InputError(f"{name} {number}", "it is not positive", "give 1 or more")
    config = cast(TimeSeriesTokenizer, pipeline.tokenizer).config
    time = config.time if time is None else time
    names = [name.strip() for name in target.split(",")] if isinstance(target, str) else target
    source = source.read() if hasattr(source, "read") else source  # it is looked at twice
    roles = roles_of(config)
    frames = read_series_all(source, time=time, columns=config.columns if names is None else names, roles=roles)
    places = [list(range(len(frame.values) - h, 0, -(step or h)))[:origins][::-1] for frame in frames]
    if not any(places):
        longest = max(len(frame.values) for frame in frames)
        whose = "it has" if len(frames) == 1 else f"the longest of its {len(frames)} series has"
        problem = f"{whose} {longest} rows where {h + 1} are needed, one of history and {h} to forecast"
        raise InputError(source_name(source), problem, "give a longer series or a shorter horizon")
    content = None
    if not isinstance(source, SeriesFrame) and any(frame.times is not None for frame in frames):
        content = load(source_name(source), source)
    tables: dict[str, Any] = {}
    if content is not None and roles.series is not None:
        tables = dict(tables_of(source_name(source), cast(Any, content), roles.series))
    tested = [_Tested.make(frame, ends, tables.get(frame.source, content), time, season)
              for frame, ends in zip(frames, places) if ends]  # fmt: skip
    table = _table(tested, _forecast(pipeline, tested, h, batch_size, watch), h)
    levels = pipeline.head.config.quantiles
    metrics = _scores(table, "mean", levels)
    if not metrics:
        raise InputError(source_name(source), "no value is known where it could be forecast", "give other columns")
    by_variate = _by(table, ["source", "variate"], levels)
    seasons = {(one.frame.source, name): m for one in tested for name, m in zip(one.frame.names, one.seasons)}
    by_variate.insert(2, "season", [seasons[key] for key in zip(by_variate["source"], by_variate["variate"])])
    return Backtest(
        metrics, {name: _scores(table, name) for name in BASELINES}, by_variate,
        _by(table, ["source", "origin"], levels), table.drop(columns=[*BASELINES, "scale"]),
        tuple(replace(one.frame, values=one.truth) for one in tested),
        tuple(frame.source for frame, ends in zip(frames, places) if not ends),
    )  # fmt: skip


def _checked_horizon(pipeline: Pipeline, horizon: int | None) -> int:
    if pipeline.task.kind != "forecasting":
        raise InputError(pipeline.name, f"it is for {pipeline.task.name}, no forecaster", "give one for forecasting")
    h = cast(ForecastHead, pipeline.head).horizon if horizon is None else horizon
    check_horizon(pipeline, h)
    return h


@dataclass(frozen=True)
class _Tested:
    """A series and where it is cut."""

    frame: SeriesFrame
    origins: list[int]  # rows, ascending
    truth: Float[np.ndarray, "t c"]  # NaN where missing, and where no row is near
    newest: Times | None  # (t,) the latest row that each step was made of; None: its own
    zone: tzinfo | None
    seasons: list[int]  # of the c variates

    @classmethod
    def make(cls, frame: SeriesFrame, origins: list[int], content: Any, time: str | None,
             season: int | None) -> _Tested:  # fmt: skip
        newest, zone, truth = None, None, frame.values
        if content is not None and frame.times is not None:
            newest, filled, zone = steps_of_rows(content, frame, time)
            truth = np.where(filled[:, None], np.nan, truth)
        first = cls(frame, origins, truth, newest, zone, []).known(origins[0])
        seasons = [season or _strongest_season(first[:, i]) for i in range(truth.shape[1])]
        return cls(frame, origins, truth, newest, zone, seasons)

    def history(self, origin: int) -> SeriesFrame:
        """What there was before the origin, the reader's filling included."""
        frame = self.frame
        values, times = frame.values[:origin], None if frame.times is None else frame.times[:origin]
        if self.newest is not None and frame.times is not None:
            late = self.newest[:origin] >= frame.times[origin]
            values = np.where(late[:, None], np.nan, values)
        return replace(frame, values=values, times=times)

    def known(self, origin: int) -> Float[np.ndarray, "t c"]:
        """The same without the filling."""
        return np.where(np.isnan(self.truth[:origin]), np.nan, self.history(origin).values)


def _strongest_season(history: Float[np.ndarray, " t"]) -> int:
    seen = np.flatnonzero(np.isfinite(history))
    if not len(seen):
        return 1
    return find_seasons(np.interp(np.arange(seen[0], len(history)), seen, history[seen]))[1]


def _forecast(
    pipeline: Pipeline, tested: Sequence[_Tested], h: int, batch_size: int, watch: Callable[[int, int], None] | None
) -> list[Series]:
    """A forecast for each origin of each series, in this order."""
    tokenizer = cast(TimeSeriesTokenizer, pipeline.tokenizer)
    cuts = [(one, origin) for one in tested for origin in one.origins]
    answers: list[Series] = []
    waiting: list[list[Sample]] = []
    for i, (one, origin) in enumerate(cuts):
        waiting.append(tokenizer.split(tokenizer.window_sample(one.history(origin), origin)))
        check_known(pipeline, waiting[-1][0], h)
        if sum(map(len, waiting)) >= batch_size or i + 1 == len(cuts):
            answers += roll_out(pipeline, waiting, h, batch_size)
            waiting = []
            if watch is not None:
                watch(i + 1, len(cuts))
    return answers


def _table(tested: Sequence[_Tested], answers: Sequence[Series], h: int) -> pd.DataFrame:
    """A row for each origin, variate and step: `Backtest.forecasts` with the baselines and the scale of mase beside."""
    import pandas as pd

    parts: list[dict[str, Any]] = []
    cuts = [(one, origin) for one in tested for origin in one.origins]
    for (one, origin), answer in zip(cuts, answers, strict=True):
        names, c = one.frame.names, len(one.frame.names)
        rows = np.arange(origin, origin + h)
        times = rows if one.frame.times is None else one.frame.times[rows]
        known = one.known(origin)
        pairs = list(zip(known.T, one.seasons))
        parts.append({
            "source": np.full(c * h, one.frame.source, object), "variate": np.repeat(np.array(names, object), h),
            "origin": np.repeat(times[:1], c * h), "step": np.tile(np.arange(1, h + 1), c), "time": np.tile(times, c),
            "true": one.truth[rows].T.ravel(), "mean": answer.mean.T.ravel(),
            **{f"q{level:g}": values.T.ravel() for level, values in answer.quantiles.items()},
            "seasonal naive": np.concatenate([seasonal_naive(past, m, h) for past, m in pairs]),
            "repeat last": np.concatenate([seasonal_naive(past, 1, h) for past, _ in pairs]),
            "scale": np.repeat([naive_error(past, m) for past, m in pairs], h),
        })  # fmt: skip
    table = pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    for name in ("origin", "time"):
        if tested[0].zone is not None:
            table[name] = table[name].dt.tz_localize("UTC").dt.tz_convert(tested[0].zone)
    return table


def seasonal_naive(history: Float[np.ndarray, " t"], m: int, h: int) -> Float[np.ndarray, " h"]:
    """The last season again and again; for a value that is missing there the one a season (or more) before it, for a
    place in the season of which nothing is known the last value."""
    seasons = np.pad(history, (-len(history) % m, 0), constant_values=np.nan).reshape(-1, m)
    known = np.isfinite(seasons)
    newest = len(seasons) - 1 - known[::-1].argmax(0)
    seen = history[np.isfinite(history)]
    last = seen[-1] if len(seen) else np.nan
    return repeat_season(np.where(known.any(0), seasons[newest, np.arange(m)], last), m, h)


def naive_error(history: Float[np.ndarray, " t"], m: int) -> float:
    """Mean absolute error of the value a season before, over a history; NaN where it is nothing or unknown."""
    wrong = np.abs(history[m:] - history[:-m])
    wrong = wrong[np.isfinite(wrong)]
    return float(wrong.mean()) if wrong.any() else float("nan")


def _scores(table: pd.DataFrame, name: str, levels: Sequence[float] = ()) -> dict[str, float]:
    """Metrics of one of the table's forecasts; empty where no step counts."""
    table = table[_counting(table)]
    if not len(table):
        return {}
    quantiles = {level: table[[f"q{level:g}"]].to_numpy() for level in levels}
    answer = Series(table[[name]].to_numpy(), quantiles, [], [name])
    found = score("forecasting", [answer], [table[["true"]].to_numpy()])
    scaled = ((table[name] - table["true"]).abs() / table["scale"]).mean()  # without unknown scales
    found |= {"mase": float(scaled)} | ({"crps": 2 * found["pinball"]} if levels else {})
    order = ("mse", "mae", "rmse", "smape", "mase", "crps", "coverage", "coverage_wanted")
    return {metric: found[metric] for metric in order if metric in found and not np.isnan(found[metric])}


def _counting(table: pd.DataFrame) -> pd.Series:
    return table["true"].notna() & table["mean"].notna()


def _by(table: pd.DataFrame, keys: list[str], levels: Sequence[float]) -> pd.DataFrame:
    """The metrics of each group, those of the baselines after them."""
    import pandas as pd

    found = []
    for key, part in table.groupby(keys, sort=False):
        row = {**dict(zip(keys, key)), "values": int(_counting(part).sum()), **_scores(part, "mean", levels)}
        for name in BASELINES:
            row |= {f"{metric}_{name.replace(' ', '_')}": value for metric, value in _scores(part, name).items()}
        found.append(row)
    return pd.DataFrame(found)

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
from polysense.data.time_series_files import source_name
from polysense.data.time_series_roles import roles_of
from polysense.data.time_series_rows import Past, read_past
from polysense.heads.local_forecasts import find_seasons, repeat_season
from polysense.histories import forecast_histories, steps_asked
from polysense.pipeline import Pipeline
from polysense.tokenizers.time_series import TimeSeriesTokenizer
from polysense.training.metrics import score

if TYPE_CHECKING:
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
    h = steps_asked(pipeline, horizon)
    for name, number in {"origins": origins, "step": step, "season": season, "batch size": batch_size}.items():
        if number is not None and number < 1:
            raise InputError(f"{name} {number}", "it is not positive", "give 1 or more")
    config = cast(TimeSeriesTokenizer, pipeline.tokenizer).config
    time = config.time if time is None else time
    names = [name.strip() for name in target.split(",")] if isinstance(target, str) else target
    columns = config.columns if names is None else names
    pasts = read_past(source, time=time, columns=columns, roles=roles_of(config))
    frames = [past.frame for past in pasts]
    places = [list(range(len(frame.values) - h, 0, -(step or h)))[:origins][::-1] for frame in frames]
    if not any(places):
        longest = max(len(frame.values) for frame in frames)
        whose = "it has" if len(frames) == 1 else f"the longest of its {len(frames)} series has"
        problem = f"{whose} {longest} rows where {h + 1} are needed, one of history and {h} to forecast"
        raise InputError(source_name(source), problem, "give a longer series or a shorter horizon")
    tested = [_Tested.make(past, ends, season) for past, ends in zip(pasts, places) if ends]
    count = sum(len(one.origins) for one in tested)
    # Covariates stand beside the whole of a series.
    most = None if config.effect is not None else config.context
    histories = (one.history(origin, most) for one in tested for origin in one.origins)
    told = None if watch is None else lambda done: watch(done, count)
    table = _table(tested, forecast_histories(pipeline, histories, h, batch_size, told), h)
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


@dataclass(frozen=True)
class _Tested(Past):
    """A series and where it is cut."""

    origins: list[int]  # rows, ascending
    seasons: list[int]  # of the c variates

    @classmethod
    def make(cls, past: Past, origins: list[int], season: int | None) -> _Tested:
        first = past.known(origins[0])
        seasons = [season or _strongest_season(first[:, i]) for i in range(first.shape[1])]
        return cls(**vars(past), origins=origins, seasons=seasons)


def _strongest_season(history: Float[np.ndarray, " t"]) -> int:
    seen = np.flatnonzero(np.isfinite(history))
    if not len(seen):
        return 1
    return find_seasons(np.interp(np.arange(seen[0], len(history)), seen, history[seen]))[1]


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

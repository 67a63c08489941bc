"""Forecasts from many histories that are already read: what backtests, anomaly scores and imputation share.

Shape legend: t steps of a history, c variates, h steps of a forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from polysense.core.errors import InputError
from polysense.core.predictions import Series
from polysense.core.types import Sample
from polysense.data.time_series import SeriesFrame
from polysense.heads.forecast import ForecastHead
from polysense.pipeline import Pipeline
from polysense.roll_out import check_known, roll_out
from polysense.tokenizers.time_series import TimeSeriesTokenizer


def check_horizon(pipeline: Pipeline, horizon: int | None, called: str = "horizon", beyond: bool = False) -> int:
    """The steps to forecast: those asked for, or as many as the pipeline answers.

    Args:
        pipeline: A forecaster.
        horizon: Steps.
        called: What the caller's users call them.
        beyond: Allow more steps than it was trained for.

    Raises:
        InputError: The pipeline is no forecaster, the number is not positive, or more than it was trained for.
    """
    if pipeline.task.kind != "forecasting":
        raise InputError(pipeline.name, f"it is for {pipeline.task.name}, no forecaster", "give one for forecasting")
    most = pipeline.head.config.horizon
    h = min(cast(ForecastHead, pipeline.head).horizon, most) if horizon is None else horizon
    if beyond and h < 1:
        raise InputError(f"{called} {h}", "it is not positive", "give 1 or more")
    if not beyond and not 1 <= h <= most:
        raise InputError(f"{called} {h}", f"{pipeline.name} forecasts 1 to {most} steps", f"give {most} or fewer")
    return h


def forecast_histories(
    pipeline: Pipeline,
    histories: Iterable[SeriesFrame],
    h: int,
    batch_size: int = 16,
    watch: Callable[[int], None] | None = None,
) -> list[Series]:
    """A forecast of h steps from the end of each history (t, c), in this order.

    Args:
        pipeline: A forecaster.
        histories: Read one after the other as they are needed.
        h: See `check_horizon`.
        batch_size: Sequences that run together.
        watch: Told after each batch how many histories are done.
    """
    tokenizer = cast(TimeSeriesTokenizer, pipeline.tokenizer)
    answers: list[Series] = []
    waiting: list[list[Sample]] = []

    def answer() -> None:
        if waiting:
            answers.extend(roll_out(pipeline, waiting, h, batch_size))
            waiting.clear()
            if watch is not None:
                watch(len(answers))

    for history in histories:
        waiting.append(tokenizer.split(tokenizer.window_sample(history, len(history.values))))
        check_known(pipeline, waiting[-1][0], h)
        if sum(map(len, waiting)) >= batch_size:
            answer()
    answer()
    return answers

"""Forecasts from many histories that are already read: what backtests, anomaly scores and imputation share.

Shape legend: t steps of a history, c variates, h steps of a forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from polysense.core.predictions import Series
from polysense.core.types import Sample
from polysense.data.time_series import SeriesFrame
from polysense.heads.forecast import ForecastHead
from polysense.pipeline import Pipeline
from polysense.roll_out import check_horizon, check_known, roll_out
from polysense.tokenizers.time_series import TimeSeriesTokenizer


def steps_asked(pipeline: Pipeline, horizon: int | None, called: str = "horizon") -> int:
    """The steps to forecast: those asked for, any number, or as many as the pipeline answers.

    Raises:
        InputError: See `check_horizon`; `called` is what the caller's users call the number.
    """
    check_horizon(pipeline, 1 if horizon is None else horizon, called)
    head = cast(ForecastHead, pipeline.head)
    return min(head.horizon, head.config.horizon) if horizon is None else horizon


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
        h: Steps.
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

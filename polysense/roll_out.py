"""Forecasts of any length: beyond the steps that a head was trained for, its own mean is fed back as history.

Each block of steps is a forecast of its own. Its mean is right only as far as the history it was given, so the errors
of blocks add: the distance of a quantile from the mean is the root of the sum of squares of the block's own distance
and of that at the last step of the block before, as variances of independent errors add. A band is never narrower than
at the end of the block before.

Shape legend: t steps of history, h steps, c variates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float

from polysense.core.errors import InputError
from polysense.core.predictions import Series
from polysense.core.types import Sample
from polysense.data.time_series import SeriesFrame, future_times
from polysense.data.time_series_axis import times_after

if TYPE_CHECKING:
    from polysense.heads.forecast import ForecastHead
    from polysense.pipeline import Pipeline
    from polysense.tokenizers.time_series import TimeSeriesTokenizer


def check_horizon(pipeline: Pipeline, horizon: int, called: str = "horizon") -> None:
    """Makes sure that the pipeline can be asked for so many steps.

    Raises:
        InputError: It is no forecaster, or the number is not positive.
    """
    if pipeline.task.kind != "forecasting":
        raise InputError(pipeline.name, f"it is for {pipeline.task.name}, no forecaster", f"leave the {called} out")
    if horizon < 1:
        raise InputError(f"{called} {horizon}", "it is not positive", "give 1 or more")


def check_known(pipeline: Pipeline, sample: Sample, horizon: int) -> None:
    """Makes sure that covariates, where the pipeline wants some, are known for so many steps after a sample.

    Raises:
        InputError: They are not.
    """
    effect = cast("TimeSeriesTokenizer", pipeline.tokenizer).config.effect
    if effect is not None:
        effect.check(_history(sample), horizon)


def roll_out(pipeline: Pipeline, samples: Sequence[Sequence[Sample]], horizon: int, batch_size: int) -> list[Series]:
    """Forecasts of `horizon` steps for series that are already read and split; one for each.

    Args:
        pipeline: A forecaster.
        samples: The sequences of each series; covariates are known for the whole horizon.
        horizon: Steps to forecast.
        batch_size: Sequences that run together.
    """
    head, tokenizer = cast("ForecastHead", pipeline.head), cast("TimeSeriesTokenizer", pipeline.tokenizer)
    usual, head.horizon = head.horizon, min(horizon, head.config.horizon)
    try:
        answers = cast(list[Series], pipeline.predict_sequences(samples, batch_size))
        first, last = [_history(parts[0]) for parts in samples], list(answers)
        frames = list(first)
        while short := [i for i, answer in enumerate(answers) if len(answer.mean) < horizon]:
            for i in short:
                frames[i] = _longer(frames[i], last[i].mean)
            windows = [tokenizer.split(tokenizer.window_sample(frames[i], len(frames[i].values))) for i in short]
            for i, more in zip(short, cast(list[Series], pipeline.predict_sequences(windows, batch_size)), strict=True):
                last[i] = more
                answers[i] = _joined(answers[i], more, horizon)
    finally:
        head.horizon = usual
    return [replace(answer, times=future_times(frame.times, frame.freq, len(answer.mean), frame.zone))
            if len(answer.mean) > len(answer.times) else answer
            for answer, frame in zip(answers, first, strict=True)]  # fmt: skip


def _history(sample: Sample) -> SeriesFrame:
    """The series up to where the sample ends."""
    frame, end = sample.meta["frame"], sample.meta["end"]
    return replace(frame, values=frame.values[:end], times=None if frame.times is None else frame.times[:end])


def _longer(frame: SeriesFrame, mean: Float[np.ndarray, "h c"]) -> SeriesFrame:
    """A series with a forecast as its newest steps."""
    times = None
    if frame.times is not None and frame.freq is not None:
        times = np.concatenate([frame.times, times_after(frame.times, frame.freq, len(mean))])
    return replace(frame, values=np.concatenate([frame.values, mean]), times=times)


def _joined(answer: Series, more: Series, horizon: int) -> Series:
    """A forecast with the next block after it, its bands widened by the errors of those before."""
    quantiles: dict[float, Any] = {}
    for level, band in answer.quantiles.items():
        side = np.sign(level - 0.5)
        before = np.maximum(side * (band[-1] - answer.mean[-1]), 0)  # (c,)
        own = more.quantiles[level] - more.mean  # (h, c)
        wide = side * np.sqrt(np.maximum(side * own, 0) ** 2 + before**2) if side else own
        quantiles[level] = np.concatenate([band, more.mean + wide])[:horizon]
    return replace(answer, mean=np.concatenate([answer.mean, more.mean])[:horizon], quantiles=quantiles)

"""Measurements of the results table that are no `polysense eval`: forecasts by a bundle as it ships, and speed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sets import Run, read_m4

from polysense.core.types import Sample
from polysense.data.masks import IGNORE
from polysense.data.segments import SegmentSource, SegmentTarget, read_segments
from polysense.data.time_series import SeriesFrame
from polysense.heads.forecast import ForecastConfig
from polysense.heads.queries import QueryHead
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.training.evaluate import measure
from polysense.training.metrics import make_metric, score
from polysense.training.sources import open_sources

Options = Mapping[str, Any]


def unfitted_windows(pipeline: Pipeline, run: Run, options: Options) -> dict[str, float]:
    """`evaluate` on all test windows, each variate standardised by its train part, as fitted forecasters are measured.

    The bundle reads as much history as it was made for. "steps" are those that it answers: further ones of the horizon
    are not measured.
    """
    sources = open_sources(TASKS["forecasting"], run.test, **options)
    config = pipeline.head.config
    assert isinstance(config, ForecastConfig)
    pipeline.head.config = replace(config, variate_scale=sources.head_options()["variate_scale"])
    found = measure(pipeline, sources.examples(pipeline.tokenizer, "test"), 64)
    return {**found, "steps": min(options["horizon"], config.horizon)}


def m4_series(pipeline: Pipeline, run: Run, options: Options) -> dict[str, float]:
    """Forecasts of the last steps of each series from all before; "steps" as above."""
    series = read_m4(run.test)
    frames = [SeriesFrame(history[:, None], None, ["value"], source=name) for name, history, _ in series]
    futures = [future[:, None] for _, _, future in series]
    found = score("forecasting", pipeline(frames, batch_size=64), futures)
    return {**found, "steps": min(len(futures[0]), pipeline.head.config.horizon)}


def three_answers(pipeline: Pipeline, run: Run, options: Options) -> dict[str, float]:
    """Panoptic quality, average precision of masks and mIoU of one head, asked for each by its task token."""
    head = pipeline.head
    assert isinstance(head, QueryHead)
    sources = open_sources(TASKS["panoptic-segmentation"], run.test)
    examples = sources.examples(pipeline.tokenizer, "test")
    found = measure(pipeline, examples)
    task = pipeline.task
    try:
        head.answer, pipeline.task = "instance", TASKS["instance-segmentation"]
        found |= {f"instance_{name}": value for name, value in measure(pipeline, examples).items()}
        head.answer = "semantic"
        metric = make_metric("segmentation", head.config.classes)
        for i in range(len(examples)):
            samples, target = examples.whole(i)
            metric.update(pipeline.predict_sequences([samples])[0], class_index(target, head.config.classes))
        found["miou"] = metric.compute()["miou"]
    finally:
        head.answer, pipeline.task = head.config.answer, task
    return found


def class_index(target: SegmentTarget | SegmentSource, classes: Sequence[str]) -> np.ndarray:
    """The class at each pixel, 255 where there is none."""
    segments = read_segments(target)
    numbers = np.array([*(classes.index(name) for name in segments.labels), IGNORE, IGNORE])
    return numbers[segments.index]


def images_per_second(pipeline: Pipeline, run: Run, options: Options) -> dict[str, float]:
    """Decoded images through tokenizer and encoder, batches of 64; median of ten runs after a warm-up."""
    side = pipeline.tokenizer.config.size
    pixels = np.random.default_rng(0).integers(0, 256, (64, side, side, 3), dtype=np.uint8)
    samples: list[Sample] = [pipeline.tokenizer.read(image) for image in pixels]
    batch = pipeline.tokenizer.collate(samples)
    seconds = []
    with torch.inference_mode():
        for _ in range(12):
            started = time.perf_counter()
            pipeline.features(batch)
            seconds.append(time.perf_counter() - started)
    return {"images_per_second": len(samples) / float(np.median(seconds[2:])), "threads": torch.get_num_threads()}

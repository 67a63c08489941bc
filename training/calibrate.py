"""`calibrate`: confidence that is true, by validation data, after all weights are learnt."""

from __future__ import annotations

from dataclasses import replace

import torch

from polysense.heads.classify import ClassificationHead
from polysense.heads.forecast import ForecastHead
from polysense.heads.queries import QueryHead
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.training.evaluate import measure
from polysense.training.examples import Examples, Subset
from polysense.training.feature_cache import pooled_features
from polysense.training.fit_recipe import MAX_VALIDATION
from polysense.training.probe_forecast import forecast_answers

MOST_OFTEN = 100  # images that thresholds are tried on
THRESHOLDS = (0.5, 0.3, 0.2, 0.1, 0.05)  # of segments


def calibrate(pipeline: Pipeline, validation: Examples, batch_size: int) -> None:
    """Makes confidence true, by validation data: a classifier's temperature, the width of a forecast's bands, the score
    from which a segment is answered."""
    head = pipeline.head
    if isinstance(head, ForecastHead):
        head.calibrate(*forecast_answers(pipeline, Subset.even(validation, MAX_VALIDATION), batch_size))
    if isinstance(head, QueryHead):
        choose_threshold(pipeline, head, Subset.even(validation, MOST_OFTEN), batch_size)
    if isinstance(head, ClassificationHead):
        pooled, target = pooled_features(pipeline, validation, batch_size, lasting=False)
        with torch.inference_mode():
            logits = head.from_pooled(pooled.to(pipeline.device))["logits"].cpu()
        head.calibrate(logits, target["labels"])


def choose_threshold(pipeline: Pipeline, head: QueryHead, validation: Examples, batch_size: int) -> None:
    """Sets the least score of a segment by panoptic quality: how sure queries get depends on the data."""
    answer, task, best = head.answer, pipeline.task, -1.0
    head.answer, pipeline.task = "panoptic", TASKS["panoptic-segmentation"]
    for threshold in THRESHOLDS:
        head.threshold = threshold
        found = measure(pipeline, validation, batch_size)["pq"]
        if found > best:
            best, head.config = found, replace(head.config, threshold=threshold)
    head.answer, pipeline.task, head.threshold = answer, task, head.config.threshold

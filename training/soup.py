"""Greedy soups: of several pipelines' weights, the mean of those that help on validation data.

"Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time"
(Wortsman et al. 2022), recipe 1.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polysense.core.errors import InputError
from polysense.merging import merge
from polysense.pipeline import Pipeline
from polysense.training.check_engine import part_to_measure
from polysense.training.evaluate import measure


@dataclass(frozen=True, slots=True)
class Soup:
    """What came out.

    Attributes:
        pipeline: The mean of the chosen ones, with its metrics.
        chosen: Numbers of those that went in, in the order in which they did.
        alone: The metric that judges the task, of each by itself.
        metrics: Of the soup, on the same part.
    """

    pipeline: Pipeline
    chosen: list[int]
    alone: list[float]
    metrics: dict[str, float]


def greedy_soup(
    pipelines: Sequence[Pipeline], data: str | Path, *, split: str = "val", batch_size: int = 32
) -> Soup:  # fmt: skip
    """Begins with the best one and takes each other, from good to bad, whose weights do not make the mean worse.

    Args:
        pipelines: Which could be merged: see `merge`.
        data: In one of the layouts that `fit` takes. The measured part chooses, so that it is no test.
        split: The part; data without a "val" part get the one that `fit` keeps for the first pipeline's seed.
        batch_size: Sequences that run together.

    Raises:
        InputError: The data cannot be used, the task has no metric, or the pipelines cannot be merged.
    """
    task = pipelines[0].task
    if not task.metric:
        raise InputError(task.name, "the task has no metric to choose by", "give weights instead")
    merge(pipelines)  # what does not fit is to be said before anything is measured
    examples = part_to_measure(pipelines[0], data, split, None)
    found = [measure(pipeline, examples, batch_size) for pipeline in pipelines]
    alone = [metrics.get(task.metric) for metrics in found]
    known = [score for score in alone if score is not None]
    if len(known) < len(pipelines):
        problem = f"its {task.metric} is undefined: nothing in its {split} part is labelled"
        raise InputError(data, problem, "give examples with labels")
    first, *others = sorted(range(len(pipelines)), key=lambda i: -known[i] * task.sign)
    chosen, pipeline, metrics = [first], pipelines[first], found[first]
    for i in others:
        mixed = merge([pipelines[k] for k in (*chosen, i)])
        told = measure(mixed, examples, batch_size)
        if (told[task.metric] - metrics[task.metric]) * task.sign >= 0:
            chosen, pipeline, metrics = [*chosen, i], mixed, told
    pipeline = copy.copy(pipeline)  # where only one was chosen, it is the caller's
    pipeline.metrics = metrics
    pipeline.about = {**pipeline.about, "measured_on": f"{Path(data).name}, {split} part, which chose the soup"}
    return Soup(pipeline, chosen, known, metrics)

"""Measuring a pipeline: predictions against targets, by the field's usual metrics."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from polysense.core.errors import InputError, InputWarning
from polysense.core.types import Sample
from polysense.heads.base import Head
from polysense.pipeline import Pipeline
from polysense.training.checkpoint import fingerprint
from polysense.training.examples import Examples, Subset, WindowExamples
from polysense.training.feature_cache import recalled_answers
from polysense.training.metrics import Metric, make_metric
from polysense.training.sources import Sources, open_sources

MEASURED_FROM = 0.01  # score of the faintest box that average precision takes in; COCO's detectors report as deep


def measure(pipeline: Pipeline, examples: Examples, batch_size: int = 32) -> dict[str, float]:
    """Metrics of a pipeline over examples, by usual names ("accuracy", "mse", "miou" …)."""
    return measured(pipeline, examples, batch_size).compute()


def measured(pipeline: Pipeline, examples: Examples, batch_size: int = 32) -> Metric:
    """The metric of the pipeline's task, filled with its answers for the examples, in order."""
    options = metric_options(pipeline, examples)
    config = pipeline.head.config
    none = getattr(config, "none", None)  # an answer like any other, and what unknown inputs may be labelled
    classes = (*getattr(config, "classes", ()), *(() if none is None else (none,)))
    metric = make_metric(pipeline.task.kind, classes, **options)
    waiting: list[list[Sample]] = []
    targets: list[Any] = []

    def flush() -> None:
        for prediction, target in zip(pipeline.predict_sequences(waiting, batch_size), targets, strict=True):
            metric.update(prediction, target)
        waiting.clear()
        targets.clear()

    if (known := recalled_answers(pipeline, examples)) is not None:
        for prediction, target in known:
            metric.update(prediction, target)
        return metric
    with every_box(pipeline.head):
        for i in range(len(examples)):
            samples, target = examples.whole(i)
            waiting.append(samples)
            targets.append(target)
            if sum(map(len, waiting)) >= batch_size:
                flush()
        if waiting:
            flush()
    return metric


@contextmanager
def every_box(head: Head) -> Iterator[None]:
    """Lets a detector answer with its faint boxes too, which average precision weighs and users do not want."""
    from polysense.heads.detect import DetectionHead
    from polysense.heads.queries import QueryHead

    # Panoptic quality counts every segment alike: there a faint one is an error.
    if not isinstance(head, DetectionHead) and not (isinstance(head, QueryHead) and head.answer == "instance"):
        yield
        return
    usual, head.threshold = head.threshold, min(head.threshold, MEASURED_FROM)
    try:
        yield
    finally:
        head.threshold = usual


def metric_options(pipeline: Pipeline, examples: Examples) -> dict[str, Any]:
    config = pipeline.head.config
    if pipeline.task.kind == "forecasting":
        return {"scale": _series_scale(dict(config.variate_scale), examples)}
    if pipeline.task.kind == "segmentation":
        return {"ignore": getattr(config, "ignore", None)}
    if pipeline.task.kind in ("panoptic", "instances"):
        return {"things": config.things}
    return {}


def _series_scale(trained: dict[str, float], examples: Examples) -> list[float] | str:
    """What errors are divided by: the training deviation of each variate, as the field does.

    A forecaster for any series knows none: then that of the rows before the measured part, and of each window where
    there are several series.
    """
    while isinstance(examples, Subset):
        examples = examples.parent
    if not isinstance(examples, WindowExamples) or len(examples.frames) != 1:
        return "window"
    frame = examples.frames[0]
    if trained.keys() >= set(frame.names):
        return [trained[name] for name in frame.names]
    first = min(examples.ends[0])
    std = np.nanstd(frame.values[:first] if first > 1 else frame.values, axis=0)
    return np.where(std > 0, std, 1.0).tolist()


def evaluate(
    bundle: str | Path | Pipeline,
    data: str | Path,
    *,
    split: str = "test",
    target: str | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    engine: str = "torch",
    threads: int | None = None,
) -> dict[str, float]:
    """Measures a bundle on a part of a data set.

    Args:
        bundle: An embedded bundle's name or task, a folder, or a pipeline.
        data: In one of the layouts that `fit` takes.
        split: "train", "val" or "test"; data without parts are measured whole, with a warning where the bundle learnt
            from them.
        target: Column to compare with (tables and lists); by default the one the bundle was trained on.
        batch_size: Sequences that run together.
        device: Where to compute.
        engine: What runs the encoder of a bundle; a pipeline keeps its own. See `Pipeline.with_engine`.
        threads: CPU threads.

    Raises:
        InputError: The data cannot be read or have no such part.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    pipeline = bundle if isinstance(bundle, Pipeline) else Pipeline.from_pretrained(bundle, device, engine)
    sources = open_sources(pipeline.task, data, **as_trained(pipeline, target))
    examples = part_of(sources, split, pipeline, data)
    if split not in sources.splits() and (known := learnt_from(pipeline, sources)):
        warnings.warn(
            f"{data}: the bundle learnt from {known} of these {len(examples)} examples, and may answer them better "
            "than others; measure it on data that it has not seen",
            InputWarning,
            stacklevel=2,
        )
    return measure(pipeline, examples, batch_size)


def learnt_from(pipeline: Pipeline, sources: Sources) -> int:
    """How many of these data the pipeline was fitted to; 0 where they are not the ones that its fit was given."""
    about = pipeline.about
    if "data_sha256" not in about:
        return 0
    again = sources.with_validation(about["val_share"], about["seed"]).examples(pipeline.tokenizer, "train")
    return len(again) if fingerprint(again) == about["data_sha256"] else 0


def as_trained(pipeline: Pipeline, target: str | None) -> dict[str, Any]:
    """How the bundle's own training data were read, with what the caller says on top."""
    options = dict(pipeline.about.get("data_options", {}))
    if target is not None:
        options["target"] = target
    return options


def part_of(sources: Sources, split: str, pipeline: Pipeline, data: str | Path) -> Examples:
    parts: Sequence[str] = sources.splits()
    if split in parts:
        return sources.examples(pipeline.tokenizer, split)
    if set(parts) <= {""}:
        return sources.examples(pipeline.tokenizer, "")
    raise InputError(data, f"it has no {split} part", f"choose one with --split: {', '.join(parts)}")

"""Measuring a pipeline: predictions against targets, by the field's usual metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polysense.core.errors import InputError
from polysense.core.types import Sample
from polysense.pipeline import Pipeline
from polysense.training.examples import Examples
from polysense.training.metrics import make_metric
from polysense.training.sources import Sources, open_sources


def measure(pipeline: Pipeline, examples: Examples, batch_size: int = 32) -> dict[str, float]:
    """Metrics of a pipeline over examples, by usual names ("accuracy", "mse", "miou" …)."""
    metric = make_metric(pipeline.task.kind, getattr(pipeline.head.config, "classes", ()), **metric_options(pipeline))
    waiting: list[list[Sample]] = []
    targets: list[Any] = []

    def flush() -> None:
        for prediction, target in zip(pipeline.predict_sequences(waiting, batch_size), targets, strict=True):
            metric.update(prediction, target)
        waiting.clear()
        targets.clear()

    for i in range(len(examples)):
        samples, target = examples.whole(i)
        waiting.append(samples)
        targets.append(target)
        if sum(map(len, waiting)) >= batch_size:
            flush()
    if waiting:
        flush()
    return metric.compute()


def metric_options(pipeline: Pipeline) -> dict[str, Any]:
    config = pipeline.head.config
    if pipeline.task.kind == "forecasting" and config.variate_scale:
        return {"scale": [std for _, std in config.variate_scale]}
    if pipeline.task.kind == "segmentation":
        return {"ignore": getattr(config, "ignore", None)}
    return {}


def evaluate(
    bundle: str | Path | Pipeline,
    data: str | Path,
    *,
    split: str = "test",
    target: str | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    threads: int | None = None,
) -> dict[str, float]:
    """Measures a bundle on a part of a data set.

    Args:
        bundle: An embedded bundle's name or task, a folder, or a pipeline.
        data: In one of the layouts that `fit` takes.
        split: "train", "val" or "test"; data without parts are measured whole, and so is a split that is not there
            when there are no other parts either.
        target: Column to compare with (tables and lists); by default the one the bundle was trained on.
        batch_size: Sequences that run together.
        device: Where to compute.
        threads: CPU threads.

    Raises:
        InputError: The data cannot be read or have no such part.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    pipeline = bundle if isinstance(bundle, Pipeline) else Pipeline.from_pretrained(bundle, device)
    sources = open_sources(pipeline.task, data, **_as_trained(pipeline, target))
    examples = _part(sources, split, pipeline, data)
    return measure(pipeline, examples, batch_size)


def _as_trained(pipeline: Pipeline, target: str | None) -> dict[str, Any]:
    """How the bundle's own training data were read, with what the caller says on top."""
    options = dict(pipeline.about.get("data_options", {}))
    if target is not None:
        options["target"] = target
    return options


def _part(sources: Sources, split: str, pipeline: Pipeline, data: str | Path) -> Examples:
    parts: Sequence[str] = sources.splits()
    if split in parts:
        return sources.examples(pipeline.tokenizer, split)
    if set(parts) <= {""}:
        return sources.examples(pipeline.tokenizer, "")
    raise InputError(data, f"it has no {split} part", f"choose one with --split: {', '.join(parts)}")

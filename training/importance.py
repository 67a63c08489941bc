"""What the columns of a labelled table are worth to a pipeline, by its task's metrics (see `polysense.importance`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polysense.core.errors import InputError
from polysense.core.predictions import Prediction
from polysense.importance import Importances, importance, tokenizer_of
from polysense.pipeline import Pipeline
from polysense.training.evaluate import as_trained, part_of
from polysense.training.examples import Examples, TableExamples
from polysense.training.metrics import make_metric
from polysense.training.sources import open_sources

USUAL = {"classification": "accuracy", "multilabel": "f1", "regression": "r2"}  # by kind: numbers that need no unit
SMALLER_IS_BETTER = ("mse", "mae", "rmse", "log_loss", "ece")


def column_importance(
    bundle: str | Path | Pipeline,
    data: str | Path,
    *,
    split: str = "test",
    target: str | None = None,
    metric: str | None = None,
    device: str = "cpu",
    **options: Any,
) -> tuple[str, Importances]:
    """Measures what each column is worth to a bundle, on a part of a labelled table.

    Args:
        bundle: An embedded bundle's name or task, a folder, or a pipeline.
        data: A table; one without parts is measured whole.
        split: "train", "val" or "test". Beware of rows that taught the bundle: those of "val" did so at the end of a
            fit, where the table did not name them itself.
        target: Column with the truth; by default the one that the bundle was trained on.
        metric: See `examples_importance`.
        device: Where to compute.
        options: Further arguments of `polysense.importance.importance`.

    Returns:
        The metric's name, and what was found.

    Raises:
        InputError: The bundle reads no tables, or see `evaluate` and `examples_importance`.
    """
    pipeline = bundle if isinstance(bundle, Pipeline) else Pipeline.from_pretrained(bundle, device)
    tokenizer_of(pipeline)  # or else the table would be opened as something else
    sources = open_sources(pipeline.task, data, **as_trained(pipeline, target))
    return examples_importance(pipeline, part_of(sources, split, pipeline, data), metric, **options)


def examples_importance(
    pipeline: Pipeline, examples: Examples, metric: str | None = None, **options: Any
) -> tuple[str, Importances]:
    """Measures what each column is worth, on rows that are read already.

    Args:
        pipeline: Reads tables.
        examples: Rows of a table.
        metric: A name in `make_metric(...).compute()`; by default accuracy, F1 or R², or where that is undefined (of
            targets that are all the same) the task's own. Of errors, it is counted how much they grow.
        options: Further arguments of `polysense.importance.importance`.

    Raises:
        InputError: The examples are no rows of a table, or the metric is none of the task's.
    """
    if not isinstance(examples, TableExamples):
        raise InputError(pipeline.task.name, "its examples are no rows of a table", "give a tabular pipeline")
    classes = getattr(pipeline.head.config, "classes", ())

    def measured(predictions: Sequence[Prediction], targets: Sequence[Any]) -> dict[str, float]:
        found = make_metric(pipeline.task.kind, classes)
        for prediction, target in zip(predictions, targets, strict=True):
            found.update(prediction, target)
        return found.compute()

    def score(predictions: Sequence[Prediction], targets: Sequence[Any]) -> float:
        nonlocal metric
        found = measured(predictions, targets)
        if metric is None:
            usual = USUAL[pipeline.task.kind]
            metric = usual if usual in found else pipeline.task.metric
        if metric not in found:
            raise InputError(f"metric {metric}", "it is not measured here", f"choose one of: {', '.join(found)}")
        return -found[metric] if metric in SMALLER_IS_BETTER else found[metric]

    found = importance(pipeline, examples.frame, examples.targets, score, **options)
    assert metric is not None, "the first score has chosen it"
    return metric, found

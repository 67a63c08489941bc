"""The recipe of a fit's joint phase: what suits each task, where nothing else is asked for."""

from __future__ import annotations

from typing import Any

from polysense.pipeline import Pipeline
from polysense.tasks import Task
from polysense.training.joint import Recipe
from polysense.training.probe import can_probe

BATCH = {"tabular": 256, "time_series": 32, "video": 8}  # examples a step where none is asked for; 32 elsewhere
# Answers for pixels: large inputs, few examples, and a head with much to learn behind a front part that knows enough.
DENSE: dict[str, Any] = {"batch_size": 8, "settled_lr": 0.0, "augment": True, "average": 0.99}
EPOCHS = {"tabular": 0}  # of joint training where none are asked for: trees and a solved head gain nothing by it
USUAL_EPOCHS = 20  # elsewhere
MAX_VALIDATION = 2000  # examples that early stopping looks at; the final figure uses all


def usual_epochs(pipeline: Pipeline) -> int:
    """Of joint training where none are asked for."""
    solved = can_probe(pipeline.head) and not pipeline.tokenizer.must_learn and not pipeline.encoder.learns
    return EPOCHS.get(pipeline.modality, USUAL_EPOCHS) if solved else USUAL_EPOCHS


def recipe_for(task: Task, **options: Any) -> Recipe:
    """What suits the task, but for options that are not None."""
    usual: dict[str, Any] = {"batch_size": BATCH.get(task.modality, 32)}
    if task.modality == "image" and task.kind in ("segmentation", "panoptic", "instances", "detection"):
        usual |= DENSE
    return Recipe(**(usual | {name: value for name, value in options.items() if value is not None}))

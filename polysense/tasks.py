"""What polysense can be asked to do: a task is a modality, a head and the metric that judges it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polysense.core.registry import Registry


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        name: As users write it ("image-classification").
        modality: Name of the tokenizer ("image").
        head: Name of the head ("classification").
        kind: How predictions are scored: classification, multilabel, regression, segmentation, detection,
            panoptic, instances, forecasting, embedding, or meaning (an embedding in the space of words).
        metric: The metric that early stopping watches and tables show ("accuracy").
        larger_is_better: Direction of the metric.
        tokenizer: Options of the tokenizer that suit the task better than its usual ones.
    """

    name: str
    modality: str
    head: str
    kind: str
    metric: str
    larger_is_better: bool = True
    tokenizer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sign(self) -> int:
        """1 where a larger metric is better, else -1."""
        return 1 if self.larger_is_better else -1


TASKS: Registry[Task] = Registry("task")
MODALITIES = ("image", "video", "audio", "point_cloud", "time_series", "tabular", "text")


# Small things must still have pixels; what the tokens lose of them comes from the front part's finer maps.
DENSE = {"size": 384, "fine": True}
BLOCKS = {"block": 8192}  # points: a few dozen tokens cannot tell the small things of a whole scene apart


def _add(
    name: str,
    modality: str,
    head: str,
    kind: str,
    metric: str,
    larger_is_better: bool = True,
    tokenizer: Mapping[str, Any] | None = None,
) -> None:
    TASKS.register(name)(Task(name, modality, head, kind, metric, larger_is_better, tokenizer or {}))


for _modality in MODALITIES:
    _prefix = _modality.replace("_", "-")
    _add(f"{_prefix}-classification", _modality, "classification", "classification", "accuracy")
    _add(f"{_prefix}-multilabel", _modality, "classification", "multilabel", "f1")
    _add(f"{_prefix}-regression", _modality, "regression", "regression", "mse", larger_is_better=False)
    _add(f"{_prefix}-embedding", _modality, "embedding", "embedding", "")
for _modality in ("image", "video", "audio", "point_cloud", "text"):
    _prefix = _modality.replace("_", "-")
    _add(f"{_prefix}-meaning", _modality, "meaning", "meaning", "")
    _add(f"{_prefix}-naming", _modality, "naming", "classification", "accuracy")
_add("image-segmentation", "image", "segmentation", "segmentation", "miou", tokenizer=DENSE)
_add("point-cloud-segmentation", "point_cloud", "point_segmentation", "segmentation", "miou", tokenizer=BLOCKS)
_add("panoptic-segmentation", "image", "queries", "panoptic", "pq", tokenizer=DENSE)
_add("instance-segmentation", "image", "queries", "instances", "map50", tokenizer=DENSE)
_add("object-detection", "image", "detection", "detection", "map50", tokenizer=DENSE)
_add("object-detection-set", "image", "set_detection", "detection", "map50", tokenizer=DENSE)
_add("forecasting", "time_series", "forecasting", "forecasting", "mse", larger_is_better=False)

"""Metrics of segments: panoptic quality, and average precision of instances' masks. See `metrics`.

Shape legend: m segments, h, w pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polysense.core.errors import InputError
from polysense.core.predictions import Segments
from polysense.data.segments import VOID, SegmentSource, SegmentTarget, read_segments
from polysense.training.metrics import METRICS, Metric, Scores


class _OfSegments(Metric):
    """Base class.

    Args:
        classes: Names in the order of the head.
        things: Those of objects.
    """

    def __init__(self, classes: Sequence[str], things: Sequence[str] = ()) -> None:
        super().__init__(classes)
        self.things = {self.numbers[name] for name in things}
        self.segments = 0

    def truth(self, prediction: Segments, target: SegmentTarget | SegmentSource) -> SegmentTarget:
        found = read_segments(target)
        if found.index.shape != prediction.index.shape:
            problem = f"its segments have the shape {found.index.shape} but the answer {prediction.index.shape}"
            raise InputError(prediction.source, problem, "give segments of the original size")
        return found


@METRICS.register("panoptic")
class Panoptic(_OfSegments):
    """pq, sq and rq (Kirillov et al. 2019): mean panoptic, segmentation and recognition quality over the classes that
    occur; pq_things and pq_regions of either kind."""

    def __init__(self, classes: Sequence[str], things: Sequence[str] = ()) -> None:
        super().__init__(classes, things)
        from torchmetrics.detection import PanopticQuality

        regions = set(range(len(self.classes))) - self.things
        self.metric = PanopticQuality(self.things, regions, allow_unknown_preds_category=True, return_per_class=True,
                                      return_sq_and_rq=True)  # fmt: skip
        self.occurs = np.zeros(len(self.classes), bool)

    def update(self, prediction: Segments, target: SegmentTarget | SegmentSource) -> None:
        truth = self.truth(prediction, target)
        answer = self._map(prediction.index, [self.numbers.get(name, -1) for name in prediction.labels])
        wanted = self._map(truth.index, [self.number(name, prediction.source) for name in truth.labels])
        self.occurs[np.unique(answer[..., 0][answer[..., 0] >= 0])] = True
        self.occurs[np.unique(wanted[..., 0][wanted[..., 0] >= 0])] = True
        self.segments += len(truth.labels)
        self.metric.update(torch.from_numpy(answer)[None], torch.from_numpy(wanted)[None])

    def _map(self, index: np.ndarray, labels: Sequence[int]) -> np.ndarray:
        """(h, w, 2): class, -1 where there is none, and number of the instance. Regions are one each."""
        classes = np.array([*labels, -1, -1], np.int64)  # index -1 and -2 read the last two
        numbers = np.array([i if label in self.things else 0 for i, label in enumerate(labels)] + [0, 0], np.int64)
        return np.stack([classes[index], numbers[index]], -1)

    def compute(self) -> Scores:
        if not self.segments:
            return {}
        found = self.metric.compute().reshape(-1, 3).double().numpy()  # things first, ascending, then regions
        order = [*sorted(self.things), *sorted(set(range(len(self.classes))) - self.things)]
        rows = {number: found[i] for i, number in enumerate(order) if self.occurs[number]}
        parts = {"": rows, "_things": {n: row for n, row in rows.items() if n in self.things},
                 "_regions": {n: row for n, row in rows.items() if n not in self.things}}  # fmt: skip
        scores = {
            f"pq{name}": float(np.mean([row[0] for row in part.values()])) for name, part in parts.items() if part
        }
        sq, rq = (float(np.mean([row[i] for row in rows.values()])) for i in (1, 2))
        return {**scores, "sq": sq, "rq": rq}


@METRICS.register("instances")
class Instances(_OfSegments):
    """map (IoU .5 to .95), map50, map75 of masks, as COCO defines them. An answer that lies on void pixels for more
    than half of its area counts neither for nor against."""

    def __init__(self, classes: Sequence[str], things: Sequence[str] = ()) -> None:
        super().__init__(classes, things)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchmetrics.detection import MeanAveragePrecision

            self.metric = MeanAveragePrecision(iou_type="segm", backend="faster_coco_eval")
        self.metric.warn_on_many_detections = False

    def update(self, prediction: Segments, target: SegmentTarget | SegmentSource) -> None:
        truth = self.truth(prediction, target)
        numbers = [self.number(name, prediction.source) for name in truth.labels]
        wanted = [i for i, number in enumerate(numbers) if number in self.things and (truth.index == i).any()]
        self.segments += len(wanted)
        void = truth.index == VOID
        kept = [i for i, name in enumerate(prediction.labels)
                if self.numbers.get(name) in self.things and void[prediction.index == i].mean() <= 0.5]  # fmt: skip
        guess = self._masks(prediction.index, kept, [self.numbers[prediction.labels[i]] for i in kept])
        guess["scores"] = torch.from_numpy(np.array(prediction.scores, np.float32)[kept])
        self.metric.update([guess], [self._masks(truth.index, wanted, [numbers[i] for i in wanted])])

    def _masks(self, index: np.ndarray, numbers: Sequence[int], labels: Sequence[int]) -> dict[str, Tensor]:
        masks = np.stack([index == number for number in numbers]) if numbers else np.zeros((0, *index.shape), bool)
        return {"masks": torch.from_numpy(masks), "labels": torch.tensor(labels, dtype=torch.int64)}

    def compute(self) -> Scores:
        if not self.segments:
            return {}
        found = self.metric.compute()
        return {"map": float(found["map"]), "map50": float(found["map_50"]), "map75": float(found["map_75"])}

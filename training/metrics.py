"""Metrics by their usual names, accumulated prediction by prediction.

`make_metric(kind, classes)` gives an accumulator: `update` with a `Prediction` and the target as a data set holds it,
then `compute`. Where a metric is undefined (area under the curve of one class only) its key is left out.

Shape legend: n samples, k classes, h horizon, c variates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polysense.core.errors import InputError
from polysense.core.predictions import Boxes, Labels, Mask, Series, Values
from polysense.core.registry import Registry
from polysense.data.dataset import BoxTarget
from polysense.data.masks import IGNORE, read_mask

Scores = dict[str, float]
METRICS: Registry[Callable[..., Metric]] = Registry("kind of metric")
CALIBRATION_BINS = 15  # as in Guo et al. 2017
MOST_NAMED = 12  # classes that a message lists


class Metric:
    """Base class.

    Args:
        classes: Names in the order of the head; unused by regression and forecasting.
    """

    def __init__(self, classes: Sequence[str] = ()) -> None:
        self.classes = list(classes)
        self.numbers = {name: i for i, name in enumerate(self.classes)}

    def update(self, prediction: Any, target: Any) -> None:
        """Takes in one answer and the truth in the form of `Item.target`."""
        raise NotImplementedError

    def compute(self) -> Scores:
        """All metrics over what was taken in; empty before the first update."""
        raise NotImplementedError

    def number(self, name: str, source: object) -> int:
        if name not in self.numbers:
            known = ", ".join(self.classes[:MOST_NAMED]) + (" …" if len(self.classes) > MOST_NAMED else "")
            raise InputError(source, f"its target {name!r} is no class of the model", f"choose from: {known}")
        return self.numbers[name]

    def scores_row(self, prediction: Labels) -> list[float]:
        """Scores in the order of the classes."""
        row = [0.0] * len(self.classes)
        for name, score in zip(prediction.names, prediction.scores, strict=True):
            row[self.number(name, prediction.source)] = float(score)
        return row


@METRICS.register("classification")
class Classification(Metric):
    """accuracy, f1 (macro), auroc (macro, one against the rest), ece (expected calibration error), log_loss."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(classes)
        self.scores: list[list[float]] = []
        self.targets: list[int] = []

    def update(self, prediction: Labels, target: str) -> None:
        self.scores.append(self.scores_row(prediction))
        self.targets.append(self.number(str(target), prediction.source))

    def compute(self) -> Scores:
        from torchmetrics import functional as M

        if not self.targets:
            return {}
        scores, target, k = torch.tensor(self.scores), torch.tensor(self.targets), len(self.classes)
        if k == 1:
            return {"accuracy": 1.0, "f1": 1.0, "log_loss": 0.0}
        found = {
            "accuracy": M.classification.multiclass_accuracy(scores, target, k, average="micro"),
            "f1": M.classification.multiclass_f1_score(scores, target, k, average="macro"),
            "ece": M.classification.multiclass_calibration_error(scores, target, k, n_bins=CALIBRATION_BINS),
            "log_loss": torch.nn.functional.nll_loss(scores.clamp_min(1e-12).log(), target),
        }
        area = _mean_area(scores, torch.nn.functional.one_hot(target, k))
        return {name: float(value) for name, value in found.items()} | ({} if area is None else {"auroc": area})


@METRICS.register("multilabel")
class MultiLabel(Metric):
    """f1 (macro, of the chosen), f1_micro, map (mean average precision), auroc; without classes that do not occur."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(classes)
        self.scores: list[list[float]] = []
        self.chosen: list[list[int]] = []
        self.targets: list[list[int]] = []

    def update(self, prediction: Labels, target: Sequence[str]) -> None:
        self.scores.append(self.scores_row(prediction))
        self.chosen.append(self._hot(prediction.chosen, prediction.source))
        self.targets.append(self._hot([target] if isinstance(target, str) else target, prediction.source))

    def _hot(self, names: Iterable[str], source: str) -> list[int]:
        row = [0] * len(self.classes)
        for name in names:
            row[self.number(name, source)] = 1
        return row

    def compute(self) -> Scores:
        from torchmetrics import functional as M

        if not self.targets:
            return {}
        scores, chosen, target = torch.tensor(self.scores), torch.tensor(self.chosen), torch.tensor(self.targets)
        both, wrong = (chosen * target).sum(0), (chosen != target).sum(0)
        occurs = both + wrong > 0
        f1 = 2 * both / (2 * both + wrong).clamp(min=1)
        found = {"f1_micro": float(2 * both.sum() / (2 * both.sum() + wrong.sum()).clamp(min=1))}
        if occurs.any():
            found["f1"] = float(f1[occurs].mean())
        if (true := target.any(0)).any():
            precisions = [M.classification.binary_average_precision(scores[:, i], target[:, i])
                          for i in true.nonzero().flatten().tolist()]  # fmt: skip
            found["map"] = float(torch.stack(precisions).mean())
        area = _mean_area(scores, target)
        return found | ({} if area is None else {"auroc": area})


def _mean_area(scores: Tensor, target: Tensor) -> float | None:
    """Mean area under the ROC curve over the classes that are both true and false somewhere; None without any."""
    from torchmetrics.functional.classification import binary_auroc

    defined = (target.amax(0) > target.amin(0)).nonzero().flatten().tolist()
    areas = [binary_auroc(scores[:, i], target[:, i]) for i in defined]
    return float(torch.stack(areas).mean()) if areas else None


@METRICS.register("regression")
class Regression(Metric):
    """mse, mae, rmse, r2; means over the names where there are several."""

    def __init__(self, classes: Sequence[str] = ()) -> None:
        super().__init__(classes)
        self.rows: list[tuple[list[float], list[float]]] = []  # answers and truth
        self.names: list[str] = []

    def update(self, prediction: Values, target: Mapping[str, float] | float) -> None:
        truth = target if isinstance(target, Mapping) else dict.fromkeys(prediction.values, float(target))
        self.names = names = list(prediction.values)
        self.rows.append(([prediction.values[name] for name in names], [float(truth[name]) for name in names]))

    def compute(self) -> Scores:
        from torchmetrics import functional as M

        if not self.rows:
            return {}
        guess, truth = (torch.tensor(part, dtype=torch.float64) for part in zip(*self.rows, strict=True))
        found = {
            "mse": M.mean_squared_error(guess, truth, num_outputs=guess.shape[1]).mean(),
            "mae": M.mean_absolute_error(guess, truth),
            "rmse": M.mean_squared_error(guess, truth, squared=False, num_outputs=guess.shape[1]).mean(),
        }
        varied = truth.amax(0) > truth.amin(0)
        if len(truth) > 1 and varied.all():
            found["r2"] = M.r2_score(guess, truth, multioutput="uniform_average")
        return {name: float(value) for name, value in found.items()}


@METRICS.register("segmentation")
class Segmentation(Metric):
    """miou and pixel_accuracy over a confusion matrix; classes absent from truth and answers are left out of the mean.

    Args:
        classes: Names in the order of the head.
        ignore: Index in the masks that does not count, beside 255 and negative ones.
    """

    def __init__(self, classes: Sequence[str], ignore: int | None = None) -> None:
        super().__init__(classes)
        self.ignore = ignore
        self.confusion = np.zeros((len(classes), len(classes)), np.int64)  # truth, answer

    def update(self, prediction: Mask, target: Any) -> None:
        truth, answer = read_mask(target), prediction.index
        if truth.shape != answer.shape:
            problem = f"its mask has the shape {truth.shape} but the answer {answer.shape}"
            raise InputError(prediction.source, problem, "give a mask of the original size")
        known = (truth != IGNORE) & (truth >= 0)
        if self.ignore is not None:
            known &= truth != self.ignore
        k = len(self.classes)
        true, guess = truth[known].astype(np.int64), answer[known].astype(np.int64)
        if true.size and true.max() >= k:
            problem = f"its mask holds the index {true.max()}, beyond the {k} classes"
            raise InputError(prediction.source, problem, f"name more classes or ignore {true.max()}")
        self.confusion += np.bincount(true * k + guess, minlength=k * k).reshape(k, k)

    def per_class(self) -> Scores:
        """Intersection over union of each class that occurs."""
        both = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - both
        return {name: float(both[i] / union[i]) for i, name in enumerate(self.classes) if union[i]}

    def compute(self) -> Scores:
        total = self.confusion.sum()
        if not total:
            return {}
        return {"miou": float(np.mean(list(self.per_class().values()))),
                "pixel_accuracy": float(np.trace(self.confusion) / total)}  # fmt: skip


METRICS.register("point_segmentation")(Segmentation)


@METRICS.register("detection")
class Detection(Metric):
    """map (IoU .5 to .95), map50, map75 as COCO defines them, at most 100 boxes an image."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(classes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchmetrics.detection import MeanAveragePrecision

            self.metric = MeanAveragePrecision(extended_summary=True, backend="faster_coco_eval")
        self.metric.warn_on_many_detections = False
        self.objects = 0

    def update(self, prediction: Boxes, target: BoxTarget) -> None:
        self.objects += len(target.labels)
        guess = self._boxes(prediction.xyxy, prediction.labels, prediction.source)
        guess["scores"] = torch.from_numpy(np.array(prediction.scores, np.float32))
        self.metric.update([guess], [self._boxes(target.xyxy, target.labels, prediction.source)])

    def _boxes(self, xyxy: Any, labels: Sequence[str], source: str) -> dict[str, Tensor]:
        numbers = torch.tensor([self.number(name, source) for name in labels], dtype=torch.int64)
        return {"boxes": torch.from_numpy(np.array(xyxy, np.float32).reshape(-1, 4)), "labels": numbers}

    def compute(self) -> Scores:
        if not self.objects:
            return {}
        found = self.metric.compute()
        return {"map": float(found["map"]), "map50": float(found["map_50"]), "map75": float(found["map_75"])}

    def curves(self) -> tuple[dict[str, np.ndarray], dict[str, Scores]]:
        """Of each class that occurs: precision at 101 recalls from 0 to 1 at IoU .5; and its map and map50."""
        precision = np.asarray(self.metric.compute()["precision"])[:, :, :, 0, -1]  # IoU, recall, class
        self.metric.extended_summary = False
        numbers = sorted({int(number) for labels in self.metric.groundtruth_labels for number in labels})
        seen = sorted(set(numbers) | {int(number) for labels in self.metric.detection_labels for number in labels})
        rows = {self.classes[number]: precision[:, :, seen.index(number)] for number in numbers}
        scores = {name: {"map": float(row.mean()), "map50": float(row[0].mean())} for name, row in rows.items()}
        return {name: row[0] for name, row in rows.items()}, scores


@METRICS.register("forecasting")
class Forecasting(Metric):
    """mse and mae (of standardised values where `scale` is known, as the field reports them), and of the quantiles
    pinball, crps and coverage; rmse in the series' own units (of one series); smape in per cent (Makridakis et al.
    2020, M4); mase, the error over the mean change from step to step of the history read (Hyndman & Koehler 2006,
    season 1).

    `coverage` is the share of values between the lowest and the highest quantile; `coverage_wanted` is what it should
    be. `pinball` is the mean quantile loss in units of `scale`, and `crps`, the continuous ranked probability score,
    twice that. Missing true values do not count.

    Args:
        classes: Unused.
        scale: Standard deviation of each variate (c,) on the training part, for the scaled metrics; or "window": that
            of each prediction's own history, where series of any size are measured together.
    """

    def __init__(self, classes: Sequence[str] = (), scale: Any = None) -> None:
        super().__init__(classes)
        self.by_window = isinstance(scale, str) and scale == "window"
        self.scale = None if scale is None or self.by_window else np.maximum(np.asarray(scale, np.float64), 1e-12)
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.wanted: float | None = None

    def update(self, prediction: Series, target: Any) -> None:
        truth = np.asarray(target, np.float64).reshape(len(target), -1)[: len(prediction.mean)]
        mean = prediction.mean[: len(truth)]  # a file may end within the horizon
        if truth.shape != mean.shape:
            problem = f"its future has the shape {truth.shape} but the forecast {mean.shape}"
            raise InputError(prediction.source, problem, "give the same variates")
        error = mean - truth
        scale = self._scale_of(prediction, truth.shape[1])
        with np.errstate(invalid="ignore", divide="ignore"):
            self._add("smape", np.where(error == 0, 0.0, 200 * np.abs(error) / (np.abs(mean) + np.abs(truth))))
        self._add("mse", (error / scale) ** 2)
        self._add("mae", np.abs(error / scale))
        if not self.by_window:
            self._add("rmse", error**2)
        if prediction.history is not None:
            self._add("mase", np.abs(error) / _mean_step(prediction.history))
        levels = sorted(prediction.quantiles)
        for level in levels:
            gap = (truth - prediction.quantiles[level][: len(truth)]) / scale
            self._add("pinball", np.maximum(level * gap, (level - 1) * gap))
        if len(levels) > 1:
            low, high = (prediction.quantiles[level][: len(truth)] for level in (levels[0], levels[-1]))
            self._add("coverage", np.where(np.isnan(truth), np.nan, (truth >= low) & (truth <= high)))
            self.wanted = levels[-1] - levels[0]

    def _scale_of(self, prediction: Series, variates: int) -> np.ndarray:
        if not self.by_window or prediction.history is None:
            return np.ones(variates) if self.scale is None else self.scale
        history = np.asarray(prediction.history, np.float64)
        known = np.isfinite(history)
        mean = np.where(known, history, 0.0).sum(0) / known.sum(0).clip(1)
        std = np.sqrt((np.where(known, history - mean, 0.0) ** 2).sum(0) / known.sum(0).clip(1))
        return np.where(std > 1e-9 * (np.abs(mean) + 1e-12), std, np.nan)  # a constant history measures nothing

    def _add(self, name: str, values: np.ndarray) -> None:
        known = ~np.isnan(values)
        self.sums[name] = self.sums.get(name, 0.0) + float(values[known].sum())
        self.counts[name] = self.counts.get(name, 0) + int(known.sum())

    def compute(self) -> Scores:
        found = {name: total / self.counts[name] for name, total in self.sums.items() if self.counts[name]}
        if "rmse" in found:
            found["rmse"] **= 0.5
        if "pinball" in found:
            found["crps"] = 2 * found["pinball"]
        return found if self.wanted is None or "coverage" not in found else {**found, "coverage_wanted": self.wanted}


def _mean_step(history: np.ndarray) -> np.ndarray:
    """Mean absolute change from one step to the next of each variate (t, c) -> (c,); NaN where it never changes."""
    steps = np.abs(np.diff(np.asarray(history, np.float64), axis=0))
    known = np.isfinite(steps)
    mean = np.where(known, steps, 0.0).sum(0) / known.sum(0).clip(1)
    return np.where(mean > 0, mean, np.nan)


def make_metric(kind: str, classes: Sequence[str] = (), **options: Any) -> Metric:
    """The accumulator for a kind of task: classification, multilabel, regression, segmentation, point_segmentation,
    detection, panoptic, instances or forecasting. Options: `ignore` (segmentation), `scale` (forecasting), `things`
    (panoptic, instances)."""
    if kind in ("panoptic", "instances"):
        import polysense.training.metrics_segments  # noqa: F401 (registers them)
    return METRICS[kind](classes, **options)


def score(
    kind: str, predictions: Iterable[Any], targets: Iterable[Any], classes: Sequence[str] = (), **options: Any
) -> Scores:
    """Metrics of predictions and their targets; see `make_metric`."""
    metric = make_metric(kind, classes, **options)
    for prediction, target in zip(predictions, targets, strict=True):
        metric.update(prediction, target)
    return metric.compute()

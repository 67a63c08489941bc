"""`make_card`: tables and pictures from the very answers that the metrics are of.

They hold counts, curves and numbers to predict, but no input: a bundle that is given away takes nobody's data with it.
`worst_examples` draws inputs, for those who ask for it.

Shape legend: n examples, k classes, m names of numbers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from polysense.card import Card, Picture
from polysense.core.errors import InputError
from polysense.pipeline import Pipeline
from polysense.tasks import Task
from polysense.training.examples import Examples, FileExamples
from polysense.training.metrics import CALIBRATION_BINS, Classification, Detection, Metric, MultiLabel, Regression
from polysense.training.metrics import Segmentation as Segmented

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GREY, BLUE, ORANGE = "#1f2933", "#6b7785", "#2166ac", "#e0762f"
MOST_NAMED = 30  # classes whose names fit beside a matrix
MOST_POINTS = 2000  # of a scatter
MOST_EXAMPLES = 12  # that a card may show
EXAMPLE_SIZE, EXAMPLE_COLOURS = (560, 314), 96  # pixels and colours of one, so that a bundle stays small

RANKED = ("classification", "multilabel", "regression")  # kinds whose answers can be called more or less wrong
DRAWN = ("image", "video", "audio", "point_cloud", "time_series")  # modalities whose inputs are files

History = Sequence[tuple[int, Mapping[str, float], "float | None"]]


def make_card(metric: Metric, main: str, history: History) -> Card:
    """The card of what was measured.

    Args:
        metric: Filled.
        main: Name of the metric that judges the task.
        history: Of each epoch its number, metrics and loss.
    """
    pictures: dict[str, Picture] = {}
    per_class: dict[str, dict[str, float]] = {}
    if len(history) > 1:
        pictures["learning.png"] = _learning(main, history)
    if isinstance(metric, Classification) and metric.targets and len(metric.classes) > 1:
        scores, truth = np.array(metric.scores), np.array(metric.targets)
        confusion = _confusion(truth, scores.argmax(1), len(metric.classes))
        per_class = _per_class(metric.classes, np.diag(confusion), confusion.sum(0), confusion.sum(1))
        pictures["confusion.png"] = _matrix(confusion, metric.classes, "examples")
        pictures["reliability.png"] = _reliability(scores.max(1), scores.argmax(1) == truth)
    if isinstance(metric, MultiLabel) and metric.targets:
        chosen, hot = np.array(metric.chosen), np.array(metric.targets)
        per_class = _per_class(metric.classes, (chosen * hot).sum(0), chosen.sum(0), hot.sum(0))
        pictures["reliability.png"] = _reliability(np.array(metric.scores).ravel(), hot.ravel() > 0)
    if isinstance(metric, Segmented) and metric.confusion.sum():
        counts = metric.confusion
        per_class = _per_class(metric.classes, np.diag(counts), counts.sum(0), counts.sum(1))
        for name, value in metric.per_class().items():
            per_class[name]["iou"] = value
        pictures["confusion.png"] = _matrix(counts, metric.classes, "pixels or points")
    if isinstance(metric, Regression) and metric.rows:
        pictures["scatter.png"] = _scatter(metric.names, np.array(metric.rows))
    if isinstance(metric, Detection) and metric.objects:
        curves, per_class = metric.curves()
        pictures["precision_recall.png"] = _curves(curves)
    return Card(per_class, pictures)


def _confusion(truth: Int[np.ndarray, " n"], answer: Int[np.ndarray, " n"], k: int) -> Int[np.ndarray, "k k"]:
    return np.bincount(truth * k + answer, minlength=k * k).reshape(k, k)


def _per_class(names: Sequence[str], both: Any, said: Any, true: Any) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of each class that is true or answered somewhere, and how often it is true."""
    found: dict[str, dict[str, float]] = {}
    for name, hit, answers, count in zip(names, both.tolist(), said.tolist(), true.tolist(), strict=True):
        if answers or count:
            found[name] = {"precision": hit / max(answers, 1), "recall": hit / max(count, 1),
                           "f1": 2 * hit / (answers + count), "count": count}  # fmt: skip
    return found


def _matrix(counts: Int[np.ndarray, "k k"], names: Sequence[str], what: str) -> Picture:
    """Shares of each true class; numbers where there is room for them."""
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    k = len(names)
    side = min(4.0 + 0.3 * k, 9.0)

    def draw(axes: Axes) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xlabel("answer", color=GREY)
        axes.set_ylabel("truth", color=GREY)
        axes.spines[:].set_visible(False)
        if k > MOST_NAMED:
            axes.set(xticks=[], yticks=[])
            return
        short = [_short(name) for name in names]
        axes.set_xticks(range(k), short, rotation=90)
        axes.set_yticks(range(k), short)
        for i, j in zip(*shares.round(2).nonzero(), strict=True) if k <= 12 else ():
            ink = "white" if shares[i, j] > 0.5 else INK
            axes.text(j, i, f"{shares[i, j]:.2f}", ha="center", va="center", fontsize=8, color=ink)

    return Picture(_png(draw, (side, side)), f"Confusion: of each true class, the share of its {what} by answer")


def _reliability(sure: Float[np.ndarray, " n"], right: np.ndarray) -> Picture:
    """Share of right answers by confidence, in bins of equal width (Guo et al. 2017)."""
    place = np.minimum((sure * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    count = np.bincount(place, minlength=CALIBRATION_BINS)
    there = count > 0
    mean = np.bincount(place, sure, CALIBRATION_BINS)[there] / count[there]
    share = np.bincount(place, right.astype(float), CALIBRATION_BINS)[there] / count[there]

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
        axes.plot(mean, share, color=BLUE, linewidth=1.2)
        axes.scatter(mean, share, s=12 + 250 * count[there] / count.sum(), color=BLUE, linewidths=0)
        _label(axes, "confidence", "share that is right", (0, 1), (0, 1))

    return Picture(_png(draw, (4.5, 4.5)), "Reliability: on the diagonal confidence is true; dots grow with answers")


def _scatter(names: Sequence[str], rows: Float[np.ndarray, "n 2 m"]) -> Picture:
    """Answers against truth, one panel for each of up to four names."""
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_POINTS)).astype(int)]

    def draw(*panels: Axes) -> None:
        for i, axes in enumerate(panels):
            answer, truth = some[:, 0, i], some[:, 1, i]
            ends = (min(answer.min(), truth.min()), max(answer.max(), truth.max()))
            axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=":")
            axes.scatter(truth, answer, s=8, alpha=0.5, color=BLUE, linewidths=0)
            _label(axes, f"{_short(names[i])}, true", "answered")

    count = min(len(names), 4)
    return Picture(_png(draw, (4.5 * count, 4.5), count), "Answers against truth; on the dotted line they are right")


def _curves(curves: Mapping[str, Float[np.ndarray, " r"]]) -> Picture:
    """Precision by recall of each class in grey, and their mean."""

    def draw(axes: Axes) -> None:
        recall = np.linspace(0, 1, len(next(iter(curves.values()))))
        for curve in curves.values():
            axes.plot(recall, curve, color=GREY, linewidth=0.8, alpha=0.6)
        axes.plot(recall, np.mean(list(curves.values()), 0), color=BLUE, linewidth=2)
        _label(axes, "recall", "precision", (0, 1), (0, 1.02))

    caption = "Precision by recall at an overlap (IoU) of one half: classes in grey, their mean in blue"
    return Picture(_png(draw, (5.0, 4.5)), caption)


def _learning(main: str, history: History) -> Picture:
    def draw(axes: Axes) -> None:
        axes.plot([epoch for epoch, _, _ in history], [row[main] for _, row, _ in history], color=BLUE, marker="o")
        _label(axes, "epoch", f"{main}, validation")
        axes.yaxis.label.set_color(BLUE)
        right = axes.twinx()
        known = [(epoch, loss) for epoch, _, loss in history if loss is not None]
        right.plot(*zip(*known, strict=True), color=ORANGE, linestyle="--")
        right.set_ylabel("loss, training", color=ORANGE)
        right.spines["top"].set_visible(False)
        axes.locator_params(axis="x", integer=True)

    return Picture(_png(draw, (6.0, 3.6)), f"Learning: {main} on validation data and the training loss by epoch")


def _label(axes: Axes, x: str, y: str, across: Any = None, up: Any = None) -> None:
    axes.set_xlabel(x, color=GREY)
    axes.set_ylabel(y, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(**{name: ends for name, ends in (("xlim", across), ("ylim", up)) if ends is not None})


def _png(draw: Callable[..., None], size: tuple[float, float], panels: int = 1) -> bytes:
    """The same bytes for the same numbers: no date and no version stands in them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=80, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    draw(*np.ravel(figure.subplots(1, panels)))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _short(name: str) -> str:
    return (name if len(name) <= 18 else name[:17] + "…").replace("$", r"\$")


def check_examples(task: Task, draw: Callable[..., Any] | None) -> None:
    """Makes sure, before a training, that its worst answers can be found and drawn.

    Raises:
        InputError: They cannot.
    """
    if draw is None:
        raise InputError("card_examples", "nothing draws them", "give draw, such as polysense.apps.pictures.draw")
    if task.kind not in RANKED or task.modality not in DRAWN:
        kinds = "classes, labels or numbers of images, videos, recordings, clouds and series"
        raise InputError("card examples", f"{task.name} has none", f"leave them out; they are for {kinds}")


def worst_examples(
    pipeline: Pipeline, metric: Metric, examples: Examples, count: int, draw: Callable[..., Any]
) -> dict[str, Picture]:
    """Pictures of the answers that were most wrong, with file names but no folders.

    Args:
        pipeline: That was measured.
        metric: Filled with all of the examples, in order.
        examples: What it was measured on.
        count: How many.
        draw: Writes a PNG of (prediction, source, path, modality).
    """
    if isinstance(metric, Classification):
        wrong = 1 - np.array(metric.scores)[np.arange(len(metric.targets)), metric.targets]
    elif isinstance(metric, MultiLabel):
        wrong = np.abs(np.array(metric.scores) - np.array(metric.targets)).mean(1)
    else:
        assert isinstance(metric, Regression)
        rows = np.array(metric.rows)
        wrong = (np.abs(rows[:, 0] - rows[:, 1]) / rows[:, 1].std(0).clip(1e-12)).mean(1)
    assert isinstance(examples, FileExamples)
    found = {}
    with TemporaryDirectory() as folder:
        for rank, i in enumerate(np.argsort(-wrong, kind="stable")[: min(count, MOST_EXAMPLES)].tolist(), 1):
            samples, target = examples.whole(i)
            prediction = pipeline.predict_sequences([samples])[0]
            path = Path(folder) / f"worst_{rank:02}.png"
            draw(prediction, examples.items[i].source, path, pipeline.modality)
            truth = ", ".join(map(str, target)) if isinstance(target, list) else str(target)
            caption = f"{Path(prediction.source).name}: truth {truth}, answer {prediction.answer()}"
            found[path.name] = Picture(_smaller(path), caption)
    return found


def _smaller(path: Path) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(path) as picture:
        small = picture.convert("RGB").resize(EXAMPLE_SIZE, Image.Resampling.LANCZOS)
    small.quantize(EXAMPLE_COLOURS, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()

"""Answers as pictures: one PNG for each, the input and what was said about it.

Drawn with matplotlib's Agg canvas and without pyplot, so that it works without a screen and in threads.

Shape legend: k boxes, h height or horizon, w width, n points, t history, c variates, d width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polysense.apps.panels import (
    ACCENT,
    COLOURS,
    GREY,
    INK,
    PALE,
    bare,
    class_colours,
    few_dates,
    plain,
    quiet,
    show_cloud,
    show_source,
    split,
    split_row,
)
from polysense.core.predictions import Boxes, Embedding, Labels, Mask, Prediction, Segments, Series, Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SIZE = (10.0, 5.6)  # inches at 100 dots each
MODALITY_OF_ENDING = {
    "image": {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"},
    "video": {".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif"},
    "audio": {".wav", ".flac", ".ogg", ".mp3"},
    "point_cloud": {".ply", ".pcd", ".xyz", ".las", ".laz", ".obj", ".stl", ".off", ".bin", ".npz"},
    "time_series": {".ts", ".npy"},
    "tabular": {".csv", ".tsv", ".parquet", ".xlsx"},
    "text": {".txt", ".md", ".jsonl"},
}


def draw(prediction: Prediction, source: Any, path: str | Path, modality: str | None = None) -> Path:
    """Writes one PNG of about 1000 × 560 pixels.

    Args:
        prediction: The answer.
        source: The input it answers: what the modality's reader takes; "table.csv#3" means a row.
        path: The file to write.
        modality: Name of the modality; None takes it from the source's ending.

    Returns:
        The path.

    Raises:
        InputError: The source cannot be read.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=SIZE, dpi=100, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    top, body = split(figure, 2, 1, height_ratios=(1, 8.5))
    _title(top, prediction)
    if isinstance(prediction, Series):
        show_forecast(body, prediction)
    elif isinstance(prediction, Boxes):
        _boxes(body, prediction, source)
    elif isinstance(prediction, Mask):
        _mask(body, prediction, source)
    elif isinstance(prediction, Segments):
        _segments(body, prediction, source)
    else:
        left, right = split(body, 1, 2, width_ratios=(1.75, 1))
        show_source(left, source, modality or guess_modality(source))
        if isinstance(prediction, Labels):
            _bars(right, prediction.names[:5], prediction.scores[:5], prediction.chosen)
        elif isinstance(prediction, Values):
            _numbers(right, prediction)
        else:
            _vector(right, prediction)
    figure.savefig(path)
    return Path(path)


def guess_modality(source: Any) -> str:
    """The modality a path's ending stands for; an image where there is no path."""
    if not isinstance(source, str | Path):
        return "image"
    ending = Path(split_row(source)[0]).suffix.lower()
    return next((name for name, endings in MODALITY_OF_ENDING.items() if ending in endings), "image")


def _title(figure: SubFigure | Figure, prediction: Prediction) -> None:
    """The answer, large, over the input's name and the confidence, small."""
    name = Path(prediction.source).name or prediction.source
    small = name if prediction.confidence is None else f"{name}   ·   confidence {prediction.confidence:.0%}"
    figure.text(0.012, 0.60, _short(prediction.answer(), 66), fontsize=17, weight="bold", color=INK, va="center")
    figure.text(0.012, 0.02, _short(small, 110), fontsize=11, color=GREY, va="center")


def _short(text: str, length: int) -> str:
    return plain(text if len(text) <= length else text[: length - 1] + "…")


def _bars(figure: SubFigure, names: Sequence[str], scores: Sequence[float], chosen: Sequence[str]) -> None:
    """Probabilities, most probable on top; the chosen classes in colour."""
    axes = figure.subplots()
    for i, (name, score) in enumerate(zip(names, scores)):
        axes.barh(i, 1.0, height=0.30, color=PALE)
        axes.barh(i, score, height=0.30, color=ACCENT if name in chosen else "#9db4cc")
        axes.text(0, i - 0.22, _short(str(name).replace("_", " "), 26), fontsize=12, color=INK, va="bottom")
        axes.text(1, i - 0.22, f"{score:.1%}", fontsize=12, color=INK, va="bottom", ha="right")
    bare(axes).set(xlim=(0, 1), ylim=(max(len(names), 5) - 0.4, -0.8))


def _numbers(figure: SubFigure, prediction: Values) -> None:
    axes = bare(figure.subplots())
    shown = list(prediction.values.items())[:8]
    for i, (name, value) in enumerate(shown):
        axes.text(0, i, _short(name, 30), fontsize=12, color=GREY, va="center")
        axes.text(0, i + 0.36, f"{value:,.4g}", fontsize=20, color=ACCENT, weight="bold", va="center")
    axes.set(xlim=(0, 1), ylim=(max(len(shown), 4) - 0.1, -0.5))


def _vector(figure: SubFigure, prediction: Embedding) -> None:
    """The vector as a block of cells, row by row."""
    d = len(prediction.vector)
    columns = max(1, int(np.ceil(np.sqrt(d))))
    cells = np.full(-(-d // columns) * columns, np.nan)
    cells[:d] = prediction.vector
    limit = float(np.nanmax(np.abs(cells))) or 1.0
    axes = bare(figure.subplots())
    axes.imshow(cells.reshape(-1, columns), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title(f"{d} numbers, −{limit:.2g} (blue) to {limit:.2g} (red)", fontsize=11, color=GREY)


def _boxes(figure: SubFigure, prediction: Boxes, source: Any) -> None:
    from matplotlib.patches import Rectangle

    from polysense.data.image import read_image

    left, right = split(figure, 1, 2, width_ratios=(3.6, 1))
    axes = bare(left.subplots())
    h, w = prediction.size
    axes.imshow(np.asarray(read_image(source, target=1400)), extent=(0, w, h, 0))
    order = _by_frequency(prediction.labels)
    many = len(prediction.labels) > 12
    for (x1, y1, x2, y2), label, score in zip(prediction.xyxy, prediction.labels, prediction.scores):
        colour = COLOURS[order.index(label) % len(COLOURS)]
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=2.2))
        # Names over every box of a crowd would hide it; the legend has them.
        text = f"{score:.0%}" if many else f"{_short(str(label), 18)} {score:.0%}"
        axes.text(x1, max(y1, 0.05 * h), text, fontsize=8 if many else 10, color="white", va="bottom",
                  bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.5}, clip_on=True)  # fmt: skip
    axes.set(xlim=(0, w), ylim=(h, 0))
    counts = [f"{list(prediction.labels).count(label)}" for label in order]
    _legend(right, order, counts)


def _mask(figure: SubFigure, prediction: Mask, source: Any) -> None:
    shares = prediction.shares()
    order = list(shares)
    left, right = split(figure, 1, 2, width_ratios=(3.6, 1))
    rank = np.array([order.index(name) if name in shares else 0 for name in prediction.names])
    if prediction.index.ndim == 1:
        show_cloud(left, source, rank[prediction.index])
    else:
        _overlay(left, source, rank[prediction.index], prediction.index)
    _legend(right, order, [f"{share:.0%}" if share >= 0.01 else "<1%" for share in shares.values()])


def _segments(figure: SubFigure, prediction: Segments, source: Any) -> None:
    order = _by_frequency(prediction.labels)
    left, right = split(figure, 1, 2, width_ratios=(3.6, 1))
    colour = np.array([*(order.index(label) for label in prediction.labels), -1])  # -1: no segment, no paint
    axes = _overlay(left, source, colour[prediction.index], prediction.index)
    boxes = prediction.boxes()
    for (x1, y1, x2, y2), label, area in zip(boxes, prediction.labels, prediction.areas()):
        if area >= 0.01 * prediction.index.size:  # smaller ones have no room for a name
            axes.text((x1 + x2) / 2, (y1 + y2) / 2, _short(str(label), 18), fontsize=9, color="white", ha="center",
                      va="center", bbox={"facecolor": INK, "edgecolor": "none", "pad": 1.5, "alpha": 0.7},
                      clip_on=True)  # fmt: skip
    _legend(right, order, [f"{list(prediction.labels).count(label)}" for label in order])


def _overlay(figure: SubFigure, source: Any, colour: np.ndarray, parts: np.ndarray) -> Axes:
    """The picture in grey under the colours' numbers (-1: none), with a white line where `parts` differ."""
    from polysense.data.image import read_image

    h, w = parts.shape
    picture = read_image(source, target=1000)
    step = max(1, round(h / picture.height))  # the reader may have decoded a smaller picture
    colour, parts = colour[::step, ::step], parts[::step, ::step]
    border = np.zeros(parts.shape, bool)
    border[:, 1:] |= parts[:, 1:] != parts[:, :-1]
    border[1:] |= parts[1:] != parts[:-1]
    paint = class_colours(colour.clip(0))
    paint[border] = 1.0
    axes = bare(figure.subplots())
    axes.imshow(np.asarray(picture.convert("L").convert("RGB")), extent=(0, w, h, 0))
    opacity = np.where(border, 0.9, np.where(colour < 0, 0.0, 0.5))
    axes.imshow(np.dstack([paint, opacity]), extent=(0, w, h, 0), interpolation="nearest")
    return axes


def _legend(figure: SubFigure, names: Sequence[str], values: Sequence[str]) -> None:
    """Names with their colours and a number each."""
    axes = bare(figure.subplots())
    shown = min(len(names), 12)
    for i in range(shown):
        axes.scatter(0.04, i, s=130, marker="s", color=COLOURS[i % len(COLOURS)])
        axes.text(0.14, i, _short(str(names[i]), 15), fontsize=12, color=INK, va="center")
        axes.text(1.0, i, values[i], fontsize=12, color=GREY, va="center", ha="right")
    if shown < len(names):
        axes.text(0.14, shown, f"and {len(names) - shown} more", fontsize=11, color=GREY, va="center")
    axes.set(xlim=(0, 1), ylim=(max(shown + 1, 9), -0.6))


def _by_frequency(labels: Sequence[str]) -> list[str]:
    """Label names, most frequent first, so that what there is most of has the calmest colour."""
    return sorted(dict.fromkeys(labels), key=lambda name: -list(labels).count(name))


def show_forecast(figure: SubFigure | Figure, prediction: Series, beside: int | None = None) -> None:
    """History, forecast and quantile bands of up to four variates; `beside`: names of the legend in a row."""
    from matplotlib.patches import Rectangle

    h, count = len(prediction.mean), min(len(prediction.names), 4)
    strips = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    future, past = _time_axes(prediction)
    levels = sorted(prediction.quantiles)
    pairs = [(low, high) for low, high in zip(levels, levels[::-1]) if low < 0.5 < high]
    for i, axes in enumerate(strips):
        colour = COLOURS[i % len(COLOURS)]
        values = prediction.mean[:, i]
        if prediction.history is not None:
            # Three horizons of history are enough to see what the forecast goes on from.
            seen = prediction.history[-max(3 * h, 48) :, i]
            axes.plot(past[-len(seen) :], seen, color=INK, linewidth=1.3, label="history")
            axes.axvline(future[0], color=GREY, linewidth=0.8, linestyle=":")
        for low, high in pairs:
            axes.fill_between(future, prediction.quantiles[low][:, i], prediction.quantiles[high][:, i], color=colour,
                              alpha=0.18, linewidth=0, label=f"{low:.0%} to {high:.0%}")  # fmt: skip
        axes.plot(future, values, color=colour, linewidth=2.0, label="forecast")
        axes.set_ylabel(_short(prediction.names[i], 16), color=INK, fontsize=11)
        axes.margins(x=0.01)
        quiet(axes)
    few_dates(strips[-1], future.dtype.kind == "M")
    legend = strips[0].legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=beside or len(pairs) + 2, frameon=False,
                              fontsize=10, labelcolor=INK, borderaxespad=0.2)  # fmt: skip
    patches = [handle for handle in legend.legend_handles if isinstance(handle, Rectangle)]
    for depth, patch in enumerate(patches):  # inner bands lie over outer ones
        patch.set_alpha(0.18 * (depth + 1))
    if count < len(prediction.names):
        strips[-1].set_xlabel(f"first {count} of {len(prediction.names)} variates", color=GREY)


def _time_axes(prediction: Series) -> tuple[np.ndarray, np.ndarray]:
    """Times of the forecast and of the history: dates where the labels are dates, step numbers elsewhere."""
    h = len(prediction.mean)
    t = 0 if prediction.history is None else len(prediction.history)
    if "-" not in str(prediction.times[0])[1:]:  # no date but a step number
        return np.arange(1, h + 1), np.arange(1 - t, 1)
    index: Any = prediction.to_frame().index  # in the zone of the input, as its clocks show it
    future = (index if prediction.zone is None else index.tz_localize(None)).to_numpy("datetime64[s]")
    step = future[1] - future[0] if h > 1 else np.timedelta64(1, "D")
    return future, future[0] - step * np.arange(t, 0, -1)

"""What an input looks like: one panel per modality, drawn into a part of a figure with the modality's own reader.

Shape legend: h height, w width, t time, f frequency, n points, c variates.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

INK, GREY, PALE, ACCENT = "#1f2933", "#6b7785", "#e4e8ec", "#2166ac"
# Distinct for most colour-blind eyes, and dark enough for white letters or pale enough for black ones.
COLOURS = ("#2166ac", "#e0762f", "#3a9a5b", "#b5398c", "#8a6d3b", "#5b5fc7", "#c8a200", "#1797a6", "#c23b3b", "#7a7f87")
MAX_POINTS = 6000  # drawn of a cloud
MAX_LINES = 16  # drawn of a text
MAX_STEPS = 2000  # drawn of a series or wave, as minimum and maximum of each bucket
VIEWS = (("front", 0, 2), ("side", 1, 2), ("top", 0, 1))  # name, horizontal and vertical axis


def show_source(figure: SubFigure, source: Any, modality: str) -> None:
    """Draws the input.

    Args:
        figure: Where to draw.
        source: What the modality's reader takes; a path may end in "#3", the row or series meant.
        modality: Whose reader it is.
    """
    PANELS[modality](figure, source)


def plain(text: object) -> str:
    """Text as it is: a dollar sign would start mathematics."""
    return str(text).replace("$", r"\$")


def show_image(figure: SubFigure, source: Any) -> None:
    from polysense.data.image import read_image

    axes = bare(figure.subplots())
    axes.imshow(np.asarray(read_image(source, target=1000)))


def show_video(figure: SubFigure, source: Any) -> None:
    """Six frames with their times."""
    from polysense.data.video import read_video

    clip = read_video(source, 6, target=400)
    wide = clip.size[1] > clip.size[0]
    grid = figure.subplots(3, 2) if wide else figure.subplots(2, 3)
    for i, axes in enumerate(grid.flat):
        bare(axes)
        if i < len(clip.frames):
            axes.imshow(clip.frames[i])
            axes.set_title(f"{clip.times[i]:.1f} s", fontsize=9, color=GREY, pad=2)


def show_audio(figure: SubFigure, source: Any) -> None:
    """The wave above its mel spectrogram."""
    import torch
    from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

    from polysense.data.audio import read_audio

    recording = read_audio(source, 16_000)
    top, low = figure.subplots(2, 1, height_ratios=(1, 2), sharex=True)
    seconds, lows, highs = buckets(recording.wave, recording.duration)
    top.fill_between(seconds, lows, highs, color=ACCENT, linewidth=0.6, edgecolor=ACCENT)
    top.set(yticks=[], xlim=(0, recording.duration))
    quiet(top)
    top.spines["left"].set_visible(False)
    # Long recordings get longer hops: a screen shows about a thousand columns.
    hop = max(160, len(recording.wave) // 1000)
    width = max(1024, hop)
    mel = MelSpectrogram(16_000, n_fft=width, win_length=max(400, hop), hop_length=hop, n_mels=96, f_min=40)
    wave = torch.as_tensor(recording.wave, dtype=torch.float32)
    wave = torch.nn.functional.pad(wave, (0, max(0, width - len(wave))))  # some are shorter than one column looks
    power = AmplitudeToDB(top_db=70)(mel(wave)[:, : len(recording.wave) // hop + 1])
    low.imshow(power.numpy(), origin="lower", aspect="auto", cmap="magma", extent=(0, recording.duration, 0, 96))
    marks = np.array([100, 300, 1000, 3000, 8000])
    scale = 2595 * np.log10(1 + np.array([40, *marks, 8000]) / 700)  # hertz to mel
    low.set_yticks(96 * (scale[1:-1] - scale[0]) / (scale[-1] - scale[0]), ["100", "300", "1k", "3k", "8k"])
    low.set_xlabel("seconds", color=GREY)
    low.set_ylabel("hertz", color=GREY)
    quiet(low)


def show_cloud(
    figure: SubFigure, source: Any, classes: np.ndarray | None = None, paint: np.ndarray | None = None
) -> None:
    """Front, side and top view; coloured by class, as told, by the cloud's own colours or by height.

    Args:
        figure: Where to draw.
        source: What `read_cloud` takes.
        classes: Class index of every point (n,).
        paint: Colour of every point (n, 3), 0..1.
    """
    from polysense.data.point_cloud import read_cloud, read_clouds_all

    path, row = split_row(source)
    cloud = read_cloud(path) if row is None else read_clouds_all(path)[row]
    points = cloud.xyz - cloud.xyz.mean(0)
    chosen = np.random.default_rng(0).permutation(len(points))[:MAX_POINTS]
    colours = points[chosen, 2]
    if classes is not None and len(classes) == len(points):
        colours = class_colours(classes[chosen])
    elif paint is not None:
        colours = paint[chosen]
    elif "rgb" in cloud.features:
        colours = cloud.features["rgb"][chosen]
    size = float(np.clip(9000 / max(len(chosen), 1), 1.0, 14.0))
    spread = np.maximum(np.ptp(points, axis=0), 1e-9)
    # Widths in proportion to what each view spans, so that all share one scale.
    ratios = np.clip([spread[a] for _, a, _ in VIEWS] / spread.max(), 0.35, 1.0)
    for axes, (name, across, up) in zip(figure.subplots(1, 3, width_ratios=ratios.tolist()), VIEWS):
        deep = 3 - across - up
        order = np.argsort(points[chosen, deep] * (1 if name == "top" else -1))  # near points over far ones
        at = points[chosen][order]
        axes.scatter(at[:, across], at[:, up], c=colours[order], s=size, linewidths=0)
        bare(axes).set_aspect("equal")
        axes.set_title(name, fontsize=10, color=GREY)


def class_colours(index: np.ndarray) -> np.ndarray:
    """Class indices of any shape -> RGB, 0..1, with one more axis."""
    from matplotlib.colors import to_rgb

    return np.array([to_rgb(colour) for colour in COLOURS])[index % len(COLOURS)]


def show_series(figure: SubFigure, source: Any) -> None:
    """Up to six variates, one strip each."""
    from polysense.data.time_series import read_series, read_series_all

    path, row = split_row(source)
    frame = read_series(path) if row is None else read_series_all(path)[row]
    count = min(len(frame.names), 6)
    x = frame.times if frame.times is not None else np.arange(len(frame.values))
    strips = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for i, axes in enumerate(strips):
        axes.plot(x, frame.values[:, i], color=COLOURS[i], linewidth=1.3)
        axes.set_ylabel(plain(frame.names[i])[:14], color=INK, fontsize=10)
        axes.margins(x=0.01)
        quiet(axes)
    few_dates(strips[-1], frame.times is not None)
    if count < len(frame.names):
        strips[0].set_title(f"first {count} of {len(frame.names)} variates", fontsize=10, color=GREY, loc="left")


def show_table(figure: SubFigure, source: Any) -> None:
    """The row's columns and values; long rows show their first columns."""
    pairs = [(str(name), _value(value)) for name, value in table_row(source).items()]
    most = 14
    shown = pairs[:most] + ([("…", f"{len(pairs) - most} more columns")] if len(pairs) > most else [])
    axes = bare(figure.subplots())
    axes.set(xlim=(0, 1), ylim=(len(shown), -0.5))
    for i, (name, value) in enumerate(shown):
        axes.text(0.47, i, plain(name)[:26], ha="right", va="center", color=GREY, fontsize=11)
        axes.text(0.51, i, plain(value)[:26], ha="left", va="center", color=INK, fontsize=11, weight="bold")
        axes.axhline(i + 0.5, color=PALE, linewidth=0.8)


def show_text(figure: SubFigure, source: Any) -> None:
    """The text's beginning, as many lines as fit."""
    from itertools import islice
    from textwrap import wrap

    from polysense.data.text import read_texts

    path, row = split_row(source)
    text = next(islice(read_texts(path), row or 0, None)).text
    lines = [line for part in text.splitlines() for line in wrap(part, 62) or [""]]
    shown = lines[:MAX_LINES] + (["…"] if len(lines) > MAX_LINES else [])
    axes = bare(figure.subplots())
    axes.text(0, 1, plain("\n".join(shown)), va="top", color=INK, fontsize=12, linespacing=1.45, wrap=False)
    axes.set(xlim=(0, 1), ylim=(0, 1))


PANELS = {
    "image": show_image,
    "video": show_video,
    "audio": show_audio,
    "point_cloud": show_cloud,
    "time_series": show_series,
    "tabular": show_table,
    "text": show_text,
}


def split_row(source: Any) -> tuple[Any, int | None]:
    """ "t.csv#3" -> ("t.csv", 3); a file whose own name holds the sign stays whole."""
    if not isinstance(source, str | Path) or Path(source).exists():
        return source, None
    path, _, row = str(source).rpartition("#")
    return (path, int(row)) if path and row.isdigit() else (source, None)


def table_row(source: Any) -> dict[str, Any]:
    """One row of what `read_table` takes, as {column: value}."""
    from polysense.data.table import read_table

    path, row = split_row(source)
    return {str(name): value for name, value in read_table(path).iloc[row or 0].items()}


def _value(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def buckets(wave: np.ndarray, duration: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time, minimum and maximum of at most `MAX_STEPS` stretches: what a screen can show of a long wave."""
    count = min(MAX_STEPS, len(wave))
    edges = np.linspace(0, len(wave), count, endpoint=False).astype(int)
    return edges / len(wave) * duration, np.minimum.reduceat(wave, edges), np.maximum.reduceat(wave, edges)


def split(figure: Figure | SubFigure, rows: int, columns: int, **ratios: Any) -> list[SubFigure]:
    """Cuts a figure into parts, row by row."""
    return list(np.ravel(figure.subfigures(rows, columns, **ratios)))


def bare(axes: Axes) -> Axes:
    """No ticks, no frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def quiet(axes: Axes) -> Axes:
    """Left and bottom lines only, in grey."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelsize=9)
    return axes


def few_dates(axes: Axes, dated: bool) -> None:
    """Few, short date labels; step numbers where there are no dates."""
    if not dated:
        axes.set_xlabel("step", color=GREY)
        return
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))

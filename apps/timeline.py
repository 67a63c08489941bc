"""`polysense timeline`: scores of a recording or film over time, as lines, a table and a picture.

Shape legend: w windows, t time.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from polysense.apps.inputs import check_model, choose_device
from polysense.apps.panels import COLOURS, GREY, INK, buckets, plain, quiet, split
from polysense.apps.pictures import SIZE
from polysense.apps.result_files import TABLES, open_files, write_table
from polysense.apps.screen import note
from polysense.timeline import Timeline, check_asked
from polysense.timeline import timeline as run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = 5  # classes drawn
FRAMES = 8  # of a film


def timeline(
    model: str,
    file: Path,
    *,
    window: float | None = None,
    step: float | None = None,
    most: int,
    out: Path | None = None,
    plot: Path | None = None,
    batch_size: int = 16,
    device: str = "auto",
    threads: int | None = None,
) -> None:
    """Answers windows of a file, shows which class when, and writes.

    Args:
        model: A task's name or a bundle's folder.
        file: A recording or film.
        window: See `polysense.timeline.timeline`.
        step: See there.
        most: See there.
        out: File for all scores: .csv or .parquet.
        plot: Picture: .png.
        batch_size: Sequences that run together.
        device: "auto", "cpu", "cuda" …
        threads: CPU threads.

    Raises:
        InputError: See there; or a file cannot be written, which is found before the work begins.
    """
    import polysense

    check_model(model)
    with open_files(file, {out: TABLES, plot: (".png",)}) as files:
        pipeline = polysense.load(model, device=choose_device(device, threads))
        check_asked(pipeline, window, step, most)
        found = run(pipeline, file, window, step, most, batch_size)
        if out is not None:
            write_table(found.to_frame(), files[out], out.suffix.lower())
        if plot is not None:
            draw_timeline(found, file, pipeline.modality, files[plot], f"{model} on {file.name}")
        for one in found.runs():
            print(f"{one.begin:.2f}\t{one.end:.2f}\t{one.name}\t{one.score:.3f}", flush=True)
    for path in (out, plot):
        if path is not None:
            note(f"wrote {path}")


def draw_timeline(found: Timeline, source: Any, modality: str, file: Path | IO[bytes], title: str) -> None:
    """Writes one PNG: the wave or frames above, under them the scores of the classes that score highest at any time.

    Args:
        found: The scores.
        source: The recording that they are of.
        modality: "audio" or "video".
        file: Path, or file open for bytes.
        title: First line; the length of windows follows under it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=SIZE, dpi=100, facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    head, body = split(figure, 2, 1, height_ratios=(1, 8.5))
    head.text(0.012, 0.60, plain(title if len(title) <= 66 else title[:65] + "…"), fontsize=17, weight="bold",
              color=INK, va="center")  # fmt: skip
    head.text(0.012, 0.02, f"{len(found.spans)} windows of {np.ptp(found.spans[0]):.2g} s", fontsize=11, color=GREY,
              va="center")  # fmt: skip
    top, low = body.subplots(2, 1, sharex=True, height_ratios=(1, 2.4))
    (_wave if modality == "audio" else _frames)(top, source, found.duration)
    for colour, name in zip(COLOURS, found.best(LINES)):
        scores = found.scores[:, list(found.names).index(name)]
        low.plot(found.times, scores, color=colour, linewidth=2, marker="o", markersize=3, label=plain(name)[:30])
    low.set(xlim=(0, found.duration), ylim=(-0.02, 1.02))
    low.set_xlabel("seconds", color=GREY)
    low.set_ylabel("probability", color=GREY)
    quiet(low)
    low.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=LINES, frameon=False, fontsize=10, labelcolor=INK,
               borderaxespad=0.2)  # fmt: skip
    figure.savefig(file, format="png")


def _wave(axes: Axes, source: Any, duration: float) -> None:
    from polysense.data.audio import read_audio

    seconds, lows, highs = buckets(read_audio(source, 16_000).wave, duration)
    axes.fill_between(seconds, lows, highs, color=GREY, linewidth=0.6, edgecolor=GREY)
    _blank(axes)


def _frames(axes: Axes, source: Any, duration: float) -> None:
    """Frames side by side, each where its share of the time is."""
    from polysense.data.video import read_video

    frames = read_video(source, FRAMES, target=200).frames
    for i, frame in enumerate(frames):
        h, w = frame.shape[:2]
        extent = (i * duration / len(frames), (i + 1) * duration / len(frames), 0, 1)
        side = min(h, round(0.75 * w))  # cut to one shape, so that the strip is even
        top = (h - side) // 2
        axes.imshow(frame[top : top + side], extent=extent, aspect="auto")
    _blank(axes)


def _blank(axes: Axes) -> None:
    axes.set(yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(bottom=False)

"""What was looked at as a picture: the input in grey under a heat map, one PNG each.

The colours (viridis) are told apart by colour-blind eyes and in grey print. They stand for multiples of an even share
and always reach from 0 to at least twice as much, so that a map in which all places count alike looks flat.

Shape legend: h height, w width, t time steps, f bands.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polysense.apps.panels import GREY, INK, bare, plain, show_audio, show_cloud, split
from polysense.core.errors import InputError

if TYPE_CHECKING:
    from matplotlib.colors import Normalize
    from matplotlib.figure import SubFigure

    from polysense.relevance import Relevance

MAP = "viridis"
SAID = {
    "rollout": "attention through all layers (rollout)",
    "last": "attention of the last layer",
    "gradient": "what spoke for",
}


def draw_relevance(found: Relevance, source: Any, path: str | Path) -> Path:
    """Writes one PNG of about 1000 × 560 pixels.

    Args:
        found: What `polysense.relevance.relevance` gave.
        source: The input it is of.
        path: The file to write.

    Returns:
        The path.

    Raises:
        InputError: There is no picture for inputs of this kind, or the source cannot be read.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    check_drawn(found.modality, found.source)
    figure = Figure(figsize=(10.0, 5.6), dpi=100, facecolor="white",
                    layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))  # fmt: skip
    FigureCanvasAgg(figure)
    top, body = split(figure, 2, 1, height_ratios=(1, 8.5))
    says = SAID[found.method] if found.target is None else f"{SAID[found.method]} {found.target!r}"
    top.text(0.012, 0.60, plain(says), fontsize=15, weight="bold", color=INK, va="center")
    top.text(0.012, 0.02, plain(Path(found.source).name or found.source), fontsize=11, color=GREY, va="center")
    times = found.values * found.values.size  # 1: an even share
    norm = Normalize(0, max(2.0, float(times.max())))
    left, right = split(body, 1, 2, width_ratios=(8, 1))
    PANELS[found.modality](left, found, source, times, norm)
    _scale(right, norm, found.elsewhere)
    figure.savefig(path)
    return Path(path)


def check_drawn(modality: str, source: str) -> None:
    """Raises an InputError where there is no picture for inputs of this kind."""
    if modality not in PANELS:
        kinds = ", ".join(PANELS).replace("_", " ")
        raise InputError(source, f"what was looked at is drawn for {kinds} alone",
                         "take the numbers from polysense.relevance")  # fmt: skip


def _scale(figure: SubFigure, norm: Normalize, elsewhere: float) -> None:
    """The legend: colours, and what they mean."""
    from matplotlib.cm import ScalarMappable

    axes = figure.subplots()
    bar = figure.colorbar(ScalarMappable(norm, MAP), cax=axes)
    bar.outline.set_visible(False)  # type: ignore[operator]
    axes.tick_params(colors=GREY, labelsize=9)
    axes.set_title("× an even\nshare", fontsize=9, color=GREY, loc="left")
    if elsewhere > 0:
        axes.set_xlabel(f"and {elsewhere:.0%}\non size and\nshape of\nthe whole", fontsize=9, color=GREY)


def _image(figure: SubFigure, found: Relevance, source: Any, times: np.ndarray, norm: Normalize) -> None:
    from polysense.data.image import read_image

    h, w = times.shape
    picture = read_image(source, target=1000)
    step = max(1, round(max(h, w) / 1000))
    axes = bare(figure.subplots())
    axes.imshow(np.asarray(picture.convert("L")), extent=(0, w, h, 0), cmap="gray")
    axes.imshow(times[::step, ::step], extent=(0, w, h, 0), cmap=MAP, norm=norm, alpha=0.55)


def _sound(figure: SubFigure, found: Relevance, source: Any, times: np.ndarray, norm: Normalize) -> None:
    """Cells over the spectrogram, whose own colours become grey."""
    show_audio(figure, source)
    low = figure.axes[1]
    low.images[0].set_cmap("gray")
    assert found.seconds is not None and found.hertz is not None
    bottom, top, *bands = 2595 * np.log10(1 + np.array([40, 8000, *found.hertz]) / 700)  # as `show_audio` has its axis
    height = 96 * (np.array(bands) - bottom) / (top - bottom)
    limits = low.get_xlim(), low.get_ylim()
    low.pcolormesh(found.seconds, height, times.T, cmap=MAP, norm=norm, alpha=0.55, linewidth=0)
    low.set(xlim=limits[0], ylim=limits[1])


def _cloud(figure: SubFigure, found: Relevance, source: Any, times: np.ndarray, norm: Normalize) -> None:
    from matplotlib import colormaps

    assert found.places is not None
    show_cloud(figure, found.places, paint=colormaps[MAP](norm(times))[:, :3])


PANELS = {"image": _image, "audio": _sound, "point_cloud": _cloud}

"""Pictures for the page: an input as its reader sees it, an answer drawn whole, and colours over an image.

Shape legend: h height, w width, n points.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polysense.apps.panels import COLOURS, show_cloud, show_source, split
from polysense.apps.pictures import draw
from polysense.core.predictions import Boxes, Mask, Prediction, Segments

if TYPE_CHECKING:
    from PIL.Image import Image

PANEL = (7.2, 4.2)  # inches at 120 dots each
WIDEST = 1000  # pixels of an image under colours
EDGE = 0.004  # of an image's longer side: how thick a box is drawn
OPACITY = 55  # percent of the colours over an image, before a visitor changes it

Marked = tuple["Image", list[tuple[np.ndarray, str]]]  # what an AnnotatedImage takes


def panel(source: Any, modality: str, classes: np.ndarray | None = None) -> Image:
    """The input, drawn from what the modality's reader gives.

    Args:
        source: What the reader takes.
        modality: Whose reader.
        classes: Of a point cloud: class index of every point (n,).

    Raises:
        InputError: The source cannot be read.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=PANEL, dpi=120, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    body = split(figure, 1, 1)[0]
    if classes is None:
        show_source(body, source, modality)
    else:
        show_cloud(body, source, classes)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def whole(prediction: Prediction, source: Any, modality: str) -> Image:
    """The picture that `polysense predict --pictures` makes."""
    from PIL import Image

    with tempfile.TemporaryDirectory(prefix="polysense-") as folder:
        picture = Image.open(draw(prediction, source, Path(folder) / "answer.png", modality))
        return picture.convert("RGB")  # which reads, and closes, the file


def marked(prediction: Prediction, source: Any) -> Marked:
    """An image with a mask for each class that was found in it; with none where the answer has no places.

    Raises:
        InputError: The source is no image that can be read.
    """
    from polysense.data.image import read_image

    picture = read_image(source, target=WIDEST)
    # The reader gives what is no smaller than the target: the browser needs no more than that.
    picture.thumbnail((WIDEST, WIDEST))
    size = (picture.height, picture.width)
    if isinstance(prediction, Boxes):
        return picture, [(boxes_mask(prediction, name, size), name) for name in dict.fromkeys(prediction.labels)]
    if isinstance(prediction, Mask):
        index = resized(prediction.index, size)
        return picture, [((index == prediction.names.index(name)) * 1.0, name) for name in prediction.shares()]
    if isinstance(prediction, Segments):
        index = resized(prediction.index, size)
        inner = 1.0 - 0.55 * border(index)  # several objects of a class stay apart
        of_class = {name: [i for i, label in enumerate(prediction.labels) if label == name]
                    for name in dict.fromkeys(prediction.labels)}  # fmt: skip
        return picture, [(inner * np.isin(index, numbers), name) for name, numbers in of_class.items()]
    return picture, []


def boxes_mask(prediction: Boxes, name: str, size: tuple[int, int]) -> np.ndarray:
    """Opacity (h, w) of all boxes of a class: solid edges, a breath of colour inside."""
    h, w = size
    scale = np.array([w / prediction.size[1], h / prediction.size[0]] * 2)
    thick = max(2, round(EDGE * max(size)))
    mask = np.zeros(size)
    places = [box for box, label in zip(prediction.xyxy, prediction.labels) if label == name]
    for x1, y1, x2, y2 in np.round(np.array(places) * scale).astype(int).tolist():
        inner = mask[y1 + thick : max(y2 - thick, 0), x1 + thick : max(x2 - thick, 0)].copy()
        mask[max(y1, 0) : y2, max(x1, 0) : x2] = 1.0
        mask[y1 + thick : max(y2 - thick, 0), x1 + thick : max(x2 - thick, 0)] = np.maximum(inner, 0.12)
    return mask


def resized(index: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Whole numbers (h, w) at another size, each from the nearest place."""
    rows = (np.arange(size[0]) + 0.5) * index.shape[0] / size[0]
    columns = (np.arange(size[1]) + 0.5) * index.shape[1] / size[1]
    return index[rows.astype(int)[:, None], columns.astype(int)[None]]


def border(index: np.ndarray) -> np.ndarray:
    """True (h, w) where the number to the left or above is another one."""
    edge = np.zeros(index.shape, bool)
    edge[:, 1:] |= index[:, 1:] != index[:, :-1]
    edge[1:] |= index[1:] != index[:-1]
    return edge


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, the first ones all different."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(names))}

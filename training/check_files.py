"""One pass over labelled files before a training: which can be read, what they hold, what their targets name.

Each file is read once by its own reader, images at a reduced size and clips at two moments; the tokenizer reads it
again later. That costs about as long as one epoch of reading, and finds what a look at headers does not: files cut
short.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polysense.core.errors import InputError
from polysense.data.dataset import BoxTarget, Item
from polysense.data.masks import MaskFile, read_mask
from polysense.data.segments import read_segments
from polysense.tasks import Task
from polysense.training.near_copies import SIDE, Likeness, likeness_of_picture, likeness_of_sound
from polysense.training.progress import unheard


@dataclass(frozen=True, slots=True)
class Seen:
    """What the pass found of one item."""

    item: Item
    fault: InputError | None = None  # why it cannot be learnt from
    digest: str = ""  # of its content; "" where it is neither a file nor one of the known objects
    names: tuple[str, ...] = ()  # classes that its target names
    boxes: int = 0  # of it that have no area inside of the image
    likeness: Likeness | None = None  # of a picture or a recording

    @property
    def name(self) -> str:
        return name_of(self.item.source)


def name_of(source: Any) -> str:
    """What a finding calls an input: its path, or where in a table or series file it stood."""
    return (
        str(source) if isinstance(source, str | Path) else str(getattr(source, "source", f"<{type(source).__name__}>"))
    )


def look(
    items: Sequence[Item], task: Task, classes: Sequence[str], working: Callable[[], None] = unheard
) -> Iterator[Seen]:
    """Reads every item and its target once; faults are results, not exceptions. `working` is called before each."""
    for item in items:
        working()
        try:
            size, likeness = _read(task.modality, item.source)
            names = _names(task.kind, item.target, classes, size)
            yield Seen(item, None, _digest(item.source), names, _flat_boxes(item.target, size), likeness)
        except InputError as error:
            yield Seen(item, error)


def _read(modality: str, source: Any) -> tuple[tuple[int, int] | None, Likeness | None]:
    """Decodes a source; the size (height, width) of an image, and what a picture or a recording is like.

    Raises:
        InputError: It cannot be read.
    """
    if modality == "image":
        from polysense.data.image import read_image_sized

        picture, size = read_image_sized(source, target=4 * SIDE)
        return size, likeness_of_picture(picture)
    if modality == "audio":
        from polysense.data.audio import read_audio

        recording = read_audio(source)
        return None, likeness_of_sound(recording.wave, recording.rate)
    if modality == "video":
        from polysense.data.video import read_video

        read_video(source, 2, target=64)
    elif modality == "point_cloud":
        from polysense.data.point_cloud import read_cloud

        read_cloud(source)
    elif modality == "time_series":
        from polysense.data.time_series import read_series

        read_series(source)
    elif modality == "text" and isinstance(source, str | Path):
        from polysense.data.text import read_texts

        list(read_texts(source))
    return None, None


def _digest(source: Any) -> str:
    """A hash of the content: of a file's bytes, a series' values, a text."""
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            return ""
        with Path(source).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if hasattr(source, "text"):
        return hashlib.sha256(source.text.strip().encode("utf-8", "surrogatepass")).hexdigest()
    if hasattr(source, "values"):
        values = np.ascontiguousarray(source.values)
        return hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).hexdigest()
    return ""


def _names(kind: str, target: Any, classes: Sequence[str], size: tuple[int, int] | None) -> tuple[str, ...]:
    """Class names in a target; none for numbers.

    Raises:
        InputError: A mask cannot be read, or is not of its image's size.
    """
    if kind == "segmentation":
        mask = read_mask(target)
        if size is not None and mask.shape != size:
            source = target.path if isinstance(target, MaskFile) else name_of(target)
            problem = f"the mask is {'x'.join(map(str, mask.shape[::-1]))}, its image {size[1]}x{size[0]}"
            raise InputError(source, problem, "give a mask of the image's size")
        return tuple(classes[i] for i in np.unique(mask).tolist() if 0 <= i < len(classes))
    if kind in ("panoptic", "instances"):
        segments = read_segments(target)
        return tuple(sorted({segments.labels[i] for i in np.unique(segments.index).tolist() if i >= 0}))
    if isinstance(target, BoxTarget):
        return tuple(sorted(set(target.labels)))
    if isinstance(target, str):
        return (target,)
    return tuple(target) if kind == "multilabel" else ()


def _flat_boxes(target: Any, size: tuple[int, int] | None) -> int:
    """Boxes of a target that have no area inside of the image."""
    if not isinstance(target, BoxTarget) or size is None or not len(target.xyxy):
        return 0
    boxes = np.asarray(target.xyxy, np.float64)
    inside = boxes.clip(0, [size[1], size[0]] * 2)
    return int((~((inside[:, 2:] - inside[:, :2]) > 0).all(1)).sum())

"""Data sets of segments: objects ("things") and regions ("stuff") of an image, each with its own pixels.

Layouts: COCO panoptic json with its PNGs, COCO json with outlines or run lengths, and YOLO outlines, alone or beside
masks of classes. What they hold is read when it is needed: index maps of all images would fill the memory.

Shape legend: h, w pixels of the upright original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from polysense.core.errors import InputError
from polysense.data.image import check_pixels, own_pixel_limit
from polysense.data.masks import IGNORE, MaskFile, read_mask

NOTHING = -1  # a pixel of no object: an answer there is wrong
VOID = -2  # a pixel of which nothing is said: crowds, unlabelled regions


@dataclass(frozen=True, slots=True)
class SegmentTarget:
    """The segments of one image.

    Attributes:
        index: (h, w) int32, the number of the segment at each pixel; `NOTHING` and `VOID` besides.
        labels: Class name of each number. A segment may have no pixel.
    """

    index: Int[np.ndarray, "h w"]
    labels: Sequence[str]


@runtime_checkable
class SegmentSource(Protocol):
    """Segments on disk."""

    def read(self) -> SegmentTarget: ...


def read_segments(source: SegmentTarget | SegmentSource) -> SegmentTarget:
    """The segments of one image, from memory or disk.

    Raises:
        InputError: A file cannot be read or contradicts its image.
    """
    return source if isinstance(source, SegmentTarget) else source.read()


@dataclass(frozen=True, slots=True)
class PanopticFile:
    """A COCO panoptic PNG: a segment's number is red + 256 green + 65536 blue; 0 and crowds are void."""

    path: Path
    names: dict[int, str] = field(default_factory=dict)  # class name of each number

    def read(self) -> SegmentTarget:
        try:
            with own_pixel_limit(), Image.open(self.path) as image:
                check_pixels(image, self.path)
                colours = np.asarray(image.convert("RGB"), np.int32)
        except (OSError, SyntaxError) as error:
            raise InputError(self.path, f"the segments cannot be read ({error})", "export it again") from error
        present, number = np.unique(colours @ np.array([1, 256, 65536]), return_inverse=True)
        known = [int(one) for one in present if one in self.names]
        order = np.array([known.index(one) if one in self.names else VOID for one in present.tolist()], np.int32)
        return SegmentTarget(order[number].reshape(colours.shape[:2]), [self.names[one] for one in known])


@dataclass(frozen=True, slots=True)
class OutlineFile:
    """Outlines of objects, the smaller in front, over regions where a mask of classes is given too.

    With such a mask a pixel belongs to an object only where the mask says its class, and pixels of a class of objects
    that no outline holds are void.

    Attributes:
        size: (h, w) of the image.
        shapes: (class name, outline) of each object. An outline is a list of polygons [x1, y1, x2, y2 …] in pixels, or
            run lengths as COCO writes them.
        crowds: Outlines of which nothing is said.
        mask: Classes of all pixels, or None.
        names: Class names by the mask's indices.
        things: Names of classes of objects.
    """

    size: tuple[int, int]
    shapes: tuple[tuple[str, Any], ...]
    crowds: tuple[Any, ...] = ()
    mask: MaskFile | Path | None = None
    names: tuple[str, ...] = ()
    things: frozenset[str] = frozenset()

    def read(self) -> SegmentTarget:
        index = np.full(self.size, NOTHING, np.int32)
        labels = [name for name, _ in self.shapes]
        regions = None
        if self.mask is not None:
            regions = read_mask(self.mask)
            if regions.shape != self.size:
                source = self.mask.path if isinstance(self.mask, MaskFile) else self.mask
                problem = f"the mask is {regions.shape[1]}x{regions.shape[0]}, its image {self.size[1]}x{self.size[0]}"
                raise InputError(source, problem, "give a mask of the image's size")
            self._regions(index, regions, labels)
        for outline in self.crowds:
            index[filled(outline, self.size)] = VOID
        masks = [filled(outline, self.size) for _, outline in self.shapes]
        for number in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
            own, name = masks[number], labels[number]
            if regions is not None and name in self.names:
                own &= regions == self.names.index(name)
            index[own] = number
        return SegmentTarget(index, labels)

    def _regions(self, index: Int[np.ndarray, "h w"], regions: Int[np.ndarray, "h w"], labels: list[str]) -> None:
        """Numbers each region that is no thing, after the objects; the rest is void."""
        index[:] = VOID
        for number in np.unique(regions).tolist():
            if number != IGNORE and self.names[number] not in self.things:
                index[regions == number] = len(labels)
                labels.append(self.names[number])


def filled(outline: Any, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Pixels inside of an outline, as COCO's own tools fill it."""
    from faster_coco_eval.core import mask as rle

    height, width = size
    if isinstance(outline, dict):
        runs = outline if isinstance(outline.get("counts"), str | bytes) else rle.frPyObjects(outline, height, width)
    else:
        polygons = [polygon for polygon in outline if len(polygon) >= 6]
        if not polygons:
            return np.zeros(size, bool)
        runs = rle.merge(rle.frPyObjects(polygons, height, width))
    return rle.decode(runs).astype(bool).reshape(size)

"""Pictures too large to decode at once, read region by region: tiled or striped TIFFs, or arrays that lie on disk.

Of a TIFF with reduced copies of itself (a pyramid, as scanners of microscopes write them) the smallest that suffices is
read. Decoded segments (tiles, strips) are kept while neighbouring regions want them, up to `CACHE` bytes.

Shape legend: h height, w width (pixels), c channels.
"""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from polysense.core.errors import InputError
from polysense.data.image import describe_source, open_source, read_image
from polysense.data.limits import limits
from polysense.data.slide_segments import decode_segment

CACHE = 128_000_000  # bytes of decoded segments
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
FLAT, LIGHT, DARK = 12, 200, 8  # grey values of 255, see `is_blank`


class Level(Protocol):
    """One copy of the picture, at one size."""

    height: int
    width: int

    def region(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """Pixels (h, w) or (h, w, c); the region lies inside."""


class ArrayLevel:
    """An array (h, w) or (h, w, c), in memory or mapped from disk: whatever can be sliced like one."""

    def __init__(self, array: Any) -> None:
        self.array, (self.height, self.width) = array, array.shape[:2]

    def region(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        return np.asarray(self.array[top:bottom, left:right])


class TiffLevel:
    """A page of a TIFF."""

    def __init__(self, page: Any, source: str) -> None:
        self.page, self.source, self.height, self.width = page, source, int(page.imagelength), int(page.imagewidth)
        self.rows, self.columns = (int(side) for side in page.chunks[:2])  # of a segment
        samples, planar, photometric = page.samplesperpixel, int(page.planarconfig or 1), int(page.photometric)
        if samples not in (1, 3, 4) or planar != 1 or photometric not in (1, 2, 6) or str(page.dtype) not in (
            "uint8", "uint16"):  # fmt: skip
            problem = f"its pixels ({samples} × {page.dtype}, {page.photometric.name}) are no grey or RGB values"
            raise InputError(source, problem, "convert it to RGB of 8 bits")
        if self.rows * self.columns > limits().pixels:
            problem = f"it is stored in pieces of {self.columns} × {self.rows} pixels, too large to read one by one"
            raise InputError(source, problem, "save it as a tiled TIFF")
        self.across = math.ceil(self.width / self.columns)
        self.kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def region(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        out: np.ndarray | None = None
        for row in range(top // self.rows, math.ceil(bottom / self.rows)):
            for column in range(left // self.columns, math.ceil(right / self.columns)):
                part = self._segment(row * self.across + column)
                y, x = row * self.rows, column * self.columns
                if out is None:
                    out = np.zeros((bottom - top, right - left, *part.shape[2:]), part.dtype)
                above, below = max(top, y), min(bottom, y + len(part))
                before, after = max(left, x), min(right, x + part.shape[1])
                seen = part[above - y : below - y, before - x : after - x]
                out[above - top : below - top, before - left : after - left] = seen
        assert out is not None
        return out

    def _segment(self, number: int) -> np.ndarray:
        if number in self.kept:
            self.kept.move_to_end(number)
            return self.kept[number]
        part = decode_segment(self.page, number, (self.rows, self.columns), self.source)
        self.kept[number] = part
        while len(self.kept) > 1 and len(self.kept) * part.nbytes > CACHE:
            self.kept.popitem(last=False)
        return part


class Slide:
    """A large picture: `with open_slide(source) as slide`.

    Attributes:
        source: Its name, for messages and answers.
        size: (height, width) of the original.
    """

    def __init__(self, source: str, levels: list[Level], stack: ExitStack) -> None:
        self.source, self._levels, self._stack = source, levels, stack
        self.size = (levels[0].height, levels[0].width)

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(
        self,
        window: tuple[float, float, float, float],
        size: tuple[int, int],
        resample: Image.Resampling = Image.Resampling.BILINEAR,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """A part of the picture, resized just as if the whole had been.

        Args:
            window: Left, top, right, bottom, in pixels of the original.
            size: Height and width of the answer.
            resample: The filter.
        """
        left, top, right, bottom = window
        shrink = min((right - left) / size[1], (bottom - top) / size[0])  # pixels of the original in one of the answer
        level = self._enough(shrink)
        across, down = level.width / self.size[1], level.height / self.size[0]
        box = (left * across, top * down, right * across, bottom * down)
        # Filters reach two of the answer's pixels far, at the least two of the original's.
        reach = 2 + math.ceil(2 * max(1.0, (box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0]))
        x0, y0 = max(0, math.floor(box[0]) - reach), max(0, math.floor(box[1]) - reach)
        x1, y1 = min(level.width, math.ceil(box[2]) + reach), min(level.height, math.ceil(box[3]) + reach)
        part = read_image(level.region(x0, y0, x1, y1))
        inside = (max(box[0] - x0, 0), max(box[1] - y0, 0), min(box[2] - x0, x1 - x0), min(box[3] - y0, y1 - y0))
        return np.asarray(part.resize(size[::-1], resample, box=inside))

    def _enough(self, shrink: float) -> Level:
        """The smallest copy that need not be enlarged."""
        for level in reversed(self._levels):
            if self.size[1] / level.width <= shrink * 1.01 and self.size[0] / level.height <= shrink * 1.01:
                return level
        return self._levels[0]


def open_slide(source: Any) -> Slide:
    """Opens a large picture without decoding it.

    Args:
        source: A path or bytes of a TIFF (tiles or strips, BigTIFF, pyramids), an array (h, w) or (h, w, 1 | 3 | 4) or
            what slices like one (`np.memmap`), or anything that `read_image` takes, which is then decoded at once.

    Raises:
        InputError: It cannot be read; or a TIFF's pixels are of another kind, or lie in pieces that are too large.
    """
    name = describe_source(source)
    if hasattr(source, "shape") and not hasattr(source, "read"):
        return Slide(name, [ArrayLevel(source)], ExitStack())
    with ExitStack() as stack:
        if isinstance(source, str | Path | bytes | bytearray | memoryview):
            file = open_source(source, stack)
            if file.read(4) in TIFF:
                file.seek(0)
                return Slide(name, _tiff_levels(file, name, stack), stack.pop_all())
        return Slide(name, [ArrayLevel(np.asarray(read_image(source)))], ExitStack())


def _tiff_levels(file: io.BufferedIOBase, name: str, stack: ExitStack) -> list[Level]:
    tifffile = import_tifffile(name)
    try:
        tiff = stack.enter_context(tifffile.TiffFile(file))
        pages = [level.pages[0] for level in tiff.series[0].levels]
        return [TiffLevel(page, name) for page in pages]
    except InputError:
        raise
    except Exception as error:  # its parser raises whatever it meets in a broken file
        raise InputError(name, f"the TIFF is damaged ({error})", "download or export it again") from error


def import_tifffile(name: str) -> Any:
    """The library for TIFFs, or one sentence on where it is.

    Raises:
        InputError: It is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        fix = "install it: pip install 'polysense[slides]'"
        raise InputError(name, "large TIFFs need the library tifffile", fix) from error
    return tifffile


def is_blank(pixels: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Whether a tile shows nothing: it is flat, and as light as empty glass or as dark as what no scanner has seen.

    Flat: in each channel the middle 98% of the pixels lie within `FLAT` grey values. Light: all medians are `LIGHT` or
    more; dark: all are `DARK` or less. A flat tile of any other colour (water, soil) is not blank.
    """
    some = pixels[:: 1 + len(pixels) // 128, :: 1 + pixels.shape[1] // 128]  # enough to tell, and soon sorted
    low, middle, high = np.percentile(some.reshape(-1, 3), (1, 50, 99), axis=0)
    flat = (high - low).max() <= FLAT
    return bool(flat and (middle.min() >= LIGHT or middle.max() <= DARK))

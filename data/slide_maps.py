"""Writes class maps too large to hold: a tiled, deflated TIFF, made strip by strip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int

from polysense.core.errors import InputError
from polysense.data.slides import import_tifffile

TILE = 256  # pixels along the side of a tile, and rows of a strip


def no_answer(classes: int) -> int:
    """The number in maps that is no class: 255, or 65535 where that many classes need two bytes."""
    return 255 if classes <= 255 else 65_535


def write_map(path: str | Path, strips: Iterator[Int[np.ndarray, "h w"]], size: tuple[int, int], classes: int) -> None:
    """Writes a map of class indices; what stands at the path is always complete.

    Args:
        path: Ends with .tif or .tiff.
        strips: `TILE` rows each, the last one fewer.
        size: Height and width of the map.
        classes: How many there are; decides between one and two bytes for a pixel.

    Raises:
        InputError: The file cannot be written there.
    """
    path = Path(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(path, "maps are written as TIFF", "end the name with .tif")
    if not path.parent.is_dir():
        raise InputError(path, "its folder does not exist", f"create {path.parent} first")
    tifffile = import_tifffile(str(path))
    kind, part = (
        np.uint8 if no_answer(classes) == 255 else np.uint16,
        path.with_name(f".{path.name}.{os.getpid()}.part"),
    )
    try:
        # Four bytes count to 4 GB; deflated maps are far smaller, but no one can know before.
        options = {"tile": (TILE, TILE), "compression": "zlib", "photometric": "minisblack", "metadata": None}
        tifffile.imwrite(part, _tiles(strips, kind), shape=size, dtype=kind, bigtiff=size[0] * size[1] > 2**30,
                         maxworkers=1, **options)  # fmt: skip
        part.replace(path)
    except OSError as error:
        raise InputError(path, f"cannot be written ({error.strerror})", "choose another place") from error
    finally:
        part.unlink(missing_ok=True)


def _tiles(strips: Iterator[Int[np.ndarray, "h w"]], kind: type) -> Iterator[Int[np.ndarray, "t t"]]:
    for strip in strips:
        height, width = strip.shape
        wide = np.zeros((TILE, -(-width // TILE) * TILE), kind)
        wide[:height, :width] = strip
        for left in range(0, wide.shape[1], TILE):
            yield wide[:, left : left + TILE]

"""Maps of an image's cells read back at the size of the original, a few rows at a time.

Shape legend: c maps, h rows and w columns of cells, H and W pixels of the original, r rows of a strip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from polysense.heads.grid import sample_window

STRIP = 4_000_000  # numbers that decoding holds at once: 16 MB


def inner_size(meta: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) in original pixels of what the tokens cover."""
    left, top, right, bottom = (round(side) for side in sample_window(meta))
    return bottom - top, right - left


def whole(index: Int[np.ndarray, "h w"], meta: Mapping[str, Any]) -> Int[np.ndarray, "H W"]:
    """What a cropping tokenizer did not see continues what it saw at the border."""
    height, width = meta["size"]
    left, top, right, bottom = (round(side) for side in sample_window(meta))
    return np.pad(index, ((top, height - bottom), (left, width - right)), mode="edge")


def strips(
    maps: Float[Tensor, "c h w"],
    size: tuple[int, int],
    *,
    rows: range | None = None,
    first: int = 0,
    count: int | None = None,
) -> Iterator[tuple[slice, Float[Tensor, "c r W"]]]:
    """Rows of the maps at another size, as `F.interpolate(..., mode="bilinear", align_corners=False)` gives them.

    Twenty maps of a 12 megapixel original would take 1 GB at once. Uses that the interpolation is separable: columns
    first, on few rows.

    Args:
        maps: The whole maps, or a band of their rows.
        size: Height and width of the image.
        rows: Those that are wanted, in steps of one; None: all. The slices that are given back count from the first.
        first: Which row of the whole maps is the first of the band.
        count: Rows of the whole maps.
    """
    (height, width), (c, h, _) = size, maps.shape
    rows, count = rows or range(height), count or h
    wide = F.interpolate(maps[None], (h, width), mode="bilinear", align_corners=False)[0]
    # On the CPU, in double: a picture may have more rows than single precision tells apart.
    y = ((torch.arange(rows.start, rows.stop).double() + 0.5) * count / height - 0.5).clamp(0, count - 1)
    above = y.long()
    share = (y - above).to(wide)[:, None]
    below = (above + 1).clamp(max=count - 1) - first
    above = above - first
    step = max(STRIP // (c * width), 1)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        yield part, torch.lerp(wide[:, above[part]], wide[:, below[part]], share[part])


def upsampled_argmax(
    logits: Float[Tensor, "c h w"],
    size: tuple[int, int],
    *,
    rows: range | None = None,
    first: int = 0,
    count: int | None = None,
) -> UInt8[np.ndarray, "r W"]:
    """Number of the largest map at each pixel, after bilinear upsampling; see `strips`."""
    rows = rows or range(size[0])
    index = np.empty((len(rows), size[1]), np.uint8 if len(logits) <= 256 else np.int32)
    for part, strip in strips(logits, size, rows=rows, first=first, count=count):
        index[part] = strip.max(0).indices.cpu().numpy()  # several times as fast as argmax
    return index

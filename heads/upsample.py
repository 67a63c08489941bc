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


def strips(maps: Float[Tensor, "c h w"], size: tuple[int, int]) -> Iterator[tuple[slice, Float[Tensor, "c r W"]]]:
    """The rows of the maps at another size, as `F.interpolate(..., mode="bilinear", align_corners=False)` gives them.

    Twenty maps of a 12 megapixel original would take 1 GB at once. Uses that the interpolation is separable: columns
    first, on few rows.
    """
    height, width = size
    c, h, _ = maps.shape
    wide = F.interpolate(maps[None], (h, width), mode="bilinear", align_corners=False)[0]
    y = ((torch.arange(height, device=maps.device) + 0.5) * h / height - 0.5).clamp(0, h - 1)
    above = y.long()
    below, share = (above + 1).clamp(max=h - 1), (y - above)[:, None]
    step = max(STRIP // (c * width), 1)
    for start in range(0, height, step):
        rows = slice(start, start + step)
        yield rows, torch.lerp(wide[:, above[rows]], wide[:, below[rows]], share[rows])


def upsampled_argmax(logits: Float[Tensor, "c h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """Number of the largest map at each pixel, after bilinear upsampling."""
    index = np.empty(size, np.uint8 if len(logits) <= 256 else np.int32)
    for rows, strip in strips(logits, size):
        index[rows] = strip.argmax(0).cpu().numpy()
    return index

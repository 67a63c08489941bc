"""Cuts images and clips into patches, and reads each patch by one linear map.

A convolution whose kernel is its stride (the patch map of Dosovitskiy et al. 2021, tubelets of Arnab et al. 2021) is a
reshape and one matrix product. The numbers of a patch stand in the order of a convolution's weight: channel first, then
the axes, so that published weights are taken as they are.

When: bfloat16 images on a CPU. One thread, time of the convolution / of `patch_linear`, images of 224 in patches of 16:
bfloat16 1.2 to 1.7; float32 0.7 to 1.1, and for tubelets 0.8 to 0.9, so the convolution stays in float32.

Shape legend: b batch, c channels, S extents (h w of images, t h w of clips), P sides of a patch, G = S / P cells along
each axis, n = product of G patches (row by row), f = c · product of P numbers of a patch, d width of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F


def patchify(x: Shaped[Tensor, "b c *S"], patch: int | Sequence[int]) -> Shaped[Tensor, "b n f"]:
    """Cuts images (b, c, h, w) or clips (b, c, t, h, w) into patches that touch and do not overlap.

    Args:
        x: Of any type and memory format.
        patch: The side of a patch along every axis, or one for each of (h, w) or (t, h, w).

    Returns:
        Patches, the last axis of the grid fastest; within a patch the channel is slowest.

    Raises:
        ValueError: x is neither images nor clips, or a side is not a multiple of the patch's.
    """
    if x.ndim not in (4, 5):
        raise ValueError(f"x must be images (b, c, h, w) or clips (b, c, t, h, w), got {tuple(x.shape)}")
    b, c, *size = x.shape
    sides, grid = _cells(size, patch)
    axes = len(size)
    split = x.reshape(b, c, *(number for pair in zip(grid, sides) for number in pair))
    # b, the grid's axes, c, the patch's axes
    order = (0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))
    return split.permute(order).reshape(b, math.prod(grid), c * math.prod(sides))


def unpatchify(
    patches: Shaped[Tensor, "b n f"], patch: int | Sequence[int], size: Sequence[int]
) -> Shaped[Tensor, "b c *S"]:
    """Puts patches together again: the inverse of `patchify`.

    Args:
        patches: In the order that `patchify` gives them.
        patch: As for `patchify`.
        size: (h, w) of the images, or (t, h, w) of the clips.

    Raises:
        ValueError: The size is not of two or three axes or not a multiple of the patch, or it does not fit the number
            of patches or of their numbers.
    """
    if len(size) not in (2, 3) or patches.ndim != 3:
        raise ValueError(f"patches (b, n, f) become (h, w) or (t, h, w), got {tuple(patches.shape)} and {tuple(size)}")
    sides, grid = _cells(size, patch)
    b, n, f = patches.shape
    volume, axes = math.prod(sides), len(sides)
    if n != math.prod(grid) or f % volume or not f:
        raise ValueError(
            f"size {tuple(size)} in patches of {sides} needs {math.prod(grid)} patches of a multiple of {volume} "
            f"numbers, got {n} of {f}"
        )
    split = patches.reshape(b, *grid, f // volume, *sides)
    order = (0, 1 + axes, *(number for a in range(axes) for number in (1 + a, 2 + axes + a)))
    return split.permute(order).reshape(b, f // volume, *size)


def patch_linear(
    x: Float[Tensor, "b c *S"], weight: Float[Tensor, "d c *P"], bias: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "b n d"]:
    """`conv(x, weight, bias, stride=kernel)` as a reshape and one matrix product.

    Args:
        x: Images or clips, of the type of the weight (autocast converts both).
        weight: Of an `nn.Conv2d` or `nn.Conv3d`, whose kernel is the patch.
        bias: Of the convolution, where it has one.

    Returns:
        A token for each patch, in the order of `conv(x).flatten(2).transpose(1, 2)`.

    Raises:
        ValueError: As of `patchify` (a convolution would leave the rest of a side out without a word), or the channels
            or the number of axes do not fit.
    """
    if weight.ndim != x.ndim or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"a weight {tuple(weight.shape)} does not fit inputs {tuple(x.shape)}: "
            "it must have as many axes and channels, (width, channels, sides of a patch)"
        )
    return F.linear(patchify(x, tuple(weight.shape[2:])), weight.flatten(1), bias)


def _cells(size: Sequence[int], patch: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sides of a patch, and how many patches fit along each axis, checked."""
    sides = (patch,) * len(size) if isinstance(patch, int) else tuple(patch)
    if len(sides) != len(size) or min(sides) < 1:
        raise ValueError(f"a patch of {tuple(size)} needs {len(size)} sides of at least 1, got {sides}")
    if any(extent % side for extent, side in zip(size, sides)):
        raise ValueError(f"the size {tuple(size)} is not a multiple of the patch {sides}; resize or pad it")
    return sides, tuple(extent // side for extent, side in zip(size, sides))

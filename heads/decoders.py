"""Decoders of pixel heads, by name: the levels of a pyramid -> the one map that the logits are read from.

Every one keeps the contract of heads/grid.py: padded cells never count, so that a batch answers as each image alone.

Shape legend: b batch, c channels, h rows and w columns of a padded level, s bins along a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.core.registry import Registry
from polysense.heads.grid import ChannelNorm, MaskedBlock

BINS = (1, 2, 3, 6)  # regions along a side that pyramid pooling takes means of (Zhao et al. 2017)
Level = tuple[Float[Tensor, "b c h w"], Bool[Tensor, "b 1 h w"]]


class Decoder(nn.Module):
    """Base class.

    Args:
        channels: Of every level, and of the map.
        doublings: From the token grid to the map; there is a level for each, and the grid's own, unless `plain`.
    """

    plain: ClassVar[bool] = False  # reads the token grid alone, projected once: no convolution, no finer map

    def __init__(self, channels: int, doublings: int) -> None:
        super().__init__()
        self.doublings = doublings

    def forward(self, levels: Sequence[Level]) -> Float[Tensor, "b c h w"]:
        """Levels, coarse to fine -> the map; what stands at its padded cells is undefined."""
        raise NotImplementedError


DECODERS: Registry[type[Decoder]] = Registry("decoder")


@DECODERS.register("pyramid")
class FinestLevel(Decoder):
    """The pyramid's finest level as it is: on the way there it has read all coarser ones."""

    def forward(self, levels: Sequence[Level]) -> Float[Tensor, "b c h w"]:
        return levels[-1][0]


@DECODERS.register("linear")
class Linear(Decoder):
    """A linear map of the normalised tokens, bilinearly enlarged: what the frozen encoder knows, a lower bound."""

    plain = True

    def forward(self, levels: Sequence[Level]) -> Float[Tensor, "b c h w"]:
        return enlarged(*levels[0], 2**self.doublings)


@DECODERS.register("uper")
class UPer(Decoder):
    """UPerNet (Xiao et al. 2018): pyramid pooling on the coarsest level, then top-down to the finest, all joined.

    The levels are joined by a 1 x 1 map before the last 3 x 3 convolution, which in the paper reads all of them: at the
    finest resolution that is most of the work.
    """

    def __init__(self, channels: int, doublings: int) -> None:
        super().__init__(channels, doublings)
        self.pooling = PyramidPooling(channels)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(doublings))
        self.blocks = nn.ModuleList(MaskedBlock(channels) for _ in range(doublings))
        self.join = nn.Conv2d(channels * (doublings + 1), channels, 1)
        self.last = MaskedBlock(channels)

    def forward(self, levels: Sequence[Level]) -> Float[Tensor, "b c h w"]:
        top, masks = self.pooling(*levels[0]), [mask for _, mask in levels]
        read = [top]
        for (x, mask), above, lateral, block in zip(levels[1:], masks, self.laterals, self.blocks):
            top = lateral(x) + enlarged(top, above, 2)
            read.append(block(top, mask))
        same = [enlarged(x, mask, 2 ** (self.doublings - i)) for i, (x, mask) in enumerate(zip(read, masks))]
        return self.last(self.join(torch.cat(same, 1)), masks[-1])


class PyramidPooling(nn.Module):
    """Means of 1, 2 x 2, 3 x 3 and 6 x 6 regions of each image, joined to its cells (PSPNet, Zhao et al. 2017)."""

    def __init__(self, channels: int, bins: Sequence[int] = BINS) -> None:
        super().__init__()
        self.bins = tuple(bins)
        own = max(1, channels // len(self.bins))
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, own, 1), ChannelNorm(own), nn.GELU()) for _ in self.bins
        )
        self.block = MaskedBlock(channels + own * len(self.bins), channels)

    def forward(self, x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
        read = [x]
        for bins, branch in zip(self.bins, self.branches, strict=True):
            read.append(spread(branch(pooled(x, mask, bins)), mask))
        return self.block(torch.cat(read, 1), mask)


def pooled(x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"], bins: int) -> Float[Tensor, "b c s s"]:
    """`F.adaptive_avg_pool2d` of each image's own cells, whatever grid it is padded to."""

    def shares(count: Int[Tensor, " b"], size: int) -> Float[Tensor, "b s n"]:
        """What each of `size` cells gives to each bin, of which one may have a cell of its neighbour's."""
        i, cell = torch.arange(bins, device=x.device), torch.arange(size, device=x.device)
        begin, end = i * count[:, None] // bins, -(-(i + 1) * count[:, None] // bins)  # (b, s)
        inside = (cell >= begin[..., None]) & (cell < end[..., None])
        return (inside / (end - begin)[..., None]).to(x.dtype)

    rows, cols = sizes(mask)
    x = x.masked_fill(~mask, 0.0)
    return torch.einsum("bih,bchw,bjw->bcij", shares(rows, x.shape[2]), x, shares(cols, x.shape[3]))


def spread(x: Float[Tensor, "b c s s"], mask: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
    """Bins back to the cells of each image, bilinearly between the bins' centres."""

    def shares(count: Int[Tensor, " b"], size: int, bins: int) -> Float[Tensor, "b n s"]:
        cell, i = torch.arange(size, device=x.device), torch.arange(bins, device=x.device)
        at = ((cell + 0.5) * bins / count[:, None] - 0.5).clamp(0, bins - 1)  # (b, n)
        return (1 - (at[..., None] - i).abs()).clamp(min=0).to(x.dtype)

    (rows, cols), (h, w) = sizes(mask), mask.shape[2:]
    return torch.einsum("bhi,bcij,bwj->bchw", shares(rows, h, x.shape[2]), x, shares(cols, w, x.shape[3]))


def enlarged(
    x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"], times: int
) -> Float[Tensor, "b c times*h times*w"]:
    """Bilinear, each image by itself: beyond its own border it goes on as it ends, and not with the padding."""
    if times == 1:
        return x
    if not bool(mask.all()):
        for axis, count in zip((2, 3), sizes(mask), strict=True):
            cell = torch.arange(x.shape[axis], device=x.device).minimum(count[:, None] - 1)  # (b, n)
            index = cell[:, None, :, None] if axis == 2 else cell[:, None, None, :]
            x = x.gather(axis, index.expand(x.shape))
    return F.interpolate(x, scale_factor=times, mode="bilinear", align_corners=False)


def sizes(mask: Bool[Tensor, "b 1 h w"]) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
    """Rows and columns of each image's own cells."""
    return mask[:, 0, :, 0].sum(1), mask[:, 0, 0].sum(1)

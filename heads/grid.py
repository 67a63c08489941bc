"""Dense layouts for pixel heads: tokens as a grid, and convolutions that never see padding.

Images of one batch differ in size, so their grids are padded to the largest. Every convolution here zeroes the padded
cells first: to a sample they look like the zero padding at its own border, and its answer does not depend on what else
is in the batch. Norms work on the channels of one cell, never over space.

Shape legend: b batch, d width, c channels, h rows and w columns of the padded grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.core.types import Features, Tokens


def to_grid(tokens: Tokens) -> tuple[Float[Tensor, "b d h w"], Bool[Tensor, "b 1 h w"]]:
    """Lays tokens out as an image; padded cells are zero.

    Raises:
        ValueError: The tokens have no two-dimensional grid.
    """
    if tokens.grid is None or len(tokens.grid) != 2:
        raise ValueError(f"a dense head needs tokens on a (rows, columns) grid, got grid={tokens.grid}")
    mask = tokens.dense_mask().unflatten(1, tokens.grid)[:, None]
    # masked_fill and not a product: what stands at padded places is undefined and may be NaN.
    x = tokens.x.transpose(1, 2).unflatten(2, tokens.grid)
    return x.masked_fill(~mask, 0.0), mask


def upsample_mask(mask: Bool[Tensor, "b 1 h w"]) -> Bool[Tensor, "b 1 2*h 2*w"]:
    """Each cell becomes 2 x 2 cells."""
    return mask.repeat_interleave(2, 2).repeat_interleave(2, 3)


def sample_grid(meta: Mapping[str, Any]) -> tuple[int, int]:
    """Token rows and columns of one sample."""
    rows, cols = meta["grid"]
    return int(rows), int(cols)


def sample_window(meta: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what the token grid covers, in original pixels: the whole image, or a crop of it."""
    height, width = meta["size"]
    left, top, right, bottom = meta.get("window", (0.0, 0.0, width, height))
    return float(left), float(top), float(right), float(bottom)


def cell_pixels(begin: float, end: float, count: int, size: int) -> Int[np.ndarray, " count"]:
    """The pixel at the centre of each of `count` cells between `begin` and `end`, of an axis of `size` pixels."""
    return (begin + (np.arange(count) + 0.5) * (end - begin) / count).astype(int).clip(0, size - 1)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each cell."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MaskedBlock(nn.Module):
    """3 x 3 convolution, norm over channels, GELU; a residual where the number of channels stays."""

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm = ChannelNorm(out_channels)
        self.residual = channels == out_channels

    def forward(self, x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b c2 h w"]:
        x = x.masked_fill(~mask, 0.0)
        y = F.gelu(self.norm(self.conv(x)))
        return x + y if self.residual else y


class Upsample(nn.Module):
    """Twice the resolution: a transposed 2 x 2 convolution, in which no cell reads its neighbour; a masked block.

    Args:
        channels: Of the grid.
        fine: Channels of the front part's map of that resolution, which is added in between; 0: there is none.
    """

    def __init__(self, channels: int, fine: int = 0) -> None:
        super().__init__()
        self.expand = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.block = MaskedBlock(channels)
        self.lateral = nn.Sequential(ChannelNorm(fine), nn.Conv2d(fine, channels, 1)) if fine else None

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b 1 h w"],
        fine: Float[Tensor, "b f 2*h 2*w"] | None = None,
    ) -> tuple[Float[Tensor, "b c 2*h 2*w"], Bool[Tensor, "b 1 2*h 2*w"]]:
        mask = upsample_mask(mask)
        x = self.expand(x)
        if self.lateral is not None:
            if fine is None:
                raise ValueError("this head reads maps finer than the grid, and the tokenizer gives none: set fine")
            x = x + self.lateral(fine)
        return self.block(x, mask), mask


class GridNeck(nn.Module):
    """Reads the last and chosen hidden layers of the encoder, each normalised, into one grid of `channels`.

    Args:
        width: Token width of the encoder.
        channels: Channels of the grid.
        layers: Hidden layers to read beside the last one.
        depth: Masked blocks after the projection.
    """

    def __init__(self, width: int, channels: int, layers: Sequence[int] = (), depth: int = 1) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(len(self.layers) + 1))
        self.project = nn.Linear(width * len(self.norms), channels)
        self.blocks = nn.ModuleList(MaskedBlock(channels) for _ in range(depth))

    def forward(self, features: Features) -> tuple[Float[Tensor, "b c h w"], Bool[Tensor, "b 1 h w"]]:
        read = [features.last, *(features.hidden[i] for i in self.layers)]
        # Padding first: a NaN there would survive in the gradient of the norm.
        padded = ~features.last.dense_mask()[..., None]
        joined = [norm(tokens.x.masked_fill(padded, 0.0)) for norm, tokens in zip(self.norms, read, strict=True)]
        x, mask = to_grid(features.last.replace(self.project(torch.cat(joined, -1))))
        for block in self.blocks:
            x = block(x, mask)
        return x, mask


class Pyramid(nn.Module):
    """A grid of the encoder's tokens and finer ones made from it, coarse to fine.

    The levels are those of a feature pyramid (Lin et al. 2017) made from the one grid of a plain transformer (Li et al.
    2022, ViTDet); what its tokens have lost inside a cell comes from the front part's own finer maps, past the frozen
    encoder (Chen et al. 2023, ViT-Adapter).

    Args:
        width: Token width of the encoder.
        channels: Channels of every level.
        levels: How many there are; each has twice the resolution of the one before.
        fine: Channels of the maps in `Tokens.fine`; levels beyond them are made from the grid alone.
        layers, depth: See `GridNeck`.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        levels: int,
        fine: Sequence[int] = (),
        layers: Sequence[int] = (),
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.neck = GridNeck(width, channels, layers, depth)
        given = [*fine[: levels - 1], *[0] * (levels - 1 - len(fine))]
        self.ups = nn.ModuleList(Upsample(channels, one) for one in given)

    def forward(self, features: Features) -> list[tuple[Float[Tensor, "b c h w"], Bool[Tensor, "b 1 h w"]]]:
        levels = [self.neck(features)]
        maps = features.last.fine
        for i, up in enumerate(self.ups):
            levels.append(up(*levels[-1], maps[i] if i < len(maps) else None))
        return levels

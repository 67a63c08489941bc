"""What every token mixer is: tokens in, as many tokens out, whatever stands at padded places never read.

A mixer is what attention is in a transformer block: the one part that carries knowledge from token to token. What it
may rest on differs, and `layout` says so: a "set" knows no order (softmax attention), a "line" reads the tokens one
after another (a scan), a "grid" knows the axes of an image or a clip and takes a line as a grid of one axis.

Shape legend: b batch, n tokens, d width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polysense.core.registry import Registry

Layout = Literal["set", "line", "grid"]


class Mixer(nn.Module, ABC):
    """Mixes tokens of one sequence; see `MIXERS` for those that exist.

    A subclass writes `mix` and need not think of padding between real tokens: where order counts and no grid says
    otherwise, `forward` moves the real tokens to the front first, so that an answer does not depend on where a batch
    was padded.

    Args:
        width: Of a token (d).
        heads: Of those mixers that have heads; the others do not use it.
    """

    layout: ClassVar[Layout]

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        if width < 1 or heads < 1:
            raise ValueError(f"a mixer needs a positive width and number of heads, got {width} and {heads}")
        self.width, self.heads = width, heads

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None = None,
        grid: tuple[int, ...] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Mixes.

        Args:
            x: Tokens; what stands at padded places is not read.
            mask: True where a token is real; None where all are.
            grid: Dense layout of the n tokens; None where they have none. Padding lies outside a box of real cells
                that begins at the grid's origin (as `Tokens` of a batch are laid out); other cells without a token
                count as empty ones.

        Returns:
            Mixed tokens; undefined at padded places.

        Raises:
            ValueError: The shapes do not fit.
        """
        self._check(x, mask, grid)
        if x.numel() == 0:  # torch's FFTs and convolutions refuse what has no tokens
            return x
        if self.reads() == "set" or mask is None or (self.reads() == "grid" and grid is not None):
            return self.mix(x, mask, grid)
        order = to_front(mask)
        mixed = self.mix(take(x, order), torch.gather(mask, 1, order), None)
        return take(mixed, order.argsort(1))

    def reads(self) -> Layout:
        """The layout of this very mixer: options may narrow the class's own."""
        return self.layout

    @abstractmethod
    def mix(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None, grid: tuple[int, ...] | None
    ) -> Float[Tensor, "b n d"]:
        """Mixes checked tokens. Without a grid, a "line" or "grid" mixer finds all real tokens at the front."""

    def _check(self, x: Tensor, mask: Tensor | None, grid: tuple[int, ...] | None) -> None:
        if x.ndim != 3 or x.shape[-1] != self.width:
            raise ValueError(f"a mixer of width {self.width} reads (batch, tokens, {self.width}), got {tuple(x.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
            raise ValueError(f"mask must be bool {tuple(x.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
        if grid is not None and torch.Size(grid).numel() != x.shape[1]:
            raise ValueError(f"a grid of {grid} does not hold {x.shape[1]} tokens")


MIXERS: Registry[type[Mixer]] = Registry("mixer")


def to_front(mask: Bool[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """The order that puts real tokens first and keeps them among themselves as they are."""
    return (~mask).to(torch.uint8).argsort(stable=True, dim=1)


def take(x: Float[Tensor, "b n d"], order: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
    """The tokens of each sequence in another order."""
    return x.gather(1, order[..., None].expand_as(x))


def clear(x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None) -> Float[Tensor, "b n d"]:
    """Zeros at padded places, even where NaN stood."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0.0)


def axes_of(grid: tuple[int, ...] | None, n: int, axes: int) -> tuple[int, ...]:
    """The layout as one of exactly `axes` axes behind a first one that counts independent pieces.

    Fewer axes get ones in front (a line is one row of an image); of more, the first ones become pieces (an image mixer
    reads a clip frame by frame).

    Returns:
        `axes` + 1 numbers whose product is n.
    """
    grid = (n,) if grid is None else tuple(grid)
    pieces = torch.Size(grid[: max(len(grid) - axes, 0)]).numel()
    last = grid[max(len(grid) - axes, 0) :]
    return (pieces, *(1,) * (axes - len(last)), *last)

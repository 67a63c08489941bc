"""Average pooling as the token mixer (Yu et al. 2022, "MetaFormer Is Actually What You Need for Vision": PoolFormer).

When to use it: the cheapest mixer there is, without a parameter and O(n). Good in the early blocks of an encoder of
images or spectrograms, where neighbours matter most; it needs attention (or another far-reaching mixer) behind it.

Shape legend: b batch, n tokens, d width.
"""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from polysense.kernels.mixers.base import MIXERS, Mixer, axes_of, clear


@MIXERS.register("pool")
class Pool(Mixer):
    """The mean of a token's neighbourhood minus the token itself, because the residual branch adds it again.

    Args:
        width: Of a token.
        heads: Not used.
        size: Side of the neighbourhood in cells, odd.
        axes: Of the neighbourhood: 2 pools a clip frame by frame, 3 over time as well; a line has one in any case.
    """

    layout = "grid"

    def __init__(self, width: int, heads: int = 1, *, size: int = 3, axes: int = 2) -> None:
        super().__init__(width, heads)
        if size < 1 or size % 2 == 0:
            raise ValueError(f"the side of a pooling neighbourhood must be odd, got {size}")
        if not 1 <= axes <= 3:
            raise ValueError(f"pooling knows 1 to 3 axes, got {axes}")
        self.size, self.axes = size, axes

    def mix(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None, grid: tuple[int, ...] | None
    ) -> Float[Tensor, "b n d"]:
        b, n, d = x.shape
        layout = axes_of(grid, n, self.axes)
        x = clear(x, mask)
        real = x.new_ones(b, n, 1) if mask is None else mask[..., None].to(x.dtype)
        # Both means count cells beyond the edge; their ratio is the mean over real neighbours alone.
        sums, counts = (self._pool(part.reshape(-1, *layout[1:], part.shape[-1])) for part in (x, real))
        mean = (sums / counts.clamp(min=0.5 * self.size**-self.axes)).reshape(b, n, d)
        return mean - x

    def _pool(self, x: Tensor) -> Tensor:
        """(pieces, *axes, channels) averaged over `size` cells along each axis, zeros beyond the edge."""
        pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[self.axes - 1]
        # Zeros are put there beforehand: avg_pool3d refuses inputs that are smaller than its kernel without them.
        wide = F.pad(x.movedim(-1, 1), (self.size // 2,) * (2 * self.axes))
        return pool(wide, self.size, 1).movedim(1, -1)


def reference(
    x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"], grid: tuple[int, ...], size: int
) -> Float[Tensor, "b n d"]:
    """The same for a grid of any number of axes, neighbour by neighbour as a matrix: the oracle."""
    cells = torch.tensor(list(product(*map(range, grid))))
    near = ((cells[:, None] - cells[None]).abs() <= size // 2).all(-1)
    weights = (near & mask[:, None, :]).to(x.dtype)
    return weights @ clear(x, mask) / weights.sum(-1, keepdim=True).clamp(min=1) - x

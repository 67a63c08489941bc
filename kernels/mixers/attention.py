"""Multi-head self-attention as a mixer, any kind of `kernels.attention`; key names are timm's (`qkv`, `proj`).

When to use which: `attention` up to some thousand tokens; the others are described where they are implemented.

Shape legend: b batch, n tokens, d width, h heads, e head width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polysense.kernels.attention import attention
from polysense.kernels.attention.block_diagonal import BLOCK
from polysense.kernels.attention.slab import depthwise
from polysense.kernels.attention.urpe import Toeplitz
from polysense.kernels.mixers.base import MIXERS, Layout, Mixer, clear


@MIXERS.register("attention")
class Attention(Mixer):
    """Attention of a kind that needs no parameters of its own.

    Args:
        width: Of a token.
        heads: Must divide the width.
        kind: Of `kernels.attention`.
        window: See `kernels.attention.attention`; counts real tokens in the order they come.
        qkv_bias: A bias for queries, keys and values.
        backend: Of `kernels.attention`.
    """

    layout: ClassVar[Layout] = "set"

    def __init__(
        self,
        width: int,
        heads: int = 1,
        *,
        kind: str = "softmax",
        window: int | None = None,
        qkv_bias: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__(width, heads)
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.kind, self.window, self.backend = kind, window, backend
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def reads(self) -> Layout:
        return "line" if self.window is not None else self.layout

    def mix(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None, grid: tuple[int, ...] | None
    ) -> Float[Tensor, "b n d"]:
        b, n, _ = x.shape
        q, k, v = self.qkv(clear(x, mask)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(self.attend(q, k, v, mask, grid).transpose(1, 2).reshape(b, n, -1))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, grid: tuple[int, ...] | None
    ) -> Float[Tensor, "b h n e"]:
        return attention(q, k, v, kind=self.kind, mask=mask, window=self.window, backend=self.backend)


@MIXERS.register("linear")
class Linear(Attention):
    """NormAttention of TransNormer, with its norm's gain; see `kernels.attention.linear`."""

    def __init__(self, width: int, heads: int = 1, *, qkv_bias: bool = True, backend: str = "auto") -> None:
        super().__init__(width, heads, kind="linear", qkv_bias=qkv_bias, backend=backend)
        self.gain = nn.Parameter(torch.ones(heads, 1, width // heads))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, grid: tuple[int, ...] | None
    ) -> Float[Tensor, "b h n e"]:
        return super().attend(q, k, v, mask, grid) * self.gain


@MIXERS.register("block_diagonal")
class BlockDiagonal(Attention):
    """DiagAttention of TransNormer; see `kernels.attention.block_diagonal`."""

    def __init__(
        self, width: int, heads: int = 1, *, block: int = BLOCK, qkv_bias: bool = True, backend: str = "auto"
    ) -> None:
        super().__init__(width, heads, kind="block_diagonal", window=block, qkv_bias=qkv_bias, backend=backend)


@MIXERS.register("urpe")
class Urpe(Attention):
    """Softmax attention times a learned Toeplitz matrix; see `kernels.attention.urpe`.

    Args:
        width: Of a token.
        heads: Must divide the width.
        reach: Offsets with a factor of their own, to either side.
        window: As of `Attention`.
        qkv_bias: As of `Attention`.
        backend: As of `Attention`.
    """

    layout = "line"

    def __init__(
        self,
        width: int,
        heads: int = 1,
        *,
        reach: int = 256,
        window: int | None = None,
        qkv_bias: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__(width, heads, kind="urpe", window=window, qkv_bias=qkv_bias, backend=backend)
        self.toeplitz = Toeplitz(heads, reach)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, grid: tuple[int, ...] | None
    ) -> Float[Tensor, "b h n e"]:
        extra = {"toeplitz": self.toeplitz()}
        return attention(q, k, v, kind="urpe", mask=mask, window=self.window, extra=extra, backend=self.backend)


@MIXERS.register("slab")
class Slab(Attention):
    """SLAB's simplified linear attention and its depthwise convolution; see `kernels.attention.slab`.

    Args:
        width: Of a token.
        heads: Must divide the width.
        size: Taps of the convolution along each axis, odd.
        axes: Of the convolution; a grid of more axes is convolved piece by piece, a line is one row of a grid.
        qkv_bias: As of `Attention`.
        backend: As of `Attention`.
    """

    layout = "grid"

    def __init__(
        self,
        width: int,
        heads: int = 1,
        *,
        size: int = 5,
        axes: int = 2,
        qkv_bias: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__(width, heads, kind="slab", qkv_bias=qkv_bias, backend=backend)
        if size < 1 or size % 2 == 0 or not 1 <= axes <= 3:
            raise ValueError(f"the convolution needs an odd size and 1 to 3 axes, got {size} and {axes}")
        self.conv = nn.Parameter(torch.empty(width, 1, *(size,) * axes).uniform_(-1, 1) * size ** (-axes / 2))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, grid: tuple[int, ...] | None
    ) -> Float[Tensor, "b h n e"]:
        return super().attend(q, k, v, mask, grid) + depthwise(v, self.conv, grid=grid, mask=mask)

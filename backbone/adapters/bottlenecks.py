"""Bottlenecks inside of blocks: down, a nonlinearity, up. Only the way up starts at zero.

Shape legend: b batch, n tokens, d width, r width of the bottleneck, k kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.backbone.adapters.config import METHODS, AdapterConfig
from polysense.backbone.encoder import Block, Encoder

Lengths = tuple[int, ...] | None


class Bottleneck(nn.Module):
    """x -> what is added to x.

    Args:
        width: d.
        config: Its `rank` is the inner width.
        kernel: Tokens of a depthwise convolution inside (1: none).
    """

    def __init__(self, width: int, config: AdapterConfig, kernel: int = 1) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, config.rank), nn.Linear(config.rank, width)
        self.conv = nn.Conv1d(config.rank, config.rank, kernel, groups=config.rank) if kernel > 1 else None
        self.dropout = nn.Dropout(config.dropout)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, mask: Tensor | None, lengths: Lengths) -> Tensor:
        y = self.down(self.dropout(x))
        if self.conv is not None:
            y = y + self._along(y, mask, lengths)
        return self.up(F.gelu(y))

    def _along(self, y: Tensor, mask: Tensor | None, lengths: Lengths) -> Tensor:
        """The convolution within each sequence: beyond its ends, and at padding, stand zeros."""
        assert self.conv is not None
        reach = self.conv.kernel_size[0] // 2
        if lengths is not None:
            return torch.cat([self.conv(F.pad(part.mT, (reach, reach))).mT for part in y.split(list(lengths), 1)], 1)
        if mask is not None:
            y = y.masked_fill(~mask.unsqueeze(-1), 0.0)
        return self.conv(F.pad(y.mT, (reach, reach))).mT


class AdaptedBlock(Block):
    """A block with bottlenecks after its attention, after its MLP, or beside its MLP.

    Args:
        block: Whose modules, and so weights, it takes over.
    """

    def __init__(
        self,
        block: Block,
        after_attention: nn.Module | None = None,
        after_mlp: nn.Module | None = None,
        beside_mlp: nn.Module | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self._modules.update(block._modules)
        self.after_attention, self.after_mlp, self.beside_mlp = after_attention, after_mlp, beside_mlp

    def forward(self, x: Tensor, mask: Tensor | None, lengths: Lengths = None) -> Tensor:
        y = self.ls1(self.attn(self.norm1(x), mask, lengths))
        if self.after_attention is not None:
            y = y + self.after_attention(y, mask, lengths)
        x = x + y
        inner = self.norm2(x)
        y = self.ls2(self.mlp(inner))
        if self.after_mlp is not None:
            y = y + self.after_mlp(y, mask, lengths)
        if self.beside_mlp is not None:
            y = y + self.beside_mlp(inner, mask, lengths)
        return x + y


def replace_blocks(encoder: Encoder, make: type[nn.Module] | object) -> Encoder:
    """Puts `make(block)` in the place of every block."""
    for i, block in enumerate(encoder.blocks):
        encoder.blocks[i] = make(block)  # type: ignore[operator]
    return encoder


@METHODS.register("houlsby")
def houlsby(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """A bottleneck after attention and one after the MLP (Houlsby et al. 2019)."""
    d = encoder.config.width
    return replace_blocks(encoder, lambda block: AdaptedBlock(block, Bottleneck(d, config), Bottleneck(d, config)))


@METHODS.register("pfeiffer")
def pfeiffer(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """One after the MLP (Pfeiffer et al. 2021)."""
    d = encoder.config.width
    return replace_blocks(encoder, lambda block: AdaptedBlock(block, after_mlp=Bottleneck(d, config)))


@METHODS.register("parallel")
def parallel(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """One beside the MLP (He et al. 2022, "Towards a unified view of parameter-efficient transfer learning")."""
    d = encoder.config.width
    return replace_blocks(encoder, lambda block: AdaptedBlock(block, beside_mlp=Bottleneck(d, config)))


@METHODS.register("conv")
def conv(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """One beside the MLP, with a depthwise convolution along the tokens inside (Cappellazzo et al. 2024, for AST)."""
    d, kernel = encoder.config.width, config.kernel
    return replace_blocks(encoder, lambda block: AdaptedBlock(block, beside_mlp=Bottleneck(d, config, kernel)))

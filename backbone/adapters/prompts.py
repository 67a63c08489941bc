"""Learned tokens beside an input's own: prompts, shallow or in every block, and prefixes of every block's attention.

Shape legend: b batch, n tokens, p prompts, h heads, d width, t packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.backbone.adapters.bottlenecks import Lengths, replace_blocks
from polysense.backbone.adapters.config import METHODS, AdapterConfig
from polysense.backbone.encoder import Attention, Block, Encoder
from polysense.core.types import Features, Tokens

SIZE = 0.02  # standard deviation of new prompts


class Prompted(nn.Module):
    """An encoder that reads p learned tokens before an input's own (Jia et al. 2022, visual prompt tuning, shallow)."""

    def __init__(self, encoder: Encoder, count: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.prompts = nn.Parameter(SIZE * torch.randn(count, encoder.config.width))

    def forward(self, tokens: Tokens, *, layers: Sequence[int] = ()) -> Features:
        b, count = len(tokens.x), len(self.prompts)
        x = torch.cat([self.prompts.to(tokens.x.dtype).expand(b, -1, -1), tokens.x], 1)
        mask = None if tokens.mask is None else F.pad(tokens.mask, (count, 0), value=True)
        found = self.encoder(Tokens(x, mask, F.pad(tokens.pos, (0, 0, count, 0))), layers=layers)
        last = tokens.replace(found.last.x[:, count:])
        return Features(last, {i: tokens.replace(one.x[:, count:]) for i, one in found.hidden.items()}, found.cls)


class PromptedBlock(Block):
    """A block before which the prompts' places receive prompts of its own."""

    def __init__(self, block: Block, count: int, first: int, width: int) -> None:
        nn.Module.__init__(self)
        self._modules.update(block._modules)
        self.prompts, self.first = nn.Parameter(SIZE * torch.randn(count, width)), first

    def forward(self, x: Tensor, mask: Tensor | None, lengths: Lengths = None) -> Tensor:
        prompts = self.prompts.to(x.dtype)
        count, first = len(prompts), self.first
        if lengths is None:
            x = torch.cat([x[:, :first], prompts.expand(len(x), -1, -1), x[:, first + count :]], 1)
        else:
            starts = torch.tensor([0, *accumulate(lengths)][:-1], device=x.device)
            places = (starts[:, None] + first + torch.arange(count, device=x.device)).flatten()
            x = x.index_copy(1, places, prompts.repeat(len(lengths), 1)[None])
        return super().forward(x, mask, lengths)


@METHODS.register("prompts")
def prompts(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """Learned tokens before the input's own."""
    return Prompted(encoder, config.tokens)


@METHODS.register("deep-prompts")
def deep_prompts(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """The same, anew in every block (Jia et al. 2022, deep)."""
    width, first = encoder.config.width, encoder.prefix
    for i in range(1, len(encoder.blocks)):
        block = encoder.blocks[i]
        assert isinstance(block, Block)
        encoder.blocks[i] = PromptedBlock(block, config.tokens, first, width)
    return Prompted(encoder, config.tokens)


class PrefixAttention(Attention):
    """Attention with learned keys and values before each sequence's own (Li & Liang 2021, prefix tuning)."""

    def __init__(self, inner: Attention, count: int) -> None:
        nn.Module.__init__(self)
        self._modules.update(inner._modules)
        self.heads, self.kind, self.window = inner.heads, inner.kind, inner.window
        width = inner.proj.in_features
        self.keys = nn.Parameter(SIZE * torch.randn(count, width))
        self.values = nn.Parameter(torch.zeros(count, width))

    def forward(self, x: Tensor, mask: Tensor | None, lengths: Lengths = None) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        count = len(self.keys)
        keys, values = (
            one.to(x.dtype).view(count, self.heads, -1).transpose(0, 1).expand(b, -1, -1, -1)
            for one in (self.keys, self.values)
        )
        k, v = torch.cat([self.k_norm(keys), self.k_norm(k)], 2), torch.cat([values, v], 2)
        mask = None if mask is None else F.pad(mask, (count, 0), value=True)
        x = self.attend(self.q_norm(q), k, v, kind=self.kind, mask=mask)
        return self.proj(x.transpose(1, 2).reshape(b, n, d))


@METHODS.register("prefix")
def prefix(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """Learned keys and values in every block; the values start at zero."""
    if encoder.config.windows is not None:
        raise ValueError("prefixes need attention to all tokens, and this encoder's blocks have windows")
    encoder.packing = False  # packed sequences have no room for further keys

    def adapted(block: Block) -> Block:
        block.attn = PrefixAttention(block.attn, config.tokens)
        return block

    return replace_blocks(encoder, adapted)

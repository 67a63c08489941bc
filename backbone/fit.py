"""FIT: local attention in groups, global attention among a few latents of each group, interleaved.

Chen & Li 2023, "FIT: Far-reaching Interleaved Transformers", section 2. The tokens are cut into groups. A block is

    local   blocks over the tokens of each group, as many as `local`;
    read    each group's latents attend to its tokens;
    global  blocks over the latents of all groups together, as many as `depth`;
    write   each token attends to its group's latents.

With groups of g tokens and l latents each, attention costs O(n g + (n l / g)²): O(n^(4/3)) where groups grow with the
cube root of n, and with groups of a fixed size still g² / l² times less than full attention.

When to use it: very many tokens with much redundancy (high-resolution images, long clips) when a head wants all tokens
back. Groups are cut along the order of real tokens: of images, runs of raster order.

Shape legend: b batch, n tokens, d width, c groups of g tokens, l latents of a group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.backbone.encoder import Block, Encoder, EncoderConfig, Mlp
from polysense.core.types import Features, Tokens
from polysense.kernels.attention import attention
from polysense.kernels.mixers.base import take, to_front


@dataclass(frozen=True, slots=True)
class FitConfig:
    """The interleaving; width, heads and the like come from `EncoderConfig`, whose depth counts FIT blocks."""

    group: int = 64  # tokens of a group
    latents: int = 4  # of each group
    local: int = 1  # blocks over a group's tokens in each FIT block
    depth: int = 1  # blocks over all latents in each FIT block

    def __post_init__(self) -> None:
        if min(self.group, self.latents) < 1 or min(self.local, self.depth) < 0:
            raise ValueError(f"groups and latents must be positive, blocks not negative, got {self}")


class CrossBlock(nn.Module):
    """x + attention(norm(x) to norm(context)), then x + mlp(norm(x))."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width, config.eps)
        self.norm_context = nn.LayerNorm(config.width, config.eps)
        self.q = nn.Linear(config.width, config.width, bias=config.qkv_bias)
        self.kv = nn.Linear(config.width, 2 * config.width, bias=config.qkv_bias)
        self.proj = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width, config.eps)
        self.mlp = Mlp(config)

    def forward(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"] | None
    ) -> Float[Tensor, "b n d"]:
        (b, n, d), m = x.shape, context.shape[1]
        head_width = d // self.heads
        q = self.q(self.norm1(x)).view(b, n, self.heads, head_width).transpose(1, 2)
        k, v = self.kv(self.norm_context(context)).view(b, m, 2, self.heads, head_width).permute(2, 0, 3, 1, 4)
        x = x + self.proj(attention(q, k, v, mask=mask).transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.norm2(x))


class FitBlock(nn.Module):
    """Local, read, global, write; see above."""

    def __init__(self, config: EncoderConfig, fit: FitConfig) -> None:
        super().__init__()
        self.local = nn.ModuleList(Block(config) for _ in range(fit.local))
        self.read = CrossBlock(config)
        self.across = nn.ModuleList(Block(config) for _ in range(fit.depth))
        self.write = CrossBlock(config)

    def forward(
        self, x: Float[Tensor, "b c g d"], latents: Float[Tensor, "b c l d"], mask: Bool[Tensor, "b c g"] | None
    ) -> tuple[Float[Tensor, "b c g d"], Float[Tensor, "b c l d"]]:
        b, c, latent_count, _ = latents.shape
        tokens, real = x.flatten(0, 1), None if mask is None else mask.flatten(0, 1)
        for block in self.local:
            tokens = block(tokens, real)
        carried = self.read(latents.flatten(0, 1), tokens, real).unflatten(0, (b, c)).flatten(1, 2)
        # Latents of a group without a real token stand for nothing, and nobody may see them.
        alive = None if mask is None else mask.any(-1).repeat_interleave(latent_count, 1)
        for block in self.across:
            carried = block(carried, alive)
        latents = carried.unflatten(1, (c, latent_count))
        tokens = self.write(tokens, latents.flatten(0, 1), None)
        return tokens.unflatten(0, (b, c)), latents


class FitEncoder(Encoder):
    """`Tokens` to `Features` by FIT blocks; hidden layers are the tokens after each of them."""

    def __init__(self, config: EncoderConfig, fit: FitConfig | None = None, spec: str = "") -> None:
        for name in ("class_token", "registers", "windows"):
            if getattr(config, name, None):
                raise ValueError(f"a FIT encoder knows no {name}; take it out, or use the plain Encoder")
        super().__init__(replace(config, depth=0), spec)
        self.config, self.fit = config, fit or FitConfig()
        self.latents = nn.Parameter(torch.empty(self.fit.latents, config.width))
        nn.init.trunc_normal_(self.latents, std=0.02)
        self.blocks = nn.ModuleList(FitBlock(config, self.fit) for _ in range(config.depth))

    def forward(self, tokens: Tokens, *, layers: Sequence[int] = ()) -> Features:
        """As of `Encoder`."""
        if tokens.x.shape[-1] != self.config.width:
            raise ValueError(f"tokens of width {tokens.x.shape[-1]} do not fit an encoder of width {self.config.width}")
        wanted = {self._layer_number(layer): layer for layer in layers}
        n = tokens.x.shape[1]
        x, mask = self.norm_pre(tokens.x), tokens.mask
        order = None if mask is None else to_front(mask)
        if order is not None and mask is not None:  # groups count real tokens only
            x, mask = take(x, order), mask.gather(1, order)

        def restored(x: Tensor) -> Tokens:
            x = x.flatten(1, 2)[:, :n]
            return tokens.replace(x if order is None else take(x, order.argsort(1)))

        x, mask = _grouped(x, mask, self.fit.group)
        latents = self.latents.expand(*x.shape[:2], -1, -1)
        hidden = {wanted[0]: restored(x)} if 0 in wanted else {}
        for i, block in enumerate(self.blocks, 1):
            x, latents = block(x, latents, mask)
            if i in wanted:
                hidden[wanted[i]] = restored(x)
        return Features(restored(self.norm(x)), hidden, None)

    def start_as_identity(self) -> Encoder:
        """Zeroes what each block adds to tokens and latents."""
        for module in self.blocks.modules():
            if isinstance(module, Block | CrossBlock):
                for linear in (module.attn.proj if isinstance(module, Block) else module.proj, module.mlp.fc2):
                    nn.init.zeros_(linear.weight)
                    nn.init.zeros_(linear.bias)
        return self

    def fingerprint(self) -> str:
        """As of `Encoder`; the size of a group counts, which no weight shows."""
        return hashlib.sha256(f"{self.fit} {super().fingerprint()}".encode()).hexdigest()


def _grouped(x: Tensor, mask: Tensor | None, group: int) -> tuple[Tensor, Tensor | None]:
    """(b, n, d) and (b, n) as (b, c, g, d) and (b, c, g); the last group is filled with padding."""
    b, n, _ = x.shape
    more = -n % group
    if more and mask is None:
        mask = x.new_ones(b, n, dtype=torch.bool)
    if mask is not None:
        mask = F.pad(mask, (0, more)).unflatten(1, (-1, group))
    return F.pad(x, (0, 0, 0, more)).unflatten(1, (-1, group)), mask

"""Mamba's mixer (Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", figure 3).

An encoder may look both ways: `bidirectional` adds a second scan from the end with weights of its own, as Vision Mamba
does (Zhu et al. 2024, "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model").

When to use it: very long sequences with an order (sound, series, long clips), O(n) in time and, for each step, a state
of fixed size. Without a fused kernel its constant is large: below a few thousand tokens attention is faster. A grid
is read in raster order.

Shape legend: b batch, n tokens, d width, c channels (expand · d), s states of a channel, r rank of the step sizes.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.kernels.mixers.base import MIXERS, Mixer, clear
from polysense.kernels.mixers.selective_scan import selective_scan


class _Direction(nn.Module):
    """Short causal convolution, selection, scan: one way through the sequence."""

    def __init__(self, channels: int, states: int, rank: int, kernel: int) -> None:
        super().__init__()
        self.states, self.rank = states, rank
        self.conv1d = nn.Conv1d(channels, channels, kernel, groups=channels, padding=kernel - 1)
        self.x_proj = nn.Linear(channels, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        # Steps begin log-uniform between 0.001 and 0.1; the bias is what softplus turns into them.
        steps = torch.exp(torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1)))
        with torch.no_grad():
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, u: Float[Tensor, "b n c"], mask: Bool[Tensor, "b n"] | None) -> Float[Tensor, "b n c"]:
        n = u.shape[1]
        u = F.silu(self.conv1d(clear(u, mask).transpose(1, 2))[..., :n].transpose(1, 2))
        step, b, c = self.x_proj(u).split([self.rank, self.states, self.states], -1)
        # A padded token takes a step of zero: the state passes it unchanged.
        delta = clear(F.softplus(self.dt_proj(step)), mask)
        exact = torch.promote_types(u.dtype, torch.float32)  # a long product of decays needs more than half precision
        parts = (part.to(exact) for part in (u, delta, -torch.exp(self.A_log.to(exact)), b, c))
        return selective_scan(*parts).to(u.dtype) + self.D * u


@MIXERS.register("mamba")
class Mamba(Mixer):
    """Gated selective scan, one way or both.

    Args:
        width: Of a token.
        heads: Not used.
        expand: Channels, in widths.
        states: State values of a channel.
        kernel: Tokens of the short convolution.
        bidirectional: Scan from the end as well; False makes the mixer causal.
    """

    layout = "line"

    def __init__(
        self,
        width: int,
        heads: int = 1,
        *,
        expand: int = 2,
        states: int = 16,
        kernel: int = 4,
        bidirectional: bool = True,
    ) -> None:
        super().__init__(width, heads)
        if min(expand, states, kernel) < 1:
            raise ValueError(f"expand, states and kernel must be positive, got {expand}, {states} and {kernel}")
        channels = expand * width
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        rank = -(-width // 16)
        ways = 2 if bidirectional else 1
        self.directions = nn.ModuleList(_Direction(channels, states, rank, kernel) for _ in range(ways))
        self.proj = nn.Linear(channels, width, bias=False)

    def mix(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None, grid: tuple[int, ...] | None
    ) -> Float[Tensor, "b n d"]:
        u, gate = self.in_proj(clear(x, mask)).chunk(2, -1)
        y = self.directions[0](u, mask)
        if len(self.directions) == 2:
            # Reversed, padding comes first: zeros enter the convolution and steps of zero the scan, as if it were not.
            back = None if mask is None else mask.flip(1)
            y = y + self.directions[1](u.flip(1), back).flip(1)
        return self.proj(y * F.silu(gate))

"""Queries that gather what they are about from an image's grids, layer by layer: one mask and one vector each.

Shape legend: b batch, q queries, c channels, h rows and w columns of a level's padded grid, H and W of the finest one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.kernels.attention.api import attention
from polysense.tokenizers.positions import sin_cos

UNSEEN = -1e4  # score of a cell outside of a query's mask; finite, as attention asks

Level = tuple[Float[Tensor, "b c h w"], Bool[Tensor, "b 1 h w"]]


class MaskDecoder(nn.Module):
    """A transformer decoder over the levels of a pyramid, which it reads in turn, coarse to fine, again and again.

    Form "masked": a query reads only cells inside of the mask that it has so far (Cheng et al. 2022, Mask2Former,
    section 3.2). Form "kmeans": each cell goes to the query that claims it most, and a query becomes what its cells
    have in common, like the centre of a cluster (Yu et al. 2022, kMaX-DeepLab, section 3.2).

    Args:
        channels: Of the grids and queries.
        queries: How many segments can be found.
        layers: How often the queries read.
        heads: Of attention.
        form: "masked" or "kmeans".
    """

    def __init__(self, channels: int, queries: int, layers: int, heads: int, form: str) -> None:
        super().__init__()
        if form not in READS:
            raise ValueError(f"unknown decoder {form!r}; choose masked or kmeans")
        self.start = nn.Parameter(torch.randn(queries, channels) * 0.5)
        self.place = nn.Parameter(torch.randn(queries, channels) * 0.5)
        self.layers = nn.ModuleList(DecoderLayer(channels, heads, form) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)
        self.embed = nn.Sequential(
            nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels), nn.GELU(),
            nn.Linear(channels, channels),
        )  # fmt: skip

    def forward(
        self, levels: Sequence[Level], task: Float[Tensor, "b c"]
    ) -> list[tuple[Float[Tensor, "b q c"], Float[Tensor, "b q H W"]]]:
        """States of the queries and logits of their masks, before the first layer and after each one.

        Args:
            levels: Grids coarse to fine with the cells that are real; the finest is the one that masks are made of.
            task: What kind of answer is wanted, added to all queries.
        """
        pixels, real = levels[-1]
        pixels = pixels.masked_fill(~real, 0.0)
        x = (self.start + task[:, None]).to(pixels.dtype)
        memories = [_memory(*level) for level in levels[:-1]] or [_memory(*levels[-1])]
        answers = [self._answer(x, pixels)]
        for i, layer in enumerate(self.layers):
            memory, where, seen, size = memories[i % len(memories)]
            logits = F.interpolate(answers[-1][1].detach(), size, mode="area").flatten(2)
            x = layer(x, self.place, memory, where, logits, seen)
            answers.append(self._answer(x, pixels))
        return [(state, masks.masked_fill(~real, UNSEEN)) for state, masks in answers]

    def _answer(
        self, x: Float[Tensor, "b q c"], pixels: Float[Tensor, "b c H W"]
    ) -> tuple[Float[Tensor, "b q c"], Float[Tensor, "b q H W"]]:
        x = self.norm(x)
        return x, torch.einsum("bqc,bchw->bqhw", self.embed(x), pixels) * x.shape[-1] ** -0.5


class DecoderLayer(nn.Module):
    """Reads cells, then the other queries, then thinks; each a residual after a norm."""

    def __init__(self, channels: int, heads: int, form: str) -> None:
        super().__init__()
        self.read = READS[form](channels, heads)
        self.talk = Attention(channels, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.think = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(
        self,
        x: Float[Tensor, "b q c"],
        place: Float[Tensor, "q c"],
        memory: Float[Tensor, "b m c"],
        where: Float[Tensor, "m c"],
        logits: Float[Tensor, "b q m"],
        seen: Bool[Tensor, "b m"],
    ) -> Float[Tensor, "b q c"]:
        """
        Args:
            x: States of the queries.
            place: What tells queries apart.
            memory, where: Cells, and the codes of their places.
            logits: Of the queries' masks so far, at those cells.
            seen: Cells that are real.
        """
        x = x + self.read(x, place, memory, where, logits, seen)
        y = self.norms[0](x)
        x = x + self.talk(y + place, y + place, y)
        return x + self.think(self.norms[1](x))


class MaskedRead(nn.Module):
    """Attention to the cells inside of a query's mask; a query that claims nothing looks everywhere."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(channels), Attention(channels, heads)

    def forward(
        self, x: Tensor, place: Tensor, memory: Tensor, where: Tensor, logits: Tensor, seen: Tensor
    ) -> Float[Tensor, "b q c"]:
        inside = (logits > 0) & seen[:, None]
        inside |= ~inside.any(-1, keepdim=True)
        bias = torch.zeros_like(logits).masked_fill_(~inside, UNSEEN)
        return self.attention(self.norm(x) + place, memory + where, memory, seen, bias)


class ClusterRead(nn.Module):
    """The mean of the cells that claim a query more than any other."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.v, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(
        self, x: Tensor, place: Tensor, memory: Tensor, where: Tensor, logits: Tensor, seen: Tensor
    ) -> Float[Tensor, "b q c"]:
        own = F.one_hot(logits.argmax(1), logits.shape[1]).transpose(1, 2) * seen[:, None]
        shares = own / own.sum(-1, keepdim=True).clamp(min=1).to(memory.dtype)
        return self.out(shares @ self.v(memory + where))


READS = {"masked": MaskedRead, "kmeans": ClusterRead}


class Attention(nn.Module):
    """Multi-head attention of queries to cells or to each other."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)

    def forward(
        self,
        q: Float[Tensor, "b q c"],
        k: Float[Tensor, "b m c"],
        v: Float[Tensor, "b m c"],
        seen: Bool[Tensor, "b m"] | None = None,
        bias: Float[Tensor, "b q m"] | None = None,
    ) -> Float[Tensor, "b q c"]:
        split = [x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.q(q), self.k(k), self.v(v))]
        read = attention(*split, mask=seen, bias=None if bias is None else bias[:, None])
        return self.out(read.transpose(1, 2).flatten(2))


def _memory(
    x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"]
) -> tuple[Float[Tensor, "b m c"], Float[Tensor, "m c"], Bool[Tensor, "b m"], tuple[int, int]]:
    """Cells in a row, the codes of their places, which of them are real, and the grid's size."""
    h, w = x.shape[-2:]
    ys, xs = torch.meshgrid(torch.arange(h, device=x.device), torch.arange(w, device=x.device), indexing="ij")
    where = sin_cos(torch.stack([ys, xs], -1).reshape(-1, 2), x.shape[1]).to(x.dtype)
    cells = x.masked_fill(~mask, 0.0).flatten(2).transpose(1, 2)
    return cells, where, mask.flatten(1), (h, w)

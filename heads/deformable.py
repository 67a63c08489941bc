"""Queries that look at grids near their boxes: the decoder of Deformable DETR (Zhu et al. 2021).

Each query has a box. It sees the other queries of its group, reads a few points of every grid that it places about its
box, moves the box (DAB-DETR, Liu et al. 2022; iterative refinement), and is less sure the more it gives way to surer
queries. Boxes are (cx, cy, w, h) as shares of the own image, so that its answer does not depend on padding.

Shape legend: b batch, g groups, q queries of all groups, d width, k classes, l layers, h rows and w columns of a padded
grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from polysense.heads.assign import paired_iou
from polysense.kernels.attention.api import attention
from polysense.tokenizers.positions import CoordinateEmbedding

Grid = tuple[Float[Tensor, "b d h w"], Bool[Tensor, "b 1 h w"]]  # a map, and which of its cells are real
Values = Sequence[Float[Tensor, "b d h w"]]  # what a layer may read, coarse to fine; zero where padded


class DeformableAttention(nn.Module):
    """Reads each grid at points that the query itself places, in units of its box.

    Args:
        width: Of queries and values.
        heads: Which place their points apart from each other.
        levels: Number of grids, each twice as fine as the one before.
        points: Of each head in each grid.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.shape = (heads, levels, points)
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.out = nn.Linear(width, width)
        # At first each head looks another way, and its points ever farther out (Zhu et al. 2021, appendix A.4).
        angle = 2 * math.pi * torch.arange(heads) / heads
        ring = torch.stack([angle.cos(), angle.sin()], -1)
        ring = (ring / ring.abs().amax(-1, keepdim=True))[:, None, None] * (torch.arange(points)[:, None] + 1)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(ring.expand(heads, levels, points, 2).flatten() / points)

    def forward(
        self,
        x: Float[Tensor, "b q d"],
        boxes: Float[Tensor, "b q 4"],
        values: Values,
        extent: Float[Tensor, "b 2"],
    ) -> Float[Tensor, "b q d"]:
        """`extent` is (columns, rows) of each sample's own coarsest grid."""
        b, q, d = x.shape
        heads, levels, points = self.shape
        offsets = self.offsets(x).view(b, q, heads, levels, points, 2)
        weights = self.weights(x).view(b, q, heads, levels * points).softmax(-1).view(b, q, heads, levels, points)
        # An offset of 1 reaches the border of the box.
        at = boxes[:, :, None, None, None, :2] + offsets * boxes[:, :, None, None, None, 2:] / 2
        rows, cols = values[0].shape[2:]
        at = 2 * at * extent[:, None, None, None, None] / at.new_tensor([cols, rows]) - 1  # of the padded grid
        read = x.new_zeros(b * heads, d // heads, q)
        for level, value in enumerate(values):
            places = at[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (b heads, q, points, 2)
            each = value.reshape(b * heads, d // heads, *value.shape[2:])
            found = F.grid_sample(each, places.to(value.dtype), align_corners=False)
            read = read + (found * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        return self.out(read.view(b, d, q).transpose(1, 2))


class DecoderLayer(nn.Module):
    """Attention among the queries of a group, to the grids, and a feed-forward part; norms after each, as in DETR."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads = heads
        self.qk, self.v, self.mix = nn.Linear(width, 2 * width), nn.Linear(width, width), nn.Linear(width, width)
        self.look = DeformableAttention(width, heads, levels, points)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(
        self,
        x: Float[Tensor, "b q d"],
        where: Float[Tensor, "b q d"],
        boxes: Float[Tensor, "b q 4"],
        real: Bool[Tensor, "b q"],
        values: Values,
        extent: Float[Tensor, "b 2"],
        groups: int,
    ) -> Float[Tensor, "b q d"]:
        b, q, d = x.shape

        def split(y: Tensor) -> Float[Tensor, "b*g h n e"]:
            """A group beside the other is a sample of its own, so it cannot see them."""
            return y.reshape(b * groups, q // groups, self.heads, d // self.heads).transpose(1, 2)

        query, key = map(split, self.qk(x + where).chunk(2, -1))
        seen = attention(query, key, split(self.v(x)), mask=real.reshape(b * groups, -1))
        x = self.norms[0](x + self.mix(seen.transpose(1, 2).reshape(b, q, d)))
        x = self.norms[1](x + self.look(x + where, boxes, values, extent))
        return self.norms[2](x + self.feed(x))


class Decoder(nn.Module):
    """Layers that refine queries, and with them their boxes and class scores.

    Args:
        width: Of queries and grids.
        classes: Number of them.
        layers: Number of them.
        heads, levels, points: See `DeformableAttention`.
    """

    def __init__(self, width: int, classes: int, layers: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.value = nn.Conv2d(width, layers * width, 1)
        self.where = nn.Sequential(CoordinateEmbedding(4, width, bands=6), nn.GELU(), nn.Linear(width, width))
        self.standing = nn.Sequential(nn.Linear(2, width), nn.GELU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(DecoderLayer(width, heads, levels, points) for _ in range(layers))
        # At first boxes stay where they are, and scores too but for giving way.
        self.classify = nn.ModuleList(_linear(width, classes, 0.001) for _ in range(layers))
        self.yields = nn.ModuleList(_linear(width, classes, 0.001, 1.0) for _ in range(layers))
        self.move = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), _linear(width, 4, 0.001)) for _ in range(layers)
        )

    def values(self, grids: Sequence[Grid]) -> list[Float[Tensor, "b l d h w"]]:
        """What each layer reads of each grid, coarse to fine.

        It is zero where padded, as `grid_sample` reads beyond a border: an image's own border looks the same in any
        batch.
        """
        read = [self.value(grid).masked_fill(~mask, 0.0) for grid, mask in grids]
        return [value.unflatten(1, (len(self.layers), -1)) for value in read]

    def forward(
        self,
        x: Float[Tensor, "b q d"],
        boxes: Float[Tensor, "b q 4"],
        logits: Float[Tensor, "b q k"],
        real: Bool[Tensor, "b q"],
        values: Sequence[Float[Tensor, "b l d h w"]],
        extent: Float[Tensor, "b 2"],
        groups: int = 1,
    ) -> list[tuple[Float[Tensor, "b q k"], Float[Tensor, "b q 4"]]]:
        """Class logits and boxes after each layer.

        Args:
            x: What the queries know at first.
            boxes: Where they look at first.
            logits: Of the classes, at first: from few images a decoder learns sooner whom to outdo than what is what.
            real: False at queries that stand for nothing; no other sees them.
            values: Of all grids, as `values` makes them.
            extent: (columns, rows) of each sample's own coarsest grid.
            groups: Queries come in so many groups of equal size that do not see each other.
        """
        answers = []
        for i, (layer, classify, yields, move) in enumerate(
            zip(self.layers, self.classify, self.yields, self.move, strict=True)
        ):
            boxes, logits = boxes.detach(), logits.detach()  # each layer learns its own step
            told = standing(logits, boxes, real, groups)
            x = layer(
                x + self.standing(told), self.where(boxes), boxes, real, [value[:, i] for value in values], extent,
                groups,
            )  # fmt: skip
            boxes = (boxes.logit(1e-4) + move(x)).sigmoid()
            logits = logits + classify(x) - F.softplus(yields(x)) * told[..., 1:]
            answers.append((logits, boxes))
        return answers


@torch.no_grad()
def standing(
    logits: Float[Tensor, "b q k"], boxes: Float[Tensor, "b q 4"], real: Bool[Tensor, "b q"], groups: int = 1
) -> Float[Tensor, "b q 2"]:
    """How sure each query is of its best class, and its largest overlap with a surer one of that class and its group.

    A query that is told of its rivals can give way to them (Hosang et al. 2017, Learning non-maximum suppression).
    Attention alone, from few images, does not find out who they are: all queries then answer alike.
    """
    best, name = logits.float().sigmoid().masked_fill(~real[..., None], 0.0).max(-1)
    score, name = (x.reshape(len(x) * groups, -1) for x in (best, name))
    corners = box_convert(boxes.float(), "cxcywh", "xyxy").reshape(len(score), -1, 4)
    rivals = (score[:, None] > score[:, :, None]) & (name[:, None] == name[:, :, None])
    overlap = paired_iou(corners[:, :, None], corners[:, None]) * rivals
    return torch.stack([best, overlap.amax(-1).view_as(best)], -1)


def _linear(width: int, out: int, std: float, bias: float = 0.0) -> nn.Linear:
    layer = nn.Linear(width, out)
    nn.init.normal_(layer.weight, std=std)
    nn.init.constant_(layer.bias, bias)
    return layer

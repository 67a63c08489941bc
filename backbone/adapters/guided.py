"""Guided adapters: tokens of a cloud share what they know with neighbours in flat views of it.

Any2Point (Tang et al. 2024): a model that has learnt from flat inputs reads a cloud better when its adapters gather
over neighbours as seen in virtual projections to one and two dimensions, which is how the model was taught nearness.

Shape legend: b batch, n tokens, v views, k neighbours, r inner width, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.backbone.adapters.bottlenecks import AdaptedBlock, Lengths, replace_blocks
from polysense.backbone.adapters.config import METHODS, AdapterConfig
from polysense.backbone.encoder import Encoder
from polysense.core.types import Features, Tokens

FLAT = ((0, 1), (0, 2), (1, 2), (0,), (1,), (2,))  # coordinates of each view: three planes, three lines


class Guided(nn.Module):
    """An encoder whose blocks are told the neighbours of the tokens that come in."""

    def __init__(self, encoder: Encoder, places: Places, neighbours: int) -> None:
        super().__init__()
        self.encoder, self.neighbours = encoder, neighbours
        self.__dict__["places"] = places  # no module of its own: the blocks hold the same object

    places: Places

    def forward(self, tokens: Tokens, *, layers: Sequence[int] = ()) -> Features:
        self.places.found = nearest(tokens, self.neighbours)
        try:
            return self.encoder(tokens, layers=layers)
        finally:
            self.places.found = None


class Places:
    """Where the blocks find the neighbours of the batch that is being read."""

    found: Int[Tensor, "b v n k"] | None = None


@torch.no_grad()
def nearest(tokens: Tokens, count: int) -> Int[Tensor, "b v n k"]:
    """The nearest real tokens of each token, itself among them, in every view that its coordinates allow."""
    pos = tokens.pos.float()
    hidden = ~tokens.dense_mask()
    views = [view for view in FLAT if max(view) < pos.shape[-1]]
    found = []
    for view in views:
        place = pos[..., list(view)].masked_fill(hidden[..., None], 0.0)
        # Padded tokens are as far away as can be; ties go to the first, whatever the batch.
        far = torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist")
        order = far.masked_fill(hidden[:, None], torch.inf).sort(dim=-1, stable=True)
        index = order.indices[..., :count]
        # A short sequence has too few neighbours: the token itself stands in for the others.
        own = torch.arange(far.shape[-1], device=far.device)[None, :, None]
        found.append(torch.where(order.values[..., :count].isinf(), own, index))
    return torch.stack(found, 1)


class GuidedBottleneck(nn.Module):
    """Down, a weighed mean over views of the maximum over neighbours, up; the way up starts at zero."""

    def __init__(self, width: int, config: AdapterConfig, places: Places, first: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, config.rank), nn.Linear(config.rank, width)
        self.weigh = nn.Linear(config.rank, 1)
        self.first = first
        self.__dict__["places"] = places
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    places: Places

    def forward(self, x: Tensor, mask: Tensor | None, lengths: Lengths) -> Float[Tensor, "b n d"]:
        index = self.places.found
        if index is None:
            raise RuntimeError("a guided adapter runs inside of its encoder only")
        y = self.down(x)
        own = y[:, self.first :]
        b, v, n, k = index.shape
        near = own[torch.arange(b, device=x.device)[:, None], index.flatten(1)].view(b, v, n, k, -1).amax(3)
        shares = self.weigh(near).softmax(1)
        y = torch.cat([y[:, : self.first], own + (shares * near).sum(1)], 1)
        return self.up(F.gelu(y))


@METHODS.register("guided")
def guided(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """For point clouds: a bottleneck after each MLP that gathers over neighbours in flat views."""
    encoder.packing = False  # neighbours are numbered in the padded batch
    places = Places()
    d, first = encoder.config.width, encoder.prefix
    replace_blocks(
        encoder, lambda block: AdaptedBlock(block, after_mlp=GuidedBottleneck(d, config, places, first))
    )  # fmt: skip
    return Guided(encoder, places, config.neighbours)

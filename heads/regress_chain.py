"""A chain of regressed numbers: each is predicted from pooled features and from the numbers before it.

Cheap measurements tell much of costly ones. A chain of regressors (Spyromitros-Xioufis et al. 2016, "Multi-target
regression via input space expansion: treating targets as inputs") hands each prediction on to the targets after it;
where a target before was measured, how far it lies from its prediction moves those after it.

Shape legend: b sequences, v values; all in standard deviations of the targets, with NaN where nothing was measured.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Chain(nn.Module):
    """What each value takes from those before it; begins as nothing, and the values then stand by themselves.

    Value i is its own part + sum_j link[i, j] guess_j, over the values j before it. Where values were measured, it is
    moved by sum_j gain[i, j] surprise_j: the surprise is what j differs from its guess or, of an unmeasured j, what
    is to be expected of that. Two matrices, because a guess is worth less than a measurement: mostly it says what the
    features say already.

    Args:
        count: Of the values.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(count))  # the value at each place of the chain
        self.link = nn.Parameter(torch.zeros(count, count))
        self.gain = nn.Parameter(torch.zeros(count, count))

    order: Int[Tensor, " v"]

    def before(self) -> Bool[Tensor, "v v"]:
        """Whether value j (column) comes before value i (row)."""
        place = self.order.argsort()
        return place[None] < place[:, None]

    def forward(self, own: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """Values from their own parts alone, nothing being measured."""
        own = own.float()
        return self.along(self.link.float() * self.before(), own)  # guess = own + link guess

    def told(self, guess: Float[Tensor, "b v"], measured: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """Values that know what was measured of those before them; a value's own measurement does not change it."""
        known = measured.isfinite()
        surprise = torch.where(known, measured - guess, 0.0)
        gain = self.gain.float() * self.before()
        # move = gain (surprise where measured, else move)
        return guess + self.along(gain * ~known[:, None], surprise @ gain.mT)

    def along(self, matrix: Float[Tensor, "#b v v"], first: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """The x of x = first + matrix x, whose matrix holds nothing but `before`: one value follows from the other."""
        order = self.order
        system = torch.eye(len(order), device=first.device) - matrix[..., order, :][..., order]
        found = torch.linalg.solve_triangular(system, first[:, order, None], upper=False, unitriangular=True)
        return found[:, order.argsort(), 0]

"""Parts of a forecasting head: a mixture of local forecasts, and each variate's own correction.

Both need what the tokens do not hold (the history in the user's units, the variate's name); it comes as `known`, which
`ForecastHead` makes from the samples' meta.

Shape legend: b sequences, f inputs, k methods, g groups of steps, h steps, q quantiles, v variates known by name,
r rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polysense.heads.base import Out
from polysense.heads.local_forecasts import GROUPS, METHODS, group_ends

LEAST = 1e-4  # error, in deviations of a window, below which methods count as equally good
WORSE = 1.2  # errors grow by so much from a group of steps that could be tried to one that could not


class Mixture(nn.Module):
    """Weighs the local forecasts of a history: the tokens say which methods suit it, trials how each one did.

    Weights are a softmax over methods (Montero-Manso et al. 2020, FFORMA) of what is learnt from the tokens and from
    the pattern of errors in trials, less a learnt power of the method's own error; they differ between groups of steps
    and pass smoothly from one to the next.
    """

    def __init__(self, inputs: int, horizon: int, levels: Sequence[float], dropout: float) -> None:
        super().__init__()
        k, g, q = len(METHODS), len(GROUPS), len(levels)
        self.norm, self.drop = nn.LayerNorm(inputs), nn.Dropout(dropout)
        self.prefer, self.bands = nn.Linear(inputs, k * g), nn.Linear(inputs, g * q)
        self.trials = nn.Linear(k * g, k * g, bias=False)
        self.trust = nn.Parameter(torch.full((g,), 2.0))
        for layer in (self.prefer, self.bands, self.trials):  # starts as trials alone would weigh
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.prefer.bias)
        start = torch.special.ndtri(torch.tensor(levels))
        self.bands.bias.data.copy_(start.repeat(g))
        self.register_buffer("steps", torch.from_numpy(_passing(horizon)), persistent=False)  # (g, h)
        self.steps: Tensor

    def forward(self, x: Float[Tensor, "b f"]) -> Out:
        x = self.drop(self.norm(x))
        return {"prefer": self.prefer(x).view(len(x), -1, len(GROUPS)),
                "bands": self.bands(x).view(len(x), len(GROUPS), -1)}  # fmt: skip

    def combine(self, out: Out, known: Out) -> tuple[Float[Tensor, "b h"], Float[Tensor, "b h q"]]:
        """Mean and quantiles in the window's units."""
        forecasts, wrong = known["forecasts"], known["wrong"]
        error = (wrong + LEAST).log()
        profile = (error - error.mean((1, 2), keepdim=True)).flatten(1)  # which methods fail tells what the series is
        logits = out["prefer"] - self.trust * error + self.trials(profile).view_as(error)
        weight = (logits @ self.steps).softmax(1)  # (b, k, h)
        mean = (weight * forecasts).sum(1)
        # How wrong such a mixture was, and how far the methods are apart.
        width = (logits.softmax(1) * wrong).sum(1) @ self.steps
        width = width + 0.5 * (weight * (forecasts - mean.unsqueeze(1)).abs()).sum(1)
        bands = (self.steps.T @ out["bands"]).sort(-1).values  # sorted, so that quantiles never cross
        return mean, mean.unsqueeze(-1) + width.unsqueeze(-1) * bands


class OwnCorrection(nn.Module):
    """A linear correction for each variate that is known by name, of a few combinations of the tokens and of how far
    the window's mean lies from the variate's own in training, which the normalisation takes away."""

    def __init__(self, inputs: int, horizon: int, variates: int, rank: int) -> None:
        super().__init__()
        self.basis = nn.Linear(inputs, rank, bias=False)
        self.weight = nn.Parameter(torch.zeros(variates, rank + 2, horizon))

    def forward(self, x: Float[Tensor, "b f"]) -> Out:
        return {"reduced": self.basis(x)}

    def combine(self, out: Out, known: Out) -> Float[Tensor, "b h"]:
        """What is added to the mean, in the window's units; nothing for other variates (number -1)."""
        x = torch.cat([out["reduced"], known["place"]], -1)
        added = torch.einsum("bf,bfh->bh", x, self.weight[known["variate"].clamp_min(0)])
        return added.masked_fill((known["variate"] < 0).unsqueeze(-1), 0.0)


def told(wrong: Float[np.ndarray, "k g"]) -> Float[np.ndarray, "k g"]:
    """Errors without gaps: where a group could not be tried, a little more than in the one before; 1 before all."""
    wrong = wrong.copy()
    for i in range(wrong.shape[1]):
        before = wrong[:, i - 1] * WORSE if i else np.ones(len(wrong))
        wrong[:, i] = np.where(np.isfinite(wrong[:, i]), wrong[:, i], before)
    return wrong


def _passing(horizon: int) -> Float[np.ndarray, "g h"]:
    """Shares of the groups at each step: all of one in its middle, linear in the logarithm of the step between."""
    ends = np.array([0, *group_ends(horizon)])
    middles = np.log(np.maximum.accumulate((ends[1:] + ends[:-1]) / 2 + 0.5 + 1e-6 * np.arange(len(GROUPS))))
    steps = np.log(np.arange(1, horizon + 1))
    return np.stack([np.interp(steps, middles, row) for row in np.eye(len(GROUPS))]).astype(np.float32)

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
from torch.nn import functional as F

from polysense.heads.base import Out
from polysense.heads.local_forecasts import GROUPS, METHODS, group_ends

LEAST = 1e-4  # error, in deviations of a window, below which methods count as equally good
WORSE = 1.2  # errors grow by so much from a group of steps that could be tried to one that could not


class Mixture(nn.Module):
    """Weighs the local forecasts of a history: the tokens say which methods suit it, trials how each one did.

    Weights are a softmax over methods (Montero-Manso et al. 2020, FFORMA) of what a small network makes of the tokens
    and of the pattern of errors in trials, less a learnt power of the method's own error. They differ between groups of
    steps and pass smoothly from one to the next.
    """

    def __init__(self, inputs: int, horizon: int, levels: Sequence[float], hidden: int, dropout: float) -> None:
        super().__init__()
        self.k, self.g, q = len(METHODS), len(GROUPS), len(levels)
        self.norm, self.trials_norm = nn.LayerNorm(inputs), nn.LayerNorm(self.k * self.g)
        self.tokens, self.trials = nn.Linear(inputs, hidden), nn.Linear(self.k * self.g, hidden)
        self.drop, self.say = nn.Dropout(dropout), nn.Linear(hidden, self.g * (self.k + q))
        self.trust = nn.Parameter(torch.full((self.g,), 2.0))
        nn.init.zeros_(self.say.weight)  # starts as trials alone would weigh, with normal quantiles
        start = torch.cat([torch.zeros(self.k), torch.special.ndtri(torch.tensor(levels))])
        self.say.bias.data.copy_(start.repeat(self.g))
        self.register_buffer("steps", torch.from_numpy(_passing(horizon)), persistent=False)  # (g, h)
        self.steps: Tensor

    def forward(self, x: Float[Tensor, "b f"]) -> Out:
        return {"told": self.tokens(self.drop(self.norm(x)))}

    def combine(self, out: Out, known: Out) -> tuple[Float[Tensor, "b h"], Float[Tensor, "b h q"]]:
        """Mean and quantiles in the window's units."""
        forecasts, wrong = known["forecasts"], known["wrong"]
        error = (wrong + LEAST).log()
        # Which methods fail tells what the series is, whatever its noise.
        pattern = (error - error.mean((1, 2), keepdim=True)).flatten(1)
        both = F.gelu(out["told"] + self.trials(self.trials_norm(pattern)))
        said = self.say(self.drop(both)).view(len(both), self.g, -1)
        logits = said[..., : self.k].transpose(1, 2) - self.trust * error  # (b, k, g)
        weight = (logits @ self.steps).softmax(1)  # (b, k, h)
        mean = (weight * forecasts).sum(1)
        # How wrong such a mixture was, and how far the methods are apart.
        width = (logits.softmax(1) * wrong).sum(1) @ self.steps
        width = width + 0.5 * (weight * (forecasts - mean.unsqueeze(1)).abs()).sum(1)
        bands = (self.steps.T @ said[..., self.k :]).sort(-1).values  # sorted, so that quantiles never cross
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

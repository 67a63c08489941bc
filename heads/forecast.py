"""Forecasting: a window of history -> its next steps, as a mean and quantiles.

Each variate is a sequence of its own (channel independence, Nie et al. 2023, PatchTST), normalised by the tokenizer
(`loc`, `scale`); the head answers in those normalised units and `decode` turns them back.

Shape legend: b sequences, s samples, c variates of a sample, n tokens, h steps, q quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polysense.core.predictions import Prediction, Series
from polysense.core.types import Features
from polysense.data.time_series import future_times
from polysense.heads.base import HEADS, Head, Out

FARTHEST = 30.0  # deviations of a window beyond which a future step is not learnt from


@dataclass(frozen=True, slots=True)
class ForecastConfig:
    """Plain values of a forecasting head."""

    horizon: int = 96  # steps it is trained for; fewer may be asked for
    tokens: int = 12  # tokens of a window; the tokenizer must emit exactly this many
    quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)  # levels, ascending
    hidden: int = 0  # rank of the map from tokens to the forecast; 0: full
    reduce: int = 32  # channels that each token is reduced to before all are flattened
    dropout: float = 0.1  # of the flattened tokens, in training
    variate_scale: tuple[tuple[str, float], ...] = ()  # (name, training std): weights errors as standardised metrics do

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantiles", tuple(self.quantiles))  # JSON gives lists
        object.__setattr__(self, "variate_scale", tuple((str(n), float(s)) for n, s in self.variate_scale))


@HEADS.register("forecasting")
class ForecastHead(Head):
    """Direct multi-step: the mean is a linear map of all tokens, before and after the encoder; quantiles lie around it.

    The linear map can be solved in closed form (see `training.probe_forecast`). On the encoder's input alone it would
    be a ridge regression on the history, which is hard to beat on short windows (Zeng et al. 2023, DLinear).
    """

    Config = ForecastConfig
    layers = (0,)

    def __init__(self, config: ForecastConfig, width: int) -> None:
        super().__init__(config, width)
        # Without a norm, which would take the patches' amplitudes.
        self.linear = nn.Linear(2 * config.tokens * width, config.horizon)
        self.norm = nn.LayerNorm(width)
        self.reduce = nn.Linear(width, config.reduce)
        outputs = config.horizon * len(config.quantiles)
        flat = config.tokens * config.reduce
        maps = [nn.Linear(flat, config.hidden), nn.Linear(config.hidden, outputs)] if config.hidden else []
        maps = maps or [nn.Linear(flat, outputs)]
        self.project = nn.Sequential(nn.Dropout(config.dropout), *maps)
        for layer in (self.linear, maps[-1]):  # start near "the last level goes on"
            nn.init.zeros_(layer.bias)
            layer.weight.data *= 0.1
        self.horizon = config.horizon  # may be set lower to answer fewer steps
        self._std = dict(config.variate_scale)

    def flatten(self, features: Features) -> Float[Tensor, "b 2*n*d"]:
        """The tokens before and after the encoder side by side, zeros where there is no history."""
        if features.last.x.shape[1] != self.config.tokens:
            raise ValueError(f"the forecast head takes {self.config.tokens} tokens, got {features.last.x.shape[1]}")
        both = torch.cat([features.hidden[0].x, features.last.x], -1)
        return both.masked_fill(~features.last.dense_mask().unsqueeze(-1), 0.0).flatten(1)

    def forward(self, features: Features) -> Out:
        mean = self.linear(self.flatten(features))
        x = self.reduce(self.norm(features.last.x)).masked_fill(~features.last.dense_mask().unsqueeze(-1), 0.0)
        offsets = self.project(x.flatten(1)).view(len(x), self.config.horizon, -1)
        # Sorted, so that quantiles never cross.
        return {"mean": mean, "quantiles": mean.unsqueeze(-1) + offsets.sort(-1).values}

    def targets(self, labels: Sequence[Any], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Labels: arrays (h,) or (h, 1) of one variate in its own units; NaN where unknown."""
        loc = torch.tensor([float(about["loc"][0]) for about in meta])
        scale = torch.tensor([float(about["scale"][0]) for about in meta])
        std = torch.tensor([self._std.get(about["names"][0], 0.0) for about in meta])
        steps = torch.stack([torch.as_tensor(np.asarray(label, np.float32).reshape(-1)) for label in labels])
        # A squared error in the window's units counts (scale / std)² in the metric's; bounded for calm variates.
        weight = torch.where(std > 0, (scale / std.clamp_min(1e-12)) ** 2, torch.ones(())).clamp(0.01, 10.0)
        steps = (steps - loc[:, None]) / scale[:, None]
        # A window that is (nearly) constant tells nothing of its future's size: such steps count as unknown.
        return {"steps": steps.masked_fill(steps.abs() > FARTHEST, float("nan")), "weight": weight}

    def loss(self, out: Out, target: Out) -> dict[str, Tensor]:
        steps = target["steps"][:, : self.config.horizon]
        known = steps.isfinite()
        weight = target["weight"][:, None] * known
        total = weight.sum().clamp_min(1e-6)
        error = torch.where(known, steps, 0.0) - out["mean"]
        squared = (error.square() * weight).sum() / total
        levels = torch.tensor(self.config.quantiles, device=error.device)
        gap = torch.where(known, steps, 0.0).unsqueeze(-1) - out["quantiles"]
        pinball = (torch.maximum(levels * gap, (levels - 1) * gap).mean(-1) * weight.sqrt() * known).sum() / total
        return {"loss": squared + pinball, "mse": squared.detach(), "pinball": pinball.detach()}

    def merge(self, out: Out, owner: Int[Tensor, " b"]) -> Out:
        """Stacks the variates of each sample: (b, …) -> (s, c, …), padded to the largest c."""
        counts = torch.bincount(owner).tolist()
        return {name: nn.utils.rnn.pad_sequence(list(x.split(counts)), batch_first=True) for name, x in out.items()}

    def merge_meta(self, meta: Sequence[Mapping[str, Any]], owner: Int[Tensor, " b"]) -> list[dict[str, Any]]:
        samples = [[meta[i] for i in (owner == s).nonzero().flatten().tolist()] for s in range(int(owner.max()) + 1)]
        return [
            {**variates[0], "names": [about["names"][0] for about in variates],
             "loc": np.array([about["loc"][0] for about in variates]),
             "scale": np.array([about["scale"][0] for about in variates]),
             "history": np.concatenate([np.asarray(about["history"]).reshape(-1, 1) for about in variates], 1)}
            for variates in samples
        ]  # fmt: skip

    def decode(self, out: Out, meta: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        answers: list[Prediction] = []
        h = min(self.horizon, self.config.horizon)
        for mean, quantiles, about in zip(out["mean"].float(), out["quantiles"].float(), meta, strict=True):
            c = len(about["names"])
            loc, scale = np.asarray(about["loc"]), np.asarray(about["scale"])
            levels = quantiles[:c, :h].permute(2, 1, 0).cpu().numpy() * scale + loc  # (q, h, c)
            answers.append(Series(
                mean=mean[:c, :h].T.cpu().numpy() * scale + loc,
                quantiles=dict(zip(self.config.quantiles, levels, strict=True)),
                times=future_times(about.get("times"), about.get("freq"), h),
                names=about["names"], history=about["history"], source=about["source"],
            ))  # fmt: skip
        return answers

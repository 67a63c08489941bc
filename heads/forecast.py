"""Forecasting: a window of history -> its next steps, as a mean and quantiles.

Each variate is a sequence of its own (channel independence, Nie et al. 2023, PatchTST), or, with `variates`, a token of
its own (iTransformer, Liu et al. 2024), normalised by the tokenizer (`loc`, `scale`); the head answers in those
normalised units and `decode` turns them back. A window that stands still is continued exactly; of one in which nothing
is known, nothing is said (NaN). The effect of covariates, where the tokenizer has taken one out of the history, is
taken out of the target and added to the answer, which reaches no further than covariates are known.

Shape legend: b sequences, s samples, c variates of a sample, n tokens, h steps, q quantiles, t steps of history.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.core.predictions import Prediction, Series
from polysense.core.types import Features
from polysense.data.time_series import future_times
from polysense.heads.base import HEADS, Head, Out
from polysense.heads.forecast_parts import Mixture, OwnCorrection, told
from polysense.heads.local_forecasts import local_forecasts

FARTHEST = 30.0  # deviations of a window beyond which a future step is not learnt from
HIDDEN = 128  # units of the network that weighs local forecasts
STILL = 1e-9  # deviation, relative to the largest value, below which a history stands still; as the tokenizer's


@dataclass(frozen=True, slots=True)
class ForecastConfig:
    """Plain values of a forecasting head."""

    horizon: int = 96  # steps it is trained for; fewer may be asked for
    tokens: int = 12  # tokens of a window; the tokenizer must emit exactly this many
    variates: bool = False  # each token is a variate and answered by itself; `tokens` is 1 then
    quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)  # levels, ascending
    hidden: int = 0  # rank of the map from tokens to the quantiles, 0: full; with `local` units of its network, 0: 128
    reduce: int = 32  # channels that each token is reduced to before all are flattened
    dropout: float = 0.1  # of the flattened tokens, in training
    variate_scale: tuple[tuple[str, float], ...] = ()  # (name, training std): weights errors as standardised metrics do
    variate_mean: tuple[tuple[str, float], ...] = ()  # (name, training mean), of the same variates
    own: int = 0  # rank of a correction that each of those variates has for itself; 0: none
    local: bool = False  # weigh forecasts of each history by itself, instead of mapping tokens to steps

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantiles", tuple(self.quantiles))  # JSON gives lists
        if self.variates and (self.local or self.own or self.tokens != 1):
            raise ValueError("with variates as tokens there is 1 of each, and neither local nor own")
        for name in ("variate_scale", "variate_mean"):
            object.__setattr__(self, name, tuple((str(n), float(s)) for n, s in getattr(self, name)))


@HEADS.register("forecasting")
class ForecastHead(Head):
    """Direct multi-step: the mean is a linear map of all tokens, before and after the encoder; quantiles lie around it.

    The linear map can be solved in closed form (see `training.probe_forecast`). On the encoder's input alone it would
    be a ridge regression on the history, which is hard to beat on short windows (Zeng et al. 2023, DLinear).

    With `local`, which suits series never seen before, the mean is a mixture of closed-form forecasts of the history,
    weighed by the tokens and by trials on the past (`forecast_parts.Mixture`).
    """

    Config = ForecastConfig
    layers = (0,)

    def __init__(self, config: ForecastConfig, width: int) -> None:
        super().__init__(config, width)
        self.horizon = config.horizon  # answered at a time: fewer may be set; `Pipeline` takes any number as `horizon=`
        self._std, self._mean = dict(config.variate_scale), dict(config.variate_mean)
        self._numbers = {name: i for i, name in enumerate(self._std)}
        self.mixture, self.own = None, None
        # How much further from the mean each quantile stands than was learnt: set on validation data.
        self.register_buffer("spread", torch.ones(len(config.quantiles)))
        if config.local:
            self.mixture = Mixture(4 * width, config.horizon, config.quantiles, config.hidden or HIDDEN, config.dropout)
            return
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
        if config.own and self._std:
            self.own = OwnCorrection(2 * config.tokens * width, config.horizon, len(self._std), config.own)

    spread: Tensor

    def both(self, features: Features) -> Float[Tensor, "b n 2*d"]:
        """The tokens before and after the encoder side by side, zeros where there is no history."""
        if not self.config.variates and features.last.x.shape[1] != self.config.tokens:
            raise ValueError(f"the forecast head takes {self.config.tokens} tokens, got {features.last.x.shape[1]}")
        both = torch.cat([features.hidden[0].x, features.last.x], -1)
        return both.masked_fill(~features.last.dense_mask().unsqueeze(-1), 0.0)

    def flatten(self, features: Features) -> Float[Tensor, "b *c f"]:
        """What the linear parts read: all tokens; for the mixture the newest one and the mean; each variate's own."""
        both = self.both(features)
        if self.config.variates:
            return both
        if self.mixture is None:
            return both.flatten(1)
        return torch.cat([both[:, -1], both.sum(1) / features.last.dense_mask().sum(1, keepdim=True)], -1)

    def forward(self, features: Features) -> Out:
        flat = self.flatten(features)
        if self.mixture is not None:
            return self.mixture(flat)
        x = self.reduce(self.norm(features.last.x)).masked_fill(~features.last.dense_mask().unsqueeze(-1), 0.0)
        x = x if self.config.variates else x.flatten(1)
        offsets = self.project(x).unflatten(-1, (self.config.horizon, -1))
        mean = self.linear(flat)
        # Sorted, so that quantiles never cross.
        out = {"mean": mean, "quantiles": mean.unsqueeze(-1) + offsets.sort(-1).values}
        return out if self.own is None else {**out, **self.own(flat)}

    def answer(self, out: Out, known: Out) -> tuple[Float[Tensor, "b *c h"], Float[Tensor, "b *c h q"]]:
        """Mean and quantiles in the windows' units, from raw outputs and what `known` says of the same sequences."""
        if self.mixture is not None:
            mean, quantiles = self.mixture.combine(out, known)
        elif self.own is not None:
            more = self.own.combine(out, known)
            mean, quantiles = out["mean"] + more, out["quantiles"] + more.unsqueeze(-1)
        else:
            mean, quantiles = out["mean"], out["quantiles"]
        middle = mean.unsqueeze(-1)
        return mean, (middle + self.spread * (quantiles - middle)).sort(-1).values

    @torch.no_grad()
    def calibrate(
        self, steps: Float[Tensor, "n h"], mean: Float[Tensor, "n h"], quantiles: Float[Tensor, "n h q"]
    ) -> None:
        """Changes `spread` so that of these futures (NaN where unknown) each level covers the share that it names.

        As in conformalised quantile regression (Romano et al. 2019), by a factor of the distance from the mean instead
        of a summand: windows are of any size. A quantile that keeps to no side of the mean (the median) stays.
        """
        far = quantiles - mean.unsqueeze(-1)
        ratio = (steps - mean).unsqueeze(-1) / far
        for i, level in enumerate(self.config.quantiles):
            side = -1.0 if level < 0.5 else 1.0
            usable = ratio[..., i].isfinite() & (far[..., i] * side > 0)
            if level == 0.5 or int(usable.sum()) < max(0.9 * int(steps.isfinite().sum()), 1):
                continue
            # The future lies within the quantile where the ratio is at most the factor, on either side.
            share = level if side > 0 else 1 - level
            found = ratio[..., i][usable].double()
            place = min(math.ceil(share * (len(found) + 1)), len(found))
            self.spread[i] *= found.kthvalue(place).values.clamp_min(0.0).float()

    def known(self, meta: Sequence[Mapping[str, Any]]) -> Out:
        """What the parts must know of each sequence beside its tokens, from its meta: see `forecast_parts`."""
        if self.mixture is None and self.own is None:
            return {}
        loc = np.array([float(about["loc"][0]) for about in meta])
        scale = np.array([float(about["scale"][0]) for about in meta])
        histories = [_without_effect(about).reshape(-1) for about in meta]
        if self.mixture is not None:
            pairs = [local_forecasts(history, self.config.horizon) for history in histories]
            forecasts = np.stack([forecast for forecast, _ in pairs])
            wrong = np.stack([told(error / size) for (_, error), size in zip(pairs, scale, strict=True)])
            return {
                "forecasts": _float((forecasts - loc[:, None, None]) / scale[:, None, None]),
                "wrong": _float(wrong),
            }
        names = [about["names"][0] for about in meta]
        own = np.array([[self._mean.get(name, 0.0), self._std.get(name, 0.0)] for name in names])
        level = np.array([h[np.isfinite(h)].mean() if np.isfinite(h).any() else 0.0 for h in histories])
        place = np.stack([(level - own[:, 0]) / scale, own[:, 1] / scale], 1).clip(-FARTHEST, FARTHEST)
        return {"place": _float(place), "variate": torch.tensor([self._numbers.get(name, -1) for name in names])}

    def targets(self, labels: Sequence[Any], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Labels: arrays (h,) or (h, 1) of one variate in its own units; NaN, or cut short, where unknown. With
        variates as tokens: (h, c) of all of them."""
        if not self.config.variates:
            return self._targets(labels, meta)
        counts = [len(about["names"]) for about in meta]
        pairs = zip(labels, counts, strict=True)
        columns = [column for label, c in pairs for column in np.asarray(label, np.float64).reshape(-1, c).T]
        alone = self._targets(columns, [one for about in meta for one in _alone(about)])
        nothing = {"steps": float("nan"), "weight": 0.0}
        return {name: nn.utils.rnn.pad_sequence(list(alone[name].split(counts)), True, value)
                for name, value in nothing.items()}  # fmt: skip

    def _targets(self, labels: Sequence[Any], meta: Sequence[Mapping[str, Any]]) -> Out:
        loc = torch.tensor([float(about["loc"][0]) for about in meta])
        scale = torch.tensor([float(about["scale"][0]) for about in meta])
        std = torch.tensor([self._std.get(about["names"][0], 0.0) for about in meta])
        pairs = zip(labels, meta, strict=True)
        futures = [torch.as_tensor(_left_over(label, about).astype(np.float32)) for label, about in pairs]
        longest = max(self.config.horizon, *map(len, futures))
        steps = torch.stack([F.pad(x, (0, longest - len(x)), value=float("nan")) for x in futures])
        # A squared error in the window's units counts (scale / std)² in the metric's; bounded for calm variates.
        weight = torch.where(std > 0, (scale / std.clamp_min(1e-12)) ** 2, torch.ones(())).clamp(0.01, 10.0)
        steps = (steps - loc[:, None]) / scale[:, None]
        # A window that is (nearly) constant tells nothing of its future's size: such steps count as unknown.
        return {"steps": steps.masked_fill(steps.abs() > FARTHEST, float("nan")), "weight": weight, **self.known(meta)}

    def loss(self, out: Out, target: Out) -> dict[str, Tensor]:
        steps = target["steps"][..., : self.config.horizon]
        known = steps.isfinite()
        weight = target["weight"].unsqueeze(-1) * known
        total = weight.sum().clamp_min(1e-6)
        mean, quantiles = self.answer(out, target)
        error = torch.where(known, steps, 0.0) - mean
        squared = (error.square() * weight).sum() / total
        levels = torch.tensor(self.config.quantiles, device=error.device)
        gap = torch.where(known, steps, 0.0).unsqueeze(-1) - quantiles
        pinball = (torch.maximum(levels * gap, (levels - 1) * gap).mean(-1) * weight.sqrt() * known).sum() / total
        return {"loss": squared + pinball, "mse": squared.detach(), "pinball": pinball.detach()}

    def merge(self, out: Out, owner: Int[Tensor, " b"], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Stacks the variates of each sample: (b, …) -> (s, c, …), padded to the largest c."""
        if self.config.variates:
            return out
        counts = torch.bincount(owner).tolist()
        return {name: nn.utils.rnn.pad_sequence(list(x.split(counts)), batch_first=True) for name, x in out.items()}

    def merge_meta(self, meta: Sequence[Mapping[str, Any]], owner: Int[Tensor, " b"]) -> list[dict[str, Any]]:
        if self.config.variates:
            return [dict(about) for about in meta]
        samples = [[meta[i] for i in (owner == s).nonzero().flatten().tolist()] for s in range(int(owner.max()) + 1)]
        return [
            {**variates[0], "names": [about["names"][0] for about in variates],
             "loc": np.array([about["loc"][0] for about in variates]),
             "scale": np.array([about["scale"][0] for about in variates]),
             "history": np.concatenate([np.asarray(about["history"]).reshape(-1, 1) for about in variates], 1),
             **({"effect": np.concatenate([about["effect"] for about in variates], 1)}
                if "effect" in variates[0] else {})}
            for variates in samples
        ]  # fmt: skip

    @torch.no_grad()
    def decode(self, out: Out, meta: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        answers: list[Prediction] = []
        for i, about in enumerate(meta):
            c = len(about["names"])
            history = np.asarray(about["history"], np.float64).reshape(-1, c)
            effect = about["effect"][len(history) :] if "effect" in about else np.zeros((self.config.horizon, c))
            h = min(self.horizon, self.config.horizon, len(effect))
            raw = {name: x[i, :c].float() for name, x in out.items()}
            known = {name: x.to(next(self.parameters()).device) for name, x in self.known(_alone(about)).items()}
            steps, bands = self.answer(raw, known)  # (c, h), (c, h, q)
            loc, scale = np.asarray(about["loc"]) + effect[:h], np.asarray(about["scale"])
            mean = steps[:, :h].T.cpu().numpy() * scale + loc
            levels = bands[:, :h].permute(2, 1, 0).cpu().numpy() * scale + loc  # (q, h, c)
            for j in range(c):
                if (level := _standing(history[:, j])) is not None:
                    mean[:, j], levels[:, :, j] = level, level
            answers.append(Series(
                mean=mean, quantiles=dict(zip(self.config.quantiles, levels, strict=True)),
                times=future_times(about.get("times"), about.get("freq"), h, about.get("zone")),
                zone=about.get("zone") or about.get("day_zone"),
                names=about["names"], history=about["history"], source=about["source"],
            ))  # fmt: skip
        return answers


def _alone(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The meta of each variate of a sample."""
    history = np.asarray(about["history"], np.float64).reshape(-1, len(about["names"]))
    return [{"names": [name], "loc": about["loc"][j : j + 1], "scale": about["scale"][j : j + 1],
             "history": history[:, j], **({"effect": about["effect"][:, j : j + 1]} if "effect" in about else {})}
            for j, name in enumerate(about["names"])]  # fmt: skip


def _without_effect(about: Mapping[str, Any]) -> Float[np.ndarray, "t c"]:
    """A history less the effect of its covariates."""
    history = np.asarray(about["history"], np.float64).reshape(-1, len(about["names"]))
    return history - about["effect"][: len(history)] if "effect" in about else history


def _left_over(label: Any, about: Mapping[str, Any]) -> Float[np.ndarray, " h"]:
    """A future less the effect of its covariates, as far as these are known."""
    future = np.asarray(label, np.float64).reshape(-1)
    if "effect" not in about:
        return future
    effect = about["effect"][len(about["history"]) :].reshape(-1)[: len(future)]
    return future[: len(effect)] - effect


def _standing(history: Float[np.ndarray, " t"]) -> float | None:
    """The level of a history without any deviation, NaN where nothing of it is known; None for others."""
    seen = history[np.isfinite(history)]
    if not len(seen):
        return float("nan")
    return float(seen[-1]) if np.ptp(seen) <= STILL * np.abs(seen).max() else None


def _float(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.nan_to_num(x).astype(np.float32))

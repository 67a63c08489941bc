"""Time series: the last `context` steps, normalised by themselves -> patches (or steps) -> tokens.

Four forms: "patch" (default), overlapping patches of each variate by itself or of all together (PatchTST, Nie et al.
2023, with the instance normalisation of RevIN, Kim et al. 2022); "conv", one token a step as Meta-Transformer had it
(Zhang et al. 2023); "kernels", a token for each of a few segments, from fixed dilated kernels (MiniRocket, see
`series_kernels`), the form for classification; "variates", the whole window of each variate as one token (see
`series_variates`). Sequences are padded on the left, so that the last token is always the
newest.

Shape legend: b batch, t steps, c variates, n tokens, p steps of a patch, d width, r training
series, f features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.core.errors import InputError
from polysense.core.types import Sample, Tokens
from polysense.data.time_series import SeriesFrame, calendar_features, calendar_marks, read_series, read_series_all
from polysense.data.time_series_roles import roles_of
from polysense.tokenizers.base import TOKENIZERS, Batch, Tokenizer, group_by_size, meta_of
from polysense.tokenizers.positions import CoordinateEmbedding, sin_cos
from polysense.tokenizers.series_config import USUAL, SeriesConfig, check_config
from polysense.tokenizers.series_covariates import fit_effect
from polysense.tokenizers.series_kernels import BIAS_SERIES, LocalKernels, segment_weights
from polysense.tokenizers.series_scale import normalise
from polysense.tokenizers.series_statics import fit_statics
from polysense.tokenizers.series_variates import VariateStem, collate_variates, variate_mask

__all__ = ["SeriesConfig", "TimeSeriesTokenizer"]
MOST_SERIES = 1000  # training series that a configuration and "kernels" are fitted to


@TOKENIZERS.register("time_series")
class TimeSeriesTokenizer(Tokenizer):
    """Series of any length and number of variates; see `SeriesConfig`."""

    Config: ClassVar[type] = SeriesConfig

    def __init__(self, config: SeriesConfig = USUAL) -> None:
        super().__init__(config)
        check_config(config)
        conv, kernels = config.form == "conv", config.form == "kernels"
        self.patch, self.stride = (1, 1) if conv or kernels else (config.patch, config.stride)
        channels, width = config.channels or 1, config.width
        self.stem: nn.Module
        self.position: CoordinateEmbedding | None = None
        if conv:
            self.stem = nn.Conv1d(channels, width, 3, padding=1, padding_mode="circular")
        elif kernels:
            span = config.span or config.context
            self.stem = LocalKernels(channels, width, config.segments, span, config.features, config.dilations)
            self.position = CoordinateEmbedding(1, width)
        elif config.form == "variates":
            self.stem = VariateStem(config.context, width)
        else:
            self.stem = nn.Linear(2 * self.patch * channels, width)
            self.position = CoordinateEmbedding(1, width)
        self.calendar = nn.Linear(4 if conv else 8, width) if config.calendar else None
        if self.calendar is not None:  # starts silent: many series have no times
            nn.init.zeros_(self.calendar.weight)
            nn.init.zeros_(self.calendar.bias)
        self.level = nn.Linear(2, width) if config.levels else None
        self.variate = nn.Embedding(channels, width) if config.levels and channels > 1 else None
        self.static = nn.Linear(config.statics.size, width) if config.statics is not None else None

    @classmethod
    def fit_config(cls, config: SeriesConfig, sources: Sequence[Any]) -> SeriesConfig:
        """Fills in what the training data tell: `channels` where it is -1 (the first source's), `span`, `mean` and
        `spread` for center "data", `effect` and `statics`."""
        if not len(sources):
            return config
        if config.channels == -1:
            config = replace(config, channels=len(_frames(config, sources[0])[0].names))
        if config.known or config.static:
            frames = [frame for source in _some(sources) for frame in _frames(config, source)]
            if config.known and config.effect is None:
                effect = fit_effect(frames, config.known, config.context + config.ahead)
                config = replace(config, effect=effect)
            if config.static and config.statics is None:
                config = replace(config, statics=fit_statics(frames, config.static))
        if config.form == "kernels" and config.span is None:
            values = _some_values(config, sources)
            config = replace(config, span=min(int(np.median([len(v) for v in values])), config.context))
        if config.center == "data" and not config.spread:
            joined = np.concatenate(_some_values(config, sources))
            _, _, mean, spread = normalise(joined, "mean")
            config = replace(config, mean=tuple(mean.tolist()), spread=tuple(spread.tolist()))
        return config

    def fit_tensors(self, sources: Sequence[Any], seed: int) -> list[str]:
        """Form "kernels": biases and projection from the training series (`MOST_SERIES` of them)."""
        if not isinstance(self.stem, LocalKernels):
            return []
        samples = [part for source in _some(sources) for whole in self.read_all(source) for part in self.split(whole)]
        values = [sample.data["values"] for sample in samples]
        self.stem.fit_biases(values[:: math.ceil(len(values) / BIAS_SERIES)])
        pooled = []
        for start in range(0, len(samples), 16):
            batch = self.collate(samples[start : start + 16])
            averaging = segment_weights(batch["steps"], batch["values"].shape[1], self.config.segments)
            pooled.append(self.stem.features(batch["values"], averaging).mean(1))
        self.stem.fit_projection(torch.cat(pooled), torch.Generator().manual_seed(seed))
        return [f"stem.{name}" for name in self.stem.state_dict()]

    def read(self, source: Any) -> Sample:
        """One series, its last `context` steps; see `read_series` for sources and errors.

        Raises:
            InputError: See there; or a covariate is known for no step after the last value.
        """
        config = self.config
        return self._newest(read_series(source, time=config.time, columns=config.columns, roles=roles_of(config)))

    def read_all(self, source: Any) -> Iterator[Sample]:
        """Every series of a source: `.ts` files, arrays (n, t, c) and long tables hold several."""
        for frame in _frames(self.config, source):
            yield self._newest(frame)

    def _newest(self, frame: SeriesFrame) -> Sample:
        if self.config.effect is not None:
            self.config.effect.check(frame)
        return self.window_sample(frame, len(frame.values))

    def window_sample(self, frame: SeriesFrame, end: int) -> Sample:
        """The sample that reading `frame.values[:end]` would give: a training window, without reading again.

        Raises:
            InputError: Not as many variates as `channels`, or a covariate is missing.
            ValueError: `end` is outside 1..t.
        """
        config, count = self.config, frame.values.shape[1]
        if config.channels is not None and count != config.channels:
            raise InputError(frame.source, f"it has {count} variates where {config.channels} are needed",
                             "give the variates that this model was trained on, or name them as columns")  # fmt: skip
        if not 1 <= end <= len(frame.values):
            raise ValueError(f"a window must end between 1 and {len(frame.values)}, not {end}")
        begin = max(0, end - config.context)
        history = frame.values[begin:end]
        times = None if frame.times is None else frame.times[begin:end]
        effect = None if config.effect is None else config.effect.at(frame, begin, end, config.ahead)
        left = history if effect is None else history - effect[: len(history)]
        values, observed, loc, scale = normalise(left, config.center, config.mean, config.spread)
        told = calendar_marks if config.form == "conv" else calendar_features
        data = {
            "values": torch.from_numpy(values),
            "observed": torch.from_numpy(observed),
            "calendar": torch.from_numpy(told(times if config.calendar else None, len(history))),
            "stats": torch.from_numpy(np.stack([np.arcsinh(loc), np.log(scale)], -1).astype(np.float32)),
        }
        meta = {"names": frame.names, "times": times, "freq": frame.freq, "loc": loc.tolist(), "scale": scale.tolist(),
                "history": history, "label": frame.label, "zone": frame.zone, "day_zone": frame.day_zone,
                "frame": frame, "end": end}  # fmt: skip
        if effect is not None:
            meta["effect"] = effect
        if config.statics is not None:
            data["static"] = torch.from_numpy(config.statics.encode(frame.static))
        return Sample(data, frame.source, meta)

    def split(self, sample: Sample) -> list[Sample]:
        """One sequence for each variate, unless all are read together; `meta["variate"]` numbers them."""
        if self.config.channels is not None or self.config.form == "variates":
            return [sample]
        data, meta = sample.data, sample.meta
        parts = []
        for i, name in enumerate(meta["names"]):
            one = slice(i, i + 1)
            part = {**data, "values": data["values"][:, one], "observed": data["observed"][:, one],
                    "stats": data["stats"][one]}  # fmt: skip
            own = {"names": [name], "variate": i, "loc": meta["loc"][one], "scale": meta["scale"][one],
                   "history": meta["history"][:, one]}  # fmt: skip
            if "effect" in meta:
                own["effect"] = meta["effect"][:, one]
            parts.append(Sample(part, sample.source, {**meta, **own}))
        return parts

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Pads on the left to whole patches: "values", "observed" (b, t, c), "calendar" (b, n, 8 or 4), "stats"."""
        static = {} if self.static is None else {"static": torch.stack([s.data["static"] for s in samples])}
        if self.config.form == "variates":
            return {**collate_variates(samples, self.config.context), **static}
        steps = [len(sample.data["values"]) for sample in samples]
        longest = max(*steps, self.config.context) if self.config.fixed_context else max(steps)
        # Of form "kernels" the tokens are shares of the steps, which need no padding to whole patches.
        kernels = self.config.form == "kernels"
        length = longest if kernels else (self.token_count(longest) - 1) * self.stride + self.patch

        def stack(name: str) -> Tensor:
            return torch.stack([F.pad(s.data[name], (0, 0, length - len(s.data[name]), 0)) for s in samples])

        # A patch is dated by its last step.
        calendar = stack("calendar")[:, self.patch - 1 :: self.stride]
        return {"values": stack("values"), "observed": stack("observed"), "calendar": calendar, **static,
                "stats": torch.stack([s.data["stats"] for s in samples]), "steps": torch.tensor(steps),
                "meta": meta_of(samples)}  # fmt: skip

    def token_count(self, steps: int) -> int:
        """Patches that cover so many steps, or segments; one of each variate."""
        if self.config.form in ("kernels", "variates"):
            return self.config.segments if self.config.form == "kernels" else 1
        return 1 + max(0, -((self.patch - steps) // self.stride))

    def forward(self, batch: Batch) -> Tokens:
        """Tokens in order of time, after one of the static features and one level token for each variate where these
        are on.

        `pos` is the last step of each patch or segment, counted back from the newest (0, -stride, …); tokens of the
        whole stand before the first step.
        """
        if self.config.form == "variates":
            return self._variates(batch)
        steps, dtype = batch["steps"].to(batch["values"].device), next(self.parameters()).dtype
        x, mask, pos = (self._segments if self.config.form == "kernels" else self._strides)(batch, steps, dtype)
        grid: tuple[int, ...] | None = (x.shape[1],)
        if self.level is not None:
            level = self.level(batch["stats"].to(dtype))  # (b, c, d)
            level = level if self.variate is None else level + self.variate.weight
            first = -steps.float()[:, None, None].expand(-1, level.shape[1], 1)
            x, pos, grid = torch.cat([level, x], 1), torch.cat([first, pos], 1), None
            mask = torch.cat([mask.new_ones(level.shape[:2]), mask], 1)
        if self.static is not None:
            static = self.static(batch["static"].to(dtype)).unsqueeze(1)  # (b, 1, d)
            x, pos, grid = torch.cat([static, x], 1), torch.cat([-steps.float()[:, None, None], pos], 1), None
            mask = torch.cat([mask.new_ones(len(mask), 1), mask], 1)
        return Tokens(x, None if bool(mask.all()) else mask, pos, grid)

    def _variates(self, batch: Batch) -> Tokens:
        """One token for each variate; date and static features of the sample are added to all of them."""
        dtype, mask = next(self.parameters()).dtype, variate_mask(batch)
        x = self.stem(batch["values"].to(dtype), batch["observed"].to(dtype))
        if self.calendar is not None:
            x = x + self.calendar(batch["calendar"].to(dtype))
        if self.static is not None:
            x = x + self.static(batch["static"].to(dtype)).unsqueeze(1)
        return Tokens(x, None if bool(mask.all()) else mask, x.new_zeros(*x.shape[:2], 1))

    def _strides(self, batch: Batch, steps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, mask and positions where a token is so many steps."""
        values = batch["values"]
        length = values.shape[1]
        ends = torch.arange(self.patch, length + 1, self.stride, device=values.device)
        counts = torch.tensor([self.token_count(t) for t in steps.tolist()], device=values.device)
        mask = torch.arange(len(ends), device=values.device) >= len(ends) - counts[:, None]
        pos = (ends - length).float()[None, :, None].expand(len(values), -1, -1)
        x = self._steps(values.to(dtype), steps) if self.config.form == "conv" else self._patches(batch, dtype)
        if self.position is not None:
            x = x + self.position(pos[:1] / self.config.context).to(x.dtype)
        if self.calendar is not None:
            x = x + self.calendar(batch["calendar"].to(dtype))
        return x, mask, pos

    def _segments(self, batch: Batch, steps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The same where a token is a share of the series, however long it is."""
        values = batch["values"].to(dtype)
        averaging = segment_weights(steps, values.shape[1], self.config.segments).to(dtype)  # (b, t, n)
        x = self.stem(values, averaging)
        back = torch.arange(1 - self.config.segments, 1, device=values.device).float() / self.config.segments
        pos = (steps[:, None] * back)[..., None]
        if self.position is not None:  # of the share, not of the steps: series differ in speed
            x = x + self.position(back[None, :, None]).to(x.dtype)
        if self.calendar is not None:
            x = x + self.calendar(averaging.transpose(1, 2) @ batch["calendar"].to(dtype))
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device), pos

    def _patches(self, batch: Batch, dtype: torch.dtype) -> Float[Tensor, "b n d"]:
        told = torch.cat([batch["values"], batch["observed"]], -1).to(dtype)
        return self.stem(told.unfold(1, self.patch, self.stride).flatten(2))  # (b, n, 2c·p)

    def _steps(self, values: Float[Tensor, "b t c"], steps: Tensor) -> Float[Tensor, "b t d"]:
        """Each length by itself: a circular convolution joins the first step to the last one."""
        length = values.shape[1]
        x = values.new_zeros(*values.shape[:2], self.width)
        for (count,), chosen in group_by_size(steps.cpu()[:, None]):
            chosen = chosen.to(values.device)
            part = self.stem(values[chosen, length - count :].transpose(1, 2)).transpose(1, 2)
            code = sin_cos(torch.arange(float(count), device=values.device)[:, None], self.width)
            x[chosen, length - count :] = (part + code).to(x.dtype)
        return x


def _some(sources: Sequence[Any]) -> Sequence[Any]:
    """At most `MOST_SERIES` sources, spread evenly."""
    return sources[:: math.ceil(len(sources) / MOST_SERIES)]


def _frames(config: SeriesConfig, source: Any) -> list[SeriesFrame]:
    """All series of a source."""
    return read_series_all(source, time=config.time, columns=config.columns, roles=roles_of(config))


def _some_values(config: SeriesConfig, sources: Sequence[Any]) -> list[np.ndarray]:
    """Values of training series, no longer than the context."""
    read = (_frames(config, source) for source in _some(sources))
    return [frame.values[-config.context :] for frames in read for frame in frames]

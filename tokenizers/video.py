"""Clips -> tokens, one for each cell of a grid of time, rows and columns.

Three forms: "frames" (the image tokenizer's stem on each of a few frames, and what changed since the frame before; the
default), "motion" (fine features of the stem's first blocks less their mean over the clip: how things move, whatever
they are; for lips and gestures, with the pooling "course") and "tubelet" (one linear map per block of two frames × 16 ×
16 pixels with fixed positions: Arnab et al. 2021, Tong et al. 2022, and so Meta-Transformer, Zhang et al. 2023).

Shape legend: b batch, n tokens, t frames (or steps of the grid), h height, w width (pixels), r rows, q columns (cells),
c channels, d width of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from polysense.core.types import Sample, Tokens
from polysense.data.image import describe_source
from polysense.data.video import ROUNDING, read_video
from polysense.tokenizers.base import TOKENIZERS, Batch, meta_of, pad_stack
from polysense.tokenizers.image import ImageTokenizer
from polysense.tokenizers.image_grid import (
    FILTERS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LITE0_MEAN,
    LITE0_STD,
    RESIZES,
    GridTokenizer,
    cell_centres,
    check_choice,
    features_on_grid,
    fit_size,
    quiet_positions,
    resize,
    seen_window,
)
from polysense.tokenizers.positions import sin_cos
from polysense.tokenizers.stems import Lite0Stem

FORMS = ("frames", "motion", "tubelet")
MOTION_STRIDE, MOTION_CELL = 4, 32  # pixels of a feature and of a token; a token holds 2 × 2 means of features
TARGET_MARGIN = 2  # frames are read with a longer side of this times the size: enough for an aspect of 4


@dataclass(frozen=True)
class VideoConfig:
    """How a clip becomes tokens. Values left None are filled in with what the form usually has."""

    width: int = 192  # of a token
    form: str = "frames"  # "frames", "motion" or "tubelet"
    frames: int | None = None  # how many, evenly spaced in time: 8, motion and tubelet 16
    size: int | None = None  # pixels: side of a square input, or the root of the area: 128, tubelet 224
    resize: str | None = None  # "area" keeps the aspect (frames), "squash" makes a square (tubelet), "crop" its centre
    stride: int = 32  # of the lite0 stem: 32 (320 channels) or 16 (112 channels)
    patch: int = 16  # side of a tubelet in pixels
    tube: int = 2  # frames of a tubelet
    interpolation: str = "bilinear"  # or "bicubic"
    mean: tuple[float, ...] | None = None  # of R, G, B in 0..1
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("form", self.form, FORMS)
        stem = self.form != "tubelet"
        usual: dict[str, Any] = {
            "frames": 8 if self.form == "frames" else 16,
            "size": 128 if stem else 224,
            "resize": "area" if stem else "squash",
            "mean": LITE0_MEAN if stem else IMAGENET_MEAN,
            "std": LITE0_STD if stem else IMAGENET_STD,
        }
        for name, value in usual.items():
            chosen = value if getattr(self, name) is None else getattr(self, name)
            object.__setattr__(self, name, tuple(chosen) if name in ("mean", "std") else chosen)  # JSON gives lists
        check_choice("resize", str(self.resize), RESIZES)
        check_choice("interpolation", self.interpolation, tuple(FILTERS))
        sizes = {name: getattr(self, name) for name in ("frames", "size", "patch", "tube")}
        if min(sizes.values()) < 1:
            raise ValueError(f"frames, size, patch and tube must be positive, not {sizes}")

    @property
    def step(self) -> int:
        """Pixels along the side of a cell."""
        return {"frames": self.stride, "motion": MOTION_CELL, "tubelet": self.patch}[self.form]


@TOKENIZERS.register("video")
class VideoTokenizer(GridTokenizer):
    """Reads any clip; its tokens' `pos` is (seconds, y, x), y and x as fractions of the longer side."""

    Config = VideoConfig
    config: VideoConfig

    def __init__(self, config: VideoConfig) -> None:
        super().__init__(config)
        assert config.mean is not None and config.std is not None
        self._set_normalization(config.mean, config.std)
        if config.form == "frames":
            self._set_lite0(config.stride)
            self.position = quiet_positions(3, config.width)
            # At zero it changes nothing and still learns: its own gradient is the product of input and error.
            self.motion = nn.Linear(self.stem.channels, config.width)
            nn.init.zeros_(self.motion.weight)
            nn.init.zeros_(self.motion.bias)
        elif config.form == "motion":
            self.stem = Lite0Stem(MOTION_STRIDE)
            self.project = nn.Linear(4 * self.stem.channels, config.width)
            nn.init.orthogonal_(self.project.weight)
            nn.init.zeros_(self.project.bias)
            self.position = quiet_positions(3, config.width)
        else:
            kernel = (config.tube, config.patch, config.patch)
            self.proj = nn.Conv3d(3, config.width, kernel, kernel)

    def start_from(self, image: ImageTokenizer) -> None:
        """Copies the stem, projection and (y, x) positions of an image tokenizer of the same width and stride."""
        self.stem.load_state_dict(image.stem.state_dict())
        self.project.load_state_dict(image.project.state_dict())
        ours, theirs = self.position.project, image.position.project
        with torch.no_grad():
            ours.weight[:, -theirs.in_features :] = theirs.weight  # coordinates stand in the order t, y, x
            ours.bias.copy_(theirs.bias)

    def read(self, source: Any, frames: int | None = None) -> Sample:
        """Decodes one clip (whatever `data.video.read_video` takes) and resizes its frames: as many as the
        configuration says, or for `stretch` more."""
        config = self.config
        assert config.frames is not None and config.size is not None and config.resize is not None
        clip = read_video(source, frames or config.frames, target=TARGET_MARGIN * config.size)
        size = fit_size(*clip.size, config.size, config.step, config.resize)
        pictures = [resize(Image.fromarray(f), size, config.resize, config.interpolation) for f in clip.frames]
        times = clip.times.tolist()
        if config.form == "tubelet":
            pictures, times = self._filled(pictures), self._filled(times)
        data = {
            "video": torch.stack(pictures),
            "time": torch.tensor(times, dtype=torch.float32),
            "duration": torch.tensor(clip.duration, dtype=torch.float32),
        }
        meta = {
            "size": clip.size,
            "times": clip.times,
            "duration": clip.duration,
            "input_size": size,
            "grid": (size[0] // config.step, size[1] // config.step),
            "window": seen_window(*clip.size, config.resize),
        }
        return Sample(data, describe_source(source), meta)

    def _filled(self, frames: list[Any]) -> list[Any]:
        """The last frame stands still until its tubelet is full."""
        return frames + frames[-1:] * (-len(frames) % self.config.tube)

    def stretch(self, sample: Sample, begin: float, end: float) -> Sample:
        """What `read` would give of the film from `begin` to `end` (seconds) alone, of the frames that were read."""
        assert self.config.frames is not None
        times = np.asarray(sample.meta["times"])
        moments = begin + (np.arange(self.config.frames) + 0.5) * (end - begin) / self.config.frames
        shown = np.searchsorted(times, moments + ROUNDING, side="right") - 1
        chosen = np.unique(shown.clip(0)).tolist()
        own = (times[chosen] - begin).clip(0)  # its first frame may have come before
        places = self._filled(chosen) if self.config.form == "tubelet" else chosen
        time = torch.from_numpy(own).float()
        data = {
            "video": sample.data["video"][places],
            "time": torch.cat([time, time[-1:].expand(len(places) - len(chosen))]),
            "duration": torch.tensor(end - begin, dtype=torch.float32),
        }
        return Sample(data, sample.source, {**sample.meta, "times": own, "duration": end - begin})

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stacks clips (b, t, 3, h, w), padded at the end of each axis, with their true "size" (b, 3): t, h, w."""
        video, sizes = pad_stack([sample.data["video"] for sample in samples])
        time, _ = pad_stack([sample.data["time"] for sample in samples])
        duration = torch.stack([sample.data["duration"] for sample in samples])
        return {
            "video": video,
            "size": sizes[:, [0, 2, 3]],
            "time": time,
            "duration": duration,
            "meta": meta_of(samples),
        }

    def forward(self, batch: Batch) -> Tokens:
        forms = {"frames": self._frames, "motion": self._motions, "tubelet": self._tubelets}
        x, mask, time = forms[self.config.form](batch)
        _, steps, rows, columns, _ = x.shape
        centres = cell_centres(batch["size"][:, 1:] // self.config.step, rows, columns)  # (b, r·q, 2)
        seconds = time.repeat_interleave(rows * columns, 1)[..., None]
        pos = torch.cat([seconds, centres.repeat(1, steps, 1)], -1)
        x = x.flatten(1, 3)
        if self.config.form != "tubelet":
            # A share of the clip instead of seconds: a film of an hour must not leave the range that was trained on.
            share = seconds / batch["duration"].clamp(min=1e-6).view(-1, 1, 1)
            x = x + self.position(torch.cat([share, pos[..., 1:]], -1))
        else:
            cells = torch.cartesian_prod(*(torch.arange(n, device=x.device) for n in (steps, rows, columns)))
            x = x + sin_cos(cells, self.width).to(x.dtype)
        return Tokens(x, None if mask is None else mask.flatten(1), pos, (steps, rows, columns))

    def _frames(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "b t r q d"], Bool[Tensor, "b t r q"] | None, Float[Tensor, "b t"]]:
        features, mask = self._each_frame(batch, self.stem_features)
        change = torch.cat([torch.zeros_like(features[:, :1]), features[:, 1:] - features[:, :-1]], 1)
        return self.project(features) + self.motion(change), mask, batch["time"]

    def _each_frame(
        self, batch: Batch, run: Callable[[Tensor], Tensor]
    ) -> tuple[Float[Tensor, "b t r q c"], Bool[Tensor, "b t r q"] | None]:
        """Features of the cells of every real frame; zero at padded frames."""
        video, sizes, step = batch["video"], batch["size"], self.config.step
        real = torch.arange(video.shape[1], device=sizes.device) < sizes[:, :1]  # (b, t)
        frame_sizes = sizes[:, None, 1:].expand(-1, video.shape[1], -1)[real]
        features, mask = features_on_grid(run, video[real], frame_sizes, (step, step))
        if not bool(real.all()):
            mask = features.new_ones(features.shape[:-1], dtype=torch.bool) if mask is None else mask
        return _lay_out(features, real), None if mask is None else _lay_out(mask, real)

    def _motions(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "b t r q d"], Bool[Tensor, "b t r q"] | None, Float[Tensor, "b t"]]:
        """What stands still is taken away, place by place."""

        def fine(pixels: Tensor) -> Tensor:  # (k, 3, h, w) -> (k, 4 · 24, h / 32, w / 32)
            means = nn.functional.avg_pool2d(self.stem_features(pixels), MOTION_CELL // MOTION_STRIDE // 2)
            return nn.functional.pixel_unshuffle(means, 2)

        x, mask = self._each_frame(batch, fine)
        real = x.new_ones(x.shape[:-1], dtype=torch.bool) if mask is None else mask
        moving = x - x.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1).unsqueeze(-1)
        return self.project(moving.masked_fill(~real.unsqueeze(-1), 0.0)), mask, batch["time"]

    def _tubelets(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "b t r q d"], Bool[Tensor, "b t r q"] | None, Float[Tensor, "b t"]]:
        tube, patch = self.config.tube, self.config.patch
        video = batch["video"].transpose(1, 2)  # (b, 3, t, h, w)
        x, mask = features_on_grid(
            lambda part: self.proj(self.normalized(part)), video, batch["size"], (tube, patch, patch)
        )
        return x, mask, batch["time"].unflatten(1, (-1, tube)).mean(2)


def _lay_out(values: Float[Tensor, f * s], real: Bool[Tensor, "b t"]) -> Float[Tensor, "b t *s"]:
    """Puts the values of all real frames back to their clips; zero (False) elsewhere."""
    if bool(real.all()):
        return values.unflatten(0, tuple(real.shape))
    out = values.new_zeros(*real.shape, *values.shape[1:])
    out[real] = values
    return out

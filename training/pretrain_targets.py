"""What hidden tokens are rebuilt to: the raw input that each token stands for, or what a frozen stem made of it.

Raw values are normalised token by token, so that the loss is about shape and not about brightness or loudness (masked
autoencoders, He et al. 2022, 4.1). Targets must not be learned: what is learned could become constant.

Shape legend: b sequences, n tokens, k values of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from polysense.core.registry import Registry
from polysense.core.types import Tokens
from polysense.tokenizers.base import Batch

SIDE = 8  # most pixels along a cell that are rebuilt


class Target(NamedTuple):
    values: Float[Tensor, "b n k"]
    able: Bool[Tensor, "b n"]  # tokens that can be hidden: real, and standing for something raw


TARGETS: Registry[Callable[[Any, Batch, Tokens], Target]] = Registry("modality to rebuild")


def normed(values: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]:
    mean, std = values.mean(-1, keepdim=True), values.std(-1, keepdim=True)
    return (values - mean) / (std + 1e-2)


@TARGETS.register("image")
def image_target(tokenizer: Any, batch: Batch, tokens: Tokens) -> Target:
    return Target(normed(_cells(batch["image"].float() / 255, tokenizer.config.step)), tokens.dense_mask())


@TARGETS.register("video")
def video_target(tokenizer: Any, batch: Batch, tokens: Tokens) -> Target:
    """Cells of the frames in turn; a tubelet is the mean of its frames."""
    clip = batch["video"].float() / 255  # (b, t, 3, h, w)
    if tokenizer.config.form == "tubelet":
        clip = clip.unflatten(1, (-1, tokenizer.config.tube)).mean(2)
    cells = _cells(clip.flatten(0, 1), tokenizer.config.step).unflatten(0, clip.shape[:2]).flatten(1, 2)
    return Target(normed(cells), tokens.dense_mask())


def _cells(pixels: Float[Tensor, "b 3 h w"], step: int) -> Float[Tensor, "b n k"]:
    """The pixels of each cell of `step` x `step`, averaged to at most 8 x 8."""
    side = max(m for m in range(1, SIDE + 1) if step % m == 0)
    small = F.avg_pool2d(pixels, step // side)
    return F.unfold(small, side, stride=side).transpose(1, 2)


@TARGETS.register("audio")
def audio_target(tokenizer: Any, batch: Batch, tokens: Tokens) -> Target:
    size, stride = tokenizer.layout.patch, tokenizer.layout.stride
    patches = batch["mel"].unfold(1, size, stride).unfold(2, size, stride)  # (b, rows, columns, p, p)
    assert tokens.grid is not None
    extra = tokens.grid[1] - patches.shape[2]  # late tokens cover other tokens' patches: they have none to rebuild
    able = tokens.dense_mask().unflatten(1, tokens.grid).clone()
    able[:, :, patches.shape[2] :] = False
    return Target(F.pad(normed(patches.flatten(3)), (0, 0, 0, extra)).flatten(1, 2), able.flatten(1))


@TARGETS.register("point_cloud")
def cloud_target(tokenizer: Any, batch: Batch, tokens: Tokens) -> Target:
    """The points of a patch about its centre, in units of their spread; the token of the extent has none."""
    points = batch["groups"][..., :3]
    spread = points.flatten(2).std(-1).clamp_min(1e-4)[..., None, None]
    values, extra = (points / spread).flatten(2), tokens.x.shape[1] - points.shape[1]
    able = tokens.dense_mask().clone()
    able[:, points.shape[1] :] = False
    return Target(F.pad(values, (0, 0, 0, extra)), able)


@TARGETS.register("time_series")
def series_target(tokenizer: Any, batch: Batch, tokens: Tokens) -> Target:
    """The normalised values of a patch; level tokens stand before the patches and have none."""
    values = batch["values"].unfold(1, tokenizer.patch, tokenizer.stride).flatten(2)
    seen = batch["observed"].unfold(1, tokenizer.patch, tokenizer.stride).flatten(2).mean(-1) > 0.5
    extra = tokens.x.shape[1] - values.shape[1]
    return Target(F.pad(values.clamp(-8, 8), (0, 0, extra, 0)), tokens.dense_mask() & F.pad(seen, (extra, 0)))


def chamfer_loss(built: Float[Tensor, "h k"], wanted: Float[Tensor, "h k"]) -> Tensor:
    """Chamfer distance of patches as point sets (Point-MAE, Pang et al. 2022)."""
    distance = torch.cdist(built.unflatten(1, (-1, 3)), wanted.unflatten(1, (-1, 3)))
    return distance.amin(1).mean() + distance.amin(2).mean()

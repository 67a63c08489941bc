"""Semantic segmentation: a class for each pixel of the original image.

Shape legend: b batch, k classes, h rows and w columns of the padded grid times 2**upsample, H and W pixels of the
original image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.core.errors import InputError
from polysense.core.predictions import Mask, Prediction
from polysense.core.types import Features
from polysense.data.masks import IGNORE, read_mask
from polysense.heads.base import HEADS, Head, Out
from polysense.heads.decoders import DECODERS
from polysense.heads.grid import Pyramid, cell_pixels, sample_grid, sample_window
from polysense.heads.tiles import Join, merge_windows, merge_windows_meta, stitch
from polysense.heads.upsample import inner_size, upsampled_argmax, whole
from polysense.heads.views import blend_maps

NEVER = -1e4  # logit of a class that is never answered; finite, so that half precision and gradients stay sound


@dataclass(frozen=True)
class SegmentationConfig:
    classes: tuple[str, ...]  # names by index in the masks
    ignore: int | None = None  # index in the masks that is neither learned nor answered, beside 255
    layers: tuple[int, ...] = ()  # hidden layers of the encoder read beside the last one
    channels: int = 128  # of the grid
    depth: int = 2  # 3 x 3 convolutions at the resolution of the tokens
    upsample: int = -1  # doublings of the resolution before the logits; -1: one for each finer map, else 2
    fine: tuple[int, ...] = ()  # channels of the tokenizer's finer maps that the doublings read, coarse to fine
    dropout: float = 0.1  # of whole channels, before the logits
    dice: float = 0.5  # weight of the dice loss beside cross entropy; 0 for none
    # "pyramid": its finest level; "uper": all levels and regions of the image, slower; "linear": the tokens alone
    decoder: str = "pyramid"

    def __post_init__(self) -> None:
        DECODERS[self.decoder]  # raises for a name that there is not
        for name in ("classes", "layers", "fine"):  # lists, when read from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.upsample < 0:
            object.__setattr__(self, "upsample", len(self.fine) or 2)


@HEADS.register("segmentation")
class SegmentationHead(Head):
    """A feature pyramid, a decoder of its levels, per-cell logits, read back at the size of the original."""

    Config = SegmentationConfig

    def __init__(self, config: SegmentationConfig, width: int) -> None:
        super().__init__(config, width)
        decoder = DECODERS[config.decoder]
        levels, fine, depth = (1, (), 0) if decoder.plain else (config.upsample + 1, config.fine, config.depth)
        self.pyramid = Pyramid(width, config.channels, levels, fine, config.layers, depth)
        self.decoder = decoder(config.channels, config.upsample)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classify = nn.Conv2d(config.channels, len(config.classes), 1)

    def forward(self, features: Features) -> Out:
        """Returns "logits" (b, k, h, w) in float32."""
        x = self.decoder(self.pyramid(features))
        logits = self.classify(self.dropout(x)).float()
        ignore = self.config.ignore
        if ignore is not None and ignore < len(self.config.classes):
            never = torch.zeros(len(self.config.classes), dtype=torch.bool, device=logits.device)
            never[ignore] = True
            logits = logits.masked_fill(never[:, None, None], NEVER)
        return {"logits": logits}

    def targets(self, labels: Sequence[Any], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Masks at the resolution of the logits: "mask" (b, h, w) int64, 255 where ignored or padded.

        Args:
            labels: A path, PIL image, array or `MaskFile` of class indices each, at the size of its image or a smaller
                copy of the same shape.

        Raises:
            InputError: A mask cannot be read, has another shape than its image or an index that is no class.
        """
        scale = 2**self.config.upsample
        grids = [sample_grid(m) for m in meta]
        height, width = (scale * max(g[axis] for g in grids) for axis in (0, 1))
        out = torch.full((len(labels), height, width), IGNORE, dtype=torch.int64)
        for row, label, m, (rows, cols) in zip(out, labels, meta, grids, strict=True):
            mask = self._checked(read_mask(label), m)
            left, top, right, bottom = sample_window(m)
            shrink = mask.shape[0] / m["size"][0]  # a mask may be a smaller copy
            ys = cell_pixels(top * shrink, bottom * shrink, rows * scale, mask.shape[0])
            xs = cell_pixels(left * shrink, right * shrink, cols * scale, mask.shape[1])
            xs = xs[::-1] if m.get("mirror") else xs
            row[: rows * scale, : cols * scale] = torch.from_numpy(mask[ys[:, None], xs].astype(np.int64))
        return {"mask": out}

    def _checked(self, mask: Int[np.ndarray, "H W"], meta: Mapping[str, Any]) -> Int[np.ndarray, "H W"]:
        source, (height, width) = meta.get("source", "<memory>"), meta["size"]
        if abs(mask.shape[0] * width - mask.shape[1] * height) > 0.02 * mask.shape[1] * height:
            problem = f"its mask is {mask.shape[1]}x{mask.shape[0]} but the image is {width}x{height} pixels"
            raise InputError(source, problem, "give a mask of the image's shape")
        if self.config.ignore is not None:
            mask = np.where(mask == self.config.ignore, IGNORE, mask)
        worst = int(mask.max(initial=0, where=mask != IGNORE))
        if worst >= len(self.config.classes):
            problem = f"its mask holds the index {worst}, beyond the {len(self.config.classes)} classes"
            raise InputError(source, problem, f"name more classes or ignore {worst}")
        return mask

    def loss(self, out: Out, target: Out) -> dict[str, Tensor]:
        """Cross entropy over the labelled cells, plus the dice loss (Milletari et al. 2016) of the classes present."""
        logits, mask = out["logits"], target["mask"].to(out["logits"].device)
        # The batch may be padded further than its largest sample, or the target may: both only add ignored cells.
        h, w = logits.shape[-2:]
        mask = F.pad(mask, (0, max(w - mask.shape[2], 0), 0, max(h - mask.shape[1], 0)), value=IGNORE)[:, :h, :w]
        known = mask != IGNORE
        entropy = F.cross_entropy(logits, mask, ignore_index=IGNORE, reduction="sum") / known.sum().clamp(min=1)
        losses = {"loss": entropy, "cross_entropy": entropy.detach()}
        if self.config.dice:
            dice = dice_loss(logits, mask)
            losses = {**losses, "loss": entropy + self.config.dice * dice, "dice": dice.detach()}
        return losses

    def merge(self, out: Out, owner: Int[Tensor, " b"], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Windows and views of one image become one map; where they overlap, their logits are averaged."""
        scale = 2**self.config.upsample

        def by(way: Callable[..., Tensor]) -> Join:
            return lambda parts, of: {"logits": way([part["logits"] for part in parts], of, scale)}

        return merge_windows(out, owner, meta, by(stitch), by(blend_maps))

    def merge_meta(self, meta: Sequence[Mapping[str, Any]], owner: Int[Tensor, " b"]) -> list[dict[str, Any]]:
        return merge_windows_meta(meta, owner)

    @torch.no_grad()
    def decode(self, out: Out, meta: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """`Mask` of each image at its original size; the confidence is taken on the cells of the logits."""
        scale = 2**self.config.upsample
        answers: list[Prediction] = []
        for logits, m in zip(out["logits"], meta, strict=True):
            rows, cols = sample_grid(m)
            own = logits[:, : rows * scale, : cols * scale]
            confidence = float(own.softmax(0).amax(0).mean())
            index = whole(upsampled_argmax(own, inner_size(m)), m)
            answers.append(Mask(index, self.config.classes, confidence, m.get("source", "<memory>")))
        return answers


def dice_loss(logits: Float[Tensor, "b k h w"], mask: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """One minus the soft dice coefficient over the batch, mean over the classes that occur in it."""
    known = mask != IGNORE
    truth = F.one_hot(mask.masked_fill(~known, 0), logits.shape[1]).movedim(-1, 1) * known[:, None]
    guess = logits.softmax(1) * known[:, None]
    both, total = (guess * truth).sum((0, 2, 3)), (guess + truth).sum((0, 2, 3))
    present = truth.sum((0, 2, 3)) > 0
    return ((1 - 2 * both / total.clamp(min=1e-6)) * present).sum() / present.sum().clamp(min=1)

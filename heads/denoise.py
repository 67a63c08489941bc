"""Denoising: true boxes, disturbed, as further queries that a decoder is to mend (Li et al. 2022, DN-DETR).

Which query learns which object is known there, so a decoder learns from few images, and does not wait for a matching
to settle. Each group holds every object twice (Zhang et al. 2023, DINO): a little disturbed, to be mended; and farther
off, to be called nothing, which is what keeps a set free of duplicates.

Shape legend: b batch, m objects of an image, g groups, q = g * 2 * m queries. Boxes are (cx, cy, w, h).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import box_convert

from polysense.heads.assign import paired_iou


class Noised(NamedTuple):
    """Queries made of the truth."""

    labels: Int[Tensor, "b q"]  # what they claim to be
    boxes: Float[Tensor, "b q 4"]
    overlap: Float[Tensor, "b q"]  # of a box with the true one
    object: Int[Tensor, "b q"]  # the object that is to come out; -1: none
    real: Bool[Tensor, "b q"]
    groups: int


def noised(
    boxes: Float[Tensor, "b m 4"],
    labels: Int[Tensor, "b m"],
    classes: int,
    queries: int,
    *,
    wrong: float = 0.25,
    shift: float = 0.5,
) -> Noised:
    """Disturbed copies of the objects, drawn from torch's own randomness.

    Args:
        boxes: True ones as shares of the image.
        labels: Class indices; -1 where there is no object.
        classes: Number of classes.
        queries: Most of them, unless one group has more.
        wrong: Share of objects whose class is drawn anew.
        shift: Most that corners move, in half sides of the box; those to be called nothing move once to twice as far.
    """
    b, m = labels.shape
    groups = max(queries // (2 * m), 1)
    shape = (b, groups, 2, m)
    own = labels[:, None, None].expand(shape)
    drawn = torch.randint(classes, shape, device=labels.device)
    claimed = torch.where(torch.rand(shape, device=labels.device) < wrong, drawn, own.clamp(min=0))

    spread = torch.rand(*shape, 4, device=boxes.device)
    spread[:, :, 1] += 1
    sign = torch.where(torch.rand_like(spread) < 0.5, -1.0, 1.0)
    half = boxes[..., 2:].repeat(1, 1, 2)[:, None, None] / 2
    corners = box_convert(boxes, "cxcywh", "xyxy")[:, None, None] + shift * sign * spread * half
    # Corners that passed each other change places.
    low, high = torch.minimum(*corners.chunk(2, -1)), torch.maximum(*corners.chunk(2, -1))
    moved = torch.cat([low, high], -1).clamp(0, 1).flatten(1, 3)
    true = box_convert(boxes, "cxcywh", "xyxy")[:, None, None].expand(*shape, 4).flatten(1, 3)
    overlap = paired_iou(moved.flatten(0, 1), true.flatten(0, 1)).view(b, -1)

    numbers = torch.arange(m, device=labels.device).expand(shape).clone()
    numbers[:, :, 1] = -1
    real = own >= 0
    return Noised(
        claimed.flatten(1), box_convert(moved, "xyxy", "cxcywh"), overlap,
        numbers.masked_fill(~real, -1).flatten(1), real.flatten(1), groups,
    )  # fmt: skip

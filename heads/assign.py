"""Which cell of a dense detector learns which object: task-aligned assignment (Feng et al. 2021, TOOD, section 3.2).

Shape legend: p cells of all levels, m objects of one image, k classes. Boxes are xyxy in any one unit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import box_iou


class Assignment(NamedTuple):
    """For each cell the object it learns, or -1, and how well it should score: 0 (background) to 1."""

    object: Int[Tensor, " p"]
    quality: Float[Tensor, " p"]


@torch.no_grad()
def task_aligned(
    scores: Float[Tensor, "p k"],
    boxes: Float[Tensor, "p 4"],
    centers: Float[Tensor, "p 2"],
    valid: Bool[Tensor, " p"],
    truth: Float[Tensor, "m 4"],
    labels: Int[Tensor, " m"],
    *,
    candidates: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Assignment:
    """Gives each object the cells inside it whose prediction fits best, by score**alpha * IoU**beta.

    An object so small that no cell's centre lies in it gets the nearest one. A cell wanted by several objects goes to
    the smallest (Tian et al. 2019, FCOS): larger ones have others, and the best fit would never let a small one begin.

    Args:
        scores: Probabilities.
        boxes: Predicted boxes.
        centers: (x, y) of the cells.
        valid: False at padded cells.
        truth: Boxes of the objects; none is fine.
        labels: Class indices of the objects.
        candidates: Most cells an object may have.
        alpha: Weight of the class score.
        beta: Weight of the overlap.
    """
    if not len(truth):
        return Assignment(labels.new_full((len(boxes),), -1), boxes.new_zeros(len(boxes)))
    overlap = box_iou(truth, boxes).nan_to_num(0.0)  # (m, p)
    fit = scores[:, labels].T.float() ** alpha * overlap**beta

    x, y = centers.T
    inside = (x > truth[:, :1]) & (y > truth[:, 1:2]) & (x < truth[:, 2:3]) & (y < truth[:, 3:])
    inside &= valid
    distance = torch.cdist((truth[:, :2] + truth[:, 2:]) / 2, centers).masked_fill(~valid, torch.inf)
    nearest = torch.zeros_like(inside).scatter_(1, distance.argmin(1, keepdim=True), True)
    inside |= nearest & ~inside.any(1, keepdim=True)

    # The distance decides between cells that fit equally badly, as all do before training.
    order = torch.where(inside, fit + 1e-9 / (1 + distance), -1.0)
    best = order.topk(min(candidates, order.shape[1]), 1).indices
    chosen = torch.zeros_like(inside).scatter_(1, best, True) & inside

    area = (truth[:, 2:] - truth[:, :2]).prod(1, keepdim=True)
    owner = torch.where(chosen.any(0), torch.where(chosen, area, torch.inf).argmin(0), -1)
    mine = owner == torch.arange(len(truth), device=owner.device)[:, None]
    fit, overlap = fit * mine, overlap * mine
    quality = fit / fit.amax(1, keepdim=True).clamp(min=1e-12) * overlap.amax(1, keepdim=True)
    return Assignment(owner, quality.amax(0).to(boxes.dtype))


@torch.no_grad()
def overlaps(
    boxes: Float[Tensor, "p 4"], centers: Float[Tensor, "p 2"], truth: Float[Tensor, "m 4"]
) -> tuple[Float[Tensor, " p"], Bool[Tensor, " p"]]:
    """The overlap of each cell's box with the smallest object that its centre lies in (else the one it overlaps most),
    and whether it lies in one."""
    if not len(truth):
        return boxes.new_zeros(len(boxes)), boxes.new_zeros(len(boxes), dtype=torch.bool)
    overlap = box_iou(truth, boxes).nan_to_num(0.0)
    inside = ((centers > truth[:, None, :2]) & (centers < truth[:, None, 2:])).all(-1)
    area = (truth[:, 2:] - truth[:, :2]).prod(1, keepdim=True)
    owner = torch.where(inside, area, torch.inf).argmin(0)
    mine = overlap.gather(0, owner[None])[0]
    return torch.where(inside.any(0), mine, overlap.amax(0)), inside.any(0)

"""Which answer of a detector learns which object.

Of a dense one, many cells an object: task-aligned assignment (Feng et al. 2021, TOOD, section 3.2). Of one that answers
with a set, one query an object: the best matching (Carion et al. 2020, DETR, section 3.1).

Shape legend: p cells of all levels, q queries, m objects of one image, k classes. Boxes are xyxy in any one unit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou


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
def one_to_one(
    scores: Float[Tensor, "q k"],
    boxes: Float[Tensor, "q 4"],
    valid: Bool[Tensor, " q"],
    truth: Float[Tensor, "m 4"],
    labels: Int[Tensor, " m"],
    extent: Float[Tensor, " 2"],
    *,
    class_cost: float = 2.0,
    corner_cost: float = 5.0,
    overlap_cost: float = 2.0,
) -> Int[Tensor, " q"]:
    """For each query the object it learns, or -1: the matching of least cost by class, corners and overlap.

    The cost of a class is what focal loss would gain by it (Zhu et al. 2021, Deformable DETR). With fewer queries than
    objects, some objects stay without one.

    Args:
        scores: Probabilities.
        boxes: Predicted boxes.
        valid: False at queries that stand for nothing.
        truth: Boxes of the objects; none is fine.
        labels: Class indices of the objects.
        extent: Width and height of the image, in the boxes' unit.
        class_cost, corner_cost, overlap_cost: Weights.
    """
    from scipy.optimize import linear_sum_assignment

    found = labels.new_full((len(boxes),), -1)
    real = valid.nonzero().flatten()
    if not len(truth) or not len(real):
        return found
    p = scores[real][:, labels].float().clamp(1e-8, 1 - 1e-8)
    gain = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
    distance = torch.cdist(boxes[real] / extent.repeat(2), truth / extent.repeat(2), p=1)
    cost = class_cost * gain + corner_cost * distance - overlap_cost * generalized_box_iou(boxes[real], truth)
    # Infinite costs would be refused; a box without area has an overlap that is no number.
    rows, objects = linear_sum_assignment(cost.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy())
    found[real[torch.as_tensor(rows, device=real.device)]] = torch.as_tensor(objects, device=found.device)
    return found


def paired_iou(boxes: Float[Tensor, "... 4"], others: Float[Tensor, "... 4"]) -> Float[Tensor, ...]:
    """Overlap of boxes with those at the same place; axes of length 1 stand for all."""
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (others[..., 2:] - others[..., :2]).prod(-1)
    return both / (areas - both).clamp(min=1e-9)


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

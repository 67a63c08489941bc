"""Which query learns which segment, and what its mask is told.

Shape legend: q queries, m segments, p cells of the finest grid, k classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0  # of matching and loss (Cheng et al. 2022, Mask2Former, 4.1)


@torch.no_grad()
def match(
    logits: Float[Tensor, "q k+1"] | None,
    masks: Float[Tensor, "q p"],
    labels: Int[Tensor, " m"],
    truth: Float[Tensor, "m p"],
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """The pairs of query and segment that together cost least (Carion et al. 2020, DETR, section 3.1).

    Args:
        logits: Of classes, the last one "nothing"; None where classes do not count.
        masks: Logits at the cells that are known.
        labels, truth: Of the segments.
    """
    total = max(truth.shape[1], 1)
    # Cross entropy of every pair by two products: log(1 + e^-x) where true, log(1 + e^x) where not.
    entropy = (F.softplus(-masks) @ truth.T + F.softplus(masks) @ (1 - truth).T) / total
    cost = MASK_WEIGHT * entropy + DICE_WEIGHT * (1 - _dice(masks.sigmoid(), truth))
    if logits is not None:
        cost = cost - CLASS_WEIGHT * logits.softmax(-1)[:, labels]
    query, segment = linear_sum_assignment(cost.nan_to_num(1e6, 1e6, -1e6).cpu().double().numpy())
    return torch.as_tensor(query, device=masks.device), torch.as_tensor(segment, device=masks.device)


def _dice(guess: Float[Tensor, "q p"], truth: Float[Tensor, "m p"]) -> Float[Tensor, "q m"]:
    """Soft dice coefficient of every pair."""
    return (2 * guess @ truth.T + 1) / (guess.sum(1)[:, None] + truth.sum(1)[None] + 1)


def mask_losses(
    masks: Float[Tensor, "n p"], truth: Float[Tensor, "n p"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Summed cross entropy and dice loss of pairs (Milletari et al. 2016)."""
    entropy = F.binary_cross_entropy_with_logits(masks, truth, reduction="none").mean(1).sum()
    guess = masks.sigmoid()
    return entropy, (1 - (2 * (guess * truth).sum(1) + 1) / (guess.sum(1) + truth.sum(1) + 1)).sum()


@torch.no_grad()
def overlap(masks: Float[Tensor, "n p"], truth: Float[Tensor, "n p"]) -> Float[Tensor, " n"]:
    """Intersection over union of answered and true masks, pair by pair."""
    guess = masks > 0
    true = truth > 0.5
    return (guess & true).sum(1) / (guess | true).sum(1).clamp(min=1)


def truth_masks(
    index: Int[Tensor, " p"], labels: Int[Tensor, " m"], wanted: Bool[Tensor, " m"], by_class: bool
) -> tuple[Int[Tensor, " n"], Float[Tensor, "n p"]]:
    """Classes and masks of the wanted segments that have a cell; with `by_class` one for each class.

    Args:
        index: Number of the segment at each cell; negative where there is none.
        labels: Class of each segment.
        wanted: Which of them count.
    """
    if by_class:
        classes = torch.unique(labels[wanted])
        number = torch.where(wanted, torch.searchsorted(classes, labels.clamp(min=0)), -1)
    else:
        classes = labels[wanted]
        number = torch.where(wanted, wanted.cumsum(0) - 1, -1)
    at = torch.where(index >= 0, number[index.clamp(min=0)] if len(labels) else -1, -1)
    masks = at == torch.arange(len(classes), device=index.device)[:, None]
    seen = masks.any(1)
    return classes[seen], masks[seen].float()

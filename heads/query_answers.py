"""From queries' classes and masks to answers at the size of the original image, strip by strip.

Shape legend: q queries, k classes, h rows and w columns of the masks, H and W pixels of the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysense.core.predictions import Mask, Segments
from polysense.heads.upsample import inner_size, strips, upsampled_argmax, whole


class Found(NamedTuple):
    """What an image's queries found."""

    classes: Float[Tensor, "q k+1"]  # probabilities, the last one of "nothing"
    masks: Float[Tensor, "q h w"]  # logits
    fit: Float[Tensor, " q"] | None  # how well each mask fits an object of any class; in an open world


def as_mask(found: Found, classes: Sequence[str], meta: Mapping[str, Any]) -> Mask:
    """Each pixel's class: the one whose queries, each as sure of its class as it is, claim it most (Cheng et al. 2021,
    MaskFormer, section 3.4)."""
    claims = torch.einsum("qk,qhw->khw", found.classes[:, :-1], found.masks.sigmoid())
    confidence = float((claims.amax(0) / claims.sum(0).clamp(min=1e-6)).mean())
    index = whole(upsampled_argmax(claims, inner_size(meta)), meta)
    return Mask(index, classes, confidence, meta.get("source", "<memory>"))


def as_segments(
    found: Found,
    classes: Sequence[str],
    things: Sequence[bool],
    meta: Mapping[str, Any],
    regions: bool,
    threshold: float,
    kept: float,
    unknown: str,
) -> Segments:
    """Segments that share no pixel: each pixel goes to the query that is surest of it.

    Args:
        found: Of one image.
        classes, things: Names, and which of them are objects.
        meta: Of the image.
        regions: Answer regions too; those of one class become one segment.
        threshold: Least score of a segment.
        kept: Share of its own mask that it must keep.
        unknown: Name of objects of no known class; in an open world.
    """
    names, scores, countable, claims = _named(found, classes, things, unknown)
    usable = (scores > threshold) & (countable | regions)
    order = usable.nonzero().flatten()[scores[usable].argsort(descending=True)]
    height, width = inner_size(meta)
    if not len(order):
        return Segments(
            np.full(meta["size"], -1, np.int32), [], np.zeros(0, np.float32), meta.get("source", "<memory>")
        )
    index, sure = np.full((height, width), -1, np.int32), claims[order]
    own, full = torch.zeros_like(order), torch.zeros_like(order)
    for rows, strip in strips(found.masks[order], (height, width)):
        mask = strip.sigmoid()  # (q, r, W)
        owner = (mask * sure[:, None, None]).argmax(0)
        inside = mask.gather(0, owner[None])[0] > 0.5
        index[rows] = torch.where(inside, owner, -1).cpu().numpy()
        own = own + torch.bincount(owner[inside], minlength=len(order))
        full = full + (mask > 0.5).sum((1, 2))
    solid = (own >= kept * full) & (own > 0)
    return _renumbered(index, order, solid, names, scores, countable, meta)


def _named(
    found: Found, classes: Sequence[str], things: Sequence[bool], unknown: str
) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Name and score of each query, whether it is an object, and how surely it claims its pixels."""
    best, label = found.classes[:, :-1].max(-1)
    inside = found.masks > 0
    # Mean probability inside of the mask, as the quality of the mask itself.
    quality = (found.masks.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    names = [classes[i] for i in label.tolist()]
    countable = torch.tensor([things[i] for i in label.tolist()], device=best.device)
    score = best * quality
    if found.fit is None:
        return names, score, countable, best
    known = found.classes[:, :-1].sum(-1) > 0.5  # rather some class than nothing
    fits = found.fit * quality
    names = [name if sure else unknown for name, sure in zip(names, known.tolist(), strict=True)]
    return names, torch.where(known, (score * fits).sqrt(), fits), countable | ~known, torch.where(known, best, fits)


def _renumbered(
    index: Int[np.ndarray, "H W"],
    order: Int[Tensor, " n"],
    solid: Tensor,
    names: Sequence[str],
    scores: Tensor,
    countable: Tensor,
    meta: Mapping[str, Any],
) -> Segments:
    """Leaves out what keeps too little, and joins regions of one class."""
    number = np.full(len(order) + 1, -1, np.int32)  # the last one is for -1
    labels: list[str] = []
    confidence: list[float] = []
    first: dict[str, int] = {}
    for i, query in enumerate(order.tolist()):
        if not bool(solid[i]):
            continue
        name = names[query]
        if not bool(countable[query]) and name in first:
            number[i] = first[name]
            continue
        number[i] = first[name] = len(labels)
        labels.append(name)
        confidence.append(float(scores[query]))
    full = whole(number[index], meta)
    return Segments(full, labels, np.array(confidence, np.float32), meta.get("source", "<memory>"))

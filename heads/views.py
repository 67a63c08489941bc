"""Views of one image (several sizes, mirrored): one answer from those of all views, at the places of the original.

A view's meta says which it is: "view", its number, and "mirror", whether its columns run from right to left. Its grid
says how large it was read. Shape legend: c channels, h rows and w columns of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polysense.heads.base import Out
from polysense.heads.grid import sample_grid


def finest_view(meta: Sequence[Mapping[str, Any]]) -> int:
    """The number of the view that answers are brought to: of those not mirrored, the first with the most cells."""
    cells = [0 if about.get("mirror") else sample_grid(about)[0] * sample_grid(about)[1] for about in meta]
    return cells.index(max(cells))


def blend_maps(
    maps: Sequence[Float[Tensor, "c h w"]], meta: Sequence[Mapping[str, Any]], scale: int
) -> Float[Tensor, "c H W"]:
    """The mean of the views' maps, on the finest view's grid.

    Args:
        maps: Of each view; what lies beyond its own grid is padding.
        meta: Of each view.
        scale: Cells of a map along the side of a token.
    """
    rows, cols = (scale * size for size in sample_grid(meta[finest_view(meta)]))
    total = maps[0].new_zeros(len(maps[0]), rows, cols)
    for one, about in zip(maps, meta, strict=True):
        height, width = (scale * size for size in sample_grid(about))
        own = one[:, :height, :width]
        if (height, width) != (rows, cols):
            own = F.interpolate(own[None], (rows, cols), mode="bilinear", align_corners=False)[0]
        total += own.flip(-1) if about.get("mirror") else own
    return total / len(maps)


def blend_cells(outs: Sequence[Out], meta: Sequence[Mapping[str, Any]]) -> Out:
    """A detector's cells of all views together, in token cells of the finest one; suppression then keeps the surest."""
    rows, cols = sample_grid(meta[finest_view(meta)])
    moved = []
    for out, about in zip(outs, meta, strict=True):
        height, width = sample_grid(about)
        boxes, centers = out["boxes"], out["centers"]
        if about.get("mirror"):
            left, top, right, bottom = boxes.unbind(-1)
            boxes = torch.stack([width - right, top, width - left, bottom], -1)
            centers = torch.stack([width - centers[..., 0], centers[..., 1]], -1)
        larger = boxes.new_tensor([cols / width, rows / height])
        moved.append({**out, "boxes": boxes * larger.repeat(2), "centers": centers * larger})
    return {name: torch.cat([out[name] for out in moved]) for name in outs[0]}

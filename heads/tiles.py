"""Large images in overlapping windows: one answer from those of all windows, without seams.

A window's meta says where it lies in the token grid of the whole image: "place" (row, column) of its first token, and
"whole" (rows, columns) of that grid. Where an image is read in several views (heads/views.py), each has windows of its
own.

Shape legend: c channels, h rows and w columns of a map, p cells of a detector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from polysense.core.errors import InputError
from polysense.heads.base import Out, cat_padded
from polysense.heads.grid import sample_grid
from polysense.heads.views import finest_view

Join = Callable[[Sequence[Out], Sequence[Mapping[str, Any]]], Out]


def stitch(
    maps: Sequence[Float[Tensor, "c h w"]], meta: Sequence[Mapping[str, Any]], scale: int
) -> Float[Tensor, "c H W"]:
    """Windows' maps -> the whole image's (c, rows * scale, columns * scale).

    Where windows overlap the one whose border is farther away counts more: at borders a network sees least.

    Args:
        maps: Of each window; what lies beyond its own grid is padding.
        meta: Of each window.
        scale: Cells of a map along the side of a token.
    """
    whole = meta[0]["whole"]
    bands = Bands(len(maps[0]), whole, scale)
    for one, about in zip(maps, meta, strict=True):
        bands.add(one, about)
    return bands.leave(whole[0])[0]


class Bands:
    """Stitches a map that may be too large to hold: its rows leave as soon as no window to come reaches them.

    Args:
        channels: Of the map.
        whole: Rows and columns of the image's token grid.
        scale: Cells of the map along the side of a token.
    """

    def __init__(self, channels: int, whole: tuple[int, int], scale: int) -> None:
        self.scale, self.start = scale, 0  # the first row that is held, in tokens
        self.total = torch.zeros(channels, 0, scale * whole[1])
        self.weight = torch.zeros(0, scale * whole[1])

    def add(self, one: Float[Tensor, "c h w"], about: Mapping[str, Any]) -> None:
        """Adds a window's map; what lies beyond its own grid is padding."""
        self.total, self.weight = self.total.to(one), self.weight.to(one)
        row, column = about["place"]
        height, width = (self.scale * size for size in sample_grid(about))
        top, left = self.scale * (row - self.start), self.scale * column
        self._grow(top + height)
        inside = torch.outer(_ramp(height, one), _ramp(width, one))
        self.total[:, top : top + height, left : left + width] += inside * one[:, :height, :width]
        self.weight[top : top + height, left : left + width] += inside

    def leave(self, row: int) -> tuple[Float[Tensor, "c n W"], Bool[Tensor, "n W"]]:
        """The rows held before a row of tokens, and which of their cells any window has seen; others are zero."""
        count = self.scale * (row - self.start)
        self._grow(count)
        total, weight = self.total[:, :count], self.weight[:count]
        self.total, self.weight, self.start = self.total[:, count:].clone(), self.weight[count:].clone(), row
        return total / weight.where(weight > 0, 1.0), weight > 0

    def _grow(self, rows: int) -> None:
        missing = max(0, rows - len(self.weight))
        self.total = F.pad(self.total, (0, 0, 0, missing))
        self.weight = F.pad(self.weight, (0, 0, 0, missing))


def _ramp(size: int, like: Tensor) -> Float[Tensor, " s"]:
    """Distance of each cell's centre from the nearer end."""
    at = torch.arange(size, device=like.device, dtype=like.dtype) + 0.5
    return torch.minimum(at, size - at)


def own_cells(
    centers: Float[Tensor, "p 2"], about: Mapping[str, Any], others: Sequence[Mapping[str, Any]]
) -> Bool[Tensor, " p"]:
    """Which cells of a window are nowhere else farther from a border: each place of the image belongs to one window.

    Objects at a border are so answered by the window that sees them whole, if it overlaps far enough.

    Args:
        centers: (x, y) in the window's own token cells.
        about: Meta of the window.
        others: Meta of all windows of the image.
    """
    (row, col), mine = about["place"], _margin(centers, about)
    at = centers + centers.new_tensor([col, row])
    kept = torch.ones(len(centers), dtype=torch.bool, device=centers.device)
    before = True
    for other in others:
        if other is about:
            before = False
            continue
        if not _overlap(about, other):
            continue
        (row, col) = other["place"]
        theirs = _margin(at - at.new_tensor([col, row]), other)
        kept &= (mine > theirs) if before else (mine >= theirs)
    return kept


def _overlap(about: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(abs(a - b) < max(sizes) for a, b, *sizes in zip(about["place"], other["place"], sample_grid(about),
                                                               sample_grid(other), strict=True))  # fmt: skip


def _margin(centers: Float[Tensor, "p 2"], about: Mapping[str, Any]) -> Float[Tensor, " p"]:
    """Distance from the nearest border of the window that lies inside the image; negative outside the window."""
    (rows, cols), (row, col), (whole_rows, whole_cols) = sample_grid(about), about["place"], about["whole"]
    x, y = centers.unbind(-1)
    far = torch.full_like(x, float(max(whole_rows, whole_cols)))
    # A border of the image itself is no disadvantage, but beyond it nothing is seen.
    sides = [(x, col > 0), (cols - x, col + cols < whole_cols), (y, row > 0), (rows - y, row + rows < whole_rows)]
    margins = [torch.where((side >= 0) & (not inner), far, side) for side, inner in sides]
    return torch.stack(margins).amin(0)


def join_cells(outs: Sequence[Out], meta: Sequence[Mapping[str, Any]]) -> Out:
    """A detector's cells of all windows as those of one image, in token cells of the whole."""
    moved = []
    for out, about in zip(outs, meta, strict=True):
        row, col = about["place"]
        shift = out["centers"].new_tensor([col, row])
        moved.append({**out, "centers": out["centers"] + shift, "boxes": out["boxes"] + shift.repeat(2),
                      "valid": out["valid"] & own_cells(out["centers"], about, meta)})  # fmt: skip
    return {name: torch.cat([out[name] for out in moved]) for name in outs[0]}


def merge_windows(
    out: Out,
    owner: Int[Tensor, " b"],
    meta: Sequence[Mapping[str, Any]],
    join: Join,
    blend: Join | None = None,
) -> Out:
    """`Head.merge` of heads that answer for places.

    Args:
        out, owner, meta: See `Head.merge`.
        join: Makes one answer of those of an image's windows.
        blend: Makes one answer of those of an image's views; None: the head has no way to.

    Raises:
        InputError: There are several views and no way to blend them.
    """
    parts = _parts(owner)
    if len(parts) == len(owner):
        return out
    rows = []
    for part in parts:
        joined = []
        for view in _views(part, meta):
            alone = [{name: tensor[i] for name, tensor in out.items()} for i in view]
            joined.append(join(alone, [meta[i] for i in view]) if len(view) > 1 else alone[0])
        if len(joined) > 1 and blend is None:
            source = str(meta[part[0]].get("source", "<memory>"))
            raise InputError(source, "this head cannot join the answers of several views", "leave out views and mirror")
        rows.append(blend(joined, _whole(part, meta)) if len(joined) > 1 and blend else joined[0])
    return {name: cat_padded([row[name][None] for row in rows]) for name in rows[0]}


def merge_windows_meta(meta: Sequence[Mapping[str, Any]], owner: Int[Tensor, " b"]) -> list[dict[str, Any]]:
    """`Head.merge_meta` of such heads: the whole grid covers the whole image."""
    views = [_whole(part, meta) for part in _parts(owner)]
    return [abouts[finest_view(abouts)] for abouts in views]


def _whole(part: Sequence[int], meta: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The meta of each view of an image, its windows joined."""
    wholes = []
    for view in _views(part, meta):
        about = dict(meta[view[0]])
        if len(view) > 1:
            height, width = about["size"]
            about |= {"grid": about["whole"], "window": (0.0, 0.0, float(width), float(height))}
        wholes.append(about)
    return wholes


def _parts(owner: Int[Tensor, " b"]) -> list[list[int]]:
    """The sequences of each image, by number."""
    return [part.tolist() for part in torch.arange(len(owner)).split(torch.bincount(owner).tolist())]


def _views(part: Sequence[int], meta: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The windows of each view of an image, by number."""
    views: dict[int, list[int]] = {}
    for i in part:
        views.setdefault(meta[i].get("view", 0), []).append(i)
    return list(views.values())

"""Numbers that describe a whole point cloud: its size and proportions, and where in its box its points lie.

Shape legend: b clouds, n, m points, g centres, k neighbours, e extent numbers, q profile numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

EXTENT = 13  # numbers that `extent_of` gives
CELLS, LAYERS, RINGS, DISTANCES = 6, 8, 6, 16
PROFILE = CELLS**3 + LAYERS * RINGS + DISTANCES  # numbers that `profile_of` gives


def max_radius(xyz: Float[np.ndarray, "n 3"], center: Float[np.ndarray, " 3"]) -> float:
    """Largest distance from the centre; 1 where all points are one. By blocks: ten million rows need no copies."""
    blocks = (xyz[i : i + 1_000_000] - center for i in range(0, len(xyz), 1_000_000))
    radius = max(float(np.einsum("ni,ni->n", block, block).max()) for block in blocks) ** 0.5
    return radius if radius > 1e-9 * max(1.0, float(np.abs(center).max())) else 1.0


def extent_of(
    whole: Float[np.ndarray, "n 3"], xyz: Float[np.ndarray, "m 3"], center: Float[np.ndarray, " 3"], scale: float
) -> Float[np.ndarray, " e"]:
    """Absolute size and overall shape in 13 numbers, each of order one.

    Logarithms of the box's sides (3), of the scale and of the number of points; where in its box the centroid lies (3);
    standard deviations along the principal axes, largest first, as logarithms relative to the scale (3); how upright
    the first and the last of these axes are (2).

    Args:
        whole: All points, in the file's unit.
        xyz: Thinned, normalised points.
        center: Centroid of `whole`.
        scale: Radius of `whole`.
    """
    low, high = whole.min(0), whole.max(0)
    side = high - low
    floor = 1e-3 * scale  # a flat cloud has a thousandth of its radius for a height
    spread, axes = np.linalg.eigh(np.cov(xyz.T) if len(xyz) > 1 else np.zeros((3, 3)))  # ascending
    deviations = np.log(np.sqrt(np.maximum(spread[::-1], 0)) + 1e-3)
    upright = np.abs(axes[2, [2, 0]])
    place = (center - low) / np.maximum(side, floor)
    sizes = [*np.log(np.maximum(side, floor)), np.log(scale), (np.log(len(whole)) - 7) / 2]
    return np.array([*sizes, *place, *(deviations + 2), *upright])


def profile_of(xyz: Float[np.ndarray, "m 3"], centers: Float[np.ndarray, "g 3"]) -> Float[np.ndarray, " q"]:
    """Where the points lie, in 280 numbers: square roots of shares (they then differ less), about one in mean square.

    Shares in 6 x 6 x 6 cells of the cloud's box, in the order (x, y, z); in 8 layers of its height x 6 rings about the
    upright axis through its centroid; of the distances between centres ("D2", Osada et al. 2002, "Shape Distributions")
    in 16 intervals. What forests on shape statistics use; beside patches, a help where data are few.

    Args:
        xyz: Thinned, normalised points (centroid 0, radius 1).
        centers: Patch centres, evenly spread: distances between them depend on the shape, not on the density.
    """
    low = xyz.min(0)
    place = (xyz - low) / np.maximum(xyz.max(0) - low, 1e-3)  # 0..1 in the box
    cell = np.minimum((place * CELLS).astype(int), CELLS - 1)
    layer = np.minimum((place[:, 2] * LAYERS).astype(int), LAYERS - 1)
    ring = np.minimum((np.hypot(xyz[:, 0], xyz[:, 1]) * RINGS).astype(int), RINGS - 1)
    upper = np.triu_indices(len(centers), 1)
    distance = np.linalg.norm(centers[upper[0]] - centers[upper[1]], axis=1)
    bins = np.minimum((distance / 2 * DISTANCES).astype(int), DISTANCES - 1)
    parts = [
        np.bincount((cell[:, 0] * CELLS + cell[:, 1]) * CELLS + cell[:, 2], minlength=CELLS**3) / len(xyz),
        np.bincount(layer * RINGS + ring, minlength=LAYERS * RINGS) / len(xyz),
        np.bincount(bins, minlength=DISTANCES) / max(len(bins), 1),
    ]
    return np.concatenate([np.sqrt(part * len(part)) for part in parts])


def mirrored(
    cut: Mapping[str, Tensor],
    swap: Bool[Tensor, " b"],
    flip_x: Bool[Tensor, " b"],
    flip_y: Bool[Tensor, " b"],
    vectors: Sequence[int] = (0,),
) -> dict[str, Tensor]:
    """Clouds under the symmetries of the upright square: x and y exchanged, then x, then y negated.

    The statistics come out as those of the moved cloud, exactly, so that a cloud need not be cut again.

    Args:
        cut: groups (b, g, k, c), centers (b, g, 3) and, where there are, extent (b, e) and profile (b, q).
        swap, flip_x, flip_y: What to do with which cloud.
        vectors: First channels of the groups' vectors: coordinates, normals.
    """

    def moved(x: Tensor) -> Tensor:
        to = (slice(None), *(None,) * (x.ndim - 2))
        first, second = torch.where(swap[to], x[..., 1], x[..., 0]), torch.where(swap[to], x[..., 0], x[..., 1])
        return torch.stack(
            [torch.where(flip_x[to], -first, first), torch.where(flip_y[to], -second, second), x[..., 2]], -1
        )

    groups = cut["groups"].clone()
    for channel in vectors:
        groups[..., channel : channel + 3] = moved(groups[..., channel : channel + 3])
    out = {"groups": groups, "centers": moved(cut["centers"])}
    if "extent" in cut:
        extent = cut["extent"].clone()
        for x, y in ((0, 1), (5, 6)):  # sides; where in the box the centroid lies
            extent[:, [x, y]] = torch.where(swap[:, None], extent[:, [y, x]], extent[:, [x, y]])
        extent[:, 5] = torch.where(flip_x, 1 - extent[:, 5], extent[:, 5])
        extent[:, 6] = torch.where(flip_y, 1 - extent[:, 6], extent[:, 6])
        out["extent"] = extent
    if "profile" in cut:
        cells = cut["profile"][:, : CELLS**3].unflatten(1, (CELLS, CELLS, CELLS))
        to4 = (slice(None), None, None, None)
        cells = torch.where(swap[to4], cells.transpose(1, 2), cells)
        cells = torch.where(flip_x[to4], cells.flip(1), cells)
        cells = torch.where(flip_y[to4], cells.flip(2), cells)
        out["profile"] = torch.cat([cells.flatten(1), cut["profile"][:, CELLS**3 :]], 1)
    return out

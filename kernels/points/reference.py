"""The readable oracle: what every implementation must give, in plain PyTorch.

Shape legend: n points, q queries, k chosen.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def squared_distances(queries: Float[Tensor, "q 3"], points: Float[Tensor, "n 3"]) -> Float[Tensor, "q n"]:
    """From differences, coordinate by coordinate: |a|² + |b|² - 2ab cancels when the cloud is far from the origin."""
    dx, dy, dz = ((queries[:, None, i] - points[None, :, i]) ** 2 for i in range(3))
    return dx + dy + dz


def farthest_point_sampling(xyz: Float[Tensor, "n 3"], k: int, start: int) -> Int[Tensor, " k"]:
    """Repeats: take the point that is farthest from all taken ones (Gonzalez 1985; PointNet++, Qi et al. 2017, 3.2).

    Ties go to the lowest index, and no point is taken twice, duplicates of it may be.
    """
    chosen = torch.empty(k, dtype=torch.int64)
    nearest = torch.full((len(xyz),), torch.inf, dtype=xyz.dtype)  # squared distance to the nearest taken point
    index = start
    for i in range(k):
        chosen[i] = index
        nearest = torch.minimum(nearest, squared_distances(xyz[index : index + 1], xyz)[0])
        nearest[index] = -1.0
        index = int((nearest == nearest.max()).nonzero()[0])
    return chosen


def knn(
    queries: Float[Tensor, "q 3"], points: Float[Tensor, "n 3"], k: int
) -> tuple[Int[Tensor, "q k"], Float[Tensor, "q k"]]:
    """The k nearest points of each query, nearest first, with squared distances."""
    distances, indices = squared_distances(queries, points).sort(dim=1, stable=True)
    return indices[:, :k], distances[:, :k]

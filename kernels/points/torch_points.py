"""Sampling and neighbours on any device, in PyTorch: what runs where the cloud lies on a GPU.

Batched, chunked (never a whole queries × points matrix) and as exact as the reference: the same operations in the same
order, and equal distances are told apart by index, which `topk` and `argmax` leave open on a GPU.

Shape legend: b clouds, n points, q queries, k chosen, c points of a chunk.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 1 << 24  # distances at a time: 64 MB of float32, and three times that for what is computed from them


def farthest_point_sampling(
    xyz: Float[Tensor, "b n 3"], lengths: Int[Tensor, " b"], k: int, starts: Int[Tensor, " b"]
) -> Int[Tensor, "b k"]:
    """As the reference, cloud by cloud, in k steps for all clouds together.

    Args:
        xyz: Coordinates, padded.
        lengths: Real points of each cloud.
        k: How many to pick.
        starts: The first one of each cloud.
    """
    x, y, z = (xyz[..., i].contiguous() for i in range(3))
    places = torch.arange(xyz.shape[1], device=xyz.device)
    beyond = places.new_tensor(xyz.shape[1])
    nearest = torch.full_like(x, torch.inf).masked_fill_(places >= lengths[:, None], -1.0)
    chosen = places.new_empty(len(xyz), k)
    index = starts[:, None]
    for i in range(k):
        chosen[:, i] = index[:, 0]
        distance = (x - x.gather(1, index)) ** 2
        distance += (y - y.gather(1, index)) ** 2
        distance += (z - z.gather(1, index)) ** 2
        nearest = torch.minimum(nearest, distance)
        nearest.scatter_(1, index, -1.0)
        farthest = nearest == nearest.amax(1, keepdim=True)
        index = torch.where(farthest, places, beyond).amin(1, keepdim=True)
    return chosen


def knn(
    queries: Float[Tensor, "q 3"], points: Float[Tensor, "n 3"], k: int, chunk: int = CHUNK
) -> tuple[Int[Tensor, "q k"], Float[Tensor, "q k"]]:
    """As the reference, index for index: nearest first, the lowest index among equals."""
    width = min(len(points), max(1 << 16, k))
    rows = max(chunk // width, 1)
    parts = [_knn_rows(some, points, k, width) for some in queries.split(rows)]
    return torch.cat([i for i, _ in parts]), torch.cat([d for _, d in parts])


def _knn_rows(
    queries: Float[Tensor, "q 3"], points: Float[Tensor, "n 3"], k: int, width: int
) -> tuple[Int[Tensor, "q k"], Float[Tensor, "q k"]]:
    """The best of each chunk of points against the best so far."""
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=points.device)
    distances = queries.new_empty(len(queries), 0)
    for first in range(0, len(points), width):
        some = points[first : first + width]
        d = (queries[:, None, 0] - some[:, 0]) ** 2
        d += (queries[:, None, 1] - some[:, 1]) ** 2
        d += (queries[:, None, 2] - some[:, 2]) ** 2
        best = _smallest(d, min(k, len(some)))
        # Indices rise from chunk to chunk, so that a stable order by distance leaves equals in the order of indices.
        distances, kept = torch.cat([distances, d.gather(1, best)], 1).sort(dim=1, stable=True)
        indices = torch.cat([indices, best + first], 1).gather(1, kept[:, :k])
        distances = distances[:, :k]
    return indices, distances


def _smallest(d: Float[Tensor, "q c"], k: int) -> Int[Tensor, "q k"]:
    """Columns of the k smallest, the lowest column among equals.

    The bits of a float32 of 0 or more, read as an integer, order as the number does; with the column below them every
    key is different, and `topk` is exact. Other types are sorted whole.
    """
    if d.dtype != torch.float32:
        return d.sort(dim=1, stable=True)[1][:, :k]
    keys = d.view(torch.int32).to(torch.int64) << 32 | torch.arange(d.shape[1], device=d.device)
    return keys.topk(k, dim=1, largest=False, sorted=True)[0] & 0xFFFFFFFF

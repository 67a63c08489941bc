"""Validates, dispatches and returns what it was given: NumPy arrays for NumPy, tensors on their device for PyTorch.

One cloud is (n, 3). Several are a list of clouds, or one array (b, n, 3) with the `lengths` of the clouds in it; then
the answers are a list, or one array with a leading b. Answers in a batch equal those of each cloud by itself.

Backends, all with the reference's answers:
- "reference": readable PyTorch on the CPU, the oracle.
- "numpy" (sampling), "scipy" (neighbours): small and middling clouds. SciPy breaks ties in its own way.
- "numba": large clouds; compiled on first use, where numba is installed (`pip install polysense[points]`).
- "torch": any device.
"auto" takes torch for tensors on a GPU, and on the CPU the fast one for the size (see `backends`). A backend asked for
by name runs or raises.

Shape legend: b clouds, n points, q queries, k chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from polysense.kernels.points import backends
from polysense.kernels.points.clouds import as_clouds, like, whole

Array = TypeVar("Array", np.ndarray, Tensor, list[np.ndarray], list[Tensor])


def farthest_point_sampling(
    xyz: Array,
    k: int,
    *,
    lengths: Sequence[int] | None = None,
    start: int | Sequence[int] | None = None,
    seed: int | None = None,
    backend: str = "auto",
) -> Array:
    """Picks k points that cover a cloud evenly (Gonzalez 1985; PointNet++, Qi et al. 2017, 3.2).

    Args:
        xyz: Finite coordinates (n, 3) of any float type, or several clouds: a list, or (b, n, 3). The answer depends on
            the type only through rounding.
        k: How many of each cloud, 1 to the points of the smallest.
        lengths: With (b, n, 3): points of each cloud; what follows them is not read. All n by default.
        start: The first point, one for all clouds or one for each. By default the one farthest from the centroid, so
            that the order of the points (ties apart) does not matter.
        seed: Draws the first point instead; the same for a cloud of the same size wherever it stands in a batch.
        backend: "auto", "reference", "numpy", "numba" or "torch".

    Returns:
        int64 indices (k,), or a list of them, or (b, k), in the order they were picked, all different; ties go to the
        lowest index.

    Raises:
        ValueError: Shapes, values, `k`, `start`, `seed` or the backend do not fit.
    """
    clouds = as_clouds("xyz", xyz, lengths)
    k, fewest = whole("k", k), min(map(len, clouds))
    if not 1 <= k <= fewest:
        raise ValueError(f"k must be from 1 to the number of points, {fewest}, got {k}")
    run = backends.sampler(backend, clouds, k)
    return like(xyz, run(clouds, k, _starts(clouds, start, seed)))


def knn(
    queries: Array, points: Array, k: int, *, lengths: Sequence[int] | None = None, backend: str = "auto"
) -> tuple[Array, Array]:
    """The k nearest points of each query.

    Args:
        queries: Finite coordinates (q, 3), or those for each of several clouds: a list, or (b, q, 3).
        points: Finite coordinates (n, 3) of the same float type, or as many clouds: a list, or (b, n, 3).
        k: How many, 1 to the points of the smallest cloud.
        lengths: With (b, n, 3): points of each cloud; what follows them is not read. All n by default.
        backend: "auto", "reference", "scipy", "numba" or "torch".

    Returns:
        int64 indices (q, k) into `points`, nearest first, and squared distances (q, k); a list of each for lists, with
        a leading b for batches. Among equal distances the lowest index comes first; with SciPy the order is its tree's.

    Raises:
        ValueError: Shapes, values, `k` or the backend do not fit.
    """
    pairs = _pairs(queries, points, lengths)
    k, fewest = whole("k", k), min(len(b) for _, b in pairs)
    if not 1 <= k <= fewest:
        raise ValueError(f"k must be from 1 to the number of points, {fewest}, got {k}")
    run = backends.finder(backend, [b for _, b in pairs])
    found = [run(a, b, k) for a, b in pairs]
    return like(queries, [i for i, _ in found]), like(queries, [d for _, d in found])


def ball_query(
    queries: Array,
    points: Array,
    radius: float,
    k: int,
    *,
    lengths: Sequence[int] | None = None,
    backend: str = "auto",
) -> tuple[Array, Array]:
    """The points within a radius of each query, at most k (PointNet++, Qi et al. 2017, 3.2).

    PointNet++ takes any k of them; these are the k nearest, so that the answer does not hang on the order of points.

    Args:
        queries: As for `knn`.
        points: As for `knn`.
        radius: In the unit of the coordinates, more than 0; a point at this very distance is within.
        k: Most points of a group; may exceed the number of points.
        lengths: As for `knn`.
        backend: As for `knn`.

    Returns:
        int64 indices (q, k), nearest first, and int64 counts (q,) of those that are within, k at most. A row with fewer
        repeats its nearest point, so that a maximum over the group stays the same; a row with none holds -1 and has
        count 0, which cannot be where queries are points. Lists or a leading b as for `knn`.

    Raises:
        ValueError: Shapes, values, `radius`, `k` or the backend do not fit.
    """
    if not 0 < radius < np.inf:
        raise ValueError(f"radius must be a finite number above 0, got {radius}")
    k = whole("k", k)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    pairs = _pairs(queries, points, lengths)
    run = backends.finder(backend, [b for _, b in pairs])
    found = [_within(*run(a, b, min(k, len(b))), radius, k) for a, b in pairs]
    return like(queries, [i for i, _ in found]), like(queries, [c for _, c in found])


def interpolate_weights(queries: Array, points: Array, k: int = 3, *, backend: str = "auto") -> tuple[Array, Array]:
    """Inverse-distance weights that carry values from few points to many (PointNet++, Qi et al. 2017, 3.4).

    Args:
        queries: Where values are wanted (q, 3).
        points: Where they are known (n, 3).
        k: Neighbours; fewer are used where there are fewer points.
        backend: As for `knn`.

    Returns:
        int64 indices (q, min(k, n)) into `points` and weights of the same shape that sum to one;
        `(values[indices] * weights[..., None]).sum(1)` interpolates.

    Raises:
        ValueError: As for `knn`.
    """
    if getattr(queries, "ndim", 0) != 2 or getattr(points, "ndim", 0) != 2:
        raise ValueError("weights are of one cloud at a time: queries (q, 3) and points (n, 3)")
    found: tuple[Any, Any] = knn(queries, points, min(whole("k", k), len(points)), backend=backend)
    indices, distances = found
    # Relative to the nearest one: a query that lies on a point takes its value alone, whatever the unit of length.
    inverse = (distances[:, :1] + 1e-12) / (distances + 1e-12)
    return indices, inverse / inverse.sum(1)[:, None]


def _pairs(queries: Any, points: Any, lengths: Sequence[int] | None) -> list[tuple[Any, Any]]:
    a, b = as_clouds("queries", queries), as_clouds("points", points, lengths)
    if len(a) != len(b):
        raise ValueError(f"there are queries for {len(a)} clouds and {len(b)} clouds of points")
    for left, right in zip(a, b, strict=True):
        if left.dtype != right.dtype:
            raise ValueError(f"queries and points must have one type, got {left.dtype} and {right.dtype}")
    return list(zip(a, b, strict=True))


def _starts(clouds: Sequence[Any], start: int | Sequence[int] | None, seed: int | None) -> list[int]:
    """The first pick of each cloud, checked."""
    if start is not None and seed is not None:
        raise ValueError("give start or seed, not both")
    if seed is not None:
        return [int(np.random.default_rng(seed).integers(len(cloud))) for cloud in clouds]
    if start is None:
        return [int(_squared_norm(cloud - _centroid(cloud)).argmax()) for cloud in clouds]
    starts = [start] * len(clouds) if isinstance(start, int | np.integer) else [int(first) for first in start]
    if len(starts) != len(clouds):
        raise ValueError(f"start holds {len(starts)} indices for {len(clouds)} clouds")
    for first, cloud in zip(starts, clouds, strict=True):
        if not 0 <= first < len(cloud):
            raise ValueError(f"start must be from 0 to {len(cloud) - 1}, got {first}")
    return starts


def _centroid(cloud: Any) -> Any:
    """Summed in float64: in float32 a million coordinates of a national grid, one after another, end kilometres off."""
    if isinstance(cloud, np.ndarray):
        return cloud.mean(0, dtype=np.promote_types(cloud.dtype, np.float64)).astype(cloud.dtype)
    # Apple's GPUs have no float64; torch's own sums go by halves, and lose little.
    return cloud.mean(0, dtype=None if cloud.device.type == "mps" else torch.float64).to(cloud.dtype)


def _squared_norm(v: Any) -> Any:
    return v[:, 0] ** 2 + v[:, 1] ** 2 + v[:, 2] ** 2


def _within(indices: Any, distances: Any, radius: float, k: int) -> tuple[Any, Any]:
    """Keeps those at most the radius away, and fills rows up to k."""
    if isinstance(indices, np.ndarray):
        filled, counts = _within(torch.from_numpy(indices), torch.from_numpy(distances), radius, k)
        return filled.numpy(), counts.numpy()
    inside = distances <= torch.tensor(radius, dtype=distances.dtype) ** 2
    fill = indices[:, :1].where(inside[:, :1], -1)
    filled = torch.cat([indices.where(inside, fill), fill.expand(-1, k - indices.shape[1])], 1)
    return filled, inside.sum(1)

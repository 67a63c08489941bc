"""Validates, dispatches and returns what it was given: NumPy arrays for NumPy, CPU tensors for PyTorch.

Backends: "reference" (readable, PyTorch), "numpy" (sampling), "scipy" (neighbours); "auto" takes the fast one. A
backend asked for by name runs or raises.

Shape legend: n points, q queries, k chosen.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from polysense.kernels.points import numpy_fps, reference, scipy_knn

Array = TypeVar("Array", np.ndarray, Tensor)
SamplingBackend = Literal["auto", "reference", "numpy"]
NeighbourBackend = Literal["auto", "reference", "scipy"]


def farthest_point_sampling(
    xyz: Array, k: int, *, start: int | None = None, backend: SamplingBackend = "auto"
) -> Array:
    """Picks k points that cover a cloud evenly.

    Args:
        xyz: Finite coordinates (n, 3), any float type; the answer depends on the type only through rounding.
        k: How many, 1 to n.
        start: The first point; None takes the one farthest from the centroid, so that the order of the points
            (ties apart) does not matter.
        backend: "auto", "reference" or "numpy".

    Returns:
        int64 indices (k,) in the order they were picked, all different; ties go to the lowest index.

    Raises:
        ValueError: Shapes, values, `k`, `start` or the backend's name do not fit.
    """
    points = _coordinates("xyz", xyz)
    if not 1 <= k <= len(points):
        raise ValueError(f"k must be from 1 to the number of points, {len(points)}, got {k}")
    if start is None:
        start = int(_squared_norm(points - points.mean(0)).argmax())
    if not 0 <= start < len(points):
        raise ValueError(f"start must be from 0 to {len(points) - 1}, got {start}")
    _check_backend(backend, ("reference", "numpy"))
    if backend == "reference":
        chosen = reference.farthest_point_sampling(torch.from_numpy(points), k, start).numpy()
    else:
        chosen = numpy_fps.farthest_point_sampling(points, k, start)
    return _like(xyz, chosen)


def knn(queries: Array, points: Array, k: int, *, backend: NeighbourBackend = "auto") -> tuple[Array, Array]:
    """The k nearest points of each query.

    Args:
        queries: Finite coordinates (q, 3).
        points: Finite coordinates (n, 3) of the same float type.
        k: How many, 1 to n.
        backend: "auto", "reference" or "scipy".

    Returns:
        int64 indices (q, k) into `points`, nearest first, and squared distances (q, k). The order among equal
        distances is the backend's.

    Raises:
        ValueError: Shapes, values, `k` or the backend's name do not fit.
    """
    a, b = _coordinates("queries", queries), _coordinates("points", points)
    if a.dtype != b.dtype:
        raise ValueError(f"queries and points must have one type, got {a.dtype} and {b.dtype}")
    if not 1 <= k <= len(b):
        raise ValueError(f"k must be from 1 to the number of points, {len(b)}, got {k}")
    _check_backend(backend, ("reference", "scipy"))
    if backend == "reference":
        i, d = (t.numpy() for t in reference.knn(torch.from_numpy(a), torch.from_numpy(b), k))
    else:
        i, d = scipy_knn.knn(a, b, k)
    return _like(queries, i), _like(queries, d)


def interpolate_weights(
    queries: Array, points: Array, k: int = 3, *, backend: NeighbourBackend = "auto"
) -> tuple[Array, Array]:
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
    indices, distances = knn(queries, points, min(k, len(points)), backend=backend)
    # Relative to the nearest one: a query that lies on a point takes its value alone, whatever the unit of length.
    inverse = (distances[:, :1] + 1e-12) / (distances + 1e-12)
    return indices, inverse / inverse.sum(1)[:, None]


def _squared_norm(v: np.ndarray) -> np.ndarray:
    return v[:, 0] ** 2 + v[:, 1] ** 2 + v[:, 2] ** 2


def _check_backend(name: str, known: tuple[str, ...]) -> None:
    if name not in ("auto", *known):
        raise ValueError(f"unknown backend {name!r}; choose one of: auto, {', '.join(known)}")


def _coordinates(name: str, value: np.ndarray | Tensor) -> np.ndarray:
    """A float (n, 3) NumPy view of the value, checked."""
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got {value.device}")
        value = value.detach()
        value = (value.float() if value.dtype in (torch.float16, torch.bfloat16) else value).numpy()
    if value.ndim != 2 or value.shape[1] != 3 or len(value) == 0:
        raise ValueError(f"{name} must be (points, 3) with at least one point, got {tuple(value.shape)}")
    if value.dtype.kind != "f":
        raise ValueError(f"{name} must be floating point, got {value.dtype}")
    if not np.isfinite(value).all():
        raise ValueError(f"{name} holds values that are not finite")
    return value.astype(np.float32) if value.dtype.itemsize == 2 else value


def _like(given: Array, result: np.ndarray) -> Array:
    return torch.from_numpy(result) if isinstance(given, Tensor) else result

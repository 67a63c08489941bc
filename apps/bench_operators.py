"""Cases of `polysense bench` that run single operators: windows, mixers over length, points.

Shape legend: b batch, h heads, n tokens or points, d head width, k chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polysense.apps.bench_race import Race
from polysense.kernels.attention import attention


def windows(quick: bool) -> Iterator[Race]:
    """Local attention, 64 tokens to each side: blocks along the diagonal against all scores."""
    b, h, n, width = (1, 2, 128, 16) if quick else (2, 12, 1024, 64)
    q, k, v = (torch.randn(b, h, n, 64, generator=torch.Generator().manual_seed(i)) for i in range(3))

    def local(backend: str) -> Callable[[], Tensor]:
        return lambda: attention(q, k, v, window=width, backend=backend)

    setting = f"±{width} of {n} tokens, {b} × {h} heads"
    yield Race("windows", f"{setting}, against all keys",
               {"SDPA, all keys": lambda: attention(q, k, v, backend="sdpa"), "blocked": local("blocked")},
               {"blocked": 2.5}, same=False)  # fmt: skip
    yield Race("windows", f"{setting}, against a mask",
               {"SDPA with a mask": local("sdpa"), "blocked": local("blocked")})  # fmt: skip


def lengths(quick: bool) -> Iterator[Race]:
    """Mixers over the number of tokens, width 192: the time of one sequence; exponents stand in the picture.

    All lengths take turns in one race: a curve whose points were measured minutes apart would show the neighbours.
    """
    from polysense.kernels.mixers import MIXERS
    from polysense.kernels.mixers.growth import LENGTHS, QUADRATIC

    mixers: dict[str, Any] = {name: MIXERS[name](192, 3).eval() for name in sorted(MIXERS)}
    local: Any = MIXERS["attention"]
    mixers["attention ±64"] = local(192, 3, window=64).eval()
    runs: dict[str, Any] = {}
    for n in (64, 128) if quick else LENGTHS:
        x = torch.randn(1, n, 192, generator=torch.Generator().manual_seed(0))
        for name, mixer in mixers.items():
            too_long = name in QUADRATIC and n > 8192
            runs[f"{name}, {n} tokens"] = "quadratic, too long" if too_long else partial(mixer, x)
    yield Race("lengths", "one sequence of width 192", runs, same=False)


def fps(quick: bool) -> Iterator[Race]:
    """Farthest point sampling: ours, libraries' and a plain loop in torch."""
    from polysense.kernels.points import farthest_point_sampling

    n, k = (2000, 32) if quick else (100_000, 1024)
    xyz = np.random.default_rng(0).random((n, 3), dtype=np.float32)
    cloud = torch.from_numpy(xyz)
    yield Race("fps", f"{n:,} points to {k}", {
        "loop in torch": lambda: farthest_point_sampling(cloud, k, start=0, backend="reference"),
        "polysense": lambda: farthest_point_sampling(cloud, k, start=0),
        "open3d": _open3d_fps(xyz, k),
        "fpsample, buckets": _fpsample(xyz, k),
    }, {"polysense": 8.0})  # fmt: skip


def _open3d_fps(xyz: np.ndarray, k: int) -> Callable[[], Any] | str:
    open3d = library("open3d")
    if isinstance(open3d, str):
        return open3d
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz.astype(np.float64)))
    return lambda: cloud.farthest_point_down_sample(k)


def _fpsample(xyz: np.ndarray, k: int) -> Callable[[], Any] | str:
    fpsample = library("fpsample")
    return fpsample if isinstance(fpsample, str) else lambda: fpsample.bucket_fps_kdline_sampling(xyz, k, h=5)


def knn(quick: bool) -> Iterator[Race]:
    """The 32 nearest neighbours, trees built anew each time: ours, libraries' and all distances in torch."""
    from scipy.spatial import cKDTree

    from polysense.kernels.points import knn as ours

    n, q, k = (2000, 32, 8) if quick else (100_000, 1024, 32)
    xyz = np.random.default_rng(0).random((n, 3), dtype=np.float32)
    points, queries = torch.from_numpy(xyz), torch.from_numpy(xyz[:q].copy())
    yield Race("knn", f"{k} of {n:,} points, {q} queries", {
        "all distances": lambda: ours(queries, points, k, backend="reference")[1],
        "polysense": lambda: ours(queries, points, k)[1],
        "cKDTree": lambda: torch.from_numpy(cKDTree(xyz).query(xyz[:q], k)[0] ** 2),
        "pykdtree": _pykdtree(xyz, q, k),
    }, {"polysense": 8.0})  # fmt: skip


def _pykdtree(xyz: np.ndarray, q: int, k: int) -> Callable[[], Any] | str:
    module = library("pykdtree.kdtree")
    return module if isinstance(module, str) else lambda: torch.from_numpy(module.KDTree(xyz).query(xyz[:q], k)[0] ** 2)


def library(name: str) -> Any:
    """A module, or the words that it is not installed."""
    try:
        if name == "open3d":
            from polysense.data.point_cloud import import_open3d

            return import_open3d()
        return import_module(name)
    except (ImportError, OSError):
        return f"{name.split('.')[0]} is not installed"

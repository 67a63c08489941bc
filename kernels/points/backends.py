"""Which implementation runs: by name, or by device, size and what is installed.

The sizes were measured on one core, side by side. SciPy and NumPy are at hand at once; Numba takes a second to load in
each process (and once per machine some seconds to compile), which small clouds never earn back. The shipped tokenizers'
clouds (1,024 points) lie far below either size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polysense.kernels.points import numpy_fps, reference, scipy_knn, torch_points

SAMPLING_WORK = 50_000_000  # points × picks from where compiled sampling is worth its loading
SEARCHED_POINTS = 50_000  # points from where compiled neighbours are

Sampler = Callable[[Sequence[Any], int, Sequence[int]], list[Any]]
Finder = Callable[[Any, Any, int], tuple[Any, Any]]


def sampler(name: str, clouds: Sequence[Any], k: int) -> Sampler:
    """The sampling of many clouds that a name stands for.

    Raises:
        ValueError: There is no such backend, or it cannot run these clouds; the message says why.
    """
    _check(name, clouds, ("reference", "numpy", "numba", "torch"))
    if name == "auto":
        large = max(map(len, clouds)) * k >= SAMPLING_WORK
        name = _auto(clouds, "numba" if large and not _numba_lacks(clouds) else "numpy")
    if name == "torch":
        return _torch_sampler
    if name == "reference":
        return lambda some, k, starts: [
            reference.farthest_point_sampling(torch.from_numpy(x), k, s).numpy() for x, s in zip(some, starts)
        ]
    if name == "numba":
        from polysense.kernels.points import compiled_fps

        run = compiled_fps.farthest_point_sampling
    else:
        run = numpy_fps.farthest_point_sampling
    return lambda some, k, starts: [run(x, k, s) for x, s in zip(some, starts)]


def finder(name: str, clouds: Sequence[Any]) -> Finder:
    """The neighbour search that a name stands for.

    Raises:
        ValueError: There is no such backend, or it cannot run these clouds; the message says why.
    """
    _check(name, clouds, ("reference", "scipy", "numba", "torch"))
    if name == "auto":
        large = max(map(len, clouds)) >= SEARCHED_POINTS
        name = _auto(clouds, "numba" if large and not _numba_lacks(clouds) else "scipy")
    if name == "scipy":
        return scipy_knn.knn
    if name == "numba":
        from polysense.kernels.points import compiled_neighbours

        return compiled_neighbours.knn
    return _through_torch(reference.knn if name == "reference" else torch_points.knn)


def _auto(clouds: Sequence[Any], on_cpu: str) -> str:
    return "torch" if isinstance(clouds[0], Tensor) else on_cpu


def _check(name: str, clouds: Sequence[Any], known: tuple[str, ...]) -> None:
    if name not in ("auto", *known):
        raise ValueError(f"unknown backend {name!r}; choose one of: auto, {', '.join(known)}")
    kinds = {(x.device, x.dtype) if isinstance(x, Tensor) else ("cpu", x.dtype) for x in clouds}
    if len(kinds) > 1:
        raise ValueError(f"clouds must share one type and device, got {', '.join(sorted(map(str, kinds)))}")
    if name not in ("auto", "torch") and isinstance(clouds[0], Tensor):
        raise ValueError(f"backend {name!r} runs on the CPU, and the cloud is on {clouds[0].device}; use torch")
    if name == "numba" and (problem := _numba_lacks(clouds)):
        raise ValueError(f"backend 'numba' cannot run: {problem}")


def _numba_lacks(clouds: Sequence[Any]) -> str:
    if isinstance(clouds[0], np.ndarray) and clouds[0].dtype.itemsize > 8:
        return f"it has no {clouds[0].dtype}; use float64"
    return "" if _numba_is_here() else "numba is not installed; pip install 'polysense[points]'"


@lru_cache
def _numba_is_here() -> bool:
    return find_spec("numba") is not None


def _torch_sampler(clouds: Sequence[Any], k: int, starts: Sequence[int]) -> list[Any]:
    parts = [torch.as_tensor(cloud) for cloud in clouds]
    sizes = torch.tensor([len(part) for part in parts], device=parts[0].device)
    padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    chosen = torch_points.farthest_point_sampling(padded, sizes, k, torch.tensor(starts, device=padded.device))
    return list(chosen if isinstance(clouds[0], Tensor) else chosen.numpy())


def _through_torch(run: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> Finder:
    def find(queries: Any, points: Any, k: int) -> tuple[Any, Any]:
        i, d = run(torch.as_tensor(queries), torch.as_tensor(points), k)
        return (i, d) if isinstance(queries, Tensor) else (i.numpy(), d.numpy())

    return find

"""What the api is given, checked and taken apart into single clouds; and answers put together again.

On the CPU a cloud is a NumPy array, whatever came in; elsewhere it is a tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_clouds(name: str, value: Any, lengths: Sequence[int] | None = None) -> list[Any]:
    """Finite float (n, 3) clouds of a cloud, a list of clouds, or a batch (b, n, 3) with lengths.

    Raises:
        ValueError: Shapes, types or values do not fit; the message names the fault.
    """
    if isinstance(value, list | tuple):
        if not value or lengths is not None:
            raise ValueError(f"{name} as a list must hold at least one cloud, and takes no lengths")
        return [_coordinates(f"{name}[{i}]", cloud) for i, cloud in enumerate(value)]
    if not isinstance(value, np.ndarray | Tensor) or value.ndim != 3:
        if lengths is not None:
            raise ValueError(f"lengths go with a batch (clouds, points, 3), and {name} is {_shape(value)}")
        return [_coordinates(name, value)]
    b, n = value.shape[:2]
    sizes = [n] * b if lengths is None else [int(size) for size in lengths]
    if b == 0 or len(sizes) != b or not all(1 <= size <= n for size in sizes):
        raise ValueError(f"{name} {tuple(value.shape)} wants {b} lengths, at least one and each from 1 to {n}")
    return [_coordinates(f"{name}[{i}]", cloud[:size]) for i, (cloud, size) in enumerate(zip(value, sizes))]


def like(given: Any, answers: Sequence[Any]) -> Any:
    """One answer for a cloud, a list for a list, a stack for a batch; tensors for tensors."""
    if isinstance(given, list | tuple):
        return [like(cloud, [answer]) for cloud, answer in zip(given, answers, strict=True)]
    if isinstance(given, Tensor):
        answers = [torch.as_tensor(answer, device=given.device) for answer in answers]
        return torch.stack(list(answers)) if given.ndim == 3 else answers[0]
    return np.stack(answers) if given.ndim == 3 else answers[0]


def whole(name: str, value: Any) -> int:
    """A count as an integer.

    Raises:
        ValueError: It is none.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None


def _coordinates(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach()
        value = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        value = value.numpy() if value.device.type == "cpu" else value
    if not isinstance(value, np.ndarray | Tensor) or value.ndim != 2 or value.shape[1] != 3 or len(value) == 0:
        raise ValueError(f"{name} must be an array (points, 3) with at least one point, got {_shape(value)}")
    floating = value.is_floating_point() if isinstance(value, Tensor) else value.dtype.kind == "f"
    if not floating:
        raise ValueError(f"{name} must be floating point, got {value.dtype}")
    if isinstance(value, np.ndarray):
        # One layout and the machine's byte order: PyTorch reads few others, and Numba would compile for each anew.
        kind = np.dtype(np.float32) if value.dtype.itemsize == 2 else value.dtype.newbyteorder("=")
        value = np.require(value, kind, ["C", "A", "W"])
    limit = ((torch if isinstance(value, Tensor) else np).finfo(value.dtype).max / 12) ** 0.5
    known = abs(value) <= limit  # the square of any distance between two such points is finite
    if not known.all():
        count = int((~known).any(1).sum())
        fault = f"{count} of {len(value)} points are" if count > 1 else f"1 of {len(value)} points is"
        raise ValueError(f"{name}: {fault} not finite (NaN, infinite, or beyond ±{limit:.0e}); drop them first")
    return value


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if hasattr(value, "shape") else type(value).__name__

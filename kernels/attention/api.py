"""The one way to attention: checks shapes, picks a backend, runs it.

Shape legend: b batch, h heads, n queries, m keys, d head width, e value width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polysense.kernels.attention import reference, sdpa


class Backend(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor: ...


_BACKENDS: dict[str, Backend] = {"reference": reference.attention, "sdpa": sdpa.attention}


def available_backends() -> list[str]:
    """Names that `backend` takes beside "auto"."""
    return sorted(_BACKENDS)


def attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m e"],
    *,
    mask: Bool[Tensor, "b m"] | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b h n e"]:
    """Softmax attention over the real keys of each sequence.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: True where a key is real; None where all are.
        scale: Factor of the scores; 1/sqrt(d) by default.
        backend: "auto", or one of `available_backends()`; a backend asked for by name never falls back.

    Raises:
        ValueError: Shapes, types or the backend do not fit.
    """
    _check(q, k, v, mask)
    if backend == "auto":
        backend = "sdpa"  # the fastest measured on CPUs at every length, and never slower than reference on GPUs
    if backend not in _BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; choose auto or one of: {', '.join(_BACKENDS)}")
    return _BACKENDS[backend](q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"q, k, v must be (batch, heads, tokens, width), got {q.shape}, {k.shape}, {v.shape}")
    if q.shape[:2] != k.shape[:2] or q.shape[-1] != k.shape[-1] or k.shape[:3] != v.shape[:3]:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not go together")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (k.shape[0], k.shape[2])):
        raise ValueError(f"mask must be bool ({k.shape[0]}, {k.shape[2]}), got {mask.dtype} {tuple(mask.shape)}")

"""Softmax attention written out (Vaswani et al. 2017, eq. 1): the oracle of all implementations."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m e"],
    mask: Bool[Tensor, "b m"] | None,
    scale: float,
) -> Float[Tensor, "b h n e"]:
    """See `api.attention`. A sequence without any real key gives zeros."""
    scores = q @ k.transpose(-2, -1) * scale
    if mask is None:
        return scores.softmax(-1) @ v
    hidden = ~mask[:, None, None, :]
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return weights.masked_fill(hidden, 0.0) @ v

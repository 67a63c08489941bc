"""Position embeddings from real coordinates, so that size, length and count may vary.

Shape legend: b batch, n tokens, p coordinates, d width.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


def sin_cos(coordinates: Float[Tensor, "... p"], width: int, base: float = 10_000.0) -> Float[Tensor, "... d"]:
    """Fixed sine-cosine code of integer-like coordinates, `width // p` channels for each (Vaswani et al. 2017, 3.5).

    Left-over channels are zero.
    """
    p = coordinates.shape[-1]
    half = width // (2 * p)
    frequencies = base ** (-torch.arange(half, device=coordinates.device, dtype=torch.float32) / max(half, 1))
    angles = coordinates.float()[..., None] * frequencies  # (..., p, half)
    code = torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)
    return torch.nn.functional.pad(code, (0, width - code.shape[-1]))


class CoordinateEmbedding(nn.Module):
    """Learned linear map of Fourier features of continuous coordinates (Tancik et al. 2020).

    Args:
        p: Number of coordinates.
        width: Token width.
        bands: Octaves per coordinate; the slowest turns once over `longest` units.
        longest: Coordinate span, in the coordinates' unit, that should still be told apart.
    """

    def __init__(self, p: int, width: int, bands: int = 8, longest: float = 2.0) -> None:
        super().__init__()
        frequencies = 2 * math.pi / longest * 2.0 ** torch.arange(bands)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.project = nn.Linear(p * (2 * bands + 1), width)
        nn.init.trunc_normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)

    frequencies: Tensor

    def forward(self, coordinates: Float[Tensor, "b n p"]) -> Float[Tensor, "b n d"]:
        angles = coordinates[..., None] * self.frequencies  # (b, n, p, bands)
        code = torch.cat([angles.sin(), angles.cos(), coordinates[..., None]], -1).flatten(-2)
        return self.project(code.to(self.project.weight.dtype))

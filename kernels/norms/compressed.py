"""Compressed RMSNorm: vectors of width d - 1 that stand for vectors of width d and mean zero.

Jiang et al. 2023, "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers". The last
entry of a vector of mean zero is minus the sum of the others, so it need not be stored.

Shape legend: d width of what a vector stands for, e = d - 1 width that is stored.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class CRMSNorm(nn.Module):
    """RMSNorm of the vector of width e + 1 that a compressed one stands for, again compressed.

    y = x / sqrt((Σ x² + (Σ x)²) / (e + 1) + eps) · weight. With mean zero, LayerNorm and RMSNorm are the same, so this
    is LayerNorm of what the vector stands for.

    When to use it: to save 1/d of the multiplications of a converted encoder, in float32. In half precision the entry
    that is left out is a sum of d rounded numbers: take RMSNorm there. Rows of d - 1 entries are rarely aligned,
    which matrix units dislike.

    Args:
        width: e, of the vectors that come in.
        eps: Added to the mean of squares.
        elementwise_affine: Learn a weight per stored entry. What comes out then no longer stands for anything wider;
            a linear layer must follow.

    Raises:
        ValueError: The width is not positive, or vectors of another width come in.
    """

    def __init__(self, width: int, eps: float = 1e-6, elementwise_affine: bool = True) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"the width of a norm must be at least 1, got {width}")
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width)) if elementwise_affine else None

    def forward(self, x: Float[Tensor, "*b e"]) -> Float[Tensor, "*b e"]:
        if x.shape[-1] != self.width:
            raise ValueError(f"vectors of width {x.shape[-1]} do not fit a norm of width {self.width}")
        exact = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        left_out = x.sum(-1, keepdim=True, dtype=exact)
        y = x * torch.rsqrt((length * length + left_out * left_out) / (self.width + 1) + self.eps).to(x.dtype)
        return y if self.weight is None else y * self.weight

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps}, elementwise_affine={self.weight is not None}"


def compress(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
    """Takes the mean off and leaves the last entry out.

    Raises:
        ValueError: The vectors are narrower than 2.
    """
    if x.shape[-1] < 2:
        raise ValueError(f"vectors of width {x.shape[-1]} cannot be compressed; they need at least 2 entries")
    x = x - x.mean(-1, keepdim=True)
    # Twice: what rounding left of the mean would count d times in the entry that is left out.
    return x[..., :-1] - x.mean(-1, keepdim=True)


def expand(x: Float[Tensor, "*b e"]) -> Float[Tensor, "*b d"]:
    """The vector of mean zero that a compressed one stands for."""
    return torch.cat([x, -x.sum(-1, keepdim=True)], -1)

"""Merges a norm of fixed numbers into the linear layer that reads it.

W (x · scale + shift) + b = (W · scale) x + (b + W shift): one linear layer with the same answers, and no norm.

When to use it: once training is over, for every norm whose only reader is a linear layer (query, key and value; the
first layer of an MLP). A norm that writes the residual stream itself, or a final norm, has no such reader: it stays.

Shape legend: d width of the norm, o outputs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polysense.kernels.norms.repbn import PRepBN, RepBN
from polysense.kernels.norms.tokens import TokenNorm
from polysense.kernels.norms.unified import UnifiedNorm


def merge_scale_shift(scale: Float[Tensor, " d"], shift: Float[Tensor, " d"] | None, linear: nn.Linear) -> nn.Linear:
    """The linear layer of x that equals `linear(x * scale + shift)`.

    Args:
        scale: Of each input.
        shift: Of each input; None for none.
        linear: Stays as it is.

    Returns:
        A new layer of the same type and device, computed in float64. It has a bias where there is a shift or was one.

    Raises:
        ValueError: The widths differ.
    """
    for name, value in (("scale", scale), ("shift", shift)):
        if value is not None and value.shape != (linear.in_features,):
            raise ValueError(f"{name} must be ({linear.in_features},) for this layer, got {tuple(value.shape)}")
    weight = _exact(linear.weight)
    bias = None if linear.bias is None else _exact(linear.bias)
    if shift is not None:
        bias = weight @ _exact(shift) + (0 if bias is None else bias)
    return linear_of(weight * _exact(scale), bias, linear)


def merge_unified(norm: UnifiedNorm, linear: nn.Linear) -> nn.Linear:
    """The linear layer of x that equals `linear(norm(x))` in evaluation.

    Raises:
        ValueError: It is another norm, or the widths differ.
    """
    return _merged(norm, UnifiedNorm, linear)


def merge_repbn(norm: PRepBN | RepBN, linear: nn.Linear) -> nn.Linear:
    """The linear layer of x that equals `linear(norm(x))` in evaluation.

    Raises:
        ValueError: It is another norm, LayerNorm still has a share in it, or the widths differ.
    """
    return _merged(norm, (PRepBN, RepBN), linear)


def _merged(norm: TokenNorm, kind: type | tuple[type, ...], linear: nn.Linear) -> nn.Linear:
    if not isinstance(norm, kind):
        raise ValueError(f"a {type(norm).__name__} does not merge here")
    return merge_scale_shift(*norm.scale_shift(), linear)


def linear_of(weight: Float[Tensor, "o d"], bias: Float[Tensor, " o"] | None, like: nn.Linear) -> nn.Linear:
    """A linear layer of these numbers, of another's type and device; learns where the other does."""
    placed = {"device": like.weight.device, "dtype": like.weight.dtype}
    made = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, **placed)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    made.requires_grad_(like.weight.requires_grad)
    return made.train(like.training)


def _exact(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)

"""Softmax attention by torch's fused `scaled_dot_product_attention`."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m e"],
    mask: Bool[Tensor, "b m"] | None,
    scale: float,
) -> Float[Tensor, "b h n e"]:
    """See `api.attention`. Without a mask the fused kernels run; with one, torch picks the memory-efficient path."""
    if mask is None:
        return scaled_dot_product_attention(q, k, v, scale=scale)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :], scale=scale)
    # A sequence without a real key would be NaN or an average of padding, depending on the kernel.
    return out.masked_fill(~mask.any(-1)[:, None, None, None], 0.0)

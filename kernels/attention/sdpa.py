"""Softmax attention of the padded layout by torch's fused `scaled_dot_product_attention`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from polysense.kernels.attention.call import Call, visible


def softmax(call: Call) -> Float[Tensor, "b h n e"]:
    """Without mask, bias and window the fused kernels run; with them torch picks the memory-efficient path."""
    q, k, v = call.q, call.k, call.v
    if call.mask is None and call.bias is None and call.window is None:
        return scaled_dot_product_attention(q, k, v, is_causal=call.causal, scale=call.scale)
    seen = visible(call)
    blind = None
    if call.mask is not None:  # without a mask a query sees itself at least
        assert seen is not None
        # A query without a visible key would be NaN or an average of padding, depending on the kernel, and its gradient
        # may be NaN even where a zero comes from above: it looks at everything and is cleared.
        blind = ~seen.any(-1, keepdim=True)
        seen = seen | blind
    shown = seen
    if call.bias is not None:
        shown = call.bias if seen is None else call.bias.masked_fill(~seen, float("-inf"))
    out = scaled_dot_product_attention(q, k, v, attn_mask=shown, scale=call.scale)
    return out if blind is None else out.masked_fill(blind, 0.0)


def refuses(call: Call) -> str:
    return "" if call.lengths is None else "it takes the padded layout; use packed, or leave lengths out"

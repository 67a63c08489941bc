"""Softmax attention inside blocks of neighbours that do not overlap.

Qin et al. 2022, "The Devil in Linear Transformer", section 4.2 (DiagAttention), the companion of `linear`: early blocks
of an encoder look near anyway, and cutting the sequence into blocks costs O(n · block) without any overlap to handle.

`window` is the size of a block here: query i sees the keys j with i // window == j // window (64 where none is given).

When to use it: early layers of encoders of long sequences, before `linear` or full attention. Tokens at a block's edge
do not see their neighbours across it; `softmax` with a window has no such edges and costs about twice as much.

Shape legend: b batch, h heads, n tokens, d head width, e value width, c blocks of w tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from polysense.kernels.attention.call import Call
from polysense.kernels.attention.products import by_sequence

BLOCK = 64  # tokens, the paper's


def reference(call: Call) -> Float[Tensor, "b h n e"]:
    """All n × n scores, other blocks hidden: the oracle."""
    return by_sequence(call, _reference)


def blocked(call: Call) -> Float[Tensor, "b h n e"]:
    """Torch's fused attention over blocks: O(n · block)."""
    return by_sequence(call, _blocked)


def refuses(call: Call) -> str:
    if call.bias is not None:
        return "block_diagonal attention takes no bias; use kind='softmax' with a window"
    if call.window == 0:
        return "a block holds at least one token; give window=1 or more"
    if call.q.shape[2] != call.k.shape[2]:
        return f"blocks need as many queries as keys, got {call.q.shape[2]} and {call.k.shape[2]}"
    return ""


def _reference(call: Call) -> Tensor:
    dtype = torch.promote_types(call.q.dtype, torch.float32)
    at = torch.arange(call.q.shape[2], device=call.q.device)
    block = at // (call.window or BLOCK)
    seen = (block[:, None] == block)[None, None]
    if call.causal:
        seen = seen & (at[:, None] >= at)
    if call.mask is not None:
        seen = seen & call.mask[:, None, None]
    scores = call.q.to(dtype) @ call.k.to(dtype).transpose(-2, -1) * call.scale
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0.0)
    v = call.v.to(dtype) if call.mask is None else call.v.to(dtype).masked_fill(~call.mask[:, None, :, None], 0.0)
    return (weights @ v).to(call.v.dtype)


def _blocked(call: Call) -> Tensor:
    b, h, n, _ = call.q.shape
    if n == 0:  # no block at all would end the whole process in torch's fused attention
        return call.v
    w = min(call.window or BLOCK, n)
    more = -n % w
    if call.mask is not None:  # what stands at padded places may be NaN, which a weight of zero would not stop
        hidden = ~call.mask[:, None, :, None]
        call = replace(call, k=call.k.masked_fill(hidden, 0.0), v=call.v.masked_fill(hidden, 0.0))
    # Blocks stand beside the heads, so that the fused kernels get their four dimensions.
    q, k, v = (F.pad(x, (0, 0, 0, more)).unflatten(2, (-1, w)).flatten(1, 2) for x in (call.q, call.k, call.v))
    if call.mask is None and not more:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=call.causal, scale=call.scale)
        return out.unflatten(1, (h, -1)).flatten(2, 3)
    mask = call.mask if call.mask is not None else call.q.new_ones(b, n, dtype=torch.bool)
    seen = _seen(F.pad(mask, (0, more)), w, call.causal)  # (b, c, 1 or w, w)
    nothing = ~seen.any(-1, keepdim=True)
    # A query that sees nothing would be NaN in some kernels, forward or backward: it sees all and is zeroed after.
    attend = (seen | nothing).repeat(1, h, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, scale=call.scale)
    out = out.masked_fill(nothing.repeat(1, h, 1, 1), 0.0)
    return out.unflatten(1, (h, -1)).flatten(2, 3)[:, :, :n]


def _seen(mask: Bool[Tensor, "b n"], w: int, causal: bool) -> Bool[Tensor, "b c #w w"]:
    seen = mask.unflatten(1, (-1, w))[:, :, None]
    return seen & torch.ones(w, w, dtype=torch.bool, device=mask.device).tril() if causal else seen

"""Windowed softmax attention in blocks: O(n · w) time and memory instead of O(n²).

All sequences of a call, padded or packed, lie on one stream of tokens cut into blocks; the queries of a block look at
the keys from `window` before it to `window` after it (the sliding chunks of Beltagy et al. 2020, "Longformer",
appendix A). Keys of other sequences are hidden, so that no sequence is rounded up to whole blocks. The blocks are the
batch of one fused call, and overlapping keys are views, not copies.

When: windows well below the length; at ±64 and 1024 tokens about 4 times as fast as all keys on a CPU, at 4096 tokens
16 times (see `auto`).

Shape legend: b batch, h heads, n tokens of a sequence, t = b n or the packed tokens, r tokens of a block, u = t / r
blocks (rounded up), c = r + 2 window keys of a block, d head width, e value width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from polysense.kernels.attention.call import Call

FORWARD_BLOCK, TRAINING_BLOCK = 32, 64  # the backward pass adds overlapping keys up, so it prefers fewer blocks


def softmax(call: Call) -> Float[Tensor, "b h n e"]:
    assert call.window is not None
    b, _, n, _ = call.q.shape
    t = b * n
    if t == 0:
        return call.v
    w = min(call.window, max(call.lengths or (n,)) - 1)  # a wider one shows no more, and takes room for what it could
    r = TRAINING_BLOCK if torch.is_grad_enabled() and call.k.requires_grad else FORWARD_BLOCK
    short = -t % r  # tokens that the last block lacks
    q = F.pad(_stream(call.q), (0, 0, 0, 0, 0, short)).unflatten(0, (-1, r)).transpose(1, 2)
    k, v = (_windows(F.pad(_stream(x), (0, 0, 0, 0, w, short + w)), r, w) for x in (call.k, call.v))
    seen = _visible(call, r, w, short)
    # A query that sees nothing looks at everything and is cleared below: a softmax over no key is NaN, and so is its
    # gradient, which a zero from above does not stop.
    blind = ~seen.any(-1, keepdim=True)
    shown: Tensor = seen | blind
    if call.bias is not None:
        shown = _bias(call, r, w, short).masked_fill(~shown, float("-inf"))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=shown, scale=call.scale)
    if call.mask is not None:
        out = out.masked_fill(blind, 0.0)
    out = out.transpose(1, 2).flatten(0, 1)[:t]  # (t, h, e)
    return out.unflatten(0, (b, n)).transpose(1, 2)


def refuses(call: Call) -> str:
    return "it needs a window" if call.window is None else ""


def _stream(x: Float[Tensor, "b h n d"]) -> Float[Tensor, "t h d"]:
    """A view where the heads were cut out of a linear layer's output."""
    return x.transpose(1, 2).flatten(0, 1)


def _windows(stream: Float[Tensor, "s h d"], r: int, w: int) -> Float[Tensor, "u h c d"]:
    return stream.unfold(0, r + 2 * w, r).transpose(2, 3)


def _visible(call: Call, r: int, w: int, short: int) -> Bool[Tensor, "u 1 r c"]:
    device = call.q.device
    sequence = _sequence_numbers(call)
    of_query = F.pad(sequence, (0, short), value=-1)
    if call.mask is not None:
        sequence = sequence.masked_fill(~call.mask.flatten(), -2)
    of_key = F.pad(sequence, (w, short + w), value=-2)
    seen = of_query.view(-1, r, 1) == of_key.unfold(0, r + 2 * w, r)[:, None]
    distance = torch.arange(r, device=device)[:, None] - torch.arange(-w, r + w, device=device)
    band = distance.abs() <= w
    if call.causal:
        band = band & (distance >= 0)
    return (seen & band)[:, None]


def _sequence_numbers(call: Call) -> Int[Tensor, " t"]:
    b, _, n, _ = call.q.shape
    lengths = torch.tensor((n,) * b if call.lengths is None else call.lengths, device=call.q.device)
    return torch.arange(len(lengths), device=call.q.device).repeat_interleave(lengths, output_size=b * n)


def _bias(call: Call, r: int, w: int, short: int) -> Float[Tensor, "u h r c"]:
    """The bias at every place of every block; places off the stream or in another sequence get any value."""
    assert call.bias is not None
    b, _, n, _ = call.q.shape
    device = call.q.device
    query = torch.arange(b * n + short, device=device).clamp(max=b * n - 1).view(-1, r, 1)
    first = torch.arange(0, b * n + short, r, device=device)[:, None, None]
    key = (first + torch.arange(-w, r + w, device=device)).clamp(0, b * n - 1)
    places = [query // n, query % n, key % n]
    for axis, size in enumerate((call.bias.shape[0], call.bias.shape[2], call.bias.shape[3])):
        if size == 1:
            places[axis] = torch.zeros_like(places[axis])
    return call.bias[places[0], :, places[1], places[2]].permute(0, 3, 1, 2)

"""Sigmoid attention in plain torch, some queries at a time: O(m · chunk) memory for the weights instead of O(n · m).

What `reference.sigmoid` gives, without its n × m matrix, backward as well: each chunk is computed anew in the backward
pass (gradient checkpointing). With a window or causal, keys that no query of the chunk sees are left out.

Shape legend: b batch, h heads, n queries, m keys, c queries of a chunk, d head width, e value width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polysense.kernels.attention.call import Call, part_of_bias, real_keys, sequences, visible

CHUNK = 128  # queries; at 1024 keys the weights of a head are half a megabyte then and stay in the cache


def sigmoid(call: Call) -> Float[Tensor, "b h n e"]:
    if call.lengths is not None:
        parts = [_padded(one) for one in sequences(call) if one.q.shape[2]]
        return torch.cat(parts, 2) if parts else call.v
    return _padded(call)


def refuses(call: Call) -> str:
    return ""


def _padded(call: Call) -> Tensor:
    n = call.q.shape[2]
    learning = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (call.q, call.k, call.v, call.bias)
    )
    starts = range(0, max(n, 1), CHUNK)
    if learning and len(starts) > 1:
        parts = [checkpoint(_chunk, call, i, use_reentrant=False, preserve_rng_state=False) for i in starts]
    else:
        parts = [_chunk(call, i) for i in starts]
    return torch.cat(parts, 2)


def _chunk(call: Call, start: int) -> Float[Tensor, "b h c e"]:
    rows = (start, min(start + CHUNK, call.q.shape[2]))
    columns = _columns(call, rows)
    q = call.q[:, :, rows[0] : rows[1]]
    k, v = (x[:, :, columns[0] : columns[1]] for x in (call.k, call.v))
    dtype = torch.promote_types(q.dtype, torch.float32)  # sigmoids of long sequences are of the size of 1/n
    scores = (q @ k.transpose(-2, -1)).to(dtype) * call.scale - real_keys(call).log()
    bias, seen = part_of_bias(call, rows, columns), visible(call, rows, columns)
    weights = (scores if bias is None else scores + bias).sigmoid()
    if seen is not None:
        weights = weights.masked_fill(~seen, 0.0)
    return weights.to(v.dtype) @ v


def _columns(call: Call, rows: tuple[int, int]) -> tuple[int, int]:
    """The keys that any of these queries may see."""
    first, last = 0, call.k.shape[2]
    if call.window is not None:
        first, last = max(0, rows[0] - call.window), min(last, rows[1] + call.window)
    return first, (min(last, rows[1]) if call.causal else last)

"""Softmax attention times a learned Toeplitz matrix (URPE).

Luo et al. 2022, "Your Transformer May Not be as Powerful as You Expect", section 4: relative biases inside the softmax
cannot tell equal tokens apart by place, since every row still sums to one. One more factor for each offset can,

    o_i = Σ_j softmax(scale q_i·k_j + bias)_j c_{j-i} v_j.

`extra={"toeplitz": c}` holds c for each head and the offsets -r … r, (h, 2 r + 1); offsets further away take the value
at the end. All ones is softmax attention: a good start, and how a trained softmax encoder becomes one of this kind.

When to use it: tokens whose relative place matters (time, sound) in an encoder without absolute positions; counting
and periodic patterns. `bias` (a relative bias) and `window` combine with it.

Shape legend: b batch, h heads, n queries, m keys, d head width, e value width, r reach of the Toeplitz row.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polysense.kernels.attention.call import Call, part_of_bias, visible
from polysense.kernels.attention.products import by_sequence

ROWS = 128  # queries at one time: n · 128 scores in memory instead of n²


class Toeplitz(nn.Module):
    """The learned factors, ones at first: `attention(..., kind="urpe", extra={"toeplitz": module()})`.

    Args:
        heads: Each has its own row.
        reach: The largest offset with a value of its own.
    """

    def __init__(self, heads: int, reach: int) -> None:
        super().__init__()
        if heads < 1 or reach < 0:
            raise ValueError(f"a Toeplitz row needs heads and a reach of at least 0, got {heads} and {reach}")
        self.values = nn.Parameter(torch.ones(heads, 2 * reach + 1))

    def forward(self) -> Float[Tensor, "h offsets"]:
        return self.values


def reference(call: Call) -> Float[Tensor, "b h n e"]:
    """All n × m scores and factors at once: the oracle."""
    return by_sequence(call, _reference)


def chunked(call: Call) -> Float[Tensor, "b h n e"]:
    """Some queries at a time against the keys they may see, computed again in the backward pass.

    Memory is O(n) instead of O(n²), time O(n²), with a window O(n · window).
    """
    return by_sequence(call, _chunked)


def refuses(call: Call) -> str:
    c = call.extra.get("toeplitz")
    if c is None:
        return "urpe needs its factors: extra={'toeplitz': (heads, 2 r + 1)}, see `urpe.Toeplitz`"
    if c.ndim != 2 or c.shape[0] != call.q.shape[1] or c.shape[1] % 2 == 0 or not c.is_floating_point():
        return f"toeplitz must be floats ({call.q.shape[1]}, an odd number of offsets), got {c.dtype} {tuple(c.shape)}"
    return ""


def _reference(call: Call) -> Tensor:
    dtype = torch.promote_types(call.q.dtype, torch.float32)
    q, k, v, c = (x.to(dtype) for x in (call.q, call.k, call.v, call.extra["toeplitz"]))
    scores = q @ k.transpose(-2, -1) * call.scale
    scores = scores if call.bias is None else scores + call.bias
    seen = visible(call)
    if seen is None:
        seen = torch.ones_like(scores, dtype=torch.bool)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0.0)
    if call.mask is not None:
        v = v.masked_fill(~call.mask[:, None, :, None], 0.0)
    reach = c.shape[1] // 2
    offsets = torch.arange(k.shape[2], device=q.device) - torch.arange(q.shape[2], device=q.device)[:, None]
    toeplitz = c[:, offsets.clamp(-reach, reach) + reach]
    return (toeplitz * weights @ v).to(call.v.dtype)


def _chunked(call: Call) -> Tensor:
    n, m = call.q.shape[2], call.k.shape[2]
    tensors = (call.q, call.k, call.v, call.bias, call.extra["toeplitz"])
    learning = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    out = []
    for start in range(0, n, ROWS):
        rows = (start, min(start + ROWS, n))
        first = 0 if call.window is None else max(start - call.window, 0)
        last = m if call.window is None else min(rows[1] + call.window, m)
        columns = (first, min(last, rows[1]) if call.causal else last)
        if learning and n > ROWS:
            out.append(checkpoint(_rows, call, rows, columns, use_reentrant=False))
        else:
            out.append(_rows(call, rows, columns))
    return torch.cat(out, 2) if out else call.v[:, :, :0]


def _rows(call: Call, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """The answers of some queries from the keys that any of them sees.

    Queries stand last to first in between: then the Toeplitz matrix is a view of one row, without a copy.
    """
    dtype = torch.promote_types(call.q.dtype, torch.float32)
    q, k, v = call.q[:, :, slice(*rows)], call.k[:, :, slice(*columns)], call.v[:, :, slice(*columns)].to(dtype)
    scores = (q.to(dtype) * call.scale).flip(2) @ k.to(dtype).transpose(-2, -1)
    bias = part_of_bias(call, rows, columns)
    if bias is not None:
        scores = scores + bias.flip(2)
    seen = visible(call, rows, columns)
    if seen is None:
        weights = scores.softmax(-1)
    else:
        seen = seen.flip(2)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0.0)
    if call.mask is not None:  # NaN times a weight of zero would still be NaN
        v = v.masked_fill(~call.mask[:, None, slice(*columns), None], 0.0)
    out = weights * _factors(call.extra["toeplitz"].to(dtype), rows, columns) @ v
    return out.flip(2).to(call.v.dtype)


def _factors(c: Float[Tensor, "h offsets"], rows: tuple[int, int], columns: tuple[int, int]) -> Float[Tensor, "h n m"]:
    """c_{j-i} for some queries i, last to first, and keys j."""
    reach, width = c.shape[1] // 2, columns[1] - columns[0]
    offsets = torch.arange(columns[0] - rows[1] + 1, columns[1] - rows[0], device=c.device)
    return c[:, offsets.clamp(-reach, reach) + reach].unfold(1, width, 1)

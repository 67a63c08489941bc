"""Softmax attention of the packed layout: torch's fused attention on slices, one call for each run of one length.

No token of padding is computed. Neighbouring sequences of one length share a call: whoever packs sorts by length.

Shape legend: h heads, t tokens of all sequences, g sequences of one length n, e value width.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from polysense.kernels.attention.call import Call, visible


def softmax(call: Call) -> Float[Tensor, "1 h t e"]:
    assert call.lengths is not None
    runs = [(n, len(list(same))) for n, same in groupby(n for n in call.lengths if n)]
    # One split of each tensor, not a slice a run: the backward pass of a slice writes zeros for all the rest.
    parts = (x[0].split([n * g for n, g in runs], dim=1) for x in (call.q, call.k, call.v))
    out = [_run(call, n, g, *qkv) for (n, g), qkv in zip(runs, zip(*parts, strict=True), strict=True)]
    # Tokens first in memory: the caller merges heads without another copy.
    return torch.cat(out).transpose(0, 1)[None] if out else call.v


def _run(call: Call, n: int, g: int, *qkv: Tensor) -> Tensor:
    """(h, g·n, ·) each → (g·n, h, e)."""
    q, k, v = (x.unflatten(1, (g, n)).transpose(0, 1) for x in qkv)
    seen = None
    if call.window is not None and call.window < n - 1:
        seen = visible(replace(call, q=q, k=k, v=v, lengths=None))
    causal = call.causal and seen is None
    out = scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal, scale=call.scale)
    return out.transpose(1, 2).flatten(0, 1)


def refuses(call: Call) -> str:
    return "it takes the packed layout; give lengths, or use sdpa" if call.lengths is None else ""

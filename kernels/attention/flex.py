"""Softmax attention by torch's `flex_attention`: one compiled kernel for any mask, bias and packing (CUDA).

Dong et al. 2024, "Flex Attention: A Programming Model for Generating Optimized Attention Kernels". It skips blocks that
are wholly hidden, so windows and packed sequences cost what they show. The map of blocks is made anew at each call.

When: float32 on a GPU with windows, packed sequences or a bias; half types have faster special kernels.

Shape legend: b batch, h heads, n queries, m keys, e value width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polysense.kernels.attention.call import Call


def softmax(call: Call) -> Float[Tensor, "b h n e"]:
    return attend(call, _compiled())


def refuses(call: Call) -> str:
    if call.q.device.type != "cuda":
        return "it runs on CUDA only: on a CPU torch compiles its forward pass alone and runs it slower than sdpa"
    if call.bias is not None and call.bias.requires_grad:
        return "no gradient reaches a bias; use sdpa"
    if call.q.dtype == torch.float64:
        return "it takes no float64"
    return ""


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention import flex_attention

    function: Callable[..., Any] = flex_attention.flex_attention
    return torch.compile(function, dynamic=True)


def attend(call: Call, flex_attention: Callable[..., Any]) -> Float[Tensor, "b h n e"]:
    """Translates a call into flex attention's functions of indices.

    Args:
        call: Padded or packed.
        flex_attention: torch's function, compiled; as it is (slow, in plain operators) for tests on a CPU.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    (b, _, n, _), m = call.q.shape, call.k.shape[2]
    if b * n * m == 0:
        return call.v.new_zeros(*call.q.shape[:3], call.v.shape[-1])
    sees = _mask_function(call)
    blocks = None
    if sees is not None:
        blocks = create_block_mask(sees, b if call.mask is not None else None, None, n, m, device=str(call.q.device))
    return flex_attention(call.q, call.k, call.v, _score_function(call), blocks, scale=call.scale)


def _mask_function(call: Call) -> Callable[..., Tensor] | None:
    mask, window, causal = call.mask, call.window, call.causal
    sequence = None
    if call.lengths is not None and len(call.lengths) > 1:
        lengths = torch.tensor(call.lengths, device=call.q.device)
        numbers = torch.arange(len(lengths), device=call.q.device)
        sequence = numbers.repeat_interleave(lengths, output_size=call.q.shape[2])
    if mask is None and window is None and sequence is None and not causal:
        return None

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        shown = i >= j if causal else (i - j) == (i - j)
        if window is not None:
            shown = shown & ((i - j).abs() <= window)
        if sequence is not None:
            shown = shown & (sequence[i] == sequence[j])
        return shown if mask is None else shown & mask[b, j]

    return sees


def _score_function(call: Call) -> Callable[..., Tensor] | None:
    if call.bias is None:
        return None
    bias = call.bias.expand(*call.q.shape[:3], call.k.shape[2])

    def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[b, h, i, j]

    return add

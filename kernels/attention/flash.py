"""Softmax attention of the packed layout by torch's variable-length flash attention: CUDA, half types.

One kernel for all sequences, windows and causality inside it (Dao 2023, "FlashAttention-2").

Shape legend: h heads, t tokens of all sequences, d head width.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from polysense.kernels.attention.call import Call


def softmax(call: Call) -> Float[Tensor, "1 h t d"]:
    from torch.nn.attention.varlen import varlen_attn

    assert call.lengths is not None
    if call.q.shape[2] == 0:
        return call.v
    ends = torch.tensor([0, *accumulate(call.lengths)], dtype=torch.int32).to(call.q.device, non_blocking=True)
    q, k, v = (x[0].transpose(0, 1) for x in (call.q, call.k, call.v))
    reach = -1 if call.window is None else call.window
    out = varlen_attn(
        q, k, v, ends, ends, max(call.lengths), max(call.lengths),
        scale=call.scale, window_size=(reach, 0 if call.causal else reach),
    )  # fmt: skip
    assert isinstance(out, Tensor)  # a pair is what it returns when asked for more
    return out.transpose(0, 1)[None]


def refuses(call: Call) -> str:
    if call.q.device.type != "cuda":
        return "it runs on CUDA only"
    if call.lengths is None:
        return "it takes the packed layout; give lengths"
    if call.q.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {call.q.dtype}"
    if torch.cuda.get_device_capability(call.q.device)[0] < 8:
        return "it needs a GPU of compute capability 8 or later"
    d = call.q.shape[-1]
    if d != call.v.shape[-1] or d % 8 or d > 256:
        return f"it needs one head width, a multiple of 8 up to 256, got {d} and {call.v.shape[-1]}"
    return ""

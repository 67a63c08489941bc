"""Softmax and sigmoid attention by Triton kernels, forward and backward: the padded and the packed layout, masks,
windows, causal; for GPUs, and for Triton's interpreter (TRITON_INTERPRET=1) where a machine without one checks numbers.

No matrix of scores is stored: memory grows with n, not n². Time grows with the width of a window and with the real
tokens of a packed batch. Gradients are of first order only.

Shape legend: b batch, h heads, n queries, m keys, t tokens of all sequences, d head width, e value width.
"""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from polysense.kernels.attention.call import Call

_WIDEST = 128  # head width; wider tiles do not fit beside each other on the chip


def softmax(call: Call) -> Float[Tensor, "b h n e"]:
    return _run(call, sigmoid=False)


def sigmoid(call: Call) -> Float[Tensor, "b h n e"]:
    return _run(call, sigmoid=True)


def refuses(call: Call) -> str:
    """Why these kernels cannot run the call; "" where they can."""
    if not _installed():
        return "triton is not installed; it comes with torch's CUDA builds for Linux"
    if call.q.device.type != "cuda" and not interpreted():
        return (
            f"the tensors are on {call.q.device}, Triton needs a GPU; move them there, or check numbers in Triton's "
            "interpreter by setting TRITON_INTERPRET=1 before Python starts"
        )
    if call.bias is not None:
        return "it takes no bias; use sdpa or reference"
    if call.q.dtype == torch.float64:
        return "float64 is not supported; use float32, float16 or bfloat16"
    if call.q.dtype == torch.bfloat16 and interpreted():
        return "Triton's interpreter multiplies bfloat16 as whole numbers; use float32 or float16"
    widths = call.q.shape[-1], call.v.shape[-1]
    if not 1 <= min(widths) <= max(widths) <= _WIDEST:
        return f"heads must be 1 to {_WIDEST} wide, got {widths[0]} (queries, keys) and {widths[1]} (values)"
    return ""


@lru_cache(maxsize=1)
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter. Triton reads the variable when a kernel is first imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a launch needs beside q, k and v."""

    sigmoid: bool
    causal: bool
    window: int | None
    scale: float
    sequences: int  # b of the padded layout, the number of lengths of the packed one
    longest_q: int  # queries of the longest sequence
    longest_k: int  # keys of the longest sequence
    starts: Int[Tensor, " b+1"] | None  # packed: first row of every sequence, and t
    mask: Bool[Tensor, "b m"] | None  # padded: real keys
    extents: Int[Tensor, " b"] | None  # with a mask: last real key + 1
    counts: Int[Tensor, " b"] | None  # with a mask: number of real keys


def _run(call: Call, sigmoid: bool) -> Tensor:
    starts = extents = counts = None
    sequences, longest_q, longest_k = call.q.shape[0], call.q.shape[2], call.k.shape[2]
    if call.lengths is not None:
        starts = _starts(call.lengths, call.q.device)
        sequences, longest_q = len(call.lengths), max(call.lengths, default=0)
        longest_k = longest_q
    elif call.mask is not None:  # on the device: nothing waits for it
        places = torch.arange(1, longest_k + 1, device=call.mask.device, dtype=torch.int32)
        extents = (call.mask * places).amax(1) if longest_k else places.new_zeros(sequences)
        counts = call.mask.sum(1, dtype=torch.int32)
    mask = None if call.mask is None else call.mask.contiguous()
    plan = _Plan(
        sigmoid, call.causal, call.window, call.scale, sequences, longest_q, longest_k, starts, mask, extents, counts
    )
    return _Attention.apply(call.q, call.k, call.v, plan)


@lru_cache(maxsize=16)
def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept, because the layers of an encoder ask for the same ones and the copy to the device waits."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int64, device=device)


class _Attention(torch.autograd.Function):
    """Keeps q, k, v, the answer and one number for every query; weights are computed again (Dao 2023)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: _Plan) -> Tensor:
        q, k, v = _rows(q), _rows(k), _rows(v)
        out = _room((*q.shape[:3], v.shape[3]), q)
        lse = None if plan.sigmoid else torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        if out.numel():
            kernels = _kernels()
            with torch.cuda.device_of(q):
                kernels.forward_kernel[_grid(plan, q, "BLOCK_M", plan.longest_q)](
                    q, k, v, out, lse, plan.starts, plan.mask, plan.extents, plan.counts,
                    *_strides(q, k, v, out), q.shape[1], q.shape[2], plan.longest_q, plan.longest_k, plan.window or 0,
                    plan.scale * math.log2(math.e), **_constants(q, v, plan))  # fmt: skip
        ctx.save_for_backward(q, k, v, *(() if lse is None else (out, lse)))
        ctx.plan = plan
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        plan: _Plan = ctx.plan
        q, k, v, *kept = ctx.saved_tensors
        out, lse = kept if kept else (None, None)
        delta = None if lse is None else torch.empty_like(lse)
        do = _rows(do)
        dq, dk, dv = (_room(x.shape, x, zero=plan.mask is not None) for x in (q, k, v))
        kernels = _kernels()
        scales = plan.scale, plan.scale * math.log2(math.e)
        sizes = q.shape[1], q.shape[2], plan.longest_q, plan.longest_k, plan.window or 0, *scales
        layout = plan.starts, plan.mask, plan.extents, plan.counts
        constants = _constants(q, v, plan)
        with torch.cuda.device_of(q):
            if dq.numel():
                kernels.dq_kernel[_grid(plan, q, "BLOCK_M", plan.longest_q)](
                    q, k, v, out, lse, delta, do, dq, *layout, *_strides(q, k, v, out, do, dq), *sizes,
                    **constants)  # fmt: skip
            if dk.numel():
                kernels.dkv_kernel[_grid(plan, q, "BLOCK_N", plan.longest_k)](
                    q, k, v, lse, delta, do, dk, dv, *layout, *_strides(q, k, v, do, dk, dv), *sizes,
                    **constants)  # fmt: skip
        return dq, dk, dv, None


def _kernels() -> Any:
    """The two kernel files, which import Triton, as one namespace."""
    from types import SimpleNamespace

    if interpreted():
        _mend_interpreter()
    from polysense.kernels.attention.triton_backward import dkv_kernel, dq_kernel
    from polysense.kernels.attention.triton_forward import forward_kernel

    return SimpleNamespace(forward_kernel=forward_kernel, dq_kernel=dq_kernel, dkv_kernel=dkv_kernel)


@lru_cache(maxsize=1)
def _mend_interpreter() -> None:
    """In Triton 3.6's interpreter bounds of loops are arrays of one number; NumPy 2.4 makes no `int` of those."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def mended(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = mended


def _grid(plan: _Plan, q: Tensor, block: str, tokens: int) -> Any:
    """One program for each block of each head of each sequence, on the one axis that has no limit of 65,535."""
    return lambda meta: (-(-tokens // meta[block]) * plan.sequences * q.shape[1],)


def _constants(q: Tensor, v: Tensor, plan: _Plan) -> dict[str, Any]:
    d, e = q.shape[-1], v.shape[-1]
    return {
        "size": _power_of_2(plan.longest_q), "D": d, "E": e,
        # A tensor core multiplies at least 16 wide.
        "BLOCK_D": max(16, _power_of_2(d)), "BLOCK_E": max(16, _power_of_2(e)),
        "SIGMOID": plan.sigmoid, "CAUSAL": plan.causal, "WINDOWED": plan.window is not None,
        "MASKED": plan.mask is not None, "PACKED": plan.starts is not None, "PRECISION": _precision(),
    }  # fmt: skip


def _precision() -> str:
    """How float32 is multiplied: as exactly as torch's own products are asked to be; half types do not look at it."""
    if torch.version.hip is not None:
        return "ieee"
    if torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "tf32x3"  # three products of the tensor cores, nearly float32; exact ones spill registers at every tile size


def _power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _rows(x: Tensor) -> Tensor:
    """Kernels take any strides but that of the width."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor | None) -> list[tuple[int, ...]]:
    return [(0, 0, 0) if x is None else x.stride()[:3] for x in tensors]


def _room(shape: Any, like: Tensor, zero: bool = False) -> Tensor:
    """(b, h, n, w), in memory (b, n, h, w): merging the heads afterwards copies nothing."""
    b, h, n, w = shape
    make = torch.zeros if zero else torch.empty
    return make(b, n, h, w, dtype=like.dtype, device=like.device).transpose(1, 2)

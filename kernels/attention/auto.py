"""Which backend "auto" tries first: a small table of what was measured, read from the top.

Figures are ratios of interleaved medians taken side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from polysense.kernels.attention.call import Call


def tracing() -> bool:
    """Inside `torch.compile`, `torch.export` or a trace: choices by shape would be frozen into the graph."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _narrow(call: Call) -> bool:
    """The window is well below the length of the sequence that a token lies in, on average over tokens."""
    if call.window is None:
        return False
    if call.lengths is None:
        length = float(call.q.shape[2])
    else:
        length = sum(n * n for n in call.lengths) / max(sum(call.lengths), 1)
    return length >= 4 * call.window + 64


def _packed(call: Call) -> bool:
    return call.lengths is not None


def _cuda(call: Call) -> bool:
    return call.q.device.type == "cuda"


# (kind, backend, when). The first row that holds and whose backend does not refuse the call is taken.
# CPU, one thread, float32, 6 heads of 64, forward, time of sdpa with a mask / time of blocked, by tokens and window:
# 1024: ±16 8.5, ±64 4.7, ±128 3.1, ±256 1.7; 4096: ±64 26; 256: ±32 1.2; 196: ±16 1.4, ±64 0.8. Against sdpa without a
# window, which need not read a mask: 6.6, 3.8, 2.4, 1.4; 16; 1.1; 1.5, 0.8. So blocked wins from 4 w + 64 tokens on.
# CUDA: unmeasured here. flash, torch's own kernel for packed half values, computes no padding and no hidden block.
_ROWS: list[tuple[str, str, Callable[[Call], bool]]] = [
    ("softmax", "flash", lambda call: _cuda(call) and _packed(call)),
    ("softmax", "blocked", _narrow),
    ("softmax", "packed", _packed),
    # Never slower than the reference where both run, and the one that exporters know.
    ("softmax", "sdpa", lambda call: not _packed(call)),
    # Time of the reference / of chunked: 196 tokens 3.3, 1024 1.8, 2048 2.7; sdpa softmax takes 0.5 to 0.7 of chunked.
    ("sigmoid", "chunked", lambda call: True),
]


# In a graph that must hold for other sizes: no loop over blocks or chunks, whose number would be frozen into it.
_TRACED = {"softmax": "sdpa", "sigmoid": "reference"}


def order(kind: str, call: Call, backends: Sequence[str]) -> list[str]:
    """Backends to try, best first; what no row names comes after, the reference last."""
    if tracing() and kind in _TRACED:
        first = [_TRACED[kind]]
    else:
        first = [backend for known, backend, when in _ROWS if known == kind and when(call)]
    rest = [backend for backend in backends if backend != "reference"]
    return list(dict.fromkeys([*first, *rest, "reference"]))

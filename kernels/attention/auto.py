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


# (kind, backend, when). The first row that holds and whose backend does not refuse the call is taken.
_ROWS: list[tuple[str, str, Callable[[Call], bool]]] = [
    # Never slower than the reference where both run, and the one that exporters know.
    ("softmax", "sdpa", lambda call: True),
]


def order(kind: str, call: Call, backends: Sequence[str]) -> list[str]:
    """Backends to try, best first; what no row names comes after, the reference last."""
    if tracing() and "sdpa" in backends:
        first = ["sdpa"]
    else:
        first = [backend for known, backend, when in _ROWS if known == kind and when(call)]
    rest = [backend for backend in backends if backend != "reference"]
    return list(dict.fromkeys([*first, *rest, "reference"]))

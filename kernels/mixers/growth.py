"""How the time of each mixer and attention kind grows with the number of tokens: evidence for, or against, O(n).

    rows = measure(["linear", "kind:linear"], LENGTHS)    # the mixer with its projections, the kind alone
    slope(rows, "linear", least=4096)                     # of log time over log tokens: 1 is linear, 2 is quadratic

Shape legend: b batch, n tokens, d width, h heads, e head width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polysense.kernels.attention import attention, available_kinds
from polysense.kernels.attention.urpe import Toeplitz
from polysense.kernels.mixers import MIXERS

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
QUADRATIC = ("attention", "urpe", "kind:softmax", "kind:sigmoid", "kind:urpe")  # all others O(n), hyena O(n log n)
REACH = 256  # of the Toeplitz row of "kind:urpe"


def growth_names() -> list[str]:
    """What `measure` knows: every mixer, and every attention kind as "kind:NAME"."""
    return [*MIXERS, *(f"kind:{kind}" for kind in available_kinds())]


def measure(
    names: Iterable[str],
    lengths: Sequence[int] = LENGTHS,
    *,
    width: int = 192,
    heads: int = 3,
    repeats: int = 3,
    longest: Mapping[str, int] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Times forward passes over one sequence without a mask, float32.

    Lengths are measured in turn, `repeats` times over, so that a neighbour on the machine disturbs all alike.

    Args:
        names: Of `growth_names()`.
        lengths: Numbers of tokens.
        width: Of a token.
        heads: Of all that have heads.
        repeats: Of every measurement; medians are returned.
        longest: Lengths above which a name is left out, for those that cost too much.
        options: Of mixers by name; of kinds, arguments of `attention` ({"kind:softmax": {"window": 64}}).
        device: Where to run.

    Returns:
        A row {"name", "tokens", "seconds"} for each name and length, in that order.

    Raises:
        ValueError: There is no such name.
    """
    longest, options = longest or {}, options or {}
    rows = []
    for name in names:
        run = _runner(name, width, heads, options.get(name, {}), device)
        fitting = [n for n in lengths if n <= longest.get(name, max(lengths))]
        if fitting:
            _seconds(run, fitting[0], width, device)  # the first call of all pays for threads and plans
        times: dict[int, list[float]] = {n: [] for n in fitting}
        for _ in range(repeats):
            for n in fitting:
                times[n].append(_seconds(run, n, width, device))
        rows += [{"name": name, "tokens": n, "seconds": median(times[n])} for n in fitting]
    return rows


def slope(rows: Sequence[Mapping[str, Any]], name: str, *, least: int = 0) -> float:
    """The exponent p of time ~ tokensᵖ, by least squares of the logarithms.

    Args:
        rows: Of `measure`.
        name: Whose rows.
        least: Tokens below which fixed costs hide the growth; such rows are left out.

    Raises:
        ValueError: Fewer than two lengths are left.
    """
    points = [(math.log(row["tokens"]), math.log(row["seconds"])) for row in rows if row["name"] == name]
    points = [(n, seconds) for n, seconds in points if n >= math.log(max(least, 1))]
    if len({n for n, _ in points}) < 2:
        raise ValueError(f"a slope needs times of {name} at two lengths or more from {least} tokens on")
    n, seconds = zip(*points)
    return float(np.polyfit(n, seconds, 1)[0])


def _runner(name: str, width: int, heads: int, options: Mapping[str, Any], device: str) -> Callable[[Tensor], Tensor]:
    """A function of tokens (1, n, d)."""
    if not name.startswith("kind:"):
        return MIXERS[name](width, heads, **options).eval().to(device)
    kind = name.removeprefix("kind:")
    extra = {"toeplitz": Toeplitz(heads, REACH).to(device)()} if kind == "urpe" else {}

    def attend(x: Tensor) -> Tensor:
        q = x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (1, h, n, e)
        return attention(q, q, q, kind=kind, extra=extra, **options)

    return attend


@torch.inference_mode()
def _seconds(run: Callable[[Tensor], Tensor], n: int, width: int, device: str) -> float:
    x = torch.randn(1, n, width, device=device)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(x)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start

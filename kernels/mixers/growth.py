"""How the time of each mixer grows with the number of tokens: evidence for, or against, O(n).

    rows = measure(sorted(MIXERS), LENGTHS)
    slope(rows, "linear", least=4096)    # of log time over log tokens: 1 is linear, 2 is quadratic

Shape legend: b batch, n tokens, d width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from polysense.kernels.mixers import MIXERS, Mixer

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
QUADRATIC = ("attention", "urpe")  # of MIXERS; the others cost O(n), Hyena O(n log n)


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
    """Times the forward pass of mixers without a mask, one sequence (1, n, d), float32.

    Lengths are measured in turn, `repeats` times over, so that a neighbour on the machine disturbs all alike.

    Args:
        names: In `MIXERS`.
        lengths: Numbers of tokens.
        width: Of a token.
        heads: Of the mixers that have heads.
        repeats: Of every measurement; medians are returned.
        longest: Lengths above which a mixer is left out, by name, for those that cost too much.
        options: Of the mixers, by name.
        device: Where to run.

    Returns:
        A row {"name", "tokens", "seconds"} for each mixer and length, in that order.
    """
    names, longest, options = list(names), longest or {}, options or {}
    rows = []
    for name in names:
        mixer = MIXERS[name](width, heads, **options.get(name, {})).eval().to(device)
        fitting = [n for n in lengths if n <= longest.get(name, max(lengths))]
        for n in fitting[:1]:
            _seconds(mixer, n, device)  # the first call of all pays for threads and plans
        times: dict[int, list[float]] = {n: [] for n in fitting}
        for _ in range(repeats):
            for n in fitting:
                times[n].append(_seconds(mixer, n, device))
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


@torch.inference_mode()
def _seconds(mixer: Mixer, n: int, device: str) -> float:
    x = torch.randn(1, n, mixer.width, device=device)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    mixer(x)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start

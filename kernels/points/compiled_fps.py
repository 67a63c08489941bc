"""Farthest point sampling that looks only at points a new sample can be nearest to (QuickFPS; Han et al. 2023).

Points lie in buckets, the leaves of a k-d tree. A sample that is farther from a bucket's box than every point of the
bucket is from its nearest sample changes nothing there, and most samples change few buckets: n log k work, not n k.
Importing this file imports Numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from polysense.kernels.points.compiled_tree import build, jit

BUCKETS = 512  # or a little more: each step looks at every box, so that many small buckets cost more than they save
SMALLEST = 64  # points of a bucket; below, looking at the box costs as much as looking at the points


def farthest_point_sampling(xyz: Float[np.ndarray, "n 3"], k: int, start: int) -> Int[np.ndarray, " k"]:
    """As the reference, point for point."""
    tree = build(xyz, max(len(xyz) // BUCKETS, SMALLEST))
    leaves = tree.child < 0
    lo, hi, box = tree.first[leaves], tree.last[leaves], np.ascontiguousarray(tree.box[leaves].T)
    place = np.empty(len(xyz), np.int64)
    place[tree.order] = np.arange(len(xyz))
    nearest = np.full(len(xyz), np.inf, xyz.dtype)  # squared distance to the nearest sample
    most = np.full(len(lo), np.inf, xyz.dtype)  # of a bucket's nearest distances
    which = np.zeros(len(lo), np.int64)  # the lowest index that has it
    chosen = np.empty(k, np.int64)
    chosen[0] = start
    _sample(*tree.axes, tree.order, place, lo, hi, box, nearest, most, which, np.empty_like(most), chosen,
            xyz.dtype.type(0), xyz.dtype.type(-1))  # fmt: skip
    return chosen


@jit
def _sample(
    x: Any, y: Any, z: Any, order: Any, place: Any, lo: Any, hi: Any, box: Any,
    nearest: Any, most: Any, which: Any, bound: Any, chosen: Any, zero: Any, taken: Any,
) -> None:  # fmt: skip
    """Fills in `chosen` after its first. `taken` (-1) and `zero` set the type of all arithmetic."""
    for i in range(len(chosen) - 1):
        at = place[chosen[i]]
        px, py, pz = x[at], y[at], z[at]
        nearest[at] = taken  # below every distance, so that duplicates do not bring it back
        for b in range(len(lo)):
            dx = max(max(box[0, b] - px, px - box[1, b]), zero)
            dy = max(max(box[2, b] - py, py - box[3, b]), zero)
            dz = max(max(box[4, b] - pz, pz - box[5, b]), zero)
            bound[b] = dx * dx + dy * dy + dz * dz
        for b in range(len(lo)):
            # Bound zero: this bucket may hold the sample, which is no longer on offer.
            if bound[b] < most[b] or bound[b] == zero:
                best = taken
                for j in range(lo[b], hi[b]):
                    dx, dy, dz = x[j] - px, y[j] - py, z[j] - pz
                    nearest[j] = min(nearest[j], dx * dx + dy * dy + dz * dz)
                    best = max(best, nearest[j])
                most[b], which[b] = best, _lowest(nearest, order, lo[b], hi[b], best)
        best = taken
        for b in range(len(lo)):
            best = max(best, most[b])
        chosen[i + 1] = _lowest(most, which, 0, len(lo), best)


@jit
def _lowest(values: Any, indices: Any, lo: int, hi: int, wanted: Any) -> int:
    """The lowest of the indices at which the value stands."""
    found = 1 << 62
    for j in range(lo, hi):
        if values[j] == wanted and indices[j] < found:
            found = indices[j]
    return found

"""A k-d tree over points, built by compiled code (Numba): what `compiled_fps` and `compiled_neighbours` search in.

Importing this file imports Numba; the api does so only where a compiled backend runs. Compiled code is kept on disk
beside this file (or in the user's cache folder), so that only the first call ever waits for the compiler.

Arithmetic is exactly that of the reference: coordinate differences, squares, sums from left to right, without fused
or reordered operations. `LAX` only lets the compiler assume that no NaN occurs, which the api has checked, and that
the sign of a zero does not matter; minima and maxima become vector instructions by it.

A bound on the distance to a box is computed by the same operations as a distance to a point. Rounding is monotone, so
the bound never exceeds the computed distance of a point inside, and pruning by it changes no answer, ties included.

Compiled functions get arrays and loop over them, nothing more: NumPy's functions run here too, but the compiler takes
seconds for each.

Shape legend: n points, m nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from jaxtyping import Float, Int

LAX = {"nnan", "nsz"}


def jit(function: Any) -> Any:
    """Compiles on the first call for each float type, and remembers on disk where the disk can be written to."""
    try:
        return numba.njit(function, cache=True, fastmath=LAX, nogil=True)
    except RuntimeError:  # "no locator available": neither this folder nor the user's cache can be written to
        return numba.njit(function, fastmath=LAX, nogil=True)


@dataclass(frozen=True, slots=True)
class Tree:
    """Points leaf by leaf, and the boxes around them."""

    axes: tuple[Float[np.ndarray, " n"], ...]  # coordinates x, y, z in the order of the leaves
    order: Int[np.ndarray, " n"]  # the index that each point had
    first: Int[np.ndarray, " m"]  # range of a node's points: from
    last: Int[np.ndarray, " m"]  # to, exclusive
    child: Int[np.ndarray, " m"]  # the first of a node's two children, which stand side by side; -1 at a leaf
    box: Float[np.ndarray, "m 6"]  # x from, x to, y from, y to, z from, z to


def build(xyz: Float[np.ndarray, "n 3"], leaf: int) -> Tree:
    """A tree whose leaves hold at most `leaf` points, or points that are all the same."""
    n = len(xyz)
    x, y, z = (xyz[:, i].copy() for i in range(3))
    order = np.arange(n)
    # Room for the worst case, one point a leaf; pages that are not written to cost nothing.
    first, last, child = (np.empty(2 * n, np.int64) for _ in range(3))
    box = np.empty((2 * n, 6), xyz.dtype)
    m = _build(x, y, z, order, leaf, first, last, child, box)
    return Tree((x, y, z), order, first[:m].copy(), last[:m].copy(), child[:m].copy(), box[:m].copy())


@jit
def _build(x: Any, y: Any, z: Any, order: Any, leaf: int, first: Any, last: Any, child: Any, box: Any) -> int:
    """Fills in the nodes, breadth first, and returns how many there are."""
    first[0], last[0], count, node = 0, len(x), 1, 0
    while node < count:
        lo, hi = first[node], last[node]
        x0 = x1 = x[lo]
        y0 = y1 = y[lo]
        z0 = z1 = z[lo]
        for j in range(lo, hi):
            x0, x1 = min(x0, x[j]), max(x1, x[j])
            y0, y1 = min(y0, y[j]), max(y1, y[j])
            z0, z1 = min(z0, z[j]), max(z1, z[j])
        box[node, 0], box[node, 1], box[node, 2] = x0, x1, y0
        box[node, 3], box[node, 4], box[node, 5] = y1, z0, z1
        child[node] = -1
        widest = max(x1 - x0, y1 - y0, z1 - z0)
        if hi - lo > leaf and widest > 0:
            along, low, high = z, z0, z1
            if y1 - y0 == widest:
                along, low, high = y, y0, y1
            if x1 - x0 == widest:
                along, low, high = x, x0, x1
            pivot = _middle(along, lo, hi)
            if pivot == low:  # the least value, many times: those against the rest, which is not empty
                pivot = high
                for j in range(lo, hi):
                    if along[j] > low and along[j] < pivot:
                        pivot = along[j]
            child[node] = count
            first[count], last[count + 1] = lo, hi
            first[count + 1] = last[count] = _partition(x, y, z, order, along, lo, hi, pivot)
            count += 2
        node += 1
    return count


@jit
def _middle(values: Any, lo: int, hi: int) -> Any:
    """A median of medians of nine values spread over the range: near enough to halve it, at no pass over the points."""
    step = (hi - lo) // 9
    a, b, c = lo, lo + 3 * step, lo + 6 * step
    return _median(
        _median(values[a], values[a + step], values[a + 2 * step]),
        _median(values[b], values[b + step], values[b + 2 * step]),
        _median(values[c], values[c + step], values[c + 2 * step]),
    )


@jit
def _median(a: Any, b: Any, c: Any) -> Any:
    return max(min(a, b), min(max(a, b), c))


@jit
def _partition(x: Any, y: Any, z: Any, order: Any, along: Any, lo: int, hi: int, pivot: Any) -> int:
    """Moves the points below the pivot to the front, without a branch that the processor would guess wrongly."""
    at = lo
    for j in range(lo, hi):
        below = along[j] < pivot
        x[at], x[j] = x[j], x[at]
        y[at], y[j] = y[j], y[at]
        z[at], z[j] = z[j], z[at]
        order[at], order[j] = order[j], order[at]
        at += below
    return at

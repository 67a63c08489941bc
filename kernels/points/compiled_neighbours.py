"""Nearest neighbours in a k-d tree, with ties broken as the reference breaks them. Importing this imports Numba.

Shape legend: n points, q queries, k chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from polysense.kernels.points.compiled_tree import build, jit

LEAF = 32  # points; the fastest of 16 to 128 at 32 neighbours


def knn(
    queries: Float[np.ndarray, "q 3"], points: Float[np.ndarray, "n 3"], k: int
) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """As the reference, index for index: nearest first, the lowest index among equals."""
    tree = build(points, LEAF)
    indices, distances = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), points.dtype)
    kind, room = points.dtype.type, len(tree.child) + 1  # more nodes never wait; what is not written to costs nothing
    _search(*tree.axes, tree.order, tree.first, tree.last, tree.child, tree.box, queries, indices, distances,
            np.empty(room, np.int64), np.empty(room, points.dtype), kind(np.inf), kind(0))  # fmt: skip
    return indices, distances


@jit
def _search(
    x: Any, y: Any, z: Any, order: Any, first: Any, last: Any, child: Any, box: Any, queries: Any, indices: Any,
    distances: Any, nodes: Any, bounds: Any, infinite: Any, zero: Any,
) -> None:  # fmt: skip
    """Depth first, the nearer child first; a node beyond the k-th distance so far is passed over."""
    k = indices.shape[1]
    for i in range(len(queries)):
        px, py, pz = queries[i, 0], queries[i, 1], queries[i, 2]
        found, worst, waiting = 0, infinite, 1
        nodes[0], bounds[0] = 0, _bound(box, 0, px, py, pz, zero)
        while waiting > 0:
            waiting -= 1
            node = nodes[waiting]
            if bounds[waiting] > worst:  # at equal distance a lower index may be inside
                continue
            down = child[node]
            if down >= 0:
                near, far = _bound(box, down, px, py, pz, zero), _bound(box, down + 1, px, py, pz, zero)
                swap = far < near
                nodes[waiting], bounds[waiting] = down + 1 - swap, max(near, far)
                nodes[waiting + 1], bounds[waiting + 1] = down + swap, min(near, far)
                waiting += 2
                continue
            for j in range(first[node], last[node]):
                dx, dy, dz = x[j] - px, y[j] - py, z[j] - pz
                d = dx * dx + dy * dy + dz * dz
                if found < k or d <= worst:
                    found = _insert(indices[i], distances[i], found, k, order[j], d)
                    if found == k:
                        worst = distances[i, k - 1]


@jit
def _bound(box: Any, node: int, px: Any, py: Any, pz: Any, zero: Any) -> Any:
    """Squared distance to a box, never more than the computed one to a point inside."""
    dx = max(max(box[node, 0] - px, px - box[node, 1]), zero)
    dy = max(max(box[node, 2] - py, py - box[node, 3]), zero)
    dz = max(max(box[node, 4] - pz, pz - box[node, 5]), zero)
    return dx * dx + dy * dy + dz * dz


@jit
def _insert(indices: Any, distances: Any, found: int, k: int, index: int, d: Any) -> int:
    """Puts a point into its place in the sorted row, the last one falling out where k are there already."""
    at = found
    if found == k:
        if d == distances[k - 1] and index > indices[k - 1]:
            return found
        at = k - 1
    while at > 0 and (distances[at - 1] > d or (distances[at - 1] == d and indices[at - 1] > index)):
        distances[at], indices[at] = distances[at - 1], indices[at - 1]
        at -= 1
    distances[at], indices[at] = d, index
    return min(found + 1, k)

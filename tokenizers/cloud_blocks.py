"""Large clouds in blocks, each of which gets tokens of its own.

Shape legend: n points, m points of a block, p of a block with its surroundings.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

OVERLAP = 0.15  # how far a block sees beyond itself, as a share of its longest side


def halved(xyz: Float[np.ndarray, "n 3"], most: int) -> list[Int[np.ndarray, " m"]]:
    """Cuts a cloud at the median of its longest side, and the halves again, until no block has more than `most` points.

    Blocks hold nearly equal numbers of points: dense parts are cut finer, and the memory for each is bounded.

    Returns:
        The points of each block, by number; every point is in one.
    """
    waiting, done = [np.arange(len(xyz), dtype=np.int32 if len(xyz) < 2**31 else np.int64)], []
    while waiting:
        own = waiting.pop()
        if len(own) <= most:
            done.append(own)
            continue
        part = xyz[own]
        order = np.argpartition(part[:, np.ptp(part, 0).argmax()], len(own) // 2)
        waiting += [own[order[len(own) // 2 :]], own[order[: len(own) // 2]]]
    return done


def surrounded(xyz: Float[np.ndarray, "n 3"], blocks: list[Int[np.ndarray, " m"]]) -> Iterator[Int[np.ndarray, " p"]]:
    """Each block's points, and after them those of its neighbours that lie within `OVERLAP` of its box."""
    low = np.array([xyz[own].min(0) for own in blocks])
    high = np.array([xyz[own].max(0) for own in blocks])
    for i, own in enumerate(blocks):
        reach = OVERLAP * (high[i] - low[i]).max()
        begin, end = low[i] - reach, high[i] + reach
        near = np.flatnonzero(((low <= end) & (high >= begin)).all(1))
        beside = [blocks[j][((xyz[blocks[j]] >= begin) & (xyz[blocks[j]] <= end)).all(1)] for j in near if j != i]
        yield np.concatenate([own, *beside])

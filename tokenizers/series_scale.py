"""What a series is measured by before it becomes tokens: its own level, or that of the training data.

Shape legend: t steps, c variates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

CONSTANT = 1e-9  # deviation, relative to the largest value, below which a series counts as constant


def normalise(
    history: Float[np.ndarray, "t c"], center: str, mean: Sequence[float] = (), spread: Sequence[float] = ()
) -> tuple[Float[np.ndarray, "t c"], Float[np.ndarray, "t c"], Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Instance normalisation over what is observed; or, for center "data", by the training data's `mean` and `spread`.

    Returns:
        Values (history - loc) / scale in float32 with zeros where missing; what is observed as 0 and 1; loc, the mean
        or the last observed value; scale, the standard deviation, 1 for constant variates. Both float64; a variate of
        which nothing is observed has loc 0.
    """
    seen = np.isfinite(history)
    if center == "data":
        loc = np.array(mean or [0.0] * history.shape[1])
        scale = np.array(spread or [1.0] * history.shape[1])
    else:
        loc, scale = _own_level(history, seen, center)
    values = np.where(seen, (np.where(seen, history, 0) - loc) / scale, 0).astype(np.float32)
    return values, seen.astype(np.float32), loc, scale


def _own_level(
    history: Float[np.ndarray, "t c"], seen: Bool[np.ndarray, "t c"], center: str
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Location and scale of each variate of one series."""
    count = np.maximum(seen.sum(0), 1)
    # In units of the largest value, so that squares neither overflow nor vanish.
    largest = np.abs(np.where(seen, history, 0)).max(0)
    unit = np.where(largest > 0, largest, 1)
    known = np.where(seen, history, 0) / unit
    middle = known.sum(0) / count
    deviation = np.sqrt((np.where(seen, known - middle, 0) ** 2).sum(0) / count)
    scale = np.where(deviation > CONSTANT, deviation * unit, 1.0)
    if center == "last":
        newest = len(history) - 1 - np.argmax(seen[::-1], 0)
        return known[newest, np.arange(history.shape[1])] * unit, scale
    return middle * unit, scale

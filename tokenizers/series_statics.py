"""Features of a series as a whole, which become one token: numbers standardised over the training series, words as
places of their own.

Shape legend: s features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from polysense.core.errors import InputError
from polysense.data.time_series import SeriesFrame

MOST_WORDS = 32  # of a feature that get a place of their own, the most frequent


@dataclass(frozen=True)
class Statics:
    """The features as training saw them; plain values, for JSON."""

    numbers: tuple[tuple[str, float, float], ...] = ()  # name, mean and deviation over the training series
    words: tuple[tuple[str, tuple[str, ...]], ...] = ()  # name and the words that have a place of their own

    def __post_init__(self) -> None:
        numbers = tuple((str(name), float(mean), float(std)) for name, mean, std in self.numbers)
        object.__setattr__(self, "numbers", numbers)
        object.__setattr__(self, "words", tuple((str(name), tuple(words)) for name, words in self.words))

    @property
    def size(self) -> int:
        return len(self.numbers) + sum(len(words) for _, words in self.words)

    def encode(self, static: dict[str, Any]) -> Float[np.ndarray, " s"]:
        """Standardised numbers and one place for each word; zeros where a feature is missing or unseen."""
        places = [(float(static[name]) - mean) / std if _is_number(static.get(name)) else 0.0
                  for name, mean, std in self.numbers]  # fmt: skip
        for name, words in self.words:
            places += [float(str(static.get(name)) == word) for word in words]
        return np.array(places, np.float32)


def fit_statics(frames: Sequence[SeriesFrame], columns: Sequence[str]) -> Statics:
    """Learns what the static features of the training series are.

    Raises:
        InputError: There is one series, or all agree in a feature: nothing can be learnt of it.
    """
    numbers, words = [], []
    for column in columns:
        values = [frame.static[column] for frame in frames if column in frame.static]
        if len(set(values)) < 2:
            raise InputError(frames[0].source, f"the static feature {column!r} is the same in all training series",
                             "leave it out, or give a folder of series or a long table with --series")  # fmt: skip
        if all(_is_number(value) for value in values):
            known = np.array(values, np.float64)
            numbers.append((column, float(known.mean()), float(known.std())))
        else:
            texts = [str(value) for value in values]
            frequent = sorted(set(texts), key=lambda word: (-texts.count(word), word))[:MOST_WORDS]
            words.append((column, tuple(frequent)))
    return Statics(tuple(numbers), tuple(words))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)

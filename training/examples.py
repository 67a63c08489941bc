"""Examples: what training and evaluation iterate over, decoded lazily or at once, whatever the modality.

An example is one input with its target; it may be several sequences (windows of a recording, variates of a series).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from polysense.core.types import Sample
from polysense.data.dataset import Item
from polysense.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    import pandas as pd

    from polysense.data.time_series import SeriesFrame
    from polysense.tokenizers.time_series import TimeSeriesTokenizer
    from polysense.training.feature_cache import FeatureCache

MOST_VARIATES = 32  # of a window that are learnt from at a time
TOGETHER = 1024  # sequences of windows that the encoder reads together, about
CACHE_BYTES = 4 * 2**30  # decoded samples kept in memory, at most
DRAWN = 8  # blocks of a large cloud that learning draws at a time: they are many, and such clouds are few


class Examples(Protocol):
    """Indexable examples."""

    def __len__(self) -> int: ...

    def train(self, i: int, rng: np.random.Generator) -> list[tuple[Sample, Any]]:
        """Sequences to learn from, with targets; random choices (window, augmentation) come from `rng`."""

    def whole(self, i: int) -> tuple[list[Sample], Any]:
        """All sequences of the example, unaltered, and its target."""


class FileExamples:
    """Items read by the tokenizer; decoded samples stay in memory while they fit.

    Args:
        items: What to read.
        tokenizer: Reads it.
        modality: Of the items.
        augment: Vary what is learnt from.
        extras: Names in `training.scenes.EXTRAS` of what augmentation does beside the usual.
    """

    def __init__(
        self,
        items: Sequence[Item],
        tokenizer: Tokenizer,
        modality: str,
        augment: bool = False,
        extras: Sequence[str] = (),
    ) -> None:
        self.items, self.tokenizer, self.modality, self.augment = list(items), tokenizer, modality, augment
        self.extras = tuple(extras)
        self.features: FeatureCache | None = None  # where a fit keeps what the encoder makes of them
        self._contents: list[bytes | None] = []
        self._cache: dict[int, list[Sample]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.items)

    def train(self, i: int, rng: np.random.Generator) -> list[tuple[Sample, Any]]:
        item = self.items[i]
        if not self.augment:
            return [(part, item.target) for part in drawn(self._parts(i), rng)]
        value, target = self._varied(i, rng)
        sample = self.tokenizer.read(value)
        if isinstance(item.source, str | Path):
            sample = replace(sample, source=str(item.source))
        return [(part, target) for part in drawn(self.tokenizer.split(sample), rng)]

    def _varied(self, i: int, rng: np.random.Generator) -> tuple[Any, Any]:
        if "mosaic" in self.extras:
            from polysense.training.scenes import MOSAIC, mosaic

            if rng.random() < MOSAIC:
                chosen = [i, *rng.integers(len(self), size=3).tolist()]
                return mosaic([varied(self.modality, self.items[j], rng, self.extras) for j in chosen], rng)
        return varied(self.modality, self.items[i], rng, self.extras)

    def whole(self, i: int) -> tuple[list[Sample], Any]:
        return self._parts(i), self.items[i].target

    def contents(self, again: bool = False) -> list[bytes | None]:
        """A hash of what each input holds, None where it has none; files are read once, or `again`."""
        from polysense.training.feature_cache import content_hash

        if again or not self._contents:
            self._contents = [content_hash(item.source) for item in self.items]
        return self._contents

    def _parts(self, i: int) -> list[Sample]:
        if i in self._cache:
            return self._cache[i]
        parts = self.tokenizer.split(self.tokenizer.read(self.items[i].source))
        size = sum(value.nbytes for part in parts for value in part.data.values())
        if self._bytes + size <= CACHE_BYTES:
            self._cache[i] = parts
            self._bytes += size
        return parts


def drawn(parts: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """One sequence of an example at random, or `DRAWN` blocks of a cloud."""
    if "own" not in parts[0].meta:
        return [parts[int(rng.integers(len(parts)))]]
    return [parts[i] for i in rng.choice(len(parts), min(DRAWN, len(parts)), replace=False)]


def varied(modality: str, item: Item, rng: np.random.Generator, extras: Sequence[str] = ()) -> tuple[Any, Any]:
    """An item's input, decoded and augmented, in a form that the tokenizer reads; and its target."""
    from polysense.training.augment import augment

    if modality == "image":
        from polysense.data.image import read_image

        return augment(modality, read_image(item.source), item.target, rng, extras)
    if modality == "audio":
        from polysense.data.audio import read_audio

        recording = read_audio(item.source)
        return augment(modality, (recording.wave, recording.rate), item.target, rng, extras)
    if modality == "point_cloud":
        from polysense.data.point_cloud import read_cloud

        cloud = read_cloud(item.source)
        xyz, target = augment(modality, cloud.xyz, item.target, rng, extras)
        return replace(cloud, xyz=xyz), target
    if modality == "time_series":
        from polysense.data.time_series import read_series

        frame = read_series(item.source)
        values, target = augment(modality, frame.values, item.target, rng, extras)
        return replace(frame, values=values), target
    return item.source, item.target


class TableExamples:
    """Rows of a table, encoded at once; the target is a column (or several)."""

    def __init__(self, frame: pd.DataFrame, targets: Sequence[Any], tokenizer: Tokenizer) -> None:
        self.frame = frame  # as it was read, without the targets
        self.samples = list(tokenizer.read_all(frame))
        self.targets = list(targets)

    def __len__(self) -> int:
        return len(self.samples)

    def train(self, i: int, rng: np.random.Generator) -> list[tuple[Sample, Any]]:
        return [(self.samples[i], self.targets[i])]

    def whole(self, i: int) -> tuple[list[Sample], Any]:
        return [self.samples[i]], self.targets[i]


class WindowExamples:
    """Windows of series: the history before `end` is the input, the `horizon` steps from there the target.

    Args:
        frames: Series to cut windows from.
        ends: For each frame the rows at which windows end, in order: ranges cost no memory, however long.
        tokenizer: Gives the sample of a window.
        horizon: Steps to forecast.
    """

    def __init__(
        self,
        frames: Sequence[SeriesFrame],
        ends: Sequence[Sequence[int]],
        tokenizer: TimeSeriesTokenizer,
        horizon: int,
    ) -> None:
        self.frames, self.ends, self.tokenizer, self.horizon = list(frames), list(ends), tokenizer, horizon
        self.counts = np.cumsum([len(rows) for rows in ends])

    def __len__(self) -> int:
        return int(self.counts[-1])

    def place(self, i: int) -> tuple[int, int]:
        """The frame of a window, and the row at which it ends."""
        f = int(np.searchsorted(self.counts, i, side="right"))
        return f, int(self.ends[f][i - int(self.counts[f])])  # counted from the end of the frame's

    def train(self, i: int, rng: np.random.Generator) -> list[tuple[Sample, Any]]:
        """A window's variates; of very many some at random, as all of a batch are in memory at once."""
        parts, target = self.whole(i)
        chosen = paired(parts, target)
        if len(chosen) > MOST_VARIATES:
            chosen = [chosen[c] for c in sorted(rng.choice(len(chosen), MOST_VARIATES, replace=False).tolist())]
        return chosen

    def whole(self, i: int) -> tuple[list[Sample], Any]:
        f, end = self.place(i)
        frame = self.frames[f]
        return self.tokenizer.split(self.tokenizer.window_sample(frame, end)), frame.values[end : end + self.horizon]


def paired(samples: Sequence[Sample], target: np.ndarray) -> list[tuple[Sample, Any]]:
    """The sequences of a window, each with the future of its variate; or of all, where one sequence reads them all."""
    if len(samples) < target.shape[1]:
        return [(samples[0], target)]
    return [(sample, target[:, c]) for c, sample in enumerate(samples)]


def window_batches(examples: Examples, batch_size: int) -> Iterator[list[tuple[Sample, Any]]]:
    """Every variate of every window with its target, `batch_size` windows at a time: fewer where they are wide."""
    pairs: list[tuple[Sample, Any]] = []
    windows = 0
    for i in range(len(examples)):
        samples, target = examples.whole(i)
        pairs += paired(samples, target)
        windows += 1
        if windows == batch_size or len(pairs) >= TOGETHER:
            yield pairs
            pairs, windows = [], 0
    if pairs:
        yield pairs


class Subset:
    """Some of the examples, by index."""

    def __init__(self, examples: Examples, indices: Sequence[int]) -> None:
        self.parent, self.indices = examples, list(indices)

    @classmethod
    def even(cls, examples: Examples, most: int) -> Examples:
        """All examples, or `most` of them spread evenly."""
        if len(examples) <= most:
            return examples
        return cls(examples, np.linspace(0, len(examples) - 1, most).round().astype(int).tolist())

    def __len__(self) -> int:
        return len(self.indices)

    def train(self, i: int, rng: np.random.Generator) -> list[tuple[Sample, Any]]:
        return self.parent.train(self.indices[i], rng)

    def whole(self, i: int) -> tuple[list[Sample], Any]:
        return self.parent.whole(self.indices[i])

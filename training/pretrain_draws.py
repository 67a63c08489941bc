"""Batches by number: each key (seed, step, batch, process) gives the same batch in any process, at any time.

Runs in loader workers; touches no parameter.

Shape legend: b inputs, h horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from polysense.core.errors import InputError
from polysense.core.types import Sample
from polysense.data.time_series import SeriesFrame
from polysense.tokenizers.base import Batch
from polysense.training.augment import augment
from polysense.training.pretrain_containers import Source
from polysense.training.pretrain_teachers import SoundTeacher
from polysense.training.synthetic import synthetic_series

TRIES = 20  # unreadable inputs in a row that end a training


class Draw(NamedTuple):
    """One batch. With two views of each input, all first views stand before all second ones."""

    batch: Batch
    source: Int[Tensor, " b"]  # which of the stream's sets
    label: Int[Tensor, " b"]  # -1: none
    unreadable: int = 0  # inputs that were passed over
    pictures: UInt8[Tensor, "b 3 s s"] | None = None  # as the image teacher wants them
    lesson: tuple[Tensor, Tensor] | None = None  # what the sound teacher said
    future: Float[Tensor, "b h"] | None = None  # normalised steps after a window; NaN where unknown


def shares(sizes: Sequence[int], given: Sequence[float | None], balance: float) -> Float[np.ndarray, " s"]:
    """How often each set is drawn: as given, or by size to the power `balance` (1 by size, 0 all alike)."""
    weights = [float(n) ** balance if share is None else share for n, share in zip(sizes, given, strict=True)]
    return np.array(weights) / sum(weights)


class SenseDraws(Dataset[Draw]):
    """Images, clips, sounds or clouds: drawn from several sets, read, varied, collated.

    Args:
        modality: As in `TASKS`.
        tokenizer: Reads and collates; a copy that nobody trains.
        sources: The sets.
        probabilities: Of each set.
        count: Inputs of a batch.
        vary: Whether to augment.
        views: 2 reads every input twice, varied differently.
        side: Pixels of the image teacher's pictures; 0 without one.
        teacher: The sound teacher.
    """

    def __init__(
        self,
        modality: str,
        tokenizer: Any,
        sources: Sequence[Source],
        probabilities: Float[np.ndarray, " s"],
        count: int,
        *,
        vary: bool = True,
        views: int = 1,
        side: int = 0,
        teacher: SoundTeacher | None = None,
    ) -> None:
        self.modality, self.tokenizer, self.sources = modality, tokenizer, list(sources)
        self.probabilities, self.count, self.vary, self.views = probabilities, count, vary, views
        self.side, self.teacher = side, teacher

    def __getitem__(self, key: tuple[int, ...]) -> Draw:
        rng = np.random.default_rng((*key, sum(self.modality.encode())))  # no two senses draw alike
        which = rng.choice(len(self.sources), size=self.count, p=self.probabilities)
        rows = np.zeros(self.count, np.int64)
        for s in np.unique(which):
            rows[which == s] = self.sources[s].draw(rng, int((which == s).sum()))
        read: list[list[tuple[Sample, Any]]] = []
        labels, unreadable = [], 0
        for s, row in zip(which.tolist(), rows.tolist(), strict=True):
            views, label, failed = self._readable(self.sources[s], row, rng)
            read.append(views)
            labels.append(label)
            unreadable += failed
        flat = [views[v] for v in range(self.views) for views in read]
        batch = self.tokenizer.collate([sample for sample, _ in flat])
        batch.pop("meta", None)  # whole clouds and the like: not to be sent between processes
        more = [one for _, one in flat]
        return Draw(
            batch,
            torch.from_numpy(np.tile(which, self.views)),
            torch.tensor(labels * self.views),
            unreadable,
            torch.stack(more) if self.side else None,
            (torch.from_numpy(np.stack([m[0] for m in more])), torch.from_numpy(np.stack([m[1] for m in more])))
            if self.teacher
            else None,
        )

    def _readable(self, source: Source, row: int, rng: np.random.Generator) -> tuple[list[Any], int, int]:
        """The views and the label of an input; another one of the same set where it cannot be read."""
        for failed in range(TRIES):
            try:
                value, label = source.get(row)
                return [self._view(value, rng) for _ in range(self.views)], label, failed
            except InputError as error:
                last = error
                row = source.draw(rng, 1)[0]
        problem = f"{TRIES} inputs in a row cannot be read (the last: {last.source}: {last.problem})"
        raise InputError(source.name, problem, "repair the data, or check the modality") from last

    def _view(self, value: Any, rng: np.random.Generator) -> tuple[Sample, Any]:
        """One input as a sample, and what the teacher needs of it."""
        if self.modality == "image":
            return self._picture(value, rng)
        if self.modality == "audio":
            return self._sound(value, rng)
        if self.modality == "point_cloud":
            from polysense.data.point_cloud import read_cloud

            cloud = read_cloud(value, sample=self.tokenizer.config.sample)
            if self.vary:
                cloud = replace(cloud, xyz=augment("point_cloud", cloud.xyz, None, rng)[0])
            return self.tokenizer.read(cloud), None
        return self.tokenizer.read(value), None

    def _picture(self, value: Any, rng: np.random.Generator) -> tuple[Sample, Any]:
        from polysense.data.image import read_image
        from polysense.tokenizers.image_grid import resize

        image = read_image(value, target=2 * self.tokenizer.config.size)
        if self.vary:
            image, _ = augment("image", image, None, rng)
        picture = resize(image, (self.side, self.side), "squash", "bilinear") if self.side else None
        return self.tokenizer.read(image), picture

    def _sound(self, value: Any, rng: np.random.Generator) -> tuple[Sample, Any]:
        """One window of the recording, anywhere in it; short ones are padded with silence, so that all are equal."""
        from polysense.data.audio import read_audio
        from polysense.tokenizers.audio_features import RATE

        wave = read_audio(value, RATE).wave
        size = round(self.tokenizer.config.window * RATE)
        start = int(rng.integers(max(len(wave) - size, 0) + 1))
        wave = wave[start : start + size]
        wave = np.pad(wave, (0, size - len(wave)))
        if self.vary:
            wave = augment("audio", wave, None, rng)[0]
        wave = np.ascontiguousarray(wave, np.float32)
        return self.tokenizer.read((wave, RATE)), self.teacher(wave) if self.teacher else None


class SeriesDraws(Dataset[Draw]):
    """Windows of one variate, of 64 to `context` steps, and the steps after them.

    Args:
        tokenizer: Of series, one variate a sequence.
        sets: Series of each set; None stands for generated ones (`synthetic_series`).
        probabilities: Of each set.
        count: Windows of a batch.
        horizon: Steps after the window.
        vary: Whether to augment the window.
    """

    def __init__(
        self,
        tokenizer: Any,
        sets: Sequence[Sequence[SeriesFrame] | None],
        probabilities: Float[np.ndarray, " s"],
        count: int,
        horizon: int,
        vary: bool = True,
    ) -> None:
        self.tokenizer, self.sets, self.probabilities = tokenizer, list(sets), probabilities
        self.count, self.horizon, self.vary = count, horizon, vary

    def __getitem__(self, key: tuple[int, ...]) -> Draw:
        rng = np.random.default_rng((*key, 5))
        which = rng.choice(len(self.sets), size=self.count, p=self.probabilities)
        samples, futures = zip(*(self._window(self.sets[s], rng) for s in which), strict=True)
        batch = self.tokenizer.collate(samples)
        batch.pop("meta", None)
        return Draw(batch, torch.from_numpy(which), torch.full((self.count,), -1),
                    future=torch.from_numpy(np.stack(futures)))  # fmt: skip

    def _window(self, frames: Sequence[SeriesFrame] | None, rng: np.random.Generator) -> tuple[Sample, np.ndarray]:
        length = int(rng.integers(min(64, self.tokenizer.config.context), self.tokenizer.config.context + 1))
        for _ in range(TRIES):
            frame = _part(frames, rng, length, self.horizon)
            end = len(frame.values) - self.horizon
            if end >= 8 and np.isfinite(frame.values[:end]).any():
                break
        else:
            raise InputError("time series", f"none of {TRIES} windows holds {8 + self.horizon} steps with a value",
                             "give longer series, or a smaller horizon")  # fmt: skip
        if self.vary:
            past = augment("time_series", frame.values[:end], None, rng)[0]
            frame = replace(frame, values=np.concatenate([past.reshape(end, -1), frame.values[end:]]))
        sample = self.tokenizer.window_sample(frame, end)
        loc, scale = sample.meta["loc"][0], sample.meta["scale"][0]
        future = ((frame.values[end:, 0] - loc) / scale).clip(-8, 8)
        return sample, future.astype(np.float32)


def _part(frames: Sequence[SeriesFrame] | None, rng: np.random.Generator, length: int, horizon: int) -> SeriesFrame:
    """A part of one variate of one series, or a generated one: `length` steps and the horizon, or all there are."""
    if frames is None:
        return SeriesFrame(synthetic_series(rng, length + horizon)[:, None], None, ["value"])
    frame = frames[int(rng.integers(len(frames)))]
    column = int(rng.integers(frame.values.shape[1]))
    start = int(rng.integers(max(1, len(frame.values) - length - horizon + 1)))
    part = slice(start, start + length + horizon)
    times = None if frame.times is None else frame.times[part]
    return replace(frame, values=frame.values[part, column : column + 1], times=times, names=["value"])


Draws = SenseDraws | SeriesDraws
MakeDraw = Callable[[tuple[int, ...]], Draw]

"""What frozen front parts and teachers say about unlabelled or labelled inputs, computed once and kept on disk.

A cache is one safetensors file: front tokens, teacher features and labels, row by row. Pretraining then costs the
encoder alone, some twenty times less than running the front parts at every step.

Shape legend: r rows, n tokens, c front channels, f teacher features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from polysense.data.audio import AUDIO_ENDINGS, read_audio
from polysense.data.dataset import list_files
from polysense.data.image import IMAGE_ENDINGS, read_image
from polysense.training.teachers import YAMNET_WINDOW, Lite0Teacher, Yamnet

T = TypeVar("T")
IMAGE_SIDE = 128  # pixels; 4 x 4 front tokens


def labelled_images(source: Path) -> Iterator[tuple[object, str]]:
    """(image, label) of a folder (label: its parent's name) or a parquet file with columns image or jpg, and label."""
    if source.is_dir():
        yield from ((path, path.parent.name) for path in list_files(source, IMAGE_ENDINGS))
        return
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(source).iter_batches(batch_size=256):
        names = batch.schema.names
        column = next(name for name in ("jpg", "image", "bytes", "png") if name in names)
        labels = batch["label"].to_pylist() if "label" in names else [""] * len(batch)
        for value, label in zip(batch[column].to_pylist(), labels, strict=True):
            yield (value["bytes"] if isinstance(value, dict) else value), str(label)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def cache_images(sources: Sequence[Path], out: Path, limit: int | None = None) -> None:
    """Runs the lite0 stem and its teacher over images squashed to 128 x 128; writes `out`."""
    teacher = Lite0Teacher()
    rows: dict[str, list[Tensor]] = {"tokens": [], "teacher": [], "label": []}
    classes: dict[str, int] = {}
    for source in sources:
        for batch in batched(islice(labelled_images(source), limit), 64):
            images = [read_image(item).resize((IMAGE_SIDE, IMAGE_SIDE), 2) for item, _ in batch]
            pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float()
            front, features, _ = teacher(pixels)
            rows["tokens"].append(front.flatten(2).transpose(1, 2).half())
            rows["teacher"].append(features.half())
            numbers = [classes.setdefault(label, len(classes)) for _, label in batch]
            rows["label"].append(torch.tensor(numbers))
    write_cache(out, rows, list(classes))


def cache_sounds(sources: Sequence[Path], yamnet: Path, out: Path) -> None:
    """Runs YAMNet over windows of 0.975 s (hop half a window; short clips padded with silence); writes `out`."""
    teacher = Yamnet(yamnet)
    rows: dict[str, list[Tensor]] = {"tokens": [], "teacher": [], "scores": []}
    for source in sources:
        for path in list_files(source, AUDIO_ENDINGS):
            wave = read_audio(path, 16_000).wave
            last = max(len(wave) - YAMNET_WINDOW // 2, 1)
            for start in range(0, last, YAMNET_WINDOW // 2):
                window = wave[start : start + YAMNET_WINDOW]
                window = np.pad(window, (0, YAMNET_WINDOW - len(window)))
                _, front = teacher.front(window)
                features, scores = teacher.embed(window)
                rows["tokens"].append(torch.from_numpy(front.reshape(1, 24, -1)).half())
                rows["teacher"].append(torch.from_numpy(features)[None].half())
                rows["scores"].append(torch.from_numpy(scores)[None].half())
    write_cache(out, rows, [])


def write_cache(out: Path, rows: dict[str, list[Tensor]], classes: list[str]) -> None:
    import json

    from safetensors.torch import save_file

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    save_file({name: torch.cat(parts) for name, parts in rows.items()}, partial, {"classes": json.dumps(classes)})
    partial.replace(out)

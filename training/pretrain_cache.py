"""What frozen front parts and teachers say about unlabelled or labelled inputs, computed once and kept on disk.

A cache is one safetensors file: front tokens, teacher features and labels, row by row. Pretraining then costs the
encoder alone, some twenty times less than running the front parts at every step.

Shape legend: r rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from polysense.data.audio import AUDIO_ENDINGS, read_audio
from polysense.data.dataset import list_files
from polysense.data.image import IMAGE_ENDINGS, read_image
from polysense.training.teachers import YAMNET_WINDOW, Lite0Teacher, Yamnet

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
Box = tuple[float, float, float, float]  # left, top, right, bottom
EARLY = 8  # blocks of the lite0 stem that stay as they are and whose output (80 channels, stride 16) is cached


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


def cache_pictures(
    sources: Sequence[Path], out: Path, *, side: int = 128, teacher_side: int = 128, crops: int = 0, vary: bool = False
) -> None:
    """Runs the early blocks of the lite0 stem and the whole network over pictures; writes `out`.

    Rows: "maps" (r, side/16, side/16, 80) of the picture squashed to a square, "teacher" (r, 1280), "label" (r,).

    Args:
        sources: Folders or parquet files, see `labelled_images`.
        side: Pixels that the stem sees; the map has a cell for every 16.
        teacher_side: Pixels that the teacher sees; more detail than the stem has is a harder and better lesson.
        crops: Random crops of each picture, as rows of their own beside the whole.
        vary: Shifts every picture by up to an eighth and changes its colours: a second view of the same rows.
    """
    teacher, rng = Lite0Teacher().to(memory_format=torch.channels_last), np.random.default_rng(1)  # type: ignore[call-overload]
    rows: dict[str, list[Tensor]] = {"maps": [], "teacher": [], "label": []}
    classes: dict[str, int] = {}
    for source in sources:
        for batch in batched(labelled_images(source), 64):
            images = [read_image(item) for item, _ in batch]
            numbers = torch.tensor([classes.setdefault(label, len(classes)) for _, label in batch])
            for crop in range(1 + crops):
                views = [_shifted(image, rng) if vary else image for image in images]
                boxes = [_crop(image.size, rng) if crop else None for image in views]
                maps = teacher.early(_squashed(views, boxes, side), EARLY)
                seen = maps if teacher_side == side else teacher.early(_squashed(views, boxes, teacher_side), EARLY)
                rows["maps"].append(maps.permute(0, 2, 3, 1).half())
                rows["teacher"].append(teacher.pooled(seen, EARLY).half())
                rows["label"].append(numbers)
    write_cache(out, rows, list(classes))


def _squashed(images: Sequence[Image], boxes: Sequence[Box | None], side: int) -> Tensor:
    pixels = np.stack(
        [np.asarray(one.resize((side, side), 2, box=box)) for one, box in zip(images, boxes, strict=True)]
    )
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()


def _shifted(image: Image, rng: np.random.Generator) -> Image:
    """Moved by up to an eighth of its sides, mirrored at the edge, in other light and colour."""
    from PIL import Image as Pil
    from PIL import ImageEnhance

    margin = max(image.width // 8, 1)
    padded = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    left, top = rng.integers(0, 2 * margin + 1, 2)
    moved: Any = Pil.fromarray(padded[top : top + image.height, left : left + image.width])
    for change in (ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Color):
        moved = change(moved).enhance(rng.uniform(0.6, 1.4)) if rng.random() < 0.5 else moved
    return moved


def _crop(size: tuple[int, int], rng: np.random.Generator) -> Box:
    """(left, top, right, bottom) of a window with 45 to 100% of the area and nearly the picture's aspect."""
    share, aspect = rng.uniform(0.45, 1) ** 0.5, np.exp(rng.uniform(-0.25, 0.25))
    width, height = min(size[0], size[0] * share * aspect), min(size[1], size[1] * share / aspect)
    left, top = rng.uniform(0, size[0] - width), rng.uniform(0, size[1] - height)
    return left, top, left + width, top + height


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
                rows["tokens"].append(torch.from_numpy(front.reshape(1, -1, front.shape[-1])).half())
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

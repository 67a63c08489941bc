"""What the layouts of boxes and masks share: splits by name, image sizes by header, checked boxes, images to write."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from polysense.core.errors import InputError, InputWarning
from polysense.core.predictions import Boxes
from polysense.data.dataset import SPLITS, BoxTarget, Dataset
from polysense.data.image import ORIENTATION, own_pixel_limit

Box = tuple[float, float, float, float]  # x1, y1, x2, y2


def split_of(name: str) -> str:
    """The split that a name says ("train2017", "instances_val2017", "Test"), or ""."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def split_of_path(parts: Iterable[str]) -> str:
    """The first split that a folder of a path names, or ""."""
    return next(filter(None, map(split_of, parts)), "")


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image, from its header alone.

    Raises:
        InputError: It is no image.
    """
    try:
        with own_pixel_limit(), Image.open(path) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            return image.size[::-1] if turned else image.size
    except Exception as error:  # Pillow's plugins raise whatever their parsers meet in a broken header
        raise InputError(path, f"the image cannot be read ({error})", "download or export it again") from error


@dataclass
class Faults:
    """Counts what had to be repaired, to say it once."""

    clipped: int = 0
    dropped: int = 0
    missing: list[str] = field(default_factory=list)  # images that are named but not there

    def checked(self, boxes: Sequence[Box], names: Sequence[str], size: tuple[int, int]) -> BoxTarget:
        """Clips boxes to an image of `size` (width, height) and drops the empty ones."""
        width, height = size
        kept, labels = [], []
        for (x1, y1, x2, y2), name in zip(boxes, names, strict=True):
            box = (
                min(max(x1, 0.0), width),
                min(max(y1, 0.0), height),
                min(max(x2, 0.0), width),
                min(max(y2, 0.0), height),
            )
            if not (box[2] > box[0] and box[3] > box[1]):  # also catches NaN
                self.dropped += 1
                continue
            # Half a pixel beyond the border is rounding, not a fault.
            self.clipped += max(abs(a - b) for a, b in zip(box, (x1, y1, x2, y2), strict=True)) > 1
            kept.append(box)
            labels.append(name)
        return BoxTarget(kept, labels)

    def report(self, root: Path) -> None:
        parts = [f"{count} boxes {what}" for count, what in
                 ((self.clipped, "reached out of their image and were clipped"),
                  (self.dropped, "were empty or outside and were dropped")) if count]  # fmt: skip
        if self.missing:
            parts.append(f"{len(self.missing)} images are not there and were left out (first: {self.missing[0]})")
        if parts:
            warnings.warn(f"{root}: {'; '.join(parts)}", InputWarning, stacklevel=3)


@dataclass(frozen=True, slots=True)
class Labelled:
    """An image that is to be written with its boxes."""

    image: Path
    name: str  # of the copy; no two of a data set have the same stem
    size: tuple[int, int]  # (width, height) of the upright image
    target: BoxTarget
    scores: Sequence[float]  # of predictions; empty for the truth
    split: str  # "train", "val", "test" or ""

    def copy_to(self, folder: Path) -> None:
        """Puts the image into a folder, which is made where it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.image, folder / self.name)


def labelled(what: Dataset | Iterable[Boxes], folder: Path) -> list[Labelled]:
    """The images of a data set, or of predictions, and an empty folder to write them to.

    Where some images have a split, those that have none count as "train".

    Raises:
        InputError: The folder holds something, or an image is no file.
    """
    rows: list[tuple[object, BoxTarget, Sequence[float], str]]
    if isinstance(what, Dataset):
        rows = [(item.source, item.target, (), item.split) for item in what.items]
    else:
        rows = [(one.source, BoxTarget(one.xyxy.tolist(), one.labels), one.scores.tolist(), "") for one in what]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(folder, "something is there already", "name a new folder")
    parted = any(split for *_, split in rows)
    counts: dict[str, int] = {}
    found = []
    for source, target, scores, split in rows:
        if not isinstance(source, str | Path) or not Path(source).is_file():
            raise InputError(source, "there is no such image file to copy", "give images that are files")
        path = Path(source)
        count = counts[path.stem] = counts.get(path.stem, 0) + 1
        name = path.name if count == 1 else f"{path.stem}-{count}{path.suffix}"
        found.append(Labelled(path, name, image_size(path), target, scores, split or ("train" if parted else "")))
    folder.mkdir(parents=True, exist_ok=True)
    return found

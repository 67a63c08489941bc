"""YOLO data sets, read and written: one txt file of `class cx cy w h` (shares of the image) for each image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polysense.core.errors import InputError
from polysense.core.predictions import Boxes
from polysense.data.dataset import Dataset, Item, list_files
from polysense.data.image import IMAGE_ENDINGS
from polysense.data.layouts import Box, Faults, Labelled, image_size, labelled, split_of, split_of_path

NAME_FILES = ("classes.txt", "obj.names", "names.txt", "_darknet.labels")


def yolo_items(root: Path, faults: Faults) -> list[Item]:
    """Items of a folder, or of a YAML file in one. An image without a label file is one without objects."""
    base = root if root.is_dir() else root.parent
    config = yolo_config(root)
    names = yolo_names(base, config)
    items, labelled = [], 0
    for image, label, split in yolo_pairs(base, config):
        labelled += label is not None
        boxes, labels = _read(label, image, names) if label is not None else ([], [])
        items.append(Item(image, faults.checked(boxes, labels, image_size(image)), split))
    return items if labelled else []


def yolo_config(root: Path) -> Mapping[str, Any]:
    """The YAML file that names the classes; empty where there is none."""
    import yaml

    files = sorted(root.glob("*.y*ml")) if root.is_dir() else [root] if root.suffix.lower() in (".yaml", ".yml") else []
    for file in files:
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(file, f"this is no valid YAML ({error})", "correct it") from error
        if isinstance(config, dict) and "names" in config:
            return config
    return {}


def yolo_names(base: Path, config: Mapping[str, Any]) -> dict[int, str]:
    """Class names by number; empty where nothing names them."""
    names = config.get("names")
    if isinstance(names, dict):
        return {int(number): str(name) for number, name in names.items()}
    if isinstance(names, list):
        return {number: str(name) for number, name in enumerate(names)}
    for file in (folder / name for folder in (base, base / "labels") for name in NAME_FILES):
        if file.is_file():
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
            return {number: line for number, line in enumerate(lines) if line}
    return {}


def yolo_pairs(base: Path, config: Mapping[str, Any]) -> Iterator[tuple[Path, Path | None, str]]:
    """(image, label file, split)."""
    seen: set[Path] = set()
    for key in ("train", "val", "valid", "test"):
        entries = config.get(key) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            for image in _listed(base, config, str(entry)):
                if image.resolve() not in seen:
                    seen.add(image.resolve())
                    yield image, _label(image, base), split_of(key)
    if not seen:
        for image in list_files(base, IMAGE_ENDINGS):
            parts = image.relative_to(base).parts[:-1]
            yield image, _label(image, base), split_of_path(parts)


def _listed(base: Path, config: Mapping[str, Any], entry: str) -> list[Path]:
    """Images of one split: a folder, or a txt file of paths. Exports are moved about, so several bases are tried."""
    root = base / str(config.get("path") or ".")
    for folder in (root, base, base.parent):
        # Roboflow writes ../train/images although the file lies beside train/.
        for path in (folder / entry, folder / entry.removeprefix("../")):
            if path.is_dir():
                return list_files(path, IMAGE_ENDINGS)
            if path.is_file():
                lines = path.read_text(encoding="utf-8").splitlines()
                found = (path.parent / line.strip() for line in lines if line.strip())
                return [image for image in found if image.is_file()]
    return []


def _label(image: Path, base: Path) -> Path | None:
    """The label file: `images` becomes `labels` in the path, or it lies beside the image, or below `base`/labels."""
    parts = image.parts
    candidates = [image.with_suffix(".txt")]
    at = max((i for i, part in enumerate(parts[:-1]) if part.lower() == "images"), default=None)
    if at is not None:
        inner = Path(*parts[at + 1 :]).with_suffix(".txt")
        candidates += [Path(*parts[:at]) / "labels" / inner, base / "labels" / inner]
    candidates += [base / "labels" / image.with_suffix(".txt").name]
    return next((path for path in candidates if path.is_file()), None)


def _read(file: Path, image: Path, names: Mapping[int, str]) -> tuple[list[Box], list[str]]:
    """Boxes in pixels and their names. A line is a class and 4 numbers (a fifth is a score) or a polygon."""
    width, height = image_size(image)
    boxes: list[Box] = []
    labels: list[str] = []
    for name, values in yolo_shapes(file, names):
        if len(values) in (4, 5):
            cx, cy, w, h = values[:4]
            box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
        else:
            box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        boxes.append((box[0] * width, box[1] * height, box[2] * width, box[3] * height))
        labels.append(name)
    return boxes, labels


def yolo_shapes(file: Path, names: Mapping[int, str]) -> Iterator[tuple[str, list[float]]]:
    """(class name, numbers) of each line: 4 or 5 for a box, six or more for a polygon; all shares of the image."""
    for i, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines()):
        if not line.strip():
            continue
        try:
            number, *values = (float(word) for word in line.split())
        except ValueError as error:
            raise InputError(file, f"line {i + 1} holds something that is no number", "correct the line") from error
        if not all(map(math.isfinite, (number, *values))) or number != int(number):
            raise InputError(file, f"line {i + 1} does not start with a class number", "correct the line")
        if len(values) not in (4, 5) and (len(values) < 6 or len(values) % 2):
            problem = f"line {i + 1} has {len(values) + 1} numbers, neither a box nor a polygon"
            raise InputError(file, problem, "write class cx cy w h, as shares of the image")
        if names and int(number) not in names:
            problem = f"line {i + 1} names class {int(number)}, which is not among the {len(names)} names"
            raise InputError(file, problem, "complete the names")
        yield names.get(int(number), f"class_{int(number)}"), values


def write_yolo(what: Dataset | Iterable[Boxes], folder: str | Path) -> None:
    """Writes a detection data set, or predictions, as `images/`, `labels/` (each split in its folder) and data.yaml.

    Images are copied; of two with the same name the second becomes NAME-2. Scores of predictions are a sixth number.

    Args:
        what: A data set of image files, or answers for such files.
        folder: A new or empty one.

    Raises:
        InputError: The folder holds something, or an image is no file.
    """
    import yaml

    root = Path(folder)
    images = labelled(what, root)
    classes = what.classes if isinstance(what, Dataset) else sorted({name for i in images for name in i.target.labels})
    numbers = {name: i for i, name in enumerate(classes)}
    for one in images:
        one.copy_to(root / "images" / one.split)
        place = root / "labels" / one.split / f"{Path(one.name).stem}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(f"{line}\n" for line in _lines(one, numbers)), encoding="utf-8")
    splits = {split: f"images/{split}" for split in ("train", "val", "test") if any(i.split == split for i in images)}
    text = yaml.safe_dump({**splits, "names": dict(enumerate(classes))}, sort_keys=False, allow_unicode=True)
    (root / "data.yaml").write_text(text, encoding="utf-8")


def _lines(one: Labelled, numbers: Mapping[str, int]) -> Iterator[str]:
    width, height = one.size
    for i, ((x1, y1, x2, y2), name) in enumerate(zip(one.target.xyxy, one.target.labels, strict=True)):
        values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        if len(one.scores):
            values.append(one.scores[i])
        yield " ".join([str(numbers[name]), *(f"{value:.8f}" for value in values)])

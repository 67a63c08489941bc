"""COCO detection json: reader, with the key names that its imitators use, and what writes answers."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polysense.core.errors import InputError
from polysense.core.predictions import Boxes
from polysense.data.dataset import Item, list_files
from polysense.data.image import IMAGE_ENDINGS
from polysense.data.layouts import Box, Faults, image_size, split_of

FIX = "export it again as COCO detection json"


def coco_items(root: Path, faults: Faults) -> list[Item]:
    """Items of a COCO json or of all such files below a folder; crowds are left out."""
    items = []
    for file, entries in coco_files(root):
        annotations = entries.get("annotations", entries.get("annotation"))
        if isinstance(entries.get("images"), list) and isinstance(annotations, list):
            # A folder may also hold captions, key points or image info without any box.
            if root.is_file() or any("bbox" in a or "segmentation" in a for a in annotations[:1]):
                try:
                    items += _coco_file(file, entries, annotations, faults)
                except (KeyError, TypeError, AttributeError) as error:
                    problem = f"an entry lacks or misuses a COCO key ({type(error).__name__}: {error})"
                    raise InputError(file, problem, FIX) from error
        elif root.is_file():
            raise InputError(file, "this JSON has no images and annotations", FIX)
    return items


def coco_files(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every json of a folder, or the one, with what it holds; nothing where that is no object."""
    if root.is_file() and root.suffix.lower() != ".json":
        return
    for file in [root] if root.is_file() else [*sorted(root.glob("*.json")), *sorted(root.glob("*/*.json"))]:
        try:
            content = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise InputError(file, f"this is no valid JSON ({error})", FIX) from error
        yield file, content if isinstance(content, dict) else {}


def _coco_file(file: Path, entries: Mapping[str, Any], annotations: list[Any], faults: Faults) -> list[Item]:
    names = {entry["id"]: str(entry["name"]) for entry in entries.get("categories", ())}
    by_image: dict[Any, list[tuple[Box, str]]] = defaultdict(list)
    for entry in annotations:
        box = None if entry.get("iscrowd") else _coco_box(entry)
        if box is not None:
            name = names.get(entry["category_id"], f"class_{entry['category_id']}")
            by_image[entry["image_id"]].append((box, name))
    split = split_of(file.stem) or split_of(file.parent.name)
    find = ImageFinder(file, split)
    items = []
    for entry in entries["images"]:
        name = str(entry.get("file_name") or entry.get("filename") or entry["name"])
        image = find(name)
        if image is None:
            faults.missing.append(name)
            continue
        size = (int(entry.get("width") or 0), int(entry.get("height") or 0))
        boxes = by_image.get(entry["id"], [])
        target = faults.checked([b for b, _ in boxes], [n for _, n in boxes], size if all(size) else image_size(image))
        items.append(Item(image, target, split or split_of(image.parent.name)))
    if not items:
        raise InputError(file, f"none of its {len(faults.missing)} images is there", "put the images beside it")
    return items


def _coco_box(entry: Mapping[str, Any]) -> Box | None:
    if entry.get("bbox"):
        x, y, w, h = (float(v) for v in entry["bbox"])
        return x, y, x + w, y + h
    polygons = entry.get("segmentation")
    if isinstance(polygons, list) and polygons and polygons[0]:
        points = [float(v) for polygon in polygons for v in polygon]
        return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])
    return None


class ImageFinder:
    """Finds an image that a json names, wherever the usual layouts put it."""

    def __init__(self, file: Path, split: str) -> None:
        base = (
            file.parent.parent if file.parent.name.lower() in ("annotations", "annotation", "labels") else file.parent
        )
        folders = [base, base / "images", base / split, base / "images" / split, file.parent]
        folders += [f for top in (base, base / "images") if top.is_dir() for f in sorted(top.iterdir())
                    if f.is_dir() and split and split_of(f.name) == split]  # fmt: skip
        self.folders, self.base, self.split = folders, base, split
        self.by_name: dict[str, Path] | None = None

    def __call__(self, name: str) -> Path | None:
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        if self.by_name is None:  # the last resort reads the whole tree, once
            self.by_name = {path.name: path for path in list_files(self.base, IMAGE_ENDINGS)}
        return self.by_name.get(Path(name).name)


def write_coco(
    predictions: Sequence[Boxes],
    file: str | Path,
    *,
    image_ids: Mapping[str, int] | None = None,
    category_ids: Mapping[str, int] | None = None,
) -> None:
    """Writes predictions as a COCO results json: a list of image_id, category_id, bbox (x, y, width, height), score.

    Args:
        predictions: Boxes of each image.
        file: Where to write.
        image_ids: Number of each image by its source; without it the digits of the file's name, else its position.
        category_ids: Number of each class; without it the classes that occur, sorted, from 1.
    """
    categories = category_ids or _numbers(predictions)
    rows = []
    for i, prediction in enumerate(predictions):
        stem = Path(prediction.source).stem
        number = image_ids[prediction.source] if image_ids else int(stem) if stem.isdecimal() else i + 1
        rows += [{"image_id": number, **row} for row in _boxes(prediction, categories)]
    Path(file).write_text(json.dumps(rows), encoding="utf-8")


def coco_content(predictions: Sequence[Boxes], base: Path) -> dict[str, Any]:
    """Predictions as a COCO detection json: images, categories (classes that occur, sorted, from 1) and annotations,
    each with a score.

    Args:
        predictions: Boxes of each image.
        base: Folder of the json; file names are relative to it, so that whoever reads it finds the images.
    """
    categories = _numbers(predictions)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, prediction in enumerate(predictions, 1):
        source, (height, width) = prediction.source, prediction.size
        name = Path(os.path.relpath(source, base)).as_posix() if Path(source).is_file() else source
        images.append({"id": i, "file_name": name, "width": width, "height": height})
        for row in _boxes(prediction, categories):
            area = round(row["bbox"][2] * row["bbox"][3], 3)
            annotations.append({"id": len(annotations) + 1, "image_id": i, **row, "area": area, "iscrowd": 0})
    named = [{"id": number, "name": name} for name, number in categories.items()]
    return {"images": images, "categories": named, "annotations": annotations}


def _numbers(predictions: Sequence[Boxes]) -> dict[str, int]:
    names = sorted({name for prediction in predictions for name in prediction.labels})
    return {name: i for i, name in enumerate(names, 1)}


def _boxes(prediction: Boxes, categories: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """category_id, bbox (x, y, width, height) and score of each box."""
    rows = zip(prediction.xyxy.tolist(), prediction.labels, prediction.scores.tolist(), strict=True)
    for (x1, y1, x2, y2), name, score in rows:
        box = [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
        yield {"category_id": categories[name], "bbox": box, "score": round(score, 6)}

"""`load_segments`: layouts of segments on disk, told apart by what lies in the folder (see `segments`)."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polysense.core.errors import InputError, InputWarning
from polysense.data.boxes_coco import ImageFinder, coco_files
from polysense.data.boxes_yolo import yolo_config, yolo_names, yolo_pairs, yolo_shapes
from polysense.data.dataset import Dataset, Item
from polysense.data.layouts import image_size, split_of
from polysense.data.masks import MaskFile, load_masks
from polysense.data.segments import OutlineFile, PanopticFile

FIX = "give a COCO panoptic json with its PNGs, a COCO json with outlines, or a YOLO folder with polygons"


def load_segments(path: str | Path) -> Dataset:
    """Reads a data set of segments; `Dataset.things` names the classes of objects.

    Layouts: COCO panoptic (`panoptic_train2017.json` and a folder of PNGs with the json's name); COCO instances (a json
    whose annotations have a `segmentation`); YOLO polygons (`images/`, `labels/`, names in a YAML file or classes.txt),
    alone or in a folder beside another one that holds masks of all classes (objects and regions) of the same images.
    Splits come from the files' and folders' names.

    Raises:
        InputError: The layout is not known, or a file is broken.
    """
    root = Path(path)
    if not root.exists():
        raise InputError(root, "there is no such file or folder", FIX)
    for reader in (_coco, _yolo):
        if found := reader(root):
            return found
    raise InputError(root, "no data set of segments was recognised", FIX)


def _coco(root: Path) -> Dataset | None:
    items: list[Item] = []
    things: set[str] = set()
    regions: set[str] = set()
    for file, entries in coco_files(root):
        annotations = entries.get("annotations")
        if not isinstance(annotations, list) or not isinstance(entries.get("images"), list):
            continue
        try:
            panoptic = any("segments_info" in entry for entry in annotations[:1])
            if panoptic or any(entry.get("segmentation") for entry in annotations):
                items += (_panoptic_file if panoptic else _instance_file)(file, entries)
                for entry in entries.get("categories", ()):
                    (things if entry.get("isthing", True) else regions).add(str(entry["name"]))
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"an entry lacks or misuses a COCO key ({type(error).__name__}: {error})"
            raise InputError(file, problem, "export it again as COCO json") from error
    return Dataset(items, sorted(things | regions), sorted(things)) if items else None


def _images(file: Path, entries: Mapping[str, Any]) -> dict[Any, tuple[Path, tuple[int, int]]]:
    """(path, (h, w)) of each image that is there, by its id."""
    find = ImageFinder(file, split_of(file.stem) or split_of(file.parent.name))
    found, lost = {}, 0
    for entry in entries["images"]:
        image = find(str(entry["file_name"]))
        lost += image is None
        if image is not None:
            width, height = image_size(image)
            found[entry["id"]] = image, (height, width)
    if not found:
        raise InputError(file, f"none of its {lost} images is there", "put the images beside it")
    if lost:
        warnings.warn(f"{file}: {lost} images are not there and were left out", InputWarning, stacklevel=5)
    return found


def _panoptic_file(file: Path, entries: Mapping[str, Any]) -> list[Item]:
    names = {entry["id"]: str(entry["name"]) for entry in entries["categories"]}
    images, split = _images(file, entries), split_of(file.stem)
    folder = next((f for f in (file.with_suffix(""), file.parent) if f.is_dir()), file.parent)
    items = []
    for entry in entries["annotations"]:
        if entry["image_id"] in images:
            image = images[entry["image_id"]][0]
            known = {one["id"]: names[one["category_id"]] for one in entry["segments_info"] if not one.get("iscrowd")}
            target = PanopticFile(folder / entry["file_name"], known)
            items.append(Item(image, target, split or split_of(image.parent.name)))
    return items


def _instance_file(file: Path, entries: Mapping[str, Any]) -> list[Item]:
    names = {entry["id"]: str(entry["name"]) for entry in entries.get("categories", ())}
    images, split = _images(file, entries), split_of(file.stem)
    shapes: dict[Any, list[tuple[str, Any]]] = defaultdict(list)
    crowds: dict[Any, list[Any]] = defaultdict(list)
    for entry in entries["annotations"]:
        if outline := entry.get("segmentation"):
            if entry.get("iscrowd"):
                crowds[entry["image_id"]].append(outline)
            else:
                name = names.get(entry["category_id"], f"class_{entry['category_id']}")
                shapes[entry["image_id"]].append((name, outline))
    return [
        Item(image, OutlineFile(size, tuple(shapes[number]), tuple(crowds[number])),
             split or split_of(image.parent.name))
        for number, (image, size) in images.items()
    ]  # fmt: skip


def _yolo(root: Path) -> Dataset | None:
    base = root if root.is_dir() else root.parent
    folders = [base, *sorted(one for one in base.iterdir() if one.is_dir())]
    for folder in folders:
        config = yolo_config(root if folder == base else folder)
        names = yolo_names(folder, config)
        pairs = [pair for pair in yolo_pairs(folder, config) if pair[1] is not None] if names else []
        if any(len(values) >= 6 for _, label, _ in pairs[:50] if label for _, values in yolo_shapes(label, names)):
            return _outlines(pairs, names, _masks(folders))
    return None


def _masks(folders: list[Path]) -> Dataset | None:
    """Masks of classes beside the outlines, if there are."""
    for folder in folders:
        try:
            return load_masks(folder)
        except InputError:  # this folder holds none: the next may
            continue
    return None


def _outlines(pairs: list[Any], names: Mapping[int, str], masks: Dataset | None) -> Dataset:
    by_image = {} if masks is None else {Path(item.source).resolve(): item.target for item in masks.items}
    regions = () if masks is None else tuple(masks.classes)
    things = sorted(set(names.values()))
    items = []
    for image, label, split in pairs:
        width, height = image_size(image)
        shapes = tuple(
            (name, [[v * (width, height)[i % 2] for i, v in enumerate(values)]])
            for name, values in yolo_shapes(label, names)
            if len(values) >= 6
        )
        mask: MaskFile | Path | None = by_image.get(image.resolve())
        items.append(Item(image, OutlineFile((height, width), shapes, (), mask, regions, frozenset(things)), split))
    return Dataset(items, sorted({*things, *regions}), things)

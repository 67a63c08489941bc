"""Segmentation data sets: images and masks of class indices, paired by name in the usual layouts.

After `read_mask` a pixel is a class index 0..k-1 or `IGNORE`, whatever the numbers in the file were.

Shape legend: h, w pixels of the original image; n points of a cloud.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from polysense.core.errors import InputError, InputWarning
from polysense.data.containers import array_shapes
from polysense.data.dataset import Dataset, Item, list_files
from polysense.data.image import IMAGE_ENDINGS, check_pixels, own_pixel_limit
from polysense.data.layouts import split_of, split_of_path
from polysense.data.limits import check

IGNORE = 255  # pixels without a class
VOID = ("void", "unlabelled", "unlabeled", "ignore", "ignored")
MASK_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".npy")
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "annotation", "segmentationclass", "gt")
MASK_SUFFIX = re.compile(r"([_-]?(annots?|annotations?|masks?|labels?|labelids)|[_-](gt|l))$", re.IGNORECASE)
FIX = "give images/ and masks/ with equal file names, or train/ and trainannot/, or a folder per split"


@dataclass(frozen=True, slots=True)
class MaskFile:
    """A mask on disk whose numbers differ from the class indices.

    Attributes:
        path: The file.
        table: Class index for each number in the file: `IGNORE` for those without a class, -1 for unknown ones.
    """

    path: Path
    table: tuple[int, ...]


def read_mask(source: Any) -> Int[np.ndarray, " ..."]:
    """Class indices (h, w) of a path, PIL image, array or `MaskFile`; arrays of another rank (clouds) pass through.

    Raises:
        InputError: The file cannot be read, is a colour picture, or holds a number that is no class.
    """
    if isinstance(source, MaskFile):
        return _mapped(read_mask(source.path), source)
    if isinstance(source, str | Path):
        return _decoded(Path(source))
    if isinstance(source, Image.Image):
        return _indices(source, "<PIL image>")
    array = np.asarray(source)
    if array.dtype.kind not in "iub":
        raise InputError("<array>", f"a mask holds whole numbers, not {array.dtype}", "convert it to integers")
    return array.astype(np.uint8) if array.dtype == bool else array


def _mapped(raw: Int[np.ndarray, "h w"], source: MaskFile) -> UInt8[np.ndarray, "h w"]:
    """Class indices of the numbers in a file, by one look-up per pixel."""
    table = np.full(max(len(source.table), IGNORE + 1), -1, np.int16)
    table[: len(source.table)] = source.table
    if table[IGNORE] < 0:
        table[IGNORE] = IGNORE
    beyond = raw[(raw < 0) | (raw >= len(table))] if raw.dtype != np.uint8 else raw[:0]
    if not beyond.size:
        mapped = table[raw]
        beyond = raw[mapped < 0]
    if beyond.size:
        problem = f"the mask holds the number {int(beyond[0])}, which is no class"
        raise InputError(source.path, problem, "name all classes, or pass that number as ignore")
    return mapped.astype(np.uint8)


def _decoded(path: Path) -> Int[np.ndarray, "h w"]:
    if not path.is_file():
        raise InputError(path, "there is no such mask", "check the path")
    if path.suffix.lower() == ".npy":
        try:
            with path.open("rb") as file:
                check("pixels", math.prod(array_shapes(file, path)[0]), path)
                return read_mask(np.load(file, allow_pickle=False))
        except InputError:
            raise
        except (ValueError, OSError, EOFError) as error:
            raise InputError(path, f"the mask cannot be read ({error})", "save it as an integer array") from error
    try:
        with own_pixel_limit(), Image.open(path) as image:
            check_pixels(image, path)
            return _indices(image, path)
    except (OSError, SyntaxError) as error:  # PIL reports broken PNGs as SyntaxError
        raise InputError(path, f"the mask cannot be read ({error})", "export it again as an index PNG") from error


def _indices(image: Image.Image, source: object) -> Int[np.ndarray, "h w"]:
    array = np.asarray(image)
    if array.ndim == 3:  # a grey picture saved with three equal channels is still an index mask
        if not (array[..., :1] == array[..., :3]).all():
            raise InputError(source, "the mask is a colour picture", "convert its colours to class indices")
        array = array[..., 0]
    return array.astype(np.uint8) if array.dtype == bool else array


def load_masks(path: str | Path, classes: Sequence[str] | None = None, ignore: int | None = None) -> Dataset:
    """Reads a folder of images and index masks.

    Layouts: `images/` and `masks/` (also labels, annotations), with or without split folders inside; `train/images`
    and `train/masks`; `train/` and `trainannot/` (CamVid); a YAML file that names `images` and `masks` for each split.
    Names come from `classes`, else from classes.txt, a JSON or the YAML file, else they are class_0 …; masks of only
    0 and 255 are black and white ones.

    Args:
        path: The folder.
        classes: Names by the numbers in the masks.
        ignore: A number in the masks without a class; 255 and classes called void or unlabelled are so anyway.

    Raises:
        InputError: The layout is not known, or no image has a mask.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(root, "there is no such folder", "give a folder that holds images and masks")
    config = _description(root)
    pairs = _pairs(root, config)
    if not pairs:
        raise InputError(root, "no image with a mask was found", FIX)
    names = dict(enumerate(classes)) if classes is not None else _names(root, config)
    found = _numbers([mask for _, mask, _ in pairs]) if len(names) in (0, 2) else set()
    black_white = ignore is None and IGNORE in found and found <= {0, IGNORE}
    if not names:
        top = 1 if black_white else max(found - {IGNORE, ignore}, default=0)
        names = {number: f"class_{number}" for number in range(top + 1)}
    if black_white and len(names) == 2:
        names = dict(zip((0, IGNORE), names.values(), strict=True))
    void = {ignore} | {number for number, name in names.items() if name.lower() in VOID}
    numbers = [number for number in sorted(names) if number not in void]
    if not 0 < len(numbers) < IGNORE:
        raise InputError(root, f"{len(numbers)} classes are named", "name between 1 and 254 classes")
    table = {number: IGNORE for number in void if number is not None} | {n: i for i, n in enumerate(numbers)}
    plain = all(number == index for number, index in table.items())
    full = tuple(table.get(number, -1) for number in range(max(table) + 1))
    items = [Item(image, mask if plain else MaskFile(mask, full), split) for image, mask, split in pairs]
    return Dataset(items, [names[number] for number in numbers])


def _numbers(masks: Sequence[Path]) -> set[int]:
    """All numbers that occur in the masks."""
    return set().union(*(np.unique(read_mask(mask)).tolist() for mask in masks))


def _pairs(root: Path, config: Mapping[str, Any]) -> list[tuple[Path, Path, str]]:
    """(image, mask, split) of every image that has a mask."""
    pairs, lost = [], 0
    for images, masks, split in _folders(root, config):
        by_name: dict[str, Path] = {}
        for mask in list_files(masks, MASK_ENDINGS):
            name = mask.relative_to(masks).with_suffix("").as_posix()
            # Split folders may repeat names, so the whole relative path counts first, then the bare name.
            for key in (name, MASK_SUFFIX.sub("", name), mask.stem, MASK_SUFFIX.sub("", mask.stem)):
                by_name.setdefault(key, mask)
        for image in list_files(images, IMAGE_ENDINGS):
            inner = image.relative_to(images)
            found = by_name.get(inner.with_suffix("").as_posix()) or by_name.get(image.stem)
            lost += found is None
            if found is not None:
                pairs.append((image, found, split or split_of_path(inner.parts[:-1])))
    if pairs and lost:
        warnings.warn(f"{root}: {lost} images without a mask are left out", InputWarning, stacklevel=3)
    return pairs


def _folders(root: Path, config: Mapping[str, Any]) -> Iterator[tuple[Path, Path, str]]:
    """(folder of images, folder of masks, split)."""
    named = {split_of(key): value for key, value in config.items() if split_of(key) and isinstance(value, dict)}
    for split, value in named.items():
        if "images" in value and "masks" in value:
            yield root / value["images"], root / value["masks"], split
    if named:
        return
    below = {folder.name.lower(): folder for folder in sorted(root.iterdir()) if folder.is_dir()}
    if pair := _pair(below):
        yield *pair, ""
        return
    for name, folder in below.items():
        base = MASK_SUFFIX.sub("", name)
        split = split_of(base)
        if split and (pair := _pair({inner.name.lower(): inner for inner in folder.iterdir() if inner.is_dir()})):
            yield *pair, split
        elif base != name:  # train/ or train_images/, and trainannot/ or train_masks/
            images = next((below[b] for b in (base, f"{base}_images", f"{base}_imgs") if b in below), None)
            if images:
                yield images, folder, split


def _pair(folders: Mapping[str, Path]) -> tuple[Path, Path] | None:
    images = next((folders[name] for name in IMAGE_FOLDERS if name in folders), None)
    masks = next((folders[name] for name in MASK_FOLDERS if name in folders), None)
    return (images, masks) if images and masks else None


def _description(root: Path) -> dict[str, Any]:
    """The first YAML or JSON file in the folder that names classes."""
    import yaml

    for file in sorted(p for p in root.iterdir() if p.suffix.lower() in (".yaml", ".yml", ".json")):
        try:
            text = file.read_text(encoding="utf-8")
            config = json.loads(text) if file.suffix.lower() == ".json" else yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise InputError(file, f"the description cannot be read ({error})", "correct or remove it") from error
        if isinstance(config, dict) and ({"names", "classes"} & set(config)):
            return config
    return {}


def _names(root: Path, config: Mapping[str, Any]) -> dict[int, str]:
    """Class names by number, from classes.txt or the description; empty where nothing names them."""
    for name in ("classes.txt", "labels.txt", "names.txt"):
        if (root / name).is_file():
            lines = (root / name).read_text(encoding="utf-8").splitlines()
            return dict(enumerate(line.strip() for line in lines if line.strip()))
    named = config.get("classes", config.get("names", {}))
    try:
        entries = named.items() if isinstance(named, dict) else enumerate(named)
        return {int(number): str(name) for number, name in entries}
    except (TypeError, ValueError) as error:
        raise InputError(
            root, "its description names the classes in an unknown way", "use a list, or index: name"
        ) from error

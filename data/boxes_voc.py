"""Pascal VOC: one xml file per image, splits in ImageSets/Main."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from polysense.core.errors import InputError
from polysense.data.dataset import BoxTarget, Item, list_files
from polysense.data.image import IMAGE_ENDINGS
from polysense.data.layouts import Faults, image_size, split_of_path

FIX = "export the annotation again"


def voc_items(root: Path, faults: Faults) -> list[Item]:
    """Items of a folder of xml files. With lists in ImageSets/Main only the listed images count, as in Pascal VOC."""
    if root.is_file():
        return []
    listed = list_files(root, IMAGE_ENDINGS)
    beside, anywhere = {path.with_suffix(""): path for path in listed}, {path.stem: path for path in listed}
    splits = _image_sets(root)
    items = []
    for file in list_files(root, (".xml",)):
        tree = _xml(file)
        if tree is None or (splits and file.stem not in splits):
            continue
        name = (tree.findtext("filename") or "").replace("\\", "/").rsplit("/", 1)[-1]
        # The names inside are often stale; the file's own name is what pairs.
        image = beside.get(file.with_suffix("")) or anywhere.get(file.stem) or anywhere.get(Path(name).stem)
        if image is None:
            faults.missing.append(name or file.stem)
            continue
        parts = file.relative_to(root).parts[:-1]
        split = splits.get(file.stem) or split_of_path(parts)
        items.append(Item(image, _voc_target(tree, file, image, faults), split))
    if faults.missing and not items:
        problem = f"none of the {len(faults.missing)} annotated images is there"
        raise InputError(root, problem, "put the images beside the xml files or into JPEGImages/")
    return items


def _image_sets(root: Path) -> dict[str, str]:
    """Split by name, from the lists train, val, trainval, test."""
    folder = root / "ImageSets" / "Main"
    splits: dict[str, str] = {}
    for name, split in (("train", "train"), ("val", "val"), ("test", "test"), ("trainval", "train")):
        file = folder / f"{name}.txt"
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            if words := line.split():
                splits.setdefault(words[0], split)
    return splits


def _xml(file: Path) -> ElementTree.Element | None:
    """The root of a VOC annotation; None for other xml files."""
    try:
        tree = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError, LookupError, ValueError) as error:
        raise InputError(file, f"this is no valid XML ({error})", FIX) from error
    return tree if tree.tag == "annotation" else None


def _voc_target(tree: ElementTree.Element, file: Path, image: Path, faults: Faults) -> BoxTarget:
    def number(element: ElementTree.Element, key: str) -> float:
        try:
            return float(element.findtext(key) or "")
        except ValueError as error:
            raise InputError(file, f"a box has no number {key}", FIX) from error

    size_tag = tree.find("size")
    size = tuple(int(float(size_tag.findtext(key) or 0)) for key in ("width", "height")) if size_tag is not None else ()
    boxes, names = [], []
    for element in tree.iter("object"):
        corners = element.find("bndbox")
        if corners is None:
            raise InputError(file, "an object has no bndbox", FIX)
        x1, y1, x2, y2 = (number(corners, key) for key in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append((x1, y1, x2, y2))
        names.append((element.findtext("name") or "").strip())
    return faults.checked(boxes, names, (size[0], size[1]) if size and all(size) else image_size(image))

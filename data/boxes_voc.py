"""Pascal VOC, read and written: one xml file per image, splits in ImageSets/Main."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from polysense.core.errors import InputError
from polysense.core.predictions import Boxes
from polysense.data.dataset import BoxTarget, Dataset, Item, list_files
from polysense.data.image import IMAGE_ENDINGS
from polysense.data.layouts import Faults, Labelled, image_size, labelled, split_of_path

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


def write_voc(what: Dataset | Iterable[Boxes], folder: str | Path) -> None:
    """Writes a detection data set, or predictions, as `JPEGImages/`, `Annotations/` and `ImageSets/Main/`.

    Images are copied; of two with the same name the second becomes NAME-2. The format has no place for scores.

    Args:
        what: A data set of image files, or answers for such files.
        folder: A new or empty one.

    Raises:
        InputError: The folder holds something, or an image is no file.
    """
    root = Path(folder)
    splits: dict[str, list[str]] = defaultdict(list)
    for one in labelled(what, root):
        one.copy_to(root / "JPEGImages")
        stem = Path(one.name).stem
        place = root / "Annotations" / f"{stem}.xml"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(ElementTree.tostring(_annotation(one), encoding="utf-8", xml_declaration=True))
        splits[one.split].append(stem)
    for split, stems in splits.items():
        if split:
            place = root / "ImageSets" / "Main" / f"{split}.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("\n".join(stems) + "\n", encoding="utf-8")


def _annotation(one: Labelled) -> ElementTree.Element:
    def add(parent: ElementTree.Element, key: str, value: object = "") -> ElementTree.Element:
        element = ElementTree.SubElement(parent, key)
        element.text = str(value)
        return element

    tree = ElementTree.Element("annotation")
    add(tree, "folder", "JPEGImages")
    add(tree, "filename", one.name)
    size = add(tree, "size")
    for key, value in zip(("width", "height", "depth"), (*one.size, 3), strict=True):
        add(size, key, value)
    for box, name in zip(one.target.xyxy, one.target.labels, strict=True):
        element = add(tree, "object")
        for key, text in (("name", name), ("pose", "Unspecified"), ("truncated", 0), ("difficult", 0)):
            add(element, key, text)
        corners = add(element, "bndbox")
        for key, side in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            add(corners, key, f"{side:.10g}")  # whole numbers where they are whole, as older readers want
    ElementTree.indent(tree)
    return tree

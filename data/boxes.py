"""Detection data sets: COCO json, Pascal VOC xml and YOLO txt, told apart by what lies in the folder.

Whatever the layout, a box is xyxy in pixels of the upright original and has a class name. Boxes are clipped to their
image; those that are empty or wholly outside are dropped, counted and reported once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from polysense.core.errors import InputError
from polysense.data.boxes_coco import coco_items, write_coco
from polysense.data.boxes_voc import voc_items, write_voc
from polysense.data.boxes_yolo import write_yolo, yolo_items
from polysense.data.dataset import Dataset, Item
from polysense.data.layouts import Faults

__all__ = ["load_boxes", "write_coco", "write_voc", "write_yolo"]

FIX = "give a COCO json or a folder with annotations/*.json, a Pascal VOC folder, or a YOLO folder (images/, labels/)"


def load_boxes(path: str | Path) -> Dataset:
    """Reads a detection data set.

    Layouts: a COCO json, or a folder with such files in it or in `annotations/`; Pascal VOC (`JPEGImages/`,
    `Annotations/`, `ImageSets/Main/`; or xml files beside the images or in `annotations/`); YOLO (`images/` and
    `labels/`, or `train/images` …, names in a YAML file or classes.txt; polygons become boxes).
    Splits come from the lists, the folders' names or the json files' names.

    Raises:
        InputError: The layout is not known, or a file is broken.
    """
    root = Path(path)
    if not root.exists():
        raise InputError(root, "there is no such file or folder", FIX)
    readers: tuple[Callable[[Path, Faults], list[Item]], ...] = (coco_items, voc_items, yolo_items)
    for reader in readers:
        faults = Faults()
        if items := reader(root, faults):
            faults.report(root)
            return Dataset(items, sorted({name for item in items for name in item.target.labels}))
    raise InputError(root, "no detection data set was recognised", FIX)

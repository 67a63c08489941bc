"""A labelled data set as a list of items, whatever its layout on disk; and the layout of class folders."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polysense.core.errors import InputError

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
          "test": "test", "testing": "test"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled input.

    Attributes:
        source: What the tokenizer's `read` takes.
        target: A class name (classification), a list of names (multi-label), {name: number} (regression), `BoxTarget`
            (detection), a path or array of class indices (segmentation), segments (`data.segments`), an array (h, c)
            (forecasting).
        split: "train", "val", "test", or "" where the layout does not say.
    """

    source: Any
    target: Any
    split: str = ""


@dataclass(frozen=True, slots=True)
class BoxTarget:
    """Boxes of one image: xyxy in pixels of the upright original, and a class name each."""

    xyxy: Sequence[Sequence[float]]
    labels: Sequence[str]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Items and the class names they use, sorted as the heads number them; `things` are those of objects that can be
    counted, where there are segments. `unlabelled` rows were left out for lack of a target."""

    items: list[Item]
    classes: list[str] = field(default_factory=list)
    things: list[str] = field(default_factory=list)
    unlabelled: int = 0

    def part(self, split: str) -> list[Item]:
        return [item for item in self.items if item.split == split]

    def with_validation(self, share: float = 0.15, seed: int = 0) -> Dataset:
        """Makes sure that there is a "val" part, cut from "train" where the layout has none.

        Items without a split count as "train". Classes keep their shares, and each keeps at least one in "train".
        """
        items = [replace(item, split=item.split or "train") for item in self.items]
        if any(item.split == "val" for item in items):
            return replace(self, items=items)
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for i, item in enumerate(items):
            if item.split == "train":
                groups[item.target if isinstance(item.target, str) else None].append(i)
        rng = random.Random(seed)
        for members in groups.values():
            rng.shuffle(members)
            for i in members[: min(round(len(members) * share), len(members) - 1)]:
                items[i] = replace(items[i], split="val")
        return replace(self, items=items)


def list_files(folder: Path, endings: Sequence[str]) -> list[Path]:
    """Files below `folder` with one of the endings (lower case, with dot), sorted by name; hidden ones are left out."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in endings and p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def class_folders(root: str | Path, endings: Sequence[str]) -> Dataset:
    """Reads `root/CLASS/file`, or `root/train/CLASS/file` with any of train, val, test (and their usual synonyms).

    Raises:
        InputError: There is no such folder, or no file of the modality in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(root, "there is no such folder", "give a folder that holds one folder per class")
    parts = [(SPLITS[d.name.lower()], d) for d in sorted(root.iterdir()) if d.is_dir() and d.name.lower() in SPLITS]
    items = []
    for split, base in parts or [("", root)]:
        for folder in sorted(d for d in base.iterdir() if d.is_dir() and not d.name.startswith(".")):
            items += [Item(path, folder.name, split) for path in list_files(folder, endings)]
    if not items:
        fix = f"put files ({', '.join(endings)}) into one folder per class"
        raise InputError(root, "no class folder with a readable file was found", fix)
    return Dataset(items, sorted({item.target for item in items}))

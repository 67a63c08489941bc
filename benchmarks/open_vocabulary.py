"""Detection of classes that are shown or told: `python benchmarks/open_vocabulary.py DATA OUT [ROW …]`.

Rows: bccd, raccoon (examples alone), held_out (a detector that has never seen a platelet says where to look, and is
fitted first if OUT does not hold it), words (COCO). Figures go to OUT/ROW.json as they come. Examples are drawn from
train parts, with three seeds; what measures is BCCD's official val list, the last 20 raccoons and COCO's val images.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import sets
import torch
from PIL import Image
from torchvision.ops import box_iou

import polysense
from polysense.core.predictions import Boxes
from polysense.data.boxes import load_boxes
from polysense.data.dataset import BoxTarget, Item
from polysense.data.image import read_image
from polysense.open_vocabulary import OpenDetector, crop, open_detector, propose
from polysense.regions import Grid
from polysense.training.fit import fit
from polysense.training.metrics import score
from polysense.zero_shot import zero_shot

SHOTS, SEEDS = (1, 3, 5), 3
HELD_OUT = "Platelets"


class Remember:
    """Features of images that were read before."""

    def __init__(self, read: Callable[[Any], Grid]) -> None:
        self.read, self.known = read, dict[int, Grid]()
        self.pipeline = read.pipeline  # type: ignore[attr-defined]

    def __call__(self, image: Any) -> Grid:
        picture = image if isinstance(image, Image.Image) else read_image(image)
        key = hash(picture.tobytes())
        if key not in self.known:
            self.known[key] = self.read(picture)
        return self.known[key]


def parts(name: str, data: Path) -> tuple[list[Item], list[Item]]:
    """Images to draw examples from, and those that measure."""
    items = sorted(load_boxes(data / "detection" / name).items, key=lambda item: str(item.source))
    if name == "raccoon":
        return items[:-20], items[-20:]
    return [item for item in items if item.split == "train"], [item for item in items if item.split == "val"]


def draw(items: Sequence[Item], shots: int, seed: int) -> dict[str, list[tuple[Any, Any]]]:
    """Some boxes of each class, whatever their images."""
    found = defaultdict(list)
    for item in items:
        for box, label in zip(item.target.xyxy, item.target.labels, strict=True):
            found[label].append((item.source, box))
    drawn = random.Random(seed)
    return {name: drawn.sample(found[name], shots) for name in sorted(found)}


def average_precision(answers: Sequence[Boxes], items: Sequence[Item], names: Sequence[str]) -> dict[str, float]:
    """AP50 of each class, and their mean."""
    found = {}
    for name in names:
        mine, truth = [], []
        for answer, item in zip(answers, items, strict=True):
            rows = [i for i, label in enumerate(answer.labels) if label == name]
            mine.append(Boxes(answer.xyxy[rows].reshape(-1, 4), [name] * len(rows), answer.scores[rows], answer.size))
            boxes = [box for box, label in zip(item.target.xyxy, item.target.labels, strict=True) if label == name]
            truth.append(BoxTarget(boxes, [name] * len(boxes)))
        found[name] = score("detection", mine, truth, [name])["map50"]
    return {**found, "map50": float(np.mean(list(found.values())))}


def spread(rows: Sequence[dict[str, float]]) -> dict[str, str]:
    return {key: f"{np.mean([row[key] for row in rows]):.3f} ± {np.std([row[key] for row in rows]):.3f}"
            for key in rows[0]}  # fmt: skip


def by_examples(name: str, data: Path, out: Path) -> dict[str, Any]:
    """Examples alone: windows of their sizes."""
    learning, measuring = parts(name, data)
    classes = sorted({label for item in learning for label in item.target.labels})
    bare = remembering(open_detector())
    found: dict[str, Any] = {}
    for shots in SHOTS:
        rows = []
        for seed in range(SEEDS):
            start = time.perf_counter()
            detector = bare.with_examples(draw(learning, shots, seed))
            detector.threshold = 0.001
            rows.append(average_precision(detector([item.source for item in measuring]), measuring, classes))
            print(name, shots, seed, rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
        found[f"{shots} examples"] = spread(rows)
    return found


def remembering(detector: OpenDetector) -> OpenDetector:
    detector.features = Remember(detector.features)  # type: ignore[assignment]
    return detector


def without(data: Path, view: Path, name: str) -> Path:
    """BCCD's train list with one class left out of the annotations."""
    root = data / "detection/bccd"
    listed = (root / "ImageSets/Main/train.txt").read_text()
    for stem in listed.split():
        tree = ElementTree.parse(root / "Annotations" / f"{stem}.xml")
        for one in [one for one in tree.getroot().iter("object") if (one.findtext("name") or "").strip() == name]:
            tree.getroot().remove(one)
        sets.link(root / "JPEGImages" / f"{stem}.jpg", view / f"{stem}.jpg")
        tree.write(view / f"{stem}.xml")
    return view


def held_out(data: Path, out: Path) -> dict[str, Any]:
    """Platelets by five examples, where a detector of the other cells says where to look."""
    bundle = out / "without_platelets"
    if not (bundle / "config.json").exists():
        view = without(data, out / "bccd_without", HELD_OUT)
        fit("object-detection", view, bundle, epochs=10, patience=10, threads=1, tokenizer_options={"size": 320},
            head_options={"objectness": True, "channels": 64, "depth": 1})  # fmt: skip
    learning, measuring = parts("bccd", data)
    found: dict[str, Any] = {"recall of platelets at IoU .5": recall(polysense.load(bundle), measuring)}
    bare = remembering(open_detector(bundle))
    rows = []
    for seed in range(SEEDS):
        detector = bare.with_examples({HELD_OUT: draw(learning, 5, seed)[HELD_OUT]})
        detector.threshold = 0.001
        answers = detector([item.source for item in measuring])
        rows.append(average_precision(answers, measuring, [HELD_OUT, "RBC", "WBC"]))
        print("held_out", seed, rows[-1], flush=True)
    return {**found, "5 examples": spread(rows)}


def recall(detector: polysense.Pipeline, items: Sequence[Item]) -> dict[str, float]:
    """Share of platelets that one of so many proposals meets."""
    met: dict[int, list[bool]] = defaultdict(list)
    for item in items:
        own = [box for box, label in zip(item.target.xyxy, item.target.labels, strict=True) if label == HELD_OUT]
        boxes = propose(detector, item.source).boxes
        for most in (20, 50, 100, 200):
            if own:
                overlap = box_iou(torch.tensor(own, dtype=torch.float32), boxes[:most].cpu())
                met[most] += (overlap.amax(1) >= 0.5).tolist()
    return {f"of {most}": float(np.mean(one)) for most, one in met.items()}


def by_words(data: Path, out: Path) -> dict[str, Any]:
    """COCO's names: of true boxes, and of windows."""
    root = data / "detection/coco_subset"
    dataset = load_boxes(coco_view(root, out / "coco"))
    items = [item for item in dataset.items if item.split == "val"]
    found: dict[str, Any] = {}
    crops, labels = [], []
    for item in items:
        image = read_image(item.source)
        crops += [crop(image, box) for box in item.target.xyxy]
        labels += list(item.target.labels)
    present = sorted(set(labels))
    for what, names in (("all 80 names", coco_names(root)), (f"the {len(present)} present", present)):
        answers = zero_shot("image", names)(crops)
        for k in (1, 5):
            hits = [label in list(answer.names)[:k] for answer, label in zip(answers, labels, strict=True)]
            found[f"top {k} of {what}"] = f"{np.mean(hits):.3f} (chance {k / len(names):.3f})"
    commonest = max(labels.count(name) for name in present) / len(labels)
    found |= {"boxes": len(labels), "always the commonest": f"{commonest:.3f}"}
    detector = open_detector().with_words(present)
    detector.threshold = 0.001
    answers = detector([item.source for item in items])
    found["map50 by windows"] = average_precision(answers, items, present)["map50"]
    return found


def coco_names(root: Path) -> list[str]:
    import yaml

    names = yaml.safe_load((root / "object_detection/config.yaml").read_text())["names"]
    return list(names.values()) if isinstance(names, dict) else list(names)


def coco_view(root: Path, view: Path) -> Path:
    """Images and labels side by side, as YOLO folders have them."""
    for part in ("train", "val"):
        for file in (root / "images" / f"{part}2017").glob("*.jpg"):
            sets.link(file, view / "images" / part / file.name)
        for file in (root / "object_detection/labels" / f"{part}2017").glob("*.txt"):
            sets.link(file, view / "labels" / part / file.name)
    numbered = "\n".join(f"  {i}: {json.dumps(name)}" for i, name in enumerate(coco_names(root)))
    (view / "data.yaml").write_text(f"names:\n{numbered}\n")
    return view


ROWS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "bccd": lambda data, out: by_examples("bccd", data, out),
    "raccoon": lambda data, out: by_examples("raccoon", data, out),
    "held_out": held_out,
    "words": by_words,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", nargs="*", default=list(ROWS), help=", ".join(ROWS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for row in arguments.rows:
        found = ROWS[row](arguments.data, arguments.out)
        (arguments.out / f"{row}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(row, json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()

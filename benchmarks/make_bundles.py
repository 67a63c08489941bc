"""Trains the bundles that ship: `python benchmarks/make_bundles.py DATA WORK [NAME …]`.

Each is fitted on the train part, rounded to half precision, measured on the test part and written to
polysense/weights/bundles/NAME. Only data whose licence allows it are used (docs/results.md names them).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sets import digits_view, esc10_view, general_series

from polysense.backbone.weights import embedded_folder
from polysense.data.dataset import Dataset, Item, class_folders, list_files
from polysense.data.image import IMAGE_ENDINGS, read_image
from polysense.data.masks import load_masks
from polysense.data.table import read_table
from polysense.data.time_series import read_series, read_series_all
from polysense.pipeline import Pipeline
from polysense.saving import save
from polysense.tasks import TASKS
from polysense.training.calibrate import calibrate
from polysense.training.evaluate import measure
from polysense.training.fit_phases import finish, train_pipeline
from polysense.training.fit_pipeline import build_for
from polysense.training.fit_recipe import BATCH
from polysense.training.joint import Recipe
from polysense.training.progress import Progress
from polysense.training.sources import FileSources, SeriesSources, Sources, TableSources, open_sources
from polysense.training.synthetic import synthetic_series

DENSE = {"stride": 16, "size": 400}


@dataclass(frozen=True, slots=True)
class Plan:
    """How one bundle comes about."""

    task: str
    sources: Callable[[Path, Path], Sources]  # (data, work folder) -> opened data with a test part
    data: str  # for the card: what it was trained on
    licence: str  # of the data
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=0))
    tokenizer: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    default: bool = True  # what `load(task)` takes
    go_on: bool = False  # begin with the shipped bundle's head and projection, made for the encoder before this one


def folder(task: str, path: str, **options: Any) -> Callable[[Path, Path], Sources]:
    return lambda data, work: open_sources(TASKS[task], data / path, **options)


def tiny_imagenet(data: Path, work: Path) -> Sources:
    """Parquet parts with numbered labels, under the first of each class's names."""
    import pandas as pd

    root, items = data / "image/tiny_imagenet", []
    named = pd.read_csv(root / "classes.csv").set_index("label")["class_name"].str.split(",").str[0]
    for part in ("train", "test"):
        table = pd.read_parquet(root / f"{part}.parquet")
        items += [Item(image, named[label], part) for image, label in zip(table["image"], table["label"], strict=True)]
    return FileSources(Dataset(items, sorted(set(named))), TASKS["image-classification"])


def esc10(data: Path, work: Path) -> Sources:
    return open_sources(TASKS["audio-classification"], esc10_view(data, work))


def digits(data: Path, work: Path) -> Sources:
    return open_sources(TASKS["audio-classification"], digits_view(data, work))


def furniture(data: Path, work: Path) -> Sources:
    """Clouds of CAD objects, turned from y up to z up."""
    root, items = data / "pointcloud/sweethome_objects", []
    for part in ("train", "test"):
        with np.load(root / f"{part}.npz") as arrays:
            clouds = arrays["points"][..., [0, 2, 1]].astype(np.float64)
            labels, names = arrays["label"], arrays["classes"].tolist()
        items += [Item(cloud, names[int(label)], part) for cloud, label in zip(clouds, labels, strict=True)]
    return FileSources(Dataset(items, names), TASKS["point-cloud-classification"])


def moving_pictures(data: Path, work: Path) -> Sources:
    """Clips of photographs under a moving, zooming camera: 5 frames each, made from the image data set's own parts."""
    photos = class_folders(data / "image/caltech101", IMAGE_ENDINGS)
    rng, items = np.random.default_rng(0), []
    for item in photos.items:
        if item.split == "train" and rng.random() > 0.6:
            continue
        items.append(Item(camera_move(item.source, rng), item.target, item.split))
    return FileSources(Dataset(items, photos.classes), TASKS["video-classification"])


def camera_move(path: Path, rng: np.random.Generator, frames: int = 5) -> np.ndarray:
    image = read_image(path)
    image.thumbnail((180, 180))
    first, last = (_window(image.size, rng) for _ in range(2))
    boxes = first + (last - first) * np.linspace(0, 1, frames)[:, None]
    size = (round(image.width * 0.8), round(image.height * 0.8))
    return np.stack([np.asarray(image.resize(size, 2, box=tuple(box))) for box in boxes])


def _window(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    share = rng.uniform(0.75, 1.0)
    w, h = size[0] * share, size[1] * share
    left, top = rng.uniform(0, size[0] - w), rng.uniform(0, size[1] - h)
    return np.array([left, top, left + w, top + h])


def blood(data: Path, work: Path) -> Sources:
    """BCCD with its official val list as the test part; validation is cut from train."""
    sources = open_sources(TASKS["object-detection"], data / "detection/bccd")
    assert isinstance(sources, FileSources)
    items = [Item(i.source, i.target, "test" if i.split == "val" else i.split) for i in sources.dataset.items]
    return FileSources(Dataset(items, sources.dataset.classes), sources.task)


SCENE = {
    "person": [1], "animal": range(16, 26), "vehicle": range(2, 10), "sky": [187], "plant": [119, 184, 193],
    "building": [95, 128, 129, 131, 151, 171, 173, 175, 176, 177, 180, 181, 197, 199],
    "ground": [101, 118, 125, 138, 140, 144, 145, 147, 149, 154, 159, 185, 190, 191, 194, 198],
    "water": [148, 155, 178], "food": [*range(52, 62), 121, 153, 196],
    "object": [*range(10, 16), *range(27, 52), *range(62, 91), 92, 93, 107, 109, 112, 130, 133, 141, 156, 161, 166,
               168, 186, 188, 189, 195, 200],
}  # fmt: skip


def scenes(data: Path, work: Path) -> Sources:
    """COCO's panoptic numbers as ten coarse classes; pixels of other things are void."""
    from PIL import Image

    root = data / "detection/coco_subset"
    table = np.full(256, 255, np.uint8)
    for number, ids in enumerate(SCENE.values()):
        table[list(ids)] = number
    for part, name in (("train", "train2017"), ("test", "val2017")):
        (work / "scenes" / part / "masks").mkdir(parents=True, exist_ok=True)
        (work / "scenes" / part / "images").mkdir(parents=True, exist_ok=True)
        for mask in list_files(root / "semantic_segmentation/masks" / name, (".png",)):
            Image.fromarray(table[np.asarray(Image.open(mask))]).save(work / "scenes" / part / "masks" / mask.name)
            link = work / "scenes" / part / "images" / f"{mask.stem}.jpg"
            link.unlink(missing_ok=True)
            link.symlink_to((root / "images" / name / f"{mask.stem}.jpg").resolve())
    return FileSources(load_masks(work / "scenes", classes=list(SCENE)), TASKS["image-segmentation"])


ADULT = ("age workclass fnlwgt education education-num marital-status occupation relationship race sex capital-gain "
         "capital-loss hours-per-week native-country income")  # fmt: skip


def incomes(data: Path, work: Path) -> Sources:
    """Adult with the column names of its description; every fifth row measures."""
    frame = read_table(data / "tabular/adult/adult.data", header=False).set_axis(ADULT.split(), axis=1)
    parts = np.where(np.arange(len(frame)) % 5 == 0, "test", "train")
    return TableSources(frame, ("income",), TASKS["tabular-classification"], parts)


def any_series(data: Path, work: Path) -> Sources:
    """84 sets, measured on their last parts; beside them M4's hourly and weekly series (train parts), and generated
    ones, to learn from. Windows may look further ahead than their part goes: many sets are short."""
    extra = [frame for kind in ("hourly", "weekly")
             for frame in read_series_all(data / f"timeseries_forecasting/m4_{kind}/train.csv.gz")]  # fmt: skip
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(24), np.log(700), 700)).astype(int)
    extra += [read_series(synthetic_series(rng, length + 96)) for length in lengths]
    sources = SeriesSources.open(general_series(data, work), None, None, 96, 512, (0.7, 0.15, 0.15))
    return replace(sources, extra=tuple(extra), least=6, most=12, most_extra=4, head={"local": True, "dropout": 0.3})


PLANS: dict[str, Plan] = {
    "caltech101": Plan("image-classification", folder("image-classification", "image/caltech101"),
                       "Caltech-101 (101 kinds of objects)", "CC BY 4.0", tokenizer={"size": 192},
                       head={"layers": (0,)}, default=False),
    "tiny200": Plan("image-classification", tiny_imagenet, "a 9,000-image part of Tiny-ImageNet (200 kinds)",
                    "ImageNet terms, no licence stated for commercial use of the pictures", head={"layers": (0,)}),
    "cifar10": Plan("image-classification", folder("image-classification", "image/cifar10"),
                    "5,000 images of CIFAR-10 (10 kinds)", "free for research and use, cite", head={"layers": (0,)},
                    default=False),
    "xray": Plan("image-classification", folder("image-classification", "xray/covid_cxr"),
                 "510 chest X-rays (covid19, pneumonia, no findings)", "NIH ChestX-ray8 with attribution; mixed CC",
                 tokenizer={"size": 192}, default=False),
    "esc10": Plan("audio-classification", esc10, "ESC-10 folds 1-3 (10 sounds)", "CC BY"),
    "digits": Plan("audio-classification", digits, "Free Spoken Digit Dataset, four speakers", "CC BY-SA 4.0",
                   default=False),
    "clips101": Plan("video-classification", moving_pictures,
                     "Caltech-101 photographs under a moving camera (clips are generated)", "CC BY 4.0"),
    "furniture": Plan("point-cloud-classification", furniture, "Sweet Home 3D furniture (16 kinds)",
                      "CC0 and CC BY 3.0", tokenizer={"views": 2}, head={"layers": (0, 3)}),
    "any-series": Plan("forecasting", any_series,
                       "84 public sets of series (350 variates), M4 hourly and weekly (train parts), generated series",
                       "public statistics; M4: free for research and other use", Recipe(epochs=0, batch_size=32),
                       {"stride": 16}),
    "activity": Plan("time-series-classification", folder("time-series-classification", "imu/BasicMotions"),
                     "BasicMotions (accelerometer and gyroscope, 4 activities)", "UCR/UEA archive"),
    "adult": Plan("tabular-classification", incomes,
                  "UCI Adult", "CC BY 4.0"),
    "blood-cells": Plan("object-detection", blood, "BCCD (red cells, white cells, platelets)", "MIT",
                        Recipe(epochs=4, patience=10, settled_lr=0.0, augment=True, batch_size=8), DENSE, go_on=True),
    "scenes": Plan("image-segmentation", scenes, "100 images of COCO 2017, ten coarse classes", "CC BY 4.0",
                   Recipe(epochs=5, patience=12, settled_lr=0.0, augment=True, batch_size=8), DENSE, go_on=True),
}  # fmt: skip


def make(name: str, data: Path, work: Path) -> None:
    plan = PLANS[name]
    sources = plan.sources(data, work)
    measured = "test" if "test" in sources.splits() else "val"
    own_validation = "val" in sources.splits()
    sources = sources.with_validation(0.15, 0)
    pipeline = build_for(plan.task, sources, "embedded", plan.tokenizer, plan.head, 0)
    if plan.go_on:
        begin_with_shipped(pipeline, name)
    recipe = plan.recipe
    size = recipe.batch_size if recipe.epochs else BATCH.get(pipeline.modality, 64)
    learning = sources.examples(pipeline.tokenizer, "train", recipe.augment)
    validation = sources.examples(pipeline.tokenizer, "val")
    run = train_pipeline(pipeline, learning, validation, recipe, Progress())
    calibrate(pipeline, validation, size)
    finish(pipeline, run, learning, validation, 0, own_validation)
    pipeline.name = name
    ship(pipeline, plan, name, measure(round_half(pipeline), sources.examples(pipeline.tokenizer, measured), 32),
         f"{plan.data}, {measured} part")  # fmt: skip


def begin_with_shipped(pipeline: Pipeline, name: str) -> None:
    """Copies what a dense head learnt on the encoder before: a few epochs then fit it to this one."""
    from safetensors.torch import load_file

    old = load_file(embedded_folder_in_checkout() / "bundles" / name / "model.safetensors")
    for part, module in (("head.", pipeline.head), ("tokenizer.", pipeline.tokenizer)):
        kept = {key.removeprefix(part): value.float() for key, value in old.items() if key.startswith(part)}
        module.load_state_dict({key: value for key, value in kept.items() if not key.startswith("stem.")}, strict=False)


def round_half(pipeline: Pipeline) -> Pipeline:
    """Weights as half precision gives them back, so that what is measured is what ships."""
    with torch.no_grad():
        for module in (pipeline.tokenizer, pipeline.head):
            for value in (*module.parameters(), *module.buffers()):
                if value.is_floating_point():
                    value.copy_(value.half().float())
    return pipeline


def ship(pipeline: Pipeline, plan: Plan, name: str, metrics: dict[str, float], measured_on: str) -> None:
    pipeline.metrics = metrics
    pipeline.about = {
        "trained_on": plan.data,
        "measured_on": measured_on,
        "licence": f"Apache-2.0; data: {plan.licence}",
        "default": plan.default,
    }
    save(pipeline, embedded_folder_in_checkout() / "bundles" / name, torch.float16)
    print(name, {key: round(value, 4) for key, value in metrics.items()}, flush=True)


def embedded_folder_in_checkout() -> Path:
    """The package's weights folder as it stands in the repository, not the installed links to it."""
    return (embedded_folder() / "__init__.py").resolve().parent


def main() -> None:
    data, work = Path(sys.argv[1]), Path(sys.argv[2])
    for name in sys.argv[3:] or PLANS:
        make(name, data, work)


if __name__ == "__main__":
    main()

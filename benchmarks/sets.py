"""Public data sets as the rows of the tables need them: what to learn from and what measures.

Where a set's own layout does not tell `polysense fit` its parts, a view is made of it: folders of links, or files
unpacked once. Test parts measure only: no function here gives a test part to learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Runs = Callable[[Path, Path], "list[Run]"]  # (folder of all data sets, folder for views) -> runs
FSDD_SPEAKERS = ("jackson", "nicolas", "theo", "yweweler")
SMALL_TABLES = {  # as the OpenML suites CC18 (classification) and CTR23 (regression) have them
    "abalone": "regression", "winequality-red": "regression", "winequality-white": "regression",
    "banknote_authentication": "classification", "ionosphere": "classification",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """One fit and one measurement; a row of several reports their mean."""

    train: Path  # what `fit` takes
    test: Path  # what `evaluate` takes: its "test" part, or all of it where it has no parts
    name: str = ""  # among the runs of a row
    task: str = ""  # where it differs from the row's
    options: dict[str, Any] = field(default_factory=dict)  # of `fit`, on top of the row's


def plain(path: str) -> Runs:
    """A data set whose layout says its parts."""
    return lambda data, work: [Run(data / path, data / path)]


def link(file: Path, place: Path) -> None:
    if place.parent.is_symlink():  # of an older view: what is unlinked below must not be the data
        place.parent.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(file.resolve())


def links(name: str, path: str, part_of: Callable[[Path], tuple[str, str] | None]) -> Callable[[Path, Path], Path]:
    """A view of a flat or oddly laid out data set as train/CLASS and test/CLASS folders of links.

    Args:
        name: Of the view.
        path: Of the data set.
        part_of: A file's part and class, or None to leave it out.
    """

    def make(data: Path, work: Path) -> Path:
        for file in sorted(p for p in (data / path).rglob("*") if p.is_file()):
            if place := part_of(file):
                link(file, work / name / place[0] / place[1] / file.name)
        return work / name

    return make


def unpack(work: Path, parts: Mapping[str, Iterable[tuple[str, str, Any]]]) -> Path:
    """Writes (class, file name, content) of each part as PART/CLASS/FILE; a finished view is taken as it is."""
    done = work / ".whole"
    if not done.exists():
        for part, items in parts.items():
            for label, name, content in items:
                place = work / part / label / name
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    place.write_bytes(content)
                else:
                    np.save(place, content)
        done.touch()
    return work


def _pictures(file: Path, classes: Sequence[str]) -> Iterator[tuple[str, str, bytes]]:
    """JPEG images of a parquet file with the columns image (bytes) and label (a number)."""
    import pandas as pd

    table = pd.read_parquet(file, columns=["image", "label"])
    for i, (image, label) in enumerate(zip(table["image"], table["label"], strict=True)):
        yield classes[int(label)], f"{i:05}.jpg", image


def cifar(few: bool) -> Runs:
    """CIFAR-10: 50,000 train images, or the 5,000 of the small pack; the same 8,500 test images measure both."""

    def runs(data: Path, work: Path) -> list[Run]:
        root = data / "image/cifar10_full"
        classes = (root / "classes.txt").read_text().split()
        test = unpack(work / "cifar_test", {"test": _pictures(root / "test.parquet", classes)})
        if few:
            return [Run(data / "image/cifar10", test)]
        return [Run(unpack(work / "cifar_train", {"train": _pictures(root / "train.parquet", classes)}), test)]

    return runs


def tiny_imagenet(data: Path, work: Path) -> list[Run]:
    import pandas as pd

    root = data / "image/tiny_imagenet"
    names = pd.read_csv(root / "classes.csv").sort_values("label")["wnid"].tolist()
    view = unpack(work / "tiny200", {part: _pictures(root / f"{part}.parquet", names) for part in ("train", "test")})
    return [Run(view, view)]


esc10_view = links("esc10", "audio/esc10", lambda f: ("test" if f.name[0] == "4" else "train", f.parent.name)
                   if f.suffix == ".ogg" else None)  # fmt: skip
digits_view = links("digits", "audio/fsdd", lambda f: (f.parent.name, f.name[0]) if f.suffix == ".wav" else None)


def esc10(data: Path, work: Path) -> list[Run]:
    """Folds 1 to 3 teach, fold 4 measures."""
    view = esc10_view(data, work)
    return [Run(view, view)]


def unheard_speakers(data: Path, work: Path) -> list[Run]:
    """Each speaker in turn measures with all 200 recordings; the train parts of the other three teach."""

    def run(speaker: str) -> Run:
        def part_of(file: Path) -> tuple[str, str] | None:
            if file.suffix != ".wav":
                return None
            if file.name.split("_")[1] == speaker:
                return "test", file.name[0]
            return ("train", file.name[0]) if file.parent.name == "train" else None

        view = links(f"without_{speaker}", "audio/fsdd", part_of)(data, work)
        return Run(view, view, speaker)

    return [run(speaker) for speaker in FSDD_SPEAKERS]


def bimnet(data: Path, work: Path) -> list[Run]:
    """The quarter of the objects that pretraining (pretrain_embedded.py) left out measures, the rest teach."""
    import h5py

    with h5py.File(data / "pointcloud/bimnet10/bimnet10_train.h5") as file:
        clouds, labels = file["data"][:], file["label"][:]
    order = np.random.default_rng(0).permutation(len(clouds))
    cut = int(len(clouds) * 0.75)
    view = unpack(work / "bimnet10", {
        part: [(f"class_{labels[i]}", f"{i}.npy", clouds[i]) for i in sorted(rows)]
        for part, rows in (("train", order[:cut]), ("test", order[cut:]))
    })  # fmt: skip
    return [Run(view, view)]


def furniture(data: Path, work: Path) -> list[Run]:
    """Clouds of CAD objects, turned from y up to z up."""
    parts = {}
    for part in ("train", "test"):
        with np.load(data / "pointcloud/sweethome_objects" / f"{part}.npz") as arrays:
            names = arrays["classes"].tolist()
            clouds = arrays["points"][..., [0, 2, 1]].astype(np.float32)
            labels = arrays["label"].tolist()
        parts[part] = [(names[label], f"{i:03}.npy", cloud) for i, (label, cloud) in enumerate(zip(labels, clouds))]
    view = unpack(work / "furniture", parts)
    return [Run(view, view)]


def blood(data: Path, work: Path) -> list[Run]:
    """BCCD: the official val list measures; validation is cut from train."""
    root, view = data / "detection/bccd", work / "bccd"
    for folder in ("JPEGImages", "Annotations"):
        for file in (root / folder).iterdir():  # readers do not follow folders that are links
            link(file, view / folder / file.name)
    for part, official in (("train", "train"), ("test", "val")):
        link(root / "ImageSets/Main" / f"{official}.txt", view / "ImageSets/Main" / f"{part}.txt")
    return [Run(view, view)]


def raccoon(data: Path, work: Path) -> list[Run]:
    """The last 20 images by name measure."""
    root, view = data / "detection/raccoon", work / "raccoon"
    names = sorted(file.stem for file in (root / "annotations").glob("*.xml"))
    for part, chosen in (("train", names[:-20]), ("test", names[-20:])):
        for name in chosen:
            link(root / "annotations" / f"{name}.xml", view / part / f"{name}.xml")
            link(root / "images" / f"{name}.jpg", view / part / f"{name}.jpg")
    return [Run(view, view)]


def hit_uav(data: Path, work: Path) -> list[Run]:
    """People, cars, bicycles and other vehicles from the air; what its class DontCare marks is left out."""
    import json

    root, view = data / "infrared/hit_uav", work / "hit_uav"
    for part in ("train", "test"):
        told = json.loads((root / "annotations" / f"{part}.json").read_text())
        unwanted = {kind["id"] for kind in told["categories"] if kind["name"] == "DontCare"}
        told["annotation"] = [one for one in told["annotation"] if one["category_id"] not in unwanted]
        told["categories"] = [kind for kind in told["categories"] if kind["id"] not in unwanted]
        for image in told["images"]:
            link(root / part / image["filename"], view / part / image["filename"])
        (view / part / f"{part}.json").write_text(json.dumps(told))
    return [Run(view, view)]


def coco_segments(data: Path, work: Path) -> list[Run]:
    """Outlines of objects and masks of all classes; the official val images measure."""
    root, view = data / "detection/coco_subset", work / "coco_segments"
    for part, official in (("train", "train2017"), ("test", "val2017")):
        for inner in ("images", "instance_segmentation/labels", "semantic_segmentation/masks"):
            link(root / inner / official, view / inner / part)
    for kind in ("instance_segmentation", "semantic_segmentation"):
        told = (root / kind / "config.yaml").read_text().replace("val:", "test:")
        told = told.replace("train2017", "train").replace("val2017", "test")
        (view / kind / "config.yaml").write_text(told)
    return [Run(view, view)]


def cut(file: Path, view: Path, measures: Callable[[int], np.ndarray]) -> tuple[Path, Path]:
    """Cuts a table without a header in two files; `measures` says of each of n rows whether it is one that measures."""
    rows = [row for row in file.read_text().splitlines() if row.strip()]
    chosen = measures(len(rows))
    view.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        kept = [row for row, measured in zip(rows, chosen, strict=True) if measured == (part == "test")]
        (view / f"{part}.csv").write_text("\n".join(kept) + "\n")
    return view / "train.csv", view / "test.csv"


def adult(data: Path, work: Path) -> list[Run]:
    """Five folds of the official train file: row i measures in fold i modulo 5."""
    file = data / "tabular/adult/adult.data"

    def run(k: int) -> Run:
        return Run(*cut(file, work / f"adult_{k}", lambda n: np.arange(n) % 5 == k), f"fold{k}")

    return [run(k) for k in range(5)]


def small_tables(data: Path, work: Path) -> list[Run]:
    """A quarter of each table measures, drawn at random: some of these files alternate their classes row by row."""

    def drawn(n: int) -> np.ndarray:
        return np.random.default_rng(0).permutation(n) % 4 == 0

    return [Run(*cut(data / f"tabular/{name}/{name}.csv", work / name, drawn), name, f"tabular-{kind}")
            for name, kind in SMALL_TABLES.items()]  # fmt: skip


def sst2(data: Path, work: Path) -> list[Run]:
    """The official train and dev files."""
    root = data / "text/sst2"
    return [Run(root / "train.tsv", root / "dev.tsv")]


def ag_news(data: Path, work: Path) -> list[Run]:
    """A fifth of the rows measures, drawn at random."""

    def drawn(n: int) -> np.ndarray:
        return np.random.default_rng(0).permutation(n) % 5 == 0

    return [Run(*cut(data / "text/ag_news/ag_news.csv", work / "ag_news", drawn))]


def general_series(data: Path, work: Path) -> Path:
    """84 sets of series of any kind, as one folder."""
    for file in (data / "timeseries_forecasting/general").glob("*.csv"):
        if file.name != "INDEX.csv":
            link(file, work / "series" / file.name)
    return work / "series"


def unfitted(path: str) -> Runs:
    """Series for a forecaster that learnt from others."""
    return lambda data, work: [Run(general_series(data, work), data / "timeseries_forecasting" / path)]


def read_m4(folder: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(name, history (t,), future (h,)) of each series; a line of the files is a name and its values."""
    import gzip

    def read(part: str) -> dict[str, np.ndarray]:
        with gzip.open(folder / f"{part}.csv.gz", "rt") as file:
            rows = [line.strip().split(",") for line in file if line.strip()]
        return {row[0]: np.array([float(value) for value in row[1:] if value]) for row in rows}

    history, future = read("train"), read("test")
    return [(name, values, future[name]) for name, values in history.items()]

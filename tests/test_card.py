"""A bundle's card: tables and pictures of what was measured, small, the same each time, and without anybody's data."""

import io
import json

import numpy as np
import pytest
from PIL import Image

import polysense
from polysense.apps.pictures import draw
from polysense.core.errors import InputError
from polysense.core.predictions import Boxes, Labels, Values
from polysense.data.dataset import BoxTarget
from polysense.training.card import make_card
from polysense.training.fit import fit
from polysense.training.metrics import make_metric

PATCHES = {"form": "patch", "size": 64}
HISTORY = [(0, {"accuracy": 0.5}, None), (1, {"accuracy": 0.6}, 1.2), (2, {"accuracy": 0.7}, 0.9)]


def classified(count=40, k=3):
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(k)]
    metric = make_metric("classification", names)
    truth = []
    for _ in range(count):
        scores = rng.dirichlet(np.ones(k))
        order = np.argsort(-scores)
        truth.append(names[int(order[0 if rng.random() < 0.7 else 1])])
        metric.update(Labels(tuple(names[i] for i in order), tuple(scores[order]), (names[order[0]],), "x"), truth[-1])
    return metric, truth


def test_classes():
    metric, truth = classified()
    card = make_card(metric, "accuracy", HISTORY)
    assert set(card.pictures) == {"confusion.png", "reliability.png", "learning.png"}
    f1 = [row["f1"] for row in card.per_class.values()]
    assert np.mean(f1) == pytest.approx(metric.compute()["f1"], abs=1e-6)
    assert {name: row["count"] for name, row in card.per_class.items()} == {
        n: truth.count(n) for n in sorted(set(truth))
    }
    for picture in card.pictures.values():
        assert Image.open(io.BytesIO(picture.png)).size[0] > 200 and picture.caption
    assert make_card(metric, "accuracy", HISTORY) == card  # byte for byte
    assert "learning.png" not in make_card(metric, "accuracy", HISTORY[:1]).pictures


def test_many_classes_stay_small():
    card = make_card(classified(400, 101)[0], "accuracy", HISTORY)
    assert sum(len(picture.png) for picture in card.pictures.values()) < 300_000


def test_labels_and_masks():
    metric = make_metric("multilabel", ["a", "b"])
    metric.update(Labels(("a", "b"), (0.9, 0.2), ("a",), "x"), ["a", "b"])
    metric.update(Labels(("a", "b"), (0.8, 0.7), ("a", "b"), "x"), ["b"])
    card = make_card(metric, "f1", HISTORY[:1])
    assert card.per_class["a"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "count": 1}
    assert set(card.pictures) == {"reliability.png"}
    masks = make_metric("segmentation", ["a", "b"])
    masks.confusion[:] = [[6, 2], [0, 4]]
    card = make_card(masks, "miou", HISTORY[:1])
    assert card.per_class["a"]["iou"] == 0.75 and card.per_class["b"]["recall"] == 1.0


def test_numbers():
    metric = make_metric("regression")
    for i in range(30):
        metric.update(Values({"p": float(i), "q": i / 2}, "x"), {"p": i + 1.0, "q": 3.0})
    picture = make_card(metric, "rmse", HISTORY[:1]).pictures["scatter.png"]
    width, height = Image.open(io.BytesIO(picture.png)).size
    assert width == 2 * height  # one panel for each name


def test_boxes():
    metric = make_metric("detection", ["cat", "dog", "owl"])
    box = np.array([[0.0, 0.0, 10.0, 10.0]])
    for name, score in (("cat", 0.9), ("dog", 0.8)):
        found = Boxes(box, (name,), np.array([score]), (40, 40), "x")
        metric.update(found, BoxTarget(box.tolist(), [name]))
    metric.update(Boxes(box, ("owl",), np.array([0.95]), (40, 40), "x"), BoxTarget([[20, 20, 30, 30]], ["dog"]))
    card = make_card(metric, "map", HISTORY[:1])
    assert card.per_class["cat"] == {"map": pytest.approx(1.0), "map50": pytest.approx(1.0)}
    assert set(card.per_class) == {"cat", "dog"} and card.per_class["dog"]["map50"] < 0.6
    assert np.mean([row["map"] for row in card.per_class.values()]) == pytest.approx(metric.compute()["map"], abs=1e-4)
    assert "precision_recall.png" in card.pictures


def test_in_a_bundle_and_back(image_folders, quick, tmp_path):
    options = {"tokenizer_options": PATCHES, "val_share": 0.25, "epochs": 1, "check": False}
    result, bundle = quick("image-classification", image_folders, **options)
    assert {p.name for p in (result.path / "card").iterdir()} == {"confusion.png", "reliability.png", "learning.png"}
    readme = (result.path / "README.md").read_text()
    assert "(card/confusion.png)" in readme and "| class | precision | recall | f1 | count |" in readme
    assert not any(f"{i}.png" in readme for i in range(12))  # no input's name
    again = bundle.save_pretrained(tmp_path / "again")
    assert polysense.load(again).card == bundle.card and (again / "card" / "confusion.png").is_file()
    # Pictures that were deleted leave a bundle that works.
    (again / "card" / "confusion.png").unlink()
    assert "confusion.png" not in polysense.load(again).card.pictures
    result, bundle = quick("image-classification", image_folders, card=False, out=tmp_path / "plain", **options)
    assert not (result.path / "card").exists() and json.loads((result.path / "config.json").read_text())["card"] == {
        "per_class": {},
        "pictures": {},
    }


def test_worst_examples_only_when_asked(image_folders, quick, encoder_spec):
    Image.open(image_folders / "red" / "0.png").save(image_folders / "blue" / "wrong.png")
    options = {"tokenizer_options": PATCHES, "val_share": 0.25, "epochs": 0, "check": False}
    result, bundle = quick("image-classification", image_folders, card_examples=2, draw=draw, seed=3, **options)
    worst = {name: p for name, p in bundle.card.pictures.items() if name.startswith("worst")}
    assert set(worst) == {"worst_01.png", "worst_02.png"}
    readme = (result.path / "README.md").read_text()
    assert worst["worst_01.png"].caption in readme and str(image_folders) not in readme
    assert sum(p.stat().st_size for p in (result.path / "card").iterdir()) < 300_000
    with pytest.raises(InputError, match="give draw"):
        fit("image-classification", image_folders, result.path, card_examples=2, encoder=encoder_spec)
    with pytest.raises(InputError, match="leave them out"):
        fit("tabular-regression", image_folders, result.path, card_examples=2, draw=draw, encoder=encoder_spec)

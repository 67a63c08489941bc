"""Boxes written as COCO, Pascal VOC and YOLO: what is written reads back as it was."""

import json

import numpy as np
import pytest
from PIL import Image

from polysense.core.errors import InputError
from polysense.core.predictions import Boxes, Values
from polysense.data.boxes import load_boxes, write_voc, write_yolo
from polysense.data.dataset import BoxTarget, Dataset, Item
from polysense.data.image import ORIENTATION
from polysense.data.writers import open_writer

WRITERS = {"voc": write_voc, "yolo": write_yolo}
BOXES = {
    "a.jpg": BoxTarget([(1.5, 2.25, 30.0, 20.0), (0.0, 0.0, 7.0, 9.0)], ["cät", "dog & co"]),
    "b.png": BoxTarget([(3.0, 4.0, 39.0, 29.5)], ["dog & co"]),
    "c.jpg": BoxTarget([], []),
}


@pytest.fixture
def images(tmp_path):
    """Images of 40 x 30, one of them stored lying on its side."""
    for name in BOXES:
        upright = name != "a.jpg"
        exif = Image.Exif()
        exif[ORIENTATION] = 1 if upright else 6
        Image.new("RGB", (40, 30) if upright else (30, 40), "grey").save(tmp_path / name, exif=exif)
    return tmp_path


def dataset(folder, splits=("train", "val", "test")):
    items = [Item(folder / name, target, split) for (name, target), split in zip(BOXES.items(), splits, strict=True)]
    return Dataset(items, ["cät", "dog & co"])


def answers(folder):
    found = []
    for name, target in BOXES.items():
        xyxy = np.array(target.xyxy, np.float32).reshape(-1, 4)
        scores = np.linspace(0.9, 0.5, len(xyxy), dtype=np.float32)
        found.append(Boxes(xyxy, target.labels, scores, (30, 40), str(folder / name)))
    return found


def same(found, wanted):
    """Images by name, with their boxes and splits."""
    assert found.classes == wanted.classes
    pairs = zip(sorted(found.items, key=lambda item: item.source.name), wanted.items, strict=True)
    for one, other in pairs:
        assert (one.source.name, one.split) == (other.source.name, other.split)
        assert list(one.target.labels) == list(other.target.labels)
        if one.target.labels:
            np.testing.assert_allclose(one.target.xyxy, other.target.xyxy, atol=1e-5)


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("", "", "")])
@pytest.mark.parametrize("layout", WRITERS)
def test_a_data_set_reads_back_as_it_was(layout, splits, images):
    wanted = dataset(images, splits)
    WRITERS[layout](wanted, images / "out")
    found = load_boxes(images / "out")
    same(found, wanted)
    assert all(item.source.is_relative_to(images / "out") for item in found.items)
    assert all(item.source.read_bytes() == (images / item.source.name).read_bytes() for item in found.items)


@pytest.mark.parametrize("layout", WRITERS)
def test_written_once_more_it_is_the_same(layout, images):
    WRITERS[layout](dataset(images), images / "once")
    other = next(write for name, write in WRITERS.items() if name != layout)
    other(load_boxes(images / "once"), images / "twice")
    same(load_boxes(images / "twice"), dataset(images))


@pytest.mark.parametrize("layout", WRITERS)
def test_predictions_become_a_data_set(layout, images):
    WRITERS[layout](answers(images), images / "out")
    same(load_boxes(images / "out"), dataset(images, ("", "", "")))
    if layout == "yolo":  # the score is a sixth number
        first, second = (images / "out/labels/a.txt").read_text().splitlines()
        assert float(first.split()[5]) == pytest.approx(0.9) and float(second.split()[5]) == pytest.approx(0.5)


@pytest.mark.parametrize("layout", WRITERS)
def test_images_of_one_name_stay_apart_and_no_split_is_train(layout, images):
    (images / "other").mkdir()
    Image.new("RGB", (40, 30), "red").save(images / "other/a.png")
    items = [Item(images / "a.jpg", BOXES["a.jpg"], "val"), Item(images / "other/a.png", BOXES["b.png"])]
    WRITERS[layout](Dataset(items, ["cät", "dog & co"]), images / "out")
    found = {item.source.name: item for item in load_boxes(images / "out").items}
    assert {name: item.split for name, item in found.items()} == {"a.jpg": "val", "a-2.png": "train"}
    assert list(found["a-2.png"].target.labels) == ["dog & co"]


@pytest.mark.parametrize("layout", WRITERS)
def test_faults_are_one_sentence_and_nothing_is_overwritten(layout, images):
    with pytest.raises(InputError, match="already; name a new folder"):
        WRITERS[layout](dataset(images), images)
    for source in (images / "gone.jpg", Image.new("RGB", (4, 4))):
        with pytest.raises(InputError, match="no such image file"):
            WRITERS[layout](Dataset([Item(source, BoxTarget([], []))]), images / "new")
    assert not (images / "new").exists()


def test_coco_answers_read_back(images):
    out = images / "results" / "answers.coco.json"
    out.parent.mkdir()
    with open_writer(out) as writer:
        for answer in answers(images):
            writer.write(answer)
    content = json.loads(out.read_text())
    assert content["categories"] == [{"id": 1, "name": "cät"}, {"id": 2, "name": "dog & co"}]
    assert content["images"][0] == {"id": 1, "file_name": "../a.jpg", "width": 40, "height": 30}
    first = content["annotations"][0]
    assert first == {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1.5, 2.25, 28.5, 17.75], "score": 0.9,
                     "area": 505.875, "iscrowd": 0}  # fmt: skip
    assert [one["id"] for one in content["annotations"]] == [1, 2, 3]
    same(load_boxes(out), dataset(images, ("", "", "")))


def test_coco_takes_boxes_alone(tmp_path):
    with pytest.raises(InputError, match=r"boxes.*\.jsonl"), open_writer(tmp_path / "a.coco.json") as writer:
        writer.write(Values({"age": 1.0}))
    assert not list(tmp_path.iterdir())

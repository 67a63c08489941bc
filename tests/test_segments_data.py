"""Data sets of segments on disk, and their metrics."""

import json

import numpy as np
import pytest
from PIL import Image

from polysense.core.errors import InputError
from polysense.core.predictions import Segments
from polysense.data.segments import NOTHING, VOID, OutlineFile, PanopticFile, SegmentTarget, filled, read_segments
from polysense.data.segments_layouts import load_segments
from polysense.training.augment import augment
from polysense.training.metrics import score

SIZE = (40, 60)  # rows, columns


@pytest.fixture
def picture(tmp_path):
    """picture(path) -> a grey image at this place below the folder."""

    def make(path):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], "grey").save(tmp_path / path)
        return tmp_path / path

    return make


def box(x1, y1, x2, y2):
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def test_coco_panoptic(tmp_path, picture):
    picture("train2017/1.png")
    numbers = np.zeros((*SIZE, 3), np.uint8)
    numbers[:20], numbers[20:], numbers[5:10, 5:10], numbers[30:, 30:] = (7, 1, 0), (9, 0, 0), (3, 0, 2), (4, 0, 0)
    (tmp_path / "panoptic_train2017").mkdir()
    Image.fromarray(numbers).save(tmp_path / "panoptic_train2017/1.png")
    ids = {7 + 256: 10, 9: 11, 3 + 2 * 65536: 1, 4: 1}
    told = {
        "images": [{"id": 5, "file_name": "1.png"}, {"id": 6, "file_name": "gone.png"}],
        "annotations": [{"image_id": 5, "file_name": "1.png", "segments_info": [
            {"id": one, "category_id": kind, "iscrowd": int(one == 4)} for one, kind in ids.items()]}],
        "categories": [{"id": 10, "name": "sky", "isthing": 0}, {"id": 11, "name": "sea", "isthing": 0},
                       {"id": 1, "name": "boat", "isthing": 1}],
    }  # fmt: skip
    (tmp_path / "panoptic_train2017.json").write_text(json.dumps(told))
    with pytest.warns(UserWarning, match="1 images are not there"):
        found = load_segments(tmp_path)
    assert (found.classes, found.things) == (["boat", "sea", "sky"], ["boat"])
    assert [item.split for item in found.items] == ["train"]
    target = read_segments(found.items[0].target)
    areas = {label: int((target.index == i).sum()) for i, label in enumerate(target.labels)}
    assert areas == {"sky": 20 * 60 - 25, "boat": 25, "sea": 20 * 60 - 300}
    assert (target.index[30:, 30:] == VOID).all()  # a crowd
    assert found.with_validation().things == ["boat"]


def test_coco_instances_with_polygons_runs_and_crowds(tmp_path, picture):
    picture("images/val/a.png")
    runs = {"size": list(SIZE), "counts": [0, 400, 2000]}  # the first ten columns
    told = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "segmentation": box(0, 0, 30, 30), "bbox": [0, 0, 30, 30]},
            {"image_id": 1, "category_id": 2, "segmentation": box(10, 10, 20, 20), "bbox": [10, 10, 10, 10]},
            {"image_id": 1, "category_id": 2, "segmentation": runs, "iscrowd": 1, "bbox": [0, 0, 10, 40]},
        ],
        "categories": [{"id": 1, "name": "table"}, {"id": 2, "name": "cup"}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val.json").write_text(json.dumps(told))
    found = load_segments(tmp_path)
    assert found.things == found.classes == ["cup", "table"] and found.items[0].split == "val"
    target = read_segments(found.items[0].target)
    assert target.labels == ["table", "cup"]
    assert (target.index == 1).sum() == 100 and (target.index == 0).sum() == 800  # the smaller lies in front
    assert (target.index[:, :10] != NOTHING).all() and target.index[35, 5] == VOID and target.index[35, 50] == NOTHING


def test_yolo_polygons_alone_and_beside_masks(tmp_path, picture):
    for part in ("train", "val"):
        picture(f"images/{part}/x.png")
        labels = tmp_path / "instances/labels" / part
        labels.mkdir(parents=True)
        (labels / "x.txt").write_text("1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n1 0.5 0.25 0.1 0.1\n")
    config = "names: {1: cup}\npath: .\ntrain: images/train\nval: images/val\n"
    (tmp_path / "instances/config.yaml").write_text(config)
    alone = load_segments(tmp_path)
    assert alone.things == alone.classes == ["cup"] and [item.split for item in alone.items] == ["train", "val"]
    target = read_segments(alone.items[0].target)
    assert target.labels == ["cup"] and (target.index == 0).sum() == 16 * 24 and (target.index == NOTHING).any()

    mask = np.zeros(SIZE, np.uint8)
    mask[:, :12], mask[:, 12:], mask[35:, 50:] = 1, 2, 0
    for part in ("train", "val"):
        (tmp_path / "semantic/masks" / part).mkdir(parents=True)
        Image.fromarray(mask).save(tmp_path / "semantic/masks" / part / "x.png")
    parts = "".join(f"{p}: {{images: ../images/{p}, masks: masks/{p}}}\n" for p in ("train", "val"))
    (tmp_path / "semantic/config.yaml").write_text(f"classes: {{0: unlabelled, 1: cup, 2: table}}\n{parts}")
    both = load_segments(tmp_path)
    assert (both.classes, both.things) == (["cup", "table"], ["cup"])
    target = read_segments(both.items[0].target)
    assert target.labels == ["cup", "table"]
    assert (target.index == 0).sum() == 16 * 6  # only where the mask says so
    assert target.index[0, 0] == VOID and target.index[39, 59] == VOID and target.index[0, 30] == 1


def test_faults_are_one_clear_sentence(tmp_path, picture):
    with pytest.raises(InputError, match="no data set of segments"):
        load_segments(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        load_segments(tmp_path / "gone")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match=r"broken\.png: the segments cannot be read"):
        PanopticFile(tmp_path / "broken.png").read()
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="the mask is 8x8, its image 60x40"):
        OutlineFile(SIZE, (), mask=tmp_path / "small.png", names=("a",)).read()
    (tmp_path / "x.json").write_text(json.dumps({"images": [{"id": 1}], "annotations": [{"segmentation": [[1]]}]}))
    with pytest.raises(InputError, match="lacks or misuses a COCO key"):
        load_segments(tmp_path)


def test_outlines_without_area_are_empty():
    assert not filled([[1, 1, 5, 5]], SIZE).any() and not filled([], SIZE).any()


def test_augmentation_keeps_segments_on_their_pixels():
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, :20] = 255
    index = np.where(pixels[..., 0] > 0, 0, NOTHING).astype(np.int32)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        image, target = augment("image", Image.fromarray(pixels), SegmentTarget(index, ["white"]), rng)
        bright = np.asarray(image)[..., 0] > 100
        assert target.labels == ["white"] and target.index.shape == bright.shape
        assert ((target.index == 0) == bright).mean() > 0.98


def answer_of(index, labels, scores=None):
    return Segments(np.asarray(index, np.int32), labels, np.array(scores or [0.9] * len(labels), np.float32))


CLASSES = ("disc", "square", "sky")


def test_metrics_by_hand():
    index = np.full((10, 10), 1, np.int32)
    index[:5, :5], index[9] = 0, VOID
    truth = SegmentTarget(index, ["disc", "sky"])
    same = np.where(index == VOID, -1, index)
    options = {"classes": CLASSES, "things": ["disc", "square"]}
    assert score("panoptic", [answer_of(same, ["disc", "sky"])], [truth], **options) == pytest.approx(
        {"pq": 1, "pq_things": 1, "pq_regions": 1, "sq": 1, "rq": 1})  # fmt: skip
    assert score("instances", [answer_of(same, ["disc", "sky"])], [truth], **options)["map"] == pytest.approx(1)
    half = same.copy()
    half[:5, 3:5] = 1  # of the disc 15 of 25 pixels are found; the sky has 65 + 10
    found = score("panoptic", [answer_of(half, ["disc", "sky"])], [truth], **options)
    assert found["pq_things"] == pytest.approx(15 / 25) and found["pq_regions"] == pytest.approx(65 / 75)
    assert found["pq"] == pytest.approx((15 / 25 + 65 / 75) / 2)
    wrong = score("panoptic", [answer_of(same, ["square", "sky"])], [truth], **options)
    assert wrong["pq"] == pytest.approx(1 / 3)  # a disc missed, a square invented
    assert score("instances", [answer_of(half, ["disc", "sky"])], [truth], **options)["map50"] == pytest.approx(1)
    assert score("instances", [answer_of(half, ["disc", "sky"])], [truth], **options)["map75"] == pytest.approx(0)


def test_answers_on_void_do_not_count_against():
    index = np.full((10, 10), VOID, np.int32)
    index[:5, :5] = 0
    truth = SegmentTarget(index, ["disc"])
    answer = np.full((10, 10), -1)
    answer[:5, :5], answer[6:, 6:] = 0, 1
    options = {"classes": CLASSES, "things": ["disc"]}
    both = answer_of(answer, ["disc", "disc"], [0.5, 0.9])
    assert score("instances", [both], [truth], **options)["map"] == pytest.approx(1)
    assert score("panoptic", [both], [truth], **options)["pq"] == pytest.approx(1)


def test_metrics_refuse_another_size_and_an_unknown_class():
    truth = SegmentTarget(np.zeros((4, 4), np.int32), ["disc"])
    with pytest.raises(InputError, match="shape"):
        score("panoptic", [answer_of(np.zeros((5, 4)), ["disc"])], [truth], CLASSES, things=["disc"])
    with pytest.raises(InputError, match="'cat' is no class"):
        score("panoptic", [answer_of(np.zeros((4, 4)), ["disc"])], [SegmentTarget(truth.index, ["cat"])], CLASSES)
    assert score("panoptic", [], [], CLASSES) == {} and score("instances", [], [], CLASSES) == {}

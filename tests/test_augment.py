"""Augmentations: seeded, and target follows input."""

import numpy as np
import pytest
import torch
from PIL import Image

from polysense.core.errors import InputError
from polysense.data.dataset import BoxTarget, Item
from polysense.data.masks import IGNORE, MaskFile
from polysense.tasks import TASKS
from polysense.training.augment import augment
from polysense.training.examples import varied
from polysense.training.fit import fit
from polysense.training.scenes import check_extras, mosaic, turn


def picture(height=48, width=64):
    """Two halves, so that a mirrored or cropped mask can be told from the right one."""
    pixels = np.full((height, width, 3), 40, np.uint8)
    pixels[:, width // 3 :] = 200
    return Image.fromarray(pixels), (np.arange(width) >= width // 3).astype(np.uint8)[None].repeat(height, 0)


VALUES = {
    "image": lambda: picture()[0],
    "point_cloud": lambda: np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32),
    "audio": lambda: (np.random.default_rng(0).normal(size=800).astype(np.float32), 8000),
    "time_series": lambda: np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32),
}


def plain(value):
    return np.asarray(value[0] if isinstance(value, tuple) else value)


@pytest.mark.parametrize("modality", VALUES)
def test_one_seed_one_result_and_the_input_is_left_alone(modality):
    value = VALUES[modality]()
    before = plain(value).copy()
    first, target = augment(modality, value, "cat", np.random.default_rng(5))
    second, _ = augment(modality, value, "cat", np.random.default_rng(5))
    other, _ = augment(modality, value, "cat", np.random.default_rng(6))
    assert target == "cat" and type(first) is type(value)
    assert np.array_equal(plain(first), plain(second))
    assert plain(first).shape != plain(other).shape or not np.array_equal(plain(first), plain(other))
    assert np.array_equal(plain(value), before)


@pytest.mark.parametrize("form", ["array", "pil", "file"])
def test_mask_follows_its_image(form, tmp_path):
    image, mask = picture()
    Image.fromarray(mask).save(tmp_path / "mask.png")
    target = {"array": mask, "pil": Image.fromarray(mask), "file": MaskFile(tmp_path / "mask.png", (0, 1))}[form]
    for seed in range(10):
        value, moved = augment("image", image, target, np.random.default_rng(seed))
        grey = np.asarray(value.convert("L")).astype(int)
        assert moved.shape == grey.shape
        bright = grey > 120  # 40 * 1.3 < 120 < 200 * .7
        assert (bright == moved.astype(bool)).all()


def test_boxes_follow_their_image():
    seen = 0
    for seed in range(20):
        pixels = np.zeros((60, 80, 3), np.uint8)
        pixels[20:40, 10:30] = 255
        target = BoxTarget([(10, 20, 30, 40)], ["square"])
        value, moved = augment("image", Image.fromarray(pixels), target, np.random.default_rng(seed))
        bright = np.asarray(value)[..., 0] > 120
        if not moved.labels:
            assert bright.sum() < 0.3 * 400
            continue
        ys, xs = bright.nonzero()
        assert moved.xyxy[0] == pytest.approx([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        seen += 1
    assert seen > 10


def test_image_without_boxes_keeps_an_empty_target():
    _, moved = augment("image", picture()[0], BoxTarget([], []), np.random.default_rng(0))
    assert moved == BoxTarget([], [])


def test_points_stay_upright_and_keep_other_columns():
    points = np.random.default_rng(0).normal(size=(200, 6)) + np.array([1000, 2000, 50, 0, 0, 0])
    before, turned, kept = points[:, :3] - points[:, :3].mean(0), 0, 0
    for seed in range(20):
        moved, _ = augment("point_cloud", points, None, np.random.default_rng(seed))
        assert np.array_equal(moved[:, 3:], points[:, 3:])
        after = moved[:, :3] - points[:, :3].mean(0)
        scale = np.linalg.norm(after, axis=0) / np.linalg.norm(before, axis=0)
        assert scale.min() > 0.6 and scale.max() < 1.6
        np.testing.assert_allclose(after[:, 2], before[:, 2] * scale[2], atol=0.15)
        straight = np.allclose(np.abs(after[:, 0]), np.abs(before[:, 0]) * scale[0], atol=0.15)
        kept, turned = kept + straight, turned + (not straight)
    assert min(kept, turned) > 4
    whole, _ = augment("point_cloud", np.arange(30).reshape(10, 3), None, np.random.default_rng(1))
    assert whole.dtype.kind == "f"


@pytest.mark.parametrize("shape", [(800,), (2, 800), (800, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_audio_keeps_shape_and_type(shape, dtype):
    wave = (np.random.default_rng(0).uniform(-1, 1, shape) * (30_000 if dtype == np.int16 else 1)).astype(dtype)
    moved, _ = augment("audio", wave, None, np.random.default_rng(3))
    assert moved.shape == shape and moved.dtype == dtype
    tensor, _ = augment("audio", torch.from_numpy(wave), None, np.random.default_rng(3))
    assert torch.equal(tensor, torch.from_numpy(moved))


def test_forecast_stays_as_it_is():
    series, future = np.ones((20, 1)), np.ones((5, 1))
    moved, target = augment("time_series", series, future, np.random.default_rng(0))
    assert np.array_equal(moved, series) and target is future


def test_modality_without_augmentation_passes():
    assert augment("tabular", {"a": 1}, "x", np.random.default_rng(0)) == ({"a": 1}, "x")


def squares(seed, side=120):
    """A dark picture with two bright squares, and their boxes."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((side, side + 40, 3), np.uint8)
    boxes = []
    for left in (10, 90):
        top, size = int(rng.integers(10, 70)), int(rng.integers(20, 40))
        pixels[top : top + size, left : left + size] = 255
        boxes.append((left, top, left + size, top + size))
    return Image.fromarray(pixels), BoxTarget(boxes, ["left", "right"])


def is_bright(value, box, shrink=0.0):
    """Share of bright pixels in a box, its sides shortened by `shrink` at each end."""
    x1, y1, x2, y2 = box
    dx, dy = shrink * (x2 - x1), shrink * (y2 - y1)
    grey = np.asarray(value.convert("L"))[round(y1 + dy) : round(y2 - dy), round(x1 + dx) : round(x2 - dx)]
    return (grey > 200).mean()


@pytest.mark.parametrize("extras", [("rotate",), ("shrink",), ("rotate", "shrink")])
def test_boxes_turn_and_shrink_with_their_image(extras):
    areas = []
    for seed in range(12):
        image, target = squares(seed)
        value, moved = turn(image, target, np.random.default_rng(seed), extras)
        again, same = turn(image, target, np.random.default_rng(seed), extras)
        assert value.size == image.size and same == moved and np.array_equal(np.asarray(value), np.asarray(again))
        bright = np.asarray(value.convert("L")) > 200
        for box, name in zip(moved.xyxy, moved.labels, strict=True):
            assert is_bright(value, box, 0.2) == 1  # the middle of the box is the square
            x1, y1, x2, y2 = (round(v) for v in box)
            bright[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = False
            old = target.xyxy[target.labels.index(name)]
            areas.append((box[2] - box[0]) * (box[3] - box[1]) / ((old[2] - old[0]) * (old[3] - old[1])))
        assert not bright.any() or len(moved.labels) < 2  # nothing bright lies outside the boxes
    if extras == ("rotate",):  # boxes around turned squares are larger, by up to a third at 10 degrees
        assert len(areas) > 20 and min(areas) >= 0.99 and 1.1 < max(areas) < 1.4
    if extras == ("shrink",):
        assert len(areas) == 24 and 0.24 < min(areas) < 0.5 and max(areas) <= 1


def test_boxes_that_turn_out_of_the_frame_are_gone():
    pixels = Image.new("RGB", (400, 60))
    target = BoxTarget([(0, 0, 12, 12), (190, 20, 210, 40)], ["corner", "middle"])
    kept = [turn(pixels, target, np.random.default_rng(seed), ("rotate",))[1] for seed in range(20)]
    assert all("middle" in one.labels for one in kept)
    assert {"corner" in one.labels for one in kept} == {True, False}
    for one in kept:
        boxes = np.array(one.xyxy)
        assert (boxes >= 0).all() and (boxes[:, [0, 2]] <= 400).all() and (boxes[:, [1, 3]] <= 60).all()


@pytest.mark.parametrize("extras", [("rotate", "shrink"), ("rotate", "shrink", "mosaic")])
def test_masks_turn_and_shrink_with_their_image(extras):
    image, mask = picture(96, 128)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        value, moved = varied("image", Item(image, mask), rng, extras)
        if "mosaic" in extras:
            value, moved = mosaic([(value, moved)] + [varied("image", Item(image, mask), rng, extras)] * 3, rng)
        grey = np.asarray(value.convert("L")).astype(int)
        assert moved.shape == grey.shape and set(np.unique(moved)) <= {0, 1, IGNORE} and moved.dtype == mask.dtype
        wrong = ((grey > 150) & (moved == 0)) | ((grey < 60) & (moved == 1))
        assert wrong.mean() < 0.02 and (moved == 1).mean() > 0.05  # 40 and 200 before colours shifted
    turned, ignored = turn(image, mask, np.random.default_rng(5), ("rotate",))
    assert ignored[0, 0] == IGNORE or ignored[0, -1] == IGNORE  # corners that came in show nothing
    assert np.asarray(turned)[0, 0].tolist() == [124, 116, 104] or np.asarray(turned)[0, -1].tolist() == [124, 116, 104]


def test_mosaic_has_the_boxes_of_four_pictures():
    lengths = []
    for seed in range(8):
        parts = [squares(10 * seed + i, 100 + 20 * i) for i in range(4)]
        value, target = mosaic(parts, np.random.default_rng(seed))
        again, _ = mosaic(parts, np.random.default_rng(seed))
        assert value.size == parts[0][0].size and np.array_equal(np.asarray(value), np.asarray(again))
        lengths.append(len(target.labels))
        rest = np.asarray(value.convert("L")) > 200
        for box in target.xyxy:
            assert 0 <= box[0] < box[2] <= value.width + 1e-3 and 0 <= box[1] < box[3] <= value.height + 1e-3
            assert is_bright(value, box, 0.1) > 0.9
            x1, y1, x2, y2 = (round(v) for v in box)
            rest[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = False
        assert rest.mean() < 0.02  # what is bright and in no box was too little of a square
    assert min(lengths) >= 2 and max(lengths) > 4
    empty = [(Image.new("RGB", (1, 3)), BoxTarget([], []))] * 4  # a tiny picture has a mosaic too
    assert mosaic(empty, np.random.default_rng(0))[1] == BoxTarget([], [])


def test_examples_draw_mosaics_from_the_others(build):
    from polysense.training.examples import FileExamples

    tokenizer = build("object-detection").tokenizer
    items = [Item(*squares(seed)) for seed in range(6)]
    examples = FileExamples(items, tokenizer, "image", True, ("mosaic",))
    counts = [len(examples.train(0, np.random.default_rng(seed))[0][1].labels) for seed in range(16)]
    assert max(counts) > 2  # more than one picture holds
    plain = FileExamples(items, tokenizer, "image", True)
    assert max(len(plain.train(0, np.random.default_rng(seed))[0][1].labels) for seed in range(16)) <= 2
    first, second = (examples.train(1, np.random.default_rng(3))[0] for _ in range(2))
    assert first[1] == second[1] and torch.equal(first[0].data["image"], second[0].data["image"])


def test_extras_that_do_not_suit_are_one_clear_sentence(tmp_path):
    check_extras(TASKS["object-detection-set"], ("rotate", "shrink", "mosaic"))
    check_extras(TASKS["image-classification"], ("rotate",))
    for task, names, problem in (("object-detection", ["spin"], "choose from rotate, shrink, mosaic"),
                                 ("audio-classification", ["rotate"], "it is for images"),
                                 ("image-classification", ["mosaic"], "no single answer")):  # fmt: skip
        with pytest.raises(InputError, match=problem):
            fit(task, tmp_path, tmp_path / "out", augment_with=names)
    with pytest.raises(InputError, match="turned off"):
        fit("object-detection", tmp_path, tmp_path / "out", augment_with=["rotate"], augment=False)

"""Augmentations: seeded, and target follows input."""

import numpy as np
import pytest
import torch
from PIL import Image

from polysense.data.dataset import BoxTarget
from polysense.data.masks import MaskFile
from polysense.training.augment import augment


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

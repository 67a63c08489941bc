"""Pictures: every kind of answer beside every kind of input, at the stated size, with what was said in it."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from polysense.apps import examples, panels
from polysense.apps.pictures import draw, guess_modality
from polysense.core.errors import InputError
from polysense.core.predictions import Boxes, Embedding, Labels, Mask, Prediction, Segments, Series, Values


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for name in (
        "flower.jpg",
        "smear.png",
        "shapes.mp4",
        "clock.wav",
        "chair.ply",
        "motion.ts",
        "people.csv",
        "forecast.txt",
    ):
        examples.MAKERS[name](folder / name)
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.size == (1000, 560)
        return np.asarray(picture.convert("RGB")).astype(int)


def share_of(image: np.ndarray, colour: str) -> float:
    return float((np.abs(image - np.array(to_rgb(colour)) * 255).max(-1) < 12).mean())


def labels(source: object, first: float = 0.7) -> Labels:
    return Labels(("yes", "no"), (first, 1 - first), ("yes",), str(source))


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("flower.jpg", "image"),
        ("shapes.mp4", "video"),
        ("clock.wav", "audio"),
        ("chair.ply", "point_cloud"),
        ("motion.ts#1", "time_series"),
        ("people.csv#2", "tabular"),
        ("forecast.txt", "text"),
    ],
)
def test_labels_beside_every_kind_of_input(inputs: Path, tmp_path: Path, name: str, modality: str) -> None:
    source = f"{inputs}/{name}"
    assert guess_modality(source) == modality
    low = pixels(draw(labels(source, 0.55), source, tmp_path / "a.png"))
    high = pixels(draw(labels(source, 0.95), source, tmp_path / "b.png"))
    # The bar grows with the probability and the input is drawn on the left.
    assert share_of(high[:, 640:], panels.ACCENT) > 1.4 * share_of(low[:, 640:], panels.ACCENT) > 0
    assert (low[90:, :620] < 200).any(-1).mean() > 0.005


def test_rows_differ(inputs: Path, tmp_path: Path) -> None:
    one, two = (pixels(draw(labels("x"), f"{inputs}/people.csv#{row}", tmp_path / "a.png")) for row in (0, 1))
    assert (one != two).any()


def test_boxes(inputs: Path, tmp_path: Path) -> None:
    found = Boxes(np.array([[100, 100, 300, 300]], np.float32), ["cell"], np.array([0.9], np.float32), (480, 640), "s")
    image = pixels(draw(found, inputs / "smear.png", tmp_path / "a.png"))
    columns = np.flatnonzero(
        (np.abs(image[:, :780] - np.array(to_rgb(panels.COLOURS[0])) * 255).max(-1) < 12).sum(0) > 80
    )
    # The two upright sides stand as far apart as the box is wide, at the picture's scale.
    assert len(columns) >= 2
    assert 100 < columns[-1] - columns[0] < 220


def test_nothing_found(inputs: Path, tmp_path: Path) -> None:
    none = Boxes(np.zeros((0, 4), np.float32), [], np.zeros(0, np.float32), (480, 640), "s")
    pixels(draw(none, inputs / "smear.png", tmp_path / "a.png"))


def test_mask_of_pixels(inputs: Path, tmp_path: Path) -> None:
    with Image.open(inputs / "flower.jpg") as photo:
        w, h = photo.size
    index = np.zeros((h, w), int)
    index[:, w // 2 :] = 1
    answer = Mask(index, ("leaf", "petal", "absent"), 0.8, "flower.jpg")
    image = pixels(draw(answer, inputs / "flower.jpg", tmp_path / "a.png"))
    left, right = image[150:500, 100:300].mean((0, 1)), image[150:500, 480:680].mean((0, 1))
    first, second = (np.array(to_rgb(panels.COLOURS[i])) for i in (0, 1))
    if answer.shares()["leaf"] < answer.shares()["petal"]:
        first, second = second, first
    assert (left - right) @ (first - second) > 10


def test_segments(inputs: Path, tmp_path: Path) -> None:
    with Image.open(inputs / "flower.jpg") as photo:
        w, h = photo.size
    index = np.full((h, w), -1, np.int32)
    index[:, : w // 3], index[:, -(w // 3) :] = 0, 1
    answer = Segments(index, ["leaf", "petal"], np.array([0.9, 0.8], np.float32), "flower.jpg")
    image = pixels(draw(answer, inputs / "flower.jpg", tmp_path / "a.png"))
    left, middle, right = (image[150:500, a:b].mean((0, 1)) for a, b in ((100, 220), (320, 420), (540, 660)))
    first, second = (np.array(to_rgb(panels.COLOURS[i])) for i in (0, 1))
    assert (left - right) @ (first - second) > 10
    assert np.ptp(middle) < 3  # grey where nothing was found
    nothing = Segments(np.full((h, w), -1, np.int32), [], np.zeros(0, np.float32), "flower.jpg")
    pixels(draw(nothing, inputs / "flower.jpg", tmp_path / "b.png"))


def test_mask_of_points(inputs: Path, tmp_path: Path) -> None:
    answer = Mask(np.arange(4096) % 2, ("seat", "leg"), 0.8, "chair.ply")
    image = pixels(draw(answer, inputs / "chair.ply", tmp_path / "a.png"))
    assert share_of(image[:, :760], panels.COLOURS[0]) > 0.001
    assert share_of(image[:, :760], panels.COLOURS[1]) > 0.001


@pytest.mark.parametrize("times", [["2024-01-01T00:00", "2024-01-01T01:00", "2024-01-01T02:00"], ["0", "1", "2"]])
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("history", [True, False])
def test_forecast(tmp_path: Path, times: list[str], count: int, history: bool) -> None:
    mean = np.arange(3.0)[:, None] * np.ones(count)
    past = np.random.default_rng(0).normal(0, 1, (40, count)) if history else None
    names = [f"price $ {i}" for i in range(count)]
    answer = Series(mean, {0.1: mean - 1, 0.5: mean, 0.9: mean + 1}, times, names, past, "x.csv")
    image = pixels(draw(answer, "x.csv", tmp_path / "a.png"))
    assert share_of(image, panels.COLOURS[0]) > 0.0001


@pytest.mark.parametrize("answer", [Values({"age $": 41.5, "size": 2.0}, "f"), Embedding(np.ones(7, np.float32), "f")])
def test_numbers(inputs: Path, tmp_path: Path, answer: Prediction) -> None:
    image = pixels(draw(answer, inputs / "flower.jpg", tmp_path / "a.png"))
    assert (image[90:, 650:] < 200).any()


def test_input_in_memory(tmp_path: Path) -> None:
    red = np.zeros((60, 80, 3), np.uint8)
    red[..., 0] = 255
    image = pixels(draw(labels("<memory>"), red, tmp_path / "a.png"))
    assert share_of(image, "#ff0000") > 0.2


def test_unreadable_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"x\.jpg"):
        draw(labels("x"), tmp_path / "x.jpg", tmp_path / "a.png")


def test_a_number_sign_in_a_file_name(tmp_path: Path) -> None:
    (tmp_path / "t#1").touch()
    assert panels.split_row(tmp_path / "t#1") == (tmp_path / "t#1", None)
    assert panels.split_row(f"{tmp_path}/t.csv#12") == (f"{tmp_path}/t.csv", 12)


def test_long_waves_keep_their_peaks() -> None:
    wave = np.zeros(100_000, np.float32)
    wave[77_777] = 1
    seconds, _, highs = panels.buckets(wave, 10.0)
    assert len(seconds) == panels.MAX_STEPS
    assert highs.max() == 1
    assert seconds[highs.argmax()] == pytest.approx(7.7777, abs=0.01)


def test_a_sound_shorter_than_a_column_of_its_spectrogram(tmp_path: Path) -> None:
    image = pixels(draw(labels("a.wav"), (np.ones(200, np.float32), 16_000), tmp_path / "a.png", "audio"))
    assert image.std() > 5

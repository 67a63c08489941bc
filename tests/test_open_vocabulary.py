"""Classes by examples and by words: found where they are planted, in any company; every fault has its sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.ops import box_iou

import polysense
from polysense import open_vocabulary, regions
from polysense.apps import cli
from polysense.apps.detect import examples
from polysense.core.errors import InputError
from polysense.core.predictions import Boxes
from polysense.open_vocabulary import ALPHA, BETA, SOFT, OpenDetector, crop, everywhere, open_detector, propose
from polysense.regions import ALIKE, Prototypes, Whitening, distinct, expected, windows

Box = tuple[int, int, int, int]
DISC, SQUARE = "red disc", "blue square"
SHOWN: list[tuple[str, Box]] = [(DISC, (30, 40, 90, 100)), (SQUARE, (200, 120, 250, 170))]
PLANTED: list[tuple[str, Box]] = [
    (DISC, (150, 20, 210, 80)),
    (DISC, (240, 150, 300, 210)),
    (SQUARE, (40, 130, 90, 180)),
]


def scene(things: list[tuple[str, Box]], size: tuple[int, int] = (240, 320), seed: int = 0) -> Image.Image:
    """Grey noise with a red disc or a blue square in each box."""
    noise = np.random.default_rng(seed).normal(128, 25, (*size, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(noise)
    draw = ImageDraw.Draw(image)
    for name, box in things:
        if name == DISC:
            draw.ellipse(box, fill=(200, 40, 40))
        else:
            draw.rectangle(box, fill=(40, 60, 200))
    return image


@pytest.fixture(scope="module")
def bare() -> OpenDetector:
    return open_detector()


@pytest.fixture(scope="module")
def finder(bare: OpenDetector) -> OpenDetector:
    image = scene(SHOWN)
    return bare.with_examples({name: [(image, box)] for name, box in SHOWN})


def assert_found(answer: Boxes, things: list[tuple[str, Box]]) -> None:
    """The best boxes of each name are the things of that name, one each."""
    for name in (DISC, SQUARE):
        truth = torch.tensor([box for label, box in things if label == name], dtype=torch.float32)
        boxes = torch.from_numpy(answer.xyxy[[label == name for label in answer.labels]])[: len(truth)]
        overlap = box_iou(truth, boxes)
        assert (overlap.amax(1) > 0.5).all() and (overlap.amax(0) > 0.5).all(), (name, overlap)


def test_finds_more_of_what_one_example_shows(finder: OpenDetector) -> None:
    answer = finder(scene(PLANTED, seed=1))[0]
    assert_found(answer, PLANTED)
    assert answer.size == (240, 320) and (np.diff(answer.scores) <= 0).all()
    assert finder(scene([], seed=2))[0].labels == []


def test_windows_settle_where_the_object_is(finder: OpenDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found boxes fit better than the windows that they began as."""
    truth = torch.tensor([box for _, box in PLANTED], dtype=torch.float32)

    def fit() -> float:
        found = torch.from_numpy(finder(scene(PLANTED, seed=1))[0].xyxy)
        return float(box_iou(truth, found).amax(1).mean())

    settled = fit()
    monkeypatch.setattr(regions, "SETTLE", ((0.0, 1.0),))
    assert settled > max(fit(), 0.75)


def test_answers_alone_as_in_company(finder: OpenDetector) -> None:
    images = [scene(PLANTED, seed=1), scene(PLANTED[:1], (300, 260), seed=3), scene([], (90, 400), seed=4)]
    together = finder(images)
    for image, answer in zip(images, together, strict=True):
        alone = finder(image)[0]
        assert list(alone.labels) == list(answer.labels) and alone.size == answer.size == image.size[::-1]
        np.testing.assert_array_equal(alone.xyxy, answer.xyxy)
        np.testing.assert_array_equal(alone.scores, answer.scores)


def test_classes_are_added_and_the_first_detector_stays(bare: OpenDetector, finder: OpenDetector) -> None:
    more = finder.with_examples({"noise": [(scene([], seed=5), (10, 10, 60, 60))]})
    assert more.named == [DISC, SQUARE, "noise"] and finder.named == [DISC, SQUARE] and bare.named == []
    assert more.prototypes is not None and more.prototypes.vectors.shape[0] == 3
    twice = finder.with_examples({DISC: [(scene(PLANTED), PLANTED[0][1])]})
    assert len(twice.examples[DISC]) == 2 and len(finder.examples[DISC]) == 1


def test_example_boxes_follow_the_images_own_size(bare: OpenDetector) -> None:
    """The same scene twice as large: boxes are found at twice the coordinates."""
    large = scene(SHOWN).resize((640, 480))
    found = bare.with_examples({DISC: [(large, tuple(2 * v for v in SHOWN[0][1]))]})(scene(PLANTED, seed=1))[0]
    truth = torch.tensor([box for name, box in PLANTED if name == DISC], dtype=torch.float32)
    assert (box_iou(truth, torch.from_numpy(found.xyxy)).amax(1) > 0.5).all()


@pytest.mark.parametrize("objectness", [False, True])
def test_scores_are_the_geometric_mean_of_both_classifiers(build: Any, objectness: bool) -> None:
    """Trained classes trust the detector more, others the examples; trained ones that nobody showed stay as is."""
    detector = build("object-detection", encoder="embedded", head={"objectness": objectness})
    shown, image = scene(SHOWN), scene(PLANTED, seed=1)
    opened = open_detector(detector).with_examples({"b": [(shown, SHOWN[0][1])], "new": [(shown, SHOWN[1][1])]})
    assert opened.classes == ["a", "b", "c", "new"]
    found, candidates = propose(detector, image), opened._propose(image)
    torch.testing.assert_close(found.boxes, candidates.boxes)
    grid = opened.features(image)
    scores = opened._scores(candidates, image, grid, 16)
    assert opened.prototypes is not None
    like = opened.prototypes.likeness(opened.prototypes.whitening(grid.values), grid.to_cells(found.boxes))
    said = ((like - 1) / SOFT).sigmoid()
    torch.testing.assert_close(scores[:, [0, 2]], found.known[:, [0, 2]])
    torch.testing.assert_close(scores[:, 1], found.known[:, 1] ** (1 - ALPHA) * said[:, 0] ** ALPHA)
    torch.testing.assert_close(scores[:, 3], found.objectness ** (1 - BETA) * said[:, 1] ** BETA)
    only = open_detector(detector, trained=False).with_examples({"new": [(shown, SHOWN[1][1])]})
    only.threshold = 0.0
    assert set(only(image)[0].labels) == {"new"}


def test_a_shipped_detector_says_where_to_look_and_keeps_its_classes() -> None:
    """Without any further class its answers are its own, but for what suppresses doubles."""
    opened = open_detector("blood-cells")
    image = scene(PLANTED, seed=1)
    opened.threshold = own = 0.01
    pipeline = polysense.load("blood-cells")
    pipeline.head.threshold = own
    answer, plain = opened(image)[0], pipeline(image)[0]
    assert opened.classes == ["Platelets", "RBC", "WBC"] and len(answer.labels) and len(plain.labels)
    assert answer.scores[0] == pytest.approx(plain.scores[0], abs=1e-5)
    np.testing.assert_allclose(answer.xyxy[0], plain.xyxy[0], atol=1e-2)


def test_words_rank_what_they_name(bare: OpenDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A photo of a cat in one corner of a grey picture: its own name finds it, and finds it more than others' do."""
    monkeypatch.setattr(open_vocabulary, "SIDES", (0.42,))  # a quarter of the crops
    pytest.importorskip("tokenizers")
    data = pytest.importorskip("skimage.data")
    cat = Image.fromarray(data.chelsea()).resize((200, 140))
    image = Image.new("RGB", (480, 320), (120, 120, 120))
    image.paste(cat, (20, 160))
    told = bare.with_words(["cat", "truck"])
    told.threshold = 0.0
    answer = told(image)[0]
    assert set(answer.labels) == {"cat", "truck"} and told.named == ["cat", "truck"]
    assert answer.labels[0] == "cat"
    x1, y1, x2, y2 = answer.xyxy[0]
    assert 20 < (x1 + x2) / 2 < 220 and 160 < (y1 + y2) / 2 < 300
    both = bare.with_words(["cat"]).with_examples({"cat": [(image, (20, 160, 220, 300))]})
    assert both.classes == ["cat"]
    found = both(image)[0]
    assert box_iou(torch.tensor([[20.0, 160, 220, 300]]), torch.from_numpy(found.xyxy[:1])) > 0.4


def test_examples_that_cannot_be_used_are_named(bare: OpenDetector, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    scene(SHOWN).save(file)
    faults: dict[str, Any] = {
        r"examples: there are none": {},
        r"examples of 'x': there are none": {"x": []},
        r"a class has no name": {" ": [(file, (1, 1, 9, 9))]},
        r"a\.png: the box \(300, 10, 400, 50\) lies outside the image.*320 × 240": {"x": [(file, (300, 10, 400, 50))]},
        r"a\.png: the box \(50, 10, 40, 50\) holds no pixel": {"x": [(file, (50, 10, 40, 50))]},
        r"a\.png: the box \(1, 2, 3\) is not four numbers": {"x": [(file, (1, 2, 3))]},
        r"the box \(1, 2, nan, 4\) is not four numbers": {"x": [(file, (1, 2, float("nan"), 4))]},
        r"none\.png: there is no such file": {"x": [(tmp_path / "none.png", (1, 1, 9, 9))]},
    }
    for message, given in faults.items():
        with pytest.raises(InputError, match=message):
            bare.with_examples(given)


def test_a_detector_without_classes_or_of_another_task_is_refused(bare: OpenDetector) -> None:
    with pytest.raises(InputError, match=r"no class was named; use with_examples or with_words first"):
        bare(scene([]))
    with pytest.raises(InputError, match=r"cifar10: it is no detector; give a bundle of object-detection"):
        open_detector("cifar10")
    with pytest.raises(InputError, match="there is no bundle of this name"):
        open_detector("no-such-bundle")
    with pytest.raises(InputError, match="labels"):
        bare.with_words([])


def test_windows_cover_the_grid_at_every_size() -> None:
    places = windows([(4.0, 3.0), (60.0, 2.0)], (20, 30))
    assert (places >= 0).all() and (places[:, 2] <= 30 + 1e-4).all() and (places[:, 3] <= 20 + 1e-4).all()
    centres = torch.cartesian_prod(torch.arange(2.0, 28.0), torch.arange(2.0, 18.0))
    wanted = torch.cat([centres - torch.tensor([2.0, 1.5]), centres + torch.tensor([2.0, 1.5])], 1)
    assert box_iou(wanted, places).amax(1).min() > 0.5
    assert distinct([(2, 2), (2.1, 2), (4, 4)], 0.75) == [(2, 2), (4, 4)]
    assert len(everywhere((300, 500))) < 200 and (everywhere((300, 500))[:, 3] <= 300.01).all()


def test_whitening_evens_out_directions() -> None:
    cells = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 3, 1, 1, 0.1, 0.1]) + 4
    white = Whitening.of(cells)(cells.T.reshape(6, 20, 25)).flatten(1)
    before, after = cells.var(0), white.var(1)
    assert white.mean(1).abs().max() < 1e-4
    assert after.max() / after[:2].min() < before.max() / before[1]
    still = Whitening.of(torch.ones(40, 6))(torch.ones(6, 2, 2))
    assert still.isfinite().all()


def test_expected_likeness_is_that_of_one_more_example() -> None:
    """Of vectors that share a part, the cosine of new ones with the mean of n is about what n of them promise."""
    rng = torch.Generator().manual_seed(0)
    shared = torch.randn(400, generator=rng)
    made = torch.nn.functional.normalize(0.7 * shared + torch.randn(60, 400, generator=rng), dim=1)
    for n in (5, 10):
        mean = torch.nn.functional.normalize(made[:n].mean(0), dim=0)
        assert float((made[20:] @ mean).mean()) == pytest.approx(float(expected(made[:n])), abs=0.05)
    assert float(expected(made[:1])) == pytest.approx(ALIKE)


def test_an_example_that_fills_its_image_has_no_background(bare: OpenDetector) -> None:
    image = scene([(DISC, (0, 0, 99, 99))], (100, 100))
    found = bare.with_examples({DISC: [(image, (0, 0, 100, 100))]})
    assert isinstance(found.prototypes, Prototypes) and found.prototypes.vectors.isfinite().all()
    assert all(np.isfinite(answer.scores).all() for answer in found([image, scene(PLANTED)]))


def test_crops_hold_a_little_more_than_the_box() -> None:
    image = Image.new("RGB", (100, 80))
    assert crop(image, (20, 20, 40, 60)).size == (24, 48)
    assert crop(image, (0, 0, 100, 80)).size == (100, 80)
    assert crop(image, (99.9, 79.9, 100, 80)).size == (1, 1)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    return int(stopped.value.code or 0)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene(SHOWN).save(tmp_path / "shown.png")
    (tmp_path / "more").mkdir()
    scene(PLANTED, seed=1).save(tmp_path / "more" / "one.png")
    (tmp_path / "more" / "bad.png").write_text("no picture")
    box = ",".join(map(str, SHOWN[0][1]))
    code = run("detect", str(tmp_path / "more"), "--like", f"{tmp_path}/shown.png:{box}={DISC}",
               "--out", str(tmp_path / "o.csv"), "--pictures", str(tmp_path / "drawn"), "--device", "cpu")  # fmt: skip
    assert code == 3 and "bad.png" in capsys.readouterr().err
    (row,) = pd.read_csv(tmp_path / "o.csv").to_dict("records")
    found = json.loads(row["boxes"])
    assert {one["label"] for one in found} == {DISC} and len(found) >= 2
    assert (tmp_path / "drawn" / "one.png").stat().st_size > 0


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "it is neither shown nor told what to find; write --like"),
    (("--like", "a.png:1,2,3=x"), "it is no example; write image.jpg:x1,y1,x2,y2=name"),
    (("--like", "a.png:1,2,3,q=x"), "it is no example"),
    (("--like", "a.png=x"), "it is no example"),
    (("--words", "dog", "--proposals", "blood-cell"), "did you mean blood-cells?"),
])  # fmt: skip
def test_command_line_faults(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("detect", str(tmp_path), *arguments) == 1
    assert message in capsys.readouterr().err


def test_examples_are_read_from_the_right() -> None:
    shown = examples(["C:/x=1:2/a.png:1,2,3.5,4=a cell", "b.png:0,0,1,1=a cell"])
    assert shown == {"a cell": [(Path("C:/x=1:2/a.png"), (1, 2, 3.5, 4)), (Path("b.png"), (0, 0, 1, 1))]}

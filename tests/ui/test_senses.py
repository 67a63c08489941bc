"""Single files, at a desk and with a phone: an example is clicked, the right kind of answer appears and fits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

import polysense
from polysense.apps.panels import COLOURS

playwright = pytest.importorskip("playwright.sync_api")
expect, pytestmark = playwright.expect, pytest.mark.ui


@pytest.mark.parametrize(
    ("tab", "example", "model", "answer"),
    [("Images", "lion.jpg", "tiny200", "lion"), ("Audio", "rain.wav", "esc10", "rain"),
     ("Video", "lion.mp4", "clips101", None), ("Point clouds", "chair.ply", "furniture", "chair")],
)  # fmt: skip
def test_classes_with_scores(anyone: Any, tab: str, example: str, model: str, answer: str | None) -> None:
    panel = anyone.open(tab)
    panel.get_by_role("button", name=example).click()
    facts, found = anyone.answered(panel), anyone.classes(panel)
    assert model in facts and len(found) == 5 and found.keys() <= set(polysense.load(model).head.config.classes)
    assert sorted(found.values(), reverse=True) == list(found.values()) and 0 < sum(found.values()) <= 1.02
    expect(panel.get_by_role("heading", name=answer or next(iter(found)), exact=True)).to_be_visible()
    anyone.fits(panel, tab.lower().replace(" ", "-"))


@pytest.mark.parametrize(("tab", "example"), [("Audio", "clock.wav"), ("Point clouds", "table.ply")])
def test_a_file_is_drawn_beside_its_classes(visitor: Any, tab: str, example: str) -> None:
    panel = visitor.open(tab)
    panel.get_by_role("button", name=example).click()
    visitor.answered(panel)
    assert any(np.asarray(picture.convert("L")).std() > 10 for picture in visitor.drawn(panel))


def test_the_frames_of_a_film(visitor: Any) -> None:
    panel = visitor.open("Video")
    panel.get_by_role("button", name="shapes.mp4").click()
    visitor.answered(panel)
    frames = panel.get_by_role("button", name="Thumbnail")
    expect(frames).to_have_count(8)
    times = [float(text.split()[0]) for text in frames.all_inner_texts()]
    assert times == sorted(times) and times[0] < times[-1]


def test_objects_and_regions_in_colour_with_a_legend(anyone: Any) -> None:
    panel = anyone.open("Images")
    panel.get_by_role("button", name="smear.png").click()
    assert "blood-cells" in anyone.answered(panel)
    counts = anyone.legend(panel)
    names = set(counts)
    assert all(int(count) > 0 for count in counts.values())
    over = panel.get_by_role("img", name="segmentation mask")
    expect(over).to_have_count(len(names))
    assert names == {"RBC", "WBC", "Platelets"}
    seen = set()
    for image in over.all():
        pixels = np.asarray(anyone.picture(image).convert("RGBA")).reshape(-1, 4)
        solid = pixels[pixels[:, 3] > 200]
        assert 0 < len(solid) < len(pixels) / 2  # edges of boxes
        seen.add("#{:02x}{:02x}{:02x}".format(*np.median(solid[:, :3], 0).astype(int)))
    assert len(seen) == 3 and seen <= set(COLOURS)
    anyone.fits(panel, "images-objects")

    panel.get_by_role("button", name="china.jpg").click()
    panel.get_by_text("model scenes").wait_for()
    expect(panel.get_by_role("listitem").filter(has_text="%").first).to_be_visible()
    assert sum(float(share.rstrip("%")) for share in anyone.legend(panel).values()) == pytest.approx(100, abs=1)
    strength = panel.get_by_role("slider", name="Strength of the colours, %")
    expect(over.first).to_have_css("opacity", "0.55")
    strength.fill("20")
    for mask in over.all():
        expect(mask).to_have_css("opacity", "0.2")
    strength.fill("55")
    anyone.fits(panel, "images-regions")


def test_a_cloud_is_drawn_to_turn(visitor: Any) -> None:
    panel = visitor.open("Point clouds")
    panel.get_by_role("button", name="chair.ply").click()
    visitor.answered(panel)
    canvas = panel.locator("canvas")

    def colours() -> int:
        pixels = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"))
        return len(np.unique(pixels.reshape(-1, 3), axis=0))

    for _ in range(40):
        if colours() > 1000:  # from violet to yellow, by height
            return
        visitor.page.wait_for_timeout(250)
    pytest.fail("nothing was drawn")


def test_classes_over_time(visitor: Any) -> None:
    panel = visitor.open("Audio")
    panel.get_by_role("button", name="clock.wav").click()
    visitor.answered(panel)
    expect(panel.get_by_text("probability", exact=True)).to_be_visible()
    expect(panel.get_by_text("clock_tick").first).to_be_visible()


def test_what_spoke_for_an_answer(visitor: Any) -> None:
    panel = visitor.open("Images")
    panel.get_by_role("button", name="lion.jpg").click()
    visitor.answered(panel)
    pictures = panel.locator("img").filter(visible=True)
    before = pictures.count()
    panel.get_by_role("button", name="What spoke for it").click()
    panel.get_by_role("button", name="Show", exact=True).click()
    expect(pictures).to_have_count(before + 1)
    assert visitor.picture(pictures.last).width > 500
    visitor.fits(panel, "images-looked")


def test_the_answer_as_json(visitor: Any) -> None:
    panel = visitor.open("Audio")
    panel.get_by_role("button", name="rain.wav").click()
    visitor.answered(panel)
    panel.get_by_role("button", name="The answer as JSON").click()
    expect(panel.get_by_text('"rain.wav"')).to_be_visible()

"""A visitor's own model, from class folders in a zip to its bundle, in the browser alone."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import polysense

playwright = pytest.importorskip("playwright.sync_api")
expect, pytestmark = playwright.expect, pytest.mark.ui


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two classes of noisy pictures that differ in colour, as a zip; and one more red picture."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("colours")
    with zipfile.ZipFile(folder / "colours.zip", "w") as archive:
        for i, name in enumerate(("blue", "red")):
            for k in range(8):
                pixels = rng.integers(0, 120, (40, 48, 3))
                pixels[..., 2 - 2 * i] += 120
                held = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(held, "PNG")
                archive.writestr(f"{name}/{k}.png", held.getvalue())
    (folder / "asked.png").write_bytes(held.getvalue())
    return folder / "colours.zip", folder / "asked.png"


def heights(panel: Any, name: str) -> list[float]:
    """Of a drawn curve, from left to right, up from the bottom of its picture."""
    line = panel.get_by_label(f"{name}: ").and_(panel.locator("[aria-roledescription='line mark']"))
    line.wait_for(state="attached")
    return [-float(point.partition(",")[2].rstrip("Z")) for point in re.split("[ML]", line.get_attribute("d"))[1:]]


def test_a_model_is_fitted_asked_and_taken_home(anyone: Any, colours: tuple[Path, Path], tmp_path: Path) -> None:
    archive, asked = colours
    method, epochs = ("head", 2) if anyone.screen == "desk" else ("probe", 0)
    panel = anyone.open("Fit")
    anyone.give(panel, "Zip of class folders", archive)
    panel.get_by_role("radio", name=method, exact=True).check()
    panel.get_by_role("spinbutton", name="Epochs").fill(str(epochs))
    panel.get_by_role("button", name="Fit", exact=True).click()
    done = panel.get_by_text("The other tabs offer it now")
    if epochs:
        panel.get_by_label("epoch: 0; validation").first.wait_for(state="attached")
        assert not done.count()  # the curve lives
    done.wait_for()
    assert f"{epochs} epochs" in done.inner_text() and "accuracy 1.000" in done.inner_text()
    expect(panel.get_by_text("checked: train 14, val 2")).to_be_visible()
    expect(panel.get_by_role("img", name="Confusion")).to_be_attached()
    if epochs:
        assert len(heights(panel, "validation")) == 3
        losses = heights(panel, "loss")
        assert len(losses) == 2 and losses[0] > losses[1]
    anyone.fits(panel, "fit")
    taken = anyone.download(panel.get_by_role("row", name="colours.zip").get_by_role("link").last, tmp_path)

    panel = anyone.open("Images")
    expect(panel.get_by_role("combobox", name="Model")).to_have_value("colours · yours")
    anyone.give(panel, "Image", asked)
    panel.get_by_role("button", name="Remove Image").wait_for()
    panel.get_by_role("button", name="Answer", exact=True).click()
    assert "red" in anyone.answered(panel)
    shown = anyone.classes(panel)
    assert set(shown) == {"blue", "red"}
    with zipfile.ZipFile(taken) as packed:
        packed.extractall(tmp_path)
    own = polysense.load(tmp_path / "colours")(asked)[0]
    assert own.answer() == "red" and own.scores[0] == pytest.approx(shown["red"], abs=0.006)


def test_a_fit_is_cancelled(visitor: Any, colours: tuple[Path, Path]) -> None:
    panel = visitor.open("Fit")
    visitor.give(panel, "Zip of class folders", colours[0])
    panel.get_by_role("radio", name="head", exact=True).check()
    panel.get_by_role("spinbutton", name="Epochs").fill("20")
    panel.get_by_role("button", name="Fit", exact=True).click()
    panel.get_by_text("checked: ").first.wait_for()
    panel.get_by_role("button", name="Cancel").click()
    visitor.told("it was cancelled")

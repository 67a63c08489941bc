"""A file that cannot be used: the page says so in the library's own sentence, and works on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api")
expect, pytestmark = playwright.expect, pytest.mark.ui


@pytest.fixture
def bad(tmp_path: Path) -> dict[str, Path]:
    """Files that are not what their names say."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:700])
    (tmp_path / "words.wav").write_text("these are words, and no sound")
    (tmp_path / "words.ply").write_text("these are words, and no cloud")
    (tmp_path / "words.csv").write_text("a,b\nx,y\nz,x\n")
    (tmp_path / "words.zip").write_text("these are words, and no archive")
    (tmp_path / "large.png").write_bytes(bytes(3_000_000))
    return {path.name: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("tab", "label", "name", "button", "sentence", "example"),
    [
        ("Images", "Image", "cut.jpg", "Answer", "cut.jpg: ", "lion.jpg"),
        ("Audio", "Recording", "words.wav", "Answer", "words.wav: ", "rain.wav"),
        ("Point clouds", "Point cloud", "words.ply", "Answer", "words.ply: ", "chair.ply"),
        ("Forecast", "Series", "words.csv", "", "words.csv: no series of numbers was found", "energy.csv"),
    ],
)  # fmt: skip
def test_a_bad_file_gets_a_sentence_and_the_next_one_an_answer(
    visitor: Any, bad: dict[str, Path], tab: str, label: str, name: str, button: str, sentence: str, example: str
) -> None:
    visitor.forgiven = ("Waveform load error",)  # the browser cannot play it either
    panel = visitor.open(tab)
    visitor.give(panel, label, bad[name])
    if button:
        panel.get_by_role("button", name="Remove Image" if tab == "Images" else "Clear").first.wait_for()
        panel.get_by_role("button", name=button, exact=True).click()
    told = visitor.told(sentence)
    assert "; " in told and "Traceback" not in told and "/" not in told
    panel.get_by_role("button", name=example).click()
    visitor.answered(panel)


def test_nothing_given(visitor: Any) -> None:
    panel = visitor.open("Images")
    panel.get_by_role("button", name="Answer", exact=True).click()
    assert "nothing was given; choose a file" in visitor.told("image: ")


def test_no_archive_of_class_folders(visitor: Any, bad: dict[str, Path]) -> None:
    panel = visitor.open("Fit")
    visitor.give(panel, "Zip of class folders", bad["words.zip"])
    panel.get_by_role("button", name="Fit", exact=True).click()
    assert "this is not a zip file" in visitor.told("words.zip: ")


def test_a_file_that_is_too_large(visitor: Any, bad: dict[str, Path]) -> None:
    visitor.forgiven = ("404: ", "413: ", "Response")  # Gradio's own, of an upload that was refused
    panel = visitor.open("Images")
    visitor.give(panel, "Image", bad["large.png"])
    visitor.told('exceed the maximum allowed size of 2.0 Mb: "large.png"')
    panel.get_by_role("button", name="lion.jpg").click()
    visitor.answered(panel)


def test_how_a_fault_looks(anyone: Any, bad: dict[str, Path]) -> None:
    panel = anyone.open("Forecast")
    anyone.give(panel, "Series", bad["words.csv"])
    anyone.page.get_by_role("status").filter(has_text="words.csv: ").wait_for()
    anyone.fits(panel, "fault")

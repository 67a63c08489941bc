"""Names that are scripts, of columns, cells, classes and a file: the page shows them, and runs none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

playwright = pytest.importorskip("playwright.sync_api")
expect, pytestmark = playwright.expect, pytest.mark.ui
RUN = "<img src=x onerror=window.ran=1>"


def test_no_script_runs(visitor: Any, tmp_path: Path) -> None:
    """In a list of choices, Markdown, a table, labels and a toast."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({f"length {RUN}": rng.normal(size=80), "colour": rng.choice([RUN, "b"], 80)})
    table[f"kind {RUN}"] = np.where(table.iloc[:, 0] > 0, f"yes {RUN}", "no")
    table.to_csv(tmp_path / f"learn {RUN}.csv", index=False)
    table.head(9).iloc[:, :2].to_csv(tmp_path / "new.csv", index=False)
    panel = visitor.open("Tables")
    visitor.give(panel, "Table to learn from", tmp_path / f"learn {RUN}.csv")
    expect(panel.get_by_role("combobox", name="Column to predict")).to_have_value(f"kind {RUN}")
    panel.get_by_role("radio", name="a number").check()
    panel.get_by_role("button", name="Fit", exact=True).click()
    visitor.told(f"the column 'kind {RUN}' holds no numbers")
    panel.get_by_role("radio", name="by its values").check()
    panel.get_by_role("button", name="Fit", exact=True).click()
    panel.get_by_text("Fitted in").wait_for()
    visitor.give(panel, "Table of new rows", tmp_path / "new.csv")
    panel.get_by_role("button", name="Predict", exact=True).click()
    panel.get_by_text("9 rows in").wait_for()
    expect(panel.get_by_text(f"yes {RUN}").first).to_be_visible()
    assert not visitor.page.evaluate("window.ran || document.querySelectorAll('img[src=x]').length")

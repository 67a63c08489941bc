"""For everyone: by keyboard alone, for those who hear the page, in the dark, on a narrow screen before any answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from polysense.apps.demo.app import TABS

playwright = pytest.importorskip("playwright.sync_api")
expect, pytestmark = playwright.expect, pytest.mark.ui
# A line of Playwright's accessibility snapshot that has no name after the role.
NAMELESS = re.compile(r" *- '?(?:button|checkbox|combobox|link|radio|slider|spinbutton|tab|textbox)(?! \"|\w)")
# Contrast of each visible text with what lies behind it, by WCAG 2: {text: ratio}; code has colours of its own.
CONTRASTS = """panel => {
  const parse = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, under) => under.map((x, i) => i < 3 ? top[i] * top[3] + x * (1 - top[3]) : 1);
  const behind = element => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(parse(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const light = colour => colour.slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const found = {};
  const walk = document.createTreeWalker(panel, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
    if (!text || !element.checkVisibility({opacityProperty: true}) || element.closest("svg, pre")) continue;
    const ground = behind(element), ink = over(parse(getComputedStyle(element).color), ground);
    const [one, other] = [ink, ground].map(light);
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    found[text] = Math.min(found[text] ?? 99, ratio);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out(arrive: Callable[..., Any], scheme: str) -> None:
    visitor = arrive(color_scheme=scheme)
    examples = {"Images": "smear.png", "Forecast": "energy.csv", "Batch": "lion.jpg, flower.jpg"}
    for tab in TABS:
        panel = visitor.open(tab)
        if tab in examples:
            panel.get_by_role("button", name=examples[tab]).click()
            panel.get_by_text("3 answers").wait_for() if tab == "Batch" else visitor.answered(panel)
            if scheme == "dark":
                visitor.screenshot(f"dark-{tab.lower()}")
        found = visitor.page.locator("body").evaluate(CONTRASTS)
        assert {"polysense", tab} <= found.keys() and len(found) > 15
        assert {text: ratio for text, ratio in found.items() if ratio < 4.5 and re.search(r"\w", text)} == {}, tab


def nameless(visitor: Any, panel: Any) -> list[str]:
    """What can be used in a panel but has no name."""
    visitor.settled()
    lines = panel.aria_snapshot().splitlines()
    assert len(lines) > 10
    return [line for line in lines if NAMELESS.match(line)]


@pytest.mark.parametrize("tab", TABS)
def test_all_that_can_be_used_has_a_name(visitor: Any, tab: str) -> None:
    assert nameless(visitor, visitor.open(tab)) == []


def test_pictures_and_places_for_files_are_named(visitor: Any) -> None:
    for tab, example in (("Images", "lion.jpg"), ("Audio", "rain.wav")):
        panel = visitor.open(tab)
        panel.get_by_role("button", name=example, exact=True).click()
        visitor.answered(panel)
        assert nameless(visitor, panel) == []
    panel = visitor.open("Meaning")
    for label in ("First: ", "Second: ", "A file of any kind"):
        expect(panel.get_by_role("button", name=re.compile(f"^{label}.*upload"))).to_be_visible()


def test_the_keyboard_is_enough(visitor: Any) -> None:
    panel, keys = visitor.open("Images"), visitor.page.keyboard
    stops = [
        panel.get_by_role("button", name="Image: "), panel.get_by_role("combobox", name="Model"),
        panel.get_by_role("spinbutton", name="Classes shown"), panel.get_by_role("slider", name="Classes shown"),
        panel.get_by_role("button", name="Answer", exact=True), panel.get_by_role("button", name="lion.jpg"),
        panel.get_by_role("button", name="The answer as JSON"),
    ]  # fmt: skip
    visitor.page.get_by_role("tab", name="Models").focus()
    for stop in stops:
        stop.wait_for()
        for _ in range(20):
            keys.press("Tab")
            if stop.evaluate("one => one === document.activeElement"):
                break
        else:
            pytest.fail(f"Tab does not lead on to {stop}")
    stops[0].focus()
    with visitor.page.expect_file_chooser():
        keys.press("Enter")
    stops[5].focus()
    keys.press("Enter")
    assert "tiny200" in visitor.answered(panel)
    stops[2].focus()
    keys.press("ArrowDown")
    stops[4].focus()
    keys.press("Space")
    expect(panel.get_by_role("meter")).to_have_count(4)
    stops[6].focus()
    keys.press("Enter")
    expect(panel.get_by_text('"lion.jpg"')).to_be_visible()


def test_every_tab_fits_a_phone_before_any_answer(arrive: Callable[..., Any]) -> None:
    visitor = arrive("phone")
    for tab in TABS:
        visitor.fits(visitor.open(tab))

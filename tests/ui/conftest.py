"""What the browser tests share: one running demo, one headless Chromium, and a visitor who clicks, uploads and looks.

Elements are found by role and label alone, as a screen reader finds them: what has no name here has none there either.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from polysense.apps.demo.app import served
from polysense.apps.demo.limits import Options

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Response

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# No sandbox: it does not start for root. The others keep the browser from talking to its makers.
# Clouds are drawn by WebGL, here without a graphics card.
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage",
         "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]  # fmt: skip
NARROW = {"width": 390, "height": 844}
SCREEN: dict[str, dict[str, Any]] = {
    "desk": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": NARROW, "device_scale_factor": 2, "is_mobile": True, "has_touch": True},
}
SCREENS = Path(__file__).parents[2] / "outputs" / "screens"
SECONDS = 60  # that an answer may take; the first one of a model loads it, and a machine may be busy
FACTS = re.compile(r"\d+ ms, \d+ tokens, model")


class Visitor:
    """Someone before the page.

    Attributes:
        page: Playwright's.
        address: Of the demo.
        screen: "desk" or "phone".
        faults: What the console told of errors, and requests that failed or went to another host.
        forgiven: Beginnings of faults that a test brings about on purpose.
    """

    forgiven: tuple[str, ...] = ()

    def __init__(self, page: Page, address: str, screen: str = "desk") -> None:
        self.page, self.address, self.screen, self.faults = page, address, screen, list[str]()
        page.set_default_timeout(1000 * SECONDS)
        page.on("console", lambda said: self._heard(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self._heard(str(error)))
        page.on("request", lambda request: self._watch(request.url))
        page.on("response", self._answered)
        page.on("filechooser", lambda _: None)  # from now on dialogues come here, and not on the screen

    def _heard(self, text: str) -> None:
        # The first comes with every status that is an error, which `_answered` tells better; the second where a pointer
        # leaves a film too soon; the third where clouds are drawn by WebGL for want of its successor.
        known = "Failed to load resource", "The play() request was interrupted"
        if not text.startswith(known) and not (text.startswith("BJS") and "WebGPU" in text):
            self.faults.append(text)

    def _watch(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(self.address).netloc:
            self.faults.append(f"asked another host: {url}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status}: {response.url}")

    def open(self, name: str) -> Locator:
        """The panel of a tab, which is clicked; where the screen is narrow, in the menu of further tabs."""
        if self.page.url == "about:blank":
            self.page.goto(self.address)
        self.page.get_by_role("tab", name="Images", exact=True).wait_for()
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if not tab.count():
            self.page.get_by_role("button", name="More tabs").click()
            tab = self.page.get_by_role("button", name=name, exact=True)
        tab.click()
        self.page.get_by_role("tab", name=name, exact=True, selected=True).wait_for()
        return self.page.get_by_role("tabpanel").filter(visible=True)

    def give(self, panel: Locator, label: str, *files: Path) -> None:
        """Chooses files in the browser's own dialogue; `label` is what the label of the place for them begins with."""
        with self.page.expect_file_chooser() as dialogue:
            panel.get_by_role("button", name=re.compile(f"^{re.escape(label)}.*: .*upload")).click()
        dialogue.value.set_files(list(files))

    def choose(self, panel: Locator, label: str, option: str) -> None:
        """Picks one of a list."""
        panel.get_by_role("combobox", name=label, exact=True).click()
        self.page.get_by_role("option", name=option).first.click()

    def told(self, sentence: str) -> str:
        """The toast that holds a sentence; it is closed then."""
        toast = self.page.get_by_role("status").filter(has_text=sentence)
        toast.first.wait_for()
        text = toast.first.inner_text()
        toast.get_by_role("button", name="Close").first.click()
        toast.first.wait_for(state="detached")
        return text

    def answered(self, panel: Locator) -> str:
        """The lines under an answer: what it says, what it took, who said it."""
        facts = panel.get_by_text(FACTS)
        facts.first.wait_for()
        return facts.first.inner_text()

    def classes(self, panel: Locator, label: str = "Classes") -> dict[str, float]:
        """Class names and their scores, as the page shows them under a label."""
        shown = panel.locator(".block", has=self.page.get_by_test_id("block-label").filter(has_text=label))
        shown.get_by_role("meter").first.wait_for()
        names, scores = (shown.get_by_role(role).all_inner_texts() for role in ("term", "definition"))
        return {name.strip(): float(score.rstrip("%")) / 100 for name, score in zip(names, scores, strict=True)}

    def legend(self, panel: Locator) -> dict[str, str]:
        """Class names and their counts or shares, under a picture in colours."""
        rows = panel.get_by_role("list").filter(visible=True).get_by_role("listitem")
        rows.first.wait_for()
        return dict(row.split("\n") for row in rows.all_inner_texts())

    def drawn(self, panel: Locator, wider: int = 500) -> list[Image.Image]:
        """The pictures that a panel shows, without icons and examples."""
        self.settled()
        seen = [image for image in panel.locator("img").all() if image.is_visible()]
        return [one for one in map(self.picture, seen) if one.width > wider]

    def picture(self, image: Locator) -> Image.Image:
        """The pixels behind an image of the page."""
        image.wait_for()
        source = image.evaluate("image => image.currentSrc || image.src")
        return Image.open(io.BytesIO(self.page.request.get(source).body()))

    def download(self, link: Locator, folder: Path) -> Path:
        """What a link gives."""
        with self.page.expect_download() as waited:
            link.click()
        path = folder / waited.value.suggested_filename
        waited.value.save_as(path)
        return path

    def settled(self) -> None:
        """Waits until all pictures are there, those below the screen as well, and what slides or fades has arrived."""
        self.page.wait_for_function(
            """() => [...document.images].filter(one => one.checkVisibility())
                     .every(one => { one.loading = "eager"; return one.complete })"""
        )
        self.page.wait_for_timeout(300)

    def fits(self, panel: Locator, name: str | None = None) -> None:
        """Nothing of the page lies beside the screen; a picture of it is written, whole, where that has a name."""
        if name:
            self.screenshot(f"{self.screen}-{name}")
        width = self.page.viewport_size["width"]
        assert self.page.evaluate("document.scrollingElement.scrollWidth") <= width
        for button in panel.get_by_role("button").all():
            # A table scrolls within itself.
            if button.is_visible() and not button.evaluate("one => one.closest('table, [role=grid]')"):
                box = button.bounding_box()
                assert box["x"] >= 0 and box["x"] + box["width"] <= width + 0.5, button.aria_snapshot()

    def screenshot(self, name: str) -> None:
        """Writes a picture of the page, whole."""
        SCREENS.mkdir(parents=True, exist_ok=True)
        self.page.mouse.move(0, 0)
        self.page.evaluate("document.activeElement?.blur(); scrollTo(0, 0)")
        self.settled()
        self.page.screenshot(path=SCREENS / f"{name}.png", full_page=True)


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Of a running demo."""
    with served(Options(max_mb=2)) as (_, address):
        yield address


@pytest.fixture(scope="session")
def browser(address: str) -> Iterator[Browser]:
    """One for all tests. The demo runs before it: none can be started while Playwright's loop runs in this thread."""
    from playwright.sync_api import sync_playwright

    found = [path for name in BROWSERS if (path := shutil.which(name))]
    if not found:
        pytest.fail(f"there is no browser ({', '.join(BROWSERS)}); `make test-ui` installs one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def arrive(browser: Browser, address: str) -> Iterator[Callable[..., Visitor]]:
    """Makes visitors, each with a page of their own; none may have met an error of the page by the end of a test."""
    with contextlib.ExitStack() as ends:
        came: list[Visitor] = []

        def make(screen: str = "desk", **options: Any) -> Visitor:
            chosen = {"locale": "en-GB", "reduced_motion": "reduce", **SCREEN[screen], **options}
            context = browser.new_context(**chosen)
            ends.callback(context.close)
            came.append(Visitor(context.new_page(), address, screen))
            return came[-1]

        yield make
        assert [fault for one in came for fault in one.faults if not fault.startswith(one.forgiven)] == []


@pytest.fixture
def visitor(arrive: Callable[..., Visitor]) -> Visitor:
    """One, at a desk."""
    return arrive()


@pytest.fixture(params=["desk", "phone"])
def anyone(request: pytest.FixtureRequest, arrive: Callable[..., Visitor]) -> Visitor:
    """One at a desk, then one with a phone."""
    return arrive(request.param)

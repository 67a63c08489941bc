"""The demo under a path of a larger site, behind a small proxy that strips it: page, uploads, events, files."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from polysense.apps.demo.app import served
from polysense.apps.demo.limits import Options

gradio_client = pytest.importorskip("gradio_client")
PREFIX = "/demo"
HOP = {b"host", b"connection", b"transfer-encoding", b"keep-alive"}  # of one connection, not to be passed on
BROWSERS = [found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))]


class Proxy:
    """Passes on what comes under the prefix (ASGI), as `handle_path /demo*` does; notes what comes beside it."""

    def __init__(self, target: str) -> None:
        self.client = httpx.AsyncClient(base_url=target, timeout=60)
        self.beside: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse, StreamingResponse

        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        path = scope["raw_path"].decode()
        if not path.startswith(f"{PREFIX}/"):
            self.beside.append(path)
            return await PlainTextResponse("another page of the site", 404)(scope, receive, send)
        headers = [(name, value) for name, value in scope["headers"] if name not in HOP]
        headers += [(b"x-forwarded-host", request.headers["host"].encode()), (b"x-forwarded-proto", b"http")]
        url = path.removeprefix(PREFIX) + (f"?{request.url.query}" if request.url.query else "")
        body = request.stream() if "content-length" in request.headers else None
        asked = self.client.build_request(request.method, url, headers=headers, content=body)
        answer = await self.client.send(asked, stream=True)
        try:
            passed = StreamingResponse(answer.aiter_raw(), answer.status_code)
            passed.raw_headers = [pair for pair in answer.headers.raw if pair[0].lower() not in HOP]
            await passed(scope, receive, send)
        finally:
            await answer.aclose()


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[str, Proxy]]:
    import uvicorn

    with served(Options(max_mb=2, root_path=PREFIX)) as (_, inner), socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        proxy = Proxy(f"http://127.0.0.1:{httpx.URL(inner).port}")
        server = uvicorn.Server(uvicorn.Config(proxy, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}{PREFIX}/", proxy
        server.should_exit = server.force_exit = True  # events are never over by themselves
        thread.join(10)


def test_page_and_assets_lie_under_the_path(site: tuple[str, Proxy]) -> None:
    address, _ = site
    page = httpx.get(address, timeout=60)
    assert page.status_code == 200 and "polysense" in page.text
    assets = {found for found in re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text) if "assets/" in found}
    assert assets
    for asset in assets:
        answer = httpx.get(httpx.URL(address).join(asset), timeout=60)
        assert answer.status_code == 200 and str(answer.url).startswith(address), asset
    config = httpx.get(f"{address}config", timeout=60).json()
    assert config["root"] == address.rstrip("/")
    assert httpx.get(f"{address}health", timeout=60).json()["status"] == "ok"


def test_uploads_events_and_files_pass_under_the_path(site: tuple[str, Proxy], tmp_path: Path) -> None:
    address, proxy = site
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    client = gradio_client.Client(address, verbose=False, download_files=tmp_path)
    photo = gradio_client.handle_file(str(tmp_path / "a.png"))
    rows, files, said = client.predict([photo], "tiny200", ".csv", api_name="/batch")
    assert rows["data"][0][0] == "a.png" and "1 answers" in said
    assert rows["data"][0][1] in Path(files[0]).read_text()  # it was fetched through the proxy
    assert proxy.beside == []


@pytest.mark.ui
@pytest.mark.skipif(not BROWSERS, reason="wants chromium")
def test_a_browser_asks_for_nothing_beside_the_path(site: tuple[str, Proxy], tmp_path: Path) -> None:
    address, proxy = site
    dom = subprocess.run([BROWSERS[0], "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=15000",
                          f"--user-data-dir={tmp_path}", "--dump-dom", address],
                         check=True, capture_output=True, text=True)  # fmt: skip
    assert "Click to Upload" in dom.stdout
    # Browsers look there of their own accord, and for Gradio's manifest, which says how an app on a telephone looks.
    assert set(proxy.beside) <= {"/favicon.ico", "/manifest.json"}

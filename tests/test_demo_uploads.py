"""What visitors send: how much of it, how large it may become, how long it stays, how long it is computed."""

from __future__ import annotations

import io
import re
import socket
import stat
import struct
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import psutil
import pytest
import soundfile
from PIL import Image

from polysense.apps.demo.batching import Batcher
from polysense.apps.demo.memory import trimmed
from polysense.apps.demo.models import Models
from polysense.apps.demo.uploads import Uploads
from polysense.core.errors import InputError

FIT = ("images", "probe", 0, 1)
PASSWD = "/etc/passwd"
CALLS = {"image": ("tiny200", 5), "audio": ("esc10", 5), "point_cloud": ("furniture", 5), "forecast_columns": (),
         "table_columns": (), "predict_table": ("adult",)}  # fmt: skip


def noise() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


PHOTO = noise()


def test_too_large_uploads_leave_nothing(visited: Any) -> None:
    before = everything(visited)
    large = visited.http.post(f"{visited.api}/upload", files={"files": ("a.png", bytes(2_500_000))})
    assert large.status_code == 413
    many = [("files", (f"{i}.bin", bytes(1_900_000))) for i in range(7)]
    assert visited.http.post(f"{visited.api}/upload", files=many).status_code == 413
    assert visited.http.post(f"{visited.api}/upload", content=iter([b"x"])).status_code == 411
    assert everything(visited) == before
    hundred = [("files", (f"{i}.txt", b"%d" % i)) for i in range(100)]
    answer = visited.http.post(f"{visited.api}/upload", files=hundred)
    assert answer.status_code == 200 and len(set(answer.json())) == 100


def everything(visited: Any) -> set[Path]:
    return {place for place in visited.uploads.rglob("*") if place.is_file()}


def test_uploads_that_gradio_does_not_know_of_are_swept(visited: Any, tmp_path: Path) -> None:
    before = everything(visited)
    visited.http.post(f"{visited.api}/upload", files={"another": ("a.png", b"by another field's name")})
    with socket.create_connection(("127.0.0.1", httpx.URL(visited.address).port)) as broken:
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(100_000)
        head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n"
        broken.sendall(head + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body)
        time.sleep(0.5)
    left = everything(visited) - before
    assert len(left) == 2
    uploads = Uploads(visited.uploads, 1, 1)
    uploads.sweep(60, keep=set())
    assert everything(visited) - before == left  # too young
    uploads.sweep(-1, keep=before)
    assert everything(visited) == before


def test_sweeping_takes_folders_and_links_and_leaves_what_shall_stay(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "out"
    for place in (folder / "a" / "kept", folder / "b" / "c" / "gone", outside):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"12345")
    (folder / "link").symlink_to(outside)
    uploads = Uploads(folder, 100, 100)
    with uploads.swept(0.01, 1e9):
        time.sleep(0.05)
    assert len(uploads.files()) == 3 and uploads.held() >= 10
    uploads.sweep(-1, keep={folder / "a" / "kept"})
    uploads.sweep(-1, keep={folder / "a" / "kept"})
    assert {place.relative_to(folder).as_posix() for place in folder.rglob("*")} == {"a", "a/kept"}
    assert outside.read_bytes() == b"12345"


def test_room_for_uploads_is_shared(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, at_once=60, together=100)
    (tmp_path / "held").write_bytes(bytes(30))

    async def act() -> list[str]:
        faults = []
        async with uploads.room(60):
            for size in (61, 20):
                try:
                    async with uploads.room(size):
                        pass
                except InputError as error:
                    faults.append(str(error))
            async with uploads.room(10):
                pass
        async with uploads.room(60):  # there is room again
            pass
        return faults

    first, second = anyio.run(act)
    assert "more than the 60 of one request" in first and "too many files" in second


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bombs() -> Iterator[tuple[str, str, bytes]]:
    """Endpoint, name and content of files that promise, or unfold to, far more than they are."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    yield "image", "a.png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9)))
    screen = struct.pack("<HHBBB", 65_000, 65_000, 0x80, 0, 0) + bytes(6)
    frame = struct.pack("<cHHHHB", b",", 0, 0, 65_000, 65_000, 0)
    yield "image", "a.gif", b"GIF89a" + screen + frame + b"\x02\x02L\x01\x00;"
    tags = [(256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
            (277, 3, 1, 1), (278, 4, 1, 60_000), (279, 4, 1, 9)]  # fmt: skip
    yield "image", "a.tiff", b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", *tag) for tag in tags) + bytes(4)  # fmt: skip
    out = io.BytesIO()
    soundfile.write(out, np.zeros(4000), 8000, format="FLAC")
    flac = bytearray(out.getvalue())
    flac[21:26] = bytes([flac[21] | 15]) + b"\xff" * 4  # 2^36 - 1 samples: three months
    yield "audio", "a.flac", bytes(flac)
    ply = b"ply\nformat binary_little_endian 1.0\nelement vertex 900000000\n"
    axes = b"".join(b"property float %c\n" % axis for axis in b"xyz")
    yield "point_cloud", "a.ply", ply + axes + b"end_header\n" + bytes(99)
    shape = {"descr": "<f8", "fortran_order": False, "shape": (900_000_000, 3)}
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, shape)  # type: ignore[arg-type]
    yield "point_cloud", "a.npy", out.getvalue() + bytes(99)
    out = io.BytesIO()
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (600000000,), }".ljust(118)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        member.write(b"\x93NUMPY\x01\0v\0" + header)
        for _ in range(600):
            member.write(bytes(1_000_000))
    yield "forecast_columns", "a.npz", out.getvalue()
    yield "table_columns", "a.csv", b"a" + b",a" * 900_000 + b"\n" + b"\n".join([b"1"] * 300)
    yield "predict_table", "a.csv", b"a\n" + b"1\n" * 300_000


@pytest.mark.parametrize(("endpoint", "name", "content"), [pytest.param(*bomb, id=bomb[1]) for bomb in bombs()])
def test_bombs_are_refused_before_they_unfold(visited: Any, endpoint: str, name: str, content: bytes) -> None:
    path, process = visited.upload(name, content), psutil.Process()
    most, ended = [before := process.memory_info().rss], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            most[0] = max(most[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    sentence = visited(endpoint, [visited.data(path), *CALLS[endpoint]])[1]
    ended.set()
    watcher.join()
    assert sentence.startswith(f"{name}: ") and str(visited.uploads) not in sentence
    assert most[0] - before < 250_000_000, f"{(most[0] - before) / 1e6:.0f} MB for {sentence}"


def packed(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def linked() -> bytes:
    out, member = io.BytesIO(), zipfile.ZipInfo("red/link.png")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(member, PASSWD)
    return out.getvalue()


def nested() -> bytes:
    """An archive within an archive: 1.4 MB that become 1.4 GB, in two steps."""
    return packed({f"red/{i}.zip": packed({"a.png": bytes(100_000_000)}) for i in range(14)})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (packed({"../../../out.png": PHOTO, "red/a.png": PHOTO}), "leads out"),
        (packed({"/tmp/out.png": PHOTO, "red/a.png": PHOTO}), "leads out"),
        (packed({"red\\..\\..\\out.png": PHOTO, "red/a.png": PHOTO}), "leads out"),
        (linked(), "is a link"),
        (packed({"red/a.png": bytes(300_000_000), "blue/b.png": bytes(300_000_000)}), "more than the limit"),
        (nested(), r"nothing|no image|kind|readable|found|holds|unknown|classes"),
    ],
    ids=["up", "absolute", "backslash", "link", "bomb", "nested"],
)
def test_archives_for_fitting(visited: Any, content: bytes, sentence: str) -> None:
    path = visited.upload("many.zip", content)
    told = visited("fit_folders", [visited.data(path), *FIT])[1]
    assert re.search(sentence, told), told
    places = (visited.uploads.parent, *visited.uploads.parents[1:], Path("/tmp"), Path.cwd())
    assert not [place for place in places if (place / "out.png").exists()]
    assert [place for place in visited.uploads.iterdir() if place.name.startswith("tmp") and place.is_dir()
            and (place / "data").exists()] == []  # fmt: skip


def test_long_computing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    models = Models(batch=4)
    wave = (np.random.default_rng(0).normal(size=20 * 16_000).astype(np.float32) / 9, 16_000)
    usual = models.ask("esc10", wave)
    monkeypatch.setattr("polysense.apps.demo.models.MOST_SECONDS", 0)
    for options in ({}, {"batch_size": 1}):
        with pytest.raises(InputError, match="computed for more than 0 seconds"):
            models.ask("esc10", wave, **options)
    monkeypatch.undo()
    assert models.ask("esc10", wave).predictions[0].answer() == usual.predictions[0].answer()
    with models.within(0), pytest.raises(InputError, match="give less at once"):
        models.get("esc10")(wave)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_goes_back() -> None:
    process = psutil.Process()

    def hoard() -> Any:
        held = [bytes(2000) for _ in range(100_000)]
        return held[::500]  # a few that stay keep the rest from going back by itself

    def trimming() -> int:
        return sum(thread.name == "polysense-trim" for thread in threading.enumerate())

    before, others = process.memory_info().rss, trimming()
    few = hoard()
    after = process.memory_info().rss
    with trimmed(0.01):
        time.sleep(0.3)
        assert trimming() == others + 1
    assert len(few) == 200 and process.memory_info().rss - before < 0.5 * max(after - before, 100_000_000)
    assert trimming() == others


def test_one_that_takes_too_long_takes_no_other_along() -> None:
    def compute(of: str, parts: list[int]) -> list[int]:
        if sum(parts) > 100:
            raise InputError("answer", "it was computed for more than 1 seconds", "give less at once")
        return [2 * part for part in parts]

    batcher, told = Batcher(compute, most=4, seconds=0.05), {}

    def ask(i: int) -> None:
        try:
            told[i] = list(batcher.ask("model", [i]))
        except InputError as error:
            told[i] = [str(error)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in (1, 2, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told[1] == [2] and told[2] == [4] and "more than 1 seconds" in told[200][0]


def test_what_is_held_is_counted_while_others_delete(tmp_path: Path) -> None:
    uploads, ended = Uploads(tmp_path, 1e9, 1e9), threading.Event()
    (tmp_path / "stays").mkdir()
    (tmp_path / "stays" / "a").write_bytes(bytes(5000))

    def come_and_go() -> None:
        while not ended.is_set():
            for i in range(50):
                (tmp_path / f"{i}").mkdir()
            for i in range(50):
                (tmp_path / f"{i}").rmdir()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        assert all(uploads.held() >= 5000 for _ in range(300))
    finally:
        ended.set()
        thread.join()

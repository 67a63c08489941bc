"""The demo's senses: classes over time, frames that decided, clouds in 3D, colours over an image, legends."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import polysense
from polysense.apps.demo.app import served
from polysense.apps.demo.drawings import colours_of, marked
from polysense.apps.demo.legend import legend
from polysense.apps.demo.limits import Options
from polysense.apps.demo.solids import CORNERS, MOST, solid, write_solid
from polysense.apps.demo.timelines import LINES, lines
from polysense.apps.demo.video import captions
from polysense.apps.examples import MAKERS
from polysense.apps.panels import class_colours
from polysense.core.predictions import Boxes, Mask, Segments
from polysense.data.point_cloud import read_cloud
from polysense.timeline import Timeline, timeline

gradio_client = pytest.importorskip("gradio_client")
RATE = 16_000
PARTS = ("seat", "back", "<legs>")


@pytest.fixture(scope="module")
def bundles(build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One that divides clouds into parts, and one that measures sounds; untrained."""
    folder = tmp_path_factory.mktemp("bundles")
    parts = build("point-cloud-segmentation", encoder="embedded", head={"classes": PARTS})
    loudness = build("audio-regression", encoder="embedded")
    return [parts.save_pretrained(folder / "parts"), loudness.save_pretrained(folder / "loudness")]


@pytest.fixture(scope="module")
def client(bundles: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with served(Options(port=port, bundles=bundles)) as (_, address):
        yield gradio_client.Client(address, verbose=False, download_files=tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("inputs")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            MAKERS[name](folder / name)
        return folder / name

    return make


def given(path: Path) -> Any:
    return gradio_client.handle_file(str(path))


def rows_of(plot: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(plot["columns"], row, strict=True)) for row in plot["data"]]


def opened(data: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A .glb's description and its numbers, read as the standard says."""
    magic, version, size = struct.unpack_from("<4sII", data)
    assert (magic, version, size) == (b"glTF", 2, len(data))
    length, kind = struct.unpack_from("<I4s", data, 12)
    about = json.loads(data[20 : 20 + length])
    rest, second = struct.unpack_from("<I4s", data, 20 + length)
    assert kind == b"JSON" and second == b"BIN\0" and length % 4 == rest % 4 == 0
    body = data[28 + length :]
    assert len(body) == rest == about["buffers"][0]["byteLength"]
    types = {5126: np.float32, 5121: np.uint8, 5125: np.uint32}
    widths = {"VEC3": 3, "VEC4": 4, "SCALAR": 1}
    arrays = []
    for accessor in about["accessors"]:
        view = about["bufferViews"][accessor["bufferView"]]
        piece = body[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        array = np.frombuffer(piece, types[accessor["componentType"]]).reshape(-1, widths[accessor["type"]])
        assert len(array) == accessor["count"]
        arrays.append(array)
    return about, arrays


def test_solids_stand_around_the_points_in_their_colours() -> None:
    rng = np.random.default_rng(0)
    xyz = rng.random((50, 3)) * [1, 2, 4] + [5e5, 4e6, 100]  # survey coordinates
    colours = rng.random((50, 3))
    about, (vertices, normals, paint, triangles) = opened(solid(xyz, colours))
    assert about["accessors"][0]["min"] == pytest.approx(vertices.min(0).tolist())
    middles = vertices.reshape(50, 6, 3).mean(1)
    size = np.ptp(xyz, axis=0).max()
    wanted = (xyz - (xyz.min(0) + xyz.max(0)) / 2) / size
    np.testing.assert_allclose(middles, wanted[:, [0, 2, 1]] * [1, 1, -1], atol=1e-5)  # z of ours is y of glTF
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    np.testing.assert_array_equal(np.sort(np.unique(triangles)), np.arange(300))
    np.testing.assert_allclose((paint[::6, :3] / 255) ** (1 / 2.2), colours, atol=0.09)  # dark colours are coarse
    assert (paint[:, 3] == 255).all()
    # Every side looks outwards: what is seen from outside is drawn.
    corners = vertices[triangles.reshape(-1, 3)]
    outwards = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    own = middles[triangles.reshape(-1, 3)[:, 0] // 6]
    assert ((outwards * (corners.mean(1) - own)).sum(1) > 0).all()
    assert len(CORNERS) == 6


def test_clouds_keep_their_colours_and_become_no_larger(tmp_path: Path) -> None:
    xyz = np.random.default_rng(0).random((MOST + 500, 3))
    path = write_solid(tmp_path / "a.glb", xyz)
    _, arrays = opened(path.read_bytes())
    assert len(arrays[0]) == 6 * MOST and path.stat().st_size < 1_200_000
    low, high = arrays[2][arrays[0][:, 1].argmin()], arrays[2][arrays[0][:, 1].argmax()]
    assert low[2] > low[0] and high[0] > high[2]  # viridis: violet below, yellow above
    index = (xyz[:, 0] > 0.5).astype(int)
    _, (vertices, _, paint, _) = opened(write_solid(tmp_path / "b.glb", xyz, index).read_bytes())
    wanted = np.rint(255 * class_colours(np.array([0, 1])) ** 2.2)
    across = vertices.reshape(-1, 6, 3).mean(1)[:, 0]
    sure = np.abs(across) > 0.001
    np.testing.assert_array_equal(paint[::6, :3][sure], wanted[(across > 0).astype(int)][sure])
    for few in (np.zeros((1, 3)), np.zeros((3, 3)), np.array([[0.0, 0, 0], [1e-12, 0, 0]])):
        _, arrays = opened(write_solid(tmp_path / "c.glb", few).read_bytes())
        assert np.isfinite(arrays[0]).all() and len(arrays[0]) == 6 * len(few)


def test_a_legend_says_shares_and_trusts_no_name() -> None:
    colours = colours_of(("sky", "<b>"))
    html = legend({"shares": {"sky": 0.75, "<b>": 0.25}}, colours)
    assert colours["sky"] in html and "75.0%" in html and "&lt;b&gt;" in html and "<b>&" not in html
    html = legend({"boxes": [{"label": "cell"}, {"label": "cell"}, {"label": "rare"}]}, {})
    assert "<span>cell</span><b>2</b>" in html and "<span>rare</span><b>1</b>" in html
    assert legend({"scores": {"a": 1.0}}, {}) == "" == legend({"boxes": []}, {})


def test_colours_over_an_image_are_whole_and_in_the_legends_order() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    index = np.zeros((40, 60), int)
    index[10:20, 10:20] = 2
    found = Mask(index, ("a", "b", "c"), 0.9)
    _, masks = marked(found, picture)
    assert [name for _, name in masks] == list(found.to_record()["shares"]) == ["a", "c"]
    np.testing.assert_array_equal(masks[1][0], index == 2)  # how strong it is shown, the page says
    boxes = Boxes(np.array([[1, 1, 9, 9], [20, 20, 30, 30], [5, 5, 9, 9]], np.float32), ("x", "y", "x"),
                  np.array([0.9, 0.8, 0.7], np.float32), (40, 60))  # fmt: skip
    names = [name for _, name in marked(boxes, picture)[1]]
    assert names == ["x", "y"] and legend(boxes.to_record(), {}).index(">x<") < legend(boxes.to_record(), {}).index(
        ">y<"
    )
    segments = Segments(np.where(index == 2, 0, -1), ("thing",), np.array([0.9], np.float32))
    ((mask, _),) = marked(segments, picture)[1]
    assert mask[15, 15] == 1 and mask[0, 0] == 0 and 0 < mask[10, 12] < 1  # edges keep neighbours apart


def test_lines_reach_from_beginning_to_end() -> None:
    scores = np.array([[0.9, 0.09, 0.01, 0, 0, 0, 0], [0.2, 0.795, 0.005, 0, 0, 0, 0]])
    found = Timeline(np.array([[0.0, 1], [1, 2]]), tuple("abcdefg"), scores, 2.0)
    table = lines(found)
    assert list(table["class"].unique()) == ["a", "b"]  # the others never reach what can be seen
    one = table[table["class"] == "b"]
    assert list(one["seconds"]) == [0, 0.5, 1.5, 2] and list(one["probability"]) == [0.09, 0.09, 0.795, 0.795]
    even = Timeline(np.array([[0.0, 1]]), tuple(map(str, range(90))), np.full((1, 90), 1 / 90), 1.0)
    assert len(lines(even)["class"].unique()) == 1 and LINES == 5


def test_frames_that_decided_are_marked(tmp_path: Path) -> None:
    MAKERS["lion.jpg"](tmp_path / "lion.jpg")
    MAKERS["flower.jpg"](tmp_path / "flower.jpg")
    lion, flower = (np.asarray(Image.open(tmp_path / f"{name}.jpg").convert("RGB").resize((160, 120)))
                    for name in ("lion", "flower"))  # fmt: skip
    pipeline, film = polysense.load("clips101"), np.stack([lion] * 50 + [flower] * 50)
    found, seconds = timeline(pipeline, film), pipeline.tokenizer.read(film).meta["times"]
    marks = captions(found, "cougar_body", seconds)
    assert [mark[0] == "★" for mark in marks][:3] == [True] * 3 and not any(mark[0] == "★" for mark in marks[5:])
    assert marks[0].startswith("★ ") and marks[0].endswith(f"% · {seconds[0]:.1f} s")
    assert all(mark[0] != "★" for mark in captions(found, "strawberry", seconds)[:3])


def test_classes_over_time_of_sounds(client: Any, example: Callable[[str], Path], tmp_path: Path) -> None:
    import soundfile

    halves = [soundfile.read(example(name))[0] for name in ("clock.wav", "rain.wav")]
    soundfile.write(tmp_path / "both.wav", np.concatenate(halves), RATE)
    rows = rows_of(client.predict(given(tmp_path / "both.wav"), "esc10", api_name="/audio_timeline"))
    scores = {(row["class"], row["seconds"]): row["probability"] for row in rows}
    assert {name for name, _ in scores} >= {"clock_tick", "rain"}
    assert scores["clock_tick", 0.0] > 0.9 > 0.1 > scores["clock_tick", 10.0]
    assert scores["rain", 0.0] < 0.1 < 0.9 < scores["rain", 10.0]
    assert client.predict(given(tmp_path / "both.wav"), "loudness", api_name="/audio_timeline") is None
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    for file, said in ((given(tmp_path / "bad.wav"), r"bad\.wav"), (None, "nothing was given")):
        with pytest.raises(gradio_client.exceptions.AppError, match=said):
            client.predict(file, "esc10", api_name="/audio_timeline")


def test_classes_over_time_of_films(client: Any, example: Callable[[str], Path]) -> None:
    plot, frames = client.predict(given(example("lion.mp4")), "clips101", api_name="/video_timeline")
    rows = rows_of(plot)
    assert rows[0]["class"] == "cougar_body" and {row["seconds"] for row in rows} >= {0.0, 2.0}
    assert len(frames) == 8 and all(frame["caption"].startswith("★ ") for frame in frames)
    assert frames[0]["caption"].startswith(f"★ {rows[0]['probability']:.0%} · ")


def test_clouds_are_seen_and_turned(client: Any, example: Callable[[str], Path]) -> None:
    chair = example("chair.ply")
    picture, _, _, record, made = client.predict(given(chair), "furniture", 5, api_name="/point_cloud")
    _, arrays = opened(Path(made).read_bytes())
    assert record["answer"] == "chair" and len(arrays[0]) == 6 * MOST < 6 * len(read_cloud(chair).xyz)
    assert Image.open(picture).width > 500
    *_, record, made = client.predict(given(chair), "parts", 5, api_name="/point_cloud")
    paint = opened(Path(made).read_bytes())[1][2]
    wanted = np.rint(255 * class_colours(np.arange(3)) ** 2.2).astype(int)
    shares = [(paint[::6, :3] == colour).all(1).mean() for colour in wanted]
    assert sum(shares) == 1
    np.testing.assert_allclose(shares, [record["shares"].get(name, 0) for name in PARTS], atol=0.02)


def test_the_page_fades_colours_by_itself_and_hears_a_microphone(client: Any) -> None:
    components = {one["id"]: one for one in client.config["components"]}
    slider = next(one for one in components.values() if str(one["props"].get("label", "")).startswith("Strength"))
    fades = [one for one in client.config["dependencies"] if slider["id"] in one["inputs"]]
    assert len(fades) == 1 and fades[0]["js"] and not fades[0]["backend_fn"]  # nothing is asked for it
    assert ".found .mask" in client.config["css"] and ".dark .drawing" in client.config["css"]
    sources = [one["props"]["sources"] for one in components.values() if one["type"] == "audio"]
    assert ["upload", "microphone"] in sources

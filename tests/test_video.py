"""Clips: reading every container by time, and what is done about damaged ones. Tokens: test_video_tokens.py."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from polysense.core.errors import InputError
from polysense.data import video
from polysense.data.video import VIDEO_ENDINGS, read_video

FORMATS = {  # name: (container, encoders of which the first available is taken, pixel format)
    "mp4": ("mp4", ("libx264", "mpeg4"), "yuv420p"),
    "mov": ("mov", ("mpeg4",), "yuv420p"),
    "avi": ("avi", ("mpeg4",), "yuv420p"),
    "mkv": ("matroska", ("libx264", "mpeg4"), "yuv420p"),
    "webm": ("webm", ("libvpx-vp9", "libvpx"), "yuv420p"),
    "gif": ("gif", ("gif",), "rgb8"),
}


def film(
    path: Path, name: str = "mp4", count: int = 40, size: tuple[int, int] = (48, 64), rate: int = 10,
    stamps: Sequence[int] | None = None, noisy: bool = False, options: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """Writes a film whose left half brightens from black to white; one stamp is a tenth of a second by default."""
    container, codecs, pixel_format = FORMATS[name]
    codec = next((c for c in codecs if c in av.codecs_available), None)
    if codec is None:
        pytest.skip(f"no encoder for {name}")
    path = path / f"film.{name}"
    with av.open(str(path), "w", format=container, options=options or {}) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *size, pixel_format, 10
        for i in range(count):
            pixels = np.zeros((*size, 3), np.uint8)
            pixels[:, : size[1] // 2] = round(255 * i / max(count - 1, 1))
            if noisy:
                pixels[:, size[1] // 2 :] = np.random.default_rng(i).integers(0, 255, (size[0], size[1] // 2, 3))
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = stamps[i] if stamps else i, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def brightness(clip: video.Clip) -> np.ndarray:
    return clip.frames[:, 4:-4, 4:20].mean((1, 2, 3))


@pytest.mark.parametrize("name", FORMATS)
def test_every_container(tmp_path: Path, name: str) -> None:
    path = film(tmp_path, name)
    clip = read_video(path, 8)
    assert clip.frames.shape == (8, 48, 64, 3) and clip.frames.dtype == np.uint8 and clip.size == (48, 64)
    assert clip.duration == pytest.approx(4.0, abs=0.01)
    # The middle of the first half second is 0.25 s; the frame that stands then appeared at 0.2 s.
    np.testing.assert_allclose(clip.times, 0.2 + 0.5 * np.arange(8), atol=0.011)
    np.testing.assert_allclose(brightness(clip), 255 * clip.times / 3.9, atol=40 if name == "gif" else 8)
    assert clip.frames[:, 4:-4, -20:-4].max() < 40
    assert f".{name}" in VIDEO_ENDINGS


@pytest.mark.parametrize("name", ["mp4", "gif"])
def test_sources_in_memory(tmp_path: Path, name: str) -> None:
    path = film(tmp_path, name)
    expected = read_video(str(path), 4)
    with path.open("rb") as file:
        for source in (path.read_bytes(), io.BytesIO(path.read_bytes()), file):
            assert np.array_equal(read_video(source, 4).frames, expected.frames)


def test_frames_are_sampled_by_time_not_by_count(tmp_path: Path) -> None:
    stamps = [*range(30), 40, 50, 60]  # dense for three seconds, then one frame a second
    clip = read_video(film(tmp_path, count=33, stamps=stamps), 6)
    middles = (np.arange(6) + 0.5) * clip.duration / 6
    shown = [max(s for s in stamps if s / 10 <= m) / 10 for m in middles]
    np.testing.assert_allclose(clip.times, shown)
    assert (clip.times >= 2.9).sum() == 3  # by count it would be one


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("name", ["mp4", "gif"])
def test_short_clips_give_their_distinct_frames(tmp_path: Path, name: str, count: int) -> None:
    clip = read_video(film(tmp_path, name, count=count), 8)
    assert len(clip.frames) == len(clip.times) == count
    np.testing.assert_allclose(clip.times, np.arange(count) / 10, atol=1e-6)
    assert clip.duration > 0


def test_target_only_shrinks(tmp_path: Path) -> None:
    path = film(tmp_path, size=(48, 96))
    small = read_video(path, 3, target=32)
    assert small.frames.shape == (3, 16, 32, 3) and small.size == (48, 96)
    assert read_video(path, 3, target=500).frames.shape == (3, 48, 96, 3)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_rotation_is_applied(tmp_path: Path, matrix: tuple[int, int, int, int], turns: int) -> None:
    path = film(tmp_path)
    plain = read_video(path, 2)
    data = bytearray(path.read_bytes())
    # The track header's transformation (ISO 14496-12, 8.3.2): a b u c d v x y w in 16.16 fixed point.
    start = data.index(b"tkhd") + 4 + 40
    for offset, value in zip((0, 4, 12, 16), matrix, strict=True):
        data[start + offset : start + offset + 4] = (value << 16).to_bytes(4, "big", signed=True)
    turned = read_video(bytes(data), 2)
    assert turned.size == ((64, 48) if turns % 2 else (48, 64))
    assert np.array_equal(turned.frames, np.rot90(plain.frames, turns, (1, 2)))
    # A quarter clockwise (the first matrix, as phones write it) brings the bright left half to the top.
    if turns == 3:
        assert turned.frames[-1, 5].mean() > 150 > 50 > turned.frames[-1, -5].mean()


@pytest.mark.parametrize("name", ["mp4", "mkv", "avi", "webm", "gif"])
def test_seeking_in_long_clips_gives_the_same_frames(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film(tmp_path, name, count=330, rate=5, size=(32, 48))
    sought = read_video(path, 5)
    assert sought.duration > video.LONG
    monkeypatch.setattr(video, "LONG", 1e9)
    read = read_video(path, 5)
    np.testing.assert_allclose(sought.times, read.times)
    assert np.array_equal(sought.frames, read.frames)


def test_seeking_decodes_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path, count=330, rate=5, size=(32, 48))
    steps = []
    advance = video._Player._advance
    monkeypatch.setattr(video._Player, "_advance", lambda self: (steps.append(1), advance(self))[1])
    read_video(path, 4)
    assert len(steps) < 60


@pytest.mark.parametrize("name", ["mp4", "mkv", "webm"])
def test_a_clip_cut_in_its_first_half_is_refused(tmp_path: Path, name: str) -> None:
    options = {"movflags": "faststart"} if name == "mp4" else None
    data = film(tmp_path, name, noisy=True, options=options).read_bytes()
    with pytest.raises(InputError, match=r"breaks off after .* of 4\.0 seconds"):
        read_video(data[: int(len(data) * 0.4)])
    later = read_video(data[: int(len(data) * 0.8)])  # what is there, evenly spaced
    assert 2 < later.duration < 3.9 and len(later.times) == 8
    np.testing.assert_allclose(np.diff(later.times), later.duration / 8, atol=0.11)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_an_index_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    data = film(tmp_path).read_bytes()  # MP4 keeps its index at the end
    with pytest.raises(InputError, match=r"not a video|unknown"):
        read_video(data[: int(len(data) * share)])


def test_sound_beside_pictures_and_alone(tmp_path: Path) -> None:
    def write(path: Path, pictures: bool) -> Path:
        with av.open(str(path), "w", format="matroska") as out:
            sound = out.add_stream("pcm_s16le", rate=8000, layout="mono")
            stream = out.add_stream("mpeg4", rate=10) if pictures else None
            if stream is not None:
                stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
                for _ in range(10):
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
                out.mux(stream.encode())
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 40_000), np.int16), "s16", "mono")  # five seconds
            frame.sample_rate = 8000
            out.mux(sound.encode(frame))
        return path

    clip = read_video(write(tmp_path / "both.mkv", True), 4)
    assert clip.duration == pytest.approx(1.0, abs=0.02) and len(clip.times) == 4
    with pytest.raises(InputError, match="no video stream"):
        read_video(write(tmp_path / "sound.mkv", False))


def test_duration_is_measured_where_it_is_not_stated(tmp_path: Path) -> None:
    clip = read_video(film(tmp_path, "webm", options={"live": "1"}), 8)
    assert clip.duration == pytest.approx(4.0, abs=0.02)
    np.testing.assert_allclose(clip.times, 0.2 + 0.5 * np.arange(8), atol=0.011)


@pytest.mark.parametrize("name", ["mp4", "avi", "mkv"])
def test_titles_in_old_encodings_do_no_harm(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"title.{name}"
    with av.open(str(path), "w", format=FORMATS[name][0]) as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.metadata["title"] = out.metadata["title"] = "a title"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
        out.mux(stream.encode())
    data = path.read_bytes()
    assert b"a title" in data
    assert len(read_video(data.replace(b"a title", b"\xe0 titl\xe9")).frames) == 1


def test_frames_in_memory() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, 24, 32, 3), dtype=np.uint8)
    clip = read_video(frames, 4)
    assert np.array_equal(clip.frames, frames[[2, 7, 12, 17]])
    np.testing.assert_allclose(clip.times, np.array([2, 7, 12, 17]) / 25)
    assert clip.duration == pytest.approx(0.8) and clip.size == (24, 32)
    for same in (torch.from_numpy(frames).movedim(-1, 1), [Image.fromarray(f) for f in frames], tuple(frames)):
        assert np.array_equal(read_video(same, 4).frames, clip.frames)
    assert read_video(frames, 4, target=16).frames.shape == (4, 12, 16, 3)
    assert len(read_video(frames[:3], 8).frames) == 3
    assert read_video(Image.fromarray(frames[0])).frames.shape == (1, 24, 32, 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "the file is empty"),
        (b"not a film at all" * 100, "not a video"),
        (b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:9,\n/etc/hostname\n#EXT-X-ENDLIST\n", "not a video"),
        ([], "not a clip"),
        (np.zeros((24, 32, 3), np.uint8), "not a clip"),
        (np.zeros((0, 24, 32, 3), np.uint8), "not a clip"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], "2 different sizes"),
    ],
)
def test_errors_say_what_is_wrong(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_video(source)


def test_errors_of_paths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.mp4: there is no such file"):
        read_video(tmp_path / "none.mp4")
    with pytest.raises(InputError, match="this is a folder"):
        read_video(tmp_path)
    picture = tmp_path / "picture.mp4"
    Image.new("RGB", (9, 9)).save(picture, "PNG")
    with pytest.raises(InputError, match="not a video"):
        read_video(picture)
    with pytest.raises(ValueError, match="at least 1"):
        read_video(picture, 0)

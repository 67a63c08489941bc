"""Scores over time: windows are what they say, the line follows what is heard and seen, and its files are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import polysense
from polysense.apps import cli
from polysense.apps.examples import MAKERS
from polysense.apps.timeline import draw_timeline
from polysense.core.errors import InputError
from polysense.data.video import read_video, video_duration
from polysense.timeline import Timeline, spans_of, timeline

RATE = 16_000


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that grows louder, so that no two windows are alike."""
    count = round(seconds * RATE)
    noise = np.random.default_rng(seed).normal(0, 0.1, count)
    return (noise * np.linspace(0.1, 3, count)).astype(np.float32)


def film(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 40, 60, 3), np.uint8)


def scores_of(answer: Any, names: Any) -> np.ndarray:
    by_name = dict(zip(answer.names, answer.scores, strict=True))
    return np.array([by_name[name] for name in names])


def written(path: Path, *waves: np.ndarray) -> Path:
    import soundfile

    soundfile.write(path, np.concatenate(waves), RATE)
    return path


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds of a clock, then five of rain."""
    import soundfile

    folder = tmp_path_factory.mktemp("halves")
    parts = []
    for name in ("clock.wav", "rain.wav"):
        MAKERS[name](folder / name)
        parts.append(soundfile.read(folder / name)[0])
    return written(folder / "both.wav", *parts)


def test_a_window_of_sound_is_answered_as_its_own_recording() -> None:
    pipeline, wave = polysense.load("esc10"), sound(3.0)
    found = timeline(pipeline, (wave, RATE), window=1.0, step=0.5)
    assert found.spans.tolist() == [[begin, begin + 1] for begin in (0, 0.5, 1, 1.5, 2)]
    for (begin, end), row in zip(found.spans, found.scores, strict=True):
        alone = pipeline((wave[round(begin * RATE) : round(end * RATE)], RATE))[0]
        np.testing.assert_allclose(row, scores_of(alone, found.names), atol=1e-4)
    assert np.ptp(found.scores, axis=0).max() > 0.01  # they are not all the same
    single = timeline(pipeline, (wave, RATE), window=1.0, step=0.5, batch_size=1).to_frame()
    np.testing.assert_allclose(single[list(found.names)], found.scores, atol=1e-5)


@pytest.mark.parametrize("form", ["yamnet", "ast", "legacy"])
def test_stretches_of_sound_are_read_as_their_own_recording(build: Callable[..., Any], form: str) -> None:
    wave = sound(3.0)
    if form != "yamnet":
        wave -= wave.mean()  # which these forms take away from the whole
    tokenizer = build("audio-classification", tokenizer={"form": form}).tokenizer
    part, own = tokenizer.stretch(tokenizer.read((wave, RATE)), 0.5, 2.0), wave[RATE // 2 : 2 * RATE]
    alone = tokenizer.read((own, RATE))
    torch.testing.assert_close(part.data["mel"], alone.data["mel"], atol=0.02, rtol=0)
    assert part.meta == alone.meta and len(tokenizer.split(part)) == len(tokenizer.split(alone)) == 2


@pytest.mark.parametrize("options", [{}, {"form": "motion", "frames": 4}, {"form": "tubelet", "frames": 3}])
def test_stretches_of_film_are_read_as_their_own_film(build: Callable[..., Any], options: dict[str, Any]) -> None:
    tokenizer, frames = build("video-classification", tokenizer=options).tokenizer, film(100)
    whole = tokenizer.read(frames, 100)
    for first, last in ((0, 25), (40, 75), (99, 100)):
        part, alone = tokenizer.stretch(whole, first / 25, last / 25), tokenizer.read(frames[first:last])
        for name, tensor in alone.data.items():
            torch.testing.assert_close(part.data[name], tensor)
        np.testing.assert_allclose(part.meta["times"], alone.meta["times"], atol=1e-9)


def test_a_window_of_a_film_is_answered_as_its_own_film(tmp_path: Path) -> None:
    MAKERS["shapes.mp4"](tmp_path / "shapes.mp4")
    pipeline, frames = polysense.load("clips101"), read_video(tmp_path / "shapes.mp4", 72).frames
    found = timeline(pipeline, frames, window=0.48, step=0.48)
    assert found.duration == pytest.approx(72 / 25) and len(found.spans) == 6
    for (begin, end), row in zip(found.spans[[0, -1]], found.scores[[0, -1]], strict=True):
        alone = pipeline(frames[round(begin * 25) : round(end * 25)])[0]
        np.testing.assert_allclose(row, scores_of(alone, found.names), atol=1e-4)
    single = timeline(pipeline, frames, window=0.48, step=0.48, batch_size=1).to_frame()
    np.testing.assert_allclose(single[list(found.names)], found.scores, atol=1e-5)
    assert np.ptp(found.scores, axis=0).max() > 0.01


@pytest.mark.parametrize("task", ["audio-classification", "audio-multilabel", "audio-naming", "video-multilabel"])
def test_every_classifier_has_a_timeline(build: Callable[..., Any], task: str) -> None:
    pipeline = build(task)
    source = film(60) if pipeline.modality == "video" else (sound(3.0), RATE)
    found = timeline(pipeline, source)
    assert found.scores.shape == (5, 3) and set(found.names) == {"a", "b", "c"}
    if pipeline.task.kind == "classification":
        np.testing.assert_allclose(found.scores.sum(1), 1, atol=1e-5)


def test_a_steady_sound_and_a_still_film_give_level_lines(build: Callable[..., Any]) -> None:
    # A whole number of periods for each step of 10 ms: every frame of the spectrogram is the same.
    wave = np.sin(2 * np.pi * 400 * np.arange(4 * RATE) / RATE).astype(np.float32)
    for pipeline, source in (
        (build("audio-classification"), (wave, RATE)),
        (build("video-classification"), np.repeat(film(1), 100, 0)),
    ):
        found = timeline(pipeline, source, window=1.0, step=0.5)
        assert len(found.spans) == 7
        np.testing.assert_allclose(found.scores, np.broadcast_to(found.scores[:1], found.scores.shape), atol=2e-5)
        (run,) = found.runs()
        assert (run.begin, run.end, run.name) == (0, 4, found.names[0])


def test_the_class_changes_where_the_sound_does(halves: Path) -> None:
    found = timeline(polysense.load("esc10"), halves)
    assert [run.name for run in found.runs()] == ["clock_tick", "rain"] and len(found.spans) == 9
    seam = found.runs()[0].end
    assert abs(seam - 5.0) <= 1.0 and found.runs()[1].begin == seam  # half a window
    assert set(found.best(2)) == {"clock_tick", "rain"} == set(found.names[:2])


def test_the_class_changes_where_the_film_does(tmp_path: Path) -> None:
    MAKERS["lion.jpg"](tmp_path / "lion.jpg")
    MAKERS["flower.jpg"](tmp_path / "flower.jpg")
    lion, flower = (np.asarray(Image.open(tmp_path / f"{name}.jpg").convert("RGB").resize((160, 120)))
                    for name in ("lion", "flower"))  # fmt: skip
    found = timeline(polysense.load("clips101"), np.stack([lion] * 50 + [flower] * 50))
    first, *_, last = found.runs()
    assert first.name == "cougar_body" != last.name
    assert abs(first.end - 2.0) <= 0.7  # half a window of a third
    at = found.at(np.array([0.0, 1.0, 3.0, 4.0]))[:, found.names.index("cougar_body")]
    assert at[:2].min() > 3 * at[2:].max()


def test_long_recordings_have_longer_windows(build: Callable[..., Any]) -> None:
    found = timeline(build("audio-classification"), (sound(30.0), RATE), window=0.5, step=0.25, most=8)
    assert len(found.spans) == 8 and found.spans[0, 0] == 0 and found.spans[-1, 1] == pytest.approx(30.0)
    assert (found.spans[1:, 0] <= found.spans[:-1, 1] + 1e-9).all()  # nothing is left out
    np.testing.assert_allclose(found.scores.sum(1), 1, atol=1e-5)
    short = timeline(build("audio-classification"), (sound(0.3), RATE))
    assert short.spans.tolist() == [[0, 0.3]]


@pytest.mark.parametrize(
    ("duration", "window", "step", "most", "count"),
    [(10, 2, 1, 100, 9), (10, 2, 9, 100, 5), (10.1, 2, 1, 100, 10), (1, 2, 1, 100, 1), (10, 2, 0.1, 1, 1),
     (3600, 2, 1, 100, 100)],
)  # fmt: skip
def test_windows_cover_it_all(duration: float, window: float, step: float, most: int, count: int) -> None:
    spans = spans_of(duration, window, step, most)
    assert len(spans) == count and spans[0, 0] == 0 and spans[-1, 1] == pytest.approx(duration)
    assert np.allclose(np.ptp(spans, axis=1), np.ptp(spans[0])) and np.ptp(spans[0]) >= min(window, duration) - 1e-9
    assert (spans[1:, 0] <= spans[:-1, 1] + 1e-9).all()
    if count > 1:
        assert np.ptp(spans[0]) == pytest.approx(max(window, duration / most))


def test_the_length_of_films_is_known_before_they_are_read(tmp_path: Path) -> None:
    MAKERS["shapes.mp4"](tmp_path / "shapes.mp4")
    assert video_duration(tmp_path / "shapes.mp4") == pytest.approx(3.0, abs=0.02)
    assert video_duration(film(50)) == video_duration(list(film(50))) == 2.0
    with (tmp_path / "shapes.mp4").open("rb") as file:
        assert video_duration(file) == pytest.approx(3.0, abs=0.02) and read_video(file, 4).frames.shape[0] == 4


def test_runs_and_moments() -> None:
    spans = np.array([[0.0, 1], [1, 2], [2, 3], [3, 4]])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    found = Timeline(spans, ("a", "b"), scores, 4.0)
    assert [(run.begin, run.end, run.name) for run in found.runs()] == [(0, 2, "a"), (2, 3, "b"), (3, 4, "a")]
    assert found.runs()[0].score == pytest.approx(0.85)
    np.testing.assert_allclose(found.at(np.array([0.0, 1.0, 4.0]))[:, 0], [0.9, 0.85, 0.6])
    assert list(found.to_frame().columns) == ["begin", "end", "a", "b"] and found.best(1) == ["a"]


def test_what_has_no_timeline_says_so(build: Callable[..., Any], make: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image.*no timeline"):
        timeline(build("image-classification"), make("image", 0))
    with pytest.raises(InputError, match="only a classifier"):
        timeline(build("audio-regression"), make("audio", 1))
    pipeline = build("audio-classification")
    for options, said in (
        ({"window": 0.0}, "window 0.0"),
        ({"step": float("nan")}, "step nan"),
        ({"most": 0}, "most 0"),
    ):
        with pytest.raises(InputError, match=said):
            timeline(pipeline, make("audio", 1), **options)
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    with pytest.raises(InputError, match=r"bad\.wav"):
        timeline(pipeline, tmp_path / "bad.wav")


def test_the_command_writes_a_table_and_a_picture(
    halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, picture = tmp_path / "scores.csv", tmp_path / "timeline.png"
    cli.app(["timeline", "esc10", str(halves), "--window", "1", "--out", str(table), "--plot", str(picture)],
            standalone_mode=False)  # fmt: skip
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[2] for line in lines] == ["clock_tick", "rain"] and lines[0][0] == "0.00" and lines[-1][1] == "10.00"
    scores = pd.read_csv(table)
    assert len(scores) == 19 and {"clock_tick", "rain"} <= set(scores.columns[2:4])
    with Image.open(picture) as drawn:
        assert drawn.size == (1000, 560)
    with pytest.raises(InputError, match=r"end the name with \.csv or \.parquet"):
        cli.app(["timeline", "esc10", str(halves), "--out", str(tmp_path / "a.txt")], standalone_mode=False)


def test_films_are_drawn(build: Callable[..., Any], tmp_path: Path) -> None:
    MAKERS["shapes.mp4"](tmp_path / "shapes.mp4")
    found = timeline(build("video-classification"), tmp_path / "shapes.mp4")
    assert found.duration == pytest.approx(3.0)
    draw_timeline(found, tmp_path / "shapes.mp4", "video", tmp_path / "a.png", "shapes")
    with Image.open(tmp_path / "a.png") as drawn:
        assert len(drawn.convert("RGB").getcolors(1 << 24) or ()) > 50

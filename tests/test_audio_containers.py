"""Sound in webm, m4a and mp4: what browsers and phones record."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import polysense
from polysense.apps.examples import MAKERS
from polysense.core.errors import InputError
from polysense.data.audio import AUDIO_ENDINGS, read_audio
from polysense.data.audio_containers import CONTAINERS
from polysense.data.limits import limited

FORMS = [("webm", "libopus", 48_000), ("m4a", "aac", 44_100), ("mp4", "aac", 48_000), ("mkv", "flac", 22_050)]


def recorded(place: Any, wave: np.ndarray, rate: int, codec: str, live: bool = False, form: str | None = None) -> Any:
    """Writes (c, n) samples; `live` as a browser does, which cannot go back to say how long it became."""
    options = {"live": "1"} if live else {}
    with av.open(place, "w", format=form, options=options) as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo" if len(wave) == 2 else "mono")
        frame = av.AudioFrame.from_ndarray(wave.astype(np.float32), "fltp", "stereo" if len(wave) == 2 else "mono")
        frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(stream.format.name, stream.layout.name, rate)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return place


def tone(seconds: float, rate: int) -> np.ndarray:
    return 0.4 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(("ending", "codec", "rate"), FORMS)
def test_what_was_recorded_comes_back(tmp_path: Path, ending: str, codec: str, rate: int) -> None:
    wave = np.stack([tone(2, rate), np.zeros(2 * rate)])  # one side silent: mono is the mean
    path = recorded(str(tmp_path / f"tone.{ending}"), wave, rate, codec)
    recording = read_audio(path)
    assert recording.duration == pytest.approx(2.0, abs=0.06) and recording.rate == 16_000
    middle = recording.wave[8_000:24_000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 440 and np.abs(middle).max() == pytest.approx(0.2, abs=0.03)
    with open(path, "rb") as file:
        np.testing.assert_array_equal(read_audio(file).wave, recording.wave)
    np.testing.assert_array_equal(read_audio(Path(path).read_bytes()).wave, recording.wave)


def test_a_browsers_recording_says_not_how_long_it_is() -> None:
    file = io.BytesIO()
    recorded(file, tone(1.5, 48_000)[None], 48_000, "libopus", live=True, form="webm")
    with av.open(io.BytesIO(file.getvalue())) as container:
        assert not container.duration
    assert read_audio(file.getvalue()).duration == pytest.approx(1.5, abs=0.05)


def test_a_recording_is_named_as_the_same_wave(tmp_path: Path) -> None:
    import soundfile

    MAKERS["rain.wav"](tmp_path / "rain.wav")
    wave, rate = soundfile.read(tmp_path / "rain.wav")
    path = recorded(str(tmp_path / "rain.m4a"), wave[None], rate, "aac")
    assert polysense.load("esc10")([path])[0].answer() == "rain"


def test_the_sound_of_a_film_and_films_without(tmp_path: Path) -> None:
    MAKERS["lion.mp4"](tmp_path / "lion.mp4")
    with pytest.raises(InputError, match="no sound in this file"):
        read_audio(tmp_path / "lion.mp4")
    assert {".m4a", ".weba"} <= set(AUDIO_ENDINGS) and "hls" not in CONTAINERS


@pytest.mark.parametrize("ending", ["webm", "m4a"])
def test_damaged_files_are_refused_in_one_sentence(tmp_path: Path, ending: str) -> None:
    codec = {"webm": "libopus", "m4a": "aac"}[ending]
    whole = Path(recorded(str(tmp_path / f"a.{ending}"), tone(4, 48_000)[None], 48_000, codec)).read_bytes()
    for data in (whole[: len(whole) // 2], whole[:40], whole[:12] + bytes(500)):
        path = tmp_path / f"cut.{ending}"
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"cut\.{ending}: .*(cut short|damaged|breaks off|no sound)") as caught:
            read_audio(path)
        assert "\n" not in str(caught.value)
    with limited(seconds=1), pytest.raises(InputError, match="1"):
        read_audio(whole)

"""Audio: readers and the tokenizer."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

import polysense.data.audio as audio_module
from polysense.core.errors import InputError
from polysense.data.audio import AUDIO_ENDINGS, read_audio
from polysense.tokenizers import audio_features

YAMNET = Path(__file__).parents[2] / "shared/data/teachers/yamnet/yamnet.tflite"


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    return (0.4 * np.sin(2 * math.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds: float, seed: int = 0) -> tuple[np.ndarray, int]:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000)).astype(np.float32), 16_000


def encoded(wave: np.ndarray, rate: int = 16_000, form: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=form, subtype=subtype)
    return file.getvalue()


ENCODINGS = [("WAV", "PCM_U8", 0.01), ("WAV", "PCM_16", 1e-4), ("WAV", "PCM_24", 1e-6), ("WAV", "PCM_32", 1e-6),
             ("WAV", "FLOAT", 1e-7), ("WAV", "DOUBLE", 1e-7), ("FLAC", "PCM_16", 1e-4), ("AIFF", "PCM_16", 1e-4),
             ("OGG", "VORBIS", 0.05), ("MP3", "MPEG_LAYER_III", 0.05)]  # fmt: skip


@pytest.mark.parametrize(("form", "subtype", "tolerance"), ENCODINGS)
def test_every_encoding_gives_the_wave_back(tmp_path: Path, form: str, subtype: str, tolerance: float) -> None:
    path = tmp_path / f"tone.{form.lower()}"
    path.write_bytes(encoded(tone(0.5), form=form, subtype=subtype))
    recording = read_audio(path)
    assert path.suffix in {*AUDIO_ENDINGS, ".aiff"}
    assert recording.rate == 16_000 and recording.wave.dtype == np.float32
    assert recording.duration == pytest.approx(0.5, abs=0.08)
    assert np.abs(recording.wave[1000:7000] - tone(0.5)[1000:7000]).max() < tolerance


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_resampling_in_blocks_equals_resampling_the_whole(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, rate * 2 + 17).astype(np.float32)
    monkeypatch.setattr(audio_module, "BLOCK", 5_001)
    whole = torchaudio.functional.resample(torch.from_numpy(wave), rate, 16_000).numpy()
    got = read_audio((wave, rate)).wave
    assert got.shape == whole.shape and np.abs(got - whole).max() < 2e-5
    assert np.array_equal(read_audio(encoded(wave, rate, subtype="FLOAT")).wave, got)


@pytest.mark.parametrize("rate", [44_101, 5_513])
def test_rates_without_a_common_divisor_keep_pitch_and_length(rate: int) -> None:
    recording = read_audio((tone(1, rate), rate))
    assert recording.duration == pytest.approx(1, abs=1e-3)
    assert np.abs(recording.wave[1000:15_000] - tone(1)[1000:15_000]).max() < 0.01


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_channels_are_mixed_whichever_axis_they_stand_on(channels: int) -> None:
    many = np.stack([tone(0.2, hertz=200 * (i + 1)) for i in range(channels)], 1)
    sources = [encoded(many, subtype="FLOAT"), (many, 16_000), (many.T, 16_000), (torch.from_numpy(many), 16_000)]
    for source in sources:
        assert np.allclose(read_audio(source).wave, many.mean(1), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_integers_are_scaled_by_their_range(dtype: type) -> None:
    info = np.iinfo(dtype)
    middle = 128 if dtype is np.uint8 else 0
    wave = read_audio((np.array([info.min, middle, info.max] * 400, dtype), 16_000)).wave
    assert wave[0] == -1 and wave[1] == 0 and 0.99 < wave[2] <= 1


def test_in_memory_forms_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(tone(0.1), subtype="FLOAT"))
    with path.open("rb") as file:
        waves = [read_audio(source).wave for source in (path, str(path), path.read_bytes(), file, (tone(0.1), 16_000))]
    waves.append(read_audio((16_000, tone(0.1))).wave)
    waves.append(read_audio({"array": tone(0.1), "sampling_rate": 16_000}).wave)
    assert all(np.array_equal(wave, tone(0.1)) for wave in waves)


def cut(form: str, share: float = 0.5) -> bytes:
    data = encoded(noise(1)[0], form=form)
    return data[: int(len(data) * share)]


def piped() -> bytes:
    """A wav whose writer could not know its length."""
    data = bytearray(encoded(tone(0.5)))
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(data)


BAD = {
    "not audio": (b"these are words and no sound " * 50, "no readable recording"),
    "empty": (b"", "empty"),
    "no samples": (encoded(np.zeros(0, np.float32)), "0 samples"),
    "cut wav": (cut("WAV"), "cut short"),
    "cut flac": (cut("FLAC"), "readable"),
    "cut ogg": (cut("OGG"), "readable|cut short"),
    "cut aiff": (cut("AIFF"), "cut short"),
    "nan": (encoded(np.array([0, math.nan] * 900, np.float32), subtype="FLOAT"), "NaN"),
    "inf array": ((np.array([0, math.inf], np.float32), 16_000), "NaN or infinite"),
    "no rate": (np.zeros(100, np.float32), "rate is missing"),
    "slow": ((np.zeros(100, np.float32), 10), "10 Hz"),
    "word as rate": ((np.zeros(100, np.float32), "fast"), "sampling rate"),
    "three axes": ((np.zeros((2, 3, 4), np.float32), 16_000), r"shape \(2, 3, 4\)"),
    "words": ((np.array(["a", "b"]), 16_000), "not a recording"),
    "three values": ((np.zeros(4), 16_000, 1), "3 values"),
    "an object": (object(), "a object is not a recording"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sources_are_refused(case: str, tmp_path: Path) -> None:
    source, message = BAD[case]
    with pytest.raises(InputError, match=message):
        read_audio(source)
    if isinstance(source, bytes):
        path = tmp_path / "bad.wav"
        path.write_bytes(source)
        with pytest.raises(InputError, match=rf"bad\.wav.*({message})"):
            read_audio(path)


def test_cut_mp3_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="cut short"):
        read_audio(cut("MP3"))


def test_an_ending_makes_no_recording(tmp_path: Path) -> None:
    """libsndfile would take whatever is called so for bare telephone samples."""
    for ending in ("au", "snd", "vox", "gsm"):
        path = tmp_path / f"letter.{ending}"
        path.write_text("these are words and no sound " * 50)
        with pytest.raises(InputError, match="no readable recording"):
            read_audio(path)


def test_paths_that_hold_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_audio(tmp_path / "none.wav")
    with pytest.raises(InputError, match="folder"):
        read_audio(tmp_path)


def test_silence_and_streamed_files_are_fine() -> None:
    assert not read_audio((np.zeros(1000, np.float32), 16_000)).wave.any()
    assert len(read_audio(piped()).wave) == 8000


def test_an_hour_of_stereo_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "hour.flac"
    block = np.zeros((8000 * 60, 2), np.int16)
    with soundfile.SoundFile(path, "w", 8000, 2, format="FLAC", subtype="PCM_16") as file:
        for _ in range(60):
            file.write(block)
    # In a process of its own: the peak of this one tells of all tests before.
    code = f"""
import resource
from polysense.tokenizers.audio import AudioTokenizer
tokenizer, peak = AudioTokenizer(), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
sample = tokenizer.read({str(path)!r})
print(*sample.data["mel"].shape, (peak() - before) / 1e6)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told[:2] == ["359998", "64"] and float(told[2]) < 0.9  # GB


def test_features_in_blocks_equal_features_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = torch.from_numpy(noise(3)[0])
    whole = audio_features.yamnet_mel(wave), audio_features.kaldi_mel(wave, 128)
    monkeypatch.setattr(audio_features, "BLOCK", 77)
    blocks = audio_features.yamnet_mel(wave), audio_features.kaldi_mel(wave, 128)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole, blocks))
    assert whole[0].shape == (1 + (48_000 - 400) // 160, 64)


def test_mel_bands_lie_where_htk_puts_them() -> None:
    weights = audio_features.mel_weights(64, 125.0, 7500.0)
    assert weights.shape == (257, 64) and float(weights.max()) <= 1
    centres = weights.argmax(0) * 16_000 / 512
    mels = torch.linspace(1127 * math.log1p(125 / 700), 1127 * math.log1p(7500 / 700), 66)[1:-1]
    hertz = 700 * ((mels / 1127).exp() - 1)
    assert (centres - hertz).abs().max() < 16  # half a bin
    assert torch.equal(audio_features.yamnet_mel(torch.zeros(400)), torch.full((1, 64), math.log(0.001)))


@pytest.mark.slow
@pytest.mark.skipif(not YAMNET.exists(), reason="the YAMNet file is not here")
def test_features_are_those_of_yamnet() -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(YAMNET))
    interpreter.allocate_tensors()
    wave = noise(15_600 / 16_000)[0]
    interpreter.set_tensor(0, wave.reshape(interpreter.get_input_details()[0]["shape"]))
    interpreter.invoke()
    theirs = torch.from_numpy(interpreter.get_tensor(interpreter.get_output_details()[1]["index"])).view(96, 64)
    ours = audio_features.yamnet_mel(torch.from_numpy(wave))
    # The file's spectrogram is an int8 matrix product: quiet bins differ, the mean does not.
    assert (ours - theirs).abs().mean() < 0.006 and (ours - theirs).mean().abs() < 0.001

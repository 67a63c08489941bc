"""Generated speech: augmentations do what they say, windows fit YAMNet, voices speak, caches have the common format."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from polysense.core.errors import InputError
from polysense.training import speech_voices, synthetic_speech
from polysense.training.speech_voices import ACCENTS, KOKORO_SIGNS, RATE, Remembering, accented, draw_voice, replace
from polysense.training.synthetic_speech import (
    DIGITS,
    WORDS,
    RecordingConfig,
    cache_speech,
    draw_word,
    hiss,
    mix,
    record,
    reverberate,
    stretch_over,
    telephone,
    trim,
)
from polysense.training.teachers import YAMNET_WINDOW

PLAIN = RecordingConfig(size=0, room=0, telephone=0, colour=0, background=0, hiss=0, aside=0, ends=1)
needs_espeak = pytest.mark.skipif(find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed")


def tone(hertz: float = 440.0, seconds: float = 0.4) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


def band_power(wave: np.ndarray, low: float, high: float) -> float:
    spectrum = np.abs(np.fft.rfft(wave)) ** 2
    frequency = np.fft.rfftfreq(len(wave), 1 / RATE)
    return float(spectrum[(frequency >= low) & (frequency < high)].sum())


def test_vocabulary_has_each_word_once_and_no_digit_twice():
    assert len(set(WORDS)) == len(WORDS)
    assert WORDS[:10] == DIGITS and 100 < len(WORDS) < 200
    assert not {"to", "too", "for", "ate", "won"} & set(WORDS)


def test_trim_cuts_silence_at_both_ends_only():
    word = np.concatenate([np.zeros(800), tone(), np.zeros(300), tone(), np.zeros(1600)]).astype(np.float32)
    assert abs(len(trim(word)) - (len(word) - 2400)) < 20
    assert len(trim(np.zeros(100, np.float32))) == 0


def test_mix_sets_the_ratio():
    wave, noise = tone(), hiss(6400, np.random.default_rng(0))
    added = mix(wave, noise, 10) - wave
    assert 10 * np.log10(np.mean(wave**2) / np.mean(added**2)) == pytest.approx(10, abs=0.01)
    assert mix(wave, np.zeros(6400, np.float32), 10) is wave


def test_telephone_keeps_low_and_drops_high():
    low, high = tone(1000), tone(6000)
    assert band_power(telephone(low), 900, 1100) > 0.9 * band_power(low, 900, 1100)
    assert band_power(telephone(high), 0, 8000) < 0.02 * band_power(high, 0, 8000)


def test_reverberation_sounds_on():
    wet = reverberate(tone(), np.random.default_rng(0))
    assert len(wet) > 6400
    assert 0 < np.abs(wet[6400:]).max() < np.abs(wet[:6400]).max()


@pytest.mark.parametrize("length", [10, 1000, 5000])
def test_stretch_over_gives_the_length(length):
    noise = np.arange(1000, dtype=np.float32)
    part = stretch_over(noise, length, np.random.default_rng(0))
    assert len(part) == length
    assert np.all(np.diff(part) % 1000 == 1)  # consecutive, going round


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.3, 3.0])
def test_record_fills_a_window_and_never_breaks(seconds):
    rng = np.random.default_rng(0)
    for _ in range(20):
        window, end = record(tone(seconds=seconds), [tone(200, 0.1)], rng)
        assert window.shape == (YAMNET_WINDOW,) and window.dtype == np.float32
        assert np.isfinite(window).all() and np.abs(window).max() <= 1
        assert not window[end:].any()


def test_record_changes_size_of_the_speaker():
    config = RecordingConfig(**{**PLAIN.__dict__, "size": 0.2})
    rng = np.random.default_rng(0)
    peaks = []
    for _ in range(30):
        window, _ = record(tone(1000), [], rng, config)
        peaks.append(np.fft.rfftfreq(YAMNET_WINDOW, 1 / RATE)[np.abs(np.fft.rfft(window)).argmax()])
    assert min(peaks) < 900 and max(peaks) > 1100
    assert min(peaks) > 750 and max(peaks) < 1300


def test_record_begins_with_the_word_or_stands_anywhere():
    def starts(aside: float) -> list[int]:
        rng = np.random.default_rng(0)
        config = RecordingConfig(**{**PLAIN.__dict__, "aside": aside})
        return [int(np.flatnonzero(record(tone(), [], rng, config)[0])[0]) for _ in range(40)]

    assert np.median(starts(0)) < 0.05 * RATE
    assert np.median(starts(1)) > 0.15 * RATE


def test_same_seed_same_recording():
    first, second = (record(tone(), [tone(99)], np.random.default_rng(3))[0] for _ in range(2))
    assert np.array_equal(first, second)


def test_words_are_drawn_in_the_stated_share():
    rng = np.random.default_rng(0)
    drawn = np.array([draw_word(rng) for _ in range(2000)])
    assert 0.36 < (drawn < 10).mean() < 0.44
    assert drawn.max() < len(WORDS) and set(drawn[drawn < 10]) == set(range(10))


def test_remembering_repeats_takes():
    calls = []

    def voice(word: str, rng: np.random.Generator) -> np.ndarray:
        calls.append(word)
        return rng.normal(size=10)

    repeated, rng = Remembering(voice, 5), np.random.default_rng(0)
    heard = {repeated("one", rng).tobytes() for _ in range(200)}
    assert len(heard) == len(calls) and 20 < len(calls) < 70
    repeated("two", rng)
    assert calls[-1] == "two"


def test_voices_speak_as_often_as_said():
    rng = np.random.default_rng(0)
    drawn = [draw_voice([("a", None, 1.0), ("b", None, 3.0)], rng) for _ in range(1000)]
    assert 0.7 < np.mean(drawn) < 0.8


def test_accents_and_signs():
    assert replace("θɹˈiː", ACCENTS[0]) == "sʁˈiː"
    assert replace("nˈaɪn", KOKORO_SIGNS) == "nˈIn"
    assert replace("ˈeɪt", KOKORO_SIGNS) == "ˈAt"
    rng = np.random.default_rng(0)
    assert 0.2 < np.mean([accented("θɹˈiː", rng) != "θɹˈiː" for _ in range(300)]) < 0.46


def test_missing_espeak_says_what_to_install(monkeypatch):
    monkeypatch.setattr(speech_voices, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install espeakng-loader"):
        speech_voices.Espeak()


@needs_espeak
def test_espeak_says_different_words_in_different_voices():
    voice, rng = speech_voices.espeak(), np.random.default_rng(0)
    takes = [trim(voice("seven", rng)) for _ in range(5)]
    assert all(0.15 * RATE < len(take) < 1.5 * RATE and np.abs(take).max() <= 1.01 for take in takes)
    assert len({len(take) for take in takes}) > 1
    assert voice.phonemes("nine") == "nˈaɪn"


@pytest.mark.slow  # loads neural voices where they are installed
@needs_espeak
def test_installed_voices_are_named_and_speak():
    rng = np.random.default_rng(0)
    for name, voice, share in speech_voices.installed_voices():
        word = voice("yes", rng)
        assert share > 0 and np.isfinite(word).all() and len(trim(word)) > 0.1 * RATE, name


@needs_espeak
def test_espeak_alone_suffices(monkeypatch):
    monkeypatch.setattr(speech_voices, "find_spec", lambda name: True if name == "espeakng_loader" else None)
    assert [name for name, _, _ in speech_voices.installed_voices()] == ["espeak"]


class FakeYamnet:
    """Stands for the network: tokens that tell the loudest sample."""

    EMBEDDING = 0

    def __init__(self, path: Path) -> None:
        self.runner = self

    def front(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.loudest = np.full(1024, np.abs(wave).max(), np.float32)
        return np.zeros((96, 64), np.float32), np.full((6, 4, 512), self.loudest[0], np.float32)

    def get_tensor(self, number: int) -> np.ndarray:
        return self.loudest[None]


def test_cache_has_the_common_format(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_speech, "Yamnet", FakeYamnet)
    voices = [("a", lambda word, rng: tone(100 + 10 * WORDS.index(word)), 1.0)]
    out = tmp_path / "speech.safetensors"
    cache_speech(out, Path("none"), None, 30, 0, voices)
    with safe_open(out, "pt") as cache:
        assert json.loads(cache.metadata()["classes"]) == list(WORDS)
        columns = {name: cache.get_tensor(name) for name in cache.keys()}  # noqa: SIM118
    assert columns["tokens"].shape == (30, 24, 512) and columns["tokens"].dtype == torch.float16
    assert columns["teacher"].shape == (30, 1024) and columns["teacher"].dtype == torch.float16
    assert torch.equal(columns["tokens"][:, 0, 0], columns["teacher"][:, 0])
    assert columns["label"].dtype == torch.int64 and columns["label"].max() < len(WORDS)
    assert columns["frames"].min() >= 1 and columns["frames"].max() <= 96
    cache_speech(tmp_path / "again.safetensors", Path("none"), None, 30, 0, voices)
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()


def test_noise_folder_without_sound(tmp_path):
    with pytest.raises(InputError, match=r"folder|sound|file"):
        cache_speech(tmp_path / "x.safetensors", Path("none"), tmp_path, 1, 0, [("a", lambda word, rng: tone(), 1.0)])

"""Generated speech for pretraining: words said by many synthetic voices, as if recorded in many ways.

    python -m polysense.training.synthetic_speech OUT YAMNET [--noise FOLDER] [--rows 16000] [--seed 0]

Spoken words need what sounds of a kind do not: the order of short parts, whoever speaks. The vocabulary is the ten
digits and some 150 common words, none of which sounds like a digit. Voices: `speech_voices`.

Shape legend: r rows, n samples at 16 kHz.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polysense.core.errors import InputError
from polysense.data.audio import AUDIO_ENDINGS, read_audio
from polysense.data.dataset import list_files
from polysense.training.pretrain_cache import write_cache
from polysense.training.speech_voices import RATE, Voice, draw_voice, installed_voices, resample
from polysense.training.teachers import YAMNET_WINDOW, Yamnet

Wave = Float[np.ndarray, " n"]
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMMON = tuple(
    """yes no up down left right on off stop go bed bird cat dog happy house tree wow backward forward follow learn
    visual red green blue black white yellow orange brown water fire earth air light dark day night morning evening
    today hour minute second week month year spring summer winter hot cold warm man woman child boy girl mother father
    sister brother friend name hand head foot eye ear mouth nose heart door window table chair kitchen garden street
    city country river mountain sea island bread milk coffee sugar apple lemon potato egg fish meat music song dance
    book paper letter number question answer school teacher doctor money market car bus train plane bicycle hello
    goodbye please thanks sorry maybe never always open close start begin finish play pause next back enter cancel
    volume louder quiet slow fast big small long short old young good bad new same other first last nothing fine free
    fight nice sick save love hundred thousand""".split()  # noqa: SIM905 (one name a line would be a page)
)
WORDS = DIGITS + COMMON


@dataclass(frozen=True)
class RecordingConfig:
    """How a clean synthetic word becomes a recording; chances are of one word each."""

    size: float = 0.16  # deepest change of pitch and formants together (a larger or smaller speaker), share
    room: float = 0.3  # chance of reverberation
    telephone: float = 0.6  # chance of the band of an 8 kHz recording
    colour: float = 0.6  # chance of a microphone's tilt of the spectrum
    background: float = 0.5  # chance of another sound behind the word
    hiss: float = 0.6  # chance of stationary noise
    aside: float = 0.3  # chance that the word stands anywhere in the window instead of at its beginning
    ends: float = 0.5  # chance that digital silence follows soon after the word, as in a short clip padded to a window


def trim(wave: Wave, level: float = 0.02) -> Wave:
    """Without what is quieter than `level` of the peak at both ends."""
    loud = np.flatnonzero(np.abs(wave) > level * np.abs(wave).max(initial=1e-9))
    return wave[loud[0] : loud[-1] + 1] if len(loud) else wave[:0]


def reverberate(wave: Wave, rng: np.random.Generator) -> Wave:
    """A room: decaying noise (60 dB in 0.1-0.5 s) behind the direct sound."""
    from scipy.signal import fftconvolve

    seconds = rng.uniform(0.1, 0.5)
    t = np.arange(int(seconds * RATE)) / RATE
    tail = rng.normal(size=len(t)) * np.exp(-6.9 * t / seconds)
    tail *= rng.uniform(0.1, 0.6) / np.linalg.norm(tail)
    tail[0] = 1.0
    return fftconvolve(wave, tail)[: len(wave) + int(0.1 * RATE)].astype(np.float32)


def colour(wave: Wave, rng: np.random.Generator) -> Wave:
    """A microphone: less of the low or of the high frequencies (one-pole tilt), no rumble."""
    from scipy.signal import butter, lfilter, sosfilt

    tilt = rng.uniform(-0.6, 0.6)
    tilted = lfilter([1.0, -tilt], [1.0], wave)
    return sosfilt(butter(2, rng.uniform(40, 300), "high", fs=RATE, output="sos"), tilted).astype(np.float32)


def telephone(wave: Wave) -> Wave:
    """What an 8 kHz recording keeps."""
    from scipy.signal import resample_poly

    return resample_poly(resample_poly(wave, 1, 2), 2, 1)[: len(wave)].astype(np.float32)


def mix(wave: Wave, noise: Wave, decibels: float) -> Wave:
    """Adds noise so many decibels below the wave (of mean power)."""
    power, other = float(np.mean(wave**2)), float(np.mean(noise**2))
    return wave if other < 1e-12 else wave + noise * np.sqrt(power / other / 10 ** (decibels / 10))


def stretch_over(noise: Wave, length: int, rng: np.random.Generator) -> Wave:
    """A part of a noise, repeated if it is too short."""
    noise = np.tile(noise, -(-length // max(len(noise), 1)))
    start = int(rng.integers(len(noise) - length + 1))
    return noise[start : start + length]


def hiss(length: int, rng: np.random.Generator) -> Wave:
    """Noise between white and brown."""
    spectrum = np.fft.rfft(rng.normal(size=length))
    frequency = np.maximum(np.arange(len(spectrum)) / max(length, 1) * RATE, 50.0)
    return np.fft.irfft(spectrum * frequency ** -rng.uniform(0, 1), length).astype(np.float32)


def record(
    word: Wave, noises: Sequence[Wave], rng: np.random.Generator, config: RecordingConfig = RecordingConfig()
) -> tuple[Wave, int]:
    """A window of YAMNet's length that holds the word, and how many samples of it are not digital silence.

    Longer words lose their end. Noise lasts as long as the clip, which ends soon after the word or with the window.
    """
    wave = trim(word) if word.any() else np.zeros(1, np.float32)
    wave = resample(wave, RATE, RATE * rng.uniform(1 - config.size, 1 + config.size))
    if rng.random() < config.room:
        wave = reverberate(wave, rng)
    space = max(YAMNET_WINDOW - len(wave), 0)
    lead = int(rng.uniform(0, space) if rng.random() < config.aside else min(space, rng.exponential(0.03) * RATE))
    length = min(len(wave) + lead, YAMNET_WINDOW)
    end = (
        min(length + int(rng.exponential(0.05) * RATE), YAMNET_WINDOW) if rng.random() < config.ends else YAMNET_WINDOW
    )
    clip = np.zeros(end, np.float32)
    clip[lead:length] = wave[: length - lead]
    if rng.random() < config.colour:
        clip = colour(clip, rng)
    if noises and rng.random() < config.background:
        noise = noises[int(rng.integers(len(noises)))]
        clip = mix(clip, stretch_over(noise, end, rng), rng.uniform(5, 30))
    if rng.random() < config.hiss:
        clip = mix(clip, hiss(end, rng), rng.uniform(12, 45))
    if rng.random() < config.telephone:
        clip = telephone(clip)
    clip *= np.exp(rng.uniform(np.log(0.05), 0)) / max(float(np.abs(clip).max()), 1e-6)
    return np.pad(clip, (0, YAMNET_WINDOW - end)).astype(np.float32), end


def draw_word(rng: np.random.Generator, digits: float = 0.4) -> int:
    """A word's number; a share of all are digits."""
    return int(rng.integers(len(DIGITS))) if rng.random() < digits else int(rng.integers(len(DIGITS), len(WORDS)))


def cache_speech(
    out: Path,
    yamnet: Path,
    noise: Path | None = None,
    rows: int = 16_000,
    seed: int = 0,
    voices: Sequence[tuple[str, Voice, float]] | None = None,
) -> None:
    """Writes a cache as `pretrain_cache.cache_sounds` does, with more columns.

    Columns: "tokens" (r, 24, 1024), "teacher" (r, 1024), "label" (r,) word, "voice" (r,) synthesiser, and "frames"
    (r,), how many spectrogram frames the clip has; digital silence follows.

    Args:
        out: File to write.
        yamnet: YAMNet's TensorFlow Lite file.
        noise: Folder of sounds to hear behind words.
        rows: Words to say.
        seed: Of everything random.
        voices: As `installed_voices` gives them (default).

    Raises:
        InputError: espeak-ng is not installed, or the noise folder has no sound.
    """
    rng = np.random.default_rng(seed)
    voices = installed_voices() if voices is None else voices
    noises = [read_audio(path, RATE).wave for path in list_files(noise, AUDIO_ENDINGS)] if noise else []
    if noise and not noises:
        raise InputError(noise, "there is no sound in this folder", "name a folder of wav, ogg, flac or mp3 files")
    teacher = Yamnet(yamnet)
    columns: dict[str, list[Tensor]] = {"tokens": [], "teacher": [], "label": [], "voice": [], "frames": []}
    for _ in range(rows):
        word, voice = draw_word(rng), draw_voice(voices, rng)
        window, end = record(voices[voice][1](WORDS[word], rng), noises, rng)
        _, front = teacher.front(window)
        features = teacher.runner.get_tensor(teacher.EMBEDDING)[0].copy()
        columns["tokens"].append(torch.from_numpy(front.reshape(1, -1, front.shape[-1])).half())
        columns["teacher"].append(torch.from_numpy(features)[None].half())
        for name, value in (("label", word), ("voice", voice), ("frames", max(1, 1 + (end - 400) // 160))):
            columns[name].append(torch.tensor([value]))
    write_cache(out, columns, list(WORDS))


def main() -> None:
    parser = argparse.ArgumentParser(description="Generated speech -> a cache for pretraining.")
    parser.add_argument("out", type=Path)
    parser.add_argument("yamnet", type=Path)
    parser.add_argument("--noise", type=Path)
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cache_speech(arguments.out, arguments.yamnet, arguments.noise, arguments.rows, arguments.seed)


if __name__ == "__main__":
    main()

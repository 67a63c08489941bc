"""Recordings: files, bytes or arrays -> one mono float32 wave at a chosen rate.

Decoding is libsndfile's (wav, flac, ogg, opus, mp3, aiff …) or, of what browsers and phones record, FFmpeg's (webm,
m4a: `audio_containers`), resampling torchaudio's. All run block by block, so that an hour of stereo needs little more
memory than its 16 kHz mono wave.

Shape legend: n samples, c channels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polysense.core.errors import InputError
from polysense.data.audio_containers import is_container, open_container
from polysense.data.limits import check, check_file

AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".m4a", ".weba")
SLOWEST = 100  # Hz; below it a "rate" is a mistake (seconds, kHz …)
BLOCK = 1 << 19  # samples per channel decoded at a time
WIDEST = 1 << 23  # and of all channels: a header may claim a thousand
UNKNOWN = 1 << 40  # 2^62 samples and the like stand for "unknown" in streams
FORMATS = "wav, flac, ogg or mp3"


@dataclass(frozen=True, slots=True)
class Recording:
    """A mono recording.

    Attributes:
        wave: Samples, float32 (n,), -1..1 (float files may exceed that).
        rate: Samples a second of `wave`.
        duration: Seconds.
    """

    wave: np.ndarray
    rate: int
    duration: float


def read_audio(source: Any, rate: int = 16_000) -> Recording:
    """Decodes, mixes to mono and resamples.

    Args:
        source: A path, the bytes of a file, an open binary file, or `(array, rate)` with an array or tensor of shape
            (n,), (n, c) or (c, n): the smaller axis is the channels. Integers are scaled by their type's range.
        rate: Rate wanted, Hz.

    Raises:
        InputError: No such file, not audio, cut short or damaged, no samples, samples that are not finite, a
            meaningless rate.
    """
    name = audio_name(source)
    if isinstance(source, dict) and {"array", "sampling_rate"} <= source.keys():
        source = (source["array"], source["sampling_rate"])
    if isinstance(source, tuple | list):
        own_rate, blocks = _from_array(name, source)
        wave = _resampled(name, blocks, own_rate, rate)
    elif isinstance(source, np.ndarray | Tensor):
        raise InputError(name, "the sampling rate is missing", "give (array, rate)")
    else:
        wave = _from_file(name, _opened(name, source), rate)
    if not len(wave):
        raise InputError(name, "the recording is empty (0 samples)", "give a recording with sound in it")
    return Recording(wave, rate, len(wave) / rate)


class _Bytes(io.BytesIO):
    """Bytes to which damaged headers may send the decoder: it ends up at the start instead of printing a traceback."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return super().seek(0)


def audio_name(source: Any) -> str:
    """How messages and output rows call a source."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "<memory>"


def _opened(name: str, source: Any) -> BinaryIO | Path:
    """A path that exists, or something seekable that libsndfile can read."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            raise InputError(name, "it is a folder, not a recording", f"give one {FORMATS} file")
        if not path.exists():
            raise InputError(name, "there is no such file", "check the path")
        check_file(path)
        if path.stat().st_size == 0:
            raise InputError(name, "the file is empty", "copy or record it again")
        return path
    data = source.read() if hasattr(source, "read") else source
    if isinstance(data, bytes | bytearray | memoryview):
        if not len(data):
            raise InputError(name, "the file is empty", "copy or record it again")
        return _Bytes(data)
    raise InputError(name, f"a {type(source).__name__} is not a recording",
                     "give a path, bytes, an open binary file, or (array, rate)")  # fmt: skip


def _from_file(name: str, opened: BinaryIO | Path, rate: int) -> np.ndarray:
    import soundfile

    if is_container(opened):
        with open_container(name, opened) as (own_rate, parts):
            return _resampled(name, (_mono(part) for part in parts), own_rate, rate)
    try:
        # A Path, not bytes: libsndfile then reads from disk instead of calling back into Python.
        with soundfile.SoundFile(opened) as file:
            if file.format == "RAW":  # what libsndfile takes anything for that is called .au, .vox or .gsm
                raise InputError(name, "it is no readable recording (there is no header)", f"give a {FORMATS} file")
            _check_complete(name, file.extra_info, opened)
            if file.frames < UNKNOWN:
                check("seconds", file.frames / file.samplerate, name)
            decoded, size = 0, max(1, min(BLOCK, WIDEST // file.channels))

            def blocks() -> Iterator[np.ndarray]:
                nonlocal decoded
                for block in file.blocks(size, dtype="float32", always_2d=True):
                    decoded += len(block)
                    check("seconds", decoded / file.samplerate, name)
                    yield _mono(block)

            wave = _resampled(name, blocks(), file.samplerate, rate)
            if decoded < file.frames < UNKNOWN:
                raise InputError(name, f"the file is cut short: {decoded} of {file.frames} samples could be decoded",
                                 "copy or export it again")  # fmt: skip
            return wave
    except soundfile.LibsndfileError as error:
        problem = f"it is no readable recording ({error.error_string.strip().rstrip('.')})"
        raise InputError(name, problem, f"give a {FORMATS} file, or export it again") from error


def _check_complete(name: str, log: str, opened: BinaryIO | Path) -> None:
    """Refuses files that libsndfile would read quietly up to where they break off."""
    for line in log.splitlines():
        # "data : 88200 (should be 44000)": the header promises more than there is.
        head, found, _ = line.partition("(should be")
        word, _, said = head.partition(":")
        if found and word.strip() in ("data", "SSND", "Data Size") and said.strip().isdigit():
            # Programs that write into a pipe cannot know the size and put the largest number there.
            actual = line.partition("(should be")[2].strip(" )")
            if actual.isdigit() and int(actual) < int(said) < 0x7FFF0000:
                raise InputError(name, f"the file is cut short: {actual} of {said.strip()} bytes of sound are there",
                                 "copy or export it again")  # fmt: skip
    with open(opened, "rb") if isinstance(opened, Path) else nullcontext(opened) as file:
        place = file.tell()
        short = _ogg_cut_short(file) or _mp3_cut_short(file)
        file.seek(place)
    if short:
        raise InputError(name, "the file is cut short: its end is missing", "copy or export it again")


def _ogg_cut_short(file: BinaryIO) -> bool:
    """Whether an Ogg file has no whole last page that is marked as the end of its stream (RFC 3533, section 6)."""
    file.seek(0)
    if file.read(4) != b"OggS":
        return False
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 70_000))  # a page is at most 65,307 bytes
    tail = file.read()
    page = tail[max(tail.rfind(b"OggS"), 0) :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    whole = 27 + page[26] + sum(page[27 : 27 + page[26]])
    return len(page) < whole or not page[5] & 4


def _mp3_cut_short(file: BinaryIO) -> bool:
    """Whether an MP3 is much smaller than the Xing header in its first frame says; without one nobody can tell."""
    file.seek(0)
    head = file.read(10)
    # An ID3v2 tag (its size in four 7-bit bytes) may stand before the first frame.
    start = 10 + sum(b << 7 * (3 - i) for i, b in enumerate(head[6:10])) if head[:3] == b"ID3" else 0
    file.seek(start)
    frame = file.read(200)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if frame[:1] != b"\xff" or at < 0 or len(frame) < at + 16 or frame[at + 7] & 3 != 3:
        return False
    said = int.from_bytes(frame[at + 12 : at + 16], "big")
    return file.seek(0, os.SEEK_END) - start < 0.99 * said


def _from_array(name: str, pair: Any) -> tuple[int, Iterator[np.ndarray]]:
    """Rate and mono blocks of `(array, rate)`; `(rate, array)` is understood too."""
    if len(pair) != 2:
        raise InputError(name, f"{len(pair)} values are not a recording", "give (array, rate)")
    array, rate = pair
    if np.ndim(array) == 0 and np.ndim(rate) > 0:
        array, rate = rate, array
    array = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2) or (array.ndim == 2 and 0 in array.shape):
        raise InputError(name, f"an array of shape {array.shape} and type {array.dtype} is not a recording",
                         "give numbers of shape (n,), (n, channels) or (channels, n)")  # fmt: skip
    if np.ndim(rate) or isinstance(rate, str | bool | None) or not np.isfinite(float(rate)):
        raise InputError(name, f"{rate!r} is not a sampling rate", "give (array, rate) with the rate in Hz")
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(array), BLOCK):
            block = _scaled(array[start : start + BLOCK])
            yield _mono(block) if block.ndim == 2 else block

    return round(float(rate)), blocks()


def _mono(block: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    with np.errstate(invalid="ignore", over="ignore"):  # samples that are not finite are refused later
        return block.mean(1) if block.shape[1] > 1 else block[:, 0]


def _scaled(block: np.ndarray) -> np.ndarray:
    """Integers -> -1..1; unsigned ones have their zero in the middle."""
    if block.dtype.kind == "f":
        return block.astype(np.float32)
    half = 2.0 ** (8 * block.dtype.itemsize - 1)
    shifted = block.astype(np.float64) - (half if block.dtype.kind == "u" else 0.0)
    return (shifted / half).astype(np.float32)


def _resampled(name: str, blocks: Iterator[np.ndarray], own_rate: int, rate: int) -> np.ndarray:
    """Resamples blocks of a wave to the same result as the whole wave at once.

    Each block is resampled with a margin of real neighbours on both sides, longer than the filter, and the margins'
    output is cut away; block borders fall on whole periods of the two rates, so that no sample shifts.
    """
    if own_rate < SLOWEST or own_rate > 10_000_000:
        raise InputError(name, f"a sampling rate of {own_rate} Hz is not that of a recording", "give the rate in Hz")
    blocks = _finite(name, blocks)
    # Coprime rates (44,101 -> 16,000) would need a filter of gigabytes; a ratio right to 1e-6 does not.
    ratio = Fraction(rate, own_rate).limit_denominator(1000)
    down, up = ratio.denominator, ratio.numerator
    if down == up:
        return np.concatenate([np.empty(0, np.float32), *blocks])
    from torchaudio.transforms import Resample

    resample = Resample(down, up)
    margin = 2 * down * -(-(resample.kernel.shape[-1]) // down)
    parts: list[np.ndarray] = []
    held, lead = np.empty(0, np.float32), 0  # samples not yet answered, after `lead` samples that only give context
    for block in blocks:
        held = np.concatenate([held, block])
        ready = (len(held) - lead - margin) // down * down
        if ready <= 0:
            continue
        out = resample(torch.from_numpy(held[: lead + ready + margin])).numpy()
        begin = lead // down * up
        parts.append(out[begin : begin + ready // down * up].copy())
        keep = min(margin, lead + ready)
        held, lead = held[lead + ready - keep :], keep
    if len(held) > lead:
        parts.append(resample(torch.from_numpy(held)).numpy()[lead // down * up :])
    return np.concatenate([np.empty(0, np.float32), *parts])


def _finite(name: str, blocks: Iterator[np.ndarray]) -> Iterator[Float[np.ndarray, " n"]]:
    for block in blocks:
        if not np.isfinite(block).all():
            raise InputError(name, "it holds samples that are not numbers (NaN or infinite)", "export it again")
        yield block

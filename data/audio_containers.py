"""Sound in the containers of films, which libsndfile does not know: what browsers and phones record (webm, m4a, mp4).

Decoding is FFmpeg's, by PyAV. Shape legend: n samples, c channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float

from polysense.core.errors import InputError
from polysense.data.limits import check

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"  # FFmpeg's names; it would open playlists, too
AGAIN = "export it as wav, or record it again"
SLACK = 0.5  # seconds that a container may promise beyond its last sample
GATHERED = 1 << 19  # samples handed over at a time; a packet holds a thousand


def is_container(opened: BinaryIO | Path) -> bool:
    """Whether a file begins as Matroska (webm) or MP4 does."""
    with _readable(opened) as file:
        place = file.tell()
        head = file.read(12)
        file.seek(place)
    return head[:4] == b"\x1a\x45\xdf\xa3" or head[4:8] == b"ftyp"


@contextmanager
def open_container(name: str, opened: BinaryIO | Path) -> Iterator[tuple[int, Iterator[Float[np.ndarray, "n c"]]]]:
    """Yields the sampling rate and the samples, block by block.

    Raises:
        InputError: It cannot be read, holds no sound, is longer than is allowed, or breaks off.
    """
    import av

    with _readable(opened) as file:
        try:
            container: Any = av.open(file, options={"format_whitelist": CONTAINERS}, metadata_errors="replace")
        except av.error.FFmpegError as error:
            raise InputError(name, "it is no readable recording, or it is damaged or cut short", AGAIN) from error
        with container:
            if not container.streams.audio:
                raise InputError(name, "there is no sound in this file", "give a recording")
            stream = container.streams.audio[0]
            if stream.codec_context is None or not stream.rate:
                raise InputError(name, "the sound's codec is unknown", AGAIN)
            promised = (container.duration or 0) / av.time_base
            check("seconds", promised, name)
            yield stream.rate, _blocks(name, container, stream, promised)


def _blocks(name: str, container: Any, stream: Any, promised: float) -> Iterator[Float[np.ndarray, "n c"]]:
    import av

    # One format and rate, whatever changes on the way.
    even = av.AudioResampler(format="fltp", layout=stream.layout.name, rate=stream.rate)
    waiting: list[np.ndarray] = []
    count = decoded = 0

    def parts() -> Iterator[np.ndarray]:
        for frame in container.decode(stream):
            yield from (part.to_ndarray().T for part in even.resample(frame))
        yield from (part.to_ndarray().T for part in even.resample(None))

    try:
        for part in parts():
            waiting.append(part)
            count, decoded = count + len(part), decoded + len(part)
            check("seconds", decoded / stream.rate, name)
            if count >= GATHERED:
                yield np.concatenate(waiting)
                waiting, count = [], 0
    except av.error.FFmpegError as error:
        raise InputError(name, f"it breaks off after {decoded / stream.rate:.1f} seconds", AGAIN) from error
    if decoded / stream.rate < promised - SLACK and not container.streams.video:
        there = f"{decoded / stream.rate:.1f} of {promised:.1f} seconds are there"
        raise InputError(name, f"the file is cut short: {there}", "copy or export it again")
    if waiting:
        yield np.concatenate(waiting)


@contextmanager
def _readable(opened: BinaryIO | Path) -> Iterator[BinaryIO]:
    if isinstance(opened, Path):
        with opened.open("rb") as file:
            yield file
    else:
        yield opened

"""Reads clips: a few frames, evenly spaced in time, of a film of any length.

Each wanted moment (the middle of one of `frames` equal parts of the clip) gives the frame that stands on the screen
then, so variable frame rates are sampled by time and not by count. Only wanted frames are converted and kept.

Shape legend: t frames, h height, w width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from polysense.core.errors import InputError
from polysense.data.image import describe_source, open_source, read_image_sized
from polysense.data.limits import check, check_file

VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".gif")
ARRAY_RATE = 25.0  # frames a second that arrays and lists are taken to have
LONG = 60.0  # seconds; longer files are read by seeking
SEEK_GAP = 5.0  # seconds; a seek lands on a keyframe up to some seconds early, so a nearer frame is reached by decoding
ROUNDING = 1e-6  # seconds; a frame that appears exactly at a moment counts as shown
# FFmpeg also knows playlists and scripts that open other files and addresses; a clip is one of these containers.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,gif,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,m4v,apng"


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames taken from a film.

    Attributes:
        frames: RGB, upright, perhaps smaller than the original.
        times: Seconds from the beginning at which each frame appears, ascending.
        duration: Seconds from the first frame to the end of the last one.
        size: (height, width) of the upright original.
    """

    frames: np.ndarray  # (t, h, w, 3) uint8
    times: np.ndarray  # (t,) float64
    duration: float
    size: tuple[int, int]


def read_video(source: Any, frames: int = 8, *, target: int | None = None) -> Clip:
    """Reads evenly spaced frames of one clip.

    Args:
        source: A path, bytes or a binary file object (MP4, MOV, AVI, MKV, WebM, GIF and their kin); or the frames
            themselves at 25 a second: a uint8 array (t, h, w, 3), a tensor (t, 3, h, w), or a list of images.
        frames: How many to take; fewer come back where the clip has fewer distinct ones.
        target: Frames are scaled down so that their longer side is at most this many pixels.

    Raises:
        InputError: There is no such file, no picture in it, it is damaged, or it breaks off in its first half.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, not {frames}")
    name = describe_source(source)
    if isinstance(source, np.ndarray | torch.Tensor | list | tuple):
        return _from_images(source, frames, target, name)
    if isinstance(source, Image.Image):
        return _from_images([source], frames, target, name)
    with ExitStack() as stack:
        check_file(source)
        file = open_source(source, stack)
        start = file.tell()
        duration, certain = _measure(file, start, name)
        clip, end, broken = _take(file, start, name, frames, duration, target)
        if end < duration / 2 and (broken or certain):
            problem = f"the clip breaks off after {end:.1f} of {duration:.1f} seconds"
            raise InputError(name, problem, "download or export it again")
        if end < _middles(duration, frames)[-1]:  # it stops early: spread the frames over what there is
            clip, _, _ = _take(file, start, name, frames, end, target)
    return clip


def video_duration(source: Any) -> float:
    """Seconds of a clip, from what `read_video` takes, without decoding a picture.

    Raises:
        InputError: There is no such file, or no picture in it.
    """
    if isinstance(source, np.ndarray | torch.Tensor | list | tuple):
        return len(source) / ARRAY_RATE
    if isinstance(source, Image.Image):
        return 1 / ARRAY_RATE
    with ExitStack() as stack:
        check_file(source)
        file = open_source(source, stack)
        start = file.tell()
        duration, _ = _measure(file, start, describe_source(source))
        file.seek(start)  # whoever reads it next begins where this began
        return duration


def _middles(duration: float, count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) * (duration / count)


@contextmanager
def _opened(file: Any, start: int, name: str) -> Iterator[tuple[Any, Any]]:
    """Yields PyAV's (container, video stream)."""
    import av

    file.seek(start)
    try:
        # Titles in old encodings are common and of no interest.
        container = av.open(file, options={"format_whitelist": CONTAINERS}, metadata_errors="replace")
    except av.error.FFmpegError as error:
        problem = "this is not a video, or it is damaged or cut short"
        raise InputError(name, problem, "convert it to MP4 or download it again") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise InputError(name, "there is no video stream in this file", "give a file with pictures")
        stream = streams[0]
        if stream.codec_context is None:
            raise InputError(name, "the video's codec is unknown", "convert it to MP4 (H.264)")
        width, height = stream.codec_context.width, stream.codec_context.height
        check("pixels", width * height, name, f"frames of {width} × {height} pixels")
        yield container, stream


def _measure(file: Any, start: int, name: str) -> tuple[float, bool]:
    """Duration in seconds, and whether a file that silently ends before must have been cut."""
    with _opened(file, start, name) as (container, stream):
        check("frames", stream.frames, name)
        stated, certain = _stated(container, stream)
        if stated > LONG:
            return stated, certain
        # What is stated can be short of the last frames (variable rate), that of the sound, or missing (recorded by a
        # browser): packets know better, and going through those of a short clip costs next to nothing.
        packets = _last_packet(container, stream, name) + _step(stream)
        return (max(stated, packets) if stream.duration or certain else packets), certain


def _stated(container: Any, stream: Any) -> tuple[float, bool]:
    """The duration that the file states, 0 where it states none; and whether to insist on it."""
    import av

    if stream.duration:
        return float(stream.duration * stream.time_base), False  # containers with an index: a cut raises on its own
    matroska = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if matroska:
        hours, minutes, seconds = (float(part) for part in matroska.groups())
        return hours * 3600 + minutes * 60 + seconds, True
    return (container.duration or 0) / av.time_base, False


def _last_packet(container: Any, stream: Any, name: str) -> float:
    """Seconds at which the last picture appears, without decoding any."""
    import av

    last, count, step = 0.0, 0, _step(stream)
    try:
        for packet in container.demux(stream):
            if packet.size:
                stamp = packet.pts if packet.pts is not None else packet.dts
                last = max(last, count * step if stamp is None else _seconds(stamp, stream))
                count += 1
                check("frames", count, name)
    except av.error.FFmpegError:
        pass  # as far as it goes; decoding tells whether that is enough
    return last


def _step(stream: Any) -> float:
    """Seconds from frame to frame, as the file says on average."""
    return float(1 / stream.average_rate) if stream.average_rate else 1 / ARRAY_RATE


def _seconds(stamp: int, stream: Any) -> float:
    return float((stamp - (stream.start_time or 0)) * stream.time_base)


def _take(
    file: Any, start: int, name: str, count: int, duration: float, target: int | None
) -> tuple[Clip, float, bool]:
    """One pass: the clip, the second at which the file ended (infinite where that was not met), whether by an error."""
    pictures: list[np.ndarray] = []
    times: list[float] = []
    size = (0, 0)
    with _opened(file, start, name) as (container, stream):
        player = _Player(container, stream, SEEK_GAP if duration > LONG else float("inf"))
        for moment in _middles(duration, count):
            frame = player.at(moment)
            if frame is not None and (not times or player.shown_at > times[-1]):
                picture, size = _convert(frame, target)
                pictures.append(picture)
                times.append(player.shown_at)
    if not pictures:
        raise InputError(name, "no frame of the video can be decoded", "convert it to MP4 or download it again")
    clip = Clip(np.stack(pictures), np.array(times), duration, size)
    return clip, player.reached if player.ended else float("inf"), player.broken


class _Player:
    """Goes forward through a video stream and holds the frame on the screen and the one after it."""

    def __init__(self, container: Any, stream: Any, gap: float) -> None:
        self.container, self.stream, self.gap = container, stream, gap
        self.step = _step(stream)
        self.reached = 0.0  # end of the last frame that was decoded
        self.broken = False
        self._start()

    def _start(self) -> None:
        self.decoder = self.container.decode(self.stream)
        self.ended = False
        self.shown: Any = None
        self.following: Any = None
        self.shown_at = self.following_at = 0.0

    def at(self, moment: float) -> Any:
        """The frame that stands at `moment`, not before an earlier one; None where nothing can be decoded."""
        if moment - max(self.shown_at, self.following_at) > self.gap:
            self._seek(moment)
        moment += ROUNDING
        while not self.ended and (self.following is None or self.following_at <= moment):
            self._advance()
        return self.shown if self.shown is not None else self.following

    def _seek(self, moment: float) -> None:
        import av

        stamp = math.floor((moment + ROUNDING) / self.stream.time_base) + (self.stream.start_time or 0)
        try:
            self.container.seek(stamp, stream=self.stream)
        except av.error.FFmpegError:
            self.gap = float("inf")  # this file cannot be searched: decode on
        else:
            self._start()

    def _advance(self) -> None:
        import av

        if self.following is not None:
            self.shown, self.shown_at, self.following = self.following, self.following_at, None
        try:
            frame = next(self.decoder, None)
        except av.error.FFmpegError:
            frame, self.broken = None, True
        if frame is None:
            self.ended = True
            return
        self.following_at = self.reached if frame.pts is None else _seconds(frame.pts, self.stream)
        self.reached = self.following_at + (float(frame.duration * self.stream.time_base) or self.step)
        self.following = frame
        if self.shown is None:
            self.shown, self.shown_at = frame, self.following_at


def _convert(frame: Any, target: int | None) -> tuple[np.ndarray, tuple[int, int]]:
    """An upright, perhaps smaller RGB array, and the (height, width) of the upright original."""
    share = 1.0 if target is None else min(1.0, target / max(frame.height, frame.width))
    height, width = max(1, round(frame.height * share)), max(1, round(frame.width * share))
    picture = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    turns = round(frame.rotation / 90) % 4  # counter-clockwise, as np.rot90 turns
    size = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
    return np.rot90(picture, turns), size


def _from_images(images: Any, frames: int, target: int | None, name: str) -> Clip:
    """A clip from frames that are in memory already, or from image files one by one."""
    count = len(images)
    if count == 0 or (not isinstance(images, list | tuple) and images.ndim != 4):
        fix = "give an array (frames, height, width, 3), a tensor (frames, 3, height, width) or a list of images"
        raise InputError(name, "this is not a clip", fix)
    wanted = np.unique(_middles(count, frames).astype(int))
    pictures, sizes = [], set()
    for i in wanted:
        picture, size = read_image_sized(images[i], target=target)
        share = 1.0 if target is None else min(1.0, target / max(picture.size))
        shape = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
        pictures.append(np.asarray(picture.resize(shape, Image.Resampling.BOX) if share < 1 else picture))
        sizes.add(size)
    if len(sizes) > 1:
        raise InputError(name, f"the frames have {len(sizes)} different sizes", "give frames of one size")
    return Clip(np.stack(pictures), wanted / ARRAY_RATE, count / ARRAY_RATE, sizes.pop())

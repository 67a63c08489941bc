"""Audio: a recording -> spectrogram -> tokens in time and frequency.

Three forms: "yamnet" (default) begins with a network that knows sounds, 6 tokens every 160 ms: 4 bands of frequency of
what it hears early, 2 of what it makes of them at last; "ast" cuts
the spectrogram into overlapping patches (Gong et al. 2021); "legacy" is the layout of Meta-Transformer (Zhang et al.
2023): 224 bands x 224 frames -> 400 tokens.

Shape legend: b batch, t frames, m bands, n tokens (time x frequency, row-major), d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.core.types import Sample, Tokens
from polysense.data.audio import audio_name, read_audio
from polysense.tokenizers.audio_features import FLOOR, RATE, SECONDS, count_frames, kaldi_mel, yamnet_mel
from polysense.tokenizers.base import TOKENIZERS, Batch, Tokenizer, group_by_size, meta_of, pad_stack
from polysense.tokenizers.positions import CoordinateEmbedding, sin_cos
from polysense.tokenizers.stems import YamnetStem


@dataclass(frozen=True)
class AudioConfig:
    """Configuration of `AudioTokenizer`."""

    width: int = 192  # token width
    form: str = "yamnet"  # "yamnet", "ast" or "legacy"
    window: float = 10.0  # seconds; longer recordings are cut into windows ("legacy": at most its 2.24 s)


@dataclass(frozen=True)
class Layout:
    """Spectrogram and patches of a form."""

    bands: int
    patch: int  # frames and bands of a token's patch
    stride: int  # frames and bands between patches
    silence: float  # value of padded frames
    frames: int = 0  # fixed number of frames; 0 = any


LAYOUTS = {
    "yamnet": Layout(64, 16, 16, log(FLOOR)),
    "ast": Layout(128, 16, 10, 0.0),
    "legacy": Layout(224, 32, 10, 0.0, 224),
}


class ColumnProjection(nn.Module):
    """One linear map of what the stem hears early, another of what it makes of it at last."""

    in_features = YamnetStem.channels

    def __init__(self, width: int) -> None:
        super().__init__()
        self.early = nn.Linear(YamnetStem.channels, width)
        self.late = nn.Linear(YamnetStem.channels, width)

    def forward(self, x: Float[Tensor, "b t 6 c"]) -> Float[Tensor, "b t 6 d"]:
        early, late = x.split([YamnetStem.bands, YamnetStem.late_bands], 2)
        return torch.cat([self.early(early), self.late(late)], 2)


@TOKENIZERS.register("audio")
class AudioTokenizer(Tokenizer):
    """Recordings of any length, rate and channel count; see `AudioConfig`."""

    Config: ClassVar[type] = AudioConfig

    def __init__(self, config: AudioConfig = AudioConfig()) -> None:
        super().__init__(config)
        if config.form not in LAYOUTS:
            raise ValueError(f"unknown audio form {config.form!r}; choose one of: {', '.join(LAYOUTS)}")
        self.layout = layout = LAYOUTS[config.form]
        frames = round(config.window / SECONDS)
        self.window = min(frames, layout.frames or frames)
        if self.window < layout.patch:
            raise ValueError(f"the window must last at least {layout.patch * SECONDS} s, not {config.window}")
        self.stem: nn.Module
        self.project: nn.Module
        if config.form == "yamnet":
            self.stem = YamnetStem()
            self.project = ColumnProjection(config.width)
            self.position: CoordinateEmbedding | None = CoordinateEmbedding(2, config.width)
            # Starting at nothing, positions cannot drown what the stem already knows.
            nn.init.zeros_(self.position.project.weight)
        else:
            self.stem = nn.Conv2d(1, config.width, layout.patch, layout.stride)
            self.project, self.position = nn.Identity(), None

    def read(self, source: Any) -> Sample:
        """The whole recording as a spectrogram "mel" (t, m); see `read_audio` for sources and errors."""
        recording = read_audio(source, RATE)
        wave = torch.from_numpy(recording.wave)
        mel = yamnet_mel(wave) if self.config.form == "yamnet" else kaldi_mel(wave, self.layout.bands)
        meta = {"duration": recording.duration, "window": (0.0, recording.duration)}
        return Sample({"mel": mel}, audio_name(source), meta)

    def split(self, sample: Sample) -> list[Sample]:
        """Windows of `window` seconds; a last one that would be shorter than half ends with the recording instead."""
        mel, size = sample.data["mel"], self.window
        if len(mel) <= size:
            return [sample]
        starts = list(range(0, len(mel), size))
        if len(mel) - starts[-1] < size / 2:
            starts[-1] = len(mel) - size
        windows = []
        for start in starts:
            part = mel[start : start + size]
            last = start + len(part) == len(mel)
            end = sample.meta["duration"] if last else (start + size) * SECONDS
            # Cloned, so that a worker sends a window and not the hour that it was cut from.
            meta = {**sample.meta, "window": (start * SECONDS, end)}
            windows.append(Sample({"mel": part.clone()}, sample.source, meta))
        return windows

    def stretch(self, sample: Sample, begin: float, end: float) -> Sample:
        """What `read` would give of the recording from `begin` to `end` (seconds) alone, to a step of 10 ms."""
        first = min(round(begin / SECONDS), len(sample.data["mel"]) - 1)
        part = sample.data["mel"][first : first + count_frames(round((end - begin) * RATE))]
        meta = {**sample.meta, "duration": end - begin, "window": (0.0, end - begin)}
        return Sample({"mel": part.clone()}, sample.source, meta)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Makes "mel" (b, t, m), padded with silence, and "frames" (b,), the real frames of each."""
        mels = [sample.data["mel"][: self.layout.frames or None] for sample in samples]
        frames = torch.tensor([len(mel) for mel in mels])
        padded = [F.pad(mel, (0, 0, 0, self._padded(len(mel)) - len(mel)), value=self.layout.silence) for mel in mels]
        return {"mel": pad_stack(padded, self.layout.silence)[0], "frames": frames, "meta": meta_of(samples)}

    def _padded(self, frames: int) -> int:
        """Frames after padding to whole patches."""
        layout = self.layout
        more = max(0, -((layout.patch - frames) // layout.stride))  # patches after the first one
        return layout.frames or layout.patch + more * layout.stride

    def _rows(self, frames: int) -> int:
        """Patches along time in padded frames."""
        return (frames - self.layout.patch) // self.layout.stride + 1

    def forward(self, batch: Batch) -> Tokens:
        """Tokens on a (time, frequency) grid; `pos` is (seconds from the window's start, 0..1 from low to high).

        Tokens that begin after a recording's last real frame are masked.
        """
        mel, frames = batch["mel"], batch["frames"]
        layout = self.layout
        rows, bands = self._rows(mel.shape[1]), self.bands().to(mel.device)
        columns = len(bands)
        x = mel.new_zeros(len(mel), rows, columns, self.width, dtype=next(self.parameters()).dtype)
        sizes = torch.tensor([[self._padded(count)] for count in frames.tolist()])
        for (size,), chosen in group_by_size(sizes):
            chosen = chosen.to(mel.device)
            part = self.stem(mel[chosen, None, :size].to(x.dtype)).permute(0, 2, 3, 1)  # channels last
            x[chosen, : self._rows(size)] = self.project(part).to(x.dtype)
        begins = torch.arange(rows, device=mel.device).repeat_interleave(columns) * layout.stride
        mask = begins < frames.to(mel.device)[:, None]
        cells = torch.cartesian_prod(torch.arange(float(rows), device=mel.device), bands)
        scale = cells.new_tensor([layout.stride * SECONDS, layout.stride / layout.bands])
        pos = (cells + 0.5 * layout.patch / layout.stride) * scale  # centres of the patches
        x = x.flatten(1, 2) + self._code(cells, pos).to(x.dtype)
        return Tokens(x, None if bool(mask.all()) else mask, pos.expand(len(x), -1, -1), (rows, columns))

    def bands(self) -> Float[Tensor, " f"]:
        """Where a time step's tokens begin in frequency, in strides; late ones, which cover two, at the middle."""
        layout = self.layout
        bands = torch.arange((layout.bands - layout.patch) // layout.stride + 1.0)
        return bands if self.position is None else torch.cat([bands, bands.unfold(0, 2, 2).mean(1)])

    def _code(self, cells: Float[Tensor, "n 2"], pos: Float[Tensor, "n 2"]) -> Float[Tensor, "n d"]:
        """Position codes: learned from (10 s, share of the bands), or the fixed ones of the patch's number."""
        if self.position is None:
            return sin_cos(cells, self.width)
        return self.position((pos / pos.new_tensor([10.0, 1.0]))[None])[0]

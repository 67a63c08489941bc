"""Spectrograms: wave -> (frames, bands), computed in loader workers, an hour at a time without gigabytes.

Every frame depends on its own samples only (no padding at the edges, no dithering), so that computing in blocks gives
the same numbers as computing the whole, and cutting frames the same as cutting the wave.

Shape legend: n samples, t frames, m bands. 16 kHz; a frame is 25 ms (400 samples), a step 10 ms (160 samples).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

RATE = 16_000
FRAME, STEP, FFT = 400, 160, 512  # samples
SECONDS = STEP / RATE  # between frames
FLOOR = 0.001  # YAMNet's offset under the logarithm
BLOCK = 6_000  # frames computed at a time: one minute
AUDIOSET_MEAN, AUDIOSET_DEVIATION = -4.2677393, 4.5689974  # of kaldi's log-mel on AudioSet (Gong et al. 2021, AST)


def count_frames(samples: int) -> int:
    """Whole frames in a wave; a wave shorter than a frame is padded to one."""
    return 1 + max(samples - FRAME, 0) // STEP


def yamnet_mel(wave: Float[Tensor, " n"]) -> Float[Tensor, "t 64"]:
    """YAMNet's log-mel: magnitude spectrogram (periodic Hann), 64 HTK bands 125-7500 Hz, log(mel + 0.001)."""
    window = torch.hann_window(FRAME, periodic=True)
    weights = mel_weights(64, 125.0, 7500.0)

    def features(part: Tensor) -> Tensor:
        frames = part.unfold(0, FRAME, STEP) * window
        return (torch.fft.rfft(frames, FFT).abs() @ weights + FLOOR).log()

    return _in_blocks(wave, features)


def kaldi_mel(wave: Float[Tensor, " n"], bands: int) -> Float[Tensor, "t m"]:
    """Kaldi's log-mel filter bank, standardised with AudioSet's statistics (twice the deviation, as AST does)."""
    import torchaudio

    mean = wave.mean()

    def features(part: Tensor) -> Tensor:
        mel = torchaudio.compliance.kaldi.fbank(
            part[None] - mean, htk_compat=True, sample_frequency=float(RATE), use_energy=False, window_type="hanning",
            num_mel_bins=bands, dither=0.0, frame_length=1000 * FRAME / RATE, frame_shift=1000 * STEP / RATE,
        )  # fmt: skip
        return (mel - AUDIOSET_MEAN) / (2 * AUDIOSET_DEVIATION)

    return _in_blocks(wave, features)


@lru_cache(maxsize=4)
def mel_weights(bands: int, low: float, high: float) -> Float[Tensor, "257 m"]:
    """TensorFlow's `linear_to_mel_weight_matrix`: triangles that are straight on the mel scale.

    torchaudio's `melscale_fbanks` draws them straight on the Hz scale instead, which changes weights by up to 0.004.
    """

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * (1.0 + hertz / 700.0).log()

    bins = mel(torch.linspace(0, RATE / 2, FFT // 2 + 1, dtype=torch.float64))[:, None]
    ends = mel(torch.tensor([low, high], dtype=torch.float64))
    edges = torch.linspace(float(ends[0]), float(ends[1]), bands + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    weights = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp_min(0)
    weights[0] = 0  # TensorFlow leaves the constant out
    return weights.float()


def _in_blocks(wave: Tensor, features: Callable[[Tensor], Tensor]) -> Tensor:
    """Computes `features` for blocks of frames that overlap by what a frame reaches over."""
    wave = torch.nn.functional.pad(wave, (0, max(0, FRAME - len(wave))))
    total = count_frames(len(wave))
    parts = []
    for first in range(0, total, BLOCK):
        last = min(first + BLOCK, total)
        parts.append(features(wave[first * STEP : (last - 1) * STEP + FRAME]))
    return torch.cat(parts)

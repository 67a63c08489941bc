"""Further augmentations that leave the target as it is, by name and amount: "erase", "specaugment=0.3" …

`fit(..., augment_with=…)` adds them to the usual ones of `augment`. All randomness comes from `rng`.

Shape legend: h, w pixels; n points; t time steps; c channels, coordinates or variates; f frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as T

FRAME = 0.032  # seconds that one spectrum of a sound spans
GREY = [124.0, 116.0, 104.0]  # mean of photographs: what encoders take for nothing


@dataclass(frozen=True, slots=True)
class Variation:
    """One way to vary inputs."""

    modality: str
    change: Callable[[Any, float, np.random.Generator], Any]  # value, amount, rng -> value
    amount: float  # where none is said
    most: float
    says: str
    keeps_places: bool = True  # pixels and points stay where their targets are


def erase(image: Image.Image, amount: float, rng: np.random.Generator) -> Image.Image:
    """Half of the time, greys a rectangle of up to `amount` of the area (Zhong et al. 2020, "Random Erasing")."""
    if rng.random() < 0.5:
        return image
    area, aspect = rng.uniform(0.02, max(amount, 0.02)), np.exp(rng.uniform(-1, 1))
    h = min(max(round(image.height * np.sqrt(area / aspect)), 1), image.height)
    w = min(max(round(image.width * np.sqrt(area * aspect)), 1), image.width)
    top, left = int(rng.integers(image.height - h + 1)), int(rng.integers(image.width - w + 1))
    fill = torch.tensor(GREY).to(torch.uint8).view(3, 1, 1)
    return T.to_pil_image(T.erase(T.to_image(image.convert("RGB")), top, left, h, w, fill.expand(3, h, w)))


def blur(image: Image.Image, amount: float, rng: np.random.Generator) -> Image.Image:
    """Blurs half of the time, by a Gaussian of up to `amount` pixels."""
    sigma = rng.uniform(0.1, max(amount, 0.1))
    if rng.random() < 0.5:
        return image
    return T.to_pil_image(T.gaussian_blur(T.to_image(image.convert("RGB")), 2 * round(2 * sigma) + 1, sigma))


def grey(image: Image.Image, amount: float, rng: np.random.Generator) -> Image.Image:
    """Takes the colours away, with probability `amount`."""
    return image.convert("L").convert("RGB") if rng.random() < amount else image


def specaugment(value: Any, amount: float, rng: np.random.Generator) -> Any:
    """Silences two bands of frequencies and two stretches of time, each up to `amount` of the whole (Park et al. 2019,
    "SpecAugment"); in the spectrum of the wave, since tokenizers take waves."""

    def change(wave: np.ndarray, rate: float) -> np.ndarray:
        size = max(1 << round(np.log2(max(FRAME * rate, 16))), 16)
        if wave.shape[-1] < size:
            return wave
        window = torch.hann_window(size, dtype=torch.float64)
        spectrum = torch.stft(torch.from_numpy(wave), size, window=window, return_complex=True)  # (c, f, t)
        for axis in (1, 1, 2, 2):
            length = spectrum.shape[axis]
            width = int(rng.integers(int(amount * length) + 1))
            spectrum.narrow(axis, int(rng.integers(length - width + 1)), width).zero_()
        return torch.istft(spectrum, size, window=window, length=wave.shape[-1]).numpy()

    return _on_wave(value, change)


def noise(value: Any, amount: float, rng: np.random.Generator) -> Any:
    """Adds white noise of up to `amount` of the sound's own loudness."""
    share = rng.uniform(0, amount)
    return _on_wave(value, lambda wave, rate: wave + rng.normal(0, share * wave.std(), wave.shape))


def _on_wave(value: Any, change: Callable[[np.ndarray, float], np.ndarray]) -> Any:
    """Changes a waveform (time,), (channels, time) or (time, channels), with or without its rate; its type stays."""
    wave, *rate = value if isinstance(value, tuple) else (value,)
    array = wave.numpy() if isinstance(wave, torch.Tensor) else np.asarray(wave)
    turned = array.ndim == 2 and array.shape[0] > array.shape[1]
    plain = np.atleast_2d(array.T if turned else array).astype(np.float64)
    moved = change(np.ascontiguousarray(plain), float(rate[0]) if rate else 16_000.0)
    moved = moved.reshape(array.T.shape).T if turned else moved.reshape(array.shape)
    if array.dtype.kind != "f":  # integers would overflow
        bounds = np.iinfo(array.dtype)
        moved = moved.round().clip(bounds.min, bounds.max)
    kept = moved.astype(array.dtype)
    out = torch.from_numpy(kept) if isinstance(wave, torch.Tensor) else kept
    return (out, *rate) if rate else out


def tilt(points: Any, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Leans a cloud (n, 3 or more) by up to `amount` degrees, in any direction."""
    out = np.array(points)
    out = out if out.dtype.kind == "f" else out.astype(np.float64)
    direction, angle = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(0, amount))
    x, y, s, c = np.cos(direction), np.sin(direction), np.sin(angle), np.cos(angle)
    turn = np.array([[c + x * x * (1 - c), x * y * (1 - c), y * s],
                     [x * y * (1 - c), c + y * y * (1 - c), -x * s], [-y * s, x * s, c]])  # fmt: skip
    center = out[:, :3].mean(0)
    out[:, :3] = (out[:, :3] - center) @ turn.T + center
    return out


def drop(points: Any, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Takes away up to `amount` of the points: they move onto others, so that their number stays."""
    out = np.array(points)
    gone = rng.random(len(out)) < rng.uniform(0, amount)
    if gone.all() or not gone.any():
        return out
    out[gone, :3] = out[rng.choice(np.flatnonzero(~gone), gone.sum()), :3]
    return out


def warp(series: Any, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Runs a series (t, c) faster here and slower there, by up to about `amount` (Um et al. 2017, "Data augmentation of
    wearable sensor data")."""
    values = np.asarray(series)
    knots = np.exp(rng.uniform(-amount, amount, 6))
    pace = np.interp(np.linspace(0, 5, len(values)), np.arange(6), knots)
    places = np.concatenate([[0.0], np.cumsum(pace)[:-1]])
    places *= (len(values) - 1) / max(places[-1], 1e-9)
    columns = values.reshape(len(values), -1)
    moved = np.stack([np.interp(places, np.arange(len(values)), column) for column in columns.T], 1)
    return moved.reshape(values.shape).astype(values.dtype if values.dtype.kind == "f" else np.float32)


def mask(series: Any, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Puts each variate's mean in the place of one stretch of up to `amount` of the series."""
    out = np.array(series)
    out = out if out.dtype.kind == "f" else out.astype(np.float32)
    width = int(rng.integers(int(amount * len(out)) + 1))
    begin = int(rng.integers(len(out) - width + 1))
    out[begin : begin + width] = np.nan_to_num(np.nanmean(out, 0)) if np.isfinite(out).any() else 0.0
    return out


VARIATIONS = {
    "erase": Variation("image", erase, 0.2, 1.0, "a grey rectangle, up to this share of the area"),
    "blur": Variation("image", blur, 2.0, 20.0, "blurred by up to so many pixels"),
    "grey": Variation("image", grey, 0.2, 1.0, "without colours, with this probability"),
    "specaugment": Variation("audio", specaugment, 0.15, 0.9, "bands and stretches silenced, up to this share each"),
    "noise": Variation("audio", noise, 0.2, 10.0, "white noise, up to this share of the loudness"),
    "tilt": Variation("point_cloud", tilt, 15.0, 180.0, "leant by up to so many degrees"),
    "drop": Variation("point_cloud", drop, 0.5, 0.95, "up to this share of the points gone", keeps_places=False),
    "warp": Variation("time_series", warp, 0.3, 2.0, "faster and slower by about this"),
    "mask": Variation("time_series", mask, 0.2, 0.9, "a stretch of up to this share hidden"),
}


def split_amount(text: str) -> tuple[str, float | None]:
    """ "tilt=30" -> ("tilt", 30.0); "tilt" -> ("tilt", None). Raises ValueError where it is no number."""
    name, equals, amount = text.partition("=")
    return name.strip(), float(amount) if equals else None


def vary(modality: str, value: Any, extras: Sequence[str], rng: np.random.Generator) -> Any:
    """Applies those of the extras that are variations of this modality, in their order."""
    for text in extras:
        name, amount = split_amount(text)
        if name in VARIATIONS and VARIATIONS[name].modality == modality:
            one = VARIATIONS[name]
            value = one.change(value, one.amount if amount is None else amount, rng)
    return value

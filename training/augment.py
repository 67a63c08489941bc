"""Augmentation of decoded inputs together with their targets.

`augment(modality, value, target, rng)` takes what the tokenizers take in memory and gives back the same kind. All
randomness comes from `rng`: one seed, one result.

Shape legend: h, w pixels; n points; t time steps; c channels, coordinates or variates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as T

from polysense.core.registry import Registry
from polysense.data.dataset import BoxTarget
from polysense.data.masks import MaskFile, read_mask
from polysense.data.segments import SegmentSource, SegmentTarget, read_segments

Augmentation = Callable[[Any, Any, np.random.Generator], tuple[Any, Any]]
AUGMENTATIONS: Registry[Augmentation] = Registry("modality to augment")
KEPT_AREA = 0.3  # share of a box that must survive a crop, else the box is gone


def augment(
    modality: str, value: Any, target: Any, rng: np.random.Generator, extras: Sequence[str] = ()
) -> tuple[Any, Any]:
    """Changes one input and its target at random; modalities without augmentation come back as they are.

    Args:
        modality: "image", "point_cloud", "audio" or "time_series".
        value: PIL image; points (n, 3 or more); (waveform, rate) or waveform; series (t, c).
        target: As `Item.target`: a class name, `BoxTarget`, mask …
        rng: The only source of randomness.
        extras: Names of what is done besides: in `training.scenes.EXTRAS` to images before, in
            `training.variations.VARIATIONS` after.
    """
    if modality == "image" and {"rotate", "shrink"} & set(extras):
        from polysense.training.scenes import turn

        value, target = turn(value, target, rng, extras)
    if modality in AUGMENTATIONS:
        value, target = AUGMENTATIONS[modality](value, target, rng)
    if extras:
        from polysense.training.variations import vary

        value = vary(modality, value, extras, rng)
    return value, target


@AUGMENTATIONS.register("image")
def augment_image(value: Image.Image, target: Any, rng: np.random.Generator) -> tuple[Image.Image, Any]:
    """Mirrors, crops 40 to 100% of the area at nearly the same aspect, and shifts brightness, contrast and colour."""
    image = T.to_image(value.convert("RGB"))
    target = read_segments(target) if isinstance(target, SegmentSource) else target
    mask = mask_of(target, value)
    boxes = np.array(target.xyxy, np.float32).reshape(-1, 4) if isinstance(target, BoxTarget) else None
    if rng.random() < 0.5:
        image = T.horizontal_flip(image)
        mask = None if mask is None else mask[:, ::-1]
        boxes = None if boxes is None else np.stack(
            [value.width - boxes[:, 2], boxes[:, 1], value.width - boxes[:, 0], boxes[:, 3]], 1)  # fmt: skip
    top, left, height, width = _crop(value.height, value.width, rng)
    image = T.crop(image, top, left, height, width)
    brightness, contrast, saturation = rng.uniform(0.7, 1.3, 3)
    image = T.adjust_saturation(T.adjust_contrast(T.adjust_brightness(image, brightness), contrast), saturation)
    if mask is not None:
        cut = np.ascontiguousarray(mask[top : top + height, left : left + width])
        target = SegmentTarget(cut, target.labels) if isinstance(target, SegmentTarget) else cut
    elif boxes is not None:
        target = cropped_boxes(boxes, target.labels, (left, top, width, height))
    return T.to_pil_image(image), target


def mask_of(target: Any, value: Image.Image) -> np.ndarray | None:
    """The target as an array where it is a mask or holds segments: class names and numbers do not."""
    if isinstance(target, SegmentTarget):
        return target.index
    if (
        not hasattr(target, "__array_interface__")
        and not isinstance(target, MaskFile)
        and not hasattr(target, "suffix")
    ):
        return None
    mask = read_mask(target)
    if mask.shape != (value.height, value.width):
        raise ValueError(f"the mask is {mask.shape} but the image {(value.height, value.width)}")
    return mask


def _crop(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width of a part of 40 to 100% of the area, its aspect within 4/5 to 5/4 of the whole's."""
    area, aspect = rng.uniform(0.4, 1.0), np.exp(rng.uniform(-0.22, 0.22))
    h = min(max(round(height * np.sqrt(area / aspect)), 1), height)
    w = min(max(round(width * np.sqrt(area * aspect)), 1), width)
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def cropped_boxes(boxes: np.ndarray, labels: Any, window: tuple[float, float, float, float]) -> BoxTarget:
    """Boxes in a crop (left, top, width, height); those of which little is left are gone."""
    left, top, width, height = window
    moved = boxes - np.array([left, top, left, top], np.float32)
    inside = moved.clip(0, np.array([width, height, width, height], np.float32))
    sides, before = inside[:, 2:] - inside[:, :2], boxes[:, 2:] - boxes[:, :2]
    kept = (sides.min(1, initial=np.inf) > 0) & (sides.prod(1) >= KEPT_AREA * before.prod(1))
    return BoxTarget(inside[kept].tolist(), [name for name, keep in zip(labels, kept, strict=True) if keep])


@AUGMENTATIONS.register("point_cloud")
def augment_points(value: Any, target: Any, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
    """Turns about the upright axis z, half of the time, and mirrors; sides grow or shrink by about 8% each, the whole
    by up to a quarter; jitters by about 0.5% of the size. Columns beyond xyz stay, and so do the points' order and
    number, for targets that name points.

    Half of the clouds keep their direction: models have a front, and whoever learns from scans has the other half.
    """
    points = np.array(value)
    if points.dtype.kind != "f":  # whole numbers could not be turned
        points = points.astype(np.float64)
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else 0.0
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    sides = np.exp(rng.normal(0, 0.08, 3) + rng.uniform(-0.22, 0.22)) * np.where(rng.random() < 0.5, [-1, 1, 1], 1)
    xyz = points[:, :3].astype(np.float64)
    center = xyz.mean(0)
    spread = np.abs(xyz - center).max(initial=0.0)
    jitter = rng.normal(0, 0.005 * spread, xyz.shape).clip(-0.02 * spread, 0.02 * spread)
    points[:, :3] = (xyz - center) * sides @ turn.T + jitter + center
    return points, target


@AUGMENTATIONS.register("audio")
def augment_audio(value: Any, target: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Louder or softer by up to 6 dB, and shifted in time by up to a tenth, the end coming round to the beginning."""
    waveform, *rate = value if isinstance(value, tuple) else (value,)
    array = waveform.numpy() if isinstance(waveform, torch.Tensor) else np.asarray(waveform)
    axis = int(np.argmax(array.shape))  # (time,), (channels, time) or (time, channels)
    reach = array.shape[axis] // 10
    moved = np.roll(array, int(rng.integers(-reach, reach + 1)), axis)
    gain = 10 ** (rng.uniform(-6, 6) / 20)
    if moved.dtype.kind == "f":
        gained = (moved * gain).astype(moved.dtype)
    else:  # integers would overflow
        bounds = np.iinfo(moved.dtype)
        gained = (moved * gain).clip(bounds.min, bounds.max).astype(moved.dtype)
    out = torch.from_numpy(gained) if isinstance(waveform, torch.Tensor) else gained
    return ((out, *rate) if rate else out), target


@AUGMENTATIONS.register("time_series")
def augment_series(value: Any, target: Any, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
    """Scales each variate by about 10% and adds noise of 3% of its deviation, for targets that do not live in the
    series' own units (classes); a forecast's future is left alone with its past."""
    series = np.asarray(value)
    if isinstance(target, np.ndarray):
        return series, target
    columns = series.reshape(len(series), -1).astype(np.float64)
    deviation = np.nan_to_num(np.nanstd(columns, 0))
    moved = columns * rng.normal(1, 0.1, columns.shape[1]) + rng.normal(0, 1, columns.shape) * 0.03 * deviation
    return moved.reshape(series.shape).astype(np.float32), target

"""Further augmentations of pictures, by name: what `fit(..., augment_with=…)` adds to the usual ones.

A picture and what is known of it change together: boxes (`BoxTarget`), a mask (h, w), or a label, which stays. Boxes of
which little is left are gone (`KEPT_AREA`). All randomness comes from `rng`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as T

from polysense.core.errors import InputError
from polysense.data.dataset import BoxTarget
from polysense.data.masks import IGNORE
from polysense.tasks import Task
from polysense.training.augment import cropped_boxes, mask_of
from polysense.training.variations import GREY, VARIATIONS, split_amount

EXTRAS = {
    "rotate": "turned by up to 10 degrees; boxes become those around the turned ones, which are larger",
    "shrink": "down to half the size, inside a grey frame",
    "mosaic": "half of the time four pictures in one (Bochkovskiy et al. 2020, YOLOv4)",
}
TURN = 10.0  # degrees, at most: farther, boxes around turned boxes say little of where the object ends
SMALLEST = 0.5  # size that is left
MOSAIC = 0.5  # share of mosaics


def check_extras(task: Task, names: Sequence[str], augment: bool | None = None) -> None:
    """Makes sure that these augmentations suit a task, and that augmentation was not turned off.

    Raises:
        InputError: It is not so, or there is no such augmentation.
    """
    for name in names:
        problem, fix = "", "leave it out"
        if name not in EXTRAS:
            problem, fix = check_variation(task, name)
        elif task.modality != "image":
            problem = f"it is for images, not for {task.name}"
        elif name == "mosaic" and task.kind not in ("detection", "segmentation"):
            problem = f"four pictures in one have no single answer, which {task.name} wants"
        if not problem and augment is False:
            problem = "augmentation is turned off"
        if problem:
            raise InputError(f"augment_with {name}", problem, fix)


def check_variation(task: Task, text: str) -> tuple[str, str]:
    """What is wrong with one of `VARIATIONS` for a task ("" where nothing is), and what to do."""
    try:
        name, amount = split_amount(text)
    except ValueError:
        return "its amount is no number", "give one, such as tilt=30"
    if name not in VARIATIONS:
        fitting = [*EXTRAS] if task.modality == "image" else []
        fitting += [key for key, one in VARIATIONS.items() if one.modality == task.modality]
        return "there is no such augmentation", f"choose from {', '.join(fitting)}" if fitting else "leave it out"
    one = VARIATIONS[name]
    if one.modality != task.modality or task.kind == "forecasting":
        return f"it is for {one.modality.replace('_', ' ')}s with labels, not for {task.name}", "leave it out"
    if not one.keeps_places and task.kind == "segmentation":
        return "what it takes away is labelled", "leave it out"
    if amount is not None and not 0 <= amount <= one.most:
        return "its amount is out of range", f"give 0 to {one.most:g}"
    return "", ""


def turn(value: Image.Image, target: Any, rng: np.random.Generator, extras: Sequence[str]) -> tuple[Image.Image, Any]:
    """Rotates and shrinks a picture within its own frame, where "rotate" and "shrink" are among the extras."""
    angle = rng.uniform(-TURN, TURN) if "rotate" in extras else 0.0
    scale = rng.uniform(SMALLEST, 1.0) if "shrink" in extras else 1.0
    how: dict[str, Any] = {"angle": angle, "translate": [0, 0], "scale": scale, "shear": [0.0, 0.0]}
    mask = mask_of(target, value)
    image = T.affine(T.to_image(value.convert("RGB")), **how, interpolation=InterpolationMode.BILINEAR, fill=GREY)
    if mask is not None:
        plane = tv_tensors.Mask(torch.from_numpy(mask.astype(np.int32))[None])
        target = T.affine(plane, **how, fill=[float(IGNORE)])[0].numpy().astype(mask.dtype)
    elif isinstance(target, BoxTarget):
        corners = torch.tensor(np.array(target.xyxy, np.float32).reshape(-1, 4))
        # Not clamped: what lies beyond the frame counts as lost.
        boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=image.shape[-2:], clamping_mode=None)
        moved = T.affine(boxes, **how).numpy()
        target = cropped_boxes(moved, target.labels, (0, 0, value.width, value.height))
    return T.to_pil_image(image), target


def mosaic(parts: Sequence[tuple[Image.Image, Any]], rng: np.random.Generator) -> tuple[Image.Image, Any]:
    """Four pictures in a frame of the first one's size, which meet at a random point.

    Args:
        parts: Pictures with boxes, or with masks (h, w).
        rng: Chooses the point, and which part of a picture is seen.
    """
    width, height = (max(side, 2) for side in parts[0][0].size)
    x, y = (min(max(round(side * rng.uniform(0.35, 0.65)), 1), side - 1) for side in (width, height))
    places = [(0, 0, x, y), (x, 0, width - x, y), (0, y, x, height - y), (x, y, width - x, height - y)]
    frame, pieces = Image.new("RGB", (width, height)), []
    for (image, target), (left, top, w, h) in zip(parts, places, strict=True):
        window = _window(image, w / h, rng)
        box = (window[0], window[1], window[0] + window[2], window[1] + window[3])
        frame.paste(image.convert("RGB").resize((w, h), Image.Resampling.BILINEAR, box=box), (left, top))
        pieces.append(_piece(target, window, (left, top, w, h)))
    if all(isinstance(piece, BoxTarget) for piece in pieces):
        boxes = [box for piece in pieces for box in piece.xyxy]
        return frame, BoxTarget(boxes, [name for piece in pieces for name in piece.labels])
    return frame, np.block([pieces[:2], pieces[2:]])


def _window(image: Image.Image, aspect: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Left, top, width, height of the largest part of an image with this aspect, at a random place."""
    w, h = min(image.width, image.height * aspect), min(image.height, image.width / aspect)
    return rng.uniform(0, image.width - w), rng.uniform(0, image.height - h), w, h


def _piece(target: Any, window: tuple[float, float, float, float], place: tuple[int, int, int, int]) -> Any:
    """What is known of a part of a picture, once that is drawn at a place (left, top, width, height)."""
    (left, top, w, h), (x, y, width, height) = window, place
    if isinstance(target, BoxTarget):
        inside = cropped_boxes(np.array(target.xyxy, np.float32).reshape(-1, 4), target.labels, window)
        scale, shift = np.array([width / w, height / h] * 2), np.array([x, y] * 2)
        return BoxTarget((np.array(inside.xyxy).reshape(-1, 4) * scale + shift).tolist(), inside.labels)
    rows = (top + (np.arange(height) + 0.5) * h / height).astype(int).clip(0, target.shape[0] - 1)
    columns = (left + (np.arange(width) + 0.5) * w / width).astype(int).clip(0, target.shape[1] - 1)
    return target[rows[:, None], columns]

"""What the image and the video tokenizer share: resizing, the lite0 front part, and features on a padded grid.

Shape legend: b batch, h height, w width (pixels), c channels, d width of a token; S one or more axes in pixels (or
frames), G the same axes in cells, k their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.tokenizers.base import Tokenizer, group_by_size
from polysense.tokenizers.positions import CoordinateEmbedding
from polysense.tokenizers.stems import Lite0Stem

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LITE0_MEAN, LITE0_STD = (127 / 255,) * 3, (128 / 255,) * 3  # (x - 127) / 128, as its published weights expect
RESIZES = ("area", "squash", "crop")
OVERLAP = 0.25  # of neighbouring windows, as a share of a window's side
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
CROP_MARGIN = 256 / 224  # short side of an image over the side of its centre crop, as usual on ImageNet
READ_MARGIN = 1.5  # the longer side of an image read for a square input, so that the shorter one suffices too


def fit_size(height: float, width: float, size: float, step: int, policy: str) -> tuple[int, int]:
    """The (height, width) that an image is resized to; both are multiples of `step`.

    "area" keeps the aspect, up to rounding to whole cells, at about size² pixels. Very long images are squeezed, so
    that none has more than twice the cells of a square one. "squash" and "crop" give a square. "tiles" keeps the size,
    up to rounding.
    """
    if policy == "tiles":
        return max(1, round(height / step)) * step, max(1, round(width / step)) * step
    side = size / step  # cells along a square image
    if policy != "area":
        return (max(1, round(side)) * step,) * 2
    stretch = math.sqrt(width / height)
    most = max(1, int(2 * side * side))  # reached only by a single row or column
    return min(max(1, round(side / stretch)), most) * step, min(max(1, round(side * stretch)), most) * step


def seen_window(height: int, width: int, policy: str) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the part that the tokenizer sees, in pixels."""
    if policy != "crop":
        return 0.0, 0.0, float(width), float(height)
    side = min(height, width) / CROP_MARGIN
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def resize(image: Image.Image, size: tuple[int, int], policy: str, interpolation: str) -> UInt8[Tensor, "3 h w"]:
    """Antialiased resize of the seen part to `size` (height, width)."""
    box = seen_window(image.height, image.width, policy)
    if image.size != size[::-1] or policy == "crop":
        image = image.resize(size[::-1], FILTERS[interpolation], box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def window_starts(length: int, window: int, overlap: float = OVERLAP) -> list[int]:
    """Where windows begin that cover `length` cells and overlap by at least a share of themselves, evenly spread."""
    if length <= window:
        return [0]
    count = 1 + math.ceil((length - window) / max(1, round(window * (1 - overlap))))
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError for a configuration value that is not one of its choices."""
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(choices)}, not {value!r}")


def features_on_grid(
    run: Callable[[Tensor], Tensor], inputs: Tensor, sizes: Int[Tensor, "b k"], steps: Sequence[int]
) -> tuple[Float[Tensor, "b *G c"], Bool[Tensor, b * G] | None]:
    """Runs a convolution once for each distinct size and lays the results on one padded grid.

    Args:
        run: (n, 3, *S) -> (n, c, *G), each axis divided by its step.
        inputs: (b, 3, *S), padded at the end of each axis.
        sizes: The true extents along the k axes of S.
        steps: Total stride along each of these axes.

    Returns:
        Features, zero where nothing is, and True where something is; None where the grid is full.
    """
    (features,), mask = maps_on_grid(lambda part: [run(part)], inputs, sizes, steps)
    return features.movedim(1, -1), mask


def maps_on_grid(
    run: Callable[[Tensor], Sequence[Tensor]], inputs: Tensor, sizes: Int[Tensor, "b k"], steps: Sequence[int]
) -> tuple[list[Float[Tensor, "b c *G"]], Bool[Tensor, b * G] | None]:
    """As `features_on_grid`, of several maps at once; channels stay in front.

    Args:
        run: (n, 3, *S) -> (n, c, *G), (n, c2, *2G), (n, c3, *4G) …
    """
    extent = inputs.shape[2:]
    if bool((sizes == sizes.new_tensor(extent)).all()):
        return list(run(inputs)), None
    grid = [s // step for s, step in zip(extent, steps, strict=True)]
    parts, order = [], []
    for size, index in group_by_size(sizes):
        corner: tuple[Any, ...] = (..., *(slice(0, s) for s in size))
        parts.append([_filled(one, [s << i for s in grid]) for i, one in enumerate(run(inputs[index][corner]))])
        order.append(index)
    back = torch.cat(order).argsort()
    maps = [torch.cat(one)[back] for one in zip(*parts, strict=True)]
    mask = torch.ones(len(sizes), *grid, dtype=torch.bool, device=sizes.device)
    for axis, (full, step) in enumerate(zip(grid, steps, strict=True)):
        inside = torch.arange(full, device=sizes.device) < (sizes[:, axis] // step)[:, None]  # (b, full)
        mask &= inside.view(len(sizes), *(full if a == axis else 1 for a in range(len(grid))))
    return maps, mask


def _filled(part: Float[Tensor, "n c *S"], extent: Sequence[int]) -> Float[Tensor, "n c *G"]:
    """Zeros at the end of each axis."""
    missing = [full - size for full, size in zip(extent, part.shape[2:], strict=True)]
    return F.pad(part, [value for more in reversed(missing) for value in (0, more)])


def cell_centres(cells: Int[Tensor, "b 2"], rows: int, columns: int) -> Float[Tensor, "b n 2"]:
    """(y, x) of the cells of a padded grid, row by row, as fractions of each image's longer side.

    Args:
        cells: Each image's own rows and columns.
    """
    y, x = torch.meshgrid(
        torch.arange(rows, device=cells.device), torch.arange(columns, device=cells.device), indexing="ij"
    )
    centres = torch.stack([y, x], -1).view(1, -1, 2) + 0.5
    return centres / cells.amax(1).view(-1, 1, 1)


class GridTokenizer(Tokenizer):
    """Base of tokenizers that turn pictures into cells of a grid.

    With the form "lite0" (images) or "frames" (clips) its parts are called `stem`, `project` and `position` in both, so
    that weights can move from one to the other.
    """

    mean: Tensor
    std: Tensor

    def _set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.register_buffer("mean", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std), persistent=False)

    def _set_lite0(self, stride: int) -> None:
        """Adds `stem` and `project`; at the start tokens are the stem's features, turned at most."""
        self.stem = Lite0Stem(stride)
        self.project = nn.Linear(self.stem.channels, self.width)
        if self.stem.channels == self.width:
            nn.init.eye_(self.project.weight)
        else:
            nn.init.orthogonal_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def normalized(self, pixels: UInt8[Tensor, "n 3 *S"]) -> Float[Tensor, "n 3 *S"]:
        """Bytes to the range that the weights expect, in their number format."""
        shape = (1, 3, *(1,) * (pixels.ndim - 2))
        scaled = (pixels.float() - self.mean.float().view(shape)) / self.std.float().view(shape)
        return scaled.to(self.mean.dtype)

    def stem_features(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n c r q"]:
        return self.stem(self.normalized(pixels))


def quiet_positions(coordinates: int, width: int) -> CoordinateEmbedding:
    """A position embedding that starts at zero: what the front part knows is not disturbed before training."""
    position = CoordinateEmbedding(coordinates, width)
    nn.init.zeros_(position.project.weight)
    return position

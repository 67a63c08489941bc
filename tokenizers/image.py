"""Images -> tokens, one for each cell of a grid.

Three forms: "lite0" (a small convolutional stem, the default), "patch" (one linear map per patch, as Meta-Transformer
has it, Zhang et al. 2023) and "vit" (patches and a learned position grid, so that a published ViT's own front part can
be used: Dosovitskiy et al. 2021).

Shape legend: b batch, n tokens, h height, w width (pixels), r rows, q columns (cells), c channels, d width of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.core.types import Sample, Tokens
from polysense.data.image import describe_source, read_image_sized
from polysense.tokenizers.base import TOKENIZERS, Batch, meta_of, pad_stack
from polysense.tokenizers.image_grid import (
    CROP_MARGIN,
    FILTERS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LITE0_MEAN,
    LITE0_STD,
    READ_MARGIN,
    RESIZES,
    GridTokenizer,
    cell_centres,
    check_choice,
    fit_size,
    maps_on_grid,
    quiet_positions,
    resize,
    seen_window,
    window_starts,
)
from polysense.tokenizers.positions import sin_cos

FORMS = ("lite0", "patch", "vit")
POSITIONS = ("none", "fourier", "sincos", "learned")
OWN_POSITIONS = {"lite0": "fourier", "patch": "none", "vit": "learned"}
FINEST = 4  # pixels along the side of a cell of the finest map


@dataclass(frozen=True)
class ImageConfig:
    """How an image becomes tokens. Values left None are filled in with what the form usually has."""

    width: int = 192  # of a token
    form: str = "lite0"  # "lite0", "patch" or "vit"
    size: int = 128  # pixels: side of a square input, or the root of the area
    # "area" keeps the aspect, "squash" makes a square, "crop" takes the centre square; "tiles" keeps the size and cuts
    # images into overlapping windows of `size` pixels, for pixel heads.
    resize: str = "area"
    stride: int = 32  # of the lite0 stem: 32 (320 channels) or 16 (112 channels)
    patch: int = 16  # side of a patch, forms "patch" and "vit"
    positions: str | None = None  # "none", "fourier" (learned, from coordinates), "sincos"; "vit" has "learned" only
    interpolation: str | None = None  # "bilinear" (lite0) or "bicubic"
    mean: tuple[float, ...] | None = None  # of R, G, B in 0..1
    std: tuple[float, ...] | None = None
    grid: tuple[int, ...] | None = None  # rows and columns of the learned positions; None = size / patch, square
    bias: bool = True  # of the patch map (CLIP has none)
    fine: bool = False  # give maps finer than the grid as well, which pixel heads read beside the encoder's answer
    # An image is read in several views, and their answers are averaged: at these shares of its usual size in pixels,
    # and with `mirror` each of them mirrored as well. In training one of them is drawn.
    views: tuple[float, ...] = (1.0,)
    mirror: bool = False

    def __post_init__(self) -> None:
        check_choice("form", self.form, FORMS)
        check_choice("resize", self.resize, (*RESIZES, "tiles"))
        lite0 = self.form == "lite0"
        self._fill("positions", OWN_POSITIONS[self.form])
        self._fill("interpolation", "bilinear" if lite0 else "bicubic")
        self._fill("mean", LITE0_MEAN if lite0 else IMAGENET_MEAN)
        self._fill("std", LITE0_STD if lite0 else IMAGENET_STD)
        if self.form == "vit":
            self._fill("grid", (max(1, self.size // self.patch),) * 2)
        for name in ("mean", "std", "grid", "views"):  # JSON gives lists
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        check_choice("positions", str(self.positions), POSITIONS)
        check_choice("interpolation", str(self.interpolation), tuple(FILTERS))
        if (self.positions == "learned") != (self.form == "vit"):
            raise ValueError(f"the form {self.form!r} cannot have {self.positions!r} positions")
        if min(self.size, self.patch) < 1:
            raise ValueError(f"size and patch must be positive, not {self.size} and {self.patch}")
        if not self.views or not all(0 < scale < math.inf for scale in self.views):
            raise ValueError(f"views must be one or more positive shares of the size, not {self.views}")

    def _fill(self, name: str, value: Any) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    @property
    def step(self) -> int:
        """Pixels along the side of a cell."""
        return self.stride if self.form == "lite0" else self.patch

    @property
    def fine_steps(self) -> tuple[int, ...]:
        """Pixels along the side of a cell of each finer map."""
        halves = [self.step >> i for i in range(1, 4) if self.step % (1 << i) == 0 and self.step >> i >= FINEST]
        return tuple(halves) if self.fine else ()


@TOKENIZERS.register("image")
class ImageTokenizer(GridTokenizer):
    """Reads any image; its tokens' `pos` is (y, x) of each cell's centre as fractions of the longer side."""

    Config = ImageConfig
    config: ImageConfig

    def __init__(self, config: ImageConfig) -> None:
        super().__init__(config)
        assert config.mean is not None and config.std is not None
        self._set_normalization(config.mean, config.std)
        if config.form == "lite0":
            self._set_lite0(config.stride)
        else:
            self.proj = nn.Conv2d(3, config.width, config.patch, config.patch, bias=config.bias)
        if config.form == "vit":
            self.pos_embed = nn.Parameter(torch.empty(1, math.prod(config.grid or ()), config.width))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if config.positions == "fourier":
            self.position = quiet_positions(2, config.width)

    def read(self, source: Any) -> Sample:
        """Decodes one image (whatever `data.image.read_image` takes) and resizes it.

        `meta["window"]` is the part of the original that the tokens cover: (left, top, right, bottom) in its pixels.
        """
        config = self.config
        margin = READ_MARGIN * (CROP_MARGIN if config.resize == "crop" else 1)
        target = None if config.resize == "tiles" else math.ceil(margin * config.size * max(config.views))
        image, size = read_image_sized(source, target=target)
        data = {}
        for name, scale in zip(self._view_names, config.views, strict=True):
            sides = fit_size(size[0] * scale, size[1] * scale, config.size * scale, config.step, config.resize)
            data[name] = resize(image, sides, config.resize, str(config.interpolation))
        height, width = data["image"].shape[1:]
        meta = {
            "size": size,
            "input_size": (height, width),
            "grid": (height // config.step, width // config.step),
            "window": seen_window(*size, config.resize),
        }
        return Sample(data, describe_source(source), meta)

    @property
    def _view_names(self) -> list[str]:
        """Where a sample keeps its views."""
        return ["image", *(f"view{i}" for i in range(1, len(self.config.views)))]

    def split(self, sample: Sample) -> list[Sample]:
        """The views of an image, if there are several: they know their number, "view", and whether they "mirror"."""
        if len(self.config.views) == 1 and not self.config.mirror:
            return self._windows(sample, sample.data["image"], {})
        parts: list[Sample] = []
        seen = [(sample.data[name], mirror) for name in self._view_names for mirror in (False, True)]
        for number, (pixels, mirror) in enumerate(seen if self.config.mirror else seen[::2]):
            about = {"view": number, "mirror": mirror}
            parts += self._windows(sample, pixels.flip(-1) if mirror else pixels, about)
        return parts

    def _windows(self, sample: Sample, pixels: UInt8[Tensor, "3 h w"], about: dict[str, Any]) -> list[Sample]:
        """Windows of a large image, where `resize` is "tiles": they know their "place" in the "whole" grid."""
        step, side = self.config.step, max(1, self.config.size // self.config.step)
        rows, columns = (length // step for length in pixels.shape[1:])
        if self.config.resize != "tiles" or max(rows, columns) <= side:
            if not about:
                return [sample]
            meta = {"grid": (rows, columns), "input_size": tuple(pixels.shape[1:]), **about}
            return [Sample({"image": pixels}, sample.source, {**sample.meta, **meta})]
        height, width = sample.meta["size"]
        across, down = width / columns, height / rows  # pixels of the original in a cell
        windows = []
        for row in window_starts(rows, side):
            for column in window_starts(columns, side):
                part = pixels[:, row * step : (row + side) * step, column * step : (column + side) * step].clone()
                grid = (part.shape[1] // step, part.shape[2] // step)
                left, right = column * across, (column + grid[1]) * across
                if about.get("mirror"):
                    left, right = width - right, width - left
                meta = {"grid": grid, "input_size": tuple(part.shape[1:]), "place": (row, column),
                        "window": (left, row * down, right, (row + grid[0]) * down), "whole": (rows, columns),
                        **about}  # fmt: skip
                windows.append(Sample({"image": part}, sample.source, {**sample.meta, **meta}))
        return windows

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stacks images (b, 3, h, w), padded at the right and at the bottom, with their true "size" (b, 2)."""
        images, sizes = pad_stack([sample.data["image"] for sample in samples])
        return {"image": images, "size": sizes[:, 1:], "meta": meta_of(samples)}

    @property
    def fine_channels(self) -> tuple[int, ...]:
        """Channels of each map of `Tokens.fine`."""
        if self.config.form == "lite0" and self.config.fine:
            return self.stem.fine_channels
        return tuple(3 * step**2 for step in self.config.fine_steps)

    def forward(self, batch: Batch) -> Tokens:
        """Tokens; with `fine`, also the stem's finer maps, or, of patches, the pixels of smaller ones."""
        images, sizes, step = batch["image"], batch["size"], self.config.step
        maps, mask = maps_on_grid(self._maps, images, sizes, (step, step))
        x = maps[0].movedim(1, -1)  # (b, r, q, c)
        _, rows, columns, _ = x.shape
        if self.config.form == "lite0":
            x = self.project(x)
        x = x.flatten(1, 2)
        pos = cell_centres(sizes // step, rows, columns)
        if self.config.positions == "fourier":
            x = x + self.position(pos)
        elif self.config.positions == "sincos":
            y_x = torch.cartesian_prod(*(torch.arange(n, device=x.device) for n in (rows, columns)))
            x = x + sin_cos(y_x, self.width).to(x.dtype)
        return Tokens(x, None if mask is None else mask.flatten(1), pos, (rows, columns), tuple(maps[1:]))

    def _maps(self, pixels: UInt8[Tensor, "k 3 h w"]) -> list[Float[Tensor, "k c r q"]]:
        """Images of one size to features of their cells, and of finer ones where they are wanted."""
        values = self.normalized(pixels)
        if self.config.form == "lite0":
            return self.stem.maps(values) if self.config.fine else [self.stem(values)]
        x = self.proj(values)
        if self.config.form == "vit":
            x = x + self._learned_positions(x.shape[-2], x.shape[-1])
        return [x, *(F.pixel_unshuffle(values, step) for step in self.config.fine_steps)]

    def _learned_positions(self, rows: int, columns: int) -> Float[Tensor, "1 d r q"]:
        grid = list(self.config.grid or ())
        pos_embed = self.pos_embed
        if grid != [rows, columns]:
            from timm.layers.pos_embed import resample_abs_pos_embed  # imports all of timm

            pos_embed = resample_abs_pos_embed(pos_embed, [rows, columns], grid, num_prefix_tokens=0)
        return pos_embed.transpose(1, 2).unflatten(2, (rows, columns))


def from_timm(model: nn.Module, **over: Any) -> ImageTokenizer:
    """The front part of a timm ViT as a tokenizer: its patch map, its position grid, its normalisation and input size.

    Class and register tokens, with their positions, stay with the encoder, and so does whatever follows the sum of
    patches and positions (`norm_pre`). Images are squashed to a square by default, so that the position grid fits and
    the whole image is seen.

    Args:
        model: A timm `VisionTransformer` or one of its layout.
        over: Fields of `ImageConfig` that should differ, such as `size` or `resize`.

    Raises:
        ValueError: The model has no such front part (hybrid stems, relative or rotary positions).
    """
    embed: Any = getattr(model, "patch_embed", None)
    proj = getattr(embed, "proj", None)
    pos_embed: Any = getattr(model, "pos_embed", None)
    kind = type(model).__name__
    if not isinstance(proj, nn.Conv2d) or proj.in_channels != 3 or not proj.kernel_size == proj.stride:
        raise ValueError(f"{kind} does not begin with a plain patch map of RGB images")
    if not isinstance(pos_embed, Tensor) or pos_embed.ndim != 3 or getattr(model, "rope", None) is not None:
        raise ValueError(f"{kind} does not add learned absolute positions to its patches")
    if not isinstance(getattr(embed, "norm", nn.Identity()), nn.Identity) or proj.kernel_size[0] != proj.kernel_size[1]:
        raise ValueError(f"{kind} normalises its patches, or they are not square")
    rows, columns = embed.grid_size
    # The class token may or may not have a position of its own (`no_embed_class`); patches always stand last.
    prefix = pos_embed.shape[1] - rows * columns
    if not 0 <= prefix <= getattr(model, "num_prefix_tokens", 0):
        raise ValueError(f"{kind} has {pos_embed.shape[1]} positions for {rows} × {columns} patches")
    published: Any = getattr(model, "pretrained_cfg", None) or {}
    interpolation = published.get("interpolation")
    config = {
        "form": "vit",
        "width": proj.out_channels,
        "patch": proj.kernel_size[0],
        "size": round(math.sqrt(rows * columns)) * proj.kernel_size[0],
        "resize": "squash",
        "mean": published.get("mean"),
        "std": published.get("std"),
        "interpolation": interpolation if interpolation in FILTERS else None,
        "grid": (rows, columns),
        "bias": proj.bias is not None,
    }
    tokenizer = ImageTokenizer(ImageConfig(**{**config, **over}))
    with torch.no_grad():
        tokenizer.proj.load_state_dict(proj.state_dict())
        tokenizer.pos_embed.copy_(pos_embed[:, prefix:])
    return tokenizer

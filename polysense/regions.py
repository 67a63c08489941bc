"""Regions of images as vectors of frozen features, and what a few examples of a class make of them.

The encoder's tokens and the front part's finer maps are laid on one grid. Its cells are whitened by the statistics of
the images that examples come from, so that what is common there says little (Hariharan et al. 2012), boxes are read by
RoIAlign (He et al. 2017), and the mean of a class's examples is its prototype (Snell et al. 2017).

Shape legend: h rows and w columns of the grid, c channels, d whitened channels, n boxes, f numbers of a region, k
classes. Boxes are xyxy in cells of the grid, unless they are said to be in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou, nms, roi_align

from polysense.core.types import Tokens
from polysense.pipeline import Pipeline

SIZE = 512  # pixels: root of the area that images are resized to; small things must still have cells
FINER = 2  # the grid has at most 2**FINER cells along a token
CHANNELS, SHRINK = 64, 5.0  # kept by the whitening, and what is added to their variances, in units of the mean one
TOKENS = 0.3  # of the encoder's tokens beside the finer maps: they know what a thing is, but not where it ends
BINS = 7  # along the side of a region: its layout counts, not only what it holds
AROUND = 0.3  # of a box's sides that a region holds beyond each of them: where things end is seen from outside
ALIKE = 0.2  # the usual cosine of two examples of one class
MOST_CELLS = 20_000  # of the example images that the whitening looks at
SCALES = (0.7, 1.0, 1.4)  # of the examples' own sizes, in which more of them is looked for
STEP = 0.33  # between neighbouring windows, as a share of their side
# What the best windows try in turn: moves, as shares of their sides, and scales.
SETTLE = ((0.16, 1.2), (0.16, 1.1), (0.08, 1.1), (0.08, 1.05), (0.04, 1.05))
NEIGHBOURS = ((0, 0, 0), (-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))  # x, y, scale
CHUNK = 2048  # windows that are read together
SAME = 0.75  # overlap from which two sizes of window count as one
APART = 0.3  # overlap with an example below which a window of its image is background

Size = tuple[float, float]  # (width, height) in cells


class Grid(NamedTuple):
    """What an image looks like, cell by cell."""

    values: Float[Tensor, "c h w"]
    size: tuple[int, int]  # (height, width) of the image in pixels

    def _cells(self) -> Float[Tensor, " 4"]:
        (height, width), (h, w) = self.size, self.values.shape[1:]
        return self.values.new_tensor([w / width, h / height] * 2)

    def to_cells(self, pixels: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
        return pixels.to(self.values) * self._cells()

    def to_pixels(self, boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
        return boxes / self._cells()


class RegionFeatures:
    """Reads images as grids, by the frozen encoder and the tokenizer that came with it.

    Args:
        encoder: A spec of `load_encoder`.
        device: Where to compute.
    """

    def __init__(self, encoder: str = "embedded", device: str = "cpu") -> None:
        options = {"size": SIZE, "fine": True} if encoder == "embedded" else {}
        self.pipeline = Pipeline.build("image-embedding", encoder=encoder, tokenizer=options).to(device).eval()

    @torch.no_grad()
    def __call__(self, image: Any) -> Grid:
        """Whatever `data.image.read_image` takes -> its grid."""
        tokenizer = self.pipeline.tokenizer
        sample = tokenizer.read(image)
        return Grid(join_maps(self.pipeline.features(tokenizer.collate([sample])).last)[0], sample.meta["size"])


def join_maps(tokens: Tokens) -> Float[Tensor, "b c h w"]:
    """Tokens and finer maps, each scaled to one mean length, side by side on one grid."""
    assert tokens.grid is not None and tokens.mask is None, "images are read one by one"
    maps = [tokens.x.transpose(1, 2).unflatten(2, tokens.grid), *tokens.fine]
    target = min(FINER, len(maps) - 1)
    size = [extent << target for extent in tokens.grid]
    joined = []
    for level, one in enumerate(maps):
        one = one / one.norm(dim=1, keepdim=True).mean((1, 2, 3), keepdim=True).clamp_min(1e-6)
        one = one if level or len(maps) == 1 else TOKENS * one
        if level > target:
            one = F.avg_pool2d(one, 1 << (level - target))
        elif level < target:
            one = F.interpolate(one, size=size, mode="bilinear", align_corners=False)
        joined.append(one)
    return torch.cat(joined, 1)


class Whitening(NamedTuple):
    """A linear map of cells after which the principal directions of what it was made of weigh about the same."""

    mean: Float[Tensor, " c"]
    weight: Float[Tensor, "c d"]

    @classmethod
    def of(cls, cells: Float[Tensor, "n c"]) -> Whitening:
        cells = cells[:: math.ceil(len(cells) / MOST_CELLS)]
        mean = cells.mean(0)
        variance, directions = torch.linalg.eigh((cells - mean).T @ (cells - mean) / len(cells))
        variance, directions = variance.flip(0)[:CHANNELS].clamp_min(0), directions.flip(1)[:, :CHANNELS]
        return cls(mean, directions / (variance + SHRINK * variance.mean() + 1e-12).sqrt())

    def __call__(self, values: Float[Tensor, "c h w"]) -> Float[Tensor, "d h w"]:
        return torch.einsum("chw,cd->dhw", values - self.mean[:, None, None], self.weight)


class Prototypes(NamedTuple):
    """What a few examples of each class look like."""

    whitening: Whitening
    centre: Float[Tensor, " f"]  # the mean region of the example images
    vectors: Float[Tensor, "k f"]  # unit length
    expected: Float[Tensor, " k"]  # the cosine that one more example of the class would have
    sizes: tuple[tuple[Size, ...], ...]  # of each class's examples

    @classmethod
    def of(cls, grids: Sequence[Grid], shown: Sequence[Sequence[tuple[int, Float[Tensor, " 4"]]]]) -> Prototypes:
        """Learns them.

        Args:
            grids: The images.
            shown: For each class its examples: the number of the image, and the box.
        """
        whitening = Whitening.of(torch.cat([grid.values.flatten(1).T for grid in grids]))
        maps = [whitening(grid.values) for grid in grids]
        sizes = [distinct([(float(b[2] - b[0]), float(b[3] - b[1])) for _, b in boxes], SAME) for boxes in shown]
        every = distinct([size for group in sizes for size in group], 0.5)
        around = []
        for i, one in enumerate(maps):
            own = torch.stack([box for boxes in shown for image, box in boxes if image == i])
            places = windows(every, (one.shape[1], one.shape[2]), scales=(1.0,), step=0.5).to(one)
            around.append(regions(one, places[box_iou(places, own).amax(1) < APART]))
        rest = torch.cat(around)
        seen = [torch.cat([regions(maps[image], box[None]) for image, box in boxes]) for boxes in shown]
        # Not the background's own prototypes: among the windows are objects like the examples that nobody marked.
        centre = rest.mean(0) if len(rest) else seen[0].new_zeros(seen[0].shape[1])
        unit = [F.normalize(one - centre, dim=1) for one in seen]
        vectors = torch.stack([F.normalize(one.mean(0), dim=0) for one in unit])
        return cls(whitening, centre, vectors, torch.stack([expected(one) for one in unit]), tuple(map(tuple, sizes)))

    def likeness(self, whitened: Float[Tensor, "d h w"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n k"]:
        """Cosines between regions and prototypes, as shares of what one more example would have."""
        return F.normalize(regions(whitened, boxes) - self.centre, dim=1) @ self.vectors.T / self.expected

    def search(self, whitened: Float[Tensor, "d h w"], number: int, most: int, nms_iou: float) -> Float[Tensor, "n 4"]:
        """The windows most like one class's prototype, at every place in several scales of its examples' sizes.

        Args:
            number: Of the class.
            most: Windows at most.
            nms_iou: Overlap from which the less alike of two is dropped.
        """
        places = windows(self.sizes[number], (whitened.shape[1], whitened.shape[2])).to(whitened)
        found = torch.cat([self.likeness(whitened, part)[:, number] for part in places.split(CHUNK)])
        best = found.topk(min(10 * most, len(found))).indices
        coarse = places[best][nms(places[best], found[best], nms_iou)[:most]]
        boxes, likeness = self._settle(whitened, coarse, number)
        return boxes[nms(boxes, likeness, nms_iou)]

    def _settle(
        self, whitened: Float[Tensor, "d h w"], boxes: Float[Tensor, "n 4"], number: int
    ) -> tuple[Float[Tensor, "n 4"], Float[Tensor, " n"]]:
        """Moves and scales each window by ever smaller steps to where it is most like the prototype."""
        likeness = boxes.new_empty(len(boxes))
        for step, scale in SETTLE:
            tried = torch.stack([moved(boxes, x * step, y * step, scale**z) for x, y, z in NEIGHBOURS], 1)
            parts = [self.likeness(whitened, part)[:, number] for part in tried.flatten(0, 1).split(CHUNK)]
            likeness, best = torch.cat(parts).unflatten(0, (len(boxes), -1)).max(1)
            boxes = tried.gather(1, best[:, None, None].expand(-1, 1, 4))[:, 0]
        return boxes, likeness


def regions(values: Float[Tensor, "d h w"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n f"]:
    """RoIAlign of boxes and a little around them, flattened."""
    more = AROUND * (boxes[:, 2:] - boxes[:, :2])
    wider = torch.cat([boxes[:, :2] - more, boxes[:, 2:] + more], 1).to(values)
    return roi_align(values[None], [wider], BINS, sampling_ratio=2, aligned=True).flatten(1)


def expected(unit: Float[Tensor, "n f"]) -> Float[Tensor, ""]:
    """The cosine with the mean of n examples that one more would have, where any two have the cosine r:
    r √n / √(1 + (n − 1) r). Two pairs of the usual r are added to those that there are."""
    n = len(unit)
    pairs = (unit.sum(0).square().sum() - n).clamp_min(0) / 2
    r = (pairs + 2 * ALIKE) / (n * (n - 1) / 2 + 2)
    return r * n**0.5 / (1 + (n - 1) * r).sqrt()


def moved(boxes: Float[Tensor, "n 4"], x: float, y: float, scale: float) -> Float[Tensor, "n 4"]:
    """Boxes moved by shares of their sides, and scaled."""
    sides = boxes[:, 2:] - boxes[:, :2]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 + sides * sides.new_tensor([x, y])
    return torch.cat([middle - sides * scale / 2, middle + sides * scale / 2], 1)


def windows(
    sizes: Sequence[Size], extent: tuple[int, int], scales: Sequence[float] = SCALES, step: float = STEP
) -> Float[Tensor, "n 4"]:
    """Windows of these sizes and scales that cover a grid of (rows, columns), evenly spread.

    Args:
        step: Largest distance of neighbours, as a share of their side.
    """
    rows, columns = extent
    found = []
    for width, height in distinct([(w * s, h * s) for w, h in sizes for s in scales], 0.95):
        width, height = min(width, columns), min(height, rows)
        xs = torch.linspace(0, columns - width, math.ceil((columns - width) / (width * step)) + 1)
        ys = torch.linspace(0, rows - height, math.ceil((rows - height) / (height * step)) + 1)
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        corner = torch.stack([x.flatten(), y.flatten()], 1)
        found.append(torch.cat([corner, corner + corner.new_tensor([width, height])], 1))
    return torch.cat(found)


def distinct(sizes: Sequence[Size], same: float) -> list[Size]:
    """Sizes of which no two, laid on each other, overlap by `same` or more; smaller ones come first."""
    kept: list[Size] = []
    for w, h in sorted(sizes, key=lambda size: size[0] * size[1]):
        shared = [min(w, a) * min(h, b) / (w * h + a * b - min(w, a) * min(h, b)) for a, b in kept]
        if max(shared, default=0.0) < same:
            kept.append((w, h))
    return kept

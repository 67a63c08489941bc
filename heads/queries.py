"""Segments by queries: one head that answers semantically, by instances or panoptically, as a task token says.

The head of OneFormer (Jain et al. 2023): queries find masks, the task token says whether classes, objects or both are
wanted, and training draws the task anew for each image, from the same panoptic truth.

Shape legend: b batch, q queries, k classes, l layers with an answer, m segments, p cells, h rows and w columns of the
finest padded grid, H and W pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.core.errors import InputError
from polysense.core.predictions import Prediction
from polysense.core.types import Features
from polysense.data.segments import VOID, SegmentSource, SegmentTarget, read_segments
from polysense.heads.base import HEADS, Head, Out
from polysense.heads.grid import Pyramid, cell_pixels, sample_grid, sample_window
from polysense.heads.mask_decoder import MaskDecoder
from polysense.heads.mask_loss import CLASS_WEIGHT, DICE_WEIGHT, MASK_WEIGHT, mask_losses, match, overlap, truth_masks
from polysense.heads.query_answers import Found, as_mask, as_segments

ANSWERS = ("semantic", "instance", "panoptic")


@dataclass(frozen=True)
class QueryConfig:
    classes: tuple[str, ...]  # names by index
    things: tuple[str, ...] = ()  # those of objects that can be counted; the others are regions
    answer: str = "panoptic"  # what is asked for unless another answer is
    layers: tuple[int, ...] = ()  # hidden layers of the encoder read beside the last one
    fine: tuple[int, ...] = ()  # channels of the tokenizer's finer maps that the pyramid reads, coarse to fine
    levels: int = -1  # grids, each twice as fine; -1: one more than finer maps, else 3
    channels: int = 128  # of grids and queries
    depth: int = 2  # 3 x 3 convolutions at the resolution of the tokens
    queries: int = 60  # most segments of an image
    reads: int = 6  # layers of the decoder
    heads: int = 8  # of its attention
    decoder: str = "masked"  # how queries read cells: "masked" attention or "kmeans"
    nothing: float = 0.1  # weight of queries that find nothing, in the class loss
    open_world: bool = False  # find objects of no known class too, named `unknown`
    unknown: str = "object"
    threshold: float = 0.3  # least score of an answered segment
    kept: float = 0.7  # share of its own mask that a segment must keep beside more confident ones

    def __post_init__(self) -> None:
        for name in ("classes", "things", "layers", "fine"):  # lists, when read from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.levels < 0:
            object.__setattr__(self, "levels", len(self.fine) + 1 if self.fine else 3)
        if self.answer not in ANSWERS:
            raise ValueError(f"unknown answer {self.answer!r}; choose {', '.join(ANSWERS)}")


@HEADS.register("queries")
class QueryHead(Head):
    """A pyramid, a decoder of queries, and for each query a class and a mask.

    In an open world a query also says how well its mask fits, whatever it shows; classes are told from the query with
    its gradient stopped, so that calling unlabelled objects "nothing" does not teach queries to overlook them (Wu et
    al. 2023, SWORD, section 3.2).

    Attributes:
        answer: "semantic" (`Mask`), "instance" or "panoptic" (`Segments`).
        threshold: Least score of a segment; lower it (to 0.01) while average precision is measured.
    """

    Config = QueryConfig

    def __init__(self, config: QueryConfig, width: int) -> None:
        super().__init__(config, width)
        self.answer, self.threshold = config.answer, config.threshold
        self.pyramid = Pyramid(width, config.channels, config.levels, config.fine, config.layers, config.depth)
        self.decoder = MaskDecoder(config.channels, config.queries, config.reads, config.heads, config.decoder)
        self.task = nn.Embedding(len(ANSWERS), config.channels)
        self.classify = nn.Linear(config.channels, len(config.classes) + 1)
        self.fit = nn.Linear(config.channels, 1) if config.open_world else None
        things = [name in config.things for name in config.classes]
        self.register_buffer("things", torch.tensor(things), persistent=False)

    things: Tensor

    def forward(self, features: Features) -> Out:
        """Returns "classes" (b, l, q, k + 1), "masks" (b, l, q, h, w), both logits; in an open world "fit" (b, l, q);
        and "task" (b,), an index into `ANSWERS`.

        In training every layer answers and the task of each image is drawn at random; otherwise the last one alone.
        """
        levels = self.pyramid(features)
        b = len(features.last.x)
        device = features.last.x.device
        usual = torch.full((b,), ANSWERS.index(self.answer), device=device)
        task = torch.randint(len(ANSWERS), (b,), device=device) if self.training else usual
        answers = self.decoder(levels, self.task(task))
        answers = answers if self.training else answers[-1:]
        x = torch.stack([state for state, _ in answers], 1)
        out = {"masks": torch.stack([masks for _, masks in answers], 1).float(), "task": task}
        if self.fit is None:
            return {**out, "classes": self.classify(x).float()}
        return {**out, "classes": self.classify(x.detach()).float(), "fit": self.fit(x).squeeze(-1).float()}

    def targets(self, labels: Sequence[SegmentTarget | SegmentSource], meta: Sequence[Mapping[str, Any]]) -> Out:
        """ "index" (b, h, w) int64, the number of the segment at each cell or `NOTHING` or `VOID`, and "labels" (b, m)
        int64, the class of each number, -1 beyond.

        Raises:
            InputError: Segments cannot be read, have another size than their image, or a label is no class.
        """
        scale = 2 ** (self.config.levels - 1)
        grids = [sample_grid(m) for m in meta]
        height, width = (scale * max(g[axis] for g in grids) for axis in (0, 1))
        found = [self._checked(read_segments(label), m) for label, m in zip(labels, meta, strict=True)]
        index = torch.full((len(found), height, width), VOID, dtype=torch.int64)
        classes = torch.full((len(found), max((len(one.labels) for one in found), default=0)), -1)
        for i, (one, m, (rows, cols)) in enumerate(zip(found, meta, grids, strict=True)):
            left, top, right, bottom = sample_window(m)
            ys = cell_pixels(top, bottom, rows * scale, one.index.shape[0])
            xs = cell_pixels(left, right, cols * scale, one.index.shape[1])
            xs = xs[::-1] if m.get("mirror") else xs
            index[i, : rows * scale, : cols * scale] = torch.from_numpy(one.index[ys[:, None], xs].astype(np.int64))
            numbers = [self.config.classes.index(name) for name in one.labels]
            classes[i, : len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        return {"index": index, "labels": classes}

    def _checked(self, target: SegmentTarget, meta: Mapping[str, Any]) -> SegmentTarget:
        source, size = meta.get("source", "<memory>"), tuple(meta["size"])
        if target.index.shape != size:
            shape = target.index.shape
            problem = f"its segments are {shape[1]}x{shape[0]} but the image is {size[1]}x{size[0]} pixels"
            raise InputError(source, problem, "give segments of the image's size")
        if unknown := sorted(set(target.labels) - set(self.config.classes)):
            problem = f"a segment is labelled {unknown[0]!r}, which is no class"
            raise InputError(source, problem, f"choose from: {', '.join(self.config.classes)}")
        return target

    def loss(self, out: Out, target: Out) -> dict[str, Tensor]:
        """Of every layer: cross entropy of classes, and cross entropy and dice of matched masks."""
        index, labels = target["index"].to(out["masks"].device), target["labels"].to(out["masks"].device)
        h, w = out["masks"].shape[-2:]
        # The batch may be padded further than its largest sample, or the target may: both only add void cells.
        index = F.pad(index, (0, max(w - index.shape[2], 0), 0, max(h - index.shape[1], 0)), value=VOID)[:, :h, :w]
        sums = {name: out["masks"].new_zeros(()) for name in ("mask", "dice", "class", "fit")}
        segments = 0
        for i, layers in enumerate(_by_image(out)):
            task = ANSWERS[int(out["task"][i])]
            known = (index[i] != VOID).flatten()
            classes, truth = truth_masks(index[i].flatten()[known], labels[i], self._wanted(labels[i], task),
                                         task == "semantic")  # fmt: skip
            segments += len(classes)
            for logits, masks, fit in layers:
                found = self._layer_losses(logits, masks.flatten(1)[:, known], fit, classes, truth)
                sums = {name: sums[name] + found.get(name, 0.0) for name in sums}
        share = 1.0 / max(segments, 1)
        loss = share * (MASK_WEIGHT * sums["mask"] + DICE_WEIGHT * sums["dice"] + sums["fit"])
        loss = loss + CLASS_WEIGHT * sums["class"] / len(index)
        return {"loss": loss, **{name: value.detach() for name, value in sums.items()}}

    def _wanted(self, labels: Int[Tensor, " m"], task: str) -> Tensor:
        """Segments that an answer of this kind is made of."""
        wanted = labels >= 0
        return wanted & self.things[labels.clamp(min=0)] if task == "instance" and len(labels) else wanted

    def _layer_losses(
        self, logits: Tensor, masks: Tensor, fit: Tensor | None, classes: Int[Tensor, " n"], truth: Tensor
    ) -> dict[str, Tensor]:
        k = len(self.config.classes)
        # In an open world objects are matched by their pixels alone: their classes must not decide what is an object.
        query, segment = match(None if fit is not None else logits, masks, classes, truth)
        wanted = torch.full((len(logits),), k, device=logits.device)
        wanted[query] = classes[segment]
        weight = torch.ones(k + 1, device=logits.device)
        weight[k] = self.config.nothing
        entropy, dice = mask_losses(masks[query], truth[segment])
        losses = {"class": F.cross_entropy(logits, wanted, weight), "mask": entropy, "dice": dice}
        if fit is not None:  # only matched ones: of what else there is, nobody knows
            well = overlap(masks[query], truth[segment])
            losses["fit"] = F.binary_cross_entropy_with_logits(fit[query], well, reduction="sum")
        return losses

    def merge(self, out: Out, owner: Int[Tensor, " b"], meta: Sequence[Mapping[str, Any]]) -> Out:
        """One sequence for each image.

        Raises:
            InputError: An image was read in windows or views: a segment may lie in several of them.
        """
        if int(owner.max()) + 1 < len(owner):
            source = meta[0].get("source", "<memory>")
            fix = "leave out resize=tiles, views and mirror"
            raise InputError(source, "segments cannot be joined from several windows or views of an image", fix)
        return out

    @torch.no_grad()
    def decode(self, out: Out, meta: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """`Mask` for a semantic answer, `Segments` for others, of each image at its original size."""
        scale = 2 ** (self.config.levels - 1)
        answers: list[Prediction] = []
        for i, m in enumerate(meta):
            rows, cols = sample_grid(m)
            found = Found(
                out["classes"][i, -1].softmax(-1), out["masks"][i, -1, :, : rows * scale, : cols * scale],
                out["fit"][i, -1].sigmoid() if "fit" in out else None,
            )  # fmt: skip
            if self.answer == "semantic":
                answers.append(as_mask(found, self.config.classes, m))
            else:
                things = [bool(thing) for thing in self.things]
                answers.append(as_segments(
                    found, self.config.classes, things, m, self.answer == "panoptic", self.threshold, self.config.kept,
                    self.config.unknown,
                ))  # fmt: skip
        return answers


def _by_image(out: Out) -> Iterator[list[tuple[Tensor, Tensor, Tensor | None]]]:
    """Class logits, masks and fit of every layer, image by image.

    Unbound, not indexed: the gradient of each index would be a tensor of zeros as large as all masks.
    """
    parts = [[one.unbind() for one in out[name].unbind()] for name in ("classes", "masks", "fit") if name in out]
    for layers in zip(*parts, strict=True):
        fits = layers[2] if len(layers) > 2 else [None] * len(layers[0])
        yield list(zip(layers[0], layers[1], fits, strict=True))

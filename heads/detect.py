"""Object detection: boxes in the pixels of the original image, without anchors.

Each cell of the token grid, and of finer grids upsampled from it, predicts class scores that also say how well its box
fits (Li et al. 2020, generalised focal loss), and one box, in units of token cells: x / width * columns.

With `objectness` one more output says how well the box fits, whatever it holds. It learns on labelled objects alone
(Kim et al. 2022, OLN), so that what nobody labelled is never called background; the class scores, for which it is,
learn from features that they cannot change (Wu et al. 2023, SWORD). `propose` answers with boxes of any class.

Shape legend: b batch, d width, c channels, h rows and w columns of the padded token grid, p cells of all levels,
m boxes of one image, k classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, clip_boxes_to_image, generalized_box_iou_loss, nms

from polysense.core.errors import InputError
from polysense.core.predictions import Boxes, Prediction
from polysense.core.types import Features
from polysense.data.dataset import BoxTarget
from polysense.heads.assign import overlaps, task_aligned
from polysense.heads.base import HEADS, Head, Out
from polysense.heads.grid import MaskedBlock, Pyramid, sample_grid, sample_window
from polysense.heads.tiles import join_cells, merge_windows, merge_windows_meta
from polysense.heads.views import blend_cells

PRIOR = 0.01  # score of every cell before training, so that background does not drown the first steps


@dataclass(frozen=True)
class DetectionConfig:
    classes: tuple[str, ...]  # names by index
    layers: tuple[int, ...] = ()  # hidden layers of the encoder read beside the last one
    channels: int = 128  # of the grid
    depth: int = 2  # 3 x 3 convolutions of the class branch and of the box branch
    levels: int = -1  # grids: the tokens', and each further one twice as fine; -1: as many as finer maps, else 2
    fine: tuple[int, ...] = ()  # channels of the tokenizer's finer maps that those levels read, coarse to fine
    candidates: int = 10  # cells that may learn one object
    box_weight: float = 2.0  # of the GIoU loss beside the class loss
    objectness: bool = False  # also learn how well a box fits whatever it holds, for objects of no class: `propose`
    threshold: float = 0.3  # least score of an answer
    nms_iou: float = 0.6  # overlap from which the less confident of two boxes of one class is dropped; 1: none is
    max_boxes: int = 100  # most boxes of one image

    def __post_init__(self) -> None:
        for name in ("classes", "layers", "fine"):  # lists, when read from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.levels < 0:
            object.__setattr__(self, "levels", len(self.fine) or 2)


class Proposals(NamedTuple):
    """Boxes of one image that may hold an object of any class, in pixels of the original."""

    boxes: Float[Tensor, "n 4"]
    objectness: Float[Tensor, " n"]  # 0 to 1
    known: Float[Tensor, "n k"]  # scores of the trained classes


@HEADS.register("detection")
class DetectionHead(Head):
    """Two masked convolutional branches shared by all levels.

    Attributes:
        threshold: Least score of an answer; lower it (to 0.01) while average precision is measured.
    """

    Config = DetectionConfig

    def __init__(self, config: DetectionConfig, width: int) -> None:
        super().__init__(config, width)
        channels = config.channels
        self.threshold = config.threshold
        self.pyramid = Pyramid(width, channels, config.levels, config.fine, config.layers)
        self.class_branch = nn.ModuleList(MaskedBlock(channels) for _ in range(config.depth))
        self.box_branch = nn.ModuleList(MaskedBlock(channels) for _ in range(config.depth))
        self.classify = nn.Conv2d(channels, len(config.classes), 1)
        self.regress = nn.Conv2d(channels, 4, 1)
        self.objectness = nn.Conv2d(channels, 1, 1) if config.objectness else None
        # Larger objects suit coarser cells; each level learns its own typical size.
        self.sizes = nn.Parameter(torch.full((config.levels, 2), math.log(2.0)))
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.normal_(self.regress.weight, std=0.01)
        nn.init.constant_(cast(Tensor, self.classify.bias), -math.log((1 - PRIOR) / PRIOR))
        nn.init.zeros_(cast(Tensor, self.regress.bias))

    def forward(self, features: Features) -> Out:
        """Returns "logits" (b, p, k), "boxes" (b, p, 4), "centers" (b, p, 2) in token cells, and "valid" (b, p)."""
        return self.cells(self.pyramid(features))

    def cells(self, grids: Sequence[tuple[Float[Tensor, "b c h w"], Bool[Tensor, "b 1 h w"]]]) -> Out:
        """What the cells of all grids answer, as `forward` returns it."""
        levels = [self._level(x, mask, level) for level, (x, mask) in enumerate(grids)]
        return {name: torch.cat([out[name] for out in levels], 1) for name in levels[0]}

    def _level(self, x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"], level: int) -> Out:
        what, where = (x if self.objectness is None else x.detach()), x
        for block in self.class_branch:
            what = block(what, mask)
        for block in self.box_branch:
            where = block(where, mask)
        b, _, h, w = x.shape
        cell = 0.5**level
        ys, xs = torch.meshgrid(torch.arange(h, device=x.device), torch.arange(w, device=x.device), indexing="ij")
        centers = (torch.stack([xs, ys], -1).reshape(-1, 2).float() + 0.5) * cell
        raw = self.regress(where).float().flatten(2).transpose(1, 2)
        # Centre and size, not four distances: a cell beside a very small object can reach it, and no box is inside out.
        middle = centers + raw[..., :2] * cell
        half = (raw[..., 2:] + self.sizes[level]).clamp(-6, 6).exp() * (cell / 2)
        out = {
            "logits": self.classify(what).float().flatten(2).transpose(1, 2),
            "boxes": torch.cat([middle - half, middle + half], -1),
            "centers": centers.expand(b, -1, -1),
            "valid": mask.flatten(1),
        }
        if self.objectness is not None:
            out["objectness"] = self.objectness(where).float().flatten(1)
        return out

    def targets(self, labels: Sequence[BoxTarget], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Pads the boxes of each image: "boxes" (b, m, 4) in token cells and "labels" (b, m) int64, -1 where none.

        Raises:
            InputError: A label is none of the classes.
        """
        most = max((len(target.labels) for target in labels), default=0)
        boxes, classes = torch.zeros(len(labels), most, 4), torch.full((len(labels), most), -1)
        numbers = {name: i for i, name in enumerate(self.config.classes)}
        for i, (target, m) in enumerate(zip(labels, meta, strict=True)):
            unknown = sorted(set(target.labels) - set(numbers))
            if unknown:
                source, problem = m.get("source", "<memory>"), f"a box is labelled {unknown[0]!r}, which is no class"
                raise InputError(source, problem, f"choose from: {', '.join(self.config.classes)}")
            (begin, size), (rows, cols) = _cells(m), sample_grid(m)
            xyxy = torch.from_numpy(np.array(target.xyxy, np.float32).reshape(-1, 4))
            own = clip_boxes_to_image((xyxy - begin) / size, (rows, cols))
            if m.get("mirror"):
                own[:, [0, 2]] = cols - own[:, [2, 0]]
            seen = (own[:, 2:] - own[:, :2]).amin(1) > 0  # a tokenizer that crops does not see all of them
            count = int(seen.sum())
            boxes[i, :count] = own[seen]
            classes[i, :count] = torch.tensor([numbers[name] for name in target.labels], dtype=torch.int64)[seen]
        return {"boxes": boxes, "labels": classes}

    def loss(self, out: Out, target: Out) -> dict[str, Tensor]:
        """Quality focal loss over all cells and GIoU loss over those that learn an object; with `objectness` also the
        cross entropy between it and the overlap of a cell's box with the object that the cell lies in."""
        device = out["logits"].device
        truth, labels = target["boxes"].to(device), target["labels"].to(device)
        class_losses, box_losses, fit_losses, total = [], [], [], 0
        for i in range(len(truth)):
            own = labels[i] >= 0
            logits, boxes, valid = out["logits"][i], out["boxes"][i], out["valid"][i]
            found = task_aligned(
                logits.sigmoid(), boxes, out["centers"][i], valid, truth[i][own], labels[i][own],
                candidates=self.config.candidates,
            )  # fmt: skip
            cells = (found.object >= 0).nonzero().flatten()
            objects = found.object[cells]
            wanted = torch.zeros_like(logits)
            wanted[cells, labels[i][own][objects]] = found.quality[cells]
            class_losses.append(quality_focal(logits, wanted)[valid].sum())
            # Unweighted: weighting by quality would leave a first poor box poor, above all a small one.
            box_losses.append(generalized_box_iou_loss(boxes[cells], truth[i][own][objects], reduction="sum"))
            total += len(cells)
            if "objectness" in out:
                fits, inside = overlaps(boxes, out["centers"][i], truth[i][own])
                learning = (inside | (found.object >= 0)) & valid
                fit = F.binary_cross_entropy_with_logits(out["objectness"][i], fits, reduction="none")
                fit_losses.append(fit[learning])
        share = 1.0 / max(total, 1)
        class_loss, box_loss = torch.stack(class_losses).sum() * share, torch.stack(box_losses).sum() * share
        loss = class_loss + self.config.box_weight * box_loss
        parts = {"class": class_loss.detach(), "box": box_loss.detach()}
        if fit_losses:
            all_fit = torch.cat(fit_losses)
            fit_loss = all_fit.sum() / max(len(all_fit), 1)
            loss, parts["objectness"] = loss + fit_loss, fit_loss.detach()
        return {"loss": loss, **parts}

    def merge(self, out: Out, owner: Int[Tensor, " b"], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Windows and views of one image become one set of cells; a place belongs to the window it is most inside."""
        return merge_windows(out, owner, meta, join_cells, blend_cells)

    def merge_meta(self, meta: Sequence[Mapping[str, Any]], owner: Int[Tensor, " b"]) -> list[dict[str, Any]]:
        return merge_windows_meta(meta, owner)

    @torch.no_grad()
    def decode(self, out: Out, meta: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """`Boxes` over the threshold after non-maximum suppression per class, clipped to the original image."""
        return [self._decode_one({name: tensor[i] for name, tensor in out.items()}, m) for i, m in enumerate(meta)]

    @torch.no_grad()
    def propose(
        self, out: Out, meta: Sequence[Mapping[str, Any]], most: int = 200, nms_iou: float = 0.7
    ) -> list[Proposals]:
        """Boxes of whatever may be an object, best first: by `objectness`, else by the best class score.

        Args:
            out, meta: As for `decode`.
            most: Boxes of one image.
            nms_iou: Overlap from which the lesser of two boxes is dropped, whatever their classes.
        """
        return [self._propose_one({name: tensor[i] for name, tensor in out.items()}, m, most, nms_iou)
                for i, m in enumerate(meta)]  # fmt: skip

    def _propose_one(self, out: Out, meta: Mapping[str, Any], most: int, nms_iou: float) -> Proposals:
        known = out["logits"].sigmoid()
        fit = out["objectness"].sigmoid() if "objectness" in out else known.amax(1)
        fit = fit.masked_fill(~out["valid"], 0.0)
        best, cell = fit.topk(min(10 * most, len(fit)))
        begin, cell_size = (t.to(fit.device) for t in _cells(meta))
        boxes = clip_boxes_to_image(
            out["boxes"][cell] * cell_size + begin, (int(meta["size"][0]), int(meta["size"][1]))
        )
        solid = ((boxes[:, 2:] - boxes[:, :2]).amin(1) > 0) & (best > 0)
        boxes, best, cell = boxes[solid], best[solid], cell[solid]
        kept = nms(boxes, best, nms_iou)[:most]
        return Proposals(boxes[kept], best[kept], known[cell[kept]])

    def _decode_one(self, out: Out, meta: Mapping[str, Any]) -> Boxes:
        size = (int(meta["size"][0]), int(meta["size"][1]))
        scores = out["logits"].sigmoid().masked_fill(~out["valid"][:, None], 0.0)
        best, flat = scores.flatten().topk(min(10 * self.config.max_boxes, scores.numel()))
        kept = best > self.threshold
        best, cell, label = best[kept], flat[kept] // scores.shape[1], flat[kept] % scores.shape[1]
        begin, cell_size = (t.to(scores.device) for t in _cells(meta))
        boxes = clip_boxes_to_image(out["boxes"][cell] * cell_size + begin, size)
        solid = (boxes[:, 2:] - boxes[:, :2]).amin(1) > 0  # clipping leaves nothing of a box outside the image
        boxes, best, label = boxes[solid], best[solid], label[solid]
        chosen = torch.arange(len(boxes), device=boxes.device)
        if self.config.nms_iou < 1:
            chosen = batched_nms(boxes, best, label, self.config.nms_iou)
        chosen = chosen[: self.config.max_boxes]
        names = [self.config.classes[i] for i in label[chosen].tolist()]
        xyxy, confidence = boxes[chosen].float().cpu().numpy(), best[chosen].float().cpu().numpy()
        return Boxes(xyxy, names, confidence, size, meta.get("source", "<memory>"))


def quality_focal(
    logits: Float[Tensor, "p k"], wanted: Float[Tensor, "p k"], beta: float = 2.0
) -> Float[Tensor, "p k"]:
    """Focal loss for soft targets: cross entropy times |wanted - score|**beta (Li et al. 2020, equation 2)."""
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return entropy * (wanted - logits.sigmoid()).abs() ** beta


def _cells(meta: Mapping[str, Any]) -> tuple[Float[Tensor, " 4"], Float[Tensor, " 4"]]:
    """Original pixels (x, y, x, y) where the token grid begins, and of one of its cells."""
    (left, top, right, bottom), (rows, cols) = sample_window(meta), sample_grid(meta)
    begin, size = [left, top] * 2, [(right - left) / cols, (bottom - top) / rows] * 2
    return torch.tensor(begin, dtype=torch.float32), torch.tensor(size, dtype=torch.float32)

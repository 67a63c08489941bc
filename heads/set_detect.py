"""Object detection as a set: a decoder turns the best cells of a dense detector into one answer for each object.

The dense detector of `heads/detect.py` is the first stage: its cells learn many to an object, which teaches the grids
from few images (Zong et al. 2023, Co-DETR). Its best cells become queries with a box (two-stage selection of Zhu et al.
2021, Deformable DETR), and a small decoder refines them. Matched one to one with the objects, they learn how far to
give way to surer ones: no fixed rule suppresses what overlaps. Noised truth teaches it too (`heads/denoise.py`).

Shape legend: b batch, c channels, h rows and w columns of a padded grid, p cells of all levels, q queries, l layers of
the decoder, m boxes of one image, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou_loss

from polysense.core.types import Features
from polysense.heads.assign import one_to_one, paired_iou
from polysense.heads.base import HEADS, Out
from polysense.heads.deformable import Decoder
from polysense.heads.denoise import noised
from polysense.heads.detect import PRIOR, DetectionConfig, DetectionHead, quality_focal


@dataclass(frozen=True)
class SetDetectionConfig(DetectionConfig):
    nms_iou: float = 1.0
    queries: int = 300  # cells that become queries
    decoder_layers: int = 3
    heads: int = 4  # of the decoder's attention
    points: int = 4  # that a head reads in each grid
    denoising: int = 200  # queries made of noised truth while learning; 0: none
    corner_weight: float = 5.0  # of the distance of boxes beside the class loss

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels % self.heads:
            raise ValueError(f"{self.channels} channels cannot be shared among {self.heads} heads")


@HEADS.register("set_detection")
class SetDetectionHead(DetectionHead):
    """A dense detector whose best cells a decoder refines. Targets, decoding and merging are the dense detector's."""

    Config = SetDetectionConfig
    config: SetDetectionConfig

    def __init__(self, config: SetDetectionConfig, width: int) -> None:
        super().__init__(config, width)
        channels = config.channels
        self.query = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
        self.decoder = Decoder(
            channels, len(config.classes), config.decoder_layers, config.heads, config.levels, config.points
        )  # fmt: skip
        self.names = nn.Embedding(len(config.classes), channels) if config.denoising else None

    def forward(self, features: Features) -> Out:
        """Returns "logits" (b, q, k), "boxes" (b, q, 4), "centers" (b, q, 2) in token cells, "valid" (b, q), and
        "extent" (b, q, 2), the columns and rows of the image that a query looks at.

        While learning also what `loss` needs: "layer_logits" (b, l, q, k), "layer_boxes" (b, l, q, 4); what the cells
        answered, as "cell_logits" …; and what the decoder may read, as "value_0" (b, l, c, h, w) …
        """
        grids = self.pyramid(features)
        cells, values = self.cells(grids), self.decoder.values(grids)
        best = _best(cells, self.config.queries)
        content = torch.cat([grid.flatten(2).transpose(1, 2) for grid, _ in grids], 1)
        valid, extent = cells["valid"].gather(1, best), _extent(grids[0][1])
        boxes = to_shares(_rows(cells["boxes"], best).detach(), extent)
        scores = _rows(cells["logits"], best).detach()
        answers = self.decoder(self.query(_rows(content, best)), boxes, scores, valid, values, extent)
        logits = torch.stack([layer.float() for layer, _ in answers], 1)
        moved = torch.stack([to_cells(layer, extent) for _, layer in answers], 1)
        last = moved[:, -1]
        # An object belongs to the window in which its middle lies best: see `join_cells`.
        middle = (last[..., :2] + last[..., 2:]) / 2
        out = {"logits": logits[:, -1], "boxes": last, "centers": middle, "valid": valid,
               "extent": extent[:, None].expand_as(middle)}  # fmt: skip
        if not self.training:
            return out
        out |= {"layer_logits": logits, "layer_boxes": moved}
        out |= {f"cell_{name}": x for name, x in cells.items()}
        return out | {f"value_{level}": value for level, value in enumerate(values)}

    def loss(self, out: Out, target: Out) -> dict[str, Tensor]:
        """The dense detector's loss, and for each layer that of the matched queries and of noised truth.

        Outside training it is that of the last layer's matched queries.
        """
        device = out["logits"].device
        truth, labels = target["boxes"].to(device), target["labels"].to(device)
        learning = "layer_logits" in out
        layers = (out["layer_logits"].unbind(1), out["layer_boxes"].unbind(1)) if learning else (
            [out["logits"]], [out["boxes"]])  # fmt: skip
        parts = [self._matched(logits, boxes, out, truth, labels) for logits, boxes in zip(*layers, strict=True)]
        parts += self._denoised(out, truth, labels) if learning else []
        # Each layer has its share, so that the decoder does not drown the cells that its queries come from.
        class_loss, box_loss = (torch.stack(losses).sum() / len(layers[0]) for losses in zip(*parts, strict=True))
        losses = {"loss": class_loss + box_loss, "class": class_loss.detach(), "box": box_loss.detach()}
        if not learning:
            return losses
        cells = {name.removeprefix("cell_"): x for name, x in out.items() if name.startswith("cell_")}
        dense = super().loss(cells, target)["loss"]
        return {**losses, "loss": losses["loss"] + dense, "cells": dense.detach()}

    def _matched(
        self,
        logits: Float[Tensor, "b q k"],
        boxes: Float[Tensor, "b q 4"],
        out: Out,
        truth: Float[Tensor, "b m 4"],
        labels: Int[Tensor, "b m"],
    ) -> tuple[Tensor, Tensor]:
        """Losses of classes and boxes where each object has one query, by `one_to_one`."""
        extent = out["extent"][:, 0]
        found = [
            one_to_one(logits[i].sigmoid(), boxes[i], out["valid"][i], truth[i][own], labels[i][own], extent[i])
            for i, own in enumerate(labels >= 0)
        ]
        return self._set_loss(logits, boxes, torch.stack(found), out["valid"], truth, labels, extent)

    def _denoised(
        self, out: Out, truth: Float[Tensor, "b m 4"], labels: Int[Tensor, "b m"]
    ) -> list[tuple[Tensor, Tensor]]:
        """Losses of each layer on noised truth, which runs through the decoder by itself: no query may see it."""
        if self.names is None or not labels.shape[1]:
            return []
        extent, values = out["extent"][:, 0], [out[f"value_{level}"] for level in range(self.config.levels)]
        noise = noised(to_shares(truth, extent), labels, len(self.config.classes), self.config.denoising)
        scores = torch.full((*noise.labels.shape, len(self.config.classes)), PRIOR, device=truth.device)
        # As the cells do, a query claims to be sure of its class as far as its box fits.
        scores = scores.scatter(2, noise.labels[..., None], noise.overlap[..., None]).logit(PRIOR)
        content = self.names(noise.labels)
        answers = self.decoder(content, noise.boxes, scores, noise.real, values, extent, noise.groups)
        return [self._set_loss(logits.float(), to_cells(boxes, extent), noise.object, noise.real, truth, labels, extent)
                for logits, boxes in answers]  # fmt: skip

    def _set_loss(
        self,
        logits: Float[Tensor, "b q k"],
        boxes: Float[Tensor, "b q 4"],
        learns: Int[Tensor, "b q"],
        valid: Bool[Tensor, "b q"],
        truth: Float[Tensor, "b m 4"],
        labels: Int[Tensor, "b m"],
        extent: Float[Tensor, "b 2"],
    ) -> tuple[Tensor, Tensor]:
        """Losses of classes and boxes, for each query that learns an object; scores are to say how well boxes fit."""
        image, query = (learns >= 0).nonzero(as_tuple=True)
        number = learns[image, query]
        mine, wanted_box = boxes[image, query], truth[image, number]
        share = 1.0 / max(len(image), 1)
        wanted = torch.zeros_like(logits)
        wanted[image, query, labels[image, number]] = paired_iou(mine.detach(), wanted_box)
        class_loss = quality_focal(logits.flatten(0, 1), wanted.flatten(0, 1)).view_as(logits)[valid].sum() * share
        sides = extent[image].repeat(1, 2)
        corners = F.l1_loss(mine / sides, wanted_box / sides, reduction="sum")
        fit = generalized_box_iou_loss(mine, wanted_box, reduction="sum")
        return class_loss, (self.config.corner_weight * corners + self.config.box_weight * fit) * share


@torch.no_grad()
def _best(cells: Out, count: int) -> Int[Tensor, "b q"]:
    """The cells that are most likely an object of some class; padded ones come last."""
    scores = cells["logits"].amax(-1).masked_fill(~cells["valid"], -torch.inf)
    return scores.topk(min(count, scores.shape[1]), 1).indices


def _rows(x: Float[Tensor, "b p e"], which: Int[Tensor, "b q"]) -> Float[Tensor, "b q e"]:
    return x.gather(1, which[..., None].expand(-1, -1, x.shape[2]))


def _extent(mask: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b 2"]:
    """(columns, rows) of each sample's own grid."""
    own = mask[:, 0]
    return torch.stack([own.any(1).sum(1), own.any(2).sum(1)], -1).float()


def to_shares(boxes: Float[Tensor, "b q 4"], extent: Float[Tensor, "b 2"]) -> Float[Tensor, "b q 4"]:
    """xyxy in token cells -> (cx, cy, w, h) as shares of the image, of which nothing lies outside."""
    return box_convert((boxes / extent.repeat(1, 2)[:, None]).clamp(0, 1), "xyxy", "cxcywh")


def to_cells(boxes: Float[Tensor, "b q 4"], extent: Float[Tensor, "b 2"]) -> Float[Tensor, "b q 4"]:
    """The other way."""
    return box_convert(boxes.float(), "cxcywh", "xyxy") * extent.repeat(1, 2)[:, None]

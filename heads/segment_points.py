"""Semantic segmentation of point clouds: a class for each point of the original cloud.

The encoder sees a few dozen group tokens; a point asks the tokens around it. Feature propagation as in PointNet++ (Qi
et al. 2017b, section 3.4): the features of the three nearest tokens, weighted by inverse squared distance, joined with
where the point lies relative to them. Training asks for some points of each cloud, decoding for all of them, some at a
time. Where a large cloud is cut into blocks (tokenizers/cloud_blocks.py), a point asks the tokens of its own block.

Shape legend: b batch, n tokens, q queried points, m points of the original cloud, c channels, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.core.errors import InputError
from polysense.core.predictions import Mask, Prediction
from polysense.core.types import Features
from polysense.data.masks import IGNORE, read_mask
from polysense.heads.base import HEADS, Head, Out, cat_padded
from polysense.tokenizers.positions import CoordinateEmbedding

PORTION = 65_536  # points decoded at once
PAIRS = 16_000_000  # distances held at once; bounds the portion where there are many tokens
NEIGHBOURS = 3
FAR = 1e12  # squared distance to a padded token


@dataclass(frozen=True)
class PointSegmentationConfig:
    classes: tuple[str, ...]  # names by index in the labels
    ignore: int | None = None  # index in the labels that is neither learned nor answered, beside 255 and negative ones
    layers: tuple[int, ...] = ()  # hidden layers of the encoder read beside the last one
    channels: int = 128  # of the features that points read
    queries: int = 1024  # points of each cloud that one training step asks for
    dropout: float = 0.1  # of a point's channels, before the logits
    seed: int = 0  # of the choice of points

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))  # lists, when read from JSON
        object.__setattr__(self, "layers", tuple(self.layers))


@HEADS.register("point_segmentation")
class PointSegmentationHead(Head):
    """Propagates group tokens to points and classifies each point."""

    Config = PointSegmentationConfig

    def __init__(self, config: PointSegmentationConfig, width: int) -> None:
        super().__init__(config, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(len(config.layers) + 1))
        self.project = nn.Linear(width * len(self.norms), config.channels)
        # Coordinates lie within about -1..1; six octaves tell 1/32 of the cloud apart.
        self.offset = CoordinateEmbedding(3, config.channels, bands=6, longest=2.0)
        self.classify = nn.Sequential(
            nn.LayerNorm(config.channels),
            nn.Linear(config.channels, config.channels),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.channels, len(config.classes)),
        )
        self._draws = 0  # of points so far: every pass over the data asks for others, yet all follow from the seed

    def forward(self, features: Features) -> Out:
        """Returns what `query` reads: "features" (b, n, c), "pos" (b, n, 3), "mask" (b, n)."""
        mask = features.last.dense_mask()
        read = [features.last, *(features.hidden[i] for i in self.config.layers)]
        joined = [
            norm(tokens.x.masked_fill(~mask[..., None], 0.0)) for norm, tokens in zip(self.norms, read, strict=True)
        ]
        pos = features.last.pos[..., :3].float().masked_fill(~mask[..., None], 0.0)
        return {"features": self.project(torch.cat(joined, -1)), "pos": pos, "mask": mask}

    def query(self, out: Out, points: Float[Tensor, "b q 3"]) -> Float[Tensor, "b q k"]:
        """Logits of points in the coordinates of the tokens."""
        features, pos, mask = out["features"], out["pos"], out["mask"]
        # Differences and not the matrix-product form, which loses the small distances that decide. Without gradient:
        # neither positions nor points are learned.
        with torch.no_grad():
            squared = torch.cdist(points, pos, compute_mode="donot_use_mm_for_euclid_dist").square()
            squared, index = squared.masked_fill(~mask[:, None], FAR).topk(
                min(NEIGHBOURS, pos.shape[1]), -1, largest=False
            )
            weight = 1.0 / (squared + 1e-8)
            weight = weight / weight.sum(-1, keepdim=True)  # (b, q, 3)
        rows = torch.arange(len(points), device=points.device)[:, None]
        x = torch.zeros(*points.shape[:2], features.shape[-1], device=points.device, dtype=features.dtype)
        for i in range(index.shape[-1]):  # one neighbour at a time: a third of the memory
            near, share = index[..., i], weight[..., i, None].to(features.dtype)
            x = x + share * (features[rows, near] + self.offset(points - pos[rows, near]).to(features.dtype))
        logits = self.classify(x).float()
        ignore = self.config.ignore
        if ignore is not None and ignore < len(self.config.classes):
            never = torch.arange(len(self.config.classes), device=logits.device) == ignore
            logits = logits.masked_fill(never, -1e4)
        return logits

    def targets(self, labels: Sequence[Any], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Draws up to `queries` points of each cloud: "points" (b, q, 3) and "labels" (b, q) int64, 255 where none.

        Args:
            labels: For each cloud m class indices, an array or a path of a `.npy` file.
            meta: With "xyz" (m, 3), "center" (3,) and "scale"; of a block also "own".

        Raises:
            InputError: The labels do not fit the cloud or the classes.
        """
        rng = np.random.default_rng((self.config.seed, self._draws))
        self._draws += 1
        count = min(self.config.queries, max(len(m.get("own", m["xyz"])) for m in meta))
        points = torch.zeros(len(labels), count, 3)
        classes = torch.full((len(labels), count), IGNORE, dtype=torch.int64)
        for i, (label, m) in enumerate(zip(labels, meta, strict=True)):
            index = self._checked(read_mask(label), m)
            chosen = rng.permutation(len(index))[:count] if len(index) > count else np.arange(len(index))
            points[i, : len(chosen)] = torch.from_numpy(_normalised(m, m["own"][chosen] if "own" in m else chosen))
            classes[i, : len(chosen)] = torch.from_numpy(index[chosen].astype(np.int64))
        return {"points": points, "labels": classes}

    def _checked(self, index: np.ndarray, meta: Mapping[str, Any]) -> np.ndarray:
        source, count = meta.get("source", "<memory>"), len(meta["xyz"])
        if index.shape != (count,):
            raise InputError(source, f"it has {count} points but labels of shape {index.shape}", "label every point")
        index = index[meta["own"]] if "own" in meta else index
        index = np.where(index < 0, IGNORE, index)
        if self.config.ignore is not None:
            index = np.where(index == self.config.ignore, IGNORE, index)
        worst = int(index.max(initial=0, where=index != IGNORE))
        if worst >= len(self.config.classes):
            problem = f"a label is {worst}, beyond the {len(self.config.classes)} classes"
            raise InputError(source, problem, f"name more classes or ignore {worst}")
        return index

    def loss(self, out: Out, target: Out) -> dict[str, Tensor]:
        """Cross entropy over the labelled points."""
        device = out["features"].device
        logits, labels = self.query(out, target["points"].to(device)), target["labels"].to(device)
        total = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="sum")
        return {"loss": total / (labels != IGNORE).sum().clamp(min=1)}

    def merge(self, out: Out, owner: Int[Tensor, " b"], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Blocks of one cloud stay apart, as a second axis: a point asks the tokens of its own block only."""
        if not any("own" in m for m in meta):
            return super().merge(out, owner, meta)
        clouds = range(int(owner.max()) + 1)
        return {name: cat_padded([tensor[owner == s][None] for s in clouds]) for name, tensor in out.items()}

    def merge_meta(self, meta: Sequence[Mapping[str, Any]], owner: Int[Tensor, " b"]) -> list[dict[str, Any]]:
        """That of the first block, with all of them as "blocks"."""
        merged = super().merge_meta(meta, owner)
        if any("own" in m for m in meta):
            for s, about in enumerate(merged):
                about["blocks"] = [m for m, of in zip(meta, owner.tolist(), strict=True) if of == s]
        return merged

    @torch.inference_mode()
    def decode(self, out: Out, meta: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """`Mask` over all points of each cloud, in their order; memory is bounded, whatever the size of the cloud."""
        answers: list[Prediction] = []
        for i, m in enumerate(meta):
            index = np.empty(len(m["xyz"]), np.uint8 if len(self.config.classes) <= 256 else np.int32)
            confidence = 0.0
            for j, block in enumerate(m.get("blocks", [m])):
                tokens = {name: tensor[i, j : j + 1] if "blocks" in m else tensor[i : i + 1]
                          for name, tensor in out.items()}  # fmt: skip
                for rows in self._portions(block, tokens["pos"].shape[1]):
                    points = torch.from_numpy(_normalised(block, rows)).to(tokens["pos"].device)
                    best, chosen = self.query(tokens, points[None])[0].softmax(-1).max(-1)
                    index[rows] = chosen.cpu().numpy()
                    confidence += float(best.sum())
            source = m.get("source", "<memory>")
            answers.append(Mask(index, self.config.classes, confidence / max(len(index), 1), source))
        return answers

    def _portions(self, meta: Mapping[str, Any], tokens: int) -> Iterator[Any]:
        """The points that a cloud or block answers, by number, as many at a time as memory allows."""
        step = max(min(PORTION, PAIRS // tokens), 1)
        own, count = meta.get("own"), len(meta["xyz"])
        for start in range(0, count if own is None else len(own), step):
            yield slice(start, min(start + step, count)) if own is None else own[start : start + step]


def _normalised(meta: Mapping[str, Any], rows: Any) -> Float[np.ndarray, "q 3"]:
    """Chosen points in the coordinates of the tokens; subtracts in double, as map coordinates need it."""
    xyz = np.asarray(meta["xyz"])[rows].astype(np.float64)
    return ((xyz - np.asarray(meta["center"], np.float64)) / float(meta["scale"])).astype(np.float32)

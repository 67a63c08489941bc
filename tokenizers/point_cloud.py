"""Point clouds -> tokens: patches of neighbouring points, one token each, and two for size and shape of the whole.

Shape legend: b batch, n points, g groups, k neighbours, f feature channels, c inputs, d width, e extent numbers,
q profile numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polysense.core.errors import InputError
from polysense.core.types import Sample, Tokens
from polysense.data.point_cloud import Cloud, read_cloud
from polysense.kernels.points import farthest_point_sampling, knn
from polysense.tokenizers.base import TOKENIZERS, Batch, Tokenizer, meta_of, pad_stack
from polysense.tokenizers.cloud_blocks import halved, surrounded
from polysense.tokenizers.cloud_shape import EXTENT, PROFILE, extent_of, max_radius, mirrored, profile_of

FEATURES = {"rgb": 3, "intensity": 1, "normals": 3}
# Where the tokens of the whole stand: outside the unit ball, so that no point has them as near neighbours.
WHOLE_POSITION = 2.0
# (x and y exchanged, x negated, y negated): as it is, mirrored, a quarter turn of each, and half a turn of all these.
VIEWS = ((0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (1, 1, 1))


@dataclass(frozen=True)
class PointCloudConfig:
    """Settings of the point cloud tokenizer."""

    width: int = 192  # token width, the encoder's
    form: Literal["groups", "meta"] = "groups"  # Point-BERT patches, or Meta-Transformer's embedding
    points: int = 1024  # a larger cloud is thinned to so many
    groups: int = 64  # patches ("groups"); "meta" has points × ratio
    neighbours: int = 32  # points in a patch
    ratio: float = 0.25  # "meta": centres per point, 1/4 or 1/16
    features: tuple[str, ...] = ()  # per-point features beside the coordinates: rgb, intensity, normals
    # Tokens for the whole: "size" (absolute size and proportions, which normalisation takes away), "shape" (that one,
    # and one for where in its box the points lie), or "none". Older bundles have true ("size") and false ("none").
    extent: bool | Literal["none", "size", "shape"] = "shape"
    views: int = 1  # mirrored and quarter-turned variants (up to 8) whose answers are averaged; not for segmentation
    hidden: int = 128  # channels inside the patch network
    sample: int = 20_000  # points drawn from the surface of a mesh
    # A cloud of more points is cut into blocks of at most so many (tokenizers/cloud_blocks.py), each with tokens of its
    # own; 0: it is one, however large. Segmentation answers a point by the block it lies in, other heads average.
    block: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))  # a list after JSON
        if isinstance(self.extent, bool):
            object.__setattr__(self, "extent", "size" if self.extent else "none")
        if self.extent not in ("none", "size", "shape"):
            raise ValueError(f"unknown extent {self.extent!r}; choose none, size or shape")
        if self.form not in ("groups", "meta"):
            raise ValueError(f"unknown form {self.form!r}; choose groups or meta")
        if unknown := set(self.features) - set(FEATURES):
            raise ValueError(f"unknown features {sorted(unknown)}; choose from {', '.join(FEATURES)}")
        if not 1 <= self.views <= len(VIEWS):
            raise ValueError(f"views must be from 1 to {len(VIEWS)}")
        if min(self.points, self.groups, self.neighbours) < 1 or not 0 < self.ratio <= 1:
            raise ValueError("points, groups and neighbours must be at least 1, ratio in (0, 1]")
        if self.block < 0:
            raise ValueError("block must be a number of points, or 0 for none")


@TOKENIZERS.register("point_cloud")
class PointCloudTokenizer(Tokenizer):
    """Patches as Point-BERT cuts them (Yu et al. 2022, 3.1): farthest points as centres, their nearest neighbours.

    Tokens live in (xyz - center) / scale: center is the centroid, scale the largest distance from it. `Tokens.pos` are
    the patch centres there; the tokens of the whole, if any, come last at (2, 2, 2), outside the unit ball.
    """

    Config = PointCloudConfig
    config: PointCloudConfig

    def __init__(self, config: PointCloudConfig) -> None:
        super().__init__(config)
        channels = sum(FEATURES[name] for name in config.features)
        embedding = PatchNetwork if config.form == "groups" else MetaNetwork
        self.patch = embedding(6 + channels, config.hidden, config.width)
        self.position = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, config.width))
        self.extent = _numbers_network(EXTENT, config) if config.extent != "none" else None
        self.profile = _numbers_network(PROFILE, config) if config.extent == "shape" else None
        self.extra = (self.extent is not None) + (self.profile is not None)  # tokens after the patches'

    def read(self, source: Any) -> Sample:
        """Reads, normalises, thins and cuts one cloud (see `read_cloud` for sources).

        Raises:
            InputError: Not a cloud, or without a feature that the configuration asks for.
        """
        cloud = read_cloud(source, sample=self.config.sample)
        sample = self.cut(cloud, str(source) if isinstance(source, str | Path) else "<memory>")
        if not 0 < self.config.block < len(cloud.xyz):
            return sample
        return replace(sample, meta={**sample.meta, "features": cloud.features})

    def cut(self, cloud: Cloud, source: str) -> Sample:
        """A decoded cloud -> groups (g, k, 3 + f), centers (g, 3), extent (e), profile (q)."""
        config, n = self.config, len(cloud.xyz)
        if missing := [name for name in config.features if name not in cloud.features]:
            fix = f"give a cloud with {', '.join(config.features)}, or train without"
            raise InputError(source, f"the cloud has no {' and no '.join(missing)}", fix)
        center = cloud.xyz.mean(0)
        # The same points for every cloud of this size; without the shuffle, choosing costs nothing at ten millions.
        rng = np.random.default_rng(n)
        kept = rng.choice(n, config.points, replace=False, shuffle=False) if n > config.points else slice(None)
        scale = max_radius(cloud.xyz, center)
        xyz = (cloud.xyz[kept] - center) / scale
        wanted = config.groups if config.form == "groups" else round(len(xyz) * config.ratio)
        chosen = farthest_point_sampling(xyz, min(max(wanted, 1), len(xyz)))
        nearest, _ = knn(xyz[chosen], xyz, min(config.neighbours, len(xyz)))
        nearest = nearest[:, np.arange(config.neighbours) % nearest.shape[1]]  # few points: repeated
        columns = [xyz[nearest] - xyz[chosen][:, None], *(cloud.features[f][kept][nearest] for f in config.features)]
        data = {"groups": np.concatenate(columns, -1), "centers": xyz[chosen]}
        if self.extent is not None:
            data["extent"] = extent_of(cloud.xyz, xyz, center, scale)
        if self.profile is not None:
            data["profile"] = profile_of(xyz, xyz[chosen])
        meta = {"points": n, "xyz": cloud.xyz, "center": center, "scale": scale}
        return Sample({k: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for k, v in data.items()}, source, meta)

    def split(self, sample: Sample) -> list[Sample]:
        """The blocks of a large cloud, each from as many sides as the configuration says.

        A block knows its "own" points among the whole cloud's "xyz". In training one of all these is drawn.
        """
        return [view for block in self._blocks(sample) for view in self._views(block)]

    def _blocks(self, sample: Sample) -> list[Sample]:
        xyz, features = sample.meta["xyz"], sample.meta.get("features")
        if features is None:
            return [sample]
        blocks, made = halved(xyz, self.config.block), []
        for own, rows in zip(blocks, surrounded(xyz, blocks), strict=True):
            part = Cloud(xyz[rows], {name: features[name][rows] for name in self.config.features})
            block = self.cut(part, sample.source)
            made.append(replace(block, meta={**block.meta, "points": len(xyz), "xyz": xyz, "own": own}))
        return made

    def _views(self, sample: Sample) -> list[Sample]:
        views = self.config.views
        if views == 1:
            return [sample]
        channels = np.cumsum([3, *(FEATURES[name] for name in self.config.features)])
        normals = [int(at) for at, name in zip(channels, self.config.features, strict=False) if name == "normals"]
        swap, flip_x, flip_y = torch.tensor(VIEWS[:views], dtype=torch.bool).unbind(1)
        repeated = {name: value.expand(views, *value.shape) for name, value in sample.data.items()}
        moved = mirrored(repeated, swap, flip_x, flip_y, (0, *normals))
        return [replace(sample, data={name: value[i] for name, value in moved.items()}) for i in range(views)]

    def collate(self, samples: Sequence[Sample]) -> Batch:
        centers, sizes = pad_stack([sample.data["centers"] for sample in samples])
        groups, _ = pad_stack([sample.data["groups"] for sample in samples])
        batch: Batch = {"groups": groups, "centers": centers, "meta": meta_of(samples)}
        if bool((sizes[:, 0] != sizes[0, 0]).any()):
            batch["mask"] = torch.arange(centers.shape[1]) < sizes[:, :1]
        for name in ("extent", "profile")[: self.extra]:
            batch[name] = torch.stack([sample.data[name] for sample in samples])
        return batch

    def forward(self, batch: Batch) -> Tokens:
        groups, pos, mask = batch["groups"], batch["centers"], batch.get("mask")
        # Offsets inside a patch shrink with the density; in units of the usual spacing they stand beside coordinates.
        spacing = (self.config.neighbours / self.config.points) ** 0.5
        absolute = groups[..., :3] + pos[:, :, None]
        points = torch.cat([groups[..., :3] / spacing, absolute, groups[..., 3:]], -1)  # (b, g, k, c)
        x = self.patch(points) + self.position(pos)
        if self.extra:
            x = torch.cat([x, self.whole(batch)], 1)
            pos = torch.cat([pos, pos.new_full((len(pos), self.extra, 3), WHOLE_POSITION)], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), self.extra)], 1) if mask is not None else None
        return Tokens(x, mask, pos)

    def whole(self, batch: Batch) -> Float[Tensor, "b extra d"]:
        """The tokens that describe the whole cloud, 0 to 2 of them."""
        networks = {"extent": self.extent, "profile": self.profile}
        return torch.stack([net(batch[name]) for name, net in networks.items() if net is not None], 1)


def _numbers_network(count: int, config: PointCloudConfig) -> nn.Sequential:
    return nn.Sequential(nn.Linear(count, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.width))


class PatchNetwork(nn.Module):
    """Mini-PointNet: shared layers, maximum, joined to every point, shared layers, maximum (Point-BERT, 3.1).

    Layer norm in place of batch norm: an answer must not depend on the rest of the batch, padding least of all.
    """

    def __init__(self, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        self.second = nn.Sequential(
            nn.Linear(2 * hidden, 2 * hidden), nn.LayerNorm(2 * hidden), nn.GELU(), nn.Linear(2 * hidden, width)
        )

    def forward(self, points: Float[Tensor, "b g k c"]) -> Float[Tensor, "b g d"]:
        x = self.first(points)
        # The joining layer's columns for the maximum see the same in all points of a patch: computed once, that is a
        # third less work than on the concatenation.
        join = self.second[0]
        assert isinstance(join, nn.Linear)
        of_whole, of_point = join.weight.split(x.shape[-1], 1)
        joined = nn.functional.linear(x, of_point, join.bias) + nn.functional.linear(x.amax(2, keepdim=True), of_whole)
        return self.second[1:](joined).amax(2)


class MetaNetwork(nn.Module):
    """1×1 convolutions and a maximum over each neighbourhood (Meta-Transformer, Zhang et al. 2023, point embedding)."""

    def __init__(self, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def forward(self, points: Float[Tensor, "b g k c"]) -> Float[Tensor, "b g d"]:
        return self.layers(points).amax(2)

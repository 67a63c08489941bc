"""Pictures in pretraining: cached maps of the stem's early blocks, whose late blocks are tuned with the encoder.

Early blocks see edges and textures, the same in every picture; late blocks are where small, blurred or grey pictures
differ from those that the stem was trained on. The maps between the two are computed once (`pretrain_cache`).

Shape legend: b pictures, h x w cells of the map, n tokens (one for 2 x 2 cells), c channels, f teacher features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.backbone.encoder import Encoder
from polysense.core.types import Tokens
from polysense.tokenizers.image_grid import cell_centres
from polysense.training.pretrain_cache import EARLY
from polysense.training.pretrain_streams import Stream, principal_axes, rebuilt

TEACH = 3.0  # weight of the teacher's loss: classes alone wear away what they do not name
TUNED = 0.25  # share of batches whose gradient reaches the late blocks


@dataclass(frozen=True, slots=True)
class PictureSet:
    """One cached set.

    `views` hold the same pictures in the same order, cropped or coloured differently; a batch draws from any of them.
    """

    name: str
    views: Sequence[Path]  # files of `pretrain_cache.cache_pictures`
    share: float  # of a batch
    labelled: bool = False
    weight: float = 0.5  # of the cross-entropy
    held_out: int = 0  # last rows, never drawn
    arrays: dict[str, Any] = field(default_factory=dict, compare=False)


class Draw(NamedTuple):
    maps: Float[Tensor, "b 80 h w"]
    teacher: Float[Tensor, "b f"]
    label: Int[Tensor, " b"] | None


class PictureStream(Stream):
    """Losses: teacher, rebuilt hidden tokens, classes; half of the labelled pictures are mixed (CutMix, Yun 2019).

    "teach" is the cosine to the square root of the teacher's pooled features (sparse and heavy-tailed); "rebuild" is
    smooth L1 to what the untouched stem gives at hidden places, which keeps the tuned one near it.
    """

    def __init__(self, name: str, tokenizer: Any, batch_size: int, sets: Sequence[PictureSet], stem_lr: float) -> None:
        """`stem_lr` is the late blocks' learning rate as a share of the rest's; 0 leaves them as they are."""
        from safetensors.torch import load_file

        super().__init__(name, tokenizer, batch_size)
        self.sets, self.stem_lr = list(sets), stem_lr
        for one in self.sets:
            files = [load_file(path) for path in one.views]
            one.arrays["maps"] = [file["maps"] for file in files]
            one.arrays["label"] = files[0]["label"]
            one.arrays["teacher"] = files[0]["teacher"]
        self.late = tokenizer.stem.blocks[EARLY:]
        self.frozen = _frozen_copy(self.late)
        with torch.no_grad():
            sample = torch.cat([
                self.frozen(_channels_first(one.arrays["maps"][0][:400])).flatten(2).transpose(1, 2).flatten(0, 1)
                for one in self.sets
            ])  # fmt: skip
        self.register_buffer("mean", sample.mean(0))
        self.register_buffer("std", sample.std(0).clamp_min(1e-3))
        if sample.shape[-1] > tokenizer.width:
            principal_axes(tokenizer.project, sample)
        self.teach = nn.Linear(tokenizer.width, self.sets[0].arrays["teacher"].shape[-1])
        self.decode = nn.Linear(tokenizer.width, sample.shape[-1])
        self.classify = nn.ModuleDict({
            one.name: nn.Linear(tokenizer.width, int(one.arrays["label"].max()) + 1)
            for one in self.sets if one.labelled
        })  # fmt: skip

    mean: Tensor
    std: Tensor

    def lr_scale(self, name: str) -> float:
        if name.startswith("frozen."):
            return 0.0
        if ".stem." in f".{name}" or name.startswith("late."):
            block = name.split("blocks.")[-1].split(".")[0] if "blocks." in name else ""
            tuned = name.startswith("late.") or (block.isdigit() and int(block) >= EARLY)
            return self.stem_lr if tuned else 0.0
        return 1.0

    def draw(self, one: PictureSet, rng: np.random.Generator) -> Draw:
        arrays = one.arrays
        count = round(self.batch_size * one.share)
        rows = torch.from_numpy(rng.integers(len(arrays["label"]) - one.held_out, size=count))
        view = arrays["maps"][int(rng.integers(len(arrays["maps"])))]
        maps = _channels_first(view[rows])
        flip = torch.from_numpy(rng.random(count) < 0.5)
        maps = torch.where(flip[:, None, None, None], maps.flip(3), maps)
        return Draw(maps, arrays["teacher"][rows].float(), arrays["label"][rows] if one.labelled else None)

    def loss(self, encoder: Encoder, rng: np.random.Generator) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        total = sum(round(self.batch_size * one.share) for one in self.sets)
        for side in sorted({one.arrays["maps"][0].shape[1] for one in self.sets}):
            group = [one for one in self.sets if one.arrays["maps"][0].shape[1] == side]
            draws = [self.draw(one, rng) for one in group]
            mixes = [mix(draw.maps, rng) if draw.label is not None else (draw.maps, None) for draw in draws]
            maps = torch.cat([mixed for mixed, _ in mixes])
            share = len(maps) / total
            pooled, rebuild = self._read(encoder, maps, rng)
            losses["rebuild"] = losses.get("rebuild", 0) + share * rebuild
            whole = torch.cat([torch.ones(len(draw.maps), dtype=torch.bool) if other is None else other.weight >= 1
                               for draw, (_, other) in zip(draws, mixes, strict=True)])  # fmt: skip
            target = torch.cat([draw.teacher for draw in draws])[whole].clamp_min(0).sqrt()
            away = (1 - F.cosine_similarity(self.teach(pooled[whole]), target, dim=-1)).sum() / max(len(target), 1)
            losses["teach"] = losses.get("teach", 0) + TEACH * share * away
            start = 0
            for one, draw, (_, other) in zip(group, draws, mixes, strict=True):
                part = pooled[start : start + len(draw.maps)]
                start += len(draw.maps)
                if draw.label is not None and other is not None:
                    losses[one.name] = one.weight * _mixed_entropy(self.classify[one.name](part), draw.label, other)
        return losses

    def _read(self, encoder: Encoder, maps: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        # Its gradient costs as much as all the rest: a quarter of the steps is enough for its lower rate.
        with torch.set_grad_enabled(rng.random() < TUNED):
            tuned = self.late(maps)
        rows, columns = tuned.shape[-2:]
        x = tuned.flatten(2).transpose(1, 2)
        pos = cell_centres(torch.tensor([[rows, columns]]), rows, columns)
        position = self.tokenizer.position(pos)
        tokens = Tokens(self.tokenizer.project(x) + position, None, pos.expand(len(x), -1, -1))
        shown, hidden = self.hide_some(tokens, rng, position)
        last = encoder(shown).last.x
        masked = hidden.any(1)
        with torch.no_grad():  # of the sequences that are to be rebuilt: half of them
            front = self.frozen(maps[masked]).flatten(2).transpose(1, 2)
        rebuild = rebuilt(self.decode(last[masked]), (front - self.mean) / self.std, hidden[masked])
        return last.mean(1), rebuild


class Other(NamedTuple):
    """The second picture of a mixed one: its row, and the share of the first that is left."""

    row: Int[Tensor, " b"]
    weight: Float[Tensor, " b"]


def mix(maps: Float[Tensor, "b c h w"], rng: np.random.Generator) -> tuple[Float[Tensor, "b c h w"], Other]:
    """Pastes a box of another picture into half of the pictures; boxes keep to whole tokens (two cells)."""
    count, _, height, width = maps.shape
    row = torch.from_numpy(rng.permutation(count))
    keep = torch.ones(count, 1, height, width, dtype=torch.bool)
    for i in np.flatnonzero(rng.random(count) < 0.5):
        side = np.sqrt(rng.uniform(0, 1))
        h, w = round(side * height / 2) * 2, round(side * width / 2) * 2
        top, left = 2 * rng.integers((height - h) // 2 + 1), 2 * rng.integers((width - w) // 2 + 1)
        keep[i, :, top : top + h, left : left + w] = False
    return torch.where(keep, maps, maps[row]), Other(row, keep.float().mean((1, 2, 3)))


def _mixed_entropy(scores: Float[Tensor, "b k"], label: Int[Tensor, " b"], other: Other) -> Tensor:
    first = F.cross_entropy(scores, label, reduction="none", label_smoothing=0.05)
    second = F.cross_entropy(scores, label[other.row], reduction="none", label_smoothing=0.05)
    return (other.weight * first + (1 - other.weight) * second).mean()


def _channels_first(maps: Tensor) -> Tensor:
    """(b, h, w, c) of any precision -> (b, c, h, w), in the memory order that convolutions are fast in."""
    return maps.float().permute(0, 3, 1, 2)


def _frozen_copy(module: nn.Module) -> nn.Module:
    from copy import deepcopy

    return deepcopy(module).requires_grad_(False)

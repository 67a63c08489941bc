"""What the encoder learns from point clouds while it is pretrained: real and generated clouds, cut into patches once.

Cutting a cloud (farthest points, neighbours, statistics) costs ten times what a training step can pay for it, so every
cloud is cut into several varied views beforehand; a step turns and thins them and costs only the networks.

Shape legend: b clouds, g groups, k neighbours, d width, e extent numbers, q profile numbers, f teacher features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.backbone.encoder import Encoder
from polysense.core.types import Tokens
from polysense.data.point_cloud import CLOUD_ENDINGS, Cloud, read_cloud
from polysense.tokenizers.cloud_shape import mirrored
from polysense.tokenizers.point_cloud import PointCloudConfig, PointCloudTokenizer
from polysense.training.pretrain_streams import Stream
from polysense.training.synthetic_clouds import synthetic_cloud

SETS = {"generated": 0.5, "bimnet": 0.1, "dales": 0.1, "furniture": 0.3}  # their shares of a batch
# Weights of the classes' losses. Real classes have few clouds: a heavy loss learns them by heart. Furniture has none.
CLASSES = {"generated": 0.5, "bimnet": 0.1, "dales": 0.1}
TEACH = 0.3  # weight of the renders' teacher: a few hundred pairs too are soon known by heart
SHOWN, HIDDEN, NEIGHBOURS = 20, 8, 16  # patches of a cloud that a step shows and hides, and points of a patch
WHOLE = 0.2  # share of steps that show all patches of fewer clouds, as when the encoder is used
SAMPLES = tuple[str, np.ndarray, int, int]  # set, points (n, 3), class, row of the teacher's features (-1: none)


class CloudStream(Stream):
    """Clouds: which program or class, what a teacher of pictures sees of them, and hidden patches.

    Losses: cross-entropy of the generating program and of classes; cosine to the square root of the features that a
    teacher finds in a render of the same object (one sense teaches another); hidden patches rebuilt as point sets by
    Chamfer distance (Point-MAE, Pang et al. 2022).

    Args:
        samples: What `cloud_samples` gives.
    """

    def __init__(
        self, name: str, tokenizer: PointCloudTokenizer, batch_size: int, samples: Mapping[str, Tensor]
    ) -> None:
        super().__init__(name, tokenizer, batch_size)
        self.samples = dict(samples)
        self.rows = {key: (samples["set"] == i).nonzero()[:, 0] for i, key in enumerate(SETS)}
        self.rows = {key: rows for key, rows in self.rows.items() if len(rows)}
        pooled = 2 * tokenizer.width
        classes = {key: int(samples["label"][rows].max()) + 1 for key, rows in self.rows.items() if key in CLASSES}
        self.classify = nn.ModuleDict({key: nn.Linear(pooled, count) for key, count in classes.items()})
        self.teach = nn.Linear(pooled, samples["teacher"].shape[1]) if len(samples["teacher"]) else None
        self.decode = nn.Linear(tokenizer.width, NEIGHBOURS * 3)

    def loss(self, encoder: Encoder, rng: np.random.Generator) -> dict[str, Tensor]:
        whole = rng.random() < WHOLE
        rows = self._draw(rng, max(self.batch_size // 3, 1) if whole else self.batch_size)
        batch = varied(
            {key: self.samples[key][rows].float() for key in ("groups", "centers", "extent", "profile")}, rng
        )
        count, neighbours = batch["groups"].shape[1:3]
        points = torch.from_numpy(rng.permutation(neighbours)[:NEIGHBOURS])
        groups = batch["groups"][:, :, points]
        order = torch.from_numpy(rng.permuted(np.tile(np.arange(count), (len(rows), 1)), axis=1))  # by cloud
        some = min(SHOWN, count - 1)
        shown, hidden = (order, order[:, :0]) if whole else (order[:, :some], order[:, some : some + HIDDEN])
        seen = self.tokenizer({**batch, "groups": _pick(groups, shown), "centers": _pick(batch["centers"], shown)})
        x = seen.x
        if rng.random() < 0.3:  # the patches alone must tell too
            x = x[:, : shown.shape[1]]
        known = x.shape[1]
        if hidden.shape[1]:
            x = torch.cat([x, self.hidden_token + self.tokenizer.position(_pick(batch["centers"], hidden))], 1)
        last = encoder(Tokens(x, None, x.new_zeros(*x.shape[:2], 3))).last.x
        pooled = torch.cat([last[:, :known].mean(1), last[:, :known].amax(1)], 1)
        losses = self._named(pooled, rows)
        if hidden.shape[1]:
            target = _pick(groups, hidden).flatten(0, 1)
            target = target / target.flatten(1).std(1).clamp_min(1e-4)[:, None, None]
            losses["rebuild"] = 0.3 * chamfer(self.decode(last[:, known:]).view(-1, NEIGHBOURS, 3), target)
        return losses

    def _draw(self, rng: np.random.Generator, count: int) -> Tensor:
        """Rows of a batch: the sets by their shares, clouds of a set at random."""
        keys = list(self.rows)
        shares = np.array([SETS[key] for key in keys])
        counts = rng.multinomial(count, shares / shares.sum())
        picks = [self.rows[key][torch.from_numpy(rng.integers(len(self.rows[key]), size=n))]
                 for key, n in zip(keys, counts, strict=True)]  # fmt: skip
        return torch.cat(picks)

    def _named(self, pooled: Float[Tensor, "b f"], rows: Tensor) -> dict[str, Tensor]:
        losses = {}
        sets, labels, pictures = (self.samples[key][rows] for key in ("set", "label", "picture"))
        for i, key in enumerate(SETS):
            if key in self.classify and bool((of := sets == i).any()):
                error = F.cross_entropy(self.classify[key](pooled[of]), labels[of], label_smoothing=0.1)
                losses[key] = CLASSES[key] * error
        if self.teach is not None and bool((of := pictures >= 0).any()):
            target = self.samples["teacher"][pictures[of]].float().clamp_min(0).sqrt()
            losses["teach"] = TEACH * (1 - F.cosine_similarity(self.teach(pooled[of]), target, dim=-1).mean())
        return losses


def _pick(x: Float[Tensor, "b g ..."], which: Tensor) -> Tensor:
    """Groups by number, for each cloud its own (b, m)."""
    return x[torch.arange(len(x))[:, None], which]


def varied(batch: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
    """Turned by quarters, mirrored (see `mirrored`), jittered, of another size and number of points."""
    swap, flip_x, flip_y = (torch.from_numpy(rng.random(len(batch["centers"])) < 0.5) for _ in range(3))
    out = mirrored(batch, swap, flip_x, flip_y)
    out["groups"] += 0.004 * torch.from_numpy(rng.standard_normal(out["groups"].shape, np.float32))
    for columns in (slice(0, 4), slice(4, 5)):  # logarithms of the sides and the scale; of the number of points
        out["extent"][:, columns] += torch.from_numpy(rng.normal(0, 0.2, (len(swap), 1)).astype(np.float32))
    return out


def chamfer(a: Float[Tensor, "k p 3"], b: Float[Tensor, "k q 3"]) -> Tensor:
    distance = torch.cdist(a, b)
    return distance.amin(1).mean() + distance.amin(2).mean()


def cloud_samples(data: Path, cache: Path | None = None, generated: int = 12_000, seed: int = 0) -> dict[str, Tensor]:
    """Cut views of all clouds to pretrain on; minutes of work, so kept in the file `cache` where one is named.

    Args:
        data: Folder with bimnet10, dales_objects and sweethome_objects.
        cache: A safetensors file, read where it stands, else written.
        generated: Clouds of `synthetic_clouds`.
        seed: Of views and generated clouds.

    Returns:
        groups (r, g, k, 3), centers (r, g, 3), extent (r, e), profile (r, q) in half precision; set, label, picture
        (r,): number in `SETS`, class (-1: none), row of `teacher` (-1: none); teacher (pictures, f).
    """
    from safetensors.torch import load_file, save_file

    if cache is not None and cache.is_file():
        return load_file(cache)
    rng = np.random.default_rng(seed)
    tokenizer = PointCloudTokenizer(PointCloudConfig())
    columns: dict[str, list[Any]] = {}
    for name, points, label, picture in (*_generated(generated, rng), *_real(data)):
        views = 1 if name == "generated" else 4 if name == "dales" else 8
        for _ in range(views):
            cut = tokenizer.cut(Cloud(view(points, rng), {}), name).data
            if len(cut["centers"]) < tokenizer.config.groups:
                continue
            for key, value in cut.items():
                columns.setdefault(key, []).append(value.half())
            for key, number in (("set", list(SETS).index(name)), ("label", label), ("picture", picture)):
                columns.setdefault(key, []).append(torch.tensor(number))
    samples = {key: torch.stack(values) for key, values in columns.items()} | {"teacher": _pictures(data)}
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(samples, cache)
    return samples


def view(points: Float[np.ndarray, "n 3"], rng: np.random.Generator) -> Float[np.ndarray, "m 3"]:
    """A variant: thinned, stretched a little, half of the time turned about z, at times partly hidden or noisy."""
    points = points[rng.random(len(points)) < rng.uniform(0.5, 1)] if len(points) > 400 else points
    points = points * np.exp(rng.normal(0, 0.08, 3))
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        points = points @ turn.T
    center = points.mean(0)
    reach = np.abs(points - center).max()
    if rng.random() < 0.2:  # seen from one side, or behind something
        away = rng.normal(size=3)
        along = (points - center) @ (away / np.linalg.norm(away))
        points = points[along > np.quantile(along, rng.uniform(0, 0.4))]
    return points + rng.normal(0, reach * (0.02 if rng.random() < 0.15 else 0.003), points.shape)


def _generated(count: int, rng: np.random.Generator) -> Iterator[SAMPLES]:
    for _ in range(count):
        points, program = synthetic_cloud(rng, int(np.exp(rng.uniform(np.log(300), np.log(3000)))))
        if rng.random() < 0.5:  # of unit size, as collections of models have it
            points = points / np.abs(points - points.mean(0)).max()
        yield "generated", points, program, -1


def _real(data: Path) -> Iterator[SAMPLES]:
    """BIMNet10 (the three quarters that do not measure) and DALES with classes; furniture (y up) with renders."""
    import h5py

    from polysense.data.dataset import class_folders

    with h5py.File(data / "bimnet10/bimnet10_train.h5") as file:
        clouds, labels = file["data"][:].astype(np.float64), file["label"][:].ravel()
    for i in np.random.default_rng(0).permutation(len(clouds))[: int(len(clouds) * 0.75)]:
        yield "bimnet", clouds[i], int(labels[i]), -1
    dales = class_folders(data / "dales_objects/train", CLOUD_ENDINGS)
    for item in dales.items:
        yield "dales", read_cloud(item.source).xyz, dales.classes.index(item.target), -1
    with np.load(data / "sweethome_objects/train.npz") as arrays:
        for i, points in enumerate(arrays["points"][..., [0, 2, 1]].astype(np.float64)):
            yield "furniture", points, -1, i


@torch.inference_mode()
def _pictures(data: Path) -> Float[Tensor, "r f"]:
    """The teacher's features of the furniture's renders, in the order of the clouds."""
    import pandas as pd
    from PIL import Image
    from torchvision.transforms.v2 import functional as T

    from polysense.training.teachers import Lite0Teacher

    root, teacher, rows = data / "sweethome_objects", Lite0Teacher(), []
    for name in pd.read_csv(root / "train.csv", dtype=str)["icon"]:
        pixels = T.pil_to_tensor(Image.open(root / "icons_train" / name).convert("RGB").resize((160, 160)))
        rows.append(teacher(pixels[None].float())[1].half())
    return torch.cat(rows)

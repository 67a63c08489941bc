"""What the encoder is pretrained on: one stream per sense, each giving batches and its own loss.

Shape legend: b sequences, n tokens, d width, c front channels, f teacher features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.backbone.encoder import Encoder
from polysense.core.types import Sample, Tokens
from polysense.heads.pool import masked_statistic
from polysense.tokenizers.base import Tokenizer
from polysense.tokenizers.stems import YamnetStem

COLUMNS = 6  # tokens of one time step of the YAMNet stem
MASKED = 0.4  # share of tokens that are hidden and reconstructed


class Stream(nn.Module):
    """A sense: owns the tokenizer, light decoders and heads that only pretraining needs."""

    tokenizer: Any

    def __init__(self, name: str, tokenizer: Tokenizer, batch_size: int) -> None:
        super().__init__()
        self.name, self.tokenizer, self.batch_size = name, tokenizer, batch_size
        self.hidden_token = nn.Parameter(torch.zeros(tokenizer.width))

    def loss(self, encoder: Encoder, rng: np.random.Generator) -> dict[str, Tensor]:
        """Named losses of one batch; the sum of all is minimised."""
        raise NotImplementedError

    def hide(self, tokens: Tokens, rng: np.random.Generator, keep_positions: Tensor) -> tuple[Tokens, Tensor]:
        """Replaces a random share of tokens by one learned token (position kept); returns which (b, n)."""
        hidden = torch.from_numpy(rng.random(tokens.x.shape[:2]) < MASKED) & tokens.dense_mask()
        x = torch.where(hidden.unsqueeze(-1), self.hidden_token + keep_positions, tokens.x)
        return tokens.replace(x), hidden

    def hide_some(self, tokens: Tokens, rng: np.random.Generator, position: Tensor) -> tuple[Tokens, Tensor]:
        """Hides tokens of half the sequences; the others stay whole, as they are when the encoder is used."""
        shown, hidden = self.hide(tokens, rng, position)
        some = torch.from_numpy(rng.random(len(hidden)) < 0.5)[:, None]
        return tokens.replace(torch.where(some.unsqueeze(-1), shown.x, tokens.x)), hidden & some


def rebuilt(built: Float[Tensor, "b n c"], true: Float[Tensor, "b n c"], hidden: Tensor) -> Tensor:
    """Smooth L1 at hidden places; 0 where a small batch hides nothing (a mean would not be a number)."""
    error = F.smooth_l1_loss(built[hidden], true[hidden], reduction="sum")
    return error / max(int(hidden.sum()) * true.shape[-1], 1)


class FrontStream(Stream):
    """Sounds whose front tokens and teacher features are cached (`pretrain_cache`).

    Losses: cosine to the square root of the teacher's pooled features (they are sparse and heavy-tailed), smooth-L1 to
    the hidden tokens' own front features, the teacher's tags where a cache has "scores", and cross-entropy where it has
    labels.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        batch_size: int,
        caches: Mapping[str, tuple[Path, float, bool]],
        pos: Float[Tensor, "n p"],
    ) -> None:
        """`caches`: name -> (file, share of a batch, labelled); `pos` in the units of the position embedding."""
        from safetensors.torch import load_file

        super().__init__(name, tokenizer, batch_size)
        self.caches = {key: load_file(path) for key, (path, _, _) in caches.items()}
        self.shares = {key: share for key, (_, share, _) in caches.items()}
        self.pos = pos
        first = next(iter(self.caches.values()))
        sample = torch.cat([cache["tokens"][:2000].float() for cache in self.caches.values()])
        sample = sample.unflatten(1, (-1, COLUMNS))
        # Of each column by itself: the late ones are another layer's.
        self.register_buffer("mean", sample.mean((0, 1)))
        self.register_buffer("std", sample.std((0, 1)).clamp_min(1e-3))
        principal_axes(tokenizer.project.early, sample[:, :, : YamnetStem.bands].flatten(0, 2))
        principal_axes(tokenizer.project.late, sample[:, :, YamnetStem.bands :].flatten(0, 2))
        self.teach = nn.Linear(tokenizer.width, first["teacher"].shape[-1])
        self.decode = nn.Linear(tokenizer.width, first["tokens"].shape[-1])
        tagged = [cache["scores"].shape[-1] for cache in self.caches.values() if "scores" in cache]
        self.tag = nn.Linear(tokenizer.width, tagged[0]) if tagged else None
        if self.tag is not None:
            nn.init.constant_(self.tag.bias, -5.0)  # most tags are absent
        self.classify = nn.ModuleDict({
            key: nn.Linear(tokenizer.width, int(self.caches[key]["label"].max()) + 1)
            for key, (_, _, labelled) in caches.items() if labelled
        })  # fmt: skip

    mean: Tensor
    std: Tensor

    def loss(self, encoder: Encoder, rng: np.random.Generator) -> dict[str, Tensor]:
        fronts, teachers, real, labels, scores = [], [], [], {}, {}
        start = 0
        for key, cache in self.caches.items():
            count = round(self.batch_size * self.shares[key])
            rows = torch.from_numpy(rng.integers(len(cache["tokens"]), size=count))
            fronts.append(cache["tokens"][rows].float())
            teachers.append(cache["teacher"][rows].float())
            real.append(self._real(cache, rows))
            if key in self.classify:
                labels[key] = (slice(start, start + count), cache["label"][rows])
            if self.tag is not None and "scores" in cache:
                scores[key] = (slice(start, start + count), cache["scores"][rows].float())
            start += count
        front, teacher = torch.cat(fronts), torch.cat(teachers)
        position = self.tokenizer.position(self.pos[None])
        pos = self.pos.expand(len(front), -1, -1)
        cells = front.unflatten(1, (-1, COLUMNS))
        tokens = Tokens(self.tokenizer.project(cells).flatten(1, 2) + position, torch.cat(real), pos)
        shown, hidden = self.hide_some(tokens, rng, position)
        last = encoder(shown).last.x
        pooled = masked_statistic(tokens.replace(last), "mean")
        losses = {"teach": 1 - F.cosine_similarity(self.teach(pooled), teacher.clamp_min(0).sqrt(), dim=-1).mean()}
        losses["rebuild"] = rebuilt(self.decode(last), ((cells - self.mean) / self.std).flatten(1, 2), hidden)
        for key, (part, label) in labels.items():
            losses[key] = 0.3 * F.cross_entropy(self.classify[key](pooled[part]), label, label_smoothing=0.1)
        for key, (part, score) in scores.items():
            assert self.tag is not None
            error = F.binary_cross_entropy_with_logits(self.tag(pooled[part]), score, reduction="none")
            losses[f"{key} tags"] = 0.03 * error.sum(-1).mean()
        return losses

    def _real(self, cache: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Which tokens (rows, n) are of sound and not of the silence behind it, where a cache tells its frames."""
        cells = self.pos.shape[0]
        if "frames" not in cache:
            return torch.ones(len(rows), cells, dtype=torch.bool)
        first = torch.arange(cells) // COLUMNS * self.tokenizer.stem.stride
        return first < cache["frames"][rows, None].clamp_min(1)


def principal_axes(project: nn.Linear, sample: Float[Tensor, "k c"]) -> None:
    """Starts a projection to fewer channels as the sample's principal axes (front features lose least)."""
    centred = sample - sample.mean(0)
    _, _, axes = torch.pca_lowrank(centred[::4], q=project.out_features, center=False)
    scale = (centred @ axes).std()
    project.weight.data.copy_(axes.T / scale)
    project.bias.data.copy_(-(sample.mean(0) @ axes) / scale)


class SampleStream(Stream):
    """Inputs that the tokenizer reads at every step: series, tables.

    Args:
        samples: Decoded samples; a batch draws from them at random.
        labels: Class numbers, -1 where there is none.
    """

    def __init__(
        self, name: str, tokenizer: Tokenizer, batch_size: int, samples: Sequence[Sample], labels: Sequence[int]
    ) -> None:
        super().__init__(name, tokenizer, batch_size)
        self.samples, self.labels = list(samples), torch.tensor(labels)
        self.classify = nn.Linear(tokenizer.width, int(self.labels.max()) + 1) if self.labels.max() >= 0 else None

    def draw(self, rng: np.random.Generator) -> tuple[dict[str, Any], Tensor]:
        rows = rng.integers(len(self.samples), size=self.batch_size)
        return self.tokenizer.collate([self.samples[i] for i in rows]), self.labels[torch.from_numpy(rows)]

    def supervised(self, pooled: Float[Tensor, "b d"], labels: Tensor) -> dict[str, Tensor]:
        known = labels >= 0
        if self.classify is None or not known.any():
            return {}
        return {"class": 0.3 * F.cross_entropy(self.classify(pooled[known]), labels[known])}


class SeriesStream(SampleStream):
    """Univariate windows: hidden patches are rebuilt, and the steps after the window are forecast (b, horizon)."""

    def __init__(self, name: str, tokenizer: Any, batch_size: int, windows: Any, horizon: int) -> None:
        nn.Module.__init__(self)
        Stream.__init__(self, name, tokenizer, batch_size)
        self.windows, self.horizon = windows, horizon
        self.decode = nn.Linear(tokenizer.width, tokenizer.patch)
        self.forecast = nn.Linear(2 * tokenizer.width, horizon)

    def loss(self, encoder: Encoder, rng: np.random.Generator) -> dict[str, Tensor]:
        pairs = [pair for _ in range(self.batch_size) for pair in self.windows(rng)]
        batch = self.tokenizer.collate([sample for sample, _ in pairs])
        loc = torch.tensor([about["loc"][0] for about in batch["meta"]])[:, None]
        scale = torch.tensor([about["scale"][0] for about in batch["meta"]])[:, None]
        future = torch.stack([torch.as_tensor(target, dtype=torch.float32) for _, target in pairs])
        future = ((future - loc) / scale).clamp(-8, 8)
        tokens = self.tokenizer(batch)
        shown, hidden = self.hide(tokens, rng, torch.zeros(()))
        last = encoder(shown).last.x
        step, patch = self.tokenizer.stride, self.tokenizer.patch
        pieces = batch["values"][..., 0].unfold(1, patch, step)
        pooled = torch.cat([last[:, -1], last.mean(1)], -1)
        known = future.isfinite()
        error = F.smooth_l1_loss(self.forecast(pooled), torch.where(known, future, 0.0), reduction="none")
        return {"rebuild": F.smooth_l1_loss(self.decode(last)[hidden], pieces[hidden]),
                "forecast": (error * known).sum() / known.sum().clamp_min(1)}  # fmt: skip


class TableStream(Stream):
    """Rows of several tables, one table a step: the class of its target, with columns hidden at random.

    Every table has a tokenizer of its own, thrown away afterwards; what they share is the encoder.
    """

    def __init__(self, name: str, tables: Sequence[SampleStream]) -> None:
        nn.Module.__init__(self)
        Stream.__init__(self, name, tables[0].tokenizer, tables[0].batch_size)
        self.tables = nn.ModuleList(tables)

    def loss(self, encoder: Encoder, rng: np.random.Generator) -> dict[str, Tensor]:
        table = self.tables[int(rng.integers(len(self.tables)))]
        assert isinstance(table, SampleStream)
        batch, labels = table.draw(rng)
        shown, _ = table.hide(table.tokenizer(batch), rng, torch.zeros(()))
        return table.supervised(encoder(shown).last.x.mean(1), labels)

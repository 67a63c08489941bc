"""Streams that read any data: what a configuration of `polysense pretrain` builds, for every sense but tables.

Shape legend: b sequences, n tokens, d width, p coordinates, k values of a token.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from polysense.backbone.encoder import Encoder
from polysense.core.errors import InputError
from polysense.core.types import Tokens
from polysense.tokenizers.positions import CoordinateEmbedding
from polysense.training.pretrain_draws import Draw, Draws
from polysense.training.pretrain_streams import Stream
from polysense.training.pretrain_targets import TARGETS, Target, chamfer_loss
from polysense.training.pretrain_teachers import PictureTeacher

COORDINATES = {"image": 2, "video": 3, "audio": 2, "point_cloud": 3, "time_series": 1}
WHOLE = 0.5  # share of the inputs that stay whole where hidden tokens are rebuilt: as they will be when used
TEMPERATURE = 0.1  # of the contrast


class DrawnStream(Stream):
    """Batches by key, read ahead by workers where the configuration says so.

    Args:
        name: The sense.
        tokenizer: What learns.
        draws: Key -> batch.
        weights: Losses by name, each with its weight.
    """

    def __init__(self, name: str, tokenizer: Any, draws: Any, weights: Mapping[str, float]) -> None:
        super().__init__(name, tokenizer, getattr(draws, "count", 1))
        self.draws, self.weights = draws, dict(weights)
        self.stem_scale = 1.0
        self.saved: dict[str, Any] = {}  # options of the tokenizer that differ from the default, written beside it
        self.notes: dict[str, float] = {}  # counts for the log
        self._ahead: Iterator[Draw | InputError] | None = None

    @property
    def device(self) -> torch.device:
        return self.hidden_token.device

    def lr_scale(self, name: str) -> float:
        """Factor of the learning rate of one of the stream's parameters; 0 leaves it as it is."""
        return self.stem_scale if name.startswith("tokenizer.stem.") else 1.0

    def begin(self, keys: Iterable[tuple[int, ...]], workers: int) -> None:
        """From here on batches come in the order of these keys."""
        ahead: Any = _Ahead(self.draws)
        if workers:
            sampler: Any = keys
            self._ahead = iter(DataLoader(ahead, batch_size=None, sampler=sampler, num_workers=workers))
        else:
            self._ahead = map(ahead.__getitem__, keys)

    def next(self, rng: np.random.Generator) -> Draw:
        """The next batch, on the stream's device; drawn from `rng` where no keys were given."""
        draw = self.draws[tuple(rng.integers(2**31, size=4).tolist())] if self._ahead is None else next(self._ahead)
        if isinstance(draw, InputError):
            raise draw
        self.notes = {"unreadable": float(draw.unreadable)} if draw.unreadable else {}
        return _moved(draw, self.device)

    def weighed(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.weights[name] * loss for name, loss in losses.items()}


class _Ahead:
    """Batches by key, or the error that stands for one: a loader would send it on as a traceback."""

    def __init__(self, draws: Any) -> None:
        self.draws = draws

    def __getitem__(self, key: tuple[int, ...]) -> Draw | InputError:
        try:
            return self.draws[key]
        except InputError as error:
            return error


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: _moved(one, device) for name, one in value.items()}
    if isinstance(value, tuple):
        moved = [_moved(one, device) for one in value]
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    return value


class SenseStream(DrawnStream):
    """Images, clips, sounds, clouds, series: hidden tokens rebuilt, and further losses on the mean of the tokens.

    Args:
        name: The sense.
        tokenizer: Its stem is frozen where `stem_scale` is 0; hidden tokens are then rebuilt as the stem gave them,
            which protects what it knows, else as raw values.
        draws: Batches.
        weights: Losses and their weights.
        classes: Number of classes of each set; 0 where labels do not enter.
        masked: Share of the tokens that are hidden.
        stem_scale: Factor of the learning rate of the stem.
        teacher: Of images.
        lesson: Widths of a sound teacher's features and answers.
        horizon: Steps to forecast.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        draws: Draws,
        weights: Mapping[str, float],
        *,
        classes: Iterable[int] = (),
        masked: float = 0.4,
        stem_scale: float = 1.0,
        teacher: PictureTeacher | None = None,
        lesson: tuple[int, int] | None = None,
        horizon: int = 0,
    ) -> None:
        super().__init__(name, tokenizer, draws, weights)
        width, self.masked, self.stem_scale = tokenizer.width, masked, stem_scale
        self.place = CoordinateEmbedding(COORDINATES[name], width)
        self.front = stem_scale == 0
        self._seen: Tensor | None = None
        if self.front:
            tokenizer.project.register_forward_hook(self._see)
        if "rebuild" in weights:
            self.decode = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self._values()))
        self.classify = nn.ModuleDict({f"set{i}": nn.Linear(width, count) for i, count in enumerate(classes)
                                       if count and "classes" in weights})  # fmt: skip
        if "contrast" in weights:
            self.compare = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 128))
        # A teacher is no part of the model: neither trained nor averaged nor saved.
        self.teachers = [] if teacher is None else [teacher]
        wide = (teacher.features, teacher.answers) if teacher else lesson
        if wide and "teacher" in weights:
            self.teach = nn.Linear(width, wide[0])
        if wide and wide[1] and "answers" in weights:
            self.answer = nn.Linear(width, wide[1])
        if "forecast" in weights:
            self.forecast = nn.Linear(2 * width, horizon)

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen = inputs[0].detach().float()

    def _values(self) -> int:
        """Values of a token to rebuild."""
        if self.front:
            return int(self.tokenizer.project.in_features)
        with torch.no_grad():
            draw = self.draws[(0, 0, 0, 0)]
            return self._target(draw.batch, self.tokenizer(draw.batch)).values.shape[-1]

    def _target(self, batch: dict[str, Any], tokens: Tokens) -> Target:
        if not self.front:
            return TARGETS[self.name](self.tokenizer, batch, tokens)
        assert self._seen is not None
        seen, self._seen = self._seen.flatten(1, -2), None
        return Target(F.layer_norm(seen, seen.shape[-1:]), tokens.dense_mask())

    def loss(self, encoder: Encoder, rng: np.random.Generator) -> dict[str, Tensor]:
        draw = self.next(rng)
        tokens = self.tokenizer(draw.batch)
        target = self._target(draw.batch, tokens) if "rebuild" in self.weights else None
        shown, hidden = self._hide(tokens, target, rng)
        features = encoder(shown).last
        last, pooled = features.x, mean_of(features)
        losses: dict[str, Tensor] = {}
        if target is not None:
            losses["rebuild"] = self._rebuild(last, target, hidden)
        if self.classify:
            losses["classes"] = self._classes(pooled, draw)
        if "contrast" in self.weights:
            losses["contrast"] = contrast(self.compare(pooled))
        losses |= self._lessons(pooled, draw)
        if draw.future is not None and "forecast" in self.weights:
            known = draw.future.isfinite()
            said = self.forecast(torch.cat([last[:, -1], pooled], -1)).float()
            error = F.smooth_l1_loss(said, torch.where(known, draw.future, 0.0), reduction="none")
            losses["forecast"] = (error * known).sum() / known.sum().clamp_min(1)
        return self.weighed(losses)

    def _hide(self, tokens: Tokens, target: Target | None, rng: np.random.Generator) -> tuple[Tokens, Tensor]:
        """Some tokens of some inputs become one learned vector and their place."""
        able = tokens.dense_mask() if target is None else target.able
        b, n = able.shape
        whole = WHOLE if target is not None else 1.0
        if "contrast" in self.weights and not varied(self.name):
            whole = 0.0  # what is hidden is all that tells the two views apart
        drawn = (rng.random((b, n)) < self.masked) & (rng.random((b, 1)) >= whole)
        hidden = torch.from_numpy(drawn).to(able.device) & able
        place = self.place(coordinates(self.name, tokens.pos, self.tokenizer))
        return tokens.replace(torch.where(hidden.unsqueeze(-1), self.hidden_token + place, tokens.x)), hidden

    def _rebuild(self, last: Float[Tensor, "b n d"], target: Target, hidden: Bool[Tensor, "b n"]) -> Tensor:
        built, wanted = self.decode(last[hidden]).float(), target.values[hidden]
        if not len(built):
            return built.sum()  # nothing was hidden: zero, with a gradient
        if self.name == "point_cloud":
            return chamfer_loss(built, wanted)
        return F.smooth_l1_loss(built, wanted)

    def _classes(self, pooled: Float[Tensor, "b d"], draw: Draw) -> Tensor:
        total = pooled.sum() * 0.0
        for name, head in self.classify.items():
            rows = (draw.source == int(name[3:])) & (draw.label >= 0)
            if rows.any():
                part = F.cross_entropy(
                    head(pooled[rows]).float(), draw.label[rows], label_smoothing=0.1, reduction="sum"
                )
                total = total + part / len(pooled)
        return total

    def _lessons(self, pooled: Float[Tensor, "b d"], draw: Draw) -> dict[str, Tensor]:
        """Cosine to the teacher's features; cross-entropy to its answers."""
        if self.teachers and draw.pictures is not None:
            features, answers = self.teachers[0](draw.pictures)
        elif draw.lesson is not None:
            features, answers = draw.lesson
        else:
            return {}
        losses = {}
        if hasattr(self, "teach"):
            losses["teacher"] = 1 - F.cosine_similarity(self.teach(pooled).float(), features, dim=-1).mean()
        if hasattr(self, "answer") and answers is not None:
            said = self.answer(pooled).float()
            losses["answers"] = (F.cross_entropy(said, answers.softmax(-1)) if self.teachers
                                 else F.binary_cross_entropy_with_logits(said, answers))  # fmt: skip
        return losses


def varied(modality: str) -> bool:
    """Whether inputs of a modality can be augmented."""
    from polysense.training.augment import AUGMENTATIONS

    return modality in AUGMENTATIONS


def mean_of(tokens: Tokens) -> Float[Tensor, "b d"]:
    """Mean of the real tokens."""
    if tokens.mask is None:
        return tokens.x.mean(1)
    real = tokens.mask.unsqueeze(-1)
    return torch.where(real, tokens.x, 0.0).sum(1) / real.sum(1).clamp_min(1)


def coordinates(name: str, pos: Float[Tensor, "b n p"], tokenizer: Any) -> Float[Tensor, "b n p"]:
    """Positions of tokens in units of about one, by sense."""
    if name == "video":  # a share of the clip
        longest = pos[..., :1].amax(1, keepdim=True).clamp_min(1e-6)
        return torch.cat([pos[..., :1] / longest, pos[..., 1:]], -1)
    if name == "audio":
        return pos / pos.new_tensor([10.0, 1.0])
    return pos / tokenizer.config.context if name == "time_series" else pos


def contrast(vectors: Float[Tensor, "b d"]) -> Tensor:
    """Two views of an input find each other among all of the batch (InfoNCE, van den Oord et al. 2018; CLIP's form)."""
    first, second = F.normalize(vectors.float(), dim=-1).chunk(2)
    likeness = first @ second.T / TEMPERATURE
    own = torch.arange(len(first), device=vectors.device)
    return (F.cross_entropy(likeness, own) + F.cross_entropy(likeness.T, own)) / 2


def reading_copy(tokenizer: Any, **over: Any) -> Any:
    """A copy of a tokenizer that reads and collates and is never trained nor moved."""
    from dataclasses import replace

    copied = copy.deepcopy(tokenizer)
    copied.config = replace(copied.config, **over)
    return copied

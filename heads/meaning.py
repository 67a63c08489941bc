"""The space of meaning: pooled features -> a unit vector that lies near the words for what was read.

A linear map learns where the anchor, a frozen sentence encoder, puts the words that openly licensed teachers say of an
input, each weighted by its probability (ConSE, Norouzi et al. 2014); `training/meaning.py`. Words themselves need no
head: the anchor reads them.

Shape legend: b sequences, f pooled width, d width of the space, c classes, m names of classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.core.predictions import Embedding, Labels, Prediction
from polysense.heads.base import HEADS, Out
from polysense.heads.pool import Pool, PooledHead, make_mlp


@dataclass(frozen=True, slots=True)
class MeaningConfig:
    """Plain values of a head that leads into the space of meaning."""

    dim: int = 384  # width of the space: the anchor's
    pooling: tuple[str, ...] = ("mean", "max")  # see heads.pool
    layers: tuple[int, ...] = (0,)  # hidden layers to read beside the last
    hidden: int = 0  # width of one hidden layer; 0: a linear map
    scaled: bool = True  # sets pooled features to unit variance; False for projections published without

    def __post_init__(self) -> None:
        for name in ("pooling", "layers"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))


@HEADS.register("meaning")
class MeaningHead(PooledHead):
    """One unit vector per input; the product of two is the cosine."""

    Config: ClassVar[type] = MeaningConfig

    def __init__(self, config: MeaningConfig | NamingConfig, width: int) -> None:
        super().__init__(config, width)
        self.pool = Pool(width, config.pooling, config.layers, config.scaled)
        self.project = make_mlp(self.pool.width, config.hidden, config.dim, 0.0)

    def from_pooled(self, pooled: Float[Tensor, "b f"]) -> Out:
        return {"vector": F.normalize(self.project(pooled), dim=-1)}

    def decode(self, out: Out, meta: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        vectors = F.normalize(out["vector"].float(), dim=-1)  # a mean of windows is shorter
        return [Embedding(vector, str(about["source"]))
                for vector, about in zip(vectors.cpu().numpy(), meta, strict=True)]  # fmt: skip


@dataclass(frozen=True, slots=True)
class NamingConfig:
    """Plain values of a head that names inputs by the words nearest to them."""

    classes: tuple[str, ...]  # answers, in the order of the outputs
    owner: tuple[int, ...] = ()  # for each of the m name vectors its class; empty: one name a class
    none: str | None = None  # the answer where no class fits; None: always one of the classes
    dim: int = 384
    pooling: tuple[str, ...] = ("mean", "max")
    layers: tuple[int, ...] = (0,)
    hidden: int = 0
    scaled: bool = True

    def __post_init__(self) -> None:
        for name in ("classes", "owner", "pooling", "layers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(set(self.classes)) < len(self.classes) or not self.classes:
            raise ValueError(
                f"the names of the classes must differ, and be at least one; got {list(self.classes)[:10]}"
            )
        if not self.owner:
            object.__setattr__(self, "owner", tuple(range(len(self.classes))))
        if set(self.owner) != set(range(len(self.classes))):
            raise ValueError("every class needs at least one name")
        if self.none in self.classes:
            raise ValueError(f"{self.none!r} is one of the classes; choose another word for none of them")


@HEADS.register("naming")
class NamingHead(MeaningHead):
    """Class probabilities from cosines to the names' vectors, and from what examples of the classes add to them.

    The names' vectors are kept with the head, so that naming needs no text model. `fit` are slope and offset of the
    probability that a name fits at all, calibrated with the projection. `more` is zero until examples teach it.
    """

    Config: ClassVar[type] = NamingConfig

    def __init__(self, config: NamingConfig, width: int) -> None:
        super().__init__(config, width)
        count = len(config.classes)
        self.register_buffer("names", F.normalize(torch.randn(len(config.owner), config.dim), dim=-1))
        self.register_buffer("temperature", torch.tensor(0.05))
        self.register_buffer("of_words", torch.tensor(0.05))  # the temperature before examples had a say
        self.register_buffer("fit", torch.tensor([20.0, -8.0]))
        self.more = nn.Linear(self.pool.width, count)
        nn.init.zeros_(self.more.weight)
        nn.init.zeros_(self.more.bias)

    names: Float[Tensor, "m d"]
    temperature: Tensor
    of_words: Tensor
    fit: Float[Tensor, " 2"]

    def from_pooled(self, pooled: Float[Tensor, "b f"]) -> Out:
        return {**super().from_pooled(pooled), "more": self.more(pooled)}

    def cosines(self, vector: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """The best of each class's names."""
        near = F.normalize(vector.float(), dim=-1) @ self.names.float().T
        owner = torch.tensor(self.config.owner, device=near.device).expand(len(near), -1)
        best = near.new_full((len(near), len(self.config.classes)), -1.0)
        return best.scatter_reduce(1, owner, near, "amax")

    def logits(self, out: Out) -> Float[Tensor, "b c"]:
        return self.cosines(out["vector"]) / self.temperature + out["more"]

    def targets(self, labels: Sequence[Any], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Class names; an unknown one raises ValueError."""
        return {"labels": torch.tensor([self.config.classes.index(str(label)) for label in labels])}

    def loss(self, out: Out, target: Out) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.logits(out), target["labels"])}

    def decode(self, out: Out, meta: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        classes, scores = list(self.config.classes), self.logits(out).softmax(-1)
        if self.config.none is not None:
            fits = (self.fit[0] * self.cosines(out["vector"]).amax(1, keepdim=True) + self.fit[1]).sigmoid()
            classes, scores = [*classes, self.config.none], torch.cat([scores * fits, 1 - fits], 1)
        scores, order = scores.sort(dim=-1, descending=True)
        return [Labels([classes[i] for i in places], row, [classes[places[0]]], str(about["source"]))
                for row, places, about in zip(scores.tolist(), order.tolist(), meta, strict=True)]  # fmt: skip

"""Embedding: pooled features as a vector, nothing learned.

Shape legend: b sequences, f pooled width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polysense.core.predictions import Embedding, Prediction
from polysense.heads.base import HEADS, Out
from polysense.heads.pool import Pool, PooledHead


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """Plain values of an embedding head."""

    pooling: tuple[str, ...] = ("mean",)  # see heads.pool
    layers: tuple[int, ...] = ()  # hidden layers to read beside the last
    normalise: bool = True  # to unit length, so that a dot product is the cosine

    def __post_init__(self) -> None:
        for name in ("pooling", "layers"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))


@HEADS.register("embedding")
class EmbeddingHead(PooledHead):
    """One vector per input."""

    Config = EmbeddingConfig

    def __init__(self, config: EmbeddingConfig, width: int) -> None:
        super().__init__(config, width)
        self.pool = Pool(width, config.pooling, config.layers)

    def from_pooled(self, pooled: Float[Tensor, "b f"]) -> Out:
        return {"vector": pooled}

    def decode(self, out: Out, meta: Sequence[Mapping[str, object]]) -> list[Prediction]:
        vectors = out["vector"].float()
        vectors = F.normalize(vectors, dim=-1) if self.config.normalise else vectors
        return [Embedding(vector, str(about["source"]))
                for vector, about in zip(vectors.cpu().numpy(), meta, strict=True)]  # fmt: skip

"""Regression: pooled features -> named numbers.

Shape legend: b sequences, v values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polysense.core.predictions import Prediction, Values
from polysense.heads.base import HEADS, Out
from polysense.heads.pool import Pool, PooledHead, make_mlp


@dataclass(frozen=True, slots=True)
class RegressionConfig:
    """Plain values of a regression head."""

    names: tuple[str, ...] = ("value",)  # of the numbers, in output order
    mean: tuple[float, ...] = ()  # of the training targets; () means 0
    std: tuple[float, ...] = ()  # of the training targets; () means 1
    pooling: tuple[str, ...] = ("mean", "max")  # see heads.pool
    layers: tuple[int, ...] = ()  # hidden layers to read beside the last
    hidden: int = 128  # width of one hidden layer; 0: linear
    dropout: float = 0.0  # in training

    def __post_init__(self) -> None:
        for name in ("names", "mean", "std", "pooling", "layers"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))


@HEADS.register("regression")
class RegressionHead(PooledHead):
    """Predicts standardised targets with a squared loss; answers in the targets' own units."""

    Config = RegressionConfig

    def __init__(self, config: RegressionConfig, width: int) -> None:
        super().__init__(config, width)
        count = len(config.names)
        self.pool = Pool(width, config.pooling, config.layers)
        self.regress = make_mlp(self.pool.width, config.hidden, count, config.dropout)
        self.register_buffer("mean", torch.tensor(config.mean or [0.0] * count), persistent=False)
        self.register_buffer("std", torch.tensor(config.std or [1.0] * count), persistent=False)

    mean: Tensor
    std: Tensor

    def from_pooled(self, pooled: Float[Tensor, "b f"]) -> Out:
        return {"values": self.regress(pooled)}

    def targets(self, labels: Sequence[Any], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Labels: {name: number}, or a number where there is one name."""
        rows = [[float(label[name] if isinstance(label, Mapping) else label) for name in self.config.names]
                for label in labels]  # fmt: skip
        return {"values": (torch.tensor(rows) - self.mean.cpu()) / self.std.cpu()}

    def loss(self, out: Out, target: Out) -> dict[str, Tensor]:
        return {"loss": F.mse_loss(out["values"], target["values"])}

    def decode(self, out: Out, meta: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        values = (out["values"].float() * self.std + self.mean).tolist()
        return [Values(dict(zip(self.config.names, row, strict=True)), about["source"])
                for row, about in zip(values, meta, strict=True)]  # fmt: skip

"""Regression: pooled features -> named numbers, each by itself or in a chain.

Shape legend: b sequences, v values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polysense.core.errors import InputError
from polysense.core.predictions import Prediction, Values
from polysense.heads.base import HEADS, Out
from polysense.heads.pool import Pool, PooledHead, make_mlp
from polysense.heads.regress_chain import Chain


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
    # Each number is predicted from those before it too: in the order of the names, or in one that training finds.
    chain: bool | Literal["found"] = False

    def __post_init__(self) -> None:
        for name in ("names", "mean", "std", "pooling", "layers"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.chain not in (False, True, "found"):
            raise ValueError(f"unknown chain {self.chain!r}; choose true, false or found")
        if self.chain and len(self.names) < 2:
            raise InputError("the chain", f"it needs two targets or more, and {', '.join(self.names)} is alone",
                             "name the cheap ones first: --target CHEAP,COSTLY")  # fmt: skip


@HEADS.register("regression")
class RegressionHead(PooledHead):
    """Predicts standardised targets with a squared loss; answers in the targets' own units.

    In a chain, what is measured of an input (`meta["known"]`, {name: number}) moves the answers that come after it. An
    answer is always a prediction: what was measured is not repeated.
    """

    Config = RegressionConfig

    def __init__(self, config: RegressionConfig, width: int) -> None:
        super().__init__(config, width)
        count = len(config.names)
        self.pool = Pool(width, config.pooling, config.layers)
        self.regress = make_mlp(self.pool.width, config.hidden, count, config.dropout)
        self.chain = Chain(count) if config.chain else None
        self.register_buffer("mean", torch.tensor(config.mean or [0.0] * count), persistent=False)
        self.register_buffer("std", torch.tensor(config.std or [1.0] * count), persistent=False)

    mean: Tensor
    std: Tensor

    def from_pooled(self, pooled: Float[Tensor, "b f"]) -> Out:
        values = self.regress(pooled)
        return {"values": values if self.chain is None else self.chain(values)}

    def targets(self, labels: Sequence[Any], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Labels: {name: number}, or a number where there is one name."""
        rows = [[float(label[name] if isinstance(label, Mapping) else label) for name in self.config.names]
                for label in labels]  # fmt: skip
        return {"values": self.scaled(torch.tensor(rows))}

    def scaled(self, values: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """On the CPU, as targets are."""
        return (values - self.mean.cpu()) / self.std.cpu()

    def loss(self, out: Out, target: Out) -> dict[str, Tensor]:
        """In a chain half of it is that of answers which know the true values before them (teacher forcing)."""
        loss = F.mse_loss(out["values"], target["values"])
        if self.chain is not None:
            loss = (loss + F.mse_loss(self.chain.told(out["values"], target["values"]), target["values"])) / 2
        return {"loss": loss}

    def check_known(self, known: Mapping[str, Any]) -> dict[str, float]:
        if self.chain is None:
            return super().check_known(known)
        for name, value in known.items():
            if name not in self.config.names:
                choice = ", ".join(self.config.names)
                raise InputError("the known values", f"{name!r} is no target", f"choose from {choice}")
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise InputError("the known values", f"{name} cannot be {value!r}", "give a number, or leave it out")
        return {name: float(value) for name, value in known.items()}

    def decode(self, out: Out, meta: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        values = out["values"].float()
        if self.chain is not None:
            known = [[about.get("known", {}).get(name, math.nan) for name in self.config.names] for about in meta]
            values = self.chain.told(values, self.scaled(torch.tensor(known)).to(values.device))
        rows = (values * self.std + self.mean).tolist()
        return [Values(dict(zip(self.config.names, row, strict=True)), about["source"])
                for row, about in zip(rows, meta, strict=True)]  # fmt: skip

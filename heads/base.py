"""The contract of a head: Features -> Out -> loss | Prediction.

Shape legend: b sequences, s samples (a sample may be several sequences: windows of a recording, variates of a series).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polysense.core.errors import InputError
from polysense.core.predictions import Prediction
from polysense.core.registry import Registry
from polysense.core.types import Features

Out = dict[str, Tensor]  # every tensor has the batch as its first axis
HEADS: Registry[type[Head]] = Registry("head")


def cat_padded(parts: Sequence[Float[Tensor, "b ..."]]) -> Float[Tensor, "n ..."]:
    """Joins along the first axis; what is smaller along others is padded with zeros at their end."""
    extent = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    out = parts[0].new_zeros(sum(len(part) for part in parts), *extent)
    start = 0
    for part in parts:
        out[(slice(start, start + len(part)), *(slice(0, size) for size in part.shape[1:]))] = part
        start += len(part)
    return out


class Head(nn.Module):
    """Base class. Subclasses set `Config`, a frozen dataclass of plain values that a bundle can write as JSON."""

    Config: ClassVar[type]

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        if not hasattr(self, "layers"):
            self.layers = tuple(getattr(config, "layers", ()))

    def config_dict(self) -> dict[str, Any]:
        """The configuration as JSON-able values; `Config(**config_dict())` gives it back."""
        return asdict(self.config)

    layers: tuple[int, ...]  # hidden layers of the encoder that `forward` reads beside the last one

    def forward(self, features: Features) -> Out:
        """Turns features into raw outputs; in training mode also into what `loss` alone reads."""
        raise NotImplementedError

    def targets(self, labels: Sequence[Any], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Collates what a data set says about each sequence into tensors on the CPU that `loss` compares with."""
        raise NotImplementedError

    def loss(self, out: Out, target: Out) -> dict[str, Tensor]:
        """Named scalar losses; always has "loss", the one to minimise."""
        raise NotImplementedError

    def merge(self, out: Out, owner: Int[Tensor, " b"], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Joins the sequences of each sample: here the mean of their outputs.

        Args:
            out: Raw outputs of b sequences.
            owner: For each sequence the number of its sample, 0..s-1, ascending.
            meta: Of each sequence.
        """
        count = int(owner.max()) + 1
        if count == len(owner):
            return out
        share = 1.0 / torch.bincount(owner, minlength=count).float()

        def mean(x: Tensor) -> Tensor:
            total = x.new_zeros(count, *x.shape[1:]).index_add_(0, owner, x)
            return total * share.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

        return {name: mean(x) for name, x in out.items()}

    def merge_meta(self, meta: Sequence[Mapping[str, Any]], owner: Int[Tensor, " b"]) -> list[dict[str, Any]]:
        """Joins the meta of each sample's sequences: here that of the first one."""
        first = [(owner == s).nonzero()[0].item() for s in range(int(owner.max()) + 1)]
        return [dict(meta[int(i)]) for i in first]

    def check_known(self, known: Mapping[str, Any]) -> dict[str, float]:
        """Measured values that stand in an input's `meta["known"]`; most heads have no use for any.

        Raises:
            InputError: The head uses none, or a value is of no target or no finite number.
        """
        raise InputError("the known values", "this model uses none", "fit one with --chain, or leave them out")

    def decode(self, out: Out, meta: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """Answers in the user's own coordinates, one per sample; `out` and `meta` are merged."""
        raise NotImplementedError

"""Adapters that are weights of the encoder's own form: factors and summands of its layers, its biases, all of it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from polysense.backbone.adapters.config import METHODS, AdapterConfig, target_layers
from polysense.backbone.encoder import Encoder
from polysense.core.errors import InputError

if TYPE_CHECKING:
    from polysense.backbone.adapters.adapted import AdaptedEncoder


class ScaledLinear(nn.Linear):
    """A linear layer, each output times a learned factor plus a learned summand, which start at 1 and 0."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.factor = nn.Parameter(torch.ones_like(linear.weight[:, 0]))
        self.summand = nn.Parameter(torch.zeros_like(self.factor))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor + self.summand

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """An ordinary layer that computes the same."""
        made = nn.Linear(self.in_features, self.out_features).to(self.weight)
        made.weight.copy_(self.weight * self.factor[:, None])
        made.bias.copy_(self.summand if self.bias is None else self.bias * self.factor + self.summand)
        return made


@METHODS.register("scale")
def scale(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """A factor and a summand for each output of the targets (Nair et al. 2024, DiffScaler; Lian et al. 2022, SSF)."""
    for owner, name, linear in list(target_layers(encoder, config)):
        setattr(owner, name, ScaledLinear(linear))
    return encoder


@METHODS.register("bitfit")
def bitfit(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """Biases alone (Ben Zaken et al. 2022, BitFit)."""
    return _own(encoder, lambda name: name.endswith("bias"))


@METHODS.register("full")
def full(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """All weights, as a copy of their own: what the cheaper methods are measured against."""
    return _own(encoder, lambda name: True)


def _own(encoder: Encoder, chosen: object) -> Encoder:
    """Gives the copy its own tensors where `chosen(name)` says so, and lets them learn."""
    for prefix, module in encoder.named_modules():
        for name, parameter in list(module.named_parameters(prefix, recurse=False)):
            if chosen(name):  # type: ignore[operator]
                setattr(module, name.rpartition(".")[2], nn.Parameter(parameter.detach().clone()))
    return encoder


def merged(adapted: AdaptedEncoder) -> Encoder:
    """A plain encoder with its own weights that computes the same.

    Raises:
        InputError: The adapter is more than weights of a plain encoder.
    """
    if adapted.method not in ("scale", "bitfit", "full"):
        problem = f"an adapter of the kind {adapted.method} cannot be merged into the encoder's weights"
        raise InputError(adapted.method, problem, "merge lora, dora, vera, ia3, scale, bitfit or full")
    encoder = copy.deepcopy(adapted.model)
    assert isinstance(encoder, Encoder)
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ScaledLinear):
                setattr(module, name, child.plain())
    encoder.spec = ""
    return encoder.freeze()

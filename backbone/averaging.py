"""Weighed means of weights ("Model soups", Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from polysense.backbone.encoder import Encoder


def average_tensors(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighed mean of tensors of the same names, summed in float64; equal ones stay as they are.

    Args:
        states: Tensors by name.
        weights: One for each state.

    Raises:
        ValueError: Names or shapes differ, or whole numbers and truth values do, of which there is no mean.
    """
    first, made = states[0], {}
    for other in states[1:]:
        if wrong := sorted(name for name in {*first, *other} if name not in first or name not in other
                           or first[name].shape != other[name].shape):  # fmt: skip
            raise ValueError(f"tensors such as {wrong[0]} differ in name or shape")
    for name, value in first.items():
        values = [state[name].to(value.device) for state in states]
        if all(torch.equal(value, other) for other in values):
            made[name] = value.clone()  # not even rounded
        elif not value.is_floating_point():
            raise ValueError(f"{name} holds whole numbers that differ")
        else:
            total = sum(weight * other.double() for weight, other in zip(weights, values, strict=True))
            made[name] = cast(Tensor, total).to(value.dtype)
    return made


def average_encoders(encoders: Sequence[Encoder], weights: Sequence[float]) -> Encoder:
    """A new frozen encoder with the weighed mean of the weights of plain ones.

    Raises:
        ValueError: Their configurations differ.
    """
    config = encoders[0].config
    if any(encoder.config != config for encoder in encoders):
        raise ValueError("the encoders have different shapes")
    made = Encoder(config)
    made.load_state_dict(average_tensors([encoder.state_dict() for encoder in encoders], weights))
    return made.freeze()

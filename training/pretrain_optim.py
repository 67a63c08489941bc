"""How pretraining moves the weights: parameter groups, optimisers, clipping, the schedule, and a law that suggests
a learning rate and a batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from polysense.core.errors import InputError

OPTIMISERS, CLIPS, PRECISIONS = ("adamw", "sgd"), ("norm", "coordinate", "none"), ("no", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """How long and how fast."""

    steps: int = 800
    lr: float = 1e-3  # peak; warmed up, then a cosine
    warmup: int = 50  # steps
    weight_decay: float = 0.05  # of matrices alone
    average: float = 0.995  # decay of the exponential moving average of weights, which is what ships
    save_every: int = 50  # steps between checkpoints
    seed: int = 0
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9  # of sgd; the first beta of adamw
    clip: Literal["norm", "coordinate", "none"] = "norm"  # how gradients are kept small before a step
    clip_at: float = 1.0  # largest norm, or largest size of a single coordinate
    precision: Literal["no", "bf16", "fp16"] = "no"  # of activations, through accelerate; weights stay float32
    accumulate: int = 1  # batches a step, one after the other: a larger batch where memory is short
    workers: int = 0  # processes a stream that read and decode ahead

    def __post_init__(self) -> None:
        for name, choices in (("optimiser", OPTIMISERS), ("clip", CLIPS), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name in ("steps", "save_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("lr", "clip_at"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is above 0, not {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is at least 0, not {getattr(self, name)}")
        if not (0 <= self.average < 1 and 0 <= self.momentum < 1):
            raise ValueError("average and momentum lie in 0 to 1, 1 excluded")


def schedule(step: int, config: PretrainConfig) -> float:
    """The share of the peak learning rate at a step: a linear warm-up, then half a cosine down to 2%."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    share = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))


def make_optimiser(parameters: Sequence[tuple[nn.Parameter, float]], config: PretrainConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over (parameter, factor of the learning rate) pairs; vectors and scalars do not decay."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter, scale in parameters:
        groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (-item[0][0], not item[0][1]))
    options = [{"params": members, "scale": scale, "weight_decay": config.weight_decay if decays else 0.0}
               for (scale, decays), members in ordered]  # fmt: skip
    if config.optimiser == "sgd":
        return torch.optim.SGD(options, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(options, lr=config.lr, betas=(config.momentum, 0.98))


def set_rate(optimiser: Any, step: int, config: PretrainConfig) -> None:
    for group in optimiser.param_groups:
        group["lr"] = config.lr * schedule(step, config) * group.get("scale", 1.0)


def clip(parameters: Sequence[nn.Parameter], config: PretrainConfig) -> None:
    """Keeps gradients small: all of them by one factor ("norm"), or each coordinate by itself ("coordinate").

    In transformers the noise of gradients is heavy-tailed and differs widely from coordinate to coordinate; clipping
    each one is what SGD lacks beside Adam (Zhang et al. 2020, "Why are adaptive methods good for attention models?").
    """
    if config.clip == "norm":
        nn.utils.clip_grad_norm_(parameters, config.clip_at)
    elif config.clip == "coordinate":
        nn.utils.clip_grad_value_(parameters, config.clip_at)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What the step law says."""

    lr: float  # peak learning rate
    batch_tokens: float  # tokens of one step, all senses together


def step_law(parameters: float, tokens: float) -> Suggestion:
    """lr = 1.79 N^-0.713 D^0.307 and batch = 0.58 D^0.571 tokens (Li et al. 2025, "Predictable scale: Part I, Step
    Law").

    Fitted on language models trained with AdamW, of up to about a billion parameters (N, without the vocabulary) and
    100 billion tokens (D): for other senses, smaller models and masked tokens it is a place to begin a search.

    Args:
        parameters: Of the encoder.
        tokens: That the whole training reads.
    """
    if parameters <= 0 or tokens <= 0:
        raise InputError("step law", "parameters and tokens must be above 0", "give a training that reads something")
    return Suggestion(1.79 * parameters**-0.713 * tokens**0.307, 0.58 * tokens**0.571)


def steps_for(batch_tokens: float, suggestion: Suggestion, steps: int) -> int:
    """Steps that read as many tokens as now, at the suggested batch."""
    return max(1, round(steps * batch_tokens / suggestion.batch_tokens))


def scaled(losses: Mapping[str, torch.Tensor], factor: float) -> torch.Tensor:
    """The sum that is minimised."""
    return factor * torch.stack(list(losses.values())).sum()

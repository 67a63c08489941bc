"""What an adapter is asked to be, and the table of the ways to adapt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from polysense.backbone.encoder import Encoder
from polysense.core.registry import Registry

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # of every block


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Plain values of an adapter."""

    method: str = "lora"  # a name in `METHODS`
    rank: int = 8  # of LoRA and DoRA, width of bottlenecks; VeRA takes 32 times as many, which cost it nothing
    alpha: float = 16.0  # LoRA, DoRA: what is added counts alpha / rank
    dropout: float = 0.0  # of what is adapted, in training
    targets: tuple[str, ...] = LINEARS  # linear layers of every block: LoRA, DoRA, VeRA, IA3, scale
    tokens: int = 8  # prompts, or prefixes of a block
    kernel: int = 9  # tokens that the convolution inside of a bottleneck spans
    neighbours: int = 8  # cells around a token: guided

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # JSON has lists
        if self.method not in METHODS:
            raise ValueError(f"unknown adapter {self.method!r}; choose one of: {', '.join(sorted(METHODS))}")
        if unknown := sorted(set(self.targets) - set(LINEARS)):
            raise ValueError(f"an adapter's targets are among {', '.join(LINEARS)}, not {', '.join(unknown)}")
        if min(self.rank, self.tokens, self.kernel, self.neighbours) < 1 or self.kernel % 2 == 0:
            raise ValueError("rank, tokens and neighbours of an adapter are at least 1, and its kernel is odd")


# Each makes of a copy of the encoder, whose weights are the encoder's own tensors, the module that runs in its place;
# what it may learn wants gradients.
Method = Callable[[Encoder, AdapterConfig], nn.Module]
METHODS: Registry[Method] = Registry("adapter")


def shared_copy(encoder: Encoder) -> Encoder:
    """Another tree of modules with the very same tensors, so that parts may be put in without touching the encoder."""
    same = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    return copy.deepcopy(encoder, same)


def target_layers(encoder: Encoder, config: AdapterConfig) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(module, attribute, linear layer) of every target in every block."""
    for block in encoder.blocks:
        for target in config.targets:
            part, _, name = target.partition(".")
            owner = getattr(block, part)
            yield owner, name, getattr(owner, name)

"""What tells the neurons of an encoder apart: the weights around each, or what each says about given inputs.

Shape legend: d width, h heads, m hidden units of an MLP, n neurons, f features of a neuron, t tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polysense.backbone.encoder import Block, Encoder
from polysense.core.types import Tokens


@dataclass(frozen=True, slots=True)
class BlockNeurons:
    """Features of the neurons within one block: of hidden units, of the channels of queries and keys, and of values."""

    mlp: Float[Tensor, "m f"]
    keys: Float[Tensor, "d f"]
    values: Float[Tensor, "d f"]


def blocks_of(encoder: Encoder) -> list[Block]:
    return [cast(Block, block) for block in encoder.blocks]


def inner_weights(encoder: Encoder) -> list[BlockNeurons]:
    """What flows into and out of each neuron within the blocks."""
    found = []
    for block in blocks_of(encoder):
        into = block.attn.qkv.weight
        if block.attn.qkv.bias is not None:
            into = torch.cat([into, block.attn.qkv.bias[:, None]], 1)
        q, k, v = into.chunk(3)
        fc1, fc2 = block.mlp.fc1, block.mlp.fc2
        mlp = torch.cat([fc1.weight, fc1.bias[:, None], fc2.weight.T], 1)
        found.append(BlockNeurons(mlp, torch.cat([q, k], 1), torch.cat([v, block.attn.proj.weight.T], 1)))
    return found


def stream_axis(name: str) -> int | None:
    """The axis along which a parameter of an encoder has the channels of the residual stream; None: along none."""
    if name.endswith(("qkv.bias", "fc1.bias")) or "q_norm" in name or "k_norm" in name:
        return None
    if name.endswith(("qkv.weight", "fc1.weight")):
        return 1
    return 2 if name in ("cls_token", "reg_token") else 0


def stream_weights(encoder: Encoder, inner_order: bool) -> Float[Tensor, "d f"]:
    """All weights of each channel of the residual stream.

    Args:
        encoder: Any.
        inner_order: The neurons within the blocks stand in an order that means something. If not, a channel's weights
            in a layer are sorted by size: what then remains is the same in whatever order these neurons stand.
    """
    found = []
    for name, value in encoder.named_parameters():
        axis = stream_axis(name)
        if axis is None:
            continue
        features = value.movedim(axis, 0).flatten(1) if value.ndim > 1 else value[:, None]
        inner = value.ndim == 2 and not inner_order
        found.append(features.sort(-1).values if inner else features)
    return torch.cat(found, 1)


@dataclass(frozen=True, slots=True)
class Activations:
    """What all neurons say about the same t tokens; the stream as each block leaves it."""

    stream: Float[Tensor, "d f"]
    blocks: list[BlockNeurons]


@torch.no_grad()
def activations(encoder: Encoder, inputs: Sequence[Tokens]) -> Activations:
    """Runs the encoder and listens. Padded places are left out: each sequence runs by itself.

    Args:
        encoder: Any.
        inputs: Batches of tokens.
    """
    heard: dict[nn.Module, list[Tensor]] = {}

    def listen(module: nn.Module, _: object, out: Tensor) -> None:
        heard.setdefault(module, []).append(out.flatten(0, -2).T)

    blocks = blocks_of(encoder)
    hooks = [m.register_forward_hook(listen) for b in blocks for m in (b, b.attn.qkv, b.mlp.act)]
    try:
        for batch in inputs:
            for i, real in enumerate(batch.dense_mask()):
                encoder(Tokens(batch.x[i : i + 1, real], None, batch.pos[i : i + 1, real]))
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for block in blocks:
        q, k, v = torch.cat(heard[block.attn.qkv], 1).chunk(3)
        found.append(BlockNeurons(torch.cat(heard[block.mlp.act], 1), torch.cat([q, k], 1), v))
    return Activations(torch.cat([part for block in blocks for part in heard[block]], 1), found)

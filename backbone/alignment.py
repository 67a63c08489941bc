"""Brings one encoder's neurons into the order of another's, so that averaging the two means something.

A transformer computes the same when the hidden units of an MLP, its attention heads, the channels within a head or the
channels of the residual stream change places, if all weights that touch them do. Encoders that were trained apart
differ by such an order at least. "Model fusion via optimal transport" (Singh & Jaggi 2020) and "Transformer fusion with
optimal transport" (Imfeld et al. 2024) find it as a transport of the one's neurons to the other's, by the weights
around them or by their activations.

Between equally many neurons of equal mass the cheapest transport is a permutation: found exactly, and with it the
encoder computes what it did before. With `soft` above 0 it is the entropic one, a doubly stochastic map that mixes
neurons and changes what is computed.

Shape legend: d width, h heads, c channels of a head, m hidden units of an MLP, n neurons of either side, f features of
a neuron. A map is (n, n): row i says which old neurons make up the new neuron i. Costs have the same axes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from polysense.backbone.encoder import Block, Encoder
from polysense.backbone.neurons import BlockNeurons, activations, blocks_of, inner_weights, stream_axis, stream_weights
from polysense.core.types import Tokens

ROUNDS = 10  # at most, of stream and inner parts in turn


@dataclass(frozen=True, slots=True)
class BlockMaps:
    """Maps within a block: of hidden units, of the channels of queries and keys, and of those of values. Channels of
    one head stay together."""

    mlp: Float[Tensor, "m m"]
    keys: Float[Tensor, "d d"]
    values: Float[Tensor, "d d"]


@dataclass(frozen=True, slots=True)
class Aligned:
    """What came out.

    Attributes:
        encoder: The second encoder in the first one's order, frozen.
        stream: The old channel of the residual stream at each new place: tokens must change places alike.
        blocks: Maps within the blocks.
    """

    encoder: Encoder
    stream: Int[Tensor, " d"]
    blocks: list[BlockMaps]


@torch.no_grad()
def align(
    encoder: Encoder,
    to: Encoder,
    *,
    tokens: Sequence[Tokens] = (),
    tokens_to: Sequence[Tokens] | None = None,
    stream: bool = False,
    soft: float = 0.0,
) -> Aligned:
    """Puts the neurons of an encoder in the order of another's.

    Args:
        encoder: Stays as it is.
        to: Of the same configuration.
        tokens: Batches that both read, to compare activations; none: weights are compared.
        tokens_to: The same inputs as `to` reads them, where each encoder has tokenizers of its own.
        stream: The channels of the residual stream too. Encoders that read the same tokens have one order there
            already; with this the result reads the tokens of `to`.
        soft: Entropic regularisation, in mean costs, of MLP units and of channels within heads; 0: permutations. Heads
            and the stream are permuted in any case: a LayerNorm allows nothing else.

    Raises:
        ValueError: The encoders have different shapes, or these are not two readings of the same inputs.
    """
    if encoder.config != to.config:
        raise ValueError("only encoders of the same shape can be aligned")
    if tokens:
        here, there = activations(encoder, tokens), activations(to, tokens if tokens_to is None else tokens_to)
        if here.stream.shape != there.stream.shape:
            raise ValueError("tokens and tokens_to are not as many tokens of the same inputs")
        order = _order(here.stream, there.stream) if stream else torch.arange(encoder.config.width)
        blocks = _match_blocks(encoder, here.blocks, there.blocks, soft)
    else:
        order = _stream_by_weights(encoder, to) if stream else torch.arange(encoder.config.width)
        blocks = _match_blocks(encoder, inner_weights(with_stream(encoder, order)), inner_weights(to), soft)
    return Aligned(with_inner(with_stream(encoder, order), blocks), order, blocks)


def distance(encoder: Encoder, to: Encoder) -> float:
    """Euclidean distance of all weights, in norms of `to`."""
    one, two = (torch.cat([p.detach().flatten() for p in e.parameters()]) for e in (encoder, to))
    return float((one - two).norm() / two.norm())


@torch.no_grad()
def with_stream(encoder: Encoder, order: Int[Tensor, " d"]) -> Encoder:
    """A copy that computes the same on tokens whose channels are put in this order, and answers in this order."""
    made = copy.deepcopy(encoder)
    for name, value in made.named_parameters():
        if (axis := stream_axis(name)) is not None:
            value.copy_(value.index_select(axis, order.to(value.device)))
    made.spec = ""
    return made.freeze()


@torch.no_grad()
def with_inner(encoder: Encoder, maps: Sequence[BlockMaps]) -> Encoder:
    """A copy with the neurons within its blocks mapped; by permutations it computes the same."""
    made = copy.deepcopy(encoder)
    for block, inner in zip(blocks_of(made), maps, strict=True):
        _map_block(block, inner)
    made.spec = ""
    return made.freeze()


def _map_block(block: Block, maps: BlockMaps) -> None:
    fc1, fc2, qkv, proj = block.mlp.fc1, block.mlp.fc2, block.attn.qkv, block.attn.proj
    mlp, keys, values = (one.to(fc1.weight) for one in (maps.mlp, maps.keys, maps.values))
    fc1.weight.copy_(mlp @ fc1.weight)
    fc1.bias.copy_(mlp @ fc1.bias)
    fc2.weight.copy_(fc2.weight @ mlp.T)
    for linear in (qkv.weight, qkv.bias):
        if linear is not None:
            q, k, v = linear.chunk(3)
            linear.copy_(torch.cat([keys @ q, keys @ k, values @ v]))
    proj.weight.copy_(proj.weight @ values.T)


def _stream_by_weights(encoder: Encoder, to: Encoder) -> Int[Tensor, " d"]:
    """First by what no order within blocks changes; then by blocks and stream in turn, as in "Git Re-Basin" (Ainsworth
    et al. 2023), while something moves."""
    order = _order(stream_weights(encoder, False), stream_weights(to, False))
    for _ in range(ROUNDS):
        blocks = _match_blocks(encoder, inner_weights(with_stream(encoder, order)), inner_weights(to), 0.0)
        moved = _order(stream_weights(with_inner(encoder, blocks), True), stream_weights(to, True))
        if torch.equal(moved, order):
            break
        order = moved
    return order


def _match_blocks(
    encoder: Encoder, here: Sequence[BlockNeurons], there: Sequence[BlockNeurons], soft: float
) -> list[BlockMaps]:
    heads, fixed = encoder.config.heads, encoder.config.qk_norm
    found = []
    for one, two in zip(here, there, strict=True):
        keys, values = _by_head(costs(one.keys, two.keys), heads), _by_head(costs(one.values, two.values), heads)
        found.append(BlockMaps(transport(costs(one.mlp, two.mlp), soft), *_match_heads(keys, values, soft, fixed)))
    return found


def _by_head(cost: Float[Tensor, "d d"], heads: int) -> Float[Tensor, "h h c c"]:
    return cost.unflatten(1, (heads, -1)).unflatten(0, (heads, -1)).transpose(1, 2)


def _match_heads(
    keys: Float[Tensor, "h h c c"], values: Float[Tensor, "h h c c"], soft: float, fixed: bool
) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """The cheapest assignment of heads, where each pair of heads costs what its channels cost at their best.

    Args:
        keys, values: Costs, by new head, old head, new channel, old channel.
        soft: As in `align`.
        fixed: Queries and keys have norms whose weights all heads share, so that their channels keep their places.
    """
    h, _, c, _ = keys.shape

    def best(cost: Float[Tensor, "c c"], soft: float, fixed: bool = False) -> Float[Tensor, "c c"]:
        return torch.eye(c) if fixed else transport(cost, soft)

    price = torch.tensor([[float((best(keys[i, j], 0, fixed) * keys[i, j]).sum() +
                                 (best(values[i, j], 0) * values[i, j]).sum())
                           for j in range(h)] for i in range(h)])  # fmt: skip
    found = torch.zeros(2, h, c, h, c)
    for i, j in zip(*linear_sum_assignment(price.numpy()), strict=True):
        found[0, i, :, j], found[1, i, :, j] = best(keys[i, j], soft, fixed), best(values[i, j], soft)
    return found[0].reshape(h * c, h * c), found[1].reshape(h * c, h * c)


def costs(here: Float[Tensor, "n f"], there: Float[Tensor, "n f"]) -> Float[Tensor, "n n"]:
    """Squared distances of features: new neurons (`there`) by old ones."""
    one, two = here.double().cpu(), there.double().cpu()  # near neurons would drown in float32's rounding
    return (two.square().sum(1)[:, None] + one.square().sum(1) - 2 * two @ one.T).clamp_min(0)


def transport(cost: Float[Tensor, "n n"], soft: float) -> Float[Tensor, "n n"]:
    """The map of least cost: a permutation, or with `soft` the entropic one."""
    if soft > 0:
        return sinkhorn(cost, soft).float()
    found = torch.zeros(cost.shape)
    found[linear_sum_assignment(cost.numpy())] = 1
    return found


def _order(here: Float[Tensor, "n f"], there: Float[Tensor, "n f"]) -> Int[Tensor, " n"]:
    return transport(costs(here, there), 0).argmax(1)


def sinkhorn(cost: Float[Tensor, "n n"], soft: float, steps: int = 1000) -> Float[Tensor, "n n"]:
    """The doubly stochastic map of least cost minus entropy (Cuturi 2013), in the log domain.

    Args:
        cost: Of moving each old neuron (column) to each new one (row).
        soft: What entropy counts, in mean costs: near 0 a permutation, large the mean of all neurons.
        steps: At most; it ends where the rows' sums are 1 to 1e-6.
    """
    score = -cost.double() / (soft * cost.mean().double()).clamp_min(1e-12)
    rows = torch.zeros(len(cost), 1, dtype=torch.float64)
    for _ in range(steps):
        columns = -(score + rows).logsumexp(0, keepdim=True)
        plan = score + rows + columns
        away = plan.logsumexp(1, keepdim=True)
        if float(away.abs().max()) < 1e-6:
            break
        rows = rows - away
    return plan.exp()

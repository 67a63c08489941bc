"""Token merging in a frozen encoder: tokens that say the same become one between attention and MLP of each block.

Bolya et al. 2023, "Token Merging: Your ViT But Faster", without further training: the metric is the mean of the keys
over heads, and attention weighs a merged token as the tokens it stands for (`kernels.tokens`). At the end every token
has the vector of the one it is part of, so that heads of all kinds find what they expect.

It is a way to run an encoder, as an engine is: opt-in, with the weights, the specification and the fingerprint of the
encoder it was made of, and a bundle that is saved names that one. Answers change; see `training.gates` for when to keep
it.

When: wide encoders, or 16 and more tokens a block. One CPU thread, 8 sequences of 197 tokens, time of the plain encoder
divided by this one's, r = 8 and 16: 12 blocks of width 768 1.4 and 1.9; 6 blocks of width 192 1.1 and 1.3, one sequence
alone 0.8 and 1.05; padded batches of width 192 0.6 to 1.1, for the plain encoder leaves padding out at less cost.

Shape legend: b batch, n tokens (with the prefix: class token and registers), m merged tokens, d width, h heads.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polysense.backbone.encoder import Attention, Block, Encoder
from polysense.backbone.packing import Packing, packing_of
from polysense.core.types import Features, Tokens
from polysense.kernels.attention import attention
from polysense.kernels.tokens import chain_places, merge, size_bias, unmerge

# Real tokens that a call must have on average for padding to be left out; with fewer, one padded call costs no more.
WORTH_A_CALL = 128


def merge_tokens_in(encoder: Encoder, r: int | Sequence[int]) -> MergingEncoder:
    """An encoder that makes r tokens fewer in each block.

    Args:
        encoder: A plain one. It is left as it is; weights are shared in memory, flags (frozen, training mode, type and
            device after a move) are not.
        r: Tokens that each sequence loses in a block, at most half of those that are left; or one number for each
            block. 0 everywhere is the plain encoder.

    Raises:
        ValueError: The encoder is of another kind, or attends in windows or with sigmoid weights; or r does not fit.
    """
    return MergingEncoder(encoder, r)


class MergingEncoder(Encoder):
    """See `merge_tokens_in`.

    Attributes:
        merged: Tokens that a sequence loses at most, block by block.
    """

    def __init__(self, encoder: Encoder, r: int | Sequence[int]) -> None:
        if type(encoder) is not Encoder:
            raise ValueError(f"tokens merge in plain encoders only, not in a {type(encoder).__name__}")
        if encoder.config.windows is not None:
            raise ValueError("tokens cannot merge where blocks attend in windows: a merged token has no one place")
        if encoder.config.attention_kind != "softmax":
            raise ValueError("tokens merge under softmax attention only: sigmoid weights do not add up as sizes do")
        nn.Module.__init__(self)
        # Parameters of its own on the same memory, so that freezing or moving one encoder does not touch the other.
        memo = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in encoder.parameters()}
        self.__dict__.update(copy.deepcopy(encoder, memo).__dict__)
        self.merged = _per_block(r, self.config.depth)

    def forward(self, tokens: Tokens, *, layers: Sequence[int] = ()) -> Features:
        """As of `Encoder`: as many tokens come out as went in, with their mask, coordinates and grid.

        Raises:
            ValueError: The width or a layer number does not fit.
        """
        if not any(self.merged):
            return super().forward(tokens, layers=layers)
        if tokens.x.shape[-1] != self.config.width:
            raise ValueError(f"tokens of width {tokens.x.shape[-1]} do not fit an encoder of width {self.config.width}")
        numbers = tuple(self._layer_number(layer) for layer in layers)
        packing = self._packing(tokens.mask)
        if packing is None:
            *outputs, cls = self._run(tokens, numbers)
        else:
            *outputs, cls = self._run_by_length(tokens.x, packing, numbers)
        hidden = {layer: tokens.replace(x) for layer, x in zip(layers, outputs[1:], strict=True)}
        return Features(tokens.replace(outputs[0]), hidden, cls if self.config.class_token else None)

    def _run(self, tokens: Tokens, numbers: tuple[int, ...]) -> list[Tensor]:
        """The last vectors of all tokens, those after each of the blocks asked for, and the first one of the prefix."""
        x, mask = self._with_prefix(tokens)
        x = self.norm_pre(x)
        if mask is not None:  # a NaN there would outlive a weight of 0
            x = x.masked_fill(~mask[..., None], 0.0)
        kept = {0: x[:, self.prefix :]}
        size, place = None, torch.arange(self.prefix, x.shape[1], device=x.device).expand(len(x), -1)
        for i, (block, r) in enumerate(zip(self.blocks, self.merged, strict=True), 1):
            assert isinstance(block, Block)
            added, keys = _attend(block.attn, block.norm1(x), mask, size)
            x = x + block.ls1(added)
            if r:
                found = merge(x, keys, r, size=size, protected=self.prefix, mask=mask)
                x, size, mask, place = found.x, found.size, found.mask, chain_places(place, found.place)
            x = x + block.ls2(block.mlp(block.norm2(x)))
            if i in numbers:
                kept[i] = unmerge(x, place)
        x = self.norm(x)
        return [
            unmerge(x, place),
            *(kept[number] for number in numbers),
            x[:, 0] if self.prefix else x.new_zeros(len(x), 0),
        ]

    def _run_by_length(self, x: Float[Tensor, "b n d"], packing: Packing, numbers: tuple[int, ...]) -> list[Tensor]:
        """As `_run`; sequences of one length run together, without padding and without a mask."""
        runs = [(length, len(list(same))) for length, same in groupby(packing.lengths)]
        parts = packing.pack(x)[0].split([length * count for length, count in runs])
        outputs = []
        for part, (length, count) in zip(parts, runs, strict=True):
            y = part.view(count, length, -1)
            outputs.append(self._run(Tokens(y, None, y.new_zeros(count, length, 0)), numbers))
        *vectors, first = zip(*outputs, strict=True)
        starts = torch.tensor([0, *packing.lengths[:-1]], device=x.device).cumsum(0)
        rows = packing.places[starts] // x.shape[1]
        return [*(packing.unpack(torch.cat([y.flatten(0, 1) for y in same])[None]) for same in vectors),
                torch.cat(first)[rows.argsort()]]  # fmt: skip

    def _packing(self, mask: Bool[Tensor, "b n"] | None) -> Packing | None:
        """How to leave padding out, where it pays; None for a padded run."""
        packing = packing_of(mask) if self.packing else None
        if packing is None or mask is None or len(packing.lengths) < len(mask):  # an empty sequence: rare
            return None
        return packing if sum(packing.lengths) >= WORTH_A_CALL * len(set(packing.lengths)) else None


def _attend(
    part: Attention, x: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"] | None, size: Float[Tensor, "b m"] | None
) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b m d/h"]]:
    """`Attention.forward` in proportion to sizes, and the keys' mean over heads."""
    b, m, d = x.shape
    q, k, v = part.qkv(x).view(b, m, 3, part.heads, d // part.heads).permute(2, 0, 3, 1, 4)
    q, k = part.q_norm(q), part.k_norm(k)
    x = attention(q, k, v, mask=mask, bias=None if size is None else size_bias(size))
    return part.proj(x.transpose(1, 2).reshape(b, m, d)), k.mean(1)


def _per_block(r: int | Sequence[int], depth: int) -> tuple[int, ...]:
    numbers = tuple(r) if isinstance(r, Sequence) else (r,) * depth
    if len(numbers) != depth or any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in numbers):
        raise ValueError(f"r must be a whole number of at least 0, or {depth} of them, one for each block, got {r!r}")
    return numbers

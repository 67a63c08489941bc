"""Encoders with LayerNorm as equal encoders with RMSNorm or compressed RMSNorm (CRMSNorm), without loss.

Jiang et al. 2023, "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers". LayerNorm
is RMSNorm of a vector whose mean was taken off. If the residual stream holds vectors of mean zero throughout, RMSNorm
reads them alike; it does so if its start is centred and each linear layer that adds to it writes centred vectors, which
is a change of its weights.

What is kept beyond the paper: the mean. Hidden layers, and the last one of an encoder without final norm, are the
stream itself, so it is carried beside the centred vector. A stream token x of width d is

- for RMSNorm: x - mean | mean | seven zeros, width d + 8, because rows that are no multiple of eight are slow;
- for CRMSNorm: the first d - 1 entries of x - mean | mean, width d: a change of basis, and no wider than before.

Both are linear in x, so one further row of every writing layer gives the mean. Norms do not read it.

What changes: weight and bias of each LayerNorm within the blocks move into the linear layer behind it, LayerScale into
the one before it. What stays: query-key norms; a norm before the first block (its output is the stream, so its weight
has no linear layer to move to); the final norm's weight and bias. The start is centred at every call, a mean per token:
tokens come from any tokenizer, so there are no embedding weights to centre once and for all.

Shape legend: b batch, n tokens, d width, s width of a stream token, k inputs of a linear layer.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polysense.backbone.encoder import Block, Encoder, LayerScale
from polysense.core.types import Features, Tokens
from polysense.kernels.norms import CRMSNorm, compress, expand, merge_scale_shift
from polysense.kernels.norms.merge import linear_of

_ALIGN = 8  # entries that the mean takes of a row, see above


def to_rms_norm(encoder: Encoder) -> ConvertedEncoder:
    """An encoder of the same answers whose blocks have RMSNorm without weights in place of LayerNorm.

    When to use it: where RMSNorm is the faster kernel. Equal in float32 but for rounding; in half precision what
    rounding adds to the mean is no longer taken off, so compare answers first.

    Args:
        encoder: Any plain `Encoder`; it stays as it is.

    Returns:
        An `Encoder` in all that others rely on, on the same device, frozen where the other is. Its weights, their names
        and its fingerprint are others: keep the original to save, and convert after loading.

    Raises:
        ValueError: It is another kind of encoder (of other mixers, run by onnxruntime, converted already), or a linear
            layer was replaced (by an adapter: merge it first).
    """
    return ConvertedEncoder(encoder, _Centred)


def to_crms_norm(encoder: Encoder) -> ConvertedEncoder:
    """An encoder of the same answers whose blocks have CRMSNorm in place of LayerNorm.

    When to use it: as `to_rms_norm`; linear layers read d - 1 entries, one less. In half precision prefer that one.

    Args:
        encoder: Any plain `Encoder` of width 2 or more; it stays as it is.

    Returns:
        As `to_rms_norm`.

    Raises:
        ValueError: As `to_rms_norm`.
    """
    return ConvertedEncoder(encoder, _Compressed)


class ConvertedEncoder(Encoder):
    """See `to_rms_norm` and `to_crms_norm`."""

    def __init__(self, encoder: Encoder, kind: type[_Stream]) -> None:
        if type(encoder) is not Encoder:
            raise ValueError(f"only a plain Encoder can be converted, not a {type(encoder).__name__}")
        super().__init__(replace(encoder.config, depth=0, windows=None), encoder.spec)
        stream = kind(encoder.config.width)
        self.config, self.packing, self.stream = encoder.config, encoder.packing, stream
        self.cls_token, self.reg_token = copy.deepcopy(encoder.cls_token), copy.deepcopy(encoder.reg_token)
        self.register_module("norm_pre", nn.Sequential(copy.deepcopy(encoder.norm_pre), _Enter(stream)))
        self.blocks = nn.ModuleList(_converted(block, stream) for block in encoder.blocks)
        final = _FinalNorm(encoder.norm, stream) if isinstance(encoder.norm, nn.LayerNorm) else _Leave(stream)
        self.register_module("norm", final)
        self.train(encoder.training)

    def forward(self, tokens: Tokens, *, layers: Sequence[int] = ()) -> Features:
        """As `Encoder.forward`."""
        features = super().forward(tokens, layers=layers)
        hidden = {layer: part.replace(self.stream.leave(part.x)) for layer, part in features.hidden.items()}
        return Features(features.last, hidden, features.cls)


class _Stream(ABC):
    """How a token stands in the residual stream."""

    def __init__(self, width: int) -> None:
        self.width = width

    @abstractmethod
    def enter(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b s"]: ...

    @abstractmethod
    def leave(self, y: Float[Tensor, "*b s"]) -> Float[Tensor, "*b d"]: ...

    @abstractmethod
    def centred(self, y: Float[Tensor, "*b s"]) -> Float[Tensor, "*b d"]:
        """The token without its mean."""

    @abstractmethod
    def read_by(self, block: Block) -> None:
        """Replaces the norms of a copied block, and the linear layers that read them, by those of this stream."""

    def written_by(self, linear: nn.Linear, scale: nn.Module) -> nn.Linear:
        """The layer whose answers are the other's, scaled channel by channel, as a part of the stream."""
        _check_linear(linear)
        factor = scale.gamma.detach().to("cpu", torch.float64) if isinstance(scale, LayerScale) else 1.0
        weight, bias = (x.detach().to("cpu", torch.float64) for x in (linear.weight, linear.bias))
        # What the stream makes of a token it makes of each column of the weights, and of the bias.
        return linear_of(self.enter(weight.T * factor).T, self.enter(bias * factor), linear)


class _Centred(_Stream):
    """For RMSNorm."""

    def enter(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b s"]:
        mean = x.mean(-1, keepdim=True)
        return torch.cat([x - mean, mean, mean.new_zeros(*mean.shape[:-1], _ALIGN - 1)], -1)

    def leave(self, y: Float[Tensor, "*b s"]) -> Float[Tensor, "*b d"]:
        return self.centred(y) + y[..., self.width : self.width + 1]

    def centred(self, y: Float[Tensor, "*b s"]) -> Float[Tensor, "*b d"]:
        return y[..., : self.width]

    def read_by(self, block: Block) -> None:
        for name in ("norm1", "norm2"):
            rms = nn.RMSNorm(self.width, getattr(block, name).eps, elementwise_affine=False)
            block.register_module(name, _Read(rms, self.width))


class _Compressed(_Stream):
    """For CRMSNorm."""

    def enter(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b s"]:
        return torch.cat([compress(x), x.mean(-1, keepdim=True)], -1)

    def leave(self, y: Float[Tensor, "*b s"]) -> Float[Tensor, "*b d"]:
        return self.centred(y) + y[..., -1:]

    def centred(self, y: Float[Tensor, "*b s"]) -> Float[Tensor, "*b d"]:
        return expand(y[..., :-1])

    def read_by(self, block: Block) -> None:
        reads = [
            _Read(CRMSNorm(self.width - 1, norm.eps, elementwise_affine=False), self.width - 1)
            for norm in (block.norm1, block.norm2)
        ]
        block.attn.qkv, block.mlp.fc1 = self._without_last(block.attn.qkv), self._without_last(block.mlp.fc1)
        # Attention counts its width off its input, so that the norm stands within, before the linear layer.
        block.attn.register_module("qkv", nn.Sequential(reads[0], block.attn.qkv))
        block.register_module("norm1", nn.Identity())
        block.register_module("norm2", reads[1])

    @staticmethod
    def _without_last(linear: nn.Linear) -> nn.Linear:
        """Reads e entries: the one left out is minus their sum, so its weight counts against all others."""
        weight = linear.weight.detach().to("cpu", torch.float64)
        return linear_of(weight[:, :-1] - weight[:, -1:], linear.bias.detach(), linear)


class _Enter(nn.Module):
    def __init__(self, stream: _Stream) -> None:
        super().__init__()
        self.stream = stream

    def forward(self, x: Tensor) -> Tensor:
        return self.stream.enter(x)


class _Leave(nn.Module):
    def __init__(self, stream: _Stream) -> None:
        super().__init__()
        self.stream = stream

    def forward(self, y: Tensor) -> Tensor:
        return self.stream.leave(y)


class _Read(nn.Module):
    """A norm of the first `width` entries of a stream token."""

    def __init__(self, norm: nn.Module, width: int) -> None:
        super().__init__()
        self.norm, self.width = norm, width

    def forward(self, y: Float[Tensor, "b n s"]) -> Float[Tensor, "b n w"]:
        return self.norm(y[..., : self.width])


class _FinalNorm(nn.Module):
    """LayerNorm of a token of the stream, whose mean is off already."""

    def __init__(self, norm: nn.LayerNorm, stream: _Stream) -> None:
        super().__init__()
        self.stream, self.eps = stream, norm.eps
        self.weight, self.bias = copy.deepcopy(norm.weight), copy.deepcopy(norm.bias)

    def forward(self, y: Float[Tensor, "b n s"]) -> Float[Tensor, "b n d"]:
        x = self.stream.centred(y)
        return nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.eps) + self.bias


def _converted(block: nn.Module, stream: _Stream) -> Block:
    """A block of the stream; attention, activation and query-key norms are copies."""
    assert isinstance(block, Block)
    for linear in (block.attn.qkv, block.mlp.fc1):
        _check_linear(linear)
    made = copy.deepcopy(block)
    made.attn.qkv = merge_scale_shift(block.norm1.weight, block.norm1.bias, block.attn.qkv)
    made.mlp.fc1 = merge_scale_shift(block.norm2.weight, block.norm2.bias, block.mlp.fc1)
    made.attn.proj = stream.written_by(block.attn.proj, block.ls1)
    made.mlp.fc2 = stream.written_by(block.mlp.fc2, block.ls2)
    for name in ("ls1", "ls2"):
        made.register_module(name, nn.Identity())
    stream.read_by(made)
    return made


def _check_linear(linear: nn.Module) -> None:
    if type(linear) is not nn.Linear:
        raise ValueError(f"the encoder has a {type(linear).__name__} in place of a linear layer; merge adapters first")

"""Encoders whose blocks mix tokens by something else than softmax attention, or by several things in turn.

`build_mixer_encoder(config, ("hyena", "hyena", "attention"))` cycles through the names of `kernels.mixers.MIXERS` block
by block. What comes back is an `Encoder` in all that others rely on: `Tokens` to `Features`, hidden layers, freezing, a
fingerprint. Softmax blocks keep timm's key names (`blocks.0.attn.qkv.weight`), so that weights of an `Encoder` load.

Shape legend: b batch, n tokens, d width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from polysense.backbone.encoder import Encoder, EncoderConfig, LayerScale, Mlp
from polysense.core.types import Features, Tokens
from polysense.kernels.mixers import MIXERS, Mixer


class MixerBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)): a `Block` for any mixer."""

    def __init__(self, config: EncoderConfig, mixer: Mixer) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.eps)
        self.attn = mixer
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, config.eps)
        self.mlp = Mlp(config)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None = None,
        grid: tuple[int, ...] | None = None,
    ) -> Float[Tensor, "b n d"]:
        x = x + self.ls1(self.attn(self.norm1(x), mask, grid))
        return x + self.ls2(self.mlp(self.norm2(x)))


class MixerEncoder(Encoder):
    """See `build_mixer_encoder`."""

    def __init__(
        self,
        config: EncoderConfig,
        mixers: Sequence[str],
        options: Mapping[str, Mapping[str, Any]] | None = None,
        spec: str = "",
    ) -> None:
        options = options or {}
        _check(config, mixers, options)
        super().__init__(replace(config, depth=0), spec)
        self.config = config
        self.names = tuple(mixers[i % len(mixers)] for i in range(config.depth))
        self.options = {name: dict(options.get(name, {})) for name in sorted(set(self.names))}
        for name in self.names:
            mixer = MIXERS[name](config.width, config.heads, **self.options[name])
            self.blocks.append(MixerBlock(config, mixer))

    def forward(self, tokens: Tokens, *, layers: Sequence[int] = ()) -> Features:
        """As of `Encoder`; mixers that know a grid use the tokens' grid."""
        if tokens.x.shape[-1] != self.config.width:
            raise ValueError(f"tokens of width {tokens.x.shape[-1]} do not fit an encoder of width {self.config.width}")
        wanted = {self._layer_number(layer): layer for layer in layers}
        x = self.norm_pre(tokens.x)
        hidden = {wanted[0]: tokens.replace(x)} if 0 in wanted else {}
        for i, block in enumerate(self.blocks, 1):
            x = block(x, tokens.mask, tokens.grid)
            if i in wanted:
                hidden[wanted[i]] = tokens.replace(x)
        return Features(tokens.replace(self.norm(x)), hidden, None)

    def start_as_identity(self) -> Encoder:
        """Zeroes what each block adds; a mixer without a last linear layer (pool) needs `layer_scale` for that."""
        for block in self.blocks:
            assert isinstance(block, MixerBlock)
            last = getattr(block.attn, "proj", None)
            if last is None and not isinstance(block.ls1, LayerScale):
                raise ValueError("a mixer without a last linear layer cannot start as the identity; set layer_scale")
            zeroed = [*(block.ls1.parameters() if last is None else last.parameters()), *block.mlp.fc2.parameters()]
            for parameter in zeroed:
                nn.init.zeros_(parameter)
        return self

    def fingerprint(self) -> str:
        """As of `Encoder`; the mixers' names and options count, since not all of them have weights that show them."""
        return hashlib.sha256(f"{self.names} {self.options} {super().fingerprint()}".encode()).hexdigest()


def build_mixer_encoder(
    config: EncoderConfig,
    mixers: Sequence[str] = ("attention",),
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> MixerEncoder:
    """An untrained encoder of other mixers.

    Args:
        config: As of an `Encoder`, without class token, registers, query-key norm, windows and other attention kinds.
        mixers: Names in `MIXERS`, cycled through block by block: ("hyena", "attention") alternates.
        options: Keyword arguments of mixers by name, as {"hyena": {"order": 3}}.

    Raises:
        ValueError: A name, an option or a field of the configuration does not fit.
    """
    return MixerEncoder(config, mixers, options)


def _check(config: EncoderConfig, mixers: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> None:
    if isinstance(mixers, str) or not mixers:
        raise ValueError(f"mixers must be a sequence of one or more names, got {mixers!r}")
    for name in (*mixers, *options):
        MIXERS[name]  # explains itself where there is no such name
    unused = sorted(set(options) - set(mixers))
    if unused:
        raise ValueError(f"options for mixers that no block uses: {', '.join(unused)}")
    for name, given in options.items():
        unknown = sorted(set(given) - set(signature(MIXERS[name]).parameters) | set(given) & {"width", "heads"})
        if unknown:
            raise ValueError(f"the mixer {name} takes no {', '.join(unknown)}")
    plain = EncoderConfig()
    for name in ("class_token", "registers", "qk_norm", "windows", "attention_kind"):
        if getattr(config, name, None) != getattr(plain, name, None):
            raise ValueError(f"an encoder of mixers knows no {name}; take it out, or use the plain Encoder")

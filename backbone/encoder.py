"""The shared encoder: a plain pre-norm transformer with timm's key names (Dosovitskiy et al. 2021).

What a checkpoint has beyond the plain blocks (class token, registers, LayerScale, query-key norm, norms before and
after) is a field of the configuration, so that published weights run as published.

Batches with padding are packed: see `packing`. Blocks may attend in windows or with sigmoid weights: see the fields
`windows` and `attention_kind`.

Shape legend: b batch, n tokens, d width, h heads; packed batches are b = 1, n = all real tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polysense.backbone.packing import WORTH, packing_of, window_bias
from polysense.core.types import Features, Tokens
from polysense.kernels.attention import attention


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The shape of an encoder; plain values only."""

    width: int = 192  # of a token
    depth: int = 6  # blocks
    heads: int = 3  # width / heads channels each
    mlp_ratio: float = 4.0  # hidden width of the MLP, in widths
    qkv_bias: bool = True
    qk_norm: bool = False  # LayerNorm of queries and keys (ViT-22B)
    layer_scale: bool = False  # learned factor per channel of each residual branch (CaiT)
    eps: float = 1e-6  # of every LayerNorm; Meta-Transformer uses 1e-5
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    class_token: bool = False
    registers: int = 0  # further prefix tokens (Darcet et al. 2023)
    pre_norm: bool = False  # LayerNorm before the first block (CLIP)
    final_norm: bool = True  # LayerNorm after the last block
    # Block by block: a token attends to real tokens at most so far away; None = to all. None for all blocks alike. Full
    # spans in few layers and windows elsewhere lose little (MASFormer, Zhang et al. 2023). Prefix tokens stand first.
    windows: tuple[int | None, ...] | None = None
    attention_kind: Literal["softmax", "sigmoid"] = (
        "softmax"  # sigmoid: Ramapuram et al. 2024; needs weights of its own
    )

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        if self.attention_kind not in ("softmax", "sigmoid"):
            raise ValueError(f"attention_kind must be softmax or sigmoid, got {self.attention_kind!r}")
        if self.windows is None:
            return
        object.__setattr__(self, "windows", tuple(self.windows))  # JSON has lists
        if len(self.windows) != self.depth or any(w is not None and w < 0 for w in self.windows):
            raise ValueError(f"windows must be {self.depth} numbers of at least 0 or None, got {self.windows}")


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention; `qkv` holds the rows q | k | v."""

    # What runs; `attention_maps` puts the written-out form in its place, in a copy.
    attend: Callable[..., Tensor] = staticmethod(attention)

    def __init__(self, config: EncoderConfig, window: int | None = None) -> None:
        super().__init__()
        head_width = config.width // config.heads
        self.heads, self.kind, self.window = config.heads, config.attention_kind, window
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.q_norm = nn.LayerNorm(head_width, config.eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_width, config.eps) if config.qk_norm else nn.Identity()
        self.proj = nn.Linear(config.width, config.width)

    def forward(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None, lengths: tuple[int, ...] | None = None
    ) -> Float[Tensor, "b n d"]:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.window is not None and mask is not None:  # a window of places would count padding
            bias = window_bias(mask, self.window, q.dtype)
            x = self.attend(q, k, v, kind=self.kind, mask=mask, bias=bias)
        else:
            x = self.attend(q, k, v, kind=self.kind, mask=mask, lengths=lengths, window=self.window)
        return self.proj(x.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, hidden)
        self.act = QuickGELU() if config.activation == "quick_gelu" else nn.GELU()
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: EncoderConfig, window: int | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.eps)
        self.attn = Attention(config, window)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, config.eps)
        self.mlp = Mlp(config)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None, lengths: tuple[int, ...] | None = None
    ) -> Float[Tensor, "b n d"]:
        x = x + self.ls1(self.attn(self.norm1(x), mask, lengths))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    """Reads tokens of any sense. See `polysense.load_encoder` for weights.

    Attributes:
        packing: Leave padding out where it pays (see `packing`); never inside a trace or an export. The answers are the
            same but for rounding.
    """

    def __init__(self, config: EncoderConfig, spec: str = "") -> None:
        super().__init__()
        self.config, self.spec, self.packing = config, spec, True
        prefix = int(config.class_token) + config.registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width)) if config.registers else None
        self.prefix = prefix
        self.norm_pre = nn.LayerNorm(config.width, config.eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, w) for w in config.windows or (None,) * config.depth)
        self.norm = nn.LayerNorm(config.width, config.eps) if config.final_norm else nn.Identity()

    def forward(self, tokens: Tokens, *, layers: Sequence[int] = ()) -> Features:
        """Runs all blocks.

        Args:
            tokens: Of this encoder's width.
            layers: Hidden layers to keep: 0 is the encoder's input, i the output of block i; negative ones count from
                the last block (-1).

        Raises:
            ValueError: The width or a layer number does not fit.
        """
        if tokens.x.shape[-1] != self.config.width:
            raise ValueError(f"tokens of width {tokens.x.shape[-1]} do not fit an encoder of width {self.config.width}")
        wanted = {self._layer_number(layer): layer for layer in layers}
        x, mask = self._with_prefix(tokens)
        x = self.norm_pre(x)
        hidden = {wanted[0]: tokens.replace(x[:, self.prefix :])} if 0 in wanted else {}
        # Windows of a padded batch cost as much as full attention: packed whenever there is a mask.
        packing = packing_of(mask, WORTH if self.config.windows is None else 0.0) if self.packing else None
        if packing is not None:
            x = packing.pack(x)
        elif mask is not None:  # padded places may hold NaN, which no weight of zero hides
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        for i, block in enumerate(self.blocks, 1):
            x = block(x, mask) if packing is None else block(x, None, packing.lengths)
            if i in wanted:
                full = x if packing is None else packing.unpack(x)
                hidden[wanted[i]] = tokens.replace(full[:, self.prefix :])
        x = self.norm(x)
        x = x if packing is None else packing.unpack(x)
        return Features(tokens.replace(x[:, self.prefix :]), hidden, x[:, 0] if self.config.class_token else None)

    def _layer_number(self, layer: int) -> int:
        number = layer + self.config.depth + 1 if layer < 0 else layer
        if not 0 <= number <= self.config.depth:
            raise ValueError(f"layer {layer} does not exist in an encoder of {self.config.depth} blocks")
        return number

    def _with_prefix(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        if not self.prefix:
            return tokens.x, tokens.mask
        b = tokens.x.shape[0]
        parts = [part.expand(b, -1, -1) for part in (self.cls_token, self.reg_token) if part is not None]
        mask = None if tokens.mask is None else nn.functional.pad(tokens.mask, (self.prefix, 0), value=True)
        return torch.cat([*parts, tokens.x], 1), mask

    @property
    def learns(self) -> bool:
        """Whether part of it is to be trained with a task: an adapter."""
        return False

    def freeze(self) -> Encoder:
        """Stops all learning: no gradient reaches a parameter."""
        return self.requires_grad_(False).eval()

    def start_as_identity(self) -> Encoder:
        """Zeroes what each block adds, so that training starts from what the tokenizers know (ReZero's idea)."""
        for block in self.blocks:
            assert isinstance(block, Block)
            for linear in (block.attn.proj, block.mlp.fc2):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        return self

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and fp32 values of all weights: equal exactly when the encoder is the same.

        What no weight shows counts as well where it is not the default.
        """
        digest = hashlib.sha256()
        if self.config.windows is not None or self.config.attention_kind != "softmax":
            digest.update(f"{self.config.windows} {self.config.attention_kind}".encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def config_dict(self) -> dict[str, Any]:
        return asdict(self.config)

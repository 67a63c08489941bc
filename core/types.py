"""What flows between the rooms: samples, tokens and features.

Shape legend: b batch, n tokens, d width, p coordinates of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """One decoded input, ready to be batched. Made by `Tokenizer.read`.

    Attributes:
        data: CPU tensors that the tokenizer's `collate` stacks.
        source: Where it came from, for messages and output rows ("cat.jpg", "table.csv#12").
        meta: What a head needs to answer in the user's own coordinates (original size, times, names …).
    """

    data: Mapping[str, Tensor]
    source: str = "<memory>"
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Known:
    """An input beside which some of what is to be predicted was measured, for models that chain their targets.

    Attributes:
        source: What would be given alone.
        values: Measured targets by name, in their own units.
    """

    source: Any
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Tokens:
    """A batch of token sequences.

    Attributes:
        x: Token vectors. What stands at padded places is undefined; read it through `mask`.
        mask: True where a token is real; None where all are (the fast path).
        pos: Coordinates of each token: image (y, x), video (t, y, x), audio (t, f), points (x, y, z), series (t).
        grid: Dense layout whose product is n, for pixel heads; None where tokens have no order.
        fine: Maps of what lies inside the cells of a (rows, columns) grid, each twice as fine as the one before:
            (b, c, 2 rows, 2 columns), (b, c2, 4 rows, 4 columns) …; zero where padded. They pass by the encoder.
    """

    x: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"] | None
    pos: Float[Tensor, "b n p"]
    grid: tuple[int, ...] | None = None
    fine: tuple[Float[Tensor, "b c h w"], ...] = ()

    def __post_init__(self) -> None:
        if self.x.ndim != 3:
            raise ValueError(f"Tokens.x must be (batch, tokens, width), got {tuple(self.x.shape)}")
        b, n, _ = self.x.shape
        if self.pos.ndim != 3 or self.pos.shape[:2] != (b, n):
            raise ValueError(f"Tokens.pos must be ({b}, {n}, coordinates), got {tuple(self.pos.shape)}")
        if self.mask is not None and (self.mask.shape != (b, n) or self.mask.dtype != torch.bool):
            raise ValueError(f"Tokens.mask must be bool ({b}, {n}), got {self.mask.dtype} {tuple(self.mask.shape)}")
        if self.grid is not None and torch.Size(self.grid).numel() != n:
            raise ValueError(f"Tokens.grid {self.grid} does not hold {n} tokens")
        for i, one in enumerate(self.fine, 1):
            if self.grid is None or one.shape[2:] != torch.Size(size << i for size in self.grid):
                raise ValueError(f"Tokens.fine holds {tuple(one.shape)}, not {1 << i} times the grid {self.grid}")

    def replace(self, x: Float[Tensor, "b n d"]) -> Tokens:
        """The same tokens with other vectors."""
        return Tokens(x, self.mask, self.pos, self.grid, self.fine)

    def dense_mask(self) -> Bool[Tensor, "b n"]:
        """The mask, all True where there is none."""
        return self.mask if self.mask is not None else self.x.new_ones(self.x.shape[:2], dtype=torch.bool)

    @staticmethod
    def cat(parts: Sequence[Tokens]) -> Tokens:
        """Joins several senses of the same batch into one sequence; coordinates are right-padded with zeros."""
        if not parts:
            raise ValueError("Tokens.cat needs at least one part")
        p = max(part.pos.shape[-1] for part in parts)
        pos = [torch.nn.functional.pad(part.pos, (0, p - part.pos.shape[-1])) for part in parts]
        masked = any(part.mask is not None for part in parts)
        mask = torch.cat([part.dense_mask() for part in parts], 1) if masked else None
        return Tokens(torch.cat([part.x for part in parts], 1), mask, torch.cat(pos, 1))


@dataclass(frozen=True, slots=True)
class Features:
    """What the encoder hands to a head.

    Attributes:
        last: The last layer's tokens (after the final norm where the encoder has one), without CLS and registers.
        hidden: Chosen layers' tokens by number; 0 is the encoder's input, i the output of block i.
        cls: The class token's last vector, for encoders that have one.
    """

    last: Tokens
    hidden: Mapping[int, Tokens] = field(default_factory=dict)
    cls: Float[Tensor, "b d"] | None = None

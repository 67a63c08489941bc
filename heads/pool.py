"""Pooling: a sequence of tokens -> one vector, and the base of heads that read one.

Shape legend: b sequences, n tokens, d width, f pooled width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polysense.core.types import Features, Tokens
from polysense.heads.base import Head, Out

STATISTICS = ("mean", "max", "std", "last", "change", "course", "cells", "columns", "peaks")
OF_SOUNDS = ("cells", "columns", "peaks")
# Coarse cells that a grid's tokens are taken together in: moments, rows and columns; moments and columns of a sound.
CELLS = {"course": (6, 3, 3), "cells": (3, 6), "columns": (1, 6), "peaks": (1, 6)}


def masked_statistic(tokens: Tokens, kind: str) -> Float[Tensor, "b d"]:
    """One vector a sequence; zeros for a sequence without a real token.

    Args:
        tokens: Of any sense; "change" needs tokens on a grid whose first axis is time.
        kind: "mean", "max" or "std" over real tokens; "last", the last real token; "change", the mean absolute
            difference of each place from one time to the next (what moves in a clip); or means of the coarse cells of
            `CELLS` side by side, which keep when and where: "course" of a clip, (b, 54 d); "cells" of a sound,
            (b, 18 d), and "columns", (b, 6 d), of which "peaks" gives the maxima.

    Raises:
        ValueError: The kind is unknown, or one that needs a grid is asked of tokens without it.
    """
    if kind in ("change", "course") and (tokens.grid is None or len(tokens.grid) != 3):
        raise ValueError(f"pooling {kind!r} needs tokens on a (time, rows, columns) grid; use it for video")
    if kind in OF_SOUNDS and (tokens.grid is None or len(tokens.grid) != 2):
        raise ValueError(f"pooling {kind!r} needs tokens on a (time, frequency) grid; use it for audio")
    if kind in CELLS:
        return _coarse(tokens, CELLS[kind], kind == "peaks")
    mask = tokens.dense_mask()
    # masked_fill and not a product: what stands at padded places is undefined and may be NaN.
    x = tokens.x if tokens.mask is None else tokens.x.masked_fill(~mask.unsqueeze(-1), 0.0)
    count = mask.sum(1, keepdim=True).clamp_min(1).to(x.dtype)
    if kind == "mean":
        return x.sum(1) / count
    if kind == "std":
        away = (x - x.sum(1, keepdim=True) / count.unsqueeze(1)) ** 2
        return (away.masked_fill(~mask.unsqueeze(-1), 0.0).sum(1) / count + 1e-6).sqrt()
    if kind == "max":
        largest = x.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(1)
        return largest.masked_fill(~mask.any(1, keepdim=True), 0.0)
    if kind == "last":
        place = torch.arange(x.shape[1], device=x.device).masked_fill(~mask, -1).amax(1).clamp_min(0)
        return x[torch.arange(len(x), device=x.device), place] * mask.any(1, keepdim=True)
    if kind == "change":
        assert tokens.grid is not None
        frames, steps = x.unflatten(1, (tokens.grid[0], -1)), mask.unflatten(1, (tokens.grid[0], -1))
        both = (steps[:, 1:] & steps[:, :-1]).unsqueeze(-1)  # (b, t - 1, places, 1)
        moved = (frames[:, 1:] - frames[:, :-1]).abs().masked_fill(~both, 0.0)
        return moved.sum((1, 2)) / both.sum((1, 2)).clamp_min(1)
    raise ValueError(f"unknown pooling {kind!r}; choose from: {', '.join(STATISTICS)}, cls")


def _coarse(tokens: Tokens, cells: tuple[int, ...], largest: bool) -> Float[Tensor, "b f"]:
    """Each input by itself, on its own cells: padding may not move the borders of the coarse ones."""
    assert tokens.grid is not None
    flat: Any = nn.functional.adaptive_max_pool2d if largest else nn.functional.adaptive_avg_pool2d
    pool: Any = nn.functional.adaptive_avg_pool3d if len(cells) == 3 else flat
    rows = []
    for x, real in zip(tokens.x.unflatten(1, tokens.grid), tokens.dense_mask().unflatten(1, tokens.grid), strict=True):
        sizes = [int(real.transpose(0, axis).flatten(1).any(1).sum()) for axis in range(len(cells))]
        if sizes[0] == 0:
            rows.append(x.new_zeros(math.prod(cells) * x.shape[-1]))
            continue
        whole = x[tuple(slice(0, size) for size in sizes)]
        rows.append(pool(whole.movedim(-1, 0), cells).flatten(1).T.flatten())
    return torch.stack(rows)


class Pool(nn.Module):
    """Chosen statistics of the last and of chosen hidden layers, side by side, each set to unit variance
    (but "change").

    Without learned parameters, so that what it gives for a frozen tokenizer and encoder can be computed once.

    Args:
        width: Of a token.
        pooling: Statistics to take, of `STATISTICS`; "cls" takes the class token (last layer only).
        layers: Hidden layers to read beside the last one.
        scaled: False leaves the statistics as they are.
    """

    def __init__(
        self,
        width: int,
        pooling: Sequence[str] = ("mean", "max"),
        layers: Sequence[int] = (),
        scaled: bool = True,
    ) -> None:
        super().__init__()
        for kind in pooling:
            if kind not in (*STATISTICS, "cls"):
                raise ValueError(f"unknown pooling {kind!r}; choose from: {', '.join(STATISTICS)}, cls")
        self.pooling, self.layers, self.scaled = tuple(pooling), tuple(layers), scaled
        vectors = sum(math.prod(CELLS.get(kind, ())) for kind in pooling if kind != "cls")
        self.width = width * (vectors * (1 + len(self.layers)) + ("cls" in pooling))

    def forward(self, features: Features) -> Float[Tensor, "b f"]:
        levels = [features.last, *(features.hidden[layer] for layer in self.layers)]
        parts = [self._scaled(masked_statistic(level, kind), kind)
                 for level in levels for kind in self.pooling if kind != "cls"]  # fmt: skip
        if "cls" in self.pooling:
            if features.cls is None:
                raise ValueError("pooling 'cls' needs an encoder with a class token; use mean or max")
            parts.append(self._scaled(features.cls, "cls"))
        return torch.cat(parts, -1)

    def _scaled(self, part: Float[Tensor, "b f"], kind: str) -> Float[Tensor, "b f"]:
        """Unit variance, but for "change": how much moves is what it tells. Of sounds each cell by itself: how loud a
        band is would otherwise drown what it says."""
        if kind == "change" or not self.scaled:
            return part
        if kind in OF_SOUNDS:
            cells = part.unflatten(-1, (math.prod(CELLS[kind]), -1))
            return nn.functional.layer_norm(cells, cells.shape[-1:]).flatten(-2)
        return nn.functional.layer_norm(part, part.shape[-1:])


class PooledHead(Head):
    """A head that reads pooled features; its learned part can run on features computed before."""

    pool: Pool

    def forward(self, features: Features) -> Out:
        return self.from_pooled(self.pool(features))

    def from_pooled(self, pooled: Float[Tensor, "b f"]) -> Out:
        """The learned part: pooled features -> raw outputs."""
        raise NotImplementedError


def make_mlp(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """Linear, or one hidden layer with GELU; dropout before each linear."""
    if not hidden:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, outputs))
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout),
                         nn.Linear(hidden, outputs))  # fmt: skip

"""Columns of a row look at each other before the encoder does, each pair of columns in its own way.

A plain transformer projects all tokens by one matrix; an age and a city then are compared as if they were of one kind.
Here every column has projections of its own (Gui et al. 2023, "Hiformer: Heterogeneous Feature Interactions Learning
with Transformers for Recommender Systems"): the heterogeneous attention layer, and Hiformer itself, whose queries, keys
and values are of all columns together, through a product of two thin matrices.

Shape legend: b rows, c columns, d width, r rank (of all heads together), h heads, e = r / h width of a head.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.core.errors import InputError
from polysense.kernels.attention import attention

MIXERS = ("none", "heterogeneous", "hiformer")
HEADS = 4
MOST_COLUMNS = 256  # each has matrices of its own, and all pairs are compared


class ColumnMixer(nn.Module):
    """One attention layer and one feed-forward layer, both with weights for each column; begins as the identity.

    Both have the rank r inside, so that a column costs 6 r d numbers whatever the number of columns is. A value that is
    missing says nothing to other columns; its own token learns of them.

    Args:
        kind: "heterogeneous": a column's query, key and value come of its own token; "hiformer": of all tokens.
        columns: Their number.
        width: Of a token.
        rank: Of each product of two projections; a multiple of the heads.

    Raises:
        InputError: There are too many columns.
    """

    def __init__(self, kind: str, columns: int, width: int, rank: int) -> None:
        super().__init__()
        if columns > MOST_COLUMNS:
            raise InputError("the table's mixer", f"it takes {MOST_COLUMNS} columns at most, and there are {columns}",
                             "leave columns out, or fit without --tokenizer mixer")  # fmt: skip
        self.project = (Composite if kind == "hiformer" else OwnColumn)(columns, width, rank)
        self.out = nn.Parameter(torch.zeros(columns, rank, width))
        self.widen = nn.Parameter(torch.randn(columns, width, rank) * width**-0.5)
        self.narrow = nn.Parameter(torch.zeros(columns, rank, width))

    def forward(self, x: Float[Tensor, "b c d"], present: Bool[Tensor, "b c"]) -> Float[Tensor, "b c d"]:
        """Mixed tokens.

        Args:
            x: Tokens of the columns.
            present: False where a value is missing.
        """
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.project(unit(x), present))
        seen = attention(q, k, v, mask=present).transpose(1, 2).flatten(2)  # (b, c, r); zero where all is missing
        x = x + torch.einsum("bcr,crd->bcd", seen, self.out)
        inner = F.gelu(torch.einsum("bcd,cdr->bcr", unit(x), self.widen))
        return x + torch.einsum("bcr,crd->bcd", inner, self.narrow)


class OwnColumn(nn.Module):
    """Queries, keys and values of each token by matrices of its column."""

    def __init__(self, columns: int, width: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, columns, width, rank) * width**-0.5)

    def forward(self, x: Float[Tensor, "b c d"], present: Bool[Tensor, "b c"]) -> Float[Tensor, "3 b c r"]:
        return torch.einsum("bcd,scdr->sbcr", x, self.weight)


class Composite(nn.Module):
    """Queries, keys and values of all tokens of a row together, by a matrix (c d, c r) of rank r."""

    def __init__(self, columns: int, width: int, rank: int) -> None:
        super().__init__()
        self.read = nn.Parameter(torch.randn(3, columns, width, rank) * (columns * width) ** -0.5)
        self.spread = nn.Parameter(torch.randn(3, rank, columns, rank) * rank**-0.5)

    def forward(self, x: Float[Tensor, "b c d"], present: Bool[Tensor, "b c"]) -> Float[Tensor, "3 b c r"]:
        inner = torch.einsum("bcd,scdr->sbr", x * present[..., None], self.read)
        return torch.einsum("sbr,srck->sbck", inner, self.spread)


def unit(x: Float[Tensor, "b c d"]) -> Float[Tensor, "b c d"]:
    """Tokens of mean 0 and variance 1."""
    return F.layer_norm(x, x.shape[-1:])

"""Boosted trees inside the table tokenizer: a row -> what trees say of it -> one more token.

Trees cut numbers at any place and combine columns, which column embeddings learn slowly; their answers as inputs of a
learned model are an old and strong mix (He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook").
`training/grow_trees.py` grows them; here they are plain tensors that a bundle stores.

Shape legend: b rows, f inputs, t trees, k nodes, m margins (one a class, a number or, of two classes, one), d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

DEPTH = 6  # splits between root and leaf, at most
LEAVES = 15  # of a tree, at most
MISSING = -1e9  # what trees read where a number is missing: less than all


class TreeToken(nn.Module):
    """Averaged boosted trees, and the token that carries their margins.

    Args:
        shape: Number of trees (a multiple of the margins: tree i adds to margin i modulo m), nodes a tree, margins.
        width: Of the token.
    """

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        trees, nodes, margins = self.shape = tuple(shape)
        if nodes > 256 or trees % margins:
            raise ValueError(f"{trees} trees of {nodes} nodes for {margins} margins: at most 256 nodes, whole rounds")
        self.register_buffer("feature", torch.zeros(trees, nodes, dtype=torch.int16))
        # The bits of float32: bundles may be rounded to half precision, and a rounded threshold sends rows astray.
        self.register_buffer("threshold", torch.zeros(trees, nodes, dtype=torch.int32))
        self.register_buffer("below", torch.zeros(trees, nodes, 2, dtype=torch.uint8))  # of a leaf: itself
        self.register_buffer("value", torch.zeros(trees, nodes))
        self.register_buffer("base", torch.zeros(margins))
        self.register_buffer("mean", torch.zeros(margins))
        self.register_buffer("std", torch.ones(margins))
        # A small slope beside a large bias: normalised by a head, the token still is almost linear in the margins.
        self.weight = nn.Parameter(torch.randn(margins, width) * 0.1 * margins**-0.5)
        self.bias = nn.Parameter(torch.randn(width))

    feature: Tensor
    threshold: Tensor
    below: Tensor
    value: Tensor
    base: Tensor
    mean: Tensor
    std: Tensor

    def forward(self, margins: Float[Tensor, "b m"]) -> Float[Tensor, "b 1 d"]:
        scaled = ((margins - self.mean) / self.std).to(self.weight.dtype)
        return (scaled @ self.weight + self.bias)[:, None]

    def margins(self, x: Float[Tensor, "b f"]) -> Float[Tensor, "b m"]:
        """What the trees say: log-odds of classes, or numbers in deviations from their mean."""
        return self.leaves(x).float().unflatten(1, (-1, self.shape[2])).sum(1) + self.base

    def leaves(self, x: Float[Tensor, "b f"]) -> Float[Tensor, "b t"]:
        """The value of the leaf that each row reaches in each tree."""
        x = x.float().nan_to_num(nan=MISSING)
        feature, below = self.feature.flatten().long(), self.below.flatten().long()
        threshold, value = self.threshold.flatten().view(torch.float32), self.value.flatten()
        root = torch.arange(self.shape[0], device=x.device) * self.shape[1]
        place = root.expand(len(x), -1)
        for _ in range(DEPTH):
            right = x.gather(1, feature[place]) > threshold[place]
            place = root + below[2 * place + right]
        return value[place]


def as_bits(thresholds: Float[np.ndarray, " k"]) -> Tensor:
    """float64 thresholds as the bits of the nearest float32 that is not above: `x <= threshold` holds as before."""
    rounded = thresholds.astype(np.float32)
    above = rounded > thresholds
    rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return torch.from_numpy(rounded).view(torch.int32)

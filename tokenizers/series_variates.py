"""Variates as tokens: the whole window of each variate is one token (iTransformer, Liu et al. 2024).

The encoder reads all variates of a sample together, so that what one says of another can be used; a sample may have any
number of them, and their order says nothing: tokens have no position.

Shape legend: b batch, t steps of the context, c variates (the most of the batch), d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.core.types import Sample
from polysense.tokenizers.base import Batch, meta_of, pad_stack


class VariateStem(nn.Module):
    """A linear map of a variate's values and of which of them are known."""

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(2 * context, width)

    def forward(self, values: Float[Tensor, "b t c"], observed: Float[Tensor, "b t c"]) -> Float[Tensor, "b c d"]:
        return self.map(torch.cat([values, observed], 1).transpose(1, 2))


def collate_variates(samples: Sequence[Sample], context: int) -> Batch:
    """Pads on the left to the context, and to the most variates: "values", "observed" (b, t, c), "calendar" (b, 1, 8)
    of the newest step, "variates" (b,)."""
    batch: Batch = {"meta": meta_of(samples)}
    for name in ("values", "observed"):
        parts = [F.pad(s.data[name], (0, 0, context - len(s.data[name]), 0)) for s in samples]
        batch[name] = pad_stack(parts)[0]
    batch["calendar"] = torch.stack([s.data["calendar"][-1:] for s in samples])
    batch["variates"] = torch.tensor([s.data["values"].shape[1] for s in samples])
    batch["steps"] = torch.tensor([len(s.data["values"]) for s in samples])
    return batch


def variate_mask(batch: Batch) -> Bool[Tensor, "b c"]:
    """Which tokens are variates."""
    values = batch["values"]
    return torch.arange(values.shape[2], device=values.device) < batch["variates"].to(values.device)[:, None]

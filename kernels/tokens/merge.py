"""Merges tokens that say the same: bipartite soft matching (Bolya et al. 2023, "Token Merging: Your ViT But Faster").

The real tokens of a sequence are dealt in turn to two sets. Each token of the first set looks for the token of the
second that is most like it (cosine of their metrics, in a transformer the keys' mean over heads); the r pairs that are
most alike become one token each, the mean weighted by how many tokens each stands for.

Every sequence is matched by itself, on its real tokens alone, so an answer depends neither on padding nor on what else
is in the batch. What that leaves is rounding: scores are compared in steps of 1/16384, so that pairs equal but for
rounding count as equal, and among equals the lowest place comes first. Nothing is added up in an order that a device
may choose.

Shape legend: b batch, n tokens, m = n - min(r, (n - protected) / 2) places of merged tokens, r pairs, d width of a
token, k width of the metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from polysense.kernels.mixers.base import to_front

STEP = 2.0**-14  # of scores


@dataclass(frozen=True, slots=True)
class Merged:
    """A batch of merged tokens.

    Attributes:
        x: Token vectors, real ones first, in the order of their tokens of the second set or of those that nothing
            joined. What stands at padded places is undefined.
        size: How many tokens each stands for; 1 at padded places.
        place: For each of the n tokens before, where the token stands that it is now part of: what `unmerge` needs. Any
            valid place for tokens that were padding.
        mask: True where a merged token is real; None where all are.
    """

    x: Float[Tensor, "b m d"]
    size: Float[Tensor, "b m"]
    place: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b m"] | None


def merge(
    x: Float[Tensor, "b n d"],
    metric: Float[Tensor, "b n k"],
    r: int,
    *,
    size: Float[Tensor, "b n"] | None = None,
    protected: int = 0,
    mask: Bool[Tensor, "b n"] | None = None,
) -> Merged:
    """Makes r tokens fewer of each sequence.

    A sequence of c real tokens of which p are protected loses min(r, (c - p) // 2): half of what may merge, at most.

    Args:
        x: Tokens; the answer is differentiable by them.
        metric: What is compared; finite at real places. No gradient goes through the choice of pairs.
        r: How many, at least 0.
        size: How many tokens each token stands for, more than 0; all 1 by default.
        protected: The first so many real tokens of a sequence stay as they are (class tokens, registers).
        mask: True where a token is real; None where all are. What stands elsewhere is not read.

    Raises:
        ValueError: Shapes, `r` or `protected` do not fit.
    """
    _check(x, metric, r, size, protected, mask)
    b, n, _ = x.shape
    sizes = x.new_ones(b, n, dtype=torch.promote_types(x.dtype, torch.float32)) if size is None else size
    if mask is not None:
        sizes = sizes.masked_fill(~mask, 1.0)
    r = min(r, max(n - protected, 0) // 2)
    if r == 0:
        return Merged(x, sizes, torch.arange(n, device=x.device).expand(b, n), mask)
    # From here on in an order in which real tokens stand first.
    order = None if mask is None else to_front(mask)
    counts = None if mask is None else mask.sum(1)
    sources, targets = _pairs(metric if order is None else _take(metric, order), r, protected, counts)
    # Sequences too short for r pairs have fewer.
    valid = torch.ones_like(sources, dtype=torch.bool)
    if counts is not None:
        valid = torch.arange(r, device=x.device) < ((counts - protected).clamp(min=0) // 2)[:, None]
    gone = torch.zeros(b, n, dtype=torch.bool, device=x.device).scatter(1, sources, valid)
    kept = gone.to(torch.uint8).argsort(dim=1, stable=True)[:, : n - r]
    place = ((~gone).cumsum(1) - 1).clamp(min=0, max=n - r - 1)  # at the end stands padding only
    targets = place.gather(1, targets)
    place = place.scatter(1, sources, torch.where(valid, targets, place.gather(1, sources)))
    if order is not None:
        kept, sources = order.gather(1, kept), order.gather(1, sources)
        place = place.gather(1, order.argsort(1))
    merged, total = _means(x, sizes, kept, sources, targets, valid)
    if counts is None:
        return Merged(merged, total, place, None)
    left = counts - valid.sum(1)
    return Merged(merged, total, place, torch.arange(n - r, device=x.device) < left[:, None])


def unmerge(x: Float[Tensor, "b m d"], place: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
    """One vector for each token there was before merging: that of the token it is now part of.

    Args:
        x: Merged tokens, or what became of them.
        place: `Merged.place`.

    Raises:
        ValueError: The shapes do not fit.
    """
    if x.ndim != 3 or place.ndim != 2 or len(x) != len(place):
        raise ValueError(f"x must be (b, m, d) and place (b, n), got {tuple(x.shape)} and {tuple(place.shape)}")
    return _take(x, place)


def chain_places(first: Int[Tensor, "b n"], second: Int[Tensor, "b m"]) -> Int[Tensor, "b n"]:
    """The `place` of two merges one after the other."""
    return second.gather(1, first)


def size_bias(size: Float[Tensor, "b m"]) -> Float[Tensor, "b 1 1 m"]:
    """Proportional attention: a bias by which a token that stands for s tokens weighs as s equal keys would.

    For `kernels.attention(..., bias=size_bias(size))` with softmax weights: exp(score + log s) = s · exp(score).
    """
    return size.log()[:, None, None, :]


def _take(x: Float[Tensor, "b n d"], places: Int[Tensor, "b j"]) -> Float[Tensor, "b j d"]:
    """Chosen tokens of each sequence, copied row by row: on a CPU several times as fast as `gather`."""
    b, n, _ = x.shape
    rows = places + torch.arange(b, device=x.device)[:, None] * n
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, places.shape)


def _pairs(
    metric: Float[Tensor, "b n k"], r: int, protected: int, counts: Int[Tensor, " b"] | None
) -> tuple[Int[Tensor, "b r"], Int[Tensor, "b r"]]:
    """Places of the r best pairs, best first: a token of the first set and the one of the second it is most like.

    Real tokens stand first; pairs past what a sequence has come last and mean nothing.
    """
    n = metric.shape[1]
    with torch.no_grad(), torch.autocast(metric.device.type, enabled=False):
        unit = F.normalize(metric.detach().to(torch.promote_types(metric.dtype, torch.float32)), dim=-1)
        scores = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
        scores = (scores / STEP).round()
    free = torch.arange(n, device=metric.device)[None] >= protected
    if counts is not None:
        free = free & (torch.arange(n, device=metric.device) < counts[:, None])
    if counts is not None or protected:
        scores = scores.masked_fill(~(free[:, ::2, None] & free[:, None, 1::2]), float("-inf"))
    best, partner = scores.max(-1)  # the first among equals
    chosen = best.argsort(dim=1, descending=True, stable=True)[:, :r]
    return 2 * chosen, 2 * partner.gather(1, chosen) + 1


def _means(
    x: Float[Tensor, "b n d"],
    size: Float[Tensor, "b n"],
    kept: Int[Tensor, "b m"],
    sources: Int[Tensor, "b r"],
    targets: Int[Tensor, "b r"],
    valid: Bool[Tensor, "b r"],
) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b m"]]:
    """Means weighted by size, and the sums of sizes.

    A sum by matrix product, not by scattering: a GPU scatters in any order. A token that nothing joins keeps its very
    bits, for its share is 1.
    """
    m = kept.shape[1]
    own, joining = size.gather(1, kept), size.gather(1, sources) * valid
    joins = targets[:, None, :] == torch.arange(m, device=x.device)[:, None]  # (b, m, r)
    shares = joins.to(size.dtype) * joining[:, None, :]
    total = own + shares.sum(-1)
    shares = shares / total[:, :, None]
    added = _take(x, sources).masked_fill(~valid[..., None], 0.0)  # padding may be NaN
    with torch.autocast(x.device.type, enabled=False):
        return torch.baddbmm(_take(x, kept) * (own / total)[..., None].to(x.dtype), shares.to(x.dtype), added), total


def _check(x: Tensor, metric: Tensor, r: int, size: Tensor | None, protected: int, mask: Tensor | None) -> None:
    if x.ndim != 3 or metric.ndim != 3 or x.shape[:2] != metric.shape[:2]:
        raise ValueError(f"x must be (b, n, d) and metric (b, n, k), got {tuple(x.shape)} and {tuple(metric.shape)}")
    if not x.is_floating_point() or not metric.is_floating_point():
        raise ValueError(f"x and metric must be of a float type, got {x.dtype} and {metric.dtype}")
    for name, number in (("r", r), ("protected", protected)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"{name} must be a whole number of at least 0, got {number!r}")
    if size is not None and (size.shape != x.shape[:2] or not size.is_floating_point()):
        raise ValueError(f"size must be float {tuple(x.shape[:2])}, got {size.dtype} {tuple(size.shape)}")
    if mask is not None and (mask.shape != x.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool {tuple(x.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")

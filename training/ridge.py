"""Weighted ridge regressions with a free intercept, from moments or from rows.

The last column of X is one. Shape legend: n rows, f inputs, h outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

STRENGTHS = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)  # of the penalty, in mean variances of an input


def from_moments(gram: Tensor, cross: Tensor, strengths: Sequence[float] = STRENGTHS) -> Iterator[Tensor]:
    """The solution (f + 1, h) of each strength, from weighted XᵀX (f + 1, f + 1) and XᵀY (f + 1, h)."""
    ridge = gram.diagonal()[:-1].mean()
    for strength in strengths:
        penalty = torch.full_like(gram.diagonal(), float(strength * ridge))
        penalty[-1] = 0  # the intercept is free
        yield torch.cholesky_solve(cross, torch.linalg.cholesky(gram + penalty.diag()))


def from_rows(
    xs: Sequence[Tensor], ys: Sequence[Tensor], weights: Sequence[Tensor], strengths: Sequence[float] = STRENGTHS
) -> Iterator[Tensor]:
    """The same from the rows themselves, by the dual problem: n x n instead of f x f numbers."""
    x, y, weight = torch.cat(list(xs))[:, :-1], torch.cat(list(ys)), torch.cat(list(weights)).mean(1, keepdim=True)
    ridge = float((x.square() * weight).sum(0).mean())
    # Centring takes the intercept, which is free, out of the problem.
    share = weight / weight.sum()
    x_mean, y_mean = (x * share).sum(0), (y * share).sum(0)
    x, y = (x - x_mean) * weight.sqrt(), (y - y_mean) * weight.sqrt()
    kernel = (x @ x.T).double()
    for strength in strengths:
        penalty = torch.full_like(kernel.diagonal(), strength * ridge)
        dual = torch.cholesky_solve(y.double(), torch.linalg.cholesky(kernel + penalty.diag()))  # (n, h)
        slope = x.T @ dual.float()
        yield torch.cat([slope, (y_mean - x_mean @ slope)[None]])


def refit(x: Tensor, y: Tensor, weight: Tensor, strength: float) -> Tensor:
    """The solution (f + 1, h) of one strength for rows x (n, f), y (n, h) and weight (n,), by the smaller problem."""
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    weight = weight.unsqueeze(1)
    if len(x) < x.shape[1]:
        return next(from_rows([x], [y], [weight], [strength])).float()
    scaled = x * weight
    return next(from_moments((scaled.T @ x).double(), (scaled.T @ y).double(), [strength])).float()

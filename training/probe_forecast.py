"""The first phase of a forecasting fit: the head's linear map as a ridge regression, in closed form.

Shape legend: b sequences, f flattened input, h steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from polysense.heads.forecast import ForecastHead
from polysense.pipeline import Pipeline, to_device
from polysense.training.examples import Examples, Subset

STRENGTHS = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)  # of the ridge, relative to the mean variance of an input
MOST_WINDOWS = 20_000  # windows that the regression reads


@torch.inference_mode()
def probe_forecast(pipeline: Pipeline, train: Examples, val: Examples, batch_size: int) -> None:
    """Solves for `head.linear`, keeping the ridge of least weighted squared error on validation windows."""
    head = pipeline.head
    assert isinstance(head, ForecastHead)
    gram, cross = _moments(pipeline, Subset.even(train, MOST_WINDOWS), batch_size)
    checks = list(_rows(pipeline, Subset.even(val, 1000), batch_size))
    ridge = gram.diagonal()[:-1].mean()
    best, kept = float("inf"), None
    for strength in STRENGTHS:
        penalty = torch.full_like(gram.diagonal(), float(strength * ridge))
        penalty[-1] = 0  # the intercept is free
        solution = torch.cholesky_solve(cross, torch.linalg.cholesky(gram + penalty.diag()))  # (f + 1, h)
        error = sum(float((((x @ solution.float()) - y).square() * w).sum()) for x, y, w in checks)
        if error < best:
            best, kept = error, solution.float()
    assert kept is not None
    head.linear.weight.copy_(kept[:-1].T)
    head.linear.bias.copy_(kept[-1])
    pipeline.settled |= {"head.linear.weight", "head.linear.bias"}
    head.project[-1].get_parameter("weight").mul_(
        0.01
    )  # offsets start as those of the errors, the same for all windows
    _spread_quantiles(head, checks, kept)


def _rows(pipeline: Pipeline, examples: Examples, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Inputs with a one appended (b, f + 1), targets (b, h), weights (b, h), zero where the future is unknown."""
    pipeline.eval()
    head = pipeline.head
    assert isinstance(head, ForecastHead)
    for start in range(0, len(examples), batch_size):
        pairs = []
        for i in range(start, min(start + batch_size, len(examples))):
            samples, target = examples.whole(i)
            pairs += [(sample, target[:, c]) for c, sample in enumerate(samples)]
        batch = pipeline.tokenizer.collate([sample for sample, _ in pairs])
        target = to_device(head.targets([values for _, values in pairs], batch["meta"]), pipeline.device)
        x = head.flatten(pipeline.features(batch))
        y = target["steps"][:, : head.config.horizon]
        weight = target["weight"][:, None] * y.isfinite()
        yield torch.cat([x, x.new_ones(len(x), 1)], 1), y.nan_to_num(0.0), weight


def _moments(pipeline: Pipeline, examples: Examples, batch_size: int) -> tuple[Tensor, Tensor]:
    """Weighted XᵀX (f + 1, f + 1) and XᵀY (f + 1, h), in double precision.

    One weight a row (its steps' mean): a future with gaps counts by its share, its gaps as "the level goes on".
    """
    gram = cross = torch.zeros((), dtype=torch.float64, device=pipeline.device)
    for x, y, weight in _rows(pipeline, examples, batch_size):
        scaled = x * weight.mean(1, keepdim=True)
        gram = gram + (scaled.T @ x).double()
        cross = cross + (scaled.T @ y).double()
    return gram, cross


def _spread_quantiles(head: ForecastHead, checks: list[tuple[Tensor, Tensor, Tensor]], solution: Tensor) -> None:
    """Sets the quantiles' biases to those of the ridge's validation errors at each step."""
    errors = torch.cat([y - x @ solution for x, y, _ in checks])
    levels = torch.tensor(head.config.quantiles, device=errors.device)
    offsets = torch.quantile(errors, levels, dim=0).T  # (h, q)
    head.project[-1].get_parameter("bias").copy_(offsets.flatten())

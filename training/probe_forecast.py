"""The first phase of a forecasting fit: the head's linear map as a ridge regression, in closed form.

Shape legend: b sequences, n sequences of all windows, f flattened input, h steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from polysense.heads.forecast import ForecastHead
from polysense.pipeline import Pipeline, to_device
from polysense.training.examples import Examples, Subset
from polysense.training.probe_mixture import probe_mixture
from polysense.training.probe_own import probe_own
from polysense.training.ridge import STRENGTHS, from_moments, from_rows

MOST_WINDOWS = 20_000  # windows that the regression reads
MOST_INPUTS = 8192  # widest input whose moments (f x f doubles) are kept; wider ones are solved row by row
MOST_NUMBERS = 100_000_000  # inputs of all rows that are held in memory at a time


@torch.inference_mode()
def probe_forecast(pipeline: Pipeline, train: Examples, val: Examples, batch_size: int) -> None:
    """Solves for `head.linear`, keeping the ridge of least weighted squared error on validation windows.

    A mixture of local forecasts is learnt instead, where the head is one; each variate's own correction follows.
    """
    head = pipeline.head
    assert isinstance(head, ForecastHead)
    if head.mixture is not None:
        return probe_mixture(pipeline, train, val, batch_size)
    inputs = head.linear.in_features
    fitting = max(MOST_NUMBERS // (inputs * len(train.whole(0)[0])), 64)  # windows that memory holds
    checks = list(_rows(pipeline, Subset.even(val, min(1000, fitting)), batch_size))
    if inputs <= MOST_INPUTS:
        solutions = from_moments(*_moments(pipeline, Subset.even(train, MOST_WINDOWS), batch_size))
    else:
        solutions = from_rows(*zip(*_rows(pipeline, Subset.even(train, min(MOST_WINDOWS, fitting)), batch_size)))
    best, kept, chosen = float("inf"), None, 0.0
    for strength, solution in zip(STRENGTHS, solutions, strict=True):
        error = sum(float((((x @ solution.float()) - y).square() * w).sum()) for x, y, w in checks)
        if error < best:
            best, kept, chosen = error, solution.float(), strength
    assert kept is not None
    head.linear.weight.copy_(kept[:-1].T)
    head.linear.bias.copy_(kept[-1])
    pipeline.settled |= {"head.linear.weight", "head.linear.bias"}
    head.project[-1].get_parameter("weight").mul_(
        0.01
    )  # offsets start as those of the errors, the same for all windows
    _spread_quantiles(head, checks, kept)
    if head.own is not None:
        probe_own(pipeline, train, val, batch_size, chosen)


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

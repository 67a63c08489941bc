"""The first phase of a forecasting fit: the head's linear map as a ridge regression, in closed form.

Shape legend: b sequences, n sequences of all windows, f flattened input, h steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from polysense.core.types import Features
from polysense.heads.base import Out
from polysense.heads.forecast import ForecastHead
from polysense.pipeline import Pipeline, to_device
from polysense.training.examples import Examples, Subset, window_batches
from polysense.training.probe_mixture import probe_mixture
from polysense.training.probe_own import probe_own
from polysense.training.ridge import STRENGTHS, from_moments

MOST_WINDOWS = 20_000  # windows that the regression reads
MOST_TOKENS = 800_000  # and their tokens: neighbouring long windows say nearly the same
MOST_INPUTS = 8192  # widest input that is solved for as it is; of wider ones their principal axes are
AXES = 1024  # of a wide input: overlapping tokens of a long window say much the same several times
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
    inputs, variates = head.linear.in_features, train.whole(0)[1].shape[1]
    fitting = max(MOST_NUMBERS // (inputs * variates), 64)  # windows that memory holds
    checks = list(_rows(pipeline, Subset.even(val, min(1000, fitting)), batch_size))
    most = max(min(MOST_WINDOWS, MOST_TOKENS // (head.config.tokens * variates)), 64)
    axes = None
    if inputs > MOST_INPUTS:
        axes = _axes(_rows(pipeline, Subset.even(train, min(AXES, fitting)), batch_size))
    moments = _moments(pipeline, Subset.even(train, most), batch_size, axes)
    solutions = (one.float() if axes is None else axes @ one.float() for one in from_moments(*moments))
    best, kept, chosen = float("inf"), None, 0.0
    for strength, solution in zip(STRENGTHS, solutions, strict=True):
        error = sum(float(((x @ solution - y).square() * w).sum()) for x, y, w in checks)
        if error < best:
            best, kept, chosen = error, solution, strength
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


@torch.inference_mode()
def forecast_answers(pipeline: Pipeline, examples: Examples, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """True steps (n, h), NaN where unknown, their mean (n, h) and quantiles (n, h, q), of every sequence, in units of
    its window."""
    head = pipeline.head
    assert isinstance(head, ForecastHead)
    parts = []
    for features, target in _windows(pipeline, examples, batch_size):
        mean, quantiles = head.answer(head(features), target)
        steps = target["steps"][..., : head.config.horizon]
        parts.append((steps.flatten(0, -2), mean.flatten(0, -2), quantiles.flatten(0, -3)))
    steps, mean, quantiles = (torch.cat(part) for part in zip(*parts, strict=True))
    return steps, mean, quantiles


def _windows(pipeline: Pipeline, examples: Examples, batch_size: int) -> Iterator[tuple[Features, Out]]:
    """What the encoder gives for every variate of every window, and the head's targets."""
    pipeline.eval()
    for pairs in window_batches(examples, batch_size):
        batch = pipeline.tokenizer.collate([sample for sample, _ in pairs])
        targets = pipeline.head.targets([values for _, values in pairs], batch["meta"])
        yield pipeline.features(batch), to_device(targets, pipeline.device)


def _rows(pipeline: Pipeline, examples: Examples, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Inputs with a one appended (b, f + 1), targets (b, h), weights (b, h), zero where the future is unknown."""
    head = pipeline.head
    assert isinstance(head, ForecastHead)
    for features, target in _windows(pipeline, examples, batch_size):
        x = head.flatten(features).flatten(0, -2)
        y = target["steps"][..., : head.config.horizon].flatten(0, -2)
        weight = target["weight"].flatten()[:, None] * y.isfinite()
        if head.config.variates:  # without those that only pad a batch
            real = target["weight"].flatten() > 0
            x, y, weight = x[real], y[real], weight[real]
        yield torch.cat([x, x.new_ones(len(x), 1)], 1), y.nan_to_num(0.0), weight


def _axes(rows: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The inputs' principal axes (f + 1, a + 1), by weighted rows; the one at the end stays by itself."""
    scaled = torch.cat([x[:, :-1] * weight.mean(1, keepdim=True).sqrt() for x, _, weight in rows])
    _, _, found = torch.pca_lowrank(scaled, q=min(AXES, *scaled.shape), center=False)
    axes = found.new_zeros(found.shape[0] + 1, found.shape[1] + 1)
    axes[:-1, :-1], axes[-1, -1] = found, 1.0
    return axes


def _moments(pipeline: Pipeline, examples: Examples, batch_size: int, axes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted XᵀX (f + 1, f + 1) and XᵀY (f + 1, h), in double precision; of the inputs on `axes`, where given.

    One weight a row (its steps' mean): a future with gaps counts by its share, its gaps as "the level goes on".
    """
    gram = cross = torch.zeros((), dtype=torch.float64, device=pipeline.device)
    for x, y, weight in _rows(pipeline, examples, batch_size):
        x = x if axes is None else x @ axes
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

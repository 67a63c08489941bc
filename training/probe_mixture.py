"""The first phase of fitting a mixture of local forecasts: its weights, on tokens and trials computed once.

Shape legend: b sequences, f inputs, k methods, g groups of steps, h steps.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from polysense.heads.forecast import ForecastHead
from polysense.heads.forecast_parts import Mixture
from polysense.pipeline import Pipeline, to_device
from polysense.training.examples import Examples, Subset, window_batches

MOST = 20_000  # windows that are learnt from; each costs some ten milliseconds for its trials
EPOCHS, BATCH, LR, DECAY = 10, 256, 3e-3, 0.1
FAINT = 0.1  # deviations of a window, added to the error in trials before a window's loss is divided by it


@torch.no_grad()
def forecast_rows(pipeline: Pipeline, examples: Examples, batch_size: int) -> dict[str, Tensor]:
    """What the linear parts read of every sequence ("x" (b, f)), and its targets with what is known beside."""
    pipeline.eval()
    head = pipeline.head
    assert isinstance(head, ForecastHead)
    rows: list[dict[str, Tensor]] = []
    for pairs in window_batches(examples, batch_size):
        batch = pipeline.tokenizer.collate([sample for sample, _ in pairs])
        x = head.flatten(pipeline.features(batch))
        targets = head.targets([values for _, values in pairs], batch["meta"])
        rows.append({"x": x, **to_device(targets, pipeline.device)})
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def probe_mixture(pipeline: Pipeline, train: Examples, val: Examples, batch_size: int) -> None:
    """Learns the mixture's weights by gradient descent and keeps those of least loss on validation windows."""
    head = pipeline.head
    assert isinstance(head, ForecastHead)
    rows = forecast_rows(pipeline, Subset.even(train, MOST), batch_size)
    checks = forecast_rows(pipeline, Subset.even(val, MOST // 5), batch_size)
    mixture = head.mixture
    assert mixture is not None
    with torch.inference_mode(False), torch.enable_grad():
        _learn(head, mixture, rows, checks)
    pipeline.settled |= {f"head.mixture.{name}" for name, _ in mixture.named_parameters()}


def _learn(head: ForecastHead, mixture: Mixture, rows: dict[str, Tensor], checks: dict[str, Tensor]) -> None:
    count = len(rows["x"])
    steps = max(count // BATCH, 1)
    optimiser = torch.optim.AdamW(mixture.parameters(), LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=EPOCHS * steps + 1, pct_start=0.05)
    order = torch.Generator().manual_seed(0)
    best, kept = _loss(head, checks), copy.deepcopy(mixture.state_dict())
    for _ in range(EPOCHS):
        head.train()
        for chosen in torch.randperm(count, generator=order).split(BATCH)[:steps]:
            loss = _objective(head, {name: value[chosen] for name, value in rows.items()})
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        now = _loss(head, checks)
        if now < best:
            best, kept = now, copy.deepcopy(mixture.state_dict())
    mixture.load_state_dict(kept)


@torch.no_grad()
def _loss(head: ForecastHead, rows: dict[str, Tensor]) -> float:
    head.eval()
    return float(_objective(head, rows))


def _objective(head: ForecastHead, rows: dict[str, Tensor]) -> Tensor:
    """Absolute error of the mean and pinball loss of the quantiles, in units that make windows of little and of much
    noise count alike: what is easily foretold (clean seasons) is where choosing the right method matters."""
    assert head.mixture is not None
    mean, quantiles = head.mixture.combine(head.mixture(rows["x"]), rows)
    unit = rows["wrong"].mean(-1).amin(1, keepdim=True) + FAINT
    known = rows["steps"].isfinite()
    gap = torch.where(known, rows["steps"], 0.0) / unit
    error = torch.nn.functional.smooth_l1_loss(mean / unit, gap, reduction="none", beta=0.2)
    levels = torch.tensor(head.config.quantiles, device=gap.device)
    beyond = gap.unsqueeze(-1) - quantiles / unit.unsqueeze(-1)
    pinball = torch.maximum(levels * beyond, (levels - 1) * beyond).mean(-1)
    return ((error + pinball) * known).sum() / known.sum().clamp_min(1)

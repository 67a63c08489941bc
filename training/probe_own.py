"""After the ridge regression that all variates share: what each variate is added by itself, shrunk by rolling trials.

Variates of one data set move alike but not the same, and return to levels of their own, which instance normalisation
takes away. Little is known of each, so the correction is a strongly penalised ridge on few inputs, and later blocks of
the training part judge what earlier ones give: one validation part is one season, and would flatter a level too much.

Shape legend: n sequences, r rank, f inputs (r + 2), h steps, v variates.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from polysense.heads.forecast import ForecastHead
from polysense.pipeline import Pipeline
from polysense.training.examples import Examples, Subset
from polysense.training.probe_mixture import forecast_rows
from polysense.training.ridge import refit

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the penalty, for inputs as a history of HUNDRED steps gives
HUNDRED = 100.0
BLOCKS = 6  # of the training part in time; the last three are each foretold from those before
MOST = 1500  # training windows
MOST_VALIDATION = 400
MOST_SEQUENCES = 24_000  # of all windows and variates, that memory holds

Rows = dict[str, Tensor]


@torch.no_grad()
def probe_own(pipeline: Pipeline, train: Examples, val: Examples, batch_size: int, shared: float) -> None:
    """Solves for `head.own` on what `head.linear` leaves over; stays without it where no strength helps.

    Args:
        pipeline: With the shared map solved for.
        train, val: Windows in order of time.
        batch_size: Of the encoder.
        shared: Strength of the shared ridge. Trials solve for it again from past blocks alone: what it leaves over of
            rows that it has seen is not what it leaves over of the future.
    """
    head = pipeline.head
    assert isinstance(head, ForecastHead) and head.own is not None
    variates = len(train.whole(0)[0])
    most = max(min(MOST, MOST_SEQUENCES // variates), 60)
    rows = forecast_rows(pipeline, Subset.even(train, most), batch_size)
    checks = forecast_rows(pipeline, Subset.even(val, min(MOST_VALIDATION, most)), batch_size)
    scaled = rows["x"] * rows["weight"].sqrt().unsqueeze(1)
    rank = min(head.own.basis.out_features, *scaled.shape)
    _, _, axes = torch.pca_lowrank(scaled, q=rank, center=False)
    head.own.basis.weight.zero_()
    head.own.basis.weight[:rank] = axes.T
    parts = [*_blocks(rows, variates), checks]
    trials = [_trial(head, _joined(parts[:i]), parts[i], shared) for i in range(BLOCKS // 2, BLOCKS + 1)]
    best, chosen = 1.0, None
    for strength in STRENGTHS:
        ratios = torch.tensor([_ratio(_solve(past, strength, len(head.own.weight)), future) for past, future in trials])
        # A gain in one season alone is luck as likely as not.
        mean = float(ratios.mean() + ratios.std() / len(ratios) ** 0.5)
        if mean < best:
            best, chosen = mean, strength
    if chosen is not None:
        solved = torch.cat([head.linear.weight.T, head.linear.bias[None]])
        head.own.weight.copy_(_solve(_reduced(head, rows, solved), chosen, len(head.own.weight)))
    pipeline.settled |= {"head.own.weight", "head.own.basis.weight"}


def _trial(head: ForecastHead, past: Rows, future: Rows, shared: float) -> tuple[Rows, Rows]:
    solution = refit(past["x"], _known(head, past), past["weight"], shared)
    return _reduced(head, past, solution), _reduced(head, future, solution)


def _known(head: ForecastHead, rows: Rows) -> Tensor:
    return rows["steps"][:, : head.config.horizon].nan_to_num(0.0)


def _reduced(head: ForecastHead, rows: Rows, shared: Float[Tensor, "f1 h"]) -> Rows:
    """Inputs of the correction, and what a shared map leaves over."""
    assert head.own is not None
    x = torch.cat([head.own.basis(rows["x"]), rows["place"]], 1)
    left = _known(head, rows) - (rows["x"] @ shared[:-1] + shared[-1])
    return {"x": x, "left": left, "weight": rows["weight"], "variate": rows["variate"]}


def _blocks(rows: Rows, variates: int) -> list[Rows]:
    windows = len(rows["x"]) // variates
    ends = [round(i * windows / BLOCKS) * variates for i in range(BLOCKS + 1)]
    return [{k: value[a:b] for k, value in rows.items()} for a, b in pairwise(ends)]


def _joined(parts: list[Rows]) -> Rows:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _solve(rows: Rows, strength: float, variates: int) -> Float[Tensor, "v f h"]:
    """The weighted ridge of each variate; its constant (the last input) is free."""
    x, weight = rows["x"].double(), rows["weight"].double().unsqueeze(1)
    power = (x.square() * weight).sum(0) / weight.sum()
    penalty = torch.cat([(power[:-2].sum() / HUNDRED).expand(len(power) - 2), power[-2:-1], 1e-4 * power[-1:]])
    out = x.new_zeros(variates, x.shape[1], rows["left"].shape[1])
    for v in range(variates):
        mine = rows["variate"] == v
        if mine.any():
            own = x[mine] * weight[mine]
            gram = own.T @ x[mine] + (strength * weight[mine].sum() * penalty + 1e-9).diag()
            out[v] = torch.linalg.solve(gram, own.T @ rows["left"][mine].double())
    return out.float()


def _ratio(solution: Float[Tensor, "v f h"], rows: Rows) -> float:
    """Weighted squared error with the correction relative to that without."""
    weight = rows["weight"].unsqueeze(1)
    added = torch.zeros_like(rows["left"])
    for v, own in enumerate(solution):
        mine = rows["variate"] == v
        added[mine] = rows["x"][mine] @ own
    before = (rows["left"].square() * weight).sum()
    return float(((rows["left"] - added).square() * weight).sum() / before.clamp_min(1e-12))

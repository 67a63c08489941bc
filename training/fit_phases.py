"""The phases of a fit: trees, the head solved for, tokenizer and head together, and what validation rows add.

A fit that goes on from a checkpoint does not solve again; what the probe learnt from is kept beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from polysense.heads.forecast import ForecastHead
from polysense.pipeline import Pipeline
from polysense.training.checkpoint import Keeper
from polysense.training.course import part
from polysense.training.examples import Examples, Subset
from polysense.training.fit_recipe import MAX_VALIDATION
from polysense.training.grow_trees import grow, regrow
from polysense.training.joint import Recipe, train_together
from polysense.training.probe import GRID, STRENGTHS, Probed, can_probe, find_order, probe, solve_again
from polysense.training.probe_forecast import probe_forecast
from polysense.training.progress import Progress, unheard
from polysense.training.token_cache import keep_tokens


@dataclass(frozen=True, slots=True)
class Run:
    """What `train_pipeline` did."""

    epochs: int  # of the joint phase
    probed: Probed | None = None  # the probe, where no epoch of the joint phase was better
    tried: Mapping[float, float] = field(default_factory=dict)  # loss by strength, of a probe over a grid

    def told(self) -> dict[str, Any]:
        """For the bundle's card: every strength that a probe over a grid tried."""
        return {"probe_losses": {f"{one:g}": round(loss, 4) for one, loss in self.tried.items()}} if self.tried else {}


def train_pipeline(
    pipeline: Pipeline,
    learning: Examples,
    validation: Examples,
    recipe: Recipe,
    progress: Progress,
    keeper: Keeper | None = None,
    board: str | None = None,
) -> Run:
    """Both phases, or what a checkpoint leaves of them; leaves the best state in the pipeline."""
    with torch.random.fork_rng([pipeline.device] if pipeline.device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)  # of dropout
        if grow(pipeline, learning, recipe.seed, progress.working):
            progress.say(f"grew boosted trees on {len(learning)} rows")
        if keeper is not None and keeper.under_way():
            probed = load_probed(keeper)
        else:
            probed = solve(pipeline, learning, validation, recipe, progress)
            if keeper is not None and probed is not None and recipe.epochs:
                save_probed(keeper, probed)
        watched = Subset.even(validation, MAX_VALIDATION)
        ready = keep_tokens(pipeline, learning, watched, recipe)
        epochs, first = train_together(*ready, recipe, progress, keeper, board)
        return Run(epochs, probed if first else None, probed.tried if recipe.grid and probed is not None else {})


def solve(
    pipeline: Pipeline, learning: Examples, validation: Examples, recipe: Recipe, progress: Progress
) -> Probed | None:
    """The first phase: what can be solved for without gradient descent."""
    if getattr(pipeline.head.config, "chain", False) == "found":
        found = find_order(pipeline, learning, recipe.batch_size)
        progress.say(f"chained the targets {' → '.join(found)}")
    if can_probe(pipeline.head):
        progress.say(f"probing {len(learning)} examples")
        strengths = GRID if recipe.grid else STRENGTHS
        probed = probe(pipeline, learning, validation, recipe.batch_size, strengths)
        if recipe.grid and probed is not None:
            progress.say("\n".join(probed.table()))
        return probed
    if isinstance(pipeline.head, ForecastHead):
        progress.say(f"solving a ridge regression on {len(learning)} windows")
        probe_forecast(pipeline, learning, validation, recipe.batch_size)
    return None


def finish(
    pipeline: Pipeline,
    run: Run,
    learning: Examples,
    validation: Examples,
    seed: int,
    own_validation: bool,
    working: Callable[[], None] = unheard,
) -> None:
    """Lets the validation rows teach too, once they have chosen and measured: grows trees anew, solves a probe anew.

    Args:
        own_validation: The data have a validation part of their own, which people may want to measure on later; then
            a probe stays as it is.
        working: Called now and then; what it raises ends it all.
    """
    if not regrow(pipeline, learning, validation, seed, working) and run.probed is not None and not own_validation:
        solve_again(pipeline, run.probed)


def save_probed(keeper: Keeper, probed: Probed) -> None:
    """Keeps what a probe learnt from: solving anew at the end wants it."""
    parts = {"train": probed.train, "val": probed.val}
    tensors = {f"{name}.x": x for name, (x, _) in parts.items()}
    tensors |= {f"{name}.y.{key}": value for name, (_, y) in parts.items() for key, value in y.items()}
    keeper.save(tensors, {"strength": probed.strength, "tried": list(probed.tried.items())}, "probe")


def load_probed(keeper: Keeper) -> Probed | None:
    """What `save_probed` kept; None where there was no probe."""
    if (kept := keeper.load("probe")) is None:
        return None
    tensors, facts = kept
    train, val = ((tensors[f"{name}.x"], part(tensors, f"{name}.y.")) for name in ("train", "val"))
    return Probed(train, val, facts["strength"], {float(s): float(loss) for s, loss in facts["tried"]})

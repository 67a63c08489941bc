"""What a fit leaves: facts, tables and pictures of what was measured, and the bundle that holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from polysense.pipeline import Pipeline
from polysense.training.card import History, make_card, worst_examples
from polysense.training.checkpoint import Keeper
from polysense.training.compute import is_main, wait_for_all
from polysense.training.examples import Examples
from polysense.training.metrics import Metric


def fill_card(
    pipeline: Pipeline,
    metric: Metric,
    history: History,
    validation: Examples,
    count: int = 0,
    draw: Callable[..., Any] | None = None,
) -> None:
    """Gives the pipeline its card: tables and pictures of what was measured.

    Args:
        pipeline: That was measured.
        metric: Filled with all of the validation examples, in order.
        history: Of the joint training.
        validation: What was measured on.
        count: Most wrong answers to show; 0: none.
        draw: What draws them.
    """
    pipeline.card = make_card(metric, pipeline.task.metric, history)
    if count and draw is not None:
        worst = worst_examples(pipeline, metric, validation, count, draw)
        pipeline.card = replace(pipeline.card, pictures={**pipeline.card.pictures, **worst})


def write_bundle(pipeline: Pipeline, out: str | Path, keeper: Keeper, device: str) -> Path:
    """Writes the bundle from the main process, whole or not at all, and only then removes the fit's checkpoints.

    Returns:
        Its folder.
    """
    path = pipeline.save_pretrained(out) if is_main() else Path(out).expanduser()
    wait_for_all(device)
    if is_main():
        keeper.remove()
    return path

"""`method="auto"`: a few ways to fine-tune are tried briefly, and the best of them on validation data is used."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polysense.core.errors import InputError
from polysense.tasks import TASKS
from polysense.training.checkpoint import Keeper
from polysense.training.fit import FitResult, fit

CANDIDATES = ("probe", "head", "lora", "houlsby", "scale")  # what differs most in what it changes, cheapest first
TRIAL_EPOCHS = 4


@dataclass(frozen=True, slots=True)
class Trial:
    """One way, tried."""

    method: str
    metric: str
    value: float
    trainable: int  # parameters
    seconds: float


def fit_best(
    task: str,
    data: str | Path,
    out: str | Path,
    *,
    candidates: Sequence[str] = CANDIDATES,
    trial_epochs: int = TRIAL_EPOCHS,
    say: Callable[[str], None] = print,
    **options: Any,
) -> FitResult:
    """Tries each candidate for a few epochs, says what came out, and fits the best one whole.

    Ties go to the one with fewer trainable parameters.

    Args:
        task, data, out: As for `fit`.
        candidates: Names that `fit` takes as `method`.
        trial_epochs: Of joint training in a trial.
        say: Takes the lines of the table.
        options: Further arguments of `fit`; `method` is chosen here.

    Raises:
        InputError: As `fit`; or there is nothing to choose from.
    """
    if not candidates:
        raise InputError("candidates", "there are none", f"name some, such as {', '.join(CANDIDATES)}")
    keeper = Keeper(out, options.get("resume"))
    if method := keeper.begun_with().get("method"):
        say(f"going on with {method}")
        return fit(task, data, out, method=method, **options)
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        for name in candidates:
            short = {**options, "epochs": trial_epochs, "progress": False, "tensorboard": None, "card": False}
            result = fit(task, data, Path(folder) / name, method=name, **short)
            metric = TASKS[task].metric
            trials.append(Trial(name, metric, result.metrics[metric], result.trainable, result.seconds))
            say(line(trials[-1], heading=len(trials) == 1))
    best = max(trials, key=lambda trial: (TASKS[task].sign * trial.value, -trial.trainable))
    say(f"fitting with {best.method}")
    return fit(task, data, out, method=best.method, **options)


def line(trial: Trial, heading: bool = False) -> str:
    """A row of the table."""
    row = f"{trial.method:12} {trial.value:12.4f} {trial.trainable:12,} {trial.seconds:8.0f}"
    return f"{'method':12} {trial.metric:>12} {'trainable':>12} {'seconds':>8}\n{row}" if heading else row

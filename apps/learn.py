"""`polysense fit`, `eval` and `models`: the training floor's results on the screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import polysense
from polysense.apps.inputs import check_model, choose_device, unknown


def fit(task: str, data: Path, out: Path, *, device: str = "auto", **options: Any) -> None:
    """Trains and shows the validation metrics. Options are those of `polysense.training.fit.fit`."""
    from polysense.tasks import TASKS
    from polysense.training.fit import fit as run

    if task not in TASKS:
        raise unknown(task, "task", TASKS)
    result = run(task, data, out, device=choose_device(device, options.get("threads")), **options)
    show_metrics(result.metrics, f"{task} on validation data")
    Console().print(f"{result.epochs} epochs, {result.seconds:.0f} s. Bundle: {result.path}", highlight=False)
    Console().print(f"Use it: polysense predict {result.path} FILES", style="bold", highlight=False)


def evaluate(bundle: str, data: Path, *, json_file: Path | None = None, device: str = "auto", **options: Any) -> None:
    """Measures and shows; options are those of `polysense.training.evaluate.evaluate`."""
    from polysense.training.evaluate import evaluate as run

    check_model(bundle)
    metrics = run(bundle, data, device=choose_device(device, options.get("threads")), **options)
    show_metrics(metrics, f"{bundle} on {data}")
    if json_file is not None:
        json_file.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def list_models() -> None:
    """A table of the installed bundles."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in ("name", "task", "measured", "on", "licence"):
        table.add_column(column, overflow="fold")
    for info in polysense.bundles():
        table.add_row(info.name, info.task, format_metrics(info.metrics), info.measured_on, info.licence)
    if table.row_count:
        Console().print(table)
    else:
        Console().print("No bundle is installed. Make one: polysense fit TASK DATA --out BUNDLE", highlight=False)


def format_metrics(metrics: dict[str, Any]) -> str:
    """The numbers among the metrics, "accuracy 0.912, loss 0.3"."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def show_metrics(metrics: dict[str, Any], title: str) -> None:
    table = Table("metric", "value", title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)

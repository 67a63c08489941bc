"""`polysense fit`, `eval` and `models`: the training floor's results on the screen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import polysense
from polysense.apps.inputs import check_model, choose_device, unknown
from polysense.core.errors import InputError


def fit(task: str, data: Path, out: Path, *, device: str = "auto", **options: Any) -> None:
    """Trains and shows the validation metrics. Options are those of `polysense.training.fit.fit`."""
    from polysense.apps.pictures import draw
    from polysense.tasks import TASKS
    from polysense.training.checkpoint import Keeper
    from polysense.training.compute import is_main
    from polysense.training.fit import fit as run

    if task not in TASKS:
        raise unknown(task, "task", TASKS)
    check_folder(options.get("report"))
    device = choose_device(device, options.get("threads"))
    if options.get("card_examples"):
        options["draw"] = draw
    if options.get("dry_run"):
        _show_plan(run, task, data, out, device=device, **options)
        return
    try:
        if options.get("method") == "auto":
            from polysense.training.choose import fit_best

            del options["method"]
            result = fit_best(task, data, out, device=device, say=Console(highlight=False).print, **options)
        else:
            result = run(task, data, out, device=device, **options)
    except KeyboardInterrupt:
        kept = "the same command with --resume goes on from the last checkpoint"
        told = kept if Keeper(out, resume=True).under_way() else "nothing had been learnt yet"
        Console(stderr=True, highlight=False).print(f"\ninterrupted: {told}.", soft_wrap=True)
        raise SystemExit(130) from None
    if not is_main():
        return
    show_metrics(result.metrics, f"{task} on validation data")
    Console().print(f"{result.epochs} epochs, {result.seconds:.0f} s. Bundle: {result.path}", highlight=False)
    Console().print(f"Use it: polysense predict {result.path} FILES", style="bold", highlight=False)


def _show_plan(run: Callable[..., Any], task: str, data: Path, out: Path, **options: Any) -> None:
    if options.get("method") == "auto":
        raise InputError("--method auto", "a dry run plans one method", "name it, for example --method head")
    for line in run(task, data, out, **options).plan.lines():
        name, _, text = line.partition(": ")
        Console().print(f"[bold]{name}[/bold]: {text}", highlight=False, soft_wrap=True)


def check(task: str, data: Path, *, seed: int = 0, val_share: float = 0.15, broken_share: float | None = None,
          report: Path | None = None, **options: Any) -> int:  # fmt: skip
    """Shows what is wrong with training data. Options are those of `open_sources`.

    Returns:
        0 where there is no warning, else 3.
    """
    from polysense.tasks import TASKS
    from polysense.training.check_data import BROKEN_SHARE, check_data
    from polysense.training.sources import open_sources

    if task not in TASKS:
        raise unknown(task, "task", TASKS)
    check_folder(report)
    sources = open_sources(TASKS[task], data, **options).with_validation(val_share, seed)
    _, found = check_data(sources, data, BROKEN_SHARE if broken_share is None else broken_share)
    for line in found.lines():
        Console().print(line, highlight=False, markup=False, soft_wrap=True)
    if report is not None:
        found.write(report)
    return 3 if found.warnings else 0


def check_folder(file: Path | None) -> None:
    """Makes sure before long work that a file of results has a folder to stand in."""
    if file is not None and not file.absolute().parent.is_dir():
        raise InputError(file, "its folder does not exist", f"create {file.parent} first")


def evaluate(bundle: str, data: Path, *, json_file: Path | None = None, device: str = "auto",
             engine: str = "torch", **options: Any) -> None:  # fmt: skip
    """Measures and shows; options are those of `polysense.training.evaluate.evaluate`."""
    from polysense.training.evaluate import evaluate as run

    check_model(bundle)
    check_folder(json_file)
    device = choose_device(device, options.get("threads"), engine)
    metrics = run(bundle, data, device=device, engine=engine, **options)
    show_metrics(metrics, f"{bundle} on {data}")
    if json_file is not None:
        json_file.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def list_models() -> None:
    """A table of the installed bundles: the metric that judges the task, no more; the rest is in their cards."""
    shipped = polysense.bundles()
    if not shipped:
        Console().print("No bundle is installed. Make one: polysense fit TASK DATA --out BUNDLE", highlight=False)
        return
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in ("name", "task", "measured"):
        table.add_column(column, no_wrap=True)
    table.add_column("licence")
    for info in shipped:
        name = f"{info.name} *" if info.default else info.name
        table.add_row(name, info.task, main_metric(info.task, info.metrics), info.licence)
    Console().print(table)
    Console().print("\n* is what the task's name alone stands for. Data and all metrics of a bundle:", highlight=False)
    Console().print(str(shipped[0].path.parent / "NAME" / "README.md"), highlight=False, soft_wrap=True)


def main_metric(task: str, metrics: dict[str, float]) -> str:
    """The metric that judges the task, "accuracy 0.912"; nothing where it was not measured."""
    from polysense.tasks import TASKS

    name = TASKS[task].metric
    return f"{name} {metrics[name]:.3f}" if name in metrics else ""


def show_metrics(metrics: dict[str, Any], title: str) -> None:
    Console().print(title, style="italic", highlight=False)  # a title of the table would wrap at the table's width
    table = Table("metric", "value", header_style="bold", box=None, pad_edge=False)
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)

"""`polysense try`: seven kinds of files, one table of answers, a picture each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import polysense
from polysense.apps.examples import Example, make_examples
from polysense.apps.screen import Gallery
from polysense.core.errors import InputError
from polysense.core.predictions import Prediction

MOST = 3  # answers shown of a file that holds many rows


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of an example: its answers and the milliseconds of a warm run, or an error."""

    example: Example
    answers: list[Prediction]
    milliseconds: float = 0.0
    error: InputError | None = None


def try_it(out: Path) -> int:
    """Makes the examples, answers them, shows a table and draws pictures.

    Args:
        out: Folder for `inputs/` and `pictures/`.

    Returns:
        The exit code: 0, or 1 if an example could not be answered.
    """
    screen, side = Console(), Console(stderr=True)
    examples = make_examples(out / "inputs")
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in ("file", "task"):
        table.add_column(name, no_wrap=True)
    table.add_column("answer", style="bold")  # the one that wraps, between its words
    table.add_column("confidence", justify="right", style="cyan")
    table.add_column("ms", justify="right", style="dim")
    pipelines: dict[str, Any] = {}
    failed = 0
    with side.status("Answering") if side.is_terminal else nullcontext():
        for result in answer(examples, pipelines):
            failed += result.error is not None
            for row in rows(result):
                table.add_row(*row)
            gallery = Gallery(out / "pictures" / result.example.task, result.example.modality)
            for one in result.answers[:MOST]:
                gallery.add(one)
    screen.print(table)
    encoders = {pipeline.encoder_hash for pipeline in pipelines.values()}
    kinds = len({example.modality for example in examples})
    if len(encoders) == 1 and not failed:
        screen.print(f"\n{kinds} kinds of input, one frozen encoder ({encoders.pop()[:12]}).", highlight=False)
    screen.print(f"Inputs and pictures: {out}", style="bold", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def answer(examples: list[Example], pipelines: dict[str, Any]) -> Iterator[Answered]:
    """Answers each example; a pipeline is loaded once and left in `pipelines`."""
    for example in examples:
        try:
            if example.task not in pipelines:
                pipelines[example.task] = _load(example)
            pipeline = pipelines[example.task]
            pipeline([example.path])  # the first run imports libraries and warms caches
            start = time.perf_counter()
            answers = pipeline([example.path])
            yield Answered(example, answers, 1000 * (time.perf_counter() - start))
        except InputError as error:
            yield Answered(example, [], error=error)


def _load(example: Example) -> Any:
    if not example.labels:
        return polysense.load(example.task)
    from polysense.zero_shot import zero_shot

    return zero_shot(example.modality, example.labels)


def rows(result: Answered) -> Iterator[tuple[str, ...]]:
    """Lines of the table; a file with many answers shows its first ones."""
    name, task = escape(result.example.path.name), result.example.task
    if result.error is not None:
        yield name, task, f"[red]failed: {escape(str(result.error))}[/red]", "", ""
    for i, one in enumerate(result.answers[:MOST]):
        confidence = "" if one.confidence is None else f"{one.confidence:.3f}"
        ms = f"{result.milliseconds:.0f}" if i == 0 else ""
        yield escape(Path(one.source).name), task, escape(one.answer()), confidence, ms
    if len(result.answers) > MOST:
        yield "", "", f"[dim]and {len(result.answers) - MOST} more[/dim]", "", ""

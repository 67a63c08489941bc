"""What `backtest` and `anomalies` share: a forecaster reads a file of series; what is found is shown and written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from rich.console import Console

import polysense
from polysense.apps.inputs import check_model, choose_device
from polysense.apps.result_files import TABLES, open_files, write_json, write_table
from polysense.apps.screen import note

if TYPE_CHECKING:
    import pandas as pd

MOST_LISTED = 12  # variates, moments, or series left out, on the screen

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Report(Generic[Found]):
    """How something is found in series, and told."""

    run: Callable[..., Found]  # of a pipeline and a file; `watch` is told how far it is
    table: Callable[[Found], pd.DataFrame]  # every single value
    record: Callable[[Found], dict[str, Any]]  # what matters of it, JSON-able
    draw: Callable[[Found, IO[bytes], str], None]  # under a title
    show: Callable[[Found, str], None]  # likewise, on the screen


def report_on(
    bundle: str,
    data: Path,
    kind: Report[Found],
    *,
    out: Path | None = None,
    plot: Path | None = None,
    json_file: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: bool = True,
    **options: Any,
) -> None:
    """Finds, shows and writes.

    Args:
        bundle: A forecaster's name, its task or a folder.
        data: File of series.
        kind: What is looked for.
        out: File for every single value: .csv or .parquet.
        plot: Picture: .png.
        json_file: File for what matters of it.
        device: "auto", "cpu", "cuda" …
        threads: CPU threads.
        progress: Show how far it is.
        options: Of `kind.run`.

    Raises:
        InputError: See there; or a file cannot be written, which is found before the work begins.
    """
    check_model(bundle)
    with open_files(data, {out: TABLES, plot: (".png",), json_file: ()}) as files:
        pipeline = polysense.load(bundle, device=choose_device(device, threads))
        with watched(progress) as watch:
            found = kind.run(pipeline, data, watch=watch, **options)
        if out is not None:
            write_table(kind.table(found), files[out], out.suffix.lower())
        if plot is not None:
            kind.draw(found, files[plot], f"{bundle} on {data.name}")
        if json_file is not None:
            write_json(kind.record(found), files[json_file])
        kind.show(found, f"{bundle} on {data}")
    for path in (out, plot, json_file):
        if path is not None and progress:
            note(f"wrote {path}")


@contextmanager
def watched(wanted: bool) -> Iterator[Any]:
    """What may be told how far it is: a bar on a terminal's stderr, None where there is none."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task("Forecasting", total=None)
        yield lambda done, total: bar.update(job, completed=done, total=total)


def note_skipped(names: Sequence[str]) -> None:
    """Says which series were too short, if any."""
    if names:
        listed = ", ".join(names[:MOST_LISTED]) + (" …" if len(names) > MOST_LISTED else "")
        note(f"left out, too short: {listed}")

"""`polysense anomalies`: where a file of series leaves the band that its past forecasts: a table, files, a picture.

Shape legend: t steps of a series.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import polysense
from polysense.anomalies import Anomalies
from polysense.anomalies import anomalies as run
from polysense.apps.backtest import (
    MOST_LISTED,
    STRIPS,
    TABLES,
    json_rows,
    open_files,
    shown_times,
    strips_of,
    variate_name,
    watched,
    write_json,
    write_table,
)
from polysense.apps.inputs import check_model, choose_device
from polysense.apps.panels import COLOURS, INK, quiet
from polysense.apps.screen import note

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ALARM = "#c23b3b"


def anomalies(
    bundle: str,
    data: Path,
    *,
    out: Path | None = None,
    plot: Path | None = None,
    json_file: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: bool = True,
    **options: Any,
) -> None:
    """Scores and shows; other options are those of `polysense.anomalies.anomalies`.

    Args:
        bundle: A forecaster's name, its task or a folder.
        data: File of series.
        out: File for every score: .csv or .parquet.
        plot: Picture: .png.
        json_file: File for the moments beyond the threshold.
        device: "auto", "cpu", "cuda" …
        threads: CPU threads.
        progress: Show how far it is.

    Raises:
        InputError: See there; or a file cannot be written, which is found before the work begins.
    """
    check_model(bundle)
    with open_files(data, {out: TABLES, plot: (".png",), json_file: ()}) as files:
        pipeline = polysense.load(bundle, device=choose_device(device, threads))
        with watched(progress) as watch:
            found = run(pipeline, data, watch=watch, **options)
        if out is not None:
            write_table(found.table, files[out], out.suffix.lower())
        if plot is not None:
            draw_anomalies(found, files[plot], f"{bundle} on {data.name}")
        if json_file is not None:
            record = {**counts(found), "moments": json_rows(found.moments), "skipped": list(found.skipped)}
            write_json(record, files[json_file])
        show(found, f"{bundle} on {data}")
    for path in (out, plot, json_file):
        if path is not None and progress:
            note(f"wrote {path}")


def counts(found: Anomalies) -> dict[str, Any]:
    """How much was scored, and how much of it lies outside."""
    score = found.table["score"]
    return {"threshold": found.threshold, "scored": int(score.notna().sum()),
            "anomalous": int((score > found.threshold).sum())}  # fmt: skip


def show(found: Anomalies, title: str) -> None:
    """The worst moments."""
    console = Console()
    console.print(title, style="italic", highlight=False, markup=False)
    number = counts(found)
    console.print(f"{number['anomalous']} of {number['scored']} values beyond a score of {found.threshold:g}, "
                  f"at {len(found.moments)} moments", highlight=False)  # fmt: skip
    if len(found.moments):
        table = Table("score", "variate", "from", header_style="bold", box=None, pad_edge=False)
        for name in ("rows", "value", "expected"):
            table.add_column(name, justify="right")
        for row in found.moments.head(MOST_LISTED).to_dict("records"):
            name = variate_name(str(row["source"]), str(row["variate"]))
            table.add_row(f"{row['score']:.1f}", escape(name), str(row["start"]), str(row["rows"]),
                          f"{row['value']:.5g}", f"{row['expected']:.5g}")  # fmt: skip
        if len(found.moments) > MOST_LISTED:
            table.add_row("", f"and {len(found.moments) - MOST_LISTED} more")
        console.print(table)
    if found.skipped:
        names = ", ".join(found.skipped[:MOST_LISTED]) + (" …" if len(found.skipped) > MOST_LISTED else "")
        note(f"left out, too short: {names}")


def draw_anomalies(found: Anomalies, file: str | Path | IO[bytes], title: str = "") -> None:
    """Writes one PNG: up to four variates with the band that was expected, what lies outside marked in red. Those with
    the highest scores are drawn.

    Args:
        found: The scores.
        file: Path, or file open for bytes.
        title: First line; the number of anomalies follows under it.
    """
    pairs = [(frame, i) for frame in found.series for i in range(len(frame.names))]
    keys = [(frame.source, frame.names[i]) for frame, i in pairs]
    worst = found.table.groupby(["source", "variate"], sort=False)["score"].max().fillna(0.0)
    chosen = sorted(sorted(range(len(pairs)), key=lambda i: -worst[keys[i]])[:STRIPS])
    number = counts(found)
    words = f"{number['anomalous']} of {number['scored']} values beyond a score of {found.threshold:g}"
    with strips_of([pairs[i] for i in chosen], len(pairs), title, words, file) as strips:
        for colour, axes, (frame, i) in zip(COLOURS, strips, (pairs[i] for i in chosen)):
            rows = found.table[(found.table["source"] == frame.source) & (found.table["variate"] == frame.names[i])]
            _strip(axes, rows, shown_times(frame.times, rows, len(frame.values)), found.threshold, colour)


def _strip(axes: Axes, rows: pd.DataFrame, x: np.ndarray, threshold: float, colour: str) -> None:
    """One variate: the band, the values over it, and what is beyond the threshold."""
    beyond = (rows["score"] > threshold).to_numpy()
    axes.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.3, linewidth=0, label="expected")
    axes.plot(x, rows["value"], color=INK, linewidth=0.9, label="value")
    axes.plot(x[beyond], rows["value"][beyond], linestyle="none", marker="o", markersize=4.5, color=ALARM,
              label="anomaly", zorder=5)  # fmt: skip
    # A band that a wild forecast throws far out must not flatten the values.
    low, high = np.nanmin(rows["value"]), np.nanmax(rows["value"])
    room = 0.15 * max(high - low, 1e-9 + 1e-6 * abs(high))
    axes.set_ylim(low - room, high + room)
    axes.margins(x=0.01)
    quiet(axes)

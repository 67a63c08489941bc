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

from polysense.anomalies import Anomalies
from polysense.anomalies import anomalies as run
from polysense.apps.panels import COLOURS, INK, quiet
from polysense.apps.result_files import json_rows
from polysense.apps.series_report import MOST_LISTED, Report, note_skipped, report_on
from polysense.apps.strips import STRIPS, rows_of, shown_times, strips_of, variate_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ALARM = "#c23b3b"


def anomalies(bundle: str, data: Path, **options: Any) -> None:
    """Scores, shows and writes: every score as a table, the moments beyond the threshold as JSON.

    Args:
        bundle: A forecaster's name, its task or a folder.
        data: File of series.
        options: Those of `report_on` and of `polysense.anomalies.anomalies`.

    Raises:
        InputError: See there.
    """
    kind = Report(run, lambda found: found.table, to_record, draw_anomalies, show)
    report_on(bundle, data, kind, **options)


def to_record(found: Anomalies) -> dict[str, Any]:
    """Everything but the single scores, JSON-able."""
    return {**counts(found), "moments": json_rows(found.moments), "skipped": list(found.skipped)}


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
    note_skipped(found.skipped)


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
            rows = rows_of(found.table, frame, i)
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

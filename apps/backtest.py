"""`polysense backtest`: how good a bundle's forecasts of a file would have been, as a table, files and a picture.

Shape legend: t steps of a series, h steps of a forecast.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polysense.apps.panels import COLOURS, GREY, INK, quiet
from polysense.apps.result_files import json_rows
from polysense.apps.series_report import MOST_LISTED, Report, note_skipped, report_on
from polysense.apps.strips import STRIPS, rows_of, shown_times, strips_of, variate_name
from polysense.training.backtest import BASELINES, Backtest
from polysense.training.backtest import backtest as run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

BEFORE = 48  # steps drawn before the first origin, at least


def backtest(bundle: str, data: Path, **options: Any) -> None:
    """Measures, shows and writes: forecast values as a table, metrics as JSON.

    Args:
        bundle: A forecaster's name, its task or a folder.
        data: File of series.
        options: Those of `report_on` and of `polysense.training.backtest.backtest`.

    Raises:
        InputError: See there.
    """
    kind = Report(run, lambda result: result.forecasts, to_record, draw_backtest, show)
    report_on(bundle, data, kind, **options)


def to_record(result: Backtest) -> dict[str, Any]:
    """Everything but the single values, JSON-able."""
    return {"metrics": result.metrics, "baselines": result.baselines, "by_variate": json_rows(result.by_variate),
            "by_origin": json_rows(result.by_origin), "skipped": list(result.skipped)}  # fmt: skip


def show(result: Backtest, title: str) -> None:
    """The metrics beside those of the baselines, then each variate's where there are several."""
    console = Console()
    console.print(title, style="italic", highlight=False, markup=False)
    h, count = int(result.forecasts["step"].max()), len(result.by_origin)
    many = f" of {len(result.series)} series" if len(result.series) > 1 else ""
    values = int(result.by_variate["values"].sum())
    console.print(f"{count} origins{many}, {h} steps each, {values} true values", highlight=False)
    table = Table("metric", header_style="bold", box=None, pad_edge=False)
    for name in ("forecast", *BASELINES):
        table.add_column(name, justify="right")
    for metric, value in result.metrics.items():
        others = [result.baselines[name].get(metric) for name in BASELINES]
        table.add_row(metric, f"{value:.4f}", *("" if other is None else f"{other:.4f}" for other in others))
    console.print(table)
    if len(result.by_variate) > 1:
        console.print()
        console.print(_variates(result))
    note_skipped(result.skipped)


def _variates(result: Backtest) -> Table:
    """mase of each variate, which needs no unit, and the coverage."""
    table = Table("variate", header_style="bold", box=None, pad_edge=False)
    shown = {"season": "season", "mae": "mae", "mase": "mase", "mase_seasonal_naive": "seasonal naive",
             "mase_repeat_last": "repeat last", "coverage": "coverage"}  # fmt: skip
    shown = {column: name for column, name in shown.items() if column in result.by_variate}
    for name in shown.values():
        table.add_column(name, justify="right")
    for row in result.by_variate.head(MOST_LISTED).to_dict("records"):
        cells = [str(row[c]) if c == "season" else "" if np.isnan(row[c]) else f"{row[c]:.4f}" for c in shown]
        table.add_row(escape(variate_name(str(row["source"]), str(row["variate"]))), *cells)
    if len(result.by_variate) > MOST_LISTED:
        table.add_row(f"and {len(result.by_variate) - MOST_LISTED} more")
    return table


def draw_backtest(result: Backtest, file: str | Path | IO[bytes], title: str = "") -> None:
    """Writes one PNG: the true series with the forecasts and bands from every origin, up to four variates.

    Args:
        result: The backtest.
        file: Path, or file open for bytes.
        title: First line; the metrics follow under it.
    """
    pairs = [(frame, i) for frame in result.series for i in range(len(frame.names))]
    with strips_of(pairs[:STRIPS], len(pairs), title, _summary(result), file) as strips:
        for number, (axes, (frame, i)) in enumerate(zip(strips, pairs)):
            rows = rows_of(result.forecasts, frame, i)
            x = shown_times(frame.times, rows, len(frame.values))
            _strip(axes, frame.values[:, i], x, _starts(frame.times, rows), rows, COLOURS[number])


def _summary(result: Backtest) -> str:
    """ "mase 0.71 (seasonal naive 1.02, repeat last 1.90)   ·   coverage 78% of 80%"."""
    name = "mase" if "mase" in result.metrics else "mae"
    others = ", ".join(f"{other} {scores[name]:.3g}" for other, scores in result.baselines.items())
    words = f"{name} {result.metrics[name]:.3g} ({others})"
    if "coverage" in result.metrics:
        words += f"   ·   coverage {result.metrics['coverage']:.0%} of {result.metrics['coverage_wanted']:.0%} wanted"
    return words


def _strip(axes: Axes, truth: np.ndarray, x: np.ndarray, starts: list[int], rows: pd.DataFrame, colour: str) -> None:
    """One variate: what was true, and what was forecast from each origin."""
    columns = sorted((str(c) for c in rows.columns if str(c).startswith("q")), key=lambda column: float(column[1:]))
    pairs = [(low, high) for low, high in zip(columns, columns[::-1]) if float(low[1:]) < 0.5 < float(high[1:])]
    h = int(rows["step"].max())
    first = max(0, starts[0] - max(h, BEFORE))
    axes.plot(x[first:], truth[first:], color=INK, linewidth=1.2, label="true", zorder=5)
    for k, (start, (_, part)) in enumerate(zip(starts, rows.groupby("origin", sort=False))):
        future = x[start : start + h]
        axes.axvline(future[0], color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        for low, high in pairs:
            label = "_" if k else f"{float(low[1:]):.0%} to {float(high[1:]):.0%}"
            if h == 1:
                axes.vlines(future, part[low], part[high], color=colour, alpha=0.3, linewidth=5, label=label)
            else:
                axes.fill_between(future, part[low], part[high], color=colour, alpha=0.2, linewidth=0, label=label)
        axes.plot(future, part["mean"], color=colour, linewidth=1.8, marker="o" if h == 1 else None, markersize=4,
                  label="_" if k else "forecast", zorder=4)  # fmt: skip
    axes.margins(x=0.01)
    quiet(axes)


def _starts(times: np.ndarray | None, rows: pd.DataFrame) -> list[int]:
    """The origins as row numbers; a clock may show a time twice, so they are looked for in UTC."""
    origins = rows["origin"].drop_duplicates()
    if times is None:
        return origins.tolist()
    if origins.dt.tz is not None:
        origins = origins.dt.tz_convert("UTC").dt.tz_localize(None)
    return np.searchsorted(times, origins.to_numpy()).tolist()

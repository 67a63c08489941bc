"""`polysense backtest`: how good a bundle's forecasts of a file would have been, as a table, files and a picture.

Shape legend: t steps of a series, h steps of a forecast.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import polysense
from polysense.apps.inputs import check_model, choose_device
from polysense.apps.panels import COLOURS, GREY, INK, few_dates, plain, quiet, split
from polysense.apps.pictures import SIZE
from polysense.apps.screen import note
from polysense.core.errors import InputError
from polysense.data.writers import Writer
from polysense.training.backtest import BASELINES, Backtest
from polysense.training.backtest import backtest as run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from polysense.data.time_series import SeriesFrame

STRIPS = 4  # variates drawn
MOST_LISTED = 12  # variates, or series left out, on the screen
TABLES = (".csv", ".parquet")
BEFORE = 48  # steps drawn before the first origin, at least


class Whole(Writer):
    """A file of bytes that appears when its context is left without an exception."""

    binary: ClassVar[bool] = True


def backtest(
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
    """Measures and shows; other options are those of `polysense.training.backtest.backtest`.

    Args:
        bundle: A forecaster's name, its task or a folder.
        data: File of series.
        out: File for every forecast value: .csv or .parquet.
        plot: Picture: .png.
        json_file: File for the metrics.
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
            result = run(pipeline, data, watch=watch, **options)
        if out is not None:
            write_table(result.forecasts, files[out], out.suffix.lower())
        if plot is not None:
            draw_backtest(result, files[plot], f"{bundle} on {data.name}")
        if json_file is not None:
            write_json(to_record(result), files[json_file])
        show(result, f"{bundle} on {data}")
    for path in (out, plot, json_file):
        if path is not None and progress:
            note(f"wrote {path}")


@contextmanager
def open_files(data: Path, wanted: Mapping[Path | None, tuple[str, ...]]) -> Iterator[dict[Path, IO[bytes]]]:
    """The files to write, each with the endings that it may have (none: any), complete or not there in the end.

    Raises:
        InputError: There are no data to begin with, or a file cannot be written.
    """
    if not data.exists():
        raise InputError(data, "there is no such file", "check the path")
    named = {path: fitting for path, fitting in wanted.items() if path is not None}
    for path, fitting in named.items():
        if fitting and path.suffix.lower() not in fitting:
            raise InputError(path, f"cannot write {path.suffix or 'a file without ending'}",
                             f"end the name with {' or '.join(fitting)}")  # fmt: skip
    with ExitStack() as stack:
        yield {path: stack.enter_context(Whole(path)).file for path in named}


@contextmanager
def watched(wanted: bool) -> Iterator[Any]:
    """What `watch` of a backtest may be told: a bar on a terminal's stderr, None where there is none."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task("Forecasting", total=None)
        yield lambda done, total: bar.update(job, completed=done, total=total)


def write_table(table: pd.DataFrame, file: IO[bytes], ending: str) -> None:
    """A table as .csv or .parquet."""
    if ending == ".parquet":
        table.to_parquet(file, index=False)
    else:
        file.write(table.to_csv(index=False).encode())


def write_json(record: dict[str, Any], file: IO[bytes]) -> None:
    file.write((json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows, JSON-able."""
    return [{str(key): json_value(value) for key, value in row.items()} for row in table.to_dict("records")]


def to_record(result: Backtest) -> dict[str, Any]:
    """Everything but the single values, JSON-able."""
    return {"metrics": result.metrics, "baselines": result.baselines, "by_variate": json_rows(result.by_variate),
            "by_origin": json_rows(result.by_origin), "skipped": list(result.skipped)}  # fmt: skip


def json_value(value: Any) -> Any:
    """A table's cell as JSON has it; null for what is unknown."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


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
    if result.skipped:
        names = ", ".join(result.skipped[:MOST_LISTED]) + (" …" if len(result.skipped) > MOST_LISTED else "")
        note(f"left out, too short: {names}")


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


def variate_name(source: str, variate: str) -> str:
    """A variate's name, with the series' number or id where a file holds several: "#3 load"."""
    path, sign, series = source.rpartition("#")
    return variate if not sign or not path or series == variate else f"#{series} {variate}"


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
            rows = result.forecasts
            rows = rows[(rows["source"] == frame.source) & (rows["variate"] == frame.names[i])]
            x = shown_times(frame.times, rows, len(frame.values))
            _strip(axes, frame.values[:, i], x, _starts(frame.times, rows), rows, COLOURS[number])


@contextmanager
def strips_of(
    pairs: Sequence[tuple[SeriesFrame, int]], total: int, title: str, words: str, file: str | Path | IO[bytes]
) -> Iterator[Sequence[Axes]]:
    """A picture of one strip for each variate, to be drawn into inside the `with`; it is written in the end.

    Args:
        pairs: Series and number of each variate.
        total: Variates that there are.
        title: First line.
        words: Second line.
        file: Path, or file open for bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    height = SIZE[1] * (0.75 + 0.25 * len(pairs))
    figure = Figure(figsize=(SIZE[0], height), dpi=100, facecolor="white",
                    layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))  # fmt: skip
    FigureCanvasAgg(figure)
    top, body = split(figure, 2, 1, height_ratios=(1, 1.5 * height))
    title = title if len(title) <= 66 else title[:65] + "…"
    top.text(0.012, 0.60, plain(title), fontsize=17, weight="bold", color=INK, va="center")
    top.text(0.012, 0.02, words, fontsize=11, color=GREY, va="center")
    one_axis = len({frame.source for frame, _ in pairs}) == 1
    strips = list(body.subplots(len(pairs), 1, sharex=one_axis, squeeze=False)[:, 0])
    yield strips
    for number, (axes, (frame, i)) in enumerate(zip(strips, pairs)):
        axes.set_ylabel(plain(variate_name(frame.source, frame.names[i]))[:16], color=INK, fontsize=11)
        if not one_axis or number + 1 == len(pairs):
            few_dates(axes, frame.times is not None)
    _legend(strips[0])
    if total > len(pairs):
        strips[-1].set_xlabel(f"{len(pairs)} of {total} variates", color=GREY)
    figure.savefig(file, format="png")


def _summary(result: Backtest) -> str:
    """ "mase 0.71 (seasonal naive 1.02, repeat last 1.90)   ·   coverage 78% of 80%"."""
    name = "mase" if "mase" in result.metrics else "mae"
    others = ", ".join(f"{other} {scores[name]:.3g}" for other, scores in result.baselines.items())
    words = f"{name} {result.metrics[name]:.3g} ({others})"
    if "coverage" in result.metrics:
        words += f"   ·   coverage {result.metrics['coverage']:.0%} of {result.metrics['coverage_wanted']:.0%} wanted"
    return words


def shown_times(times: np.ndarray | None, rows: pd.DataFrame, t: int) -> np.ndarray:
    """The whole series' axis: row numbers, or times as a clock of the forecasts' zone shows them."""
    import pandas as pd

    if times is None:
        return np.arange(t)
    zone = rows["time"].dt.tz
    index = pd.DatetimeIndex(times)
    return (index if zone is None else index.tz_localize("UTC").tz_convert(zone).tz_localize(None)).to_numpy()


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


def _legend(axes: Axes) -> None:
    """Above the strip; inner bands, which lie over outer ones, as dark as there."""
    from matplotlib.patches import Rectangle

    count = len(axes.get_legend_handles_labels()[0])
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=count, frameon=False, fontsize=10,
                         labelcolor=INK, borderaxespad=0.2)  # fmt: skip
    for depth, patch in enumerate(handle for handle in legend.legend_handles if isinstance(handle, Rectangle)):
        patch.set_alpha(0.2 * (depth + 1))

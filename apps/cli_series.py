"""Commands for files of series: backtest, anomalies, impute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polysense.apps.cli_options import BatchSize, Device, Threads

Forecaster = Annotated[str, typer.Argument(help="any-series, or the folder of a bundle for forecasting.")]
SeriesFile = Annotated[Path, typer.Argument(help="A file of series.")]
Time = Annotated[str | None, typer.Option(help="Column that holds the time (default: found).")]
Columns = Annotated[str | None, typer.Option(help="Variates to look at, a,b (default: all).")]


def backtest(
    bundle: Annotated[str, typer.Argument(help="any-series, or the folder of a bundle for forecasting.")],
    file: Annotated[Path, typer.Argument(help="A file of series.")],
    time: Annotated[str | None, typer.Option(help="Column that holds the time (default: found).")] = None,
    target: Annotated[str | None, typer.Option(help="Variates to forecast, a,b (default: all).")] = None,
    horizon: Annotated[int | None, typer.Option(min=1, help="Steps to forecast (default: as trained).")] = None,
    origins: Annotated[int, typer.Option(min=1, help="Moments to forecast from, at most.")] = 10,
    step: Annotated[int | None, typer.Option(min=1, help="Rows between them (default: the horizon).")] = None,
    season: Annotated[int | None, typer.Option(min=1, help="Steps of a season (default: found).")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="All forecast values: .csv or .parquet.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture: .png.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the metrics to this file too.")] = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measures how good forecasts of a file of series would have been."""
    from polysense.apps.backtest import backtest as run

    run(bundle, file, time=time, target=target, horizon=horizon, origins=origins, step=step, season=season, out=out,
        plot=plot, json_file=json_file, batch_size=batch_size, device=device, threads=threads,
        progress=not quiet)  # fmt: skip


def anomalies(
    bundle: Forecaster,
    file: SeriesFile,
    time: Time = None,
    columns: Columns = None,
    step: Annotated[int | None, typer.Option(min=1, help="Rows forecast at a time (default: 24).")] = None,
    threshold: Annotated[float, typer.Option(min=0, help="Score from which a value counts; 1: the band's edge.")] = 3.0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="All scores: .csv or .parquet.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture: .png.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was found to this file too.")] = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Finds values that lie far outside what the past of their series forecasts."""
    from polysense.apps.anomalies import anomalies as run

    run(bundle, file, time=time, columns=columns, step=step, threshold=threshold, out=out, plot=plot,
        json_file=json_file, batch_size=batch_size, device=device, threads=threads, progress=not quiet)  # fmt: skip


def impute(
    bundle: Forecaster,
    file: SeriesFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The series without gaps: .csv or .parquet.")],
    time: Time = None,
    columns: Columns = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Fills the gaps of a file of series, from both sides."""
    from polysense.apps.impute import impute as run

    run(bundle, file, out, time=time, columns=columns, batch_size=batch_size, device=device, threads=threads)

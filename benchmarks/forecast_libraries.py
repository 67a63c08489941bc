"""Forecasts beside other libraries, in one run: `python benchmarks/forecast_libraries.py DATA [--extras DIR] …`.

statsforecast fits each series by itself, neuralforecast's NHITS (300 steps, usual settings) and a polysense forecaster
of its own learn from all histories of a set, `any-series` learns nothing. Sets: generated series (hourly, monthly,
random walks), M4 weekly and hourly with their official test parts, of which every K-th series is taken. Printed are
sMAPE, MASE (the errors of the season of the competition), CRPS (twice the mean pinball loss over five quantiles, over
the scale of MASE), the coverage of the 80% band, and CPU seconds of one thread, learning included.

Shape legend: n series, h steps, 5 quantiles.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from anomalies import MAKERS
from jaxtyping import Float
from nixtla import LEVELS
from sets import read_m4

import polysense
from polysense.core.predictions import Series
from polysense.pipeline import Pipeline
from polysense.training.backtest import naive_error
from polysense.training.fit import fit

MODELS = ("SeasonalNaive", "AutoETS", "AutoTheta", "NHITS")
INSTALL = (
    "install them outside the project: uv pip install --target DIR statsforecast neuralforecast, then --extras DIR"
)


@dataclass(frozen=True)
class Set:
    """Series to forecast."""

    name: str
    histories: list[Float[np.ndarray, " t"]]
    futures: Float[np.ndarray, "n h"]
    season: int  # that models are told
    scale: int  # season of MASE


def generated(count: int = 8, h: int = 24) -> Iterator[Set]:
    for name, maker in MAKERS.items():
        made = [maker(np.random.default_rng(1000 + seed)) for seed in range(count)]
        season = 24 if name == "hourly" else made[0][1]
        yield Set(
            f"generated, {name}", [x[:-h] for x, *_ in made], np.stack([x[-h:] for x, *_ in made]), season, season
        )


def m4(data: Path, name: str, every: int, season: int, scale: int) -> Set:
    series = read_m4(data / "timeseries_forecasting" / name)[::every]
    return Set(name, [history for _, history, _ in series], np.stack([future for *_, future in series]), season, scale)


def by_polysense(pipeline: Pipeline, one: Set) -> Float[np.ndarray, "n h 5"]:
    h = one.futures.shape[1]
    answers: list[Series] = pipeline([history for history in one.histories])
    return np.stack([np.stack([answer.quantiles[level][:h, 0] for level in LEVELS[:2]] + [answer.mean[:h, 0]]
                              + [answer.quantiles[level][:h, 0] for level in LEVELS[3:]], -1)
                     for answer in answers])  # fmt: skip


def fitted(one: Set, epochs: int, folder: Path) -> Pipeline:
    """A forecaster that learnt from the histories alone."""
    width = max(map(len, one.histories))
    lines = ["id," + ",".join(f"V{i + 1}" for i in range(width))]
    for number, history in enumerate(one.histories):
        lines.append(f"s{number}," + ",".join(map(str, history)) + "," * (width - len(history)))
    (folder / "lines.csv").write_text("\n".join(lines) + "\n")
    h = one.futures.shape[1]
    fit("forecasting", folder / "lines.csv", folder / "bundle", horizon=h, context=max(4 * h, 2 * one.season),
        borders=(0.85, 0.15, 0.0), epochs=epochs, progress=False, threads=1)  # fmt: skip
    return polysense.load(folder / "bundle")


def others(one: Set, models: list[str], extras: str | None, folder: Path) -> dict[str, np.ndarray]:
    """What `nixtla.py` answers."""
    np.savez(folder / "in.npz", values=np.concatenate(one.histories), lengths=[len(x) for x in one.histories],
             horizon=one.futures.shape[1], season=one.season, models=models)  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"PYTHONPATH": extras} if extras else {})}
    script = Path(__file__).with_name("nixtla.py")
    command = [sys.executable, str(script), str(folder / "in.npz"), str(folder / "out.npz")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(
            f"statsforecast or neuralforecast did not run ({run.stderr.strip().splitlines()[-1]}): {INSTALL}"
        )
    return dict(np.load(folder / "out.npz"))


def answers(
    one: Set, models: list[str], extras: str | None, epochs: int, folder: Path
) -> Iterator[tuple[str, Float[np.ndarray, "n h 5"], float]]:
    """Every forecaster's name, quantiles and CPU seconds."""
    found = others(one, models, extras, folder)
    for model in models:
        yield model, found[model], float(found[f"{model} seconds"][1])
    start = time.process_time()
    yield "any-series", by_polysense(polysense.load("any-series"), one), time.process_time() - start
    start = time.process_time()
    yield "polysense, fitted", by_polysense(fitted(one, epochs, folder), one), time.process_time() - start


def scores(one: Set, found: Float[np.ndarray, "n h 5"]) -> list[float]:
    """sMAPE, MASE, CRPS over the scale, coverage."""
    true, mean = one.futures, found[..., 2]
    scale = np.array([naive_error(history, one.scale) for history in one.histories])[:, None]
    gap = true[..., None] - found
    pinball = np.maximum(np.array(LEVELS) * gap, (np.array(LEVELS) - 1) * gap).mean(-1)
    return [
        float(200 * np.mean(np.abs(true - mean) / (np.abs(true) + np.abs(mean)))),
        float(np.mean(np.abs(true - mean) / scale)),
        float(np.mean(2 * pinball / scale)),
        float(np.mean((true >= found[..., 0]) & (true <= found[..., 4]))),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--extras", help="folder that statsforecast and neuralforecast are installed in")
    parser.add_argument("--every", type=int, default=8, help="of the M4 series (default: 8)")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="AutoARIMA is another one, and slow")
    parser.add_argument("--epochs", type=int, default=5, help="of the fitted polysense forecaster (default: 5)")
    given = parser.parse_args()
    official = [m4(given.data, "m4_weekly", given.every, 1, 1), m4(given.data, "m4_hourly", given.every, 24, 24)]
    print("| set | by | sMAPE | MASE | CRPS | coverage of .80 | s |\n|---|---|---|---|---|---|---|")
    for one in [*generated(), *official]:
        with tempfile.TemporaryDirectory() as name:
            for model, found, seconds in answers(one, given.models, given.extras, given.epochs, Path(name)):
                cells = " | ".join(f"{score:.3f}" for score in scores(one, found))
                print(f"| {one.name} ({len(one.histories)}) | {model} | {cells} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()

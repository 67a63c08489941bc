"""Forecasts by statsforecast and neuralforecast, in a process of its own: `python benchmarks/nixtla.py IN.npz OUT.npz`.

Their numpy and pandas may be other ones than polysense's, so series and answers go through files; nothing of polysense
is imported. `forecast_libraries.py` starts it.

Shape legend: n series, h steps, 5 quantiles.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
COLUMNS = ("-lo-80", "-lo-50", "", "-hi-50", "-hi-80")  # the same of their tables; the mean stands for the median
MOST_STEPS = 300  # of a neural network's training


def table_of(values: np.ndarray, lengths: np.ndarray) -> pd.DataFrame:
    """Series after each other as the libraries want them: unique_id, ds, y."""
    ids = np.repeat(np.arange(len(lengths)), lengths)
    return pd.DataFrame({"unique_id": ids, "ds": np.concatenate([np.arange(t) for t in lengths]), "y": values})


def classical(name: str, table: pd.DataFrame, h: int, season: int) -> np.ndarray:
    """Quantiles (n, h, 5) by one of statsforecast's models, fitted to each series by itself."""
    from statsforecast import StatsForecast, models

    model = getattr(models, name)(season_length=season, alias="it")
    found = StatsForecast([model], freq=1, n_jobs=1).forecast(df=table, h=h, level=[50, 80])
    return np.stack([found["it" + column].to_numpy().reshape(-1, h) for column in COLUMNS], -1)


def neural(name: str, table: pd.DataFrame, h: int, season: int) -> np.ndarray:
    """The same by one of neuralforecast's models, trained on all series together."""
    from neuralforecast import NeuralForecast, models
    from neuralforecast.losses.pytorch import MQLoss

    quiet = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    model = getattr(models, name)(h=h, input_size=max(2 * h, 2 * season), max_steps=MOST_STEPS, scaler_type="robust",
                                  loss=MQLoss(quantiles=list(LEVELS)), alias="it", random_seed=0,
                                  start_padding_enabled=True, **quiet)  # fmt: skip
    runner = NeuralForecast([model], freq=1)
    runner.fit(table)
    found = runner.predict()
    columns = [c for c in found.columns if c.startswith("it")]  # in order of the quantiles
    return np.sort(np.stack([found[c].to_numpy().reshape(-1, h) for c in columns], -1), -1)


def main(source: str, target: str) -> None:
    warnings.simplefilter("ignore")
    given = np.load(source)
    table = table_of(given["values"], given["lengths"])
    h, season = int(given["horizon"]), int(given["season"])
    answers = {}
    for name in given["models"].tolist():
        run: Callable[..., np.ndarray] = neural if name in ("NHITS", "PatchTST") else classical
        start = time.perf_counter(), time.process_time()
        answers[name] = run(name, table, h, season)
        answers[f"{name} seconds"] = np.array([time.perf_counter() - start[0], time.process_time() - start[1]])
        print(f"{name}: {time.process_time() - start[1]:.0f} s", file=sys.stderr, flush=True)
    np.savez(target, **answers)


if __name__ == "__main__":
    main(*sys.argv[1:])

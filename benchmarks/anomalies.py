"""Planted anomalies: `python benchmarks/anomalies.py [BUNDLE] [SERIES]`.

Generated series of 1,000 steps of three kinds (hourly with days and weekends; monthly with a trend; a random walk),
SERIES of each, with spikes, level shifts that last 30 to 60 rows, or seasons of which the course is missing. Scores of
the forecaster stand beside the z-score of the seasonal naive residual, which is told the season and takes its
deviation from the whole series by its quartiles. A quarter of an hour of one core for 20 series of each kind.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import average_precision_score, roc_auc_score

import polysense
from polysense.anomalies import THRESHOLD, anomalies
from polysense.pipeline import Pipeline

STEPS, EVENTS = 1000, 6
Z = 3.8  # deviations: what a score of 3 is for normal errors
Series = Float[np.ndarray, " t"]
Rows = Bool[np.ndarray, " t"]


def hourly(rng: np.random.Generator) -> tuple[Series, int, float]:
    """A series, its season and the deviation of its noise."""
    k = np.arange(STEPS)
    weekend = (k // 24) % 7 >= 5
    noise = rng.uniform(0.1, 0.5)
    course = np.sin(2 * np.pi * (k + rng.integers(24)) / 24) + 0.4 * np.sin(4 * np.pi * k / 24)
    return 10 + 2 * course * np.where(weekend, 0.6, 1.0) + red(rng, 0.6) * noise, 168, noise


def monthly(rng: np.random.Generator) -> tuple[Series, int, float]:
    k = np.arange(STEPS)
    noise = rng.uniform(0.1, 0.4)
    return 50 + 0.02 * k * rng.normal() + 2 * np.resize(rng.normal(size=12), STEPS) + noise * red(rng, 0.3), 12, noise


def walk(rng: np.random.Generator) -> tuple[Series, int, float]:
    return rng.normal(size=STEPS).cumsum(), 1, 1.0


def red(rng: np.random.Generator, share: float) -> Series:
    """Autoregressive noise of deviation 1."""
    out = rng.normal(size=STEPS)
    for i in range(1, STEPS):
        out[i] = share * out[i - 1] + np.sqrt(1 - share**2) * out[i]
    return out


MAKERS: dict[str, Callable[[np.random.Generator], tuple[Series, int, float]]]
MAKERS = {"hourly": hourly, "monthly": monthly, "walk": walk}


def plant(rng: np.random.Generator, x: Series, season: int, noise: float, kind: str) -> tuple[Series, Rows]:
    """The series with anomalies, and where they are: none in the first fifth, each by itself."""
    x, planted = x.copy(), np.zeros(STEPS, bool)
    for place in np.linspace(STEPS // 5, STEPS - 100, EVENTS).astype(int) + rng.integers(0, 40, EVENTS):
        side = rng.choice([-1, 1])
        if kind == "spikes":
            rows = slice(place, place + int(rng.integers(1, 4)))
            x[rows] += side * noise * rng.uniform(6, 12)
        elif kind == "level shifts":
            rows = slice(place, place + int(rng.integers(30, 60)))
            x[rows] += side * noise * rng.uniform(6, 12)
        else:
            rows = slice(place, place + (24 if season == 168 else season))
            x[rows] = x[rows].mean() + noise * red(rng, 0.3)[: rows.stop - place]
        planted[rows] = True
    return x, planted


def naive_score(x: Series, season: int) -> Series:
    """z-score of the seasonal naive residual."""
    residual = np.r_[np.full(season, np.nan), x[season:] - x[:-season]]
    low, middle, high = np.nanquantile(residual, (0.25, 0.5, 0.75))
    return np.abs(residual - middle) / ((high - low) / 1.349)


def told(score: Series, planted: Rows, threshold: float) -> list[float]:
    """AUROC, average precision, share of events found, precision and recall of rows beyond the threshold."""
    seen = np.isfinite(score)
    score, planted = score[seen], planted[seen]
    flagged = score > threshold
    event = np.cumsum(planted & ~np.r_[False, planted[:-1]])
    found = len(np.unique(event[flagged & planted])) / event.max()
    right = (flagged & planted).sum()
    return [roc_auc_score(planted, score), average_precision_score(planted, score), found,
            right / max(flagged.sum(), 1), right / planted.sum()]  # fmt: skip


def measure(pipeline: Pipeline, name: str, kind: str, count: int) -> dict[str, Float[np.ndarray, " n"]]:
    """Means over series of what `told` says, and seconds a series, by method."""
    rows: dict[str, list[list[float]]] = {"seasonal naive z": [], "forecast": [], "forecast, not robust": []}
    for seed in range(count):
        rng = np.random.default_rng(seed)
        x, season, noise = MAKERS[name](rng)
        x, planted = plant(rng, x, season, noise, kind)
        for method, values in rows.items():
            start = time.perf_counter()
            if method == "seasonal naive z":
                score, threshold = naive_score(x, season), Z
            else:
                found = anomalies(pipeline, x, robust=method == "forecast")
                score, threshold = found.table["score"].to_numpy(), THRESHOLD
            values.append([*told(score, planted, threshold), time.perf_counter() - start])
    return {method: np.mean(values, 0) for method, values in rows.items()}


def main(bundle: str, count: int) -> None:
    pipeline = polysense.load(bundle)
    print("| series | planted | by | AUROC | average precision | events found | precision | recall | s a series |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in ("spikes", "level shifts", "missing season"):
        for name in MAKERS:
            if (kind, name) == ("missing season", "walk"):  # it has none
                continue
            for method, values in measure(pipeline, name, kind, count).items():
                cells = " | ".join([f"{value:.3f}" for value in values[:-1]] + [f"{values[-1]:.1f}"])
                print(f"| {name} | {kind} | {method} | {cells} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "any-series", int(sys.argv[2]) if len(sys.argv) > 2 else 20)

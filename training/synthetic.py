"""Generated series and tables for pretraining, where real ones of open licence are few.

Shape legend: t steps, r rows, c columns.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

PERIODS = (4, 5, 7, 12, 24, 48, 52, 96, 168)  # seasons that real series have, in steps


def synthetic_series(rng: np.random.Generator, length: int) -> Float[np.ndarray, " t"]:
    """A sum (sometimes product) of random parts: trend, seasons with harmonics, random walk, AR noise, bumps.

    In the spirit of KernelSynth (Ansari et al. 2024, Chronos, 4.2) with the kernels' sample paths drawn directly.
    """
    t = np.arange(length)
    parts = [_part(rng, t) * rng.lognormal(0, 0.7) for _ in range(int(rng.integers(1, 5)))]
    series = parts[0]
    for part in parts[1:]:
        series = series * (1 + 0.5 * part) if rng.random() < 0.15 else series + part
    return series + rng.normal(0, rng.choice([0.01, 0.05, 0.2]) * (series.std() + 1e-3), length)


def _part(rng: np.random.Generator, t: np.ndarray) -> np.ndarray:
    kind = rng.choice(["season", "season", "trend", "walk", "smooth", "ar"])
    if kind == "season":
        period = float(rng.choice(PERIODS)) if rng.random() < 0.7 else rng.uniform(3, 200)
        phases = rng.uniform(0, 2 * np.pi, 4)
        weights = rng.normal(size=4) / np.arange(1, 5) ** rng.uniform(0.5, 2)
        angles = 2 * np.pi * np.outer(np.arange(1, 5), t) / period + phases[:, None]
        return (weights[:, None] * np.sin(angles)).sum(0)
    if kind == "trend":
        bend = rng.choice([0.5, 1.0, 2.0])
        return rng.normal() * 3 * (t / len(t)) ** bend
    noise = rng.normal(size=len(t))
    if kind == "walk":
        return noise.cumsum() / np.sqrt(len(t))
    if kind == "smooth":
        width = int(rng.integers(3, max(4, len(t) // 4)))
        return np.convolve(noise, np.hanning(width) / np.sqrt(width), mode="same")
    decay, out = rng.uniform(0.3, 0.98), np.empty(len(t))
    out[0] = noise[0]
    for i in range(1, len(t)):
        out[i] = decay * out[i - 1] + noise[i] * np.sqrt(1 - decay**2)
    return out


def synthetic_table(rng: np.random.Generator, rows: int = 2000) -> tuple[Float[np.ndarray, "r c"], np.ndarray]:
    """A table from a random structural causal model (Hollmann et al. 2023, TabPFN, 4.1): columns and class numbers.

    Columns and target are nodes of a random two-layer network; some columns are binned into few values.
    """
    inputs, hidden = int(rng.integers(3, 9)), int(rng.integers(8, 25))
    causes = rng.normal(size=(rows, inputs)) * rng.lognormal(0, 0.5, inputs)
    first = np.tanh(causes @ (rng.normal(size=(inputs, hidden)) * (rng.random((inputs, hidden)) < 0.5)))
    second = first @ (rng.normal(size=(hidden, hidden)) * (rng.random((hidden, hidden)) < 0.3))
    second = second + rng.normal(size=second.shape) * 0.1
    nodes = np.concatenate([causes, first, second], 1)
    chosen = rng.permutation(nodes.shape[1])
    columns = nodes[:, chosen[: int(rng.integers(5, 15))]].copy()
    for column in columns.T:
        if rng.random() < 0.25:
            edges = np.quantile(column, np.sort(rng.random(int(rng.integers(1, 5)))))
            column[:] = np.searchsorted(edges, column)
    target = second[:, int(rng.integers(hidden))] + rng.normal(size=rows) * 0.05 * second.std()
    classes = int(rng.integers(2, 5))
    return columns, np.searchsorted(np.quantile(target, np.arange(1, classes) / classes), target)

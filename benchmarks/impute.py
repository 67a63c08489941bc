"""Gaps hidden in known values: `python benchmarks/impute.py DATA [BUNDLE] [EVERY]`.

In every EVERY-th file of DATA/timeseries_forecasting/general, and in generated series (hourly and monthly with seasons,
random walks), eight gaps of each length are hidden in a series, one length at a time, and filled. Printed are mean
absolute errors relative to the straight line, as the geometric mean over variates; "seasonal naive" takes the mean of
the nearest known values a season before and after, and is told the season.
"""

from __future__ import annotations

import csv
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from anomalies import MAKERS
from jaxtyping import Float

import polysense
from polysense.data.time_series import SeriesFrame, read_series
from polysense.impute import Gap, gaps_of, impute, seasonal, straight
from polysense.pipeline import Pipeline

LENGTHS, GAPS, MOST = (1, 2, 4, 8, 16, 24, 48), 8, 2000  # MOST: last rows of a series that are used
Values = Float[np.ndarray, " t"]


def public(data: Path, every: int) -> Iterator[tuple[str, SeriesFrame, int]]:
    folder = data / "timeseries_forecasting" / "general"
    with (folder / "INDEX.csv").open() as file:
        index = {Path(row["file"]).stem: row for row in csv.DictReader(file)}
    for path in sorted(folder.glob("*.csv"))[::every]:
        if path.stem in index:
            yield "public", read_series(path), int(index[path.stem]["season_length"])


def generated() -> Iterator[tuple[str, SeriesFrame, int]]:
    for name, maker in MAKERS.items():
        for seed in range(5):
            values, season, _ = maker(np.random.default_rng(seed))
            yield name, SeriesFrame(values[:, None], None, ["value"]), season


def hide(values: Values, length: int, rng: np.random.Generator) -> tuple[Values, list[Gap]]:
    """Gaps of a length among known values, none at an end, at least one known value between them."""
    hidden = values.copy()
    for begin in rng.permutation(np.arange(1, len(values) - length)):
        if np.isfinite(hidden[begin - 1 : begin + length + 1]).all():
            hidden[begin : begin + length] = np.nan
            if np.isnan(hidden).sum() - np.isnan(values).sum() >= min(GAPS * length, len(values) // 4):
                break
    return hidden, [gap for gap in gaps_of(hidden, 0) if np.isfinite(values[gap.begin : gap.end]).all()]


def errors(pipeline: Pipeline, frame: SeriesFrame, i: int, length: int, season: int) -> Float[np.ndarray, " 3"] | None:
    """Sums of absolute errors of line, seasonal naive and `impute` in gaps of a variate; None where none fit."""
    column = frame.values[-MOST:, i]
    hidden, gaps = hide(column, length, np.random.default_rng(length))
    if np.isfinite(column).sum() < 8 * length + 20 or not gaps:
        return None
    times = None if frame.times is None else frame.times[-MOST:]
    filled = impute(pipeline, SeriesFrame(hidden[:, None], times, ["value"], frame.freq))["value"].to_numpy()
    wrong = np.zeros(3)
    for gap in gaps:
        fills = (straight(hidden[:, None], gap), seasonal(hidden[:, None], gap, max(season, 1)),
                 filled[gap.begin : gap.end])  # fmt: skip
        wrong += [np.abs(fill - column[gap.begin : gap.end]).sum() for fill in fills]
    return wrong


def main(data: Path, bundle: str, every: int) -> None:
    pipeline = polysense.load(bundle)
    ratios: dict[tuple[str, int], list[list[float]]] = defaultdict(list)
    start = time.perf_counter()
    for group, frame, season in [*public(data, every), *generated()]:
        for i, length in product(range(min(len(frame.names), 4)), LENGTHS):
            wrong = errors(pipeline, frame, i, length, season)
            if wrong is not None and (wrong > 0).all():
                ratios[group, length].append(np.log(wrong[1:] / wrong[0]).tolist())
    print(f"{time.perf_counter() - start:.0f} s; error relative to the straight line")
    print("| series | by | " + " | ".join(f"{length} steps" for length in LENGTHS) + " |")
    print("|---|---|" + "---|" * len(LENGTHS))
    for group in dict.fromkeys(group for group, _ in ratios):
        means = [np.exp(np.mean(ratios[group, length] or [[np.nan] * 2], 0)) for length in LENGTHS]
        for k, method in enumerate(("seasonal naive", bundle)):
            cells = " | ".join(f"{mean[k]:.2f}" for mean in means)
            print(f"| {group} ({len(ratios[group, 1])}) | {method} | {cells} |")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0]), given[1] if len(given) > 1 else "any-series", int(given[2]) if len(given) > 2 else 1)

"""Series of many variates, many rows and very few: what is read and kept stays bounded, and all are answered."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import polysense
from polysense.data.time_series import SeriesFrame, read_series
from polysense.pipeline import Pipeline
from polysense.training import examples as examples_module
from polysense.training import sources as sources_module
from polysense.training.examples import MOST_VARIATES, TOGETHER, window_batches
from polysense.training.sources import SeriesSources

BORDERS = (0.7, 0.1, 0.2)


def sources_of(values: np.ndarray, horizon: int = 4) -> SeriesSources:
    frame = SeriesFrame(values, None, [f"v{i}" for i in range(values.shape[1])])
    return SeriesSources([frame], horizon, 16, BORDERS, {})


@pytest.fixture
def front(build: Callable[..., Pipeline]) -> Any:
    return build("forecasting", tokenizer={"context": 16}).tokenizer


def test_windows_of_a_long_series_are_as_many_as_are_wanted(front: Any) -> None:
    """A range for each part, whatever its length, and no more windows than the bound; all of those that measure."""
    sources = sources_of(np.zeros((3_000_000, 1), np.float32))
    for part, least in (("train", sources_module.MOST_ALONE // 2), ("val", sources_module.MOST_ALONE // 2)):
        found = sources.examples(front, part)
        assert least < len(found) <= sources_module.MOST_ALONE
        assert all(isinstance(rows, range) for rows in found.ends)
    first, last = (
        sources.examples(front, "train").place(i)[1] for i in (0, -1 + len(sources.examples(front, "train")))
    )
    assert first == 16 and last > 2_099_900  # spread over the whole part
    test = sources.examples(front, "test")
    assert len(test) == 600_000 - 4 + 1 and test.place(len(test) - 1) == (0, 3_000_000 - 4)


def test_places_of_windows_are_those_of_the_ranges(front: Any) -> None:
    frames = [SeriesFrame(np.arange(30.0)[:, None], None, ["v"]) for _ in range(4)]
    ends = [range(3, 9), range(5, 5), range(4, 20, 5), [7, 9]]
    windows = examples_module.WindowExamples(frames, ends, front, 4)
    want = [(f, end) for f, rows in enumerate(ends) for end in rows]
    assert [windows.place(i) for i in range(len(windows))] == want and len(want) == 12
    samples, target = windows.whole(6)
    assert samples[0].meta["history"][:, 0].tolist() == [0, 1, 2, 3] and target[:, 0].tolist() == [4, 5, 6, 7]


def test_of_many_variates_some_are_learnt_from_at_a_time(front: Any) -> None:
    values = np.tile(np.arange(100.0), (60, 1)) + np.arange(60.0)[:, None]  # variate v is 100 · row-free + v
    windows = sources_of(values).examples(front, "train")
    rng = np.random.default_rng(0)
    pairs = windows.train(0, rng)
    assert len(pairs) == MOST_VARIATES and len(windows.whole(0)[0]) == 100
    for sample, target in pairs:  # each with its own future
        assert target[0] - sample.meta["history"][-1, 0] == 1.0
    chosen = [sample.meta["names"][0] for sample, _ in pairs]
    assert len(set(chosen)) == MOST_VARIATES and chosen != [s.meta["names"][0] for s, _ in windows.train(0, rng)]
    few = sources_of(values[:, :3]).examples(front, "train")
    assert [sample.meta["names"][0] for sample, _ in few.train(0, rng)] == ["v0", "v1", "v2"]


def test_batches_of_wide_windows_are_of_fewer_windows(front: Any) -> None:
    wide = sources_of(np.ones((60, 700))).examples(front, "train")
    sizes = [len(pairs) for pairs in window_batches(wide, 32)]
    assert sum(sizes) == 700 * len(wide) and max(sizes) < TOGETHER + 700
    narrow = sources_of(np.ones((120, 2))).examples(front, "train")
    sizes = [len(pairs) for pairs in window_batches(narrow, 32)]
    assert sizes[0] == 64 and sum(sizes) == 2 * len(narrow)


def test_a_look_at_the_first_lines_saves_splitting_a_long_table(monkeypatch: pytest.MonkeyPatch) -> None:
    import csv

    from polysense.data import time_series_lines

    table = pd.DataFrame({"time": pd.date_range("2024-01-01", periods=20_000, freq="min"), "load": 1.5})
    read = 0
    usual = csv.reader

    def counted(lines: Any, **options: Any) -> Any:
        for row in usual(lines, **options):
            nonlocal read
            read += 1
            yield row

    monkeypatch.setattr(time_series_lines.csv, "reader", counted)
    assert len(read_series(table.to_csv(index=False).encode()).values) == 20_000
    assert read <= 30


def test_a_series_of_thirty_rows(quick: Callable[..., Any], tmp_path: Path) -> None:
    k = np.arange(30)
    table = pd.DataFrame(
        {"when": pd.date_range("2024-01-31", periods=30, freq="ME"), "sales": 10 + np.sin(k) + 0.1 * k}
    )
    table.to_csv(tmp_path / "short.csv", index=False)
    answer = polysense.load("any-series")(tmp_path / "short.csv")[0]
    assert answer.mean.shape == (96, 1) and np.isfinite(answer.mean).all() and answer.times[0] == "2026-07-31"
    _, pipeline = quick("forecasting", tmp_path / "short.csv", horizon=3, context=6)
    answer = pipeline(tmp_path / "short.csv")[0]
    assert answer.mean.shape == (3, 1) and np.isfinite(answer.mean).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2_000, 500), (10_000_000, 1)])
@pytest.mark.parametrize("command", ["predict", "fit"])
def test_memory_of_large_files(tmp_path: Path, shape: tuple[int, int], command: str) -> None:
    rng = np.random.default_rng(0)
    k = np.arange(shape[0])[:, None]
    values = 10 + np.sin(2 * np.pi * (k + np.arange(shape[1])) / 24) + rng.normal(0, 0.3, shape)
    table = pd.DataFrame(values.round(4), columns=[f"v{i}" for i in range(shape[1])])
    table.insert(0, "time", pd.date_range("2004-01-01", periods=shape[0], freq="min"))
    table.to_csv(tmp_path / "big.csv", index=False)
    asked = {"predict": ["predict", "any-series", str(tmp_path / "big.csv"), "--out", str(tmp_path / "out.csv")],
             "fit": ["fit", "forecasting", str(tmp_path / "big.csv"), "--out", str(tmp_path / "new"), "--epochs", "1"],
             }[command]  # fmt: skip
    script = (
        "import resource, sys; from polysense.apps.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    run = subprocess.run([sys.executable, "-c", script, *asked], capture_output=True, text=True, check=True)
    assert int(run.stdout.split()[-1]) < 4 * 2**20  # kilobytes

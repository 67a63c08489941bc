"""pandas in, pandas out: columns, quantiles, and times in the zone of the input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from polysense.data.time_series import read_series
from polysense.data.time_series_roles import Roles
from polysense.pipeline import Pipeline
from polysense.tokenizers.series_covariates import fit_effect

HORIZON = 8  # of the tiny bundle's head
ROWS = 120


@pytest.fixture(scope="module")
def tiny(build: Callable[..., Pipeline]) -> Pipeline:
    return build("forecasting")


def table(freq: str, zone: str | None) -> pd.DataFrame:
    """Over the beginning of summer time in Berlin."""
    rng = np.random.default_rng(0)
    index = pd.date_range("2024-03-28", periods=ROWS + HORIZON, freq=freq, tz=zone)
    return pd.DataFrame(rng.normal(0, 1, (len(index), 2)).cumsum(0), index, ["load", "heat"])


@pytest.mark.parametrize("freq", ["h", "D", "W-MON", "MS", "15min"])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC", "America/New_York", None])
@pytest.mark.parametrize("as_column", [False, True])
def test_the_index_goes_on(tiny: Pipeline, freq: str, zone: str | None, as_column: bool) -> None:
    whole = table(freq, zone)
    given = whole.iloc[:ROWS]
    given = given.rename_axis("when").reset_index() if as_column else given
    answer = tiny(given)[0].to_frame()
    assert answer.index.equals(whole.index[ROWS:].rename("time")), answer.index
    names = ["load", "heat", *(f"{n}_q{q}" for n in ("load", "heat") for q in (10, 25, 50, 75, 90))]
    assert list(answer) == names
    # What is read are the rows as they stand: no zone moves them between steps.
    np.testing.assert_allclose(read_series(given).values, whole.to_numpy()[:ROWS])


def test_columns_are_the_means_and_quantiles(tiny: Pipeline) -> None:
    answer = tiny(table("h", None).iloc[:ROWS], horizon=11)[0]
    frame = answer.to_frame()
    np.testing.assert_array_equal(frame[["load", "heat"]], answer.mean)
    np.testing.assert_array_equal(frame[["load_q25", "heat_q25"]], answer.quantiles[0.25])
    assert len(frame) == 11


def test_without_times_rows_are_numbered(tiny: Pipeline) -> None:
    frame = tiny(np.random.default_rng(0).normal(size=60))[0].to_frame()
    assert frame.index.tolist() == list(range(1, HORIZON + 1)) and frame.index.name == "step"
    assert list(frame)[:2] == ["value", "value_q10"]


def test_files_keep_the_offset_of_their_texts(tiny: Pipeline, tmp_path: Path) -> None:
    whole = table("h", "Etc/GMT-2")
    whole.iloc[:ROWS].to_csv(tmp_path / "x.csv", index_label="when")
    answer = tiny(tmp_path / "x.csv")[0]
    assert answer.times[0] == "2024-04-02T00:00:00+02:00"
    assert (answer.to_frame().index == whole.index[ROWS:]).all()


def test_missing_values_stay_missing(tiny: Pipeline) -> None:
    given = table("h", "Europe/Berlin").iloc[:ROWS]
    given = given.mask(np.random.default_rng(1).random(given.shape) < 0.2)
    given.iloc[-3:, 0] = np.nan
    answer = tiny(given)[0]
    assert np.isfinite(answer.to_frame().to_numpy()).all()
    np.testing.assert_array_equal(np.isnan(answer.history), np.isnan(given.to_numpy()[-64:]))
    assert answer.to_frame().index[0] == given.index[-1] + pd.Timedelta(1, "h")


def test_the_calendar_goes_by_the_clock_of_the_zone() -> None:
    """A course that keeps to summer time is found again behind the clock change."""
    index = pd.date_range("2024-03-01", periods=24 * 60, freq="h", tz="Europe/Berlin")
    values = 10 * np.cos(2 * np.pi * np.asarray(index.hour) / 24) + np.random.default_rng(0).normal(0, 0.1, len(index))
    frames: dict[str, Any] = {}
    for name, one in {"clock": index, "utc": index.tz_convert("UTC")}.items():
        frames[name] = read_series(pd.DataFrame({"load": values}, one), roles=Roles(("calendar",)))
    errors = {}
    for name, frame in frames.items():
        effect = fit_effect([frame], ["calendar"], 72).at(frame, 0, len(values), 0)[:, 0]
        left = values - effect
        errors[name] = (left - left.mean()).std()
    assert errors["clock"] < 0.8 * errors["utc"]

"""Forecasts of any length: the trained steps as they are, roll-out beyond them, and bands that never narrow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from polysense.apps import cli
from polysense.core.errors import InputError
from polysense.core.predictions import Series
from polysense.data.time_series import SeriesFrame
from polysense.pipeline import Pipeline
from polysense.tokenizers.series_covariates import Covariate, Effect
from polysense.training.backtest import backtest

HORIZON = 8  # of the tiny bundle's head


def table(rows: int, seed: int = 0, freq: str = "h") -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(0, 1, (rows, 2)).cumsum(0) + np.array([20, -5])
    return pd.DataFrame(values, pd.date_range("2024-02-27", periods=rows, freq=freq), ["load", "heat"])


@pytest.fixture
def tiny(build: Callable[..., Pipeline]) -> Pipeline:
    return build("forecasting")


def test_fewer_steps_are_the_first_ones_and_the_head_stays(tiny: Pipeline) -> None:
    whole, short = tiny(table(80))[0], tiny(table(80), horizon=3)[0]
    np.testing.assert_array_equal(short.mean, whole.mean[:3])
    assert short.times == whole.times[:3] and all(len(band) == 3 for band in short.quantiles.values())
    assert tiny.head.horizon == HORIZON
    np.testing.assert_array_equal(tiny(table(80), horizon=HORIZON)[0].mean, whole.mean)


@pytest.mark.parametrize("local", [False, True])
def test_more_steps_are_forecast_from_those_before(build: Callable[..., Pipeline], local: bool) -> None:
    pipeline = build("forecasting", head={"local": local})
    history = table(80)
    answer = pipeline(history, horizon=20)[0]
    first = pipeline(history)[0]
    np.testing.assert_array_equal(answer.mean[:HORIZON], first.mean)
    index = pd.date_range("2024-02-27", periods=100, freq="h")
    assert pd.DatetimeIndex(answer.times).equals(index[80:])
    fed = pd.DataFrame(np.concatenate([history.to_numpy(), first.mean]), index[:88], history.columns)
    np.testing.assert_allclose(answer.mean[HORIZON : 2 * HORIZON], pipeline(fed)[0].mean, rtol=1e-5)
    assert len(answer.mean) == 20 and all(band.shape == (20, 2) for band in answer.quantiles.values())
    np.testing.assert_array_equal(answer.history, first.history)


def test_variances_of_blocks_add(tiny: Pipeline) -> None:
    history = table(80)
    answer, first = tiny(history, horizon=2 * HORIZON)[0], tiny(history)[0]
    index = pd.date_range("2024-02-27", periods=88, freq="h")
    fed = tiny(pd.DataFrame(np.concatenate([history.to_numpy(), first.mean]), index, history.columns))[0]
    for level in (0.1, 0.9):
        side = 1 if level > 0.5 else -1
        last = np.maximum(side * (first.quantiles[level] - first.mean)[-1], 0)
        own = np.maximum(side * (fed.quantiles[level] - fed.mean), 0)
        want = fed.mean + side * np.sqrt(own**2 + last**2)
        np.testing.assert_allclose(answer.quantiles[level][HORIZON:], want, rtol=1e-5)


def test_bands_never_get_narrower_than_where_the_block_before_ended(tiny: Pipeline) -> None:
    answer = tiny(table(80), horizon=50)[0]
    away = np.maximum(answer.quantiles[0.9] - answer.mean, 0)
    for start in range(HORIZON, 50, HORIZON):
        assert (away[start : start + HORIZON] >= away[start - 1] - 1e-9).all()
    levels = sorted(answer.quantiles)
    for low, high in pairwise(levels):
        assert (answer.quantiles[low] <= answer.quantiles[high] + 1e-9).all()


def test_batched_equals_single_whatever_the_lengths(tiny: Pipeline) -> None:
    sources = [table(80), table(20, 1)[["heat"]], table(90, 2, "D")]
    for one, source in zip(tiny(sources, horizon=30), sources, strict=True):
        alone = tiny(source, horizon=30)[0]
        np.testing.assert_allclose(one.mean, alone.mean, rtol=1e-4)
        np.testing.assert_allclose(one.quantiles[0.1], alone.quantiles[0.1], rtol=1e-4)
        assert one.times == alone.times


def test_series_without_times_standing_or_unknown(tiny: Pipeline) -> None:
    values = np.random.default_rng(0).normal(0, 1, (60, 3))
    values[:, 1], values[:, 2] = 7.0, np.nan
    answer = tiny(values, horizon=20)[0]
    assert list(answer.times) == [str(i) for i in range(1, 21)]
    assert (answer.mean[:, 1] == 7).all() and (answer.quantiles[0.9][:, 1] == 7).all()
    assert np.isnan(answer.mean[:, 2]).all() and np.isfinite(answer.mean[:, 0]).all()
    one = tiny(table(1), horizon=20)[0]  # a single row has no step
    assert one.mean.shape == (20, 2) and list(one.times)[-1] == "20"


def test_covariates_must_be_known_for_all_of_it(tiny: Pipeline) -> None:
    effect = Effect((Covariate("flag", 0, 1),), (), (0.0,), ("v",), ((5.0,),))
    tiny.tokenizer.config = replace(tiny.tokenizer.config, effect=effect, known=("flag",), ahead=HORIZON)
    flag = (np.arange(100) >= 75).astype(float)[:, None]
    values = np.random.default_rng(0).normal(0, 1, (60, 1))
    frame = SeriesFrame(values, None, ["v"], known=flag, known_names=("flag",))
    answer = tiny(frame, horizon=40)[0]
    without = tiny(replace(frame, known=0 * flag), horizon=40)[0]
    np.testing.assert_allclose(answer.mean - without.mean, 5 * flag[60:], atol=1e-4)
    with pytest.raises(InputError, match="'flag' is known for 40 steps after the last value where 41 are needed"):
        tiny(frame, horizon=41)
    skipped, good = tiny.stream([replace(frame, known=flag[:62]), frame], on_error="skip", horizon=20)
    assert isinstance(skipped, InputError) and isinstance(good, Series)


def test_backtest_beyond_the_trained_steps(tiny: Pipeline) -> None:
    found = backtest(tiny, table(100), horizon=30, origins=2)
    assert found.forecasts["step"].max() == 30 and found.by_origin["values"].tolist() == [60, 60]
    rows = found.forecasts[(found.forecasts["origin"] == found.forecasts["origin"].max())
                           & (found.forecasts["variate"] == "load")]  # fmt: skip
    np.testing.assert_allclose(rows["mean"], tiny(table(100).iloc[:70], horizon=30)[0].mean[:, 0], rtol=1e-4)


def test_faults(tiny: Pipeline, build: Callable[..., Pipeline]) -> None:
    with pytest.raises(InputError, match="horizon 0: it is not positive"):
        tiny(table(40), horizon=0)
    with pytest.raises(InputError, match="no forecaster; leave the horizon out"):
        build("time-series-embedding")(table(40), horizon=4)


def test_command_line(build: Callable[..., Pipeline], encoder_spec: str, tmp_path: Path) -> None:
    bundle = build("forecasting", encoder=encoder_spec).save_pretrained(tmp_path / "bundle")
    table(60).to_csv(tmp_path / "t.csv", index_label="when")
    arguments = ["predict", str(bundle), str(tmp_path / "t.csv"), "--out", str(tmp_path / "out.csv"), "--device", "cpu",
                 "--pictures", str(tmp_path / "p"), "--horizon", "21"]  # fmt: skip
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "out.csv")
    assert len(rows) == 42 and rows["step"].max() == 21 and len(list((tmp_path / "p").iterdir())) == 1

"""Forecasts with covariates: what they gain, what is read of the future, static features, faults in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from polysense.core.errors import InputError
from polysense.core.predictions import Series
from polysense.data.time_series import SeriesFrame, read_series_all
from polysense.data.time_series_roles import Roles
from polysense.tokenizers.series_covariates import Covariate, Effect, fit_effect
from polysense.tokenizers.series_statics import Statics, fit_statics
from polysense.tokenizers.time_series import SeriesConfig, TimeSeriesTokenizer
from polysense.training.backtest import backtest
from polysense.training.evaluate import evaluate

HORIZON, CONTEXT = 24, 48
Quick = Callable[..., Any]


def load_table(days: int = 42) -> pd.DataFrame:
    """An hourly load: heating and cooling, a weekly course, holidays without warning, noise that lingers."""
    rng = np.random.default_rng(0)
    times = pd.date_range("2024-01-01", periods=24 * days, freq="h")
    k = np.arange(len(times))
    weather = np.convolve(rng.normal(size=len(k) + 72), np.ones(73) / 73, "valid") * 60
    temperature = 15 + weather + 5 * np.sin(2 * np.pi * (k - 9) / 24)
    holiday = (np.repeat(rng.random(days) < 0.15, 24) & (times.dayofweek < 5)).astype(int)
    noise = np.zeros(len(k))
    for i in range(1, len(k)):
        noise[i] = 0.9 * noise[i - 1] + rng.normal(0, 0.3)
    work = (times.dayofweek < 5) & (times.hour >= 8) & (times.hour < 18)
    load = 30 + 0.05 * (temperature - 16) ** 2 + 6 * work.astype(float) * (1 - holiday) - 5 * holiday + noise
    return pd.DataFrame({"when": times, "load": load, "temperature": temperature, "holiday": holiday})


@pytest.fixture(scope="module")
def load_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "load.csv"
    load_table().to_csv(path, index=False)
    return path


def with_future(table: pd.DataFrame, steps: int) -> pd.DataFrame:
    """The last rows become the future: covariates filled in, the target empty."""
    table = table.copy()
    table.loc[len(table) - steps :, "load"] = np.nan
    return table


def test_known_covariates_leave_a_fifth_of_the_error(quick: Quick, load_file: Path, tmp_path: Path) -> None:
    options = {"target": "load", "horizon": HORIZON, "context": CONTEXT, "epochs": 0}
    without, _ = quick("forecasting", load_file, out=tmp_path / "without", **options)
    result, pipeline = quick("forecasting", load_file, known="temperature, holiday, calendar", **options)
    errors = [evaluate(found.path, load_file)["mse"] for found in (result, without)]
    assert errors[0] < 0.2 * errors[1]
    # The bundle was read from its folder: the effect is in it, and answers stay what they were.
    config = pipeline.tokenizer.config
    assert SeriesConfig(**json.loads(json.dumps(pipeline.tokenizer.config_dict()))) == config
    assert config.effect.courses == ("day", "week") and [c.name for c in config.effect.covariates] == [
        "temperature", "holiday"]  # fmt: skip

    table = load_table()
    answer = pipeline(with_future(table, HORIZON))[0]
    assert answer.times[0] == "2024-02-11T00:00:00" and answer.names == ["load"] and len(answer.mean) == HORIZON
    truth = table["load"].to_numpy()[-HORIZON:]
    assert np.abs(answer.mean[:, 0] - truth).mean() < 2
    past = np.arange(len(table)) < len(table) - HORIZON
    tables = [table.assign(temperature=table["temperature"].where(past, degrees)) for degrees in (16.0, 32.0, 0.0)]
    mild, hot, cold = (pipeline(with_future(one, HORIZON))[0].mean for one in tables)
    assert (hot > mild + 5).all() and (cold > mild + 5).all()  # true: 12.8 more
    # History that the future does not reach stays as it was read.
    np.testing.assert_allclose(answer.history[:, 0], table["load"].to_numpy()[-HORIZON - CONTEXT : -HORIZON])

    # As many steps as covariates are known for; none at all is refused.
    few = pipeline(with_future(table, HORIZON).iloc[:-20])[0]
    assert len(few.mean) == len(few.times) == 4 and all(len(band) == 4 for band in few.quantiles.values())
    np.testing.assert_allclose(few.mean, answer.mean[:4], rtol=1e-5)
    missing = with_future(table, HORIZON)
    missing.loc[len(table) - HORIZON + 6 :, "holiday"] = np.nan
    assert len(pipeline(missing)[0].mean) == 6
    with pytest.raises(InputError, match="'temperature' is known for 0 steps after the last value where 1 is needed"):
        pipeline(table)
    with pytest.raises(InputError, match="no column 'holiday'"):
        pipeline(table.drop(columns="holiday"))

    # Batched equals single, whatever each knows of its future.
    sources = [with_future(table, HORIZON), with_future(table.iloc[:500].reset_index(drop=True), 7)]
    for one, other in zip(pipeline(sources), [pipeline(source)[0] for source in sources], strict=True):
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-4)

    found = backtest(pipeline, load_file, horizon=12, origins=4)
    assert found.metrics["mase"] < 0.8 and len(found.forecasts) == 48
    future = tmp_path / "future.csv"
    with_future(table, HORIZON).to_csv(future, index=False)
    assert backtest(pipeline, future, horizon=12, origins=2).by_origin["origin"].iloc[-1] == pd.Timestamp(
        "2024-02-10 12:00"
    )


def frame_of(values: np.ndarray, known: np.ndarray, names: tuple[str, ...], **more: Any) -> SeriesFrame:
    return SeriesFrame(values, None, [f"v{i}" for i in range(values.shape[1])], known=known, known_names=names, **more)


def test_an_effect_is_found_as_it_is() -> None:
    rng = np.random.default_rng(0)
    flag, x = (rng.random(600) < 0.3).astype(float), rng.normal(size=600)
    level = np.linspace(0, 50, 600)  # drifts, which the effect leaves to the forecaster
    values = np.stack([level + 3 * flag, -level + x**2], 1) + rng.normal(0, 0.05, (600, 2))
    frame = frame_of(values, np.stack([flag, x], 1), ("flag", "x"))
    effect = fit_effect([frame], ["flag", "x"], 60)
    assert [bool(one.knots) for one in effect.covariates] == [False, True]
    found = effect.at(frame, 0, 500, 100)
    assert found.shape == (600, 2)
    assert found[flag == 1, 0].mean() - found[flag == 0, 0].mean() == pytest.approx(3, abs=0.05)
    assert np.corrcoef(found[:, 1], x**2)[0, 1] > 0.97
    assert found[:, 1].std() == pytest.approx((x**2).std(), rel=0.1)
    # Beyond what training saw it is bounded; where a covariate is missing it says nothing.
    wild = frame_of(values[:2], np.array([[0.0, 1e9], [np.nan, np.nan]]), ("flag", "x"))
    assert np.abs(effect.at(wild, 0, 2, 0)[0]).max() < 100 and (effect.at(wild, 0, 2, 0)[1] == 0).all()


def test_a_covariate_that_says_nothing_has_no_effect() -> None:
    rng = np.random.default_rng(1)
    frame = frame_of(rng.normal(size=(400, 1)), rng.normal(size=(400, 1)), ("x",))
    assert np.abs(fit_effect([frame], ["x"], 60).at(frame, 0, 400, 0)).max() < 0.5


def test_the_effect_is_learnt_from_the_training_part_alone(load_file: Path, tmp_path: Path) -> None:
    from polysense.tasks import TASKS
    from polysense.training.sources import open_sources

    table = load_table()
    table.loc[len(table) * 7 // 10 + 1 :, "load"] += 100 * table["holiday"]
    table.to_csv(tmp_path / "other.csv", index=False)
    effects = []
    for path in (load_file, tmp_path / "other.csv"):
        sources = open_sources(TASKS["forecasting"], path, target="load", known=["holiday", "calendar"],
                               horizon=HORIZON, context=CONTEXT)  # fmt: skip
        config = SeriesConfig(**sources.tokenizer_options())
        effects.append(TimeSeriesTokenizer.fit_config(config, sources.tokenizer_sources()).effect)
    assert effects[0] == effects[1]


def test_several_series_share_an_effect_in_their_own_deviations() -> None:
    rng = np.random.default_rng(0)
    frames = []
    for size in (1.0, 1000.0):
        flag = (rng.random(400) < 0.5).astype(float)
        values = size * (flag + rng.normal(0, 0.1, 400))
        frames.append(frame_of(values[:, None], flag[:, None], ("flag",)))
    effect = fit_effect(frames, ["flag"], 40)
    for frame, size in zip(frames, (1.0, 1000.0), strict=True):
        found = effect.at(frame, 0, 400, 0)[:, 0]
        assert np.ptp(found) == pytest.approx(size, rel=0.1)


def test_a_column_called_calendar_wins(tmp_path: Path) -> None:
    table = load_table(20)[["when", "load", "holiday"]].rename(columns={"holiday": "calendar"})
    frame = read_series_all(table, roles=Roles(("calendar",)))[0]
    assert frame.known_names == ("calendar",) and frame.names == ["load"]
    effect = fit_effect([frame], ["calendar"], 72)
    assert effect.courses == () and len(effect.covariates) == 1
    frame = read_series_all(table[["when", "load"]], roles=Roles(("calendar",)))[0]
    assert frame.known is None and fit_effect([frame], ["calendar"], 72).courses == ("day", "week")
    tables = (table.rename(columns={"calendar": "flag"}), table.rename(columns={"calendar": "flag"})[["load", "flag"]])
    timed, untimed = (read_series_all(one, roles=Roles(("flag",)))[0] for one in tables)
    assert fit_effect([timed], ["flag"], 72).covariates[0].daily  # a flag acts by the hour where there are hours
    assert not fit_effect([untimed], ["flag"], 72).covariates[0].daily
    with pytest.raises(InputError, match="no times"):
        fit_effect([timed], ["flag"], 72).at(untimed, 0, 9, 3)
    # The calendar goes on by itself: any future is known.
    assert fit_effect([frame], ["calendar"], 72).at(frame, 400, 480, 96).shape == (176, 1)


def stores() -> pd.DataFrame:
    """A long table: large stores rise, small ones fall, and only the static columns tell which under the noise."""
    rng = np.random.default_rng(0)
    parts = []
    for i in range(16):
        size, kind = rng.choice([100.0, 900.0]), "city" if i % 2 else "village"
        slope = (0.5 if size > 500 else -0.5) + (0.5 if kind == "city" else -0.5)
        sales = 50 + slope * np.arange(90) + rng.normal(0, 8, 90)
        parts.append(pd.DataFrame({"day": pd.date_range("2024-01-01", periods=90), "store": f"s{i}", "sales": sales,
                                   "size": size, "kind": kind}))  # fmt: skip
    return pd.concat(parts)


def test_static_features_of_a_long_table(quick: Quick, tmp_path: Path) -> None:
    table = stores()
    table.to_csv(tmp_path / "stores.csv", index=False)
    options = {"target": "sales", "series": "store", "horizon": 12, "context": 12, "epochs": 0,
               "borders": (0.6, 0.2, 0.2)}  # fmt: skip
    errors = []
    for static in (None, "size, kind"):
        result, pipeline = quick("forecasting", tmp_path / "stores.csv", static=static, **options)
        errors.append(evaluate(result.path, tmp_path / "stores.csv")["mse"])
    assert errors[1] < 0.9 * errors[0]
    assert pipeline.head.config.tokens == pipeline.tokenizer.token_count(12) + 1
    answers = pipeline(tmp_path / "stores.csv")
    assert [answer.source.rpartition("#")[2] for answer in answers] == [f"s{i}" for i in range(16)]
    one = table[table["store"] == "s3"]
    np.testing.assert_allclose(pipeline(one)[0].mean, answers[3].mean, rtol=1e-4)
    assert not np.allclose(pipeline(one.assign(size=100.0 if one["size"].iloc[0] > 500 else 900.0))[0].mean,
                           answers[3].mean, rtol=1e-3)  # fmt: skip
    found = backtest(pipeline, tmp_path / "stores.csv", horizon=12, origins=1)
    assert found.by_variate["source"].nunique() == 16


def test_statics_are_scaled_and_unseen_ones_say_nothing() -> None:
    values = np.arange(8.0)[:, None]
    frames = [frame_of(values, np.zeros((8, 0)), (), static={"size": size, "kind": kind})
              for size, kind in ((1.0, "a"), (3.0, "b"), (5.0, "a"))]  # fmt: skip
    statics = fit_statics(frames, ["size", "kind"])
    assert statics.words == (("kind", ("a", "b")),) and statics.size == 3
    assert statics.encode({"size": 3.0, "kind": "b"}).tolist() == [0, 0, 1]
    assert statics.encode({"kind": "never"}).tolist() == [0, 0, 0]
    assert Statics(**json.loads(json.dumps({"numbers": statics.numbers, "words": statics.words}))) == statics
    effect = Effect((), ("day",), (0.5,), ("v0",), ((1.0,),))
    assert Effect(**json.loads(json.dumps({"covariates": [], "courses": ["day"], "mean": [0.5], "names": ["v0"],
                                           "weights": [[1.0]]}))) == effect  # fmt: skip


FAULTS = {
    "the target is known": ({"known": "load"}, "both to be forecast and known"),
    "no such column": ({"known": "wind"}, "no column 'wind'"),
    "words": ({"known": "word"}, "word holds text"),
    "empty": ({"known": "empty"}, "column 'empty' is a number"),
    "changing static": ({"static": "temperature"}, "'temperature' changes"),
    "static of one series": ({"static": "place"}, "the same in all training series"),
    "no times": ({"known": "calendar", "file": "untimed.csv"}, "no times, which the calendar needs"),
    "no series column": ({"series": "shop"}, "no column 'shop'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(quick: Quick, tmp_path: Path, fault: str) -> None:
    options, message = dict(FAULTS[fault][0]), FAULTS[fault][1]
    table = load_table(20).assign(word="a", empty=np.nan, place="here")
    table.to_csv(tmp_path / "load.csv", index=False)
    table[["load", "temperature"]].to_csv(tmp_path / "untimed.csv", index=False)
    with pytest.raises(InputError, match=message):
        quick("forecasting", tmp_path / options.pop("file", "load.csv"), target="load", horizon=8, context=16, epochs=0,
              **options)  # fmt: skip


def test_arrays_have_no_columns() -> None:
    with pytest.raises(InputError, match="give a table"):
        read_series_all(np.arange(9.0), roles=Roles(("wind",)))
    frame = read_series_all(np.array([1.0, 2.0, np.nan]), roles=Roles(("calendar",)))[0]
    assert frame.values.tolist() == [[1.0], [2.0]]


def test_command_line(load_file: Path, tmp_path: Path, encoder_spec: str) -> None:
    from typer.testing import CliRunner

    from polysense.apps import cli

    bundle, future = tmp_path / "bundle", tmp_path / "future.csv"
    arguments = ["fit", "forecasting", str(load_file), "--out", str(bundle), "--target", "load", "--known",
                 "temperature,calendar", "--horizon", "12", "--context", "24", "--epochs", "0", "--encoder",
                 encoder_spec, "-q", "--device", "cpu"]  # fmt: skip
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    with_future(load_table(), 12).to_csv(future, index=False)
    out = tmp_path / "out.csv"
    result = CliRunner().invoke(cli.app, ["predict", str(bundle), str(future), "--out", str(out), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    answer = pd.read_csv(out)
    assert answer["time"].tolist()[0] == "2024-02-11T12:00:00" and len(answer) == 12


def test_the_answer_is_a_series(build: Callable[..., Any]) -> None:
    """The effect is put back in the variate's own units, on the mean and on every quantile."""
    rng = np.random.default_rng(0)
    pipeline = build("forecasting")
    frame = frame_of(rng.normal(10, 1, (100, 2)), np.ones((120, 1)), ("flag",))
    plain = pipeline.predict_sequences([pipeline.tokenizer.split(pipeline.tokenizer.read(frame))])[0]
    effect = Effect((Covariate("flag", 0, 2),), (), (0.0,), ("v0", "v1"), ((5.0,), (0.0,)))
    pipeline.tokenizer.config = replace(pipeline.tokenizer.config, effect=effect, known=("flag",))
    moved = frame_of(frame.values + np.array([5.0, 0.0]), np.ones((120, 1)), ("flag",))
    answer = pipeline.predict_sequences([pipeline.tokenizer.split(pipeline.tokenizer.read(moved))])[0]
    assert isinstance(answer, Series)
    np.testing.assert_allclose(answer.mean, plain.mean + np.array([5.0, 0.0]), rtol=1e-4)
    for level, band in answer.quantiles.items():
        np.testing.assert_allclose(band, plain.quantiles[level] + np.array([5.0, 0.0]), rtol=1e-4)

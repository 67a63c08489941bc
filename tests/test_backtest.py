"""Backtests: every metric by hand, nothing of the future seen, and the command line with its files and picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from typer.testing import CliRunner

import polysense
from polysense.apps import cli
from polysense.apps.panels import COLOURS, INK
from polysense.core.errors import InputError
from polysense.pipeline import Pipeline
from polysense.training.backtest import backtest, naive_error, seasonal_naive

HORIZON = 8  # of the tiny bundle's head


@pytest.fixture
def tiny(build: Callable[..., Pipeline]) -> Pipeline:
    return build("forecasting")


def repeat(history: np.ndarray, h: int) -> np.ndarray:
    return np.repeat(history[-1:], h, 0)


def hourly(rows: int, zone: str | None = None) -> pd.DataFrame:
    k = np.arange(rows)
    noise = np.random.default_rng(0).normal(0, 0.3, (rows, 2))
    times = pd.date_range("2024-03-20", periods=rows, freq="h", tz=zone)
    return pd.DataFrame({"when": times, "load": 20 + 5 * np.sin(k * np.pi / 12) + noise[:, 0],
                         "heat": 3 - 2 * np.cos(k * np.pi / 12) + noise[:, 1]})  # fmt: skip


def test_every_metric_by_hand(pretend: Callable[..., Any]) -> None:
    pipeline, _ = pretend(lambda history, h: np.array([[7.0], [10.0]]))
    found = backtest(pipeline, np.array([1.0, 2, 3, 4, 5, 6, 8, 8]), horizon=2, origins=1, season=2)
    pinball = (0.1 * 3 + 0.5 * 1 + 0.1 * 1 + 0 + 0.5 * 2 + 0.1 * 4) / 6
    want = {"mse": 2.5, "mae": 1.5, "rmse": 2.5**0.5, "smape": 100 * (1 / 15 + 2 / 18), "mase": 1.5 / 2,
            "crps": 2 * pinball, "coverage": 1.0, "coverage_wanted": 0.8}  # fmt: skip
    assert found.metrics == pytest.approx(want)
    seasonal = {"mse": 6.5, "mae": 2.5, "rmse": 6.5**0.5, "smape": 100 * (3 / 13 + 2 / 14), "mase": 1.25}
    last = {"mse": 4.0, "mae": 2.0, "rmse": 2.0, "smape": 200 * 2 / 14, "mase": 1.0}
    assert found.baselines["seasonal naive"] == pytest.approx(seasonal)
    assert found.baselines["repeat last"] == pytest.approx(last)
    rows = found.forecasts
    assert list(rows) == ["source", "variate", "origin", "step", "time", "true", "mean", "q0.1", "q0.5", "q0.9"]
    assert rows["origin"].tolist() == [6, 6] and rows["time"].tolist() == [6, 7] and rows["step"].tolist() == [1, 2]
    assert rows["q0.9"].tolist() == [9, 12] and rows["true"].tolist() == [8, 8]
    one = found.by_variate.iloc[0]
    assert one["variate"] == "value" and one["season"] == 2 and one["values"] == 2
    assert one["mase"] == pytest.approx(0.75) and one["mae_seasonal_naive"] == pytest.approx(2.5)


def test_the_band_does_not_hold_what_lies_outside(pretend: Callable[..., Any]) -> None:
    pipeline, _ = pretend(lambda history, h: np.array([[7.0], [11.0]]))
    found = backtest(pipeline, np.array([1.0, 2, 3, 4, 5, 6, 8, 8]), horizon=2, origins=1, season=2)
    assert found.metrics["coverage"] == 0.5


def test_origins_are_the_last_ones_and_a_step_apart(pretend: Callable[..., Any]) -> None:
    pipeline, seen = pretend(repeat)
    found = backtest(pipeline, np.arange(20.0), horizon=3, origins=4, step=2, batch_size=3)
    assert found.by_origin["origin"].tolist() == [11, 13, 15, 17]
    assert [len(history) for history in seen] == [11, 13, 15, 17]
    assert found.by_origin["mae"].tolist() == pytest.approx([2.0] * 4)  # 1, 2 and 3 behind
    # As many as fit: the first has one row before it.
    default = backtest(pipeline, np.arange(10.0), horizon=3)
    assert default.by_origin["origin"].tolist() == [1, 4, 7]
    assert pipeline.head.horizon == HORIZON


def test_mase_is_of_the_history_before_each_origin(pretend: Callable[..., Any]) -> None:
    pipeline, _ = pretend(repeat)
    # Steps of 1, then of 3: before the second origin their mean is (3 · 1 + 2 · 3) / 5.
    found = backtest(pipeline, np.array([0.0, 1, 2, 3, 6, 9, 12, 15]), horizon=2, origins=2, season=1)
    assert found.by_origin["mase"].tolist() == pytest.approx([4.5 / 1, 4.5 / (9 / 5)])
    assert found.metrics["mase"] == pytest.approx((4.5 + 4.5 / 1.8) / 2)


def test_missing_values_do_not_count(pretend: Callable[..., Any]) -> None:
    pipeline, _ = pretend(lambda history, h: np.full((h, 1), 5.0))
    values = np.array([1.0, 2, np.nan, 4, 5, np.nan, 7, 1])
    found = backtest(pipeline, values, horizon=3, origins=1, season=1)
    assert found.metrics["mae"] == pytest.approx((2 + 4) / 2) and found.metrics["coverage"] == 0.5
    assert found.metrics["mase"] == pytest.approx(3.0)  # only 1 → 2 and 4 → 5 are known
    assert found.by_variate["values"].tolist() == [2]
    assert found.forecasts["true"].isna().tolist() == [True, False, False]
    nothing, _ = pretend(lambda history, h: np.full((h, 1), np.nan))
    with pytest.raises(InputError, match="no value is known"):
        backtest(nothing, values, horizon=3)


def test_seasonal_naive_by_hand() -> None:
    nan = np.nan
    np.testing.assert_array_equal(seasonal_naive(np.array([1.0, 2, 3, 4, 5, 6, 7]), 3, 5), [5, 6, 7, 5, 6])
    np.testing.assert_array_equal(seasonal_naive(np.array([1.0, 2, 3, 4, nan, 6]), 3, 3), [4, 2, 6])
    np.testing.assert_array_equal(seasonal_naive(np.array([8.0, 9]), 4, 4), [9, 9, 8, 9])  # longer than the history
    np.testing.assert_array_equal(seasonal_naive(np.array([1.0, 7, nan]), 1, 2), [7, 7])
    assert np.isnan(seasonal_naive(np.array([nan, nan]), 1, 2)).all()
    assert naive_error(np.array([1.0, 5, 2, 8]), 2) == 2.0
    assert np.isnan(naive_error(np.full(5, 3.0), 1)) and np.isnan(naive_error(np.ones(3), 4))


def test_variates_have_seasons_and_rows_of_their_own(pretend: Callable[..., Any]) -> None:
    pipeline, _ = pretend(repeat)
    k = np.arange(120)
    table = pd.DataFrame({"day": 10.0 + (k % 12 == 3) * 5, "week": 100.0 + k % 7, "line": 2.0 * k})
    found = backtest(pipeline, table, horizon=4, origins=2)
    rows = found.by_variate.set_index("variate")
    assert rows.index.tolist() == ["day", "week", "line"] and rows["season"].tolist() == [12, 7, 1]
    assert rows.loc["day", "mae_seasonal_naive"] == rows.loc["week", "mae_seasonal_naive"] == 0
    assert rows.loc["line", "mase"] == pytest.approx(2.5) and len(found.forecasts) == 3 * 2 * 4
    chosen = backtest(pipeline, table, target="line, day", horizon=4, origins=1)
    assert chosen.by_variate["variate"].tolist() == ["line", "day"]
    mae = found.by_variate["mae"].mean()  # as many values each
    assert found.metrics["mae"] == pytest.approx(mae) == pytest.approx(found.by_origin["mae"].mean())


def test_several_series_of_a_file(pretend: Callable[..., Any], tmp_path: Path) -> None:
    lines = ["id," + ",".join(f"V{i}" for i in range(1, 13))]
    lines += [f"{name}," + ",".join(str(start + i) for i in range(count)) + "," * (12 - count)
              for name, start, count in (("a", 0, 12), ("b", 50, 9), ("c", 7, 4))]  # fmt: skip
    (tmp_path / "many.csv").write_text("\n".join(lines) + "\n")
    pipeline, seen = pretend(repeat)
    found = backtest(pipeline, tmp_path / "many.csv", horizon=4, origins=2)
    path = str(tmp_path / "many.csv")
    assert found.skipped == (f"{path}#c",)
    assert list(zip(found.by_origin["source"], found.by_origin["origin"])) == [
        (f"{path}#a", 4), (f"{path}#a", 8), (f"{path}#b", 1), (f"{path}#b", 5)]  # fmt: skip
    assert [history[-1, 0] for history in seen] == [3, 7, 50, 54]
    assert found.metrics["mae"] == 2.5


def test_the_future_changes_no_forecast(tiny: Pipeline) -> None:
    table = hourly(100)
    first = backtest(tiny, table, origins=3)
    origins = first.by_origin["origin"]
    for k in range(3):
        other = table.copy()
        later = (other["when"] >= origins[k]).to_numpy()
        other.loc[later, ["load", "heat"]] = np.random.default_rng(k).normal(1e3, 1e3, (later.sum(), 2))
        again = backtest(tiny, other, origins=3)
        upto = (first.forecasts["origin"] <= origins[k]).to_numpy()
        columns = ["mean", "q0.1", "q0.9"]
        np.testing.assert_allclose(again.forecasts[upto][columns], first.forecasts[upto][columns], rtol=1e-4, atol=1e-4)
        seasons = again.by_variate["season"].tolist() == first.by_variate["season"].tolist()
        assert seasons and (again.forecasts["true"] != first.forecasts["true"]).any()
        if k < 2:  # what follows did see it
            assert not np.allclose(again.forecasts[~upto]["mean"], first.forecasts[~upto]["mean"], rtol=0.1)


def test_steps_filled_by_the_reader_are_no_truth_and_no_look_ahead(pretend: Callable[..., Any]) -> None:
    pipeline, seen = pretend(repeat)
    values = np.arange(30.0)
    times = pd.date_range("2024-01-01", periods=30, freq="h")
    kept = [i for i in range(30) if i not in (10, 19, 25)]
    table = pd.DataFrame({"time": times[kept], "value": values[kept]})
    table.loc[table["value"] == 20, "value"] = 1000.0
    found = backtest(pipeline, table, horizon=5, origins=2, season=1)
    assert found.by_origin["origin"].tolist() == [times[20], times[25]]
    # Row 19 is read as a mean of 18 and 1000, the value at the first origin.
    assert np.isnan(seen[0][19, 0]) and seen[0][10, 0] == 10.0
    assert seen[1][19, 0] == 509.0
    assert found.forecasts["true"].isna().tolist() == [False] * 5 + [True] + [False] * 4
    # Beside times that only tremble there is a row for each step.
    rng = np.random.default_rng(0)
    trembling = pd.DataFrame({"time": times + pd.to_timedelta(rng.integers(-240, 240, 30), "s"), "value": values})
    assert backtest(pipeline, trembling, horizon=5, origins=2).forecasts["true"].notna().all()


def test_times_keep_their_zone(pretend: Callable[..., Any], tmp_path: Path) -> None:
    pipeline, _ = pretend(repeat)
    table = hourly(24 * 14, "Europe/Berlin")  # over the change to summer time
    table.to_parquet(tmp_path / "zone.parquet")
    found = backtest(pipeline, tmp_path / "zone.parquet", time="when", horizon=6, origins=3)
    assert str(found.forecasts["time"].dt.tz) == str(found.by_origin["origin"].dt.tz) == "Europe/Berlin"
    assert found.forecasts["time"].max() == table["when"].max()
    # The same moments, as texts with one offset, with several, and without any.
    shifts = {"+05:30": "UTC+05:30", "Europe/Berlin": "UTC", "UTC": "UTC"}
    for zone, want in shifts.items():
        texts = table.assign(when=table["when"].dt.tz_convert(zone).astype(str))
        texts.to_csv(tmp_path / "t.csv", index=False)
        other = backtest(pipeline, tmp_path / "t.csv", horizon=6, origins=3).forecasts
        assert str(other["time"].dt.tz) == want
        assert (other["time"].to_numpy() == found.forecasts["time"].to_numpy()).all()
    bare = backtest(pipeline, table.assign(when=table["when"].dt.tz_localize(None)).set_index("when"), origins=1)
    assert bare.forecasts["time"].dt.tz is None
    indexed = backtest(pipeline, table.set_index("when"), origins=1)
    assert str(indexed.forecasts["time"].dt.tz) == "Europe/Berlin"


def test_bad_requests(tiny: Pipeline, build: Callable[..., Pipeline]) -> None:
    values = np.arange(50.0)
    with pytest.raises(InputError, match="it has 8 rows where 9 are needed"):
        backtest(tiny, np.arange(8.0))
    with pytest.raises(InputError, match="longest of its 3 series has 5 rows"):
        backtest(tiny, np.zeros((3, 5, 2)))
    for wrong in ({"origins": 0}, {"step": -1}, {"season": 0}, {"horizon": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            backtest(tiny, values, **wrong)
    with pytest.raises(InputError, match="no forecaster"):
        backtest(build("time-series-embedding"), values)
    assert len(backtest(tiny, np.arange(9.0)).forecasts) == HORIZON


@pytest.fixture
def bundle(build: Callable[..., Pipeline], encoder_spec: str, tmp_path: Path) -> Path:
    return build("forecasting", encoder=encoder_spec).save_pretrained(tmp_path / "bundle")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "berlin.csv"
    hourly(120, "Etc/GMT-2").to_csv(path, index=False)
    return path


def test_command_line(bundle: Path, file: Path, tmp_path: Path) -> None:
    names = ("all.csv", "picture.png", "metrics.json")
    table, picture, metrics = (tmp_path / name for name in names)
    arguments = ["backtest", str(bundle), str(file), "--time", "when", "--target", "load,heat", "--horizon", "6",
                 "--origins", "4", "--step", "9", "--season", "24", "--device", "cpu", "--out", str(table),
                 "--plot", str(picture), "--json", str(metrics)]  # fmt: skip
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "4 origins, 6 steps each, 48 true values" in result.output
    assert all(word in result.output for word in ("seasonal naive", "repeat last", "crps", "load", "heat"))
    rows = pd.read_csv(table)
    assert len(rows) == 2 * 4 * 6 and rows["time"].str.endswith("+02:00").all()
    told = json.loads(metrics.read_text())
    error = (rows["mean"] - rows["true"]).abs().mean()
    assert told["metrics"]["mae"] == pytest.approx(error) and f"{error:.4f}" in result.output
    assert [row["season"] for row in told["by_variate"]] == [24, 24]
    assert told["by_origin"][0]["origin"].endswith("+02:00") and set(told["baselines"]) == {
        "seasonal naive", "repeat last"}  # fmt: skip
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    for colour in (INK, COLOURS[0], COLOURS[1]):
        assert (np.abs(pixels[90:] - np.array(to_rgb(colour)) * 255).max(-1) < 30).sum() > 200, colour
    assert CliRunner().invoke(cli.app, [*arguments[:3], "--out", str(tmp_path / "a.parquet"), "-q"]).exit_code == 0
    assert str(pd.read_parquet(tmp_path / "a.parquet")["time"].dt.tz) in ("+02:00", "UTC+02:00")


@pytest.mark.parametrize("horizon", [1, 5])
def test_pictures_of_series_without_times(bundle: Path, tmp_path: Path, horizon: int) -> None:
    np.save(tmp_path / "many.npy", np.random.default_rng(0).normal(0, 1, (3, 40, 2)))
    arguments = ["backtest", str(bundle), str(tmp_path / "many.npy"), "--horizon", str(horizon)]
    result = CliRunner().invoke(cli.app, [*arguments, "--plot", str(tmp_path / "p.png"), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "of 3 series" in result.output and "#2 x2" in result.output
    with Image.open(tmp_path / "p.png") as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    for colour in COLOURS[:4]:
        assert (np.abs(pixels[90:] - np.array(to_rgb(colour)) * 255).max(-1) < 30).sum() > 20, colour


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "nowhere/a.csv"], "nowhere/a.csv: its folder does not exist"),
        (["--plot", "nowhere/a.png"], "nowhere/a.png: its folder does not exist"),
        (["--json", "nowhere/a.json"], "nowhere/a.json: its folder does not exist"),
        (["--out", "a.xlsx"], "cannot write .xlsx"),
        (["--plot", "a.gif"], "end the name with .png"),
        (["--out", "a.csv", "--plot", "a.png", "--json", "a.json", "--horizon", "500"], "120 rows where 501"),
        (["--out", "a.csv", "--target", "cold"], "it has no column 'cold'"),
        (["--time", "never"], "it has no column 'never'"),
        (["--device", "warp9"], "no such device"),
    ],
)
def test_faults_are_one_line_and_leave_no_file(
    bundle: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str], words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["backtest", str(bundle), str(file), *options])
    assert stopped.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_names_on_the_command_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, words in (
        (["any-serie", str(file)], 1, "did you mean any-series?"),
        (["any-series", "nowhere.csv"], 1, "nowhere.csv: there is no such file"),
        (["esc10", str(file)], 1, "no forecaster"),
        (["any-series", str(file), "--origins", "0"], 2, "--origins"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["backtest", *arguments, "--device", "cpu"])
        assert stopped.value.code == code
        assert words in capsys.readouterr().err


def test_a_missing_folder_stops_before_the_work(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from polysense.apps import backtest as app

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it began")

    monkeypatch.setattr(app, "run", never)
    monkeypatch.setattr(polysense, "load", never)
    with pytest.raises(SystemExit):
        cli.main(["backtest", "any-series", str(file), "--json", "nowhere/a.json"])
    assert "its folder does not exist" in capsys.readouterr().err

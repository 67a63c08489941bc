"""Anomaly scores: by hand, from the past alone, unspoilt by earlier anomalies, and the command line with its files."""

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
from polysense.anomalies import LEAST, MOST, anomalies, passing
from polysense.apps import cli
from polysense.apps.anomalies import ALARM
from polysense.apps.panels import COLOURS, INK
from polysense.core.errors import InputError
from polysense.pipeline import Pipeline


@pytest.fixture
def tiny(build: Callable[..., Pipeline]) -> Pipeline:
    return build("forecasting")


def zero(history: np.ndarray, h: int) -> np.ndarray:
    return np.zeros((h, history.shape[1]))


def noise(rows: int = 80, columns: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (rows, columns))


def hourly(rows: int, zone: str | None = None) -> pd.DataFrame:
    k = np.arange(rows)
    values = noise(rows, 2) * 0.3
    return pd.DataFrame({"when": pd.date_range("2024-03-20", periods=rows, freq="h", tz=zone),
                         "load": 20 + 5 * np.sin(k * np.pi / 12) + values[:, 0],
                         "heat": 3 - 2 * np.cos(k * np.pi / 12) + values[:, 1]})  # fmt: skip


def test_scores_by_hand(pretend: Callable[..., Any]) -> None:
    pipeline, _ = pretend(zero)
    values = noise()[:, 0]
    values[[40, 50, 60]] = 8.0, -7.0, np.nan
    found = anomalies(pipeline, values)
    table = found.table
    assert list(table) == ["source", "variate", "time", "value", "expected", "low", "high", "score"]
    assert table["score"][:LEAST].isna().all() and table["expected"][:LEAST].isna().all()
    assert np.isnan(table["score"][60]) and table["expected"][60] == 0  # something was expected, nothing came
    scored = table["score"].notna()
    np.testing.assert_allclose(table["score"][scored], np.abs(values)[scored] / 2)  # two is half the band
    assert set(table["low"].dropna()) == {-2.0} and set(table["high"].dropna()) == {2.0}
    moments = found.moments
    assert moments["start"].tolist() == moments["time"].tolist() == [40, 50] and moments["rows"].tolist() == [1, 1]
    assert moments["score"].tolist() == [4.0, 3.5] and moments["value"].tolist() == [8.0, -7.0]


def test_a_score_is_of_the_half_band_on_its_own_side(build: Callable[..., Pipeline], monkeypatch: Any) -> None:
    from polysense.core.predictions import Series

    pipeline = build("forecasting", head={"quantiles": (0.1, 0.5, 0.9)})

    def predict(samples: Any, batch_size: int) -> list[Series]:
        one = np.ones((pipeline.head.horizon, 1))
        return [Series(2 * one, {0.1: 0 * one, 0.5: one, 0.9: 5 * one}, [], ["value"]) for _ in samples]

    monkeypatch.setattr(pipeline, "predict_sequences", predict)
    values = noise(30)[:, 0]
    values[25:28] = 1.0, 9.0, -1.0
    assert anomalies(pipeline, values).table["score"][25:28].tolist() == [0.0, 2.0, 2.0]


def test_later_blocks_are_told_what_was_expected_in_the_place_of_faults(pretend: Callable[..., Any]) -> None:
    pipeline, seen = pretend(zero)
    values = noise(56, 2)
    values[30, 0] = values[40, 1] = 50.0
    anomalies(pipeline, values, step=8)
    assert [len(history) for history in seen] == [24, 32, 40, 48]
    told = values.copy()
    told[30, 0] = told[40, 1] = 0.0
    for history in seen:
        np.testing.assert_array_equal(history, told[: len(history)])
    seen.clear()
    anomalies(pipeline, values, step=8, robust=False)
    for history in seen:
        np.testing.assert_array_equal(history, values[: len(history)])


def test_a_change_that_stays_is_kept(pretend: Callable[..., Any]) -> None:
    pipeline, seen = pretend(lambda history, h: np.repeat(history[-1:], h, 0))
    values = noise(200)[:, 0] * 0.5 + np.where(np.arange(200) >= 60, 20.0, 0.0)
    table = anomalies(pipeline, values, step=4).table
    assert (table["score"][60:68] > 5).all()
    assert (table["score"][150:] < 1).all()  # the new level is the usual one
    assert np.abs(seen[10]).max() < 1  # rows 60 to 63 are known by then, and seem to be faults
    assert (seen[-1][-40:, 0] > 15).all()


def test_which_anomalies_pass() -> None:
    beyond = np.zeros((100, 2), bool)
    beyond[[10, 11, 12], 0] = beyond[30:90, 1] = True
    hidden = passing(beyond)
    assert hidden[:, 0].tolist() == beyond[:, 0].tolist()
    assert not hidden[55:65, 1].any() and not (hidden & ~beyond).any()


def test_batches_and_series_change_no_score(tiny: Pipeline) -> None:
    values = np.stack([noise(70, 2), noise(70, 2)[::-1] * 3])
    values[1, 50] = 40.0
    whole = anomalies(tiny, values, batch_size=64).table
    small = anomalies(tiny, values, batch_size=1).table
    numbers = ["expected", "low", "high", "score"]
    np.testing.assert_allclose(whole[numbers], small[numbers], rtol=1e-4, atol=1e-4)
    alone = anomalies(tiny, values[1]).table
    np.testing.assert_allclose(whole[numbers][140:], alone[numbers], rtol=1e-4, atol=1e-4)
    assert whole["source"].nunique() == 2 and len(whole) == 2 * 2 * 70


def test_the_future_changes_no_score(tiny: Pipeline) -> None:
    table = hourly(90)
    first = anomalies(tiny, table, step=6).table
    other = table.copy()
    other.loc[60:, ["load", "heat"]] = np.random.default_rng(1).normal(1e3, 1e3, (30, 2))
    again = anomalies(tiny, other, step=6).table
    same = (first["time"] < table["when"][60]).to_numpy()
    pd.testing.assert_frame_equal(first[same], again[same], rtol=1e-4)
    assert not np.allclose(first[~same]["score"], again[~same]["score"], rtol=0.1)


def test_steps_that_the_reader_filled_have_no_score(pretend: Callable[..., Any]) -> None:
    pipeline, _ = pretend(zero)
    times = pd.date_range("2024-01-01", periods=60, freq="h")
    kept = [i for i in range(60) if i not in (40, 41)]
    table = pd.DataFrame({"time": times[kept], "value": noise(60)[kept, 0]})
    found = anomalies(pipeline, table, step=8).table
    assert len(found) == 60 and found["score"][[40, 41]].isna().all() and found["value"][[40, 41]].isna().all()
    assert found["score"][LEAST:].notna().sum() == 34


def test_a_history_that_stands_still(tiny: Pipeline) -> None:
    values = np.full(60, 7.0)
    values[45] = 8.0
    found = anomalies(tiny, values)
    assert found.table["score"][45] == MOST and found.moments["start"].tolist() == [45]
    assert (found.table["score"].drop(45).dropna() == 0).all()


def test_too_little_of_a_past_is_not_scored(tiny: Pipeline) -> None:
    values = noise(70, 2)
    values[:30, 1] = np.nan  # known from row 30 on
    table = anomalies(tiny, values, step=8).table
    second = table[table["variate"] == "x2"].reset_index()
    assert second["score"][:56].isna().all() and second["score"][56:].notna().all()
    short = anomalies(tiny, values[:30, :1])
    assert short.table["score"].notna().sum() == 30 - LEAST
    with pytest.raises(InputError, match="24 rows are too few"):
        anomalies(tiny, values[:24, :1])


def test_bad_requests(tiny: Pipeline, build: Callable[..., Pipeline]) -> None:
    values = noise()
    with pytest.raises(InputError, match="step 0: it is not positive"):
        anomalies(tiny, values, step=0)
    for threshold in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="threshold"):
            anomalies(tiny, values, threshold=threshold)
    with pytest.raises(InputError, match="no forecaster"):
        anomalies(build("time-series-embedding"), values)
    with pytest.raises(InputError, match="no band"):
        anomalies(build("forecasting", head={"quantiles": (0.5,)}), values)
    with pytest.raises(InputError, match="no column 'cold'"):
        anomalies(tiny, hourly(60), columns="load, cold")


def test_any_series_finds_what_was_planted() -> None:
    k = np.arange(300)
    values = 10 + 3 * np.sin(k * np.pi / 12) + np.random.default_rng(3).normal(0, 0.3, 300)
    values[200] += 5.0
    values[250] -= 5.0
    found = anomalies(polysense.load("any-series"), values)
    assert found.moments["time"].head(2).sort_values().tolist() == [200, 250]


@pytest.fixture
def bundle(build: Callable[..., Pipeline], encoder_spec: str, tmp_path: Path) -> Path:
    return build("forecasting", encoder=encoder_spec).save_pretrained(tmp_path / "bundle")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    table = hourly(120, "Etc/GMT-2")
    table.loc[100, "load"] = 90.0
    table.to_csv(tmp_path / "berlin.csv", index=False)
    return tmp_path / "berlin.csv"


def test_command_line(bundle: Path, file: Path, tmp_path: Path) -> None:
    table, picture, record = (tmp_path / name for name in ("all.csv", "picture.png", "found.json"))
    arguments = ["anomalies", str(bundle), str(file), "--time", "when", "--columns", "heat,load", "--step", "6",
                 "--threshold", "1", "--device", "cpu", "--out", str(table), "--plot", str(picture),
                 "--json", str(record)]  # fmt: skip
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(table)
    assert len(rows) == 240 and rows["time"].str.endswith("+02:00").all() and rows["score"].isna().sum() == 48
    told = json.loads(record.read_text())
    assert told["scored"] == 192 and told["anomalous"] == (rows["score"] > 1).sum() == sum(
        row["rows"] for row in told["moments"])  # fmt: skip
    assert told["moments"][0]["score"] == pytest.approx(rows["score"].max())
    assert told["moments"][0]["time"].replace("T", " ") == rows["time"][rows["score"].idxmax()]
    assert f"at {len(told['moments'])} moments" in result.output
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    for colour in (INK, ALARM):
        assert (np.abs(pixels[90:] - np.array(to_rgb(colour)) * 255).max(-1) < 30).sum() > 50, colour
    for colour in COLOURS[:2]:  # bands are pale
        pale = np.array(to_rgb(colour)) * 255 * 0.3 + 255 * 0.7
        assert (np.abs(pixels[90:] - pale).max(-1) < 8).sum() > 50, colour


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "nowhere/a.csv"], "nowhere/a.csv: its folder does not exist"),
        (["--out", "a.xlsx"], "cannot write .xlsx"),
        (["--plot", "a.gif"], "end the name with .png"),
        (["--columns", "cold"], "it has no column 'cold'"),
    ],
)
def test_faults_are_one_line_and_leave_no_file(
    bundle: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str], words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["anomalies", str(bundle), str(file), *options])
    assert stopped.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]
    assert sorted(tmp_path.rglob("*")) == before

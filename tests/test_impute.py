"""Imputation: both sides, long gaps, how much of the line, the file's own columns and zone, and the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import polysense
from polysense.apps import cli
from polysense.core.errors import InputError
from polysense.impute import LEAST, Gap, gaps_of, impute, seasonal, straight, trials
from polysense.pipeline import Pipeline

HORIZON = 8  # of the tiny head


def last(history: np.ndarray, h: int) -> np.ndarray:
    return np.repeat(history[-1:], h, 0)


@pytest.fixture
def tiny(build: Callable[..., Pipeline]) -> Pipeline:
    return build("forecasting")


def gappy(rows: int = 120, zone: str | None = None) -> pd.DataFrame:
    k = np.arange(rows)
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"when": pd.date_range("2024-03-20", periods=rows, freq="h", tz=zone),
                          "load": 20 + 5 * np.sin(k * np.pi / 12) + rng.normal(0, 0.1, rows),
                          "heat": 3 - 2 * np.cos(k * np.pi / 12) + rng.normal(0, 0.1, rows)})  # fmt: skip
    table.loc[40:44, "load"] = np.nan
    table.loc[[44, 70], "heat"] = np.nan
    return table


def test_gaps_and_lines() -> None:
    nan = np.nan
    values = np.array([nan, 1, nan, nan, 4, nan])
    assert gaps_of(values, 3) == [Gap(3, 0, 1), Gap(3, 2, 4), Gap(3, 5, 6)]
    truth = values[:, None]
    assert [straight(truth, gap).tolist() for gap in gaps_of(values, 0)] == [[1.0], [2.0, 3.0], [4.0]]
    assert np.isnan(straight(np.full((3, 1), nan), Gap(0, 0, 3))).all()
    assert [Gap(0, 0, g).size for g in (1, 2, 3, 4, 5, 8, 9, 48)] == [0, 1, 2, 2, 3, 3, 4, 6]


def test_both_sides_are_mixed_by_distance(pretend: Callable[..., Any]) -> None:
    # The series is three and then seven; nothing tells a line from a forecast but the wrong constant 5 added to both.
    pipeline, seen = pretend(last)
    values = np.r_[np.full(20, 3.0), np.full(3, np.nan), np.full(20, 7.0)]
    found = impute(pipeline, values)
    np.testing.assert_allclose(found["value"][19:24], [3, 4, 5, 6, 7])
    assert found["filled"].tolist() == [""] * 20 + ["value"] * 3 + [""] * 20
    befores = [history[:, 0].tolist() for history in seen]
    assert [3.0] * 20 in befores and [7.0] * 20 in befores  # each side by itself, time reversed on the right


def test_ends_are_filled_from_the_one_side(pretend: Callable[..., Any]) -> None:
    pipeline, _ = pretend(lambda history, h: history[-1] + np.arange(1.0, h + 1)[:, None])
    values = np.r_[np.full(3, np.nan), np.zeros(20), np.full(2, np.nan)]
    found = impute(pipeline, values)["value"]
    assert found[:3].tolist() == [3.0, 2.0, 1.0] and found[23:].tolist() == [1.0, 2.0]


def test_long_gaps_are_rolled_out(pretend: Callable[..., Any]) -> None:
    pipeline, seen = pretend(lambda history, h: history[-1] + np.arange(1.0, h + 1)[:, None])
    values = np.r_[np.arange(20.0), np.full(20, np.nan)]  # two and a half horizons
    np.testing.assert_allclose(impute(pipeline, values)["value"], np.arange(40.0))
    ends = [history[-1, 0] for history in seen if len(history) > 20]
    assert ends == [19.0 + HORIZON, 19.0 + 2 * HORIZON]


def test_how_much_of_the_line_is_what_trials_say(pretend: Callable[..., Any]) -> None:
    """A saw whose forecasts are right where a line is wrong, and the other way round."""
    saw = np.tile([0.0, 9.0, 1.0, 8.0], 20)

    def knows(history: np.ndarray, h: int) -> np.ndarray:
        known = history[-4:, 0] if np.isfinite(history[-4:, 0]).all() else history[-8:-4, 0]
        return np.resize(known, h)[:, None]

    gapped = saw.copy()
    gapped[[30, 31, 32]] = np.nan
    pipeline, _ = pretend(knows)
    np.testing.assert_allclose(impute(pipeline, gapped)["value"], saw)
    pipeline, _ = pretend(lambda history, h: np.full((h, 1), 100.0))
    ramp = np.arange(80.0)
    gapped = ramp.copy()
    gapped[[30, 31, 32]] = np.nan
    np.testing.assert_allclose(impute(pipeline, gapped)["value"], ramp)


def test_values_a_season_away_by_hand() -> None:
    nan = np.nan
    values = np.array([[1.0, 2, 3, 4, nan, nan, 7, 8, 9, 10, 11, 12]]).T
    assert seasonal(values, Gap(0, 4, 6), 3).tolist() == [(2 + 8) / 2, (3 + 9) / 2]
    # Of a gap that is longer than a season nothing inside is used, even where it is known.
    assert seasonal(values, Gap(0, 6, 10), 3).tolist() == [4.0, (2 + 11) / 2, (3 + 12) / 2, 4.0]
    assert seasonal(values, Gap(0, 4, 6), 1).tolist() == straight(values, Gap(0, 4, 6)).tolist()


def test_trials_lie_among_known_values() -> None:
    values = np.ones((60, 2))
    values[20:30, 1] = np.nan
    tries = trials(values, 1, 3)
    assert tries and all(gap.length == 6 and gap.variate == 1 for gap in tries)
    for gap in tries:
        assert np.isfinite(values[gap.begin - 1 : gap.end + 1, 1]).all()
        assert gap.begin >= LEAST and gap.end <= 60 - LEAST
    assert len(set(tries)) == len(tries) and trials(values[:12], 0, 3) == []


def test_known_values_stay_and_batches_change_nothing(tiny: Pipeline) -> None:
    table = gappy()
    whole, small = impute(tiny, table, batch_size=64), impute(tiny, table, batch_size=1)
    for name in ("load", "heat"):
        known = table[name].notna()
        assert (whole[name][known] == table[name][known]).all() and whole[name].notna().all()
        np.testing.assert_allclose(whole[name], small[name], rtol=1e-4)
    assert whole["filled"][40:45].tolist() == ["load"] * 4 + ["load,heat"] and whole["filled"][70] == "heat"
    assert (whole["filled"] != "").sum() == 6
    alone = impute(tiny, table[["when", "load"]])
    np.testing.assert_allclose(alone["load"], whole["load"], rtol=1e-4)


def test_rows_that_are_not_there_and_times_in_their_zone(tiny: Pipeline, tmp_path: Path) -> None:
    table = gappy(24 * 14, "Europe/Berlin")  # over the change to summer time
    gone = table.drop(index=[100, 101, 102])
    found = impute(tiny, gone)
    assert list(found) == ["when", "load", "heat", "filled"] and str(found["when"].dt.tz) == "Europe/Berlin"
    assert (found["when"] == table["when"]).all() and (found["filled"][100:103] == "load,heat").all()
    indexed = impute(tiny, gone.set_index("when"))
    assert indexed.index.name == "when" and str(indexed.index.tz) == "Europe/Berlin"
    np.testing.assert_allclose(indexed["load"], found["load"])
    bare = impute(tiny, gone.set_index("when").rename_axis(None))
    assert bare.index.name is None and list(bare) == ["load", "heat", "filled"]
    gone.to_parquet(tmp_path / "gone.parquet")
    pd.testing.assert_frame_equal(impute(tiny, tmp_path / "gone.parquet"), found)


def test_several_series_and_names_that_are_taken(tiny: Pipeline, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 1, (2, 30, 2))
    values[0, 5, 0] = values[1, 9, 1] = np.nan
    found = impute(tiny, values)
    assert list(found) == ["series", "step", "x1", "x2", "filled"]
    assert found["series"].tolist() == ["0"] * 30 + ["1"] * 30
    assert found.index[found["filled"] != ""].tolist() == [5, 39]
    lines = "id," + ",".join(f"V{i}" for i in range(1, 31)) + "\n"
    for name, row in zip("ab", values[..., 0]):
        lines += name + "," + ",".join("" if np.isnan(x) else f"{x}" for x in row) + "\n"
    (tmp_path / "lines.csv").write_text(lines)
    assert list(impute(tiny, tmp_path / "lines.csv")) == ["series", "step", "value", "filled"]
    taken = pd.DataFrame({"filled": values[0, :, 0], "step": values[0, :, 1]})
    assert list(impute(tiny, taken)) == ["step_", "filled", "step", "filled_"]


def test_what_cannot_be_told_stays_as_near_as_can_be(tiny: Pipeline) -> None:
    short = np.array([1.0, np.nan, 3.0, np.nan])  # too short to forecast from
    assert impute(tiny, short)["value"].tolist() == [1, 2, 3, 3]
    empty = np.c_[np.full(20, np.nan), np.ones(20)]
    found = impute(tiny, empty)
    assert found["x1"].isna().all() and (found["filled"] == "").all()
    whole = pd.DataFrame({"value": np.arange(30.0)})
    assert impute(tiny, whole)["value"].tolist() == whole["value"].tolist()


def test_any_series_fills_a_season_better_than_a_line() -> None:
    k = np.arange(240)
    truth = 10 + 3 * np.sin(k * np.pi / 12) + np.random.default_rng(0).normal(0, 0.2, 240)
    gapped = truth.copy()
    gapped[100:120] = np.nan
    found = impute(polysense.load("any-series"), gapped)["value"]
    line = np.interp(k, k[np.isfinite(gapped)], gapped[np.isfinite(gapped)])
    assert np.abs(found - truth)[100:120].mean() < 0.3 * np.abs(line - truth)[100:120].mean()


def test_bad_requests(tiny: Pipeline, build: Callable[..., Pipeline]) -> None:
    with pytest.raises(InputError, match="no forecaster"):
        impute(build("time-series-embedding"), np.arange(20.0))
    with pytest.raises(InputError, match="no column 'cold'"):
        impute(tiny, gappy(), columns="cold")


def test_command_line(
    build: Callable[..., Pipeline], encoder_spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = build("forecasting", encoder=encoder_spec).save_pretrained(tmp_path / "bundle")
    gappy(90, "Etc/GMT-2").to_csv(tmp_path / "gappy.csv", index=False)
    arguments = ["impute", str(bundle), str(tmp_path / "gappy.csv"), "--device", "cpu", "--out"]
    result = CliRunner().invoke(cli.app, [*arguments, str(tmp_path / "whole.csv"), "--columns", "load"])
    assert result.exit_code == 0, result.output
    assert "filled 5 of 90 rows" in result.output
    rows = pd.read_csv(tmp_path / "whole.csv")
    assert list(rows) == ["when", "load", "filled"] and rows["load"].notna().all()
    assert rows["when"].str.endswith("+02:00").all() and (rows["filled"] == "load").sum() == 5
    assert CliRunner().invoke(cli.app, [*arguments, str(tmp_path / "whole.parquet")]).exit_code == 0
    assert pd.read_parquet(tmp_path / "whole.parquet")["heat"].notna().all()
    for wrong, words in (("nowhere/a.csv", "its folder does not exist"), ("a.xlsx", "cannot write .xlsx")):
        with pytest.raises(SystemExit):
            cli.main([*arguments, wrong])
        assert words in capsys.readouterr().err

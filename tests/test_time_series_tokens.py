"""The time series tokenizer: normalisation, layout, masks, windows; and what the calendar tells."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from polysense.core.errors import InputError
from polysense.data.time_series import SeriesFrame, calendar_features, future_times, read_series
from polysense.tokenizers.base import TOKENIZERS
from polysense.tokenizers.series_scale import normalise
from polysense.tokenizers.time_series import SeriesConfig, TimeSeriesTokenizer

CONFIGS = {
    "patch": {}, "patch, fixed": {"fixed_context": True}, "patch, levels": {"levels": True, "center": "last"},
    "patch, all variates": {"channels": 3, "levels": True}, "patch, no calendar": {"calendar": False},
    "conv": {"form": "conv"}, "conv, all variates": {"form": "conv", "channels": 3, "levels": True},
    "conv, fixed": {"form": "conv", "fixed_context": True},
    "kernels": {"form": "kernels", "features": 400},
    "kernels, all variates": {"form": "kernels", "channels": 3, "center": "data", "mean": (90.0, 100.0, 110.0),
                              "spread": (20.0, 30.0, 40.0), "features": 400, "levels": True},
}  # fmt: skip


def tokenizer(**options: object) -> TimeSeriesTokenizer:
    torch.manual_seed(0)
    one = TimeSeriesTokenizer(SeriesConfig(**{"width": 32, "context": 64, **options}))  # type: ignore[arg-type]
    for parameter in one.parameters():  # wake what starts at zero
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return one


def frame(steps: int, variates: int = 3, freq: str = "h", seed: int = 0) -> SeriesFrame:
    values = np.random.default_rng(seed).normal(size=(steps, variates)).cumsum(0) * 5 + 100
    if steps > 1:  # a reader leaves columns without a number out
        values[steps // 2, 0] = np.nan
    return read_series(pd.DataFrame(values, index=pd.date_range("2024", periods=steps, freq=freq)).rename(columns=str))


@pytest.mark.parametrize("name", CONFIGS)
def test_rebuilt_from_its_configuration(name: str) -> None:
    one = TOKENIZERS["time_series"](SeriesConfig(width=32, **CONFIGS[name]))
    config = SeriesConfig(**json.loads(json.dumps(one.config_dict())))
    assert config == one.config
    TimeSeriesTokenizer(config).load_state_dict(one.state_dict())


WRONG = [({"form": "wavelet"}, "patch, conv, kernels or variates"),
         ({"center": "median"}, "mean, last or data"), ({"center": "data", "spread": (1.0,), "channels": 2}, "spread"),
         ({"form": "kernels", "segments": 0}, "segments"),
         ({"channels": -1}, "fit_config"), ({"patch": 4, "stride": 8}, "stride")]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_configurations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeSeriesTokenizer(SeriesConfig(**options))


def test_channels_come_from_the_data() -> None:
    config = TimeSeriesTokenizer.fit_config(SeriesConfig(channels=-1), [frame(20)])
    assert config.channels == 3
    assert TimeSeriesTokenizer.fit_config(SeriesConfig(), [frame(20)]).channels is None
    with pytest.raises(InputError, match="2 variates where 3"):
        TimeSeriesTokenizer(config).read(np.zeros((5, 2)))


@pytest.mark.parametrize("center", ["mean", "last"])
def test_normalisation_is_by_what_is_observed(center: str) -> None:
    history = frame(50).values.copy()
    history[-1, 1] = np.nan
    values, observed, loc, scale = normalise(history, center)
    table = pd.DataFrame(history)
    expected = table.mean() if center == "mean" else table.ffill().iloc[-1]
    assert np.allclose(loc, expected) and np.allclose(scale, table.std(ddof=0))
    assert (observed == np.isfinite(history)).all() and (values[observed == 0] == 0).all()
    assert np.allclose((values * scale + loc)[observed == 1], history[observed == 1], rtol=1e-4)


@pytest.mark.parametrize("level", [0.0, 7.0, 1e300, 1e-300])
def test_constant_and_extreme_series_stay_finite(level: float) -> None:
    values, _, loc, scale = normalise(np.full((9, 1), level), "mean")
    assert not values.any() and scale[0] == 1 and loc[0] == pytest.approx(level)
    wild = np.array([[level], [-level], [level * 0.5]])
    values, _, _, scale = normalise(wild, "mean")
    assert np.isfinite(values).all() and np.isfinite(scale).all()
    one = tokenizer(levels=True)
    assert torch.isfinite(one(one.collate([one.read(wild)])).x).all()


def test_a_variate_without_values_is_answered_too() -> None:
    one = tokenizer()
    parts = one.split(one.read(np.stack([np.arange(9.0), np.full(9, np.nan)], 1)))
    assert parts[1].meta["loc"] == [0] and parts[1].meta["scale"] == [1]
    assert torch.isfinite(one(one.collate(parts)).x).all()


def test_split_gives_each_variate_its_own() -> None:
    one, data = tokenizer(), frame(100)
    sample = one.read(data)
    parts = one.split(sample)
    assert [part.meta["names"] for part in parts] == [["0"], ["1"], ["2"]]
    assert [part.meta["variate"] for part in parts] == [0, 1, 2]
    for i, part in enumerate(parts):
        alone = one.read(SeriesFrame(data.values[:, i : i + 1], data.times, [data.names[i]], data.freq))
        assert all(torch.allclose(part.data[key], alone.data[key]) for key in alone.data)
        assert part.meta["loc"] == pytest.approx(alone.meta["loc"])
        assert part.meta["scale"] == pytest.approx(alone.meta["scale"])
        assert np.array_equal(part.meta["history"], data.values[-64:, i : i + 1], equal_nan=True)
        assert len(part.meta["times"]) == 64 and part.meta["freq"] == "h"
    together = tokenizer(channels=3)
    assert len(together.split(together.read(data))) == 1


LAYOUT = [("patch", False, 3, 1), ("patch", False, 16, 1), ("patch", False, 17, 2), ("patch", False, 64, 7),
          ("patch", False, 500, 7), ("patch", True, 3, 7), ("conv", False, 5, 5), ("conv", True, 5, 64),
          ("kernels", False, 5, 12), ("kernels", True, 40, 12)]  # fmt: skip


@pytest.mark.parametrize(("form", "fixed", "steps", "count"), LAYOUT)
def test_layout(form: str, fixed: bool, steps: int, count: int) -> None:
    one = tokenizer(form=form, fixed_context=fixed)
    tokens = one(one.collate(one.split(one.read(frame(steps, 1)))))
    assert tokens.x.shape == (1, count, 32) and tokens.grid == (count,)
    stride = {"patch": 8, "conv": 1, "kernels": steps / count}[form]
    assert torch.allclose(tokens.pos[0, :, 0], -stride * torch.arange(count - 1.0, -1, -1))
    assert bool(tokens.dense_mask()[0, -1])


def test_the_newest_patch_holds_the_newest_steps() -> None:
    one = tokenizer(calendar=False)
    batch = one.collate([one.read(frame(30, 1))])
    told = torch.cat([batch["values"], batch["observed"]], -1)[0, -16:]
    expected = one.stem(told.T.flatten()) + one.position(torch.zeros(1, 1, 1))[0, 0]  # type: ignore[misc]
    assert torch.allclose(one(batch).x[0, -1], expected, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_batched_equals_single(name: str) -> None:
    one = tokenizer(**CONFIGS[name]).eval()
    samples = [one.read(frame(steps, seed=i)) for i, steps in enumerate((1, 5, 16, 17, 40, 40, 200))]
    parts = [part for sample in samples for part in one.split(sample)]
    together = one(one.collate(parts))
    for i, part in enumerate(parts):
        alone = one(one.collate([part]))
        chosen, own = together.dense_mask()[i], alone.dense_mask()[0]
        assert int(chosen.sum()) == int(own.sum())
        assert torch.allclose(together.x[i][chosen], alone.x[0][own], atol=1e-5)
        assert torch.equal(together.pos[i][chosen], alone.pos[0][own])


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_reaches_every_parameter(name: str) -> None:
    one = tokenizer(**CONFIGS[name])
    tokens = one(one.collate([part for steps in (20, 70) for part in one.split(one.read(frame(steps)))]))
    tokens.x[tokens.dense_mask()].square().sum().backward()
    for key, parameter in one.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_masked_places_do_not_depend_on_missing_values() -> None:
    one = tokenizer()
    values = np.arange(40.0)
    values[10:30] = np.nan
    tokens = one(one.collate([one.read(values)]))
    assert tokens.mask is None  # missing steps inside are tokens that say "not observed"


@pytest.mark.parametrize("form", ["patch", "conv"])
def test_windows_equal_reading_the_beginning(form: str) -> None:
    one, data = tokenizer(form=form), frame(150)
    for end in (1, 10, 64, 100, 150):
        beginning = SeriesFrame(data.values[:end], data.times[:end], data.names, data.freq)  # type: ignore[index]
        window, own = one.window_sample(data, end), one.read(beginning)
        assert all(torch.equal(window.data[key], own.data[key]) for key in own.data)
        assert np.array_equal(window.meta["times"], own.meta["times"])
    for end in (0, 151):
        with pytest.raises(ValueError, match="between 1 and 150"):
            one.window_sample(data, end)


def test_read_all_labels_and_column_options(tmp_path) -> None:
    path = tmp_path / "a.ts"
    path.write_text("@univariate true\n@classLabel true a b\n@data\n1,2,3:a\n4,5:b\n")
    samples = list(tokenizer().read_all(path))
    assert [sample.meta["label"] for sample in samples] == ["a", "b"] and samples[1].source.endswith("a.ts#1")
    table = pd.DataFrame({"when": pd.date_range("2024", periods=9, freq="D"), "a": range(9), "b": range(9)})
    sample = tokenizer(columns=["b"], time="when").read(table)
    assert sample.meta["names"] == ["b"] and sample.meta["freq"] == "D"


def test_levels_tell_what_normalisation_hides() -> None:
    low, high = np.sin(np.arange(40.0)), np.sin(np.arange(40.0)) + 50
    for levels, same in ((False, True), (True, False)):
        one = tokenizer(levels=levels)
        tokens = one(one.collate([one.read(low), one.read(high)]))
        assert torch.allclose(tokens.x[0], tokens.x[1], atol=1e-4) is same


FUTURE = [
    ("h", "2024-01-31T23", ["2024-02-01T00:00:00", "2024-02-01T01:00:00"]),
    ("15min", "2024-01-01T12:45", ["2024-01-01T13:00:00", "2024-01-01T13:15:00"]),
    ("D", "2024-02-28", ["2024-02-29", "2024-03-01"]),
    ("B", "2024-02-02", ["2024-02-05", "2024-02-06"]),
    ("ME", "2024-01-31", ["2024-02-29", "2024-03-31"]),
    ("QS-JAN", "2024-10-01", ["2025-01-01", "2025-04-01"]),
]


@pytest.mark.parametrize(("freq", "last", "expected"), FUTURE)
def test_future_times(freq: str, last: str, expected: list[str]) -> None:
    assert future_times(np.array([last], "datetime64[ns]"), freq, 2) == expected


def test_future_steps_without_times() -> None:
    assert future_times(None, None, 3) == ["1", "2", "3"]


def test_calendar_tells_what_the_step_resolves() -> None:
    hours = calendar_features(pd.date_range("2024-01-01", periods=24, freq="h").to_numpy("datetime64[ns]"))
    assert hours.shape == (24, 8) and hours.dtype == np.float32
    assert np.allclose(hours[6, :2], [1, 0], atol=1e-6) and np.allclose(hours[0, 1::2], 1)
    for freq, count, silent in (("D", 400, 2), ("W", 60, 4), ("MS", 12, 6), ("YS", 9, 8)):
        told = calendar_features(pd.date_range("2024-01-01", periods=count, freq=freq).to_numpy("datetime64[ns]"))
        assert not told[:, :silent].any() and np.all(np.abs(told[:, silent:]).max(0) > 0.9)
    assert not calendar_features(None, 5).any() and calendar_features(None, 5).shape == (5, 8)


def test_many_variates() -> None:
    one = tokenizer()
    parts = one.split(one.read(np.random.default_rng(0).normal(size=(200, 500))))
    assert len(parts) == 500 and one(one.collate(parts)).x.shape == (500, 7, 32)

"""Variates as tokens: any number in any order, one answer from each, learnt in closed form and by descent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from polysense.core.errors import InputError
from polysense.pipeline import Pipeline
from polysense.tokenizers.time_series import SeriesConfig, TimeSeriesTokenizer
from polysense.training.backtest import backtest
from polysense.training.evaluate import evaluate

HORIZON = 8
NAMES = ["load", "heat", "wind", "price"]


def table(rows: int, names: list[str], seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    index = pd.date_range("2024-01-01", periods=rows, freq="h")
    return pd.DataFrame({name: rng.normal(len(name), 2, rows).cumsum() for name in names}, index)


@pytest.fixture(scope="module")
def tiny(build: Callable[..., Pipeline]) -> Pipeline:
    return build("forecasting", tokenizer={"form": "variates"}, head={"variates": True, "tokens": 1})


def test_one_token_for_each_variate(tiny: Pipeline) -> None:
    samples = [tiny.tokenizer.read(table(rows, NAMES[:c])) for rows, c in ((80, 4), (20, 1), (64, 2))]
    batch = tiny.tokenizer.collate(samples)
    tokens = tiny.tokenizer(batch)
    assert tokens.x.shape[:2] == (3, 4) and tokens.dense_mask().sum(1).tolist() == [4, 1, 2]
    assert (tokens.pos == 0).all()
    out = tiny(batch)
    assert out["mean"].shape == (3, 4, HORIZON) and out["quantiles"].shape == (3, 4, HORIZON, 5)


def test_the_order_of_variates_says_nothing(tiny: Pipeline) -> None:
    given = table(80, NAMES)
    answer = tiny(given)[0].to_frame()
    for order in ([2, 0, 3, 1], [3, 2, 1, 0]):
        other = tiny(given[[NAMES[i] for i in order]])[0].to_frame()
        np.testing.assert_allclose(other[list(answer)], answer, rtol=1e-4, atol=1e-4)


def test_variates_read_each_other(tiny: Pipeline) -> None:
    given = table(80, NAMES)
    other = given.assign(price=given["price"].to_numpy()[::-1])
    one, two = tiny(given)[0], tiny(other)[0]
    assert np.abs(one.mean[:, 0] - two.mean[:, 0]).max() > 1e-3
    # Units do not: each is normalised by itself.
    scaled = tiny(given.assign(price=given["price"] * 1000 + 5))[0]
    np.testing.assert_allclose(scaled.mean[:, :3], one.mean[:, :3], rtol=1e-3, atol=1e-3)


def test_batched_equals_single_with_different_numbers_of_variates(tiny: Pipeline) -> None:
    sources = [table(80, NAMES), table(30, NAMES[:1], 1), table(100, NAMES[1:3], 2), table(5, NAMES[:3], 3)]
    for batch_size in (2, 16):
        for one, source in zip(tiny(sources, batch_size), sources, strict=True):
            alone = tiny(source)[0]
            assert one.names == list(source) and one.mean.shape == (HORIZON, source.shape[1])
            np.testing.assert_allclose(one.mean, alone.mean, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(one.quantiles[0.9], alone.quantiles[0.9], rtol=1e-3, atol=1e-4)
    assert tiny(sources, horizon=20)[2].mean.shape == (20, 2)


def test_padding_and_unknown_futures_teach_nothing(tiny: Pipeline) -> None:
    head = tiny.head
    samples = [tiny.tokenizer.read(table(80, NAMES[:c], c)) for c in (3, 1)]
    futures = [np.random.default_rng(i).normal(3, 1, (HORIZON, c)) for i, c in enumerate((3, 1))]
    futures[0][2:, 1] = np.nan
    batch = tiny.tokenizer.collate(samples)
    target = head.targets(futures, batch["meta"])
    assert target["steps"].shape == (2, 3, HORIZON) and target["weight"][1].tolist()[1:] == [0, 0]
    out = tiny(batch)
    whole = head.loss(out, target)["loss"]
    moved = {name: x.clone() for name, x in out.items()}
    moved["mean"][1, 1:] += 9.0
    moved["mean"][0, 1, 2:] -= 9.0
    moved["quantiles"][1, 1:] += 9.0
    torch.testing.assert_close(head.loss(moved, target)["mse"], head.loss(out, target)["mse"])
    whole.backward()
    assert tiny.tokenizer.stem.map.weight.grad.abs().sum() > 0 and head.linear.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in tiny.encoder.parameters())
    tiny.zero_grad()


def followers(path: Path) -> Path:
    """Two noisy waves, and one that follows the first, unit and level of its own."""
    rng = np.random.default_rng(0)
    k = np.arange(700)
    first = np.sin(k / 5) + rng.normal(0, 0.1, 700)
    values = {
        "first": first,
        "second": 50 + 9 * np.cos(k / 9) + rng.normal(0, 0.5, 700),
        "third": 10 * np.roll(first, 3),
    }
    pd.DataFrame(values, pd.date_range("2024-01-01", periods=700, freq="h")).to_csv(path, index_label="when")
    return path


@pytest.mark.parametrize("epochs", [0, 1])
def test_fit(quick: Callable[..., Any], tmp_path: Path, epochs: int) -> None:
    path = followers(tmp_path / "x.csv")
    result, pipeline = quick("forecasting", path, horizon=6, context=24, epochs=epochs, known="calendar",
                             tokenizer_options={"form": "variates"})  # fmt: skip
    assert pipeline.tokenizer.config.form == "variates" and pipeline.head.config.variates
    found = backtest(pipeline, path, horizon=6, origins=5)
    assert result.metrics["mse"] < 0.2 and found.metrics["mase"] < 0.5 * found.baselines["repeat last"]["mase"]
    assert 0.6 < result.metrics["coverage"] < 0.95
    assert evaluate(result.path, path)["mse"] < 0.25  # read again from its folder
    # Trained on three, it answers any number, also of other names.
    other = pd.read_csv(path, index_col=0, parse_dates=True).rename(columns={"first": "one"})[["second", "one"]]
    assert pipeline(other)[0].names == ["second", "one"]


def test_the_solved_map_answers_each_from_its_own_token(tmp_path: Path, build: Callable[..., Pipeline]) -> None:
    """The closed form on rows of variates is the ridge on all variates of all windows, however they are batched."""
    from polysense.tasks import TASKS
    from polysense.training.probe_forecast import probe_forecast
    from polysense.training.sources import open_sources

    table(260, NAMES[:3]).to_csv(tmp_path / "a.csv")
    (tmp_path / "many").mkdir()
    table(260, NAMES[:3]).to_csv(tmp_path / "many" / "a.csv")
    table(260, NAMES[:1], 1).to_csv(tmp_path / "many" / "b.csv")
    sources = open_sources(TASKS["forecasting"], tmp_path / "many", horizon=HORIZON, context=16)
    solved = []
    for batch_size in (1, 7):
        pipeline = build("forecasting", tokenizer={"form": "variates", "context": 16},
                         head={**sources.head_options(), "own": 0, "variates": True, "tokens": 1})  # fmt: skip
        parts = [sources.examples(pipeline.tokenizer, part) for part in ("train", "val")]
        probe_forecast(pipeline, *parts, batch_size)
        solved.append(pipeline.head.linear.weight.detach().clone())
    torch.testing.assert_close(solved[0], solved[1], rtol=1e-2, atol=1e-3)
    assert {"head.linear.weight"} <= pipeline.settled and solved[0].abs().max() > 0


def test_options_that_do_not_go_together(quick: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="any number of variates"):
        TimeSeriesTokenizer(SeriesConfig(form="variates", channels=2))
    path = followers(tmp_path / "x.csv")
    with pytest.raises(InputError, match="neither local nor own"):
        quick("forecasting", path, horizon=6, context=24, tokenizer_options={"form": "variates"},
              head_options={"local": True})  # fmt: skip

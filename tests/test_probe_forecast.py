"""The first phase of a forecasting fit: two ways to one ridge, each variate's own correction, the mixture."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from polysense.tasks import TASKS
from polysense.training import probe_forecast as probing
from polysense.training.evaluate import measure
from polysense.training.probe_forecast import probe_forecast
from polysense.training.ridge import from_moments, from_rows, refit
from polysense.training.sources import open_sources


def test_rows_and_moments_agree() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(30, 50, generator=rng), torch.ones(30, 1)], 1)  # more inputs than rows
    y = torch.randn(30, 4, generator=rng)
    weight = torch.rand(30, 1, generator=rng).expand(-1, 4)
    scaled = x.double() * weight[:, :1].double()
    by_moments = list(from_moments(scaled.T @ x.double(), scaled.T @ y.double()))
    by_rows = list(from_rows(x.split(8), y.split(8), weight.split(8)))
    assert len(by_rows) == len(by_moments)
    for one, other in zip(by_moments, by_rows, strict=True):
        torch.testing.assert_close(other.double(), one, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(by_rows[0], by_rows[-1], atol=1e-3)
    for count in (30, 10):  # more inputs than rows, and fewer
        few = torch.cat([x[:, :count], torch.ones(30, 1)], 1)
        expected = next(from_moments(*((few * weight[:, :1]).double().T @ m.double() for m in (few, y)), [0.5]))
        torch.testing.assert_close(refit(x[:, :count], y, weight[:, 0], 0.5).double(), expected, atol=1e-4, rtol=1e-3)


def pipeline_for(sources, **options):
    from polysense.pipeline import Pipeline
    from tests.conftest import tiny_encoder

    front = {"context": sources.context, "fixed_context": True, "patch": 8, "stride": 8, "center": "last"}
    head = {**sources.head_options(), "tokens": sources.context // 8, "reduce": 4, **options}
    return Pipeline.build("forecasting", encoder=tiny_encoder(), tokenizer=front, head=head)


def opposite_file(path):
    """One variate that goes on as it went, and one that turns each step, both about levels of their own."""
    rng = np.random.default_rng(0)
    values = np.zeros((400, 2))
    for i in range(1, 400):
        values[i] = values[i - 1] * (0.8, -0.8) + rng.normal(size=2)
    pd.DataFrame({"slow": values[:, 0] + 50, "turning": values[:, 1] - 20}).to_csv(path, index=False)
    return path


def test_own_corrections_of_variates_that_differ(tmp_path):
    sources = open_sources(TASKS["forecasting"], opposite_file(tmp_path / "x.csv"), horizon=4, context=16)
    assert sources.head_options()["own"] > 0
    pipeline = pipeline_for(sources, own=16)
    train, val, test = (sources.examples(pipeline.tokenizer, part) for part in ("train", "val", "test"))
    probe_forecast(pipeline, train, val, 64)
    assert {"head.own.weight", "head.linear.weight"} <= pipeline.settled
    with_own = measure(pipeline, test)["mse"]
    pipeline.head.own.weight.data.zero_()
    assert with_own < 0.95 * measure(pipeline, test)["mse"]


def test_no_correction_of_noise(tmp_path):
    noise = np.random.default_rng(0).normal(size=(400, 2)).cumsum(0)
    pd.DataFrame(noise, columns=["a", "b"]).to_csv(tmp_path / "x.csv", index=False)
    sources = open_sources(TASKS["forecasting"], tmp_path / "x.csv", horizon=4, context=16)
    pipeline = pipeline_for(sources, own=4)
    parts = [sources.examples(pipeline.tokenizer, part) for part in ("train", "val")]
    probe_forecast(pipeline, *parts, 64)
    with_own = measure(pipeline, parts[1])["mse"]
    pipeline.head.own.weight.data.zero_()
    assert with_own < 1.05 * measure(pipeline, parts[1])["mse"]


def test_mixture_learns_which_methods_suit(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):  # a season under so much noise that the last one misleads
        season = np.resize(rng.normal(size=12) * 3, 240)
        pd.DataFrame({"v": season + rng.normal(size=240) * 2}).to_csv(tmp_path / f"{i}.csv", index=False)
    sources = replace(
        open_sources(TASKS["forecasting"], tmp_path, horizon=12, context=96), head={"local": True}, most=40
    )
    pipeline = pipeline_for(sources)
    parts = [sources.examples(pipeline.tokenizer, part) for part in ("train", "val", "test")]
    before = measure(pipeline, parts[2])
    probe_forecast(pipeline, *parts[:2], 64)
    after = measure(pipeline, parts[2])
    assert after["pinball"] < before["pinball"] and after["mae"] < before["mae"]
    assert pipeline.head.mixture.say.weight.abs().max() > 0  # tokens take part
    assert 0.6 < after["coverage"] < 0.95


def test_wide_inputs_are_solved_for_on_their_axes(tmp_path, monkeypatch):
    """With as many axes as the inputs have directions the regression is the same."""
    sources = open_sources(TASKS["forecasting"], opposite_file(tmp_path / "x.csv"), horizon=4, context=16)
    solved = []
    for most in (probing.MOST_INPUTS, 8):
        monkeypatch.setattr(probing, "MOST_INPUTS", most)
        pipeline = pipeline_for(sources, own=0)
        train, val, test = (sources.examples(pipeline.tokenizer, part) for part in ("train", "val", "test"))
        probe_forecast(pipeline, train, val, 64)
        solved.append((measure(pipeline, test)["mse"], pipeline.head.linear.weight.detach().norm()))
    assert solved[0][0] == pytest.approx(solved[1][0], rel=0.02)
    assert solved[1][1].item() > 0

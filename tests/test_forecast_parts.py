"""Local forecasts, their mixture, each variate's own correction, and what needs no learning to be right."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from polysense.heads.forecast import ForecastConfig, ForecastHead
from polysense.heads.forecast_parts import OwnCorrection, told
from polysense.heads.local_forecasts import (
    GROUPS,
    METHODS,
    find_seasons,
    forecast_all,
    group_ends,
    local_forecasts,
)
from polysense.tokenizers.time_series import SeriesConfig, TimeSeriesTokenizer

HORIZON = 24


def by_name(history: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(METHODS, forecast_all(history, HORIZON), strict=True))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 20, 300])
@pytest.mark.parametrize("level", [0.0, 5.0, -1e9, 1e-12])
def test_a_constant_is_continued_by_every_method(length: int, level: float) -> None:
    forecasts, wrong = local_forecasts(np.full(length, level), HORIZON)
    np.testing.assert_allclose(forecasts, level, rtol=1e-9)
    assert np.nan_to_num(wrong).max() <= 1e-9 * abs(level)


@pytest.mark.parametrize("length", [2, 3, 9, 40, 200])
def test_a_line_is_continued_by_drift(length: int) -> None:
    line = 3.0 - 0.5 * np.arange(length + HORIZON)
    np.testing.assert_allclose(by_name(line[:length])["drift"], line[length:])


@pytest.mark.parametrize("period", [4, 7, 12, 24])
def test_seasons_are_found_and_continued(period: int) -> None:
    wave = np.random.default_rng(period).normal(size=period)
    series = np.resize(wave, 12 * period) + 0.01 * np.random.default_rng(0).normal(size=12 * period)
    assert find_seasons(series)[0] == period
    answers = by_name(series)
    for method in ("season", "profile", "long season", "usual season", "theta", "autoregression about the season"):
        assert np.abs(answers[method] - np.resize(wave, HORIZON)).max() < 0.2, method


def test_no_season_in_noise_free_lines_and_short_series() -> None:
    for series in (np.arange(50.0), np.ones(50), np.array([1.0, 2.0]), np.array([3.0])):
        assert find_seasons(series) == (1, 1)


def test_autoregression_follows_its_own_process() -> None:
    rng, series = np.random.default_rng(1), np.zeros(500)
    for i in range(2, 500):
        series[i] = 1.6 * series[i - 1] - 0.9 * series[i - 2] + 0.1 * rng.normal()
    future = [series[-2], series[-1]]
    for _ in range(3):
        future.append(1.6 * future[-1] - 0.9 * future[-2])
    assert np.abs(series[-1] - future[2:]).max() > 2 * series.std()  # which repeating the last value does not
    assert np.abs(by_name(series)["autoregression"][:3] - future[2:]).max() < 0.7 * series.std()


def test_gaps_and_emptiness() -> None:
    series = np.sin(np.arange(120) * 2 * np.pi / 12)
    holes = series.copy()
    holes[[0, 1, 30, 31, 77, 119]] = np.nan
    forecasts, wrong = local_forecasts(holes, HORIZON)
    assert np.isfinite(forecasts).all() and np.isfinite(wrong[METHODS.index("season")]).all()
    nothing, wrong = local_forecasts(np.full(30, np.nan), HORIZON)
    assert np.isnan(nothing).all() and np.isnan(wrong).all() and np.isfinite(told(wrong)).all()
    single, _ = local_forecasts(np.array([np.nan, 4.0, np.nan]), HORIZON)
    assert (single == 4.0).all()


def test_methods_move_with_the_units() -> None:
    series = np.random.default_rng(0).normal(size=200).cumsum()
    plain, wrong = local_forecasts(series, HORIZON)
    moved, scaled = local_forecasts(1000 + 50 * series, HORIZON)
    np.testing.assert_allclose(moved, 1000 + 50 * plain, rtol=1e-6)
    np.testing.assert_allclose(scaled, 50 * wrong, rtol=1e-5)


def test_errors_in_trials_are_those_of_the_method() -> None:
    _, wrong = local_forecasts(np.arange(200.0), HORIZON)
    assert wrong.shape == (len(METHODS), len(GROUPS)) and wrong[METHODS.index("drift")].max() < 1e-9
    ends = [0, *group_ends(HORIZON)]
    expected = [np.arange(a + 1, b + 1).mean() for a, b in pairwise(ends)]
    np.testing.assert_allclose(wrong[METHODS.index("last")], expected)


def answers(head: ForecastHead, frames: list[np.ndarray]) -> list:
    from polysense.core.types import Features, Tokens

    front = TimeSeriesTokenizer(SeriesConfig(width=48, context=64, stride=16, fixed_context=True, center="last"))
    results = []
    for values in frames:
        parts = front.split(front.read(values))
        batch = front.collate(parts)
        with torch.no_grad():
            tokens = front(batch)
            out = head(Features(tokens, {0: Tokens(tokens.x, tokens.mask, tokens.pos)}))
        owner = torch.zeros(len(parts), dtype=torch.int64)
        results += head.decode(head.merge(out, owner, batch["meta"]), head.merge_meta(batch["meta"], owner))
    return results


def wild_head(**options) -> ForecastHead:
    """A head with weights that would answer with noise."""
    torch.manual_seed(0)
    head = ForecastHead(ForecastConfig(horizon=HORIZON, tokens=4, reduce=4, **options), 48).eval()
    for name, parameter in head.named_parameters():
        if not name.endswith("trust"):
            torch.nn.init.normal_(parameter, 0, 0.3)
    return head


@pytest.mark.parametrize("options", [{}, {"local": True}], ids=["linear", "local"])
def test_what_stands_still_is_held_exactly(options: dict) -> None:
    head = wild_head(**options)
    for history in (np.full(100, 0.1), np.array([7.3]), np.array([np.nan, 2.0, np.nan]), np.zeros(5)):
        level = history[np.isfinite(history)][-1]
        answer = answers(head, [history])[0]
        assert (answer.mean == level).all() and all((q == level).all() for q in answer.quantiles.values())


@pytest.mark.parametrize("options", [{}, {"local": True}], ids=["linear", "local"])
def test_of_what_is_unknown_nothing_is_said(options: dict) -> None:
    known = np.sin(np.arange(80.0))
    answer = answers(wild_head(**options), [np.stack([known, np.full(80, np.nan)], 1)])[0]
    alone = answers(wild_head(**options), [known])[0]
    assert np.isnan(answer.mean[:, 1]).all() and np.isfinite(answer.mean[:, 0]).all()
    np.testing.assert_allclose(answer.mean[:, 0], alone.mean[:, 0], rtol=1e-4, atol=1e-5)


def test_a_line_goes_on_without_learning() -> None:
    head = ForecastHead(ForecastConfig(horizon=HORIZON, tokens=4, local=True), 48).eval()
    line = 100 + 2.5 * np.arange(60 + HORIZON)
    answer = answers(head, [line[:60]])[0]
    assert np.abs(answer.mean[:, 0] - line[60:]).max() < 1.0
    levels = np.stack([answer.quantiles[level] for level in sorted(answer.quantiles)])
    assert (np.diff(levels, axis=0) >= 0).all()


def test_tokens_move_the_mixture() -> None:
    history = np.random.default_rng(0).normal(size=64).cumsum()
    plain = ForecastHead(ForecastConfig(horizon=HORIZON, tokens=4, local=True), 48).eval()
    one, other = answers(plain, [history])[0], answers(wild_head(local=True), [history])[0]
    assert np.abs(one.mean - other.mean).max() > 0.05


def test_own_correction_is_of_known_variates_alone() -> None:
    own = OwnCorrection(6, HORIZON, 2, 3)
    torch.nn.init.normal_(own.weight)
    x, place = torch.randn(3, 6), torch.randn(3, 2)
    added = own.combine(own(x), {"place": place, "variate": torch.tensor([1, -1, 0])})
    assert (added[1] == 0).all() and added[0].abs().max() > 0
    expected = torch.cat([own.basis(x), place], 1)[0] @ own.weight[1]
    torch.testing.assert_close(added[0], expected)


def test_calibrated_bands_cover_what_they_say() -> None:
    """Bands that are too narrow on one side and too wide on the other, of windows of any size."""
    head, random = ForecastHead(ForecastConfig(horizon=HORIZON, tokens=4), 48), torch.Generator().manual_seed(0)
    levels = torch.tensor(head.config.quantiles)
    wide = torch.where(levels < 0.5, 0.5, 3.0) * torch.distributions.Normal(0.0, 1.0).icdf(levels)

    def futures(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean = torch.randn(count, HORIZON, generator=random)
        size = torch.rand(count, 1, generator=random) + 0.5
        steps = mean + size * torch.randn(count, HORIZON, generator=random)
        return steps, mean, mean.unsqueeze(-1) + size.unsqueeze(-1) * wide

    steps, mean, quantiles = futures(2000)
    steps[::7, 3:] = float("nan")
    head.calibrate(steps, mean, quantiles)
    torch.testing.assert_close(head.spread, torch.tensor([2.0, 2.0, 1.0, 1 / 3, 1 / 3]), atol=0.15, rtol=0.05)
    steps, mean, quantiles = futures(2000)
    _, answered = head.answer({"mean": mean, "quantiles": quantiles}, {})
    assert (answered.diff(dim=-1) >= 0).all()
    covered = (steps.unsqueeze(-1) <= answered).float().mean((0, 1))
    torch.testing.assert_close(covered, levels, atol=0.015, rtol=0)
    before = head.spread.clone()
    head.calibrate(steps, mean, answered)  # what is true already stays
    torch.testing.assert_close(head.spread, before, atol=0.1, rtol=0.1)

"""Forecasts of a series from its own past alone, in closed form: what a learned forecaster weighs and corrects.

Simple methods fitted to one series are hard to beat, and which of them suits a series is what can be learnt from many
(Montero-Manso et al. 2020, FFORMA). Beside each forecast stands how wrong it was at earlier ends of the same history.

Shape legend: t steps of history, h future steps, k methods, g groups of steps, o earlier ends, m steps of a season.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Float
from scipy.signal import lfilter

METHODS = ("last", "drift", "mean", "season", "profile", "long season", "long profile", "usual season",
           "usual long season", "theta", "autoregression", "autoregression of changes",
           "autoregression about the season", "autoregression about the long season")  # fmt: skip
SEASONS = 6  # last seasons that a profile averages
LAGS = 30  # of the autoregressions, beside those of the seasons
PENALTY = (0.005, 0.03)  # of the autoregressions of values and of changes, relative to the variance of all their rows
TRIALS = (0.06, 0.125, 0.25, 0.5, 1.0, 1.5)  # earlier ends of the history at which methods are tried, in horizons
GROUPS = (1 / 16, 1 / 4, 1 / 2, 1.0)  # ends of the groups of steps whose errors are averaged, in horizons
DAMPING = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)  # smoothing parameters that theta chooses from


def local_forecasts(
    history: Float[np.ndarray, " t"], horizon: int
) -> tuple[Float[np.ndarray, "k h"], Float[np.ndarray, "k g"]]:
    """Every method's forecast, and its mean absolute error in each group of steps when it is tried on the past.

    Args:
        history: In any units, NaN where missing.
        horizon: Steps to forecast.

    Returns:
        Forecasts and errors in the units of the history. NaN where nothing is known: all forecasts of an empty history,
        the errors of steps that could not be tried.
    """
    seen = np.isfinite(history)
    if not seen.any():
        return np.full((len(METHODS), horizon), np.nan), np.full((len(METHODS), len(GROUPS)), np.nan)
    first = int(np.argmax(seen))
    values = np.interp(np.arange(first, len(history)), np.flatnonzero(seen), history[seen])
    seen = seen[first:]
    wrong = np.full((len(TRIALS), len(METHODS), horizon), np.nan)
    for o, share in enumerate(TRIALS):
        past = max(round(share * horizon), 1)  # steps since that end
        end, told = len(values) - past, min(past, horizon)
        if end >= max(3, len(values) // 3):
            error = np.abs(forecast_all(values[:end], told) - values[end : end + told])
            wrong[o, :, :told] = np.where(seen[end : end + told], error, np.nan)
    known = np.isfinite(wrong)
    tried = known.any(0)
    step = np.where(known, wrong, 0).sum(0) / np.maximum(known.sum(0), 1)  # the mean over the ends at each step
    parts = [slice(*ends) for ends in pairwise([0, *group_ends(horizon)])]
    counts = np.stack([tried[:, part].sum(1) for part in parts], 1)
    sums = np.stack([np.where(tried, step, 0)[:, part].sum(1) for part in parts], 1)
    return forecast_all(values, horizon), np.where(counts, sums / np.maximum(counts, 1), np.nan)


def group_ends(horizon: int) -> list[int]:
    """Where each group of steps ends; some are empty where the horizon is short."""
    return [max(round(share * horizon), 1) for share in GROUPS]


def forecast_all(y: Float[np.ndarray, " t"], horizon: int) -> Float[np.ndarray, "k h"]:
    """The forecast of every method in METHODS from a history without gaps."""
    steps = np.arange(1, horizon + 1)
    short, long = find_seasons(y)
    slope = (y[-1] - y[0]) / max(len(y) - 1, 1)
    out = np.stack([
        np.full(horizon, y[-1]),
        y[-1] + slope * steps,
        np.full(horizon, y.mean()),
        repeat_season(y, short, horizon),
        repeat_profile(y, short, horizon),
        repeat_season(y, long, horizon),
        repeat_profile(y, long, horizon),
        usual_season(y, short, horizon),
        usual_season(y, long, horizon),
        theta(y, long, horizon),
        autoregression(y, short, long, horizon, PENALTY[0]),
        y[-1] + autoregression(np.diff(y), short, long, horizon, PENALTY[1]).cumsum(),
        about_the_season(y, short, horizon),
        about_the_season(y, long, horizon),
    ])  # fmt: skip
    # An autoregression may explode; nothing goes further than the past is wide, or than a line through it would.
    width, low, high = np.ptp(y) * max(1.0, horizon / max(len(y) - 1, 1)), y.min(), y.max()
    return np.clip(out, low - width, high + width)


def find_seasons(y: Float[np.ndarray, " t"]) -> tuple[int, int]:
    """The shortest and the strongest season of a series, in steps; 1 where there is none.

    Peaks of the autocorrelation of the series without its line.
    """
    t = len(y)
    most = t // 2
    if most < 3:
        return 1, 1
    places = np.arange(t) - (t - 1) / 2
    x = y - y.mean()
    x = x - places * (x @ places) / (places @ places)
    size = 1 << (2 * t - 1).bit_length()
    power = np.abs(np.fft.rfft(x, size)) ** 2
    product = np.fft.irfft(power, size)[: most + 2]
    energy = np.concatenate([[0.0], np.cumsum(x * x)])
    lags = np.arange(most + 2)
    both = np.sqrt(energy[t - lags] * (energy[t] - energy[np.minimum(lags, t)]))
    r = np.where(both > 1e-12 * max(energy[-1], 1e-300), product / np.maximum(both, 1e-300), 0.0)
    peaks = 2 + np.flatnonzero((r[2:-1] > r[1:-2]) & (r[2:-1] >= r[3:]))
    peaks = peaks[r[peaks] > 0.15]
    if not len(peaks):
        return 1, 1
    strongest = peaks[np.argmax(r[peaks] - 0.0002 * peaks)]
    near = peaks[r[peaks] > 0.8 * r[strongest]]
    return int(near[0]), int(strongest)


def repeat_season(y: Float[np.ndarray, " t"], m: int, horizon: int) -> Float[np.ndarray, " h"]:
    """The last season again and again."""
    return np.resize(y[-m:], horizon)


def repeat_profile(y: Float[np.ndarray, " t"], m: int, horizon: int) -> Float[np.ndarray, " h"]:
    """The mean course of the last seasons, at the level of the last one."""
    count = min(len(y) // m, SEASONS)
    if m == 1 or count < 2:
        return repeat_season(y, m, horizon)
    seasons = y[-count * m :].reshape(count, m)
    level = seasons.mean(1, keepdims=True)
    return np.resize((seasons - level).mean(0) + level[-1], horizon)


def usual_season(y: Float[np.ndarray, " t"], m: int, horizon: int) -> Float[np.ndarray, " h"]:
    """The mean of all seasons at their own levels: for what returns to its usual course."""
    phases = (np.arange(len(y)) - len(y)) % m  # 0 is the first step of the future
    return np.resize(np.bincount(phases, y, m) / np.bincount(phases, minlength=m), horizon)


def about_the_season(y: Float[np.ndarray, " t"], m: int, horizon: int) -> Float[np.ndarray, " h"]:
    """The usual season, and an autoregression of what differs from it."""
    course = usual_season(y, m, m)
    past = course[(np.arange(len(y)) - len(y)) % m]
    return np.resize(course, horizon) + autoregression(y - past, 1, 1, horizon, PENALTY[0])


def theta(y: Float[np.ndarray, " t"], m: int, horizon: int) -> Float[np.ndarray, " h"]:
    """Exponential smoothing with half the slope of the line, of the series without its season.

    Theta (Assimakopoulos and Nikolopoulos 2000) in the form of Hyndman and Billah (2003).
    """
    t = len(y)
    course = np.zeros(m)
    if m > 1 and t >= 2 * m:
        smooth = np.convolve(y, np.full(m, 1 / m), mode="valid")  # (t - m + 1): means of whole seasons
        offset = y[m // 2 : m // 2 + len(smooth)] - smooth
        places = (np.arange(len(smooth)) + m // 2 - t) % m  # 0 is the first step of the future
        course = np.bincount(places, offset, m) / np.maximum(np.bincount(places, minlength=m), 1)
        course -= course.mean()
    plain = y - course[(np.arange(t) - t) % m]
    line = np.arange(t) - (t - 1) / 2
    slope = float(plain @ line) / max(float(line @ line), 1e-12)
    best, level = np.inf, plain[-1]
    for alpha in DAMPING:
        state, _ = lfilter([alpha], [1.0, alpha - 1.0], plain, zi=[(1 - alpha) * plain[0]])
        wrong = float(np.square(plain[1:] - state[:-1]).sum())
        if wrong < best:
            best, level = wrong, float(state[-1])
    return level + 0.5 * slope * np.arange(1, horizon + 1) + np.resize(course, horizon)


def autoregression(
    y: Float[np.ndarray, " t"], short: int, long: int, horizon: int, penalty: float
) -> Float[np.ndarray, " h"]:
    """A ridge regression of each step on the last ones and on those about a season before, applied again and again."""
    t = len(y)
    if t < 8 or np.ptp(y) <= 1e-12 * np.abs(y).max():
        return np.full(horizon, y.mean() if t else 0.0)
    mean, deviation = y.mean(), y.std()
    z = (y - mean) / deviation
    near = [*range(1, min(LAGS, t // 4) + 1)]
    far = [k * m + j for m in {short, long} if m > 1 for k in (1, 2) for j in (-1, 0, 1)]
    lags = np.array(sorted({*near, *(lag for lag in far if 0 < lag <= t // 2)}))
    most = int(lags[-1])
    rows = np.lib.stride_tricks.sliding_window_view(z, most + 1)  # (t - most, most + 1), the newest step last
    x, target = rows[:, most - lags], rows[:, -1]
    gram = x.T @ x
    gram[np.diag_indices(len(lags))] += penalty * len(target)
    weight = np.linalg.solve(gram, x.T @ target)
    feedback = np.zeros(most + 1)
    feedback[0], feedback[lags] = 1.0, -weight
    state = -np.correlate(feedback[1:], z[: -most - 1 : -1], "full")[most - 1 :]  # of the filter, after the past
    with np.errstate(over="ignore", invalid="ignore"):  # an unstable one may reach infinity
        path, _ = lfilter([1.0], feedback, np.zeros(horizon), zi=state)
    return np.nan_to_num(path * deviation + mean, nan=mean)

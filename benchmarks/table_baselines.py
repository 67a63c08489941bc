"""Baselines that are measured beside polysense in the same run, on the same rows, windows or series."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from sets import Run, read_m4

from polysense.core.predictions import Series
from polysense.tasks import TASKS
from polysense.training.examples import WindowExamples
from polysense.training.metrics import score
from polysense.training.sources import open_sources

Options = Mapping[str, Any]


def gradient_boosting(run: Run, options: Options) -> dict[str, float]:
    """scikit-learn's histogram gradient boosting with default settings: accuracy, or R² of numbers."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    from polysense.data.table import read_table

    train, test = read_table(run.train, header=False), read_table(run.test, header=False)
    target = train.columns[-1]
    for name in train.columns[:-1]:
        if train[name].dtype.kind not in "biuf":
            known = sorted(train[name].dropna().unique())
            for frame in (train, test):
                frame[name] = frame[name].astype("category").cat.set_categories(known)
    regression = run.task.endswith("regression")
    model = (HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier)(
        categorical_features="from_dtype", random_state=0
    )
    model.fit(train.drop(columns=target), train[target])
    return {"gradient boosting": float(model.score(test.drop(columns=target), test[target]))}


def repeat_last(run: Run, options: Options) -> dict[str, float]:
    """MSE, of standardised values, of a forecast that repeats each window's last step."""
    given = {key: options[key] for key in ("horizon", "context", "borders", "time") if key in options}
    sources = open_sources(TASKS["forecasting"], run.test, **given)
    windows = sources.examples(cast(Any, None), "test")  # no sequence is made of them, so no tokenizer is needed
    assert isinstance(windows, WindowExamples)
    std = np.array([value for _, value in sources.head_options()["variate_scale"]])
    errors = []
    for f, end in map(windows.place, range(len(windows))):
        values = windows.frames[f].values
        errors.append(np.mean(((values[end : end + windows.horizon] - values[end - 1]) / std) ** 2))
    return {"repeat-last": float(np.mean(errors))}


def naive(season: int, name: str) -> Callable[[Run, Options], dict[str, float]]:
    """sMAPE of a forecast that repeats the last season of each M4 series."""

    def measure(run: Run, options: Options) -> dict[str, float]:
        series = read_m4(run.test)
        answers = [Series(np.resize(history[-season:], len(future))[:, None], {}, (), ["value"], source=i)
                   for i, history, future in series]  # fmt: skip
        found = score("forecasting", answers, [future[:, None] for _, _, future in series])
        return {name: found["smape"]}

    return measure

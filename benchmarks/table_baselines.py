"""Baselines that are measured beside polysense in the same run, on the same rows, windows or series."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from sets import Run, read_m4

from polysense.core.predictions import Series
from polysense.tasks import TASKS
from polysense.training.examples import WindowExamples
from polysense.training.metrics import score
from polysense.training.sources import open_sources

if TYPE_CHECKING:
    import pandas as pd

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Frames:
    """A table's train and test rows as scikit-learn takes them: words are pandas categories, the target is apart."""

    train: pd.DataFrame
    test: pd.DataFrame
    known: pd.Series  # targets of the train rows
    truth: pd.Series  # and of the test rows
    regression: bool

    @classmethod
    def of(cls, run: Run) -> Frames:
        """The last column is the target, as the rows of the table have it."""
        from polysense.data.table import read_table

        train, test = read_table(run.train, header=False), read_table(run.test, header=False)
        target = train.columns[-1]
        for name in train.columns[:-1]:
            if train[name].dtype.kind not in "biuf":
                known = sorted(train[name].dropna().unique())
                for frame in (train, test):
                    frame[name] = frame[name].astype("category").cat.set_categories(known)
        parts = (train.drop(columns=target), test.drop(columns=target), train[target], test[target])
        return cls(*parts, run.task.endswith("regression"))

    def score(self, model: Any) -> float:
        """Accuracy, or R² of numbers, on the test rows."""
        return float(model.fit(self.train, self.known).score(self.test, self.truth))

    def numeric(self, model: Any) -> Any:
        """The model behind what makes numbers of its inputs: indicators of words, standardised and complete numbers."""
        from sklearn.compose import make_column_selector, make_column_transformer
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        words = make_column_selector(dtype_include="category")
        numbers = make_column_selector(dtype_exclude="category")
        ready = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), words),
                                        (make_pipeline(SimpleImputer(), StandardScaler()), numbers))  # fmt: skip
        return make_pipeline(ready, model)


def gradient_boosting(run: Run, options: Options) -> dict[str, float]:
    """scikit-learn's histogram gradient boosting with default settings: accuracy, or R² of numbers."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    frames = Frames.of(run)
    kind = HistGradientBoostingRegressor if frames.regression else HistGradientBoostingClassifier
    return {"gradient boosting": frames.score(kind(categorical_features="from_dtype", random_state=0))}


def random_forest(run: Run, options: Options) -> dict[str, float]:
    """scikit-learn's random forest with default settings: accuracy, or R² of numbers."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    frames = Frames.of(run)
    kind = RandomForestRegressor if frames.regression else RandomForestClassifier
    return {"random forest": frames.score(frames.numeric(kind(random_state=0)))}


def linear_model(run: Run, options: Options) -> dict[str, float]:
    """Ridge regression (R²), or logistic regression (accuracy), with default settings."""
    from sklearn.linear_model import LogisticRegression, Ridge

    frames = Frames.of(run)
    return {"linear": frames.score(frames.numeric(Ridge() if frames.regression else LogisticRegression(max_iter=1000)))}


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

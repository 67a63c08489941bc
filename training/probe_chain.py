"""The first phase of a fit for a chain of numbers: one ridge regression after the other, in closed form.

What a target sees of those before it are predictions by folds that did not learn from the row: as uncertain as they
will be for new rows (scikit-learn's `RegressorChain` with `cv`).

Shape legend: r rows, f pooled width, v values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from polysense.core.errors import InputError

FOLDS = 5
PENALTY = 10.0  # of the ridge regression by which an order is found; that of the chain itself is chosen by validation
LEAST_SURPRISE = 1e-3  # deviations: what is predicted more exactly than this surprises by no more


def solve_chain(
    x: Float[np.ndarray, "r f"], y: Float[np.ndarray, "r v"], order: Sequence[int], penalty: float
) -> tuple[Float[np.ndarray, "v f"], Float[np.ndarray, " v"], Float[np.ndarray, "v v"], Float[np.ndarray, "v v"]]:
    """Weight and bias of the values' own parts, and `Chain`'s link and gain.

    Raises:
        InputError: There are too few rows for folds.
    """
    from sklearn.linear_model import Ridge

    count = y.shape[1]
    weight, bias = np.zeros((count, x.shape[1])), np.zeros(count)
    link, gain = np.zeros((count, count)), np.zeros((count, count))
    guess = np.zeros_like(y)
    for place, i in enumerate(order):
        before = list(order[:place])
        inputs = np.concatenate([x, guess[:, before]], 1)
        model = Ridge(penalty).fit(inputs, y[:, i])
        weight[i], link[i, before], bias[i] = *np.split(model.coef_, [x.shape[1]]), model.intercept_
        guess[:, i] = held_out(inputs, y[:, i], penalty)
        if before:
            surprise = (y - guess)[:, before]
            size = surprise.std(0).clip(LEAST_SURPRISE)
            gain[i, before] = Ridge(1.0, fit_intercept=False).fit(surprise / size, y[:, i] - guess[:, i]).coef_ / size
    return weight, bias, link, gain


def held_out(x: Float[np.ndarray, "r f"], y: Float[np.ndarray, "r ..."], penalty: float) -> Float[np.ndarray, "r ..."]:
    """Predictions of every row by a ridge regression that did not learn from it."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import KFold, cross_val_predict

    if len(x) < 2:
        raise InputError("the training part", "it has one row, and a chain needs two", "give more rows")
    folds = KFold(min(FOLDS, len(x)), shuffle=True, random_state=0)
    return cross_val_predict(Ridge(penalty), x, y, cv=folds)


def surest_first(x: Float[np.ndarray, "r f"], y: Float[np.ndarray, "r v"]) -> list[int]:
    """The targets by what a ridge regression errs on held-out rows: small errors are handed on, not large ones."""
    error = np.square(held_out(x, y, PENALTY) - y).mean(0)
    return np.argsort(error, kind="stable").tolist()

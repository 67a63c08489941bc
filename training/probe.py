"""The first phase of a fit: the head's linear part on features of the frozen tokenizer and encoder, computed once.

Linear probing before joint training keeps pretrained features from being distorted by a random head (Kumar et al.
2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution").

Shape legend: r rows, f pooled width, c outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polysense.core.errors import InputError
from polysense.heads.base import Head, Out
from polysense.heads.pool import PooledHead
from polysense.heads.regress import RegressionHead
from polysense.pipeline import Pipeline
from polysense.training.examples import Examples
from polysense.training.feature_cache import pooled_features
from polysense.training.probe_chain import solve_chain, surest_first

FEW = 200  # validation rows below which cross-validation inside the training part chooses the strength instead
Solution = tuple[Tensor, ...]  # weight (c, f), bias (c,); of a chain also link and gain (c, c)
STRENGTHS = (3e-3, 3e-2, 0.3, 3.0)  # inverse regularisation of the logistic probe, as scikit-learn's C
GRID = tuple(float(f"{one:.2g}") for one in np.geomspace(1e-4, 100, 20))  # those that a probe alone tries


def can_probe(head: Head) -> TypeGuard[PooledHead]:
    """Whether the head is a linear map of pooled features."""
    return isinstance(head, PooledHead) and not getattr(head.config, "hidden", 1)


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe learnt from, and the strength that it chose: enough to solve again on all rows."""

    train: tuple[Float[Tensor, "r f"], Out]
    val: tuple[Float[Tensor, "r f"], Out]
    strength: float
    tried: dict[float, float]  # loss by strength, of validation rows or, where those are few, of held-out folds

    def table(self) -> list[str]:
        """Every strength and its loss, a line each."""
        rows = [f"{one:<8g} {loss:8.4f}{' <' * (one == self.strength)}" for one, loss in self.tried.items()]
        return [f"{'strength':8} {'loss':>8}", *rows]


def probe(
    pipeline: Pipeline, train: Examples, val: Examples, batch_size: int, strengths: Sequence[float] = STRENGTHS
) -> Probed | None:
    """Fits the head's linear layer on frozen features and keeps the regularisation of least validation loss.

    Args:
        pipeline: Its head is `can_probe`.
        train, val: Pass through the encoder once, however many strengths are tried.
        batch_size: Sequences that run together.
        strengths: To try, ascending.

    Returns:
        What `solve_again` takes; None where no solution had a finite loss.
    """
    x, y = pooled_features(pipeline, train, batch_size)
    x_val, y_val = pooled_features(pipeline, val, batch_size)
    head = pipeline.head
    assert isinstance(head, PooledHead)
    tried: dict[float, float] = {}
    with _convergence_not_needed():
        if len(x_val) < FEW:
            tried = _cross_validated(_standardised(x)[0], y, pipeline, strengths)
            strengths = (min(tried, key=tried.__getitem__),) if tried else strengths
        solutions = dict(zip(strengths, _folded_solutions(x, y, pipeline, strengths), strict=True))
    losses = {}
    for strength, solution in solutions.items():
        _set(head, solution)
        with torch.inference_mode():
            out = head.from_pooled(x_val.to(pipeline.device))
            losses[strength] = float(head.loss(out, {k: v.to(pipeline.device) for k, v in y_val.items()})["loss"])
    chosen = min(losses, key=lambda one: losses[one] if np.isfinite(losses[one]) else np.inf)
    if not np.isfinite(losses[chosen]):
        return None
    _set(head, solutions[chosen])
    return Probed((x, y), (x_val, y_val), chosen, tried or losses)


def solve_again(pipeline: Pipeline, probed: Probed) -> None:
    """Solves the head anew on the training and the validation rows, with the strength that was chosen.

    To be called at the very end: what is measured on the validation part afterwards is too good.
    """
    parts = (probed.train, probed.val)
    x = torch.cat([rows for rows, _ in parts])
    y = {name: torch.cat([targets[name] for _, targets in parts]) for name in probed.train[1]}
    with _convergence_not_needed():
        (solution,) = _folded_solutions(x, y, pipeline, (probed.strength,))
    assert isinstance(pipeline.head, PooledHead)
    _set(pipeline.head, solution)


@contextmanager
def _convergence_not_needed() -> Iterator[None]:
    """A solution short of convergence is a candidate like any other: validation decides."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def find_order(pipeline: Pipeline, learning: Examples, batch_size: int) -> list[str]:
    """Finds the order of a chain on the training rows, sets it, and returns the targets' names in it."""
    head = pipeline.head
    assert isinstance(head, RegressionHead) and head.chain is not None
    x, target = pooled_features(pipeline, learning, batch_size)
    order = surest_first(_standardised(x)[0].numpy(), target["values"].numpy())
    head.chain.order.copy_(torch.tensor(order))
    return [head.config.names[i] for i in order]


def _set(head: PooledHead, solution: Solution) -> None:
    linear = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
    linear.weight.data.copy_(solution[0])
    linear.bias.data.copy_(solution[1])
    if isinstance(head, RegressionHead) and head.chain is not None:
        head.chain.link.data.copy_(solution[2])
        head.chain.gain.data.copy_(solution[3])


def _standardised(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-4)
    return (x - mean) / std, mean, std


def _folded_solutions(x: Tensor, y: Out, pipeline: Pipeline, strengths: Sequence[float]) -> Sequence[Solution]:
    """`_solutions` for plain features: the standardisation that they need moves into the layer."""
    standard, mean, std = _standardised(x)
    solutions = _solutions(standard, y, pipeline, strengths)
    return [(weight / std, bias - weight / std @ mean, *rest) for weight, bias, *rest in solutions]


def _cross_validated(x: Tensor, y: Out, pipeline: Pipeline, strengths: Sequence[float]) -> dict[float, float]:
    """Mean loss of each strength on five held-out folds of the training rows; nothing where folds cannot be made.

    A dozen validation rows tell strengths apart hardly better than chance.
    """
    from sklearn.model_selection import StratifiedKFold

    if pipeline.task.kind != "classification" or y["labels"].bincount().clamp_max(5).min() < 5:
        return {}
    rows, labels, weights = _rotated(x.numpy())[0], y["labels"].numpy(), _class_weights(pipeline)
    losses = np.zeros(len(strengths))
    for learnt, held in StratifiedKFold(5, shuffle=True, random_state=0).split(rows, labels):
        for i, model in enumerate(_path(rows[learnt], labels[learnt], strengths, x.shape[1], weights)):
            losses[i] -= model.predict_log_proba(rows[held])[np.arange(len(held)), labels[held]].mean() / 5
    return dict(zip(strengths, losses.tolist(), strict=True))


def _rotated(x: Float[np.ndarray, "r f"]) -> tuple[Float[np.ndarray, "r k"], Float[np.ndarray, "f k"] | None]:
    """The rows in coordinates along their own principal axes, and these axes, where there are more features than rows.

    What a penalty on squared weights keeps lies in the span of the rows (Kimeldorf & Wahba 1971), so that nothing is
    lost, and every step of a solver then costs k <= r and not f.
    """
    if len(x) >= x.shape[1]:
        return x, None
    exact = x.astype(np.float64)
    values, vectors = np.linalg.eigh(exact @ exact.T)
    kept = values >= max(values[-1] * 1e-10, 1e-10)
    kept[-1] = True  # also of rows that are all the same
    sizes = np.sqrt(values[kept].clip(1e-10))
    z, axes = vectors[:, kept] * sizes, exact.T @ (vectors[:, kept] / sizes)
    return z.astype(x.dtype), axes.astype(x.dtype)


def _path(x: np.ndarray, labels: np.ndarray, strengths: Sequence[float], features: int,
          weights: dict[int, float] | None) -> Iterator[Any]:  # fmt: skip
    """One logistic regression after the other, each from where the one before ended: most of a grid costs a few steps.

    Yields:
        The same model, solved for the next strength.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=200, warm_start=True, class_weight=weights)
    for strength in strengths:
        yield model.set_params(C=strength / np.sqrt(features)).fit(x, labels)


def _solutions(x: Tensor, y: Out, pipeline: Pipeline, strengths: Sequence[float]) -> Sequence[Solution]:
    """One for each strength of regularisation."""
    from sklearn.linear_model import Ridge

    kind = pipeline.task.kind
    features = x.numpy()
    chain = getattr(pipeline.head, "chain", None)
    if chain is not None:
        chained = [solve_chain(features, y["values"].numpy(), chain.order.tolist(), 10 / s) for s in strengths]
        return [tuple(map(_tensor, parts)) for parts in chained]
    rows, axes = _rotated(features)
    if kind == "regression":
        models = [Ridge(1 / strength * 10).fit(rows, y["values"].numpy()) for strength in strengths]
        return [(_onto(np.atleast_2d(m.coef_), axes), _tensor(np.atleast_1d(m.intercept_))) for m in models]
    labels = y["labels"].numpy()
    if kind == "classification" and labels.min() == labels.max():
        name = pipeline.head.config.classes[int(labels[0])]
        raise InputError("the training part", f"all its examples are of one class, {name}", "give at least two classes")
    count = len(pipeline.head.config.classes)
    if kind == "multilabel":
        labelled = [_binary(rows, labels[:, i], strengths, features.shape[1]) for i in range(count)]
        found = [(np.stack([one[0] for one in row]), np.array([one[1] for one in row])) for row in zip(*labelled)]
    else:
        found = [_all_classes(model, count) for model in
                 _path(rows, labels, strengths, features.shape[1], _class_weights(pipeline))]  # fmt: skip
    return [(_onto(weight, axes), _tensor(bias)) for weight, bias in found]


def _class_weights(pipeline: Pipeline) -> dict[int, float] | None:
    """What each class counts, as scikit-learn takes it."""
    return dict(enumerate(getattr(pipeline.head.config, "class_weights", ()))) or None


def _all_classes(model: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for every class, also those absent from training; two classes are one row in scikit-learn."""
    coef, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight = np.zeros((count, coef.shape[1]))
    bias = np.full(count, intercept.min() - 5.0)  # an absent class is improbable
    weight[model.classes_], bias[model.classes_] = coef, intercept
    return weight, bias


def _binary(
    x: np.ndarray, labels: np.ndarray, strengths: Sequence[float], features: int
) -> list[tuple[np.ndarray, float]]:
    """Weight and bias of one label for each strength."""
    if labels.min() == labels.max():  # never or always there
        return [(np.zeros(x.shape[1]), 5.0 if labels[0] else -5.0)] * len(strengths)
    return [
        (model.coef_[0].copy(), float(model.intercept_[0])) for model in _path(x, labels, strengths, features, None)
    ]


def _onto(weight: np.ndarray, axes: np.ndarray | None) -> Tensor:
    """Weights of features, from those of coordinates along axes."""
    return _tensor(weight if axes is None else weight @ axes.T)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

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
from polysense.core.types import Sample
from polysense.heads.base import Head, Out
from polysense.heads.pool import PooledHead
from polysense.heads.regress import RegressionHead
from polysense.pipeline import Pipeline
from polysense.training.examples import Examples
from polysense.training.probe_chain import solve_chain, surest_first

FEW = 200  # validation rows below which cross-validation inside the training part chooses the strength instead
Solution = tuple[Tensor, ...]  # weight (c, f), bias (c,); of a chain also link and gain (c, c)
STRENGTHS = (3e-3, 3e-2, 0.3, 3.0)  # inverse regularisation of the logistic probe, as scikit-learn's C


def can_probe(head: Head) -> TypeGuard[PooledHead]:
    """Whether the head is a linear map of pooled features."""
    return isinstance(head, PooledHead) and not getattr(head.config, "hidden", 1)


@torch.inference_mode()
def pooled_features(pipeline: Pipeline, examples: Examples, batch_size: int) -> tuple[Float[Tensor, "r f"], Out]:
    """Pooled features of every sequence of the examples, and their collated targets."""
    head = pipeline.head
    assert isinstance(head, PooledHead)
    pipeline.eval()
    pooled, targets = [], []
    waiting: list[tuple[Sample, Any]] = []
    for i in range(len(examples)):
        samples, target = examples.whole(i)
        waiting += [(sample, target) for sample in samples]
        if len(waiting) >= batch_size or i == len(examples) - 1:
            for start in range(0, len(waiting), batch_size):
                part = waiting[start : start + batch_size]
                batch = pipeline.tokenizer.collate([sample for sample, _ in part])
                features = pipeline.features(batch)
                pooled.append(head.pool(features).float().cpu())
                targets.append(head.targets([target for _, target in part], batch["meta"]))
            waiting = []
    return torch.cat(pooled), {name: torch.cat([target[name] for target in targets]) for name in targets[0]}


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe learnt from, and the strength that it chose: enough to solve again on all rows."""

    train: tuple[Float[Tensor, "r f"], Out]
    val: tuple[Float[Tensor, "r f"], Out]
    strength: float


def probe(pipeline: Pipeline, train: Examples, val: Examples, batch_size: int) -> Probed | None:
    """Fits the head's linear layer on frozen features and keeps the regularisation of least validation loss.

    Returns:
        What `solve_again` takes; None where no solution had a finite loss.
    """
    x, y = pooled_features(pipeline, train, batch_size)
    x_val, y_val = pooled_features(pipeline, val, batch_size)
    head = pipeline.head
    assert isinstance(head, PooledHead)
    best, kept = float("inf"), None
    with _convergence_not_needed():
        strengths = STRENGTHS if len(x_val) >= FEW else _cross_validated(_standardised(x)[0], y, pipeline)
        solutions = _folded_solutions(x, y, pipeline, strengths)
    for strength, solution in zip(strengths, solutions, strict=True):
        _set(head, solution)
        with torch.inference_mode():
            out = head.from_pooled(x_val.to(pipeline.device))
            loss = float(head.loss(out, {k: v.to(pipeline.device) for k, v in y_val.items()})["loss"])
        if loss < best:
            best, kept = loss, (strength, solution)
    if kept is None:
        return None
    _set(head, kept[1])
    return Probed((x, y), (x_val, y_val), kept[0])


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


def _cross_validated(x: Tensor, y: Out, pipeline: Pipeline) -> Sequence[float]:
    """The best strength by five folds of the training rows; all of them where folds cannot be made.

    A dozen validation rows tell strengths apart hardly better than chance.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    if pipeline.task.kind != "classification" or y["labels"].bincount().clamp_max(5).min() < 5:
        return STRENGTHS
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = [
        cross_val_score(
            LogisticRegression(C=strength / np.sqrt(x.shape[1]), max_iter=200, class_weight=_class_weights(pipeline)),
            x.numpy(), y["labels"].numpy(), cv=folds, scoring="neg_log_loss").mean()
        for strength in STRENGTHS
    ]  # fmt: skip
    return (STRENGTHS[int(np.argmax(scores))],)


def _solutions(x: Tensor, y: Out, pipeline: Pipeline, strengths: Sequence[float]) -> Sequence[Solution]:
    """One for each strength of regularisation."""
    from sklearn.linear_model import LogisticRegression, Ridge

    kind = pipeline.task.kind
    features = x.numpy()
    chain = getattr(pipeline.head, "chain", None)
    if chain is not None:
        chained = [solve_chain(features, y["values"].numpy(), chain.order.tolist(), 10 / s) for s in strengths]
        return [tuple(map(_tensor, parts)) for parts in chained]
    if kind == "regression":
        models = [Ridge(1 / strength * 10).fit(features, y["values"].numpy()) for strength in strengths]
        return [(_tensor(np.atleast_2d(m.coef_)), _tensor(np.atleast_1d(m.intercept_))) for m in models]
    labels = y["labels"].numpy()
    if kind == "classification" and labels.min() == labels.max():
        name = pipeline.head.config.classes[int(labels[0])]
        raise InputError("the training part", f"all its examples are of one class, {name}", "give at least two classes")
    count = len(pipeline.head.config.classes)
    solutions = []
    for strength in strengths:
        if kind == "multilabel":
            rows = [_binary(features, labels[:, i], strength) for i in range(count)]
            solutions.append((_tensor(np.stack([row[0] for row in rows])), _tensor(np.array([row[1] for row in rows]))))
            continue
        model = LogisticRegression(
            C=strength / np.sqrt(features.shape[1]), max_iter=200, class_weight=_class_weights(pipeline)
        ).fit(features, labels)
        weight, bias = _all_classes(model, count)
        solutions.append((_tensor(weight), _tensor(bias)))
    return solutions


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


def _binary(features: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression

    if labels.min() == labels.max():  # never or always there
        return np.zeros(features.shape[1]), 5.0 if labels[0] else -5.0
    model = LogisticRegression(C=strength / np.sqrt(features.shape[1]), max_iter=200).fit(features, labels)
    return model.coef_[0], float(model.intercept_[0])


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

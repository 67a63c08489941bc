"""Grows the boosted trees of a table tokenizer, before head and tokenizer learn.

Every fold of the training rows gets trees that learnt from the other folds. What the head learns from are each row's
margins by the trees that never saw it (stacking, Wolpert 1992); what predicts later is the mean of all folds' trees,
which beats one ensemble grown on all rows.

Shape legend: n rows, f inputs, r rounds, m margins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysense.pipeline import Pipeline
from polysense.tokenizers.tabular import TabularTokenizer
from polysense.tokenizers.tabular_trees import DEPTH, LEAVES, MISSING, TreeToken, as_bits
from polysense.training.examples import Examples, TableExamples
from polysense.training.progress import unheard

FEWEST_ROWS, FEWEST_ROUNDS = 50, 20  # below these no trees are grown
MOST_ROUNDS = 400
MOST_TREES = 6000  # of all folds and margins together: what a bundle stores
RATE, USUAL_ROUNDS = 0.1, 100  # learning rate of boosting; fewer rounds than this take larger steps, up to .3
ROWS_AT_ONCE = 8192  # that run through the trees together: bounds the memory
FEATURES = 0.4  # share of the inputs that a split may choose from: trees that differ average better


@dataclass(frozen=True, slots=True)
class Goal:
    """One thing that trees learn: a class among several, one label, or one number."""

    target: np.ndarray  # (n,) class numbers or float values
    classes: int  # that are there; 0: a number

    @property
    def margins(self) -> int:
        return self.classes if self.classes > 2 else 1


def grow(pipeline: Pipeline, learning: Examples, seed: int, working: Callable[[], None] = unheard) -> bool:
    """Gives the tokenizer its trees and every training sample its "margins"; False where trees are of no use.

    Tables too small, with one class alone or with very many outputs are left without. `working` is called before the
    trees of each fold; what it raises ends the growing.
    """
    tokenizer = pipeline.tokenizer
    if not (isinstance(tokenizer, TabularTokenizer) and tokenizer.config.boost and isinstance(learning, TableExamples)):
        return False
    forest = forest_of(pipeline, [learning], seed, working)
    if forest is None:
        return False
    token, margins = forest
    token.mean.copy_(margins.mean(0))
    token.std.copy_(margins.std(0, correction=0).clamp_min(1e-3))
    tokenizer.plant(token.to(pipeline.device))
    pairs = zip(learning.samples, margins, strict=True)
    learning.samples = [replace(sample, data={**sample.data, "margins": row}) for sample, row in pairs]
    return True


def regrow(
    pipeline: Pipeline, learning: Examples, validation: Examples, seed: int, working: Callable[[], None] = unheard
) -> bool:
    """Grows the trees again, now on the validation rows too; head and token stay. False where there are no trees.

    To be called at the very end: what is measured on the validation part afterwards is too good.
    """
    tokenizer = pipeline.tokenizer
    if not (isinstance(tokenizer, TabularTokenizer) and tokenizer.trees is not None):
        return False
    assert isinstance(learning, TableExamples) and isinstance(validation, TableExamples)
    old = tokenizer.trees
    with torch.random.fork_rng(devices=[]):
        forest = forest_of(pipeline, [learning, validation], seed, working)
    if forest is None or forest[0].shape[2] != old.shape[2]:  # a class that the training part lacked: the head, too
        return False
    token = forest[0].to(pipeline.device)
    own = {name: value for name, value in old.state_dict().items() if name in ("mean", "std", "weight", "bias")}
    token.load_state_dict(token.state_dict() | own)
    tokenizer.plant(token)
    return True


def forest_of(
    pipeline: Pipeline, parts: Sequence[TableExamples], seed: int, working: Callable[[], None] = unheard
) -> tuple[TreeToken, Float[Tensor, "n m"]] | None:
    """Trees grown on all rows of the parts, and each row's margins by the trees that never saw it."""
    tokenizer = pipeline.tokenizer
    assert isinstance(tokenizer, TabularTokenizer)
    goals = goals_of(pipeline, [target for part in parts for target in part.targets])
    x = torch.cat([tokenizer.tree_inputs(tokenizer.collate(part.samples)) for part in parts]).nan_to_num(nan=MISSING)
    count = sum(goal.margins for goal in goals)
    folds = 8 if count <= 3 else 5
    rounds = min(MOST_ROUNDS, MOST_TREES // max(folds * count, 1))
    if len(x) < FEWEST_ROWS or rounds < FEWEST_ROUNDS or any(goal.classes == 1 for goal in goals):
        return None
    grown = [grow_folds(x, goal, fold_numbers(goal, folds, seed), rounds, seed, working) for goal in goals]
    longest = max(trees.shape[1] for trees, _, _ in grown)
    nodes = np.concatenate([lengthened(trees, longest) for trees, _, _ in grown], 2)  # (folds, r, m, nodes)
    margins = np.concatenate([oof for _, oof, _ in grown], 1).astype(np.float32)
    token = to_token(nodes, np.concatenate([base for _, _, base in grown]), pipeline.encoder.config.width)
    return token, torch.from_numpy(margins)


def goals_of(pipeline: Pipeline, targets: Sequence[Any]) -> list[Goal]:
    target: dict[str, Tensor] = pipeline.head.targets(targets, [{}] * len(targets))
    if pipeline.task.kind == "regression":
        return [Goal(column.astype(np.float64), 0) for column in target["values"].numpy().T]
    labels = target["labels"].numpy()
    columns = labels.T.astype(np.int64) if pipeline.task.kind == "multilabel" else [labels]
    found = [np.unique(column, return_inverse=True) for column in columns]
    return [Goal(numbers, len(present)) for present, numbers in found]


def fold_numbers(goal: Goal, folds: int, seed: int) -> Int[np.ndarray, " n"]:
    """Each row's fold, classes spread evenly; -1 for the only row of a class, which all folds learn from."""
    rng, numbers = np.random.default_rng(seed), np.zeros(len(goal.target), np.int64)
    for kind in range(max(goal.classes, 1)):
        rows = rng.permutation(np.flatnonzero(goal.target == kind) if goal.classes else len(numbers))
        numbers[rows] = (np.arange(len(rows)) + rng.integers(folds)) % folds if len(rows) > 1 else -1
    return numbers


def grow_folds(
    x: Float[Tensor, "n f"],
    goal: Goal,
    fold: Int[np.ndarray, " n"],
    rounds: int,
    seed: int,
    working: Callable[[], None] = unheard,
) -> tuple[np.ndarray, Float[np.ndarray, "n m"], Float[np.ndarray, " m"]]:
    """Trees of every fold (folds, r, m, nodes), margins of held-out rows, and the mean of the folds' starting points.

    All folds stop at the round of least loss on held-out rows.
    """
    forests, bases, paths = [], [], np.zeros((len(x), rounds, goal.margins), np.float32)
    for number in range(fold.max() + 1):
        working()
        trees, base = read_trees(boost(x.numpy(), goal, fold != number, rounds, seed + number))
        held = (fold == number) | ((fold == -1) & (number == 0))
        token = to_token(trees[None], base, 1)
        leaves = torch.cat([token.leaves(rows) for rows in x[torch.from_numpy(held)].split(ROWS_AT_ONCE)])
        steps = leaves.unflatten(1, (rounds, goal.margins)).cumsum(1)
        paths[held] = (steps + token.base).numpy()
        forests.append(trees)
        bases.append(base)
    losses = [loss(paths[:, r], goal) for r in range(rounds)]
    best = int(np.argmin(losses)) + 1
    return np.stack(forests)[:, :best], paths[:, best - 1], np.mean(bases, 0)


def boost(x: Float[np.ndarray, "n f"], goal: Goal, rows: np.ndarray, rounds: int, seed: int) -> Any:
    """scikit-learn's boosted trees of some rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind: Any = HistGradientBoostingClassifier if goal.classes else HistGradientBoostingRegressor
    model = kind(max_iter=rounds, learning_rate=RATE * min(max(USUAL_ROUNDS / rounds, 1), 3), max_leaf_nodes=LEAVES,
                 max_depth=DEPTH, max_features=FEATURES, min_samples_leaf=10 if len(x) < 5000 else 20,
                 l2_regularization=1.0, early_stopping=False, random_state=seed)  # fmt: skip
    return model.fit(x[rows], goal.target[rows])


def read_trees(model: Any) -> tuple[np.ndarray, Float[np.ndarray, " m"]]:
    """Node records (r, m, nodes) of scikit-learn's boosted trees, and the margins that they start from.

    The one place where scikit-learn keeps its trees is private; a test compares what is read here with its answers.
    """
    records = [[tree.nodes for tree in trees] for trees in model._predictors]
    nodes = np.zeros((len(records), len(records[0]), 2 * LEAVES - 1), records[0][0].dtype)
    for r, trees in enumerate(records):
        for m, tree in enumerate(trees):
            nodes[r, m, : len(tree)] = tree
    return nodes, np.asarray(model._baseline_prediction, np.float64).reshape(-1)


def lengthened(trees: np.ndarray, rounds: int) -> np.ndarray:
    """Trees (folds, r, m, nodes) with empty rounds at the end: goals stop after different numbers of them."""
    longer = np.zeros((trees.shape[0], rounds, *trees.shape[2:]), trees.dtype)
    longer[:, : trees.shape[1]] = trees
    return longer


def to_token(nodes: np.ndarray, base: Float[np.ndarray, " m"], width: int) -> TreeToken:
    """Node records (folds, r, m, nodes), averaged over the folds, as tensors. Padding counts as leaves of no value."""
    folds, rounds, margins, count = nodes.shape
    flat = nodes.reshape(-1, count)
    token = TreeToken((folds * rounds * margins, count, margins), width)
    leaf, own = flat["is_leaf"].astype(bool) | (flat["count"] == 0), np.arange(count)
    below = [np.where(leaf, own, flat[side]) for side in ("left", "right")]
    token.feature.copy_(torch.from_numpy(flat["feature_idx"].astype(np.int16)))
    token.threshold.copy_(as_bits(np.where(leaf, 0.0, flat["num_threshold"])))
    token.below.copy_(torch.from_numpy(np.stack(below, -1).astype(np.uint8)))
    token.value.copy_(torch.from_numpy(flat["value"] * leaf / folds))
    token.base.copy_(torch.from_numpy(base))
    return token


def loss(margins: Float[np.ndarray, "n m"], goal: Goal) -> float:
    """Mean log-loss, or squared error."""
    if not goal.classes:
        return float(np.mean((margins[:, 0] - goal.target) ** 2))
    logits = margins if goal.classes > 2 else np.concatenate([-margins, margins], 1) / 2
    shifted = logits - logits.max(1, keepdims=True)
    chosen = shifted[np.arange(len(logits)), goal.target]
    return float(np.mean(np.log(np.exp(shifted).sum(1)) - chosen))

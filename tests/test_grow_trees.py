"""Boosted trees of the table tokenizer: read from scikit-learn, grown by folds, stored, told from columns."""

import numpy as np
import pandas as pd
import pytest
import torch

from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.tokenizers.tabular import TabularConfig, TabularTokenizer
from polysense.tokenizers.tabular_trees import MISSING, TreeToken, as_bits
from polysense.training import grow_trees
from polysense.training.examples import TableExamples
from polysense.training.grow_trees import Goal, boost, fold_numbers, goals_of, grow, loss, read_trees, regrow, to_token
from polysense.training.sources import TableSources


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(grow_trees, "MOST_ROUNDS", 30)


TARGETS = {"classification": "sort", "multilabel": "tags", "regression": "amount,other"}


def table(n: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x, kind = rng.normal(size=n).round(3), rng.choice(["p", "q", "r"], n)
    frame = pd.DataFrame({"x": x, "kind": kind, "noise": rng.normal(size=n)})
    frame["sort"] = np.where(np.abs(x) > 0.7, np.where(kind == "p", "a", "b"), "c")
    frame["tags"] = [
        ";".join(["wide"] * int(abs(v) > 0.7) + ["p"] * int(k == "p")) for v, k in zip(x, kind, strict=True)
    ]
    frame["amount"], frame["other"] = np.where(np.abs(x) > 0.7, 50.0, 10.0), rng.normal(size=n)
    frame.loc[::9, "x"] = np.nan
    return frame


def grown(kind: str, frame: pd.DataFrame | None = None, seed: int = 0, **options):
    task, names = TASKS[f"tabular-{kind}"], tuple(TARGETS[kind].split(","))
    frame = table() if frame is None else frame
    frame = frame[["x", "kind", "noise", *names]]
    sources = TableSources(frame, names, task)
    pipeline = Pipeline.build(task.name, encoder="random:vit_tiny_patch16_224", head=sources.head_options(),
                              tokenizer={**sources.tokenizer_options(), **options},
                              sources=sources.tokenizer_sources())  # fmt: skip
    learning = sources.examples(pipeline.tokenizer, "")
    return pipeline, learning, grow(pipeline, learning, seed)


@pytest.mark.parametrize("classes", [0, 2, 4])
def test_trees_answer_as_scikit_learn_does(classes):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 5)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = MISSING
    target = rng.normal(size=400) + x[:, 0].clip(-2) if not classes else rng.permutation(np.arange(400) % classes)
    goal = Goal(target, classes)
    model = boost(x, goal, np.arange(400) < 300, 8, 0)
    nodes, base = read_trees(model)
    margins = to_token(nodes[None], base, 8).margins(torch.from_numpy(x)).numpy()
    expected = model.decision_function(x) if classes else model.predict(x)
    assert margins.shape == (400, goal.margins) and margins.std() > 0.01
    np.testing.assert_allclose(margins, expected.reshape(400, -1), atol=1e-4)


def test_thresholds_are_never_rounded_up():
    exact = np.array([0.1, 1 / 3, 1e6 + 0.3, -0.7])
    stored = as_bits(exact).view(torch.float32).double().numpy()
    assert (stored <= exact).all() and np.allclose(stored, exact, rtol=1e-6)


def test_thresholds_survive_half_precision():
    pipeline, _, _ = grown("classification")
    trees, x = pipeline.tokenizer.trees, torch.randn(50, 3)
    before = trees.leaves(x)
    state = {k: v.half().float() if v.is_floating_point() else v for k, v in trees.state_dict().items()}
    trees.load_state_dict(state)
    torch.testing.assert_close(trees.leaves(x), before, atol=1e-4, rtol=1e-3)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="256 nodes"):
        TreeToken((4, 300, 2), 8)
    with pytest.raises(ValueError, match="whole rounds"):
        TreeToken((5, 30, 2), 8)


@pytest.mark.parametrize(("kind", "margins"), [("classification", 3), ("multilabel", 2), ("regression", 2)])
def test_a_fit_gives_rows_margins_and_tables_a_token(kind, margins):
    pipeline, learning, done = grown(kind)
    tokenizer = pipeline.tokenizer
    assert done and tokenizer.config.forest[2] == margins
    batch = tokenizer.collate(learning.samples)
    assert batch["margins"].shape == (120, margins)
    out = tokenizer(batch)
    assert out.x.shape == (120, 4, 192) and out.pos[0].flatten().tolist() == [0, 1, 2, 3]
    # What the head learns from comes of trees that never saw the row; what predicts, of all trees: alike, not equal.
    del batch["margins"]
    both = np.corrcoef(tokenizer.trees.margins(tokenizer.tree_inputs(batch))[:, 0].numpy(),
                       torch.stack([sample.data["margins"] for sample in learning.samples])[:, 0].numpy())  # fmt: skip
    assert 0.7 < both[0, 1] < 0.9999
    twin = TabularTokenizer(TabularConfig(**tokenizer.config_dict()))
    twin.load_state_dict(tokenizer.state_dict())
    assert torch.equal(twin(batch).x, tokenizer(batch).x)


def test_held_out_margins_tell_the_answer():
    pipeline, learning, _ = grown("classification")
    margins = torch.stack([sample.data["margins"] for sample in learning.samples])
    labels = pipeline.head.targets(learning.targets, [])["labels"]
    assert (margins.argmax(1) == labels).float().mean() > 0.85


def test_answers_that_are_noise_stop_the_trees_early():
    frame = table()
    frame["amount"] = np.random.default_rng(5).normal(size=len(frame))
    noise, _, _ = grown("regression", frame.assign(other=frame["amount"]))
    clear, _, _ = grown("regression", table().assign(other=table()["amount"]))
    assert noise.tokenizer.config.forest[0] < clear.tokenizer.config.forest[0] / 2


def test_where_no_trees_grow():
    assert not grown("classification", table(40))[2]  # too few rows
    assert not grown("classification", boost=False)[2]
    assert not grown("multilabel", table().assign(tags="p"))[2]  # a label that all rows have


def test_trees_grow_again_on_further_rows():
    pipeline, learning, _ = grown("classification")
    tokenizer = pipeline.tokenizer
    further = TableExamples(table().iloc[:40], learning.targets[:40], tokenizer)
    batch, old = tokenizer.collate(further.samples), tokenizer.trees
    state = torch.random.get_rng_state()
    assert regrow(pipeline, learning, further, 0) and torch.equal(torch.random.get_rng_state(), state)
    new = tokenizer.trees
    assert new is not old and torch.equal(new.weight, old.weight) and torch.equal(new.mean, old.mean)
    x = tokenizer.tree_inputs(batch)
    assert not torch.equal(new.margins(x), old.margins(x)) and tokenizer.config.forest == new.shape
    other = TableExamples(table().iloc[:40], ["a"] * 40, tokenizer)
    pipeline.tokenizer.trees = None
    assert not regrow(pipeline, learning, other, 0)


def test_a_class_of_one_row_is_in_every_fold():
    goal = Goal(np.array([0] * 30 + [1] * 20 + [2]), 3)
    fold = fold_numbers(goal, 5, 0)
    assert fold[-1] == -1 and (np.bincount(fold[:30]) == 6).all() and (np.bincount(fold[30:50]) == 4).all()
    frame = table()
    frame.loc[7, "sort"] = "rare"
    pipeline, learning, done = grown("classification", frame)
    assert done and goals_of(pipeline, learning.targets)[0].classes == 4


def test_loss_is_the_log_loss():
    from sklearn.metrics import log_loss

    margins, labels = np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) % 3
    share = np.exp(margins) / np.exp(margins).sum(1, keepdims=True)
    assert loss(margins, Goal(labels, 3)) == pytest.approx(log_loss(labels, share))
    binary = 1 / (1 + np.exp(-margins[:, :1]))
    assert loss(margins[:, :1], Goal(labels % 2, 2)) == pytest.approx(log_loss(labels % 2, binary[:, 0]))

"""The probe that begins a fit: as good as scikit-learn's, for every kind of target, and solved again at the end."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from polysense.core.errors import InputError
from polysense.heads.classify import ClassificationConfig, ClassificationHead
from polysense.heads.embed import EmbeddingConfig, EmbeddingHead
from polysense.heads.forecast import ForecastConfig, ForecastHead
from polysense.heads.regress import RegressionConfig, RegressionHead
from polysense.tasks import TASKS
from polysense.training.calibrate import calibrate
from polysense.training.probe import can_probe, pooled_features, probe, solve_again

WIDTH = 24


def classifier(**options):
    torch.manual_seed(0)
    return ClassificationHead(ClassificationConfig(**{"classes": ("a", "b", "c"), **options}), WIDTH)


class FrozenFeatures:
    """Examples whose "samples" are rows; with a pipeline that pools a row as it is."""

    def __init__(self, rows, targets):
        self.rows, self.targets = rows, targets

    def __len__(self):
        return len(self.rows)

    def whole(self, i):
        return [self.rows[i]], self.targets[i]


class RowPipeline:
    """What `probe` needs of a pipeline, with rows of numbers as pooled features."""

    device = torch.device("cpu")

    def __init__(self, task, head):
        self.task, self.head, self.tokenizer = TASKS[task], head, self
        head.pool = torch.nn.Identity()

    def eval(self):
        return self

    def collate(self, rows):
        return {"x": torch.stack(list(rows)), "meta": [{"source": "row"}] * len(rows)}

    def features(self, batch):
        return batch["x"]


def rows_of(seed, count=300, classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    means = np.random.default_rng(99).normal(0, 0.5, (classes, 2 * WIDTH))
    x = means[labels] + rng.normal(size=(count, 2 * WIDTH))
    return torch.from_numpy(x * 7 + 100).float(), labels  # far from standardised


def accuracy(head, x, labels):
    return float((head.from_pooled(x)["logits"].argmax(-1).numpy() == labels).mean())


def test_probe_is_as_good_as_logistic_regression():
    (x, y), (x_val, y_val), (x_test, y_test) = (rows_of(seed, count) for seed, count in ((0, 300), (1, 300), (2, 2000)))
    head = classifier()
    names = np.array(head.config.classes)
    pipeline = RowPipeline("image-classification", head)
    assert can_probe(head)
    val = FrozenFeatures(x_val, names[y_val])
    probe(pipeline, FrozenFeatures(x, names[y]), val, 64)
    scaled = lambda rows: ((rows - x.mean(0)) / x.std(0)).numpy()  # noqa: E731
    best = max(LogisticRegression(C=c, max_iter=1000).fit(scaled(x), y).score(scaled(x_test), y_test)
               for c in (1e-3, 1e-2, 0.1, 1.0))  # fmt: skip
    found = accuracy(head, x_test, y_test)
    assert best > 0.8 and found > best - 0.02
    pooled, target = pooled_features(pipeline, val, 64)
    torch.testing.assert_close(pooled, x_val)
    assert target["labels"].tolist() == y_val.tolist()
    with torch.inference_mode():
        assert head.loss(head.from_pooled(x_val), target)["loss"] < 0.7 * np.log(3)


def test_a_probe_solved_again_knows_the_validation_rows_too():
    (x, y), (x_val, y_val) = rows_of(0, 40), rows_of(1, 250)
    x_test, y_test = rows_of(2, 2000)
    head = classifier()
    names = np.array(head.config.classes)
    pipeline = RowPipeline("image-classification", head)
    probed = probe(pipeline, FrozenFeatures(x, names[y]), FrozenFeatures(x_val, names[y_val]), 64)
    before = accuracy(head, x_test, y_test)
    solve_again(pipeline, probed)
    everything, labels = torch.cat([x, x_val]), np.concatenate([y, y_val])
    scaled = ((everything - everything.mean(0)) / everything.std(0, correction=0)).numpy()
    model = LogisticRegression(C=probed.strength / np.sqrt(x.shape[1]), max_iter=200).fit(scaled, labels)
    with torch.inference_mode():
        found = head.from_pooled(everything)["logits"].softmax(-1).numpy()
    np.testing.assert_allclose(found, model.predict_proba(scaled), atol=1e-3)
    assert accuracy(head, x_test, y_test) > before + 0.02


def test_two_classes():
    (x, y), (x_val, y_val) = rows_of(0, classes=2), rows_of(1, classes=2)
    head = classifier(classes=("no", "yes"))
    names = np.array(head.config.classes)
    probe(
        RowPipeline("image-classification", head), FrozenFeatures(x, names[y]), FrozenFeatures(x_val, names[y_val]), 64
    )
    scaled = ((x - x.mean(0)) / x.std(0)).numpy()
    model = LogisticRegression(C=0.02).fit(scaled, y)
    assert accuracy(head, x, y) == pytest.approx(model.score(scaled, y), abs=0.03)


def test_classes_absent_from_training_are_improbable():
    (x, y), (x_val, y_val) = rows_of(0), rows_of(1)
    head = classifier(classes=("zebra", "b", "c", "d", "yak"))
    names = np.array(["b", "c", "d"])
    probe(
        RowPipeline("image-classification", head), FrozenFeatures(x, names[y]), FrozenFeatures(x_val, names[y_val]), 64
    )
    scores = head.from_pooled(x_val)["logits"].softmax(-1)
    assert scores[:, [0, 4]].max() < 0.05 and accuracy(head, x_val, y_val + 1) > 0.75


def test_probe_of_several_labels():
    (x, y), (x_val, y_val) = rows_of(0), rows_of(1)
    tags = [["b"], ["b", "a"], []]  # "c" is never there
    head = classifier(multi_label=True)
    probe(RowPipeline("image-multilabel", head), FrozenFeatures(x, [tags[i] for i in y]),
          FrozenFeatures(x_val, [tags[i] for i in y_val]), 64)  # fmt: skip
    chosen = head.probabilities(head.from_pooled(x_val)) > 0.5
    truth = torch.tensor([[i == 1, i != 2, False] for i in y_val])
    assert (chosen == truth).float().mean() > 0.85 and not chosen[:, 2].any()


def test_probe_of_numbers():
    x, _ = rows_of(0)
    head = RegressionHead(RegressionConfig(("p",), (50.0,), (10.0,), hidden=0), WIDTH)
    values = (50 + 3 * (x[:, 0] - 100) / 7).tolist()
    probe(RowPipeline("image-regression", head), FrozenFeatures(x[:200], values[:200]),
          FrozenFeatures(x[200:], values[200:]), 64)  # fmt: skip
    guess = [answer.values["p"] for answer in head.decode(head.from_pooled(x[200:]), [{"source": ""}] * 100)]
    assert np.abs(np.array(guess) - values[200:]).mean() < 0.3


def test_what_cannot_be_probed():
    assert not can_probe(classifier(hidden=4)) and not can_probe(
        ForecastHead(ForecastConfig(horizon=6, tokens=5), WIDTH)
    )
    assert not can_probe(EmbeddingHead(EmbeddingConfig(), WIDTH))
    (x, _), head = rows_of(0), classifier()
    with pytest.raises(InputError, match="all its examples are of one class, a"):
        probe(
            RowPipeline("image-classification", head),
            FrozenFeatures(x, ["a"] * 300),
            FrozenFeatures(x, ["a"] * 300),
            64,
        )


def test_one_training_example_gives_no_nan():
    head = RegressionHead(RegressionConfig(hidden=0), WIDTH)
    x, _ = rows_of(0, 2)
    probe(RowPipeline("image-regression", head), FrozenFeatures(x[:1], [1.0]), FrozenFeatures(x[1:], [1.0]), 8)
    assert all(parameter.isfinite().all() for parameter in head.parameters())


def test_calibration_of_a_fit_uses_every_validation_row():
    (x, y), head = rows_of(0), classifier()
    names = np.array(head.config.classes)
    with torch.no_grad():
        head.classify[-1].weight.mul_(5)
    before = F.cross_entropy(head.from_pooled(x)["logits"], torch.from_numpy(y))
    calibrate(RowPipeline("image-classification", head), FrozenFeatures(x, names[y]), 64)
    assert float(head.temperature) > 3
    after = F.cross_entropy(head.from_pooled(x)["logits"] / head.temperature, torch.from_numpy(y))
    assert after < before
